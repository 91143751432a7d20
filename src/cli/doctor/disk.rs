//! The disk under the log, and the log's folder as others see it.
//!
//! Honesty is measured, not asked: no device that keeps its word through a power loss confirms a write faster than
//! its medium can take it. The measured file stands beside the log's own, is written as the log writes, and is
//! removed however the measuring ends. The log itself is never opened, a folder that is missing never made.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::line::{Findings, Line};
use crate::cli::words::size;
use crate::config::Config;
use crate::wal::{self, Peek};

/// What is written before each fdatasync.
const BLOCK: usize = 4096;
const WRITES: usize = 200;
const MEASURE_MAX: Duration = Duration::from_secs(3);
/// No medium without protection against power loss is done sooner.
const BELIEVABLE: Duration = Duration::from_micros(30);
/// Commits share a write, and still clients wait for it.
const SLOW: Duration = Duration::from_millis(50);
/// An outage of minutes fills less.
const ROOM_MIN: u64 = 1 << 30;

/// What `statfs` calls the file systems that matter here.
const FILE_SYSTEMS: &[(u32, &str, Kind)] = &[
    (0x0102_1994, "tmpfs", Kind::Memory),
    (0x8584_58f6, "ramfs", Kind::Memory),
    (0x0000_6969, "NFS", Kind::Network),
    (0x0000_517b, "SMB", Kind::Network),
    (0xfe53_4d42, "SMB", Kind::Network),
    (0xff53_4d42, "CIFS", Kind::Network),
    (0x0102_1997, "9p", Kind::Network),
    (0x6573_5546, "FUSE", Kind::Network),
    (0x00c3_6400, "Ceph", Kind::Network),
    (0x5346_414f, "AFS", Kind::Network),
    (0x0bd0_0bd0, "Lustre", Kind::Network),
    (0x794c_7630, "overlayfs", Kind::Layer),
    (0x0000_ef53, "ext4", Kind::Local),
    (0x5846_5342, "XFS", Kind::Local),
    (0x9123_683e, "Btrfs", Kind::Local),
    (0x2fc1_2fc1, "ZFS", Kind::Local),
    (0xf2f5_2010, "F2FS", Kind::Local),
    (0xca45_1a4e, "bcachefs", Kind::Local),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Memory,
    Network,
    Layer,
    Local,
    /// Its number.
    Unknown(u32),
}

/// Times of pwrite and fdatasync together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    count: usize,
    min: Duration,
    median: Duration,
    max: Duration,
    /// Of all of them.
    total: Duration,
}

