//! A broker whose disk is full: its log folder fails and it ends; it comes back with more room.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::{Trial, config, rounds};
use crate::support::gateway::Killed;
use crate::support::kafka::Kafka;
use crate::support::{seconds, unshare, wait_until};

/// A small file system that only one mount namespace has, for as long as its process lives.
struct TinyDisk {
    process: Killed,
    data: PathBuf,
}

impl TinyDisk {
    fn mount(folder: &Path) -> Self {
        let mut command = unshare();
        command
            .args([
                "sh",
                "-c",
                r#"mount -t tmpfs -o size=48m none "$0" && echo mounted && exec sleep infinity"#,
            ])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line.trim(), "mounted");
        Self {
            process: Killed(process),
            data: folder.to_owned(),
        }
    }

    fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// What takes the room that is left, seen from outside.
    fn ballast(&self) -> PathBuf {
        let inside = self.data.strip_prefix("/").unwrap();
        Path::new(&format!("/proc/{}/root", self.pid()))
            .join(inside)
            .join("ballast")
    }

    fn fill(&self) {
        let mut file = fs::File::create(self.ballast()).unwrap();
        let full = std::io::copy(&mut std::io::repeat(b'x'), &mut file).unwrap_err();
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
    }

    fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

pub fn a_full_disk_of_the_broker_costs_nothing(delivery: &str) {
    let folder = tempfile::tempdir().unwrap();
    let disk = TinyDisk::mount(folder.path());
    let kafka = Kafka::private_within(disk.pid(), &disk.data.join("data"));
    kafka.create_topic("t", 2, &[]);
    let mut trial = Trial::start(&kafka, &config(kafka.bootstrap(), delivery), &["t"]);
    for _ in 0..rounds(1) {
        disk.fill();
        trial.injected += 1;
        wait_until("the broker has ended", seconds(60), || !kafka.runs());
        let acked = trial.acked();
        trial.for_long(seconds(2));
        assert_eq!(trial.acked(), acked, "nobody acknowledges");
        disk.free();
        kafka.kill();
        kafka.start();
        trial.delivers();
    }
    trial.finish(delivery, "the broker's disk full, and freed");
}
