//! What is told of which disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use super::*;
use crate::cli::doctor::line::Verdict::{self, Failure, Ok as Fine, Warning};
use crate::cli::doctor::told::told;

fn times(median_us: u64) -> Times {
    let median = Duration::from_micros(median_us);
    Times {
        count: 200,
        min: median / 2,
        median,
        max: median * 4,
        total: median * 200,
    }
}

fn facts() -> Facts {
    Facts {
        path: "/srv/wal".into(),
        folder: "/srv/wal".into(),
        file_system: Ok(("ext4", Kind::Local)),
        device: Some("/dev/sda1".to_owned()),
        cache: Some("write back".to_owned()),
        space: Ok((100 << 30, 200 << 30)),
        times: Ok(Some(times(1000))),
        log: Some(Log {
            is_folder: true,
            mode: 0o700,
            peek: Ok(Peek {
                identity: Some(Ok("0b5c".to_owned())),
                user: None,
                has_generations: false,
            }),
            signs: Ok(Vec::new()),
        }),
        bytes_max: 64 << 30,
        free_bytes_min: 256 << 20,
    }
}

#[track_caller]
fn says(change: impl FnOnce(&mut Facts), check: &str, verdict: Verdict, words: &str) {
    let mut facts = facts();
    change(&mut facts);
    told(&lines(&facts), check, verdict, &[words]);
}

#[test]
fn a_good_disk_has_nothing_to_tell_but_what_it_is() {
    assert!(lines(&facts()).iter().all(|line| line.verdict == Fine));
}

#[test]
fn each_kind_of_file_system_is_told() {
    let kind = |name, kind| move |facts: &mut Facts| facts.file_system = Ok((name, kind));
    says(
        kind("tmpfs", Kind::Memory),
        "file system",
        Failure,
        "lost when this machine restarts",
    );
    says(kind("NFS", Kind::Network), "file system", Warning, "local disk");
    says(kind("overlayfs", Kind::Layer), "file system", Warning, "mount a volume");
    says(kind("unknown", Kind::Unknown(7)), "file system", Warning, "0x00000007");
    says(|_| (), "file system", Fine, "ext4 on /dev/sda1");
}

#[test]
fn a_device_that_is_too_fast_or_too_slow_is_told() {
    let fast = |facts: &mut Facts| facts.times = Ok(Some(times(12)));
    says(fast, "fdatasync", Warning, "hdparm -W /dev/sda1");
    says(
        |facts| facts.times = Ok(Some(times(31))),
        "fdatasync",
        Fine,
        "commits a second",
    );
    says(
        |facts| facts.times = Ok(Some(times(60_000))),
        "fdatasync",
        Warning,
        "iostat",
    );
    let protected = |facts: &mut Facts| {
        fast(facts);
        facts.cache = Some("write through".to_owned());
    };
    says(protected, "fdatasync", Fine, "0.01 ms");
}

#[test]
fn room_is_compared_with_what_the_log_may_take() {
    let free = |free: u64| move |facts: &mut Facts| facts.space = Ok((free, 200 << 30));
    says(free(100 << 20), "space", Failure, "503");
    says(free(600 << 20), "space", Warning, "344.0 MiB");
    says(free(10 << 30), "space", Fine, "the disk is the limit");
    says(free(100 << 30), "space", Fine, "at most 64.0 GiB");
}

#[test]
fn the_folder_is_told_as_it_is() {
    let denied = |facts: &mut Facts| facts.times = Err(io::ErrorKind::PermissionDenied.into());
    says(denied, "folder", Failure, "chown");
    says(|facts| facts.log = None, "folder", Fine, "not there yet");
    let log = |change: fn(&mut Log)| move |facts: &mut Facts| change(facts.log.as_mut().unwrap());
    says(log(|log| log.is_folder = false), "folder", Failure, "no folder");
    says(
        log(|log| log.mode = 0o755),
        "permissions",
        Warning,
        "chmod 700 /srv/wal",
    );
    let peek =
        |change: fn(&mut Peek)| move |facts: &mut Facts| change(facts.log.as_mut().unwrap().peek.as_mut().unwrap());
    says(peek(|peek| peek.user = Some("7".into())), "in use", Fine, "process 7");
    says(
        peek(|peek| peek.identity = Some(Err("cut off".into()))),
        "identity",
        Failure,
        "do not remove",
    );
    says(peek(|peek| peek.identity = None), "identity", Fine, "none yet");
    let lost = |peek: &mut Peek| (peek.identity, peek.has_generations) = (None, true);
    says(peek(lost), "identity", Failure, "wal salvage");
    says(|_| (), "damage", Fine, "none shows");
    let missing = log(|log| log.signs = Ok(vec!["the witness is missing".to_owned()]));
    says(missing, "damage", Failure, "the witness is missing");
    let missing = log(|log| log.signs = Ok(vec!["the witness is missing".to_owned()]));
    says(missing, "damage", Failure, "`tidegate wal verify --wal /srv/wal`");
    let unread = log(|log| log.signs = Err(io::ErrorKind::PermissionDenied.into()));
    says(unread, "damage", Failure, "permission denied");
}

#[test]
fn measuring_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let times = measure(folder.path(), &AtomicBool::new(false)).unwrap().unwrap();
    assert!(times.count > 0 && times.min <= times.median && times.median <= times.max);
    assert_eq!(measure(folder.path(), &AtomicBool::new(true)).unwrap(), None);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert!(measure(&folder.path().join("missing"), &AtomicBool::new(false)).is_err());
}