/// What was found, without any judgement.
#[derive(Debug)]
struct Facts {
    /// wal.path, as it counts from here.
    path: PathBuf,
    /// It, or the nearest folder above that is there.
    folder: PathBuf,
    /// Name and kind.
    file_system: io::Result<(&'static str, Kind)>,
    /// What is mounted there: "/dev/sda1".
    device: Option<String>,
    /// The kernel's word of the device's cache: "write back", "write through".
    cache: Option<String>,
    /// Free for this user, and all of it.
    space: io::Result<(u64, u64)>,
    /// `None`: a signal ended it.
    times: io::Result<Option<Times>>,
    /// What the folder of the log, if it is there, shows.
    log: Option<Log>,
    bytes_max: u64,
    free_bytes_min: u64,
}

#[derive(Debug)]
struct Log {
    is_folder: bool,
    mode: u32,
    peek: io::Result<Peek>,
}

pub(super) fn look(config: &Config, stop: &AtomicBool) -> Vec<Line> {
    let path = std::path::absolute(&config.wal.path).unwrap_or_else(|_| config.wal.path.clone());
    let folder = existing(&path);
    let log = fs::metadata(&path).ok().map(|metadata| Log {
        is_folder: metadata.is_dir(),
        mode: metadata.mode() & 0o777,
        peek: wal::peek(&path),
    });
    lines(&Facts {
        file_system: file_system(&folder),
        device: device(&folder),
        cache: cache(&folder),
        space: space(&folder),
        times: measure(&folder, stop),
        log,
        bytes_max: config.wal.bytes_max,
        free_bytes_min: config.wal.free_bytes_min,
        folder,
        path,
    })
}

/// The folder itself, or the nearest above it that is there.
pub(super) fn existing(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find(|path| path.is_dir());
    there.unwrap_or(Path::new("/")).to_owned()
}

/// Bytes free for this user, and all bytes.
pub(super) fn space(folder: &Path) -> io::Result<(u64, u64)> {
    let found = rustix::fs::statvfs(folder)?;
    Ok((
        found.f_bavail.saturating_mul(found.f_frsize),
        found.f_blocks.saturating_mul(found.f_frsize),
    ))
}

fn file_system(folder: &Path) -> io::Result<(&'static str, Kind)> {
    // Its sign differs between machines; the numbers have 32 bits.
    let number = (rustix::fs::statfs(folder)?.f_type as u64 & 0xffff_ffff) as u32;
    let known = FILE_SYSTEMS.iter().find(|(magic, ..)| *magic == number);
    Ok(known.map_or(("unknown", Kind::Unknown(number)), |(_, name, kind)| (*name, *kind)))
}

/// What is mounted nearest above.
fn device(folder: &Path) -> Option<String> {
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

fn cache(folder: &Path) -> Option<String> {
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
    pub(super) file: File,
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

fn measure(folder: &Path, stop: &AtomicBool) -> io::Result<Option<Times>> {
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

fn lines(facts: &Facts) -> Vec<Line> {
    let mut findings = Findings::of("log disk");
    place(facts, &mut findings);
    if let Some(log) = &facts.log {
        folder(facts, log, &mut findings);
    }
    kind(facts, &mut findings);
    room(facts, &mut findings);
    speed(facts, &mut findings);
    findings.lines
}

fn place(facts: &Facts, findings: &mut Findings) {
    let path = facts.path.display();
    let folder = facts.folder.display();
    if facts.log.as_ref().is_some_and(|log| !log.is_folder) {
        findings.failure(
            "folder",
            format!("{path} (wal.path) is there and is no folder"),
            "the gateway does not start",
            "move that file away, or set wal.path (--wal) to a folder",
        );
        return;
    }
    let is_there = facts.log.is_some();
    match &facts.times {
        Ok(_) if is_there => findings.ok("folder", format!("{path} can be written by this user")),
        Ok(_) => findings.ok(
            "folder",
            format!(
                "{path} is not there yet, and can be made: the gateway makes it at its first start. What follows was \
                 measured in {folder}"
            ),
        ),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => findings.failure(
            "folder",
            format!("{folder}: {error}"),
            "nothing can be written: the gateway answers 503 to everybody",
            "free some space there, or set wal.path (--wal) to a larger disk",
        ),
        Err(error) => findings.failure(
            "folder",
            format!("{folder} cannot be written by this user: {error}"),
            if is_there {
                "the gateway does not start, or stops at the next record"
            } else {
                "the gateway cannot make its folder and does not start"
            },
            format!(
                "run doctor as the user that the gateway runs as; if it is, give that user the folder (`mkdir -p {path} && \
                 chown USER {path}`), or set wal.path (--wal) to another"
            ),
        ),
    }
}

/// The folder of the log itself.
fn folder(facts: &Facts, log: &Log, findings: &mut Findings) {
    let path = facts.path.display();
    if !log.is_folder {
        return;
    }
    if log.mode & 0o077 != 0 {
        findings.warning(
            "permissions",
            format!("{path} has mode {:04o}", log.mode),
            "other users of this machine may get at the records, or at their names and sizes",
            format!("chmod 700 {path}"),
        );
    } else {
        findings.ok("permissions", format!("mode {:04o}: for its owner only", log.mode));
    }
    let peek = match &log.peek {
        Ok(peek) => peek,
        Err(error) => {
            findings.failure(
                "identity",
                format!("the log's files cannot be read: {error}"),
                "this user cannot open this log",
                "run doctor as the user that the gateway runs as; the files belong to who made them (`ls -l`)",
            );
            return;
        }
    };
    match &peek.identity {
        Some(Ok(id)) => findings.ok("identity", format!("the log {id}")),
        None => findings.ok("identity", "none yet: no log was made here, the first start makes one"),
        Some(Err(why)) => findings.failure(
            "identity",
            format!("{path}/identity cannot be used: {why}"),
            "the gateway does not start: it cannot tell whose records these are, or they are of a newer version",
            "do not remove the folder, its records are still there. Use the version of tidegate that wrote it, or restore \
             the file from a backup",
        ),
    }
    match &peek.user {
        Some(pid) => findings.ok("in use", format!("a gateway (process {pid}) has the log open")),
        None => findings.ok("in use", "no: no gateway has the log open"),
    }
}

fn kind(facts: &Facts, findings: &mut Findings) {
    let device = facts
        .device
        .as_deref()
        .map_or_else(String::new, |device| format!(" on {device}"));
    match &facts.file_system {
        Err(error) => findings.warning(
            "file system",
            format!("not known: {error}"),
            "whether it keeps records through a restart cannot be told",
            "make sure that wal.path is on a local disk",
        ),
        Ok((name, Kind::Local)) => findings.ok("file system", format!("{name}{device}")),
        Ok((name, Kind::Memory)) => findings.failure(
            "file system",
            format!("{name}: memory, no disk"),
            "every record that Kafka has not acknowledged is lost when this machine restarts",
            "set wal.path (--wal) to a folder on a disk",
        ),
        Ok((name, Kind::Network)) => findings.warning(
            "file system",
            format!("{name}{device}: behind a network or another program"),
            "whether a record is safe when its client reads OK, and whether two gateways are kept apart, depends on that \
             server; when it is away the gateway stands still",
            "use a local disk; if it must be this, test what is left after cutting the server's power",
        ),
        Ok((name, Kind::Layer)) => findings.warning(
            "file system",
            format!("{name}: a container's own layer"),
            "the log goes away with the container, and with it every record that Kafka has not acknowledged",
            "mount a volume at wal.path (`docker run -v tidegate:/var/lib/tidegate`, a PersistentVolumeClaim)",
        ),
        Ok((_, Kind::Unknown(number))) => findings.warning(
            "file system",
            format!("of a kind that is not known here ({number:#010x}){device}"),
            "whether fsync reaches the medium there is not known",
            "use ext4, XFS, Btrfs or ZFS, or test what is left after cutting the power",
        ),
    }
}

fn room(facts: &Facts, findings: &mut Findings) {
    let (free, total) = match &facts.space {
        Ok(space) => *space,
        Err(error) => {
            findings.warning(
                "space",
                format!("not known: {error}"),
                "it cannot be checked",
                "look with `df`",
            );
            return;
        }
    };
    let (min, max) = (facts.free_bytes_min, facts.bytes_max);
    let usable = free.saturating_sub(min);
    let found = format!("{} of {} are free", size(free), size(total));
    if free < min {
        findings.failure(
            "space",
            format!("{found}, and wal.free_bytes_min asks for {}", size(min)),
            "new records are refused with 503 until there is room",
            "free some space, set wal.path (--wal) to a larger disk, or lower wal.free_bytes_min",
        );
    } else if usable < ROOM_MIN.min(max) {
        findings.warning(
            "space",
            format!(
                "{found}: the log can grow by {} before records are refused",
                size(usable)
            ),
            "a short outage of Kafka is enough to fill that",
            "free some space, or set wal.path (--wal) to a larger disk",
        );
    } else if usable < max {
        findings.ok(
            "space",
            format!(
                "{found}: the log can grow by {} before records are refused (the disk is the limit, not wal.bytes_max, {})",
                size(usable),
                size(max)
            ),
        );
    } else {
        findings.ok(
            "space",
            format!("{found}; the log takes at most {} (wal.bytes_max)", size(max)),
        );
    }
}

fn speed(facts: &Facts, findings: &mut Findings) {
    // Memory has been told, and what it measures is nothing.
    if matches!(facts.file_system, Ok((_, Kind::Memory))) {
        return;
    }
    let Ok(Some(times)) = &facts.times else { return };
    let rate = times.count as f64 / times.total.as_secs_f64().max(1e-9);
    let found = format!(
        "4 KiB and fdatasync, {} times: min {}, median {}, max {}; {rate:.0} commits a second",
        times.count,
        milliseconds(times.min),
        milliseconds(times.median),
        milliseconds(times.max),
    );
    let device = facts
        .device
        .as_deref()
        .filter(|device| device.starts_with("/dev/"))
        .unwrap_or("/dev/DISK");
    if times.median < BELIEVABLE && facts.cache.as_deref() != Some("write through") {
        findings.warning(
            "fdatasync",
            format!("{found}. No disk is that fast"),
            "the write is confirmed before it is safe: a cache that is lost with the power, or a virtual disk that ignores \
             flushes. Records that clients read OK for can be lost in a power cut",
            format!(
                "a disk: `hdparm -W {device}` shows its cache, `hdparm -W0 {device}` turns it off. A virtual machine: set the \
                 disk's cache mode to none or writethrough, not unsafe. Only a drive with power-loss protection may be this fast"
            ),
        );
    } else if times.median > SLOW {
        findings.warning(
            "fdatasync",
            found,
            "each client waits at least that long for its OK; many at once share one write, so throughput suffers less",
            format!("see what else writes to {device} (`iostat -x 1`), or put the log on another disk; wal.linger_us helps little"),
        );
    } else {
        findings.ok("fdatasync", found);
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::line::Verdict::{self, Failure, Ok as Fine, Warning};
    use super::*;

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
                }),
            }),
            bytes_max: 64 << 30,
            free_bytes_min: 256 << 20,
        }
    }

    #[track_caller]
    fn says(change: impl FnOnce(&mut Facts), check: &str, verdict: Verdict, words: &str) {
        let mut facts = facts();
        change(&mut facts);
        let lines = lines(&facts);
        let line = lines
            .iter()
            .find(|line| line.check == check)
            .unwrap_or_else(|| panic!("{lines:?}"));
        let text = format!("{} {} {}", line.found, line.means, line.todo);
        assert!(line.verdict == verdict && text.contains(words), "{line:?}");
        assert!(
            verdict == Fine || !(line.means.is_empty() || line.todo.is_empty()),
            "{line:?}"
        );
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
}
