//! The disk under the log, and the log's folder as others see it.
//!
//! Honesty is measured, not asked: no device that keeps its word through a power loss confirms a write faster than
//! its medium can take it (`probe.rs`). The log itself is never opened, a folder that is missing never made.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::line::{Findings, Line};
use super::probe::{Times, cache, device, measure};
use crate::cli::words::size;
use crate::config::Config;
use crate::wal::{self, Peek};

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
    /// Of damage, as far as they show without reading a record.
    signs: io::Result<Vec<String>>,
}

pub(super) fn look(config: &Config, stop: &AtomicBool) -> Vec<Line> {
    let path = std::path::absolute(&config.wal.path).unwrap_or_else(|_| config.wal.path.clone());
    let folder = existing(&path);
    let log = fs::metadata(&path).ok().map(|metadata| Log {
        is_folder: metadata.is_dir(),
        mode: metadata.mode() & 0o777,
        peek: wal::peek(&path),
        signs: wal::signs(&path),
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
        None if peek.has_generations => findings.failure(
            "identity",
            format!("{path}/identity is missing, and the folder has records"),
            "the gateway does not start: it cannot tell whose records these are",
            "restore the file, or make a whole log with `tidegate wal salvage --wal DIR --identity UUID --to NEW`; the UUID is \
             in the header tidegate-wal of any of its records in Kafka",
        ),
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
    damage(facts, log, findings);
}

fn damage(facts: &Facts, log: &Log, findings: &mut Findings) {
    let path = facts.path.display();
    let found = match &log.signs {
        Ok(signs) if signs.is_empty() => {
            findings.ok(
                "damage",
                "none shows; records were not read (`tidegate wal verify` does)",
            );
            return;
        }
        Ok(signs) => signs.join("; "),
        Err(error) => format!("not known, the folder cannot be read: {error}"),
    };
    findings.failure(
        "damage",
        found,
        "records may be lost that clients got OK for, or be sent again",
        format!("`tidegate wal verify --wal {path}` tells what is lost, when no gateway has the folder"),
    );
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
                 disk's cache mode to none or writethrough, which flush. Only a drive with power-loss protection may be this fast"
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
mod tests;
