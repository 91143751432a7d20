//! How quick and how honest a disk is, measured in a file of its own that is written as the log writes and removed
//! however the measuring ends; and what the kernel says of the device. Knows nothing of the log.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What is written before each fdatasync.
const BLOCK: usize = 4096;
const WRITES: usize = 200;
const MEASURE_MAX: Duration = Duration::from_secs(3);

/// Times of pwrite and fdatasync together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Times {
    pub(super) count: usize,
    pub(super) min: Duration,
    pub(super) median: Duration,
    pub(super) max: Duration,
    /// Of all of them.
    pub(super) total: Duration,
}

/// What is mounted nearest above.
pub(super) fn device(folder: &Path) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut best: Option<(usize, &str)> = None;
    for mut fields in mounts.lines().map(str::split_whitespace) {
        let (Some(device), Some(place)) = (fields.next(), fields.next()) else {
            continue;
        };
        let length = Path::new(place).components().count();
        // The last of one place is on top.
        if folder.starts_with(place) && best.is_none_or(|(longest, _)| length >= longest) {
            best = Some((length, device));
        }
    }
    best.map(|(_, device)| device.to_owned())
}

/// The kernel's word of the device's cache: "write back", "write through".
pub(super) fn cache(folder: &Path) -> Option<String> {
    let device = fs::metadata(folder).ok()?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let below = format!("/sys/dev/block/{major}:{minor}");
    // A partition's queue is its disk's.
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = fs::read_to_string(format!("{below}/{queue}/write_cache")).ok()?;
        Some(text.trim().to_owned())
    })
}

/// A file of this process, removed with it.
pub(super) struct Probe {
    path: PathBuf,
    file: File,
}

impl Probe {
    pub(super) fn make(folder: &Path) -> io::Result<Self> {
        let name = format!(".tidegate-doctor-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = folder.join(name);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)?;
        Ok(Self { path, file })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            eprintln!(
                "tidegate: {} could not be removed: {error}. Remove it",
                self.path.display()
            );
        }
    }
}

/// `None`: `stop` ended it.
pub(super) fn measure(folder: &Path, stop: &AtomicBool) -> io::Result<Option<Times>> {
    // With a name: some file systems do not bother to make a file durable that has none.
    let probe = Probe::make(folder)?;
    let block = [0x5a; BLOCK];
    let started = Instant::now();
    let mut times = Vec::with_capacity(WRITES);
    for count in 0..WRITES {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        if started.elapsed() > MEASURE_MAX {
            break;
        }
        let write = Instant::now();
        probe.file.write_all_at(&block, (count * BLOCK) as u64)?;
        probe.file.sync_data()?;
        times.push(write.elapsed());
    }
    let total = times.iter().sum();
    times.sort();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    Ok(Some(Times {
        count: times.len(),
        min: at(0),
        median: at(times.len() / 2),
        max: at(times.len().saturating_sub(1)),
        total,
    }))
}
