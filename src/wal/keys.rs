//! The file `keys`: the window of idempotency keys as it was at some point of the log, so that a generation may go
//! although its keys are still wanted.
//!
//! ```text
//! little endian
//!  at size
//!   0   8  "TGIDKEYS"
//!   8   4  CRC-32C of everything after this field
//!  12   4  version, 1 (a later one keeps these first 16 bytes)
//!  16   8  through: every key of a record up to here is in this file, or was forgotten
//!  24   4  how many keys
//!  28   4  0
//!  32      for each key 52 bytes, by sequence: id 16, body 16, sequence of its first record 8, received_ms 8, records 4
//! ```
//!
//! It is replaced by rename after fsync: at a start, and by the housekeeper after each rotation. A generation is removed
//! only when the file on disk is through with it, so a rotation waits for nothing, and at any moment file and generations
//! together have every key. A start reads the file and what was committed behind `through`: the newest generation, and the
//! one before where a crash came between a rotation and its file.
//!
//! A damaged file is set aside and costs keys, never records and never a start: told, by `wal verify` too. Where it is
//! missing there were no keys (a log of before), unless the newest generations have some.
//!
//! Knows nothing of HTTP and of commits under way.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::atomic::Ordering;

use super::durable;
use super::error::OpenError;
use super::frame;
use super::generations::{self, Entry, Row};
use super::idempotency::{Keys, KeysOptions, Remembered};
use super::ranges::Range;
use super::scan::{Added, Assembled, Index};
use crate::record::{DECODING, RecordRef, SEQUENCE_MAX, Sequence};

/// Its name in the main log's folder.
pub const FILE: &str = "keys";
/// One that was damaged, for a look.
pub const ASIDE: &str = "keys.damaged";
const NEW: &str = "keys.new";

const MAGIC: &[u8; 8] = b"TGIDKEYS";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const KEY_BYTES: usize = 52;
/// A larger file is none of ours: a million keys are 52 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// Keys that are copied at once, while requests with a key and the writer wait: about 0.2 ms.
const COPIED_AT_ONCE: usize = 5_000;
/// Without a file, generations of so many bytes at the end of the log are read.
const FALLBACK_BYTES: u64 = 256 << 20;

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Every key of a record up to here is in it, or was forgotten.
    pub through: Sequence,
    /// By sequence.
    pub keys: Vec<Remembered>,
}

/// Why a file says nothing.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// A later version.
    Version(u32),
    /// It is not what was written.
    Damaged(String),
}

impl Fault {
    /// For people, about a file that the reader knows the name of.
    pub fn reason(&self) -> String {
        match self {
            Self::Version(version) => {
                format!("the file of idempotency keys has version {version}, and this is version {VERSION}")
            }
            Self::Damaged(reason) => reason.clone(),
        }
    }
}

fn key_bytes(key: &Remembered, out: &mut Vec<u8>) {
    out.extend_from_slice(&key.id);
    out.extend_from_slice(&key.body);
    out.extend_from_slice(&key.first_seq.to_le_bytes());
    out.extend_from_slice(&key.received_ms.to_le_bytes());
    out.extend_from_slice(&key.records.to_le_bytes());
}

/// What follows the checksum in the header.
fn head(through: Sequence, count: u32) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEADER_BYTES);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&through.to_le_bytes());
    head.extend_from_slice(&count.to_le_bytes());
    head.extend_from_slice(&[0; 4]);
    head
}

/// The file's bytes.
#[cfg(any(test, fuzzing))]
#[must_use]
pub fn encode(checkpoint: &Checkpoint) -> Vec<u8> {
    let mut rest = head(
        checkpoint.through,
        u32::try_from(checkpoint.keys.len()).unwrap_or(u32::MAX),
    );
    checkpoint.keys.iter().for_each(|key| key_bytes(key, &mut rest));
    [&MAGIC[..], &crc32c::crc32c(&rest).to_le_bytes(), &rest].concat()
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.first_chunk().copied()
}

fn key_of(bytes: &[u8]) -> Option<Remembered> {
    Some(Remembered {
        id: field(bytes, 0)?,
        body: field(bytes, 16)?,
        first_seq: u64::from_le_bytes(field(bytes, 32)?),
        received_ms: i64::from_le_bytes(field(bytes, 40)?),
        records: u32::from_le_bytes(field(bytes, 48)?),
    })
}

/// What the file's bytes say.
///
/// # Errors
/// [`Fault`].
pub fn parse(bytes: &[u8]) -> Result<Checkpoint, Fault> {
    let damaged = |why: &str| Fault::Damaged(why.to_owned());
    if bytes.get(..8) != Some(&MAGIC[..]) {
        return Err(damaged("it does not begin as a file of keys does"));
    }
    let sum = field(bytes, 8).map(u32::from_le_bytes);
    let version = field(bytes, 12).map(u32::from_le_bytes);
    let (Some(sum), Some(version)) = (sum, version) else {
        return Err(damaged("it is cut off"));
    };
    if crc32c::crc32c(bytes.get(12..).unwrap_or_default()) != sum {
        return Err(damaged("its checksum does not hold"));
    }
    if version != VERSION {
        return Err(Fault::Version(version));
    }
    let through = field(bytes, 16).map(u64::from_le_bytes);
    let count = field(bytes, 24).map(u32::from_le_bytes);
    let (Some(through), Some(count), Some(rest)) = (through, count, bytes.get(HEADER_BYTES..)) else {
        return Err(damaged("it is cut off"));
    };
    let (chunks, tail) = rest.as_chunks::<KEY_BYTES>();
    let keys: Vec<Remembered> = chunks.iter().filter_map(|chunk| key_of(chunk)).collect();
    let in_order = keys
        .iter()
        .zip(keys.iter().skip(1))
        .all(|(one, next)| one.first_seq < next.first_seq);
    let sane = (keys.iter())
        .all(|key| key.records >= 1 && (1..=SEQUENCE_MAX).contains(&key.first_seq) && key.last_seq() <= SEQUENCE_MAX);
    if keys.len() != count as usize || !tail.is_empty() || !in_order || !sane || through > SEQUENCE_MAX {
        return Err(damaged("what it says cannot be"));
    }
    Ok(Checkpoint { through, keys })
}

/// What the file in a log's folder says; `None`: there is none.
///
/// # Errors
/// The system's, where it is no damage.
pub fn read(folder: &Path) -> io::Result<Option<Result<Checkpoint, Fault>>> {
    let path = folder.join(FILE);
    let bytes = match fs::metadata(&path).map(|meta| meta.len()) {
        Ok(size) if size > FILE_BYTES_MAX => {
            return Ok(Some(Err(Fault::Damaged("it is too long to be one of ours".to_owned()))));
        }
        Ok(_) => fs::read(&path),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => Ok(Some(parse(&bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if generations::is_damage(&error) => {
            Ok(Some(Err(Fault::Damaged(format!("the disk does not give it: {error}")))))
        }
        Err(error) => Err(error),
    }
}

/// Writes `through` and the keys, durably, and replaces the file with it; returns its bytes.
///
/// # Errors
/// The system's; the file is as it was. Trying again is safe: it is written anew from its beginning.
pub fn write(folder: &Path, through: Sequence, keys: &Keys) -> io::Result<u64> {
    let mut after = 0;
    let next = |some: &mut Vec<Remembered>| {
        after = keys.some_after(after, COPIED_AT_ONCE, some)?;
        Some(())
    };
    put(folder, through, next)
}

/// Writes what another folder's file says into this one's.
///
/// # Errors
/// The system's.
pub fn copy(folder: &Path, checkpoint: &Checkpoint) -> io::Result<u64> {
    let mut chunks = checkpoint.keys.chunks(COPIED_AT_ONCE);
    put(folder, checkpoint.through, |some| {
        some.extend_from_slice(chunks.next()?);
        Some(())
    })
}

/// `next` gives some keys more, in order, until there are none.
fn put(folder: &Path, through: Sequence, mut next: impl FnMut(&mut Vec<Remembered>) -> Option<()>) -> io::Result<u64> {
    let temporary = folder.join(NEW);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    // The header comes last: how many there are is known then.
    file.write_all(&[0; HEADER_BYTES])?;
    let (mut some, mut bytes) = (Vec::new(), Vec::new());
    let (mut count, mut sum) = (0, 0);
    while next(&mut some).is_some() {
        some.iter().for_each(|key| key_bytes(key, &mut bytes));
        count += some.len();
        sum = crc32c::crc32c_append(sum, &bytes);
        file.write_all(&bytes)?;
        some.clear();
        bytes.clear();
    }
    let head = head(through, u32::try_from(count).unwrap_or(u32::MAX));
    let length = count * KEY_BYTES;
    let sum = crc32c::crc32c_combine(crc32c::crc32c(&head), sum, length);
    file.write_all_at(&[&MAGIC[..], &sum.to_le_bytes(), &head].concat(), 0)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(FILE))?;
    durable::sync_folder(folder)?;
    Ok((HEADER_BYTES + length) as u64)
}

/// The keys that a start finds: of the file, and of what was committed behind it, before `next`.
///
/// # Errors
/// A file of a later version, or one that the system does not open. What is damaged costs keys, and is told.
pub fn load(folder: &Path, row: &Row, next: Sequence, options: KeysOptions, now_ms: i64) -> Result<Keys, OpenError> {
    let path = folder.join(FILE);
    let keys = Keys::new(options, now_ms);
    let file = read(folder).map_err(OpenError::io("read", &path))?;
    let mut lost = Vec::new();
    let is_missing = file.is_none();
    let checkpoint = match file {
        None => None,
        Some(Ok(checkpoint)) => Some(checkpoint),
        Some(Err(fault @ Fault::Version(_))) => {
            return Err(OpenError::Format {
                path,
                reason: fault.reason(),
            });
        }
        Some(Err(Fault::Damaged(reason))) => {
            lost.push(match fs::rename(&path, folder.join(ASIDE)) {
                Ok(()) => format!("the file 'keys' is damaged ({reason}) and was set aside as '{ASIDE}'"),
                Err(error) => format!("the file 'keys' is damaged ({reason}) and could not be set aside: {error}"),
            });
            None
        }
    };
    let through = checkpoint
        .as_ref()
        .map_or_else(|| fallback(row, next), |checkpoint| checkpoint.through);
    let first = row.first().unwrap_or(next);
    if checkpoint.is_some() && through + 1 < first {
        lost.push(format!(
            "the generations of sequences {} to {} are gone, and with them their keys",
            through + 1,
            first - 1
        ));
    }
    for key in checkpoint.map(|checkpoint| checkpoint.keys).unwrap_or_default() {
        // What the log does not have, nobody may be told of.
        if key.last_seq() < next {
            keys.restore(key);
        }
    }
    let mut behind: BTreeMap<Sequence, Remembered> = BTreeMap::new();
    for (entry, end) in row.segments(next).filter(|(_, end)| *end > through + 1) {
        let unread = from_frames(entry, (through + 1).max(entry.first), end, &row.told(), &mut |key| {
            behind.insert(key.first_seq, key);
            // The newest of them are all that is remembered.
            if behind.len() > options.max {
                behind.pop_first();
            }
        });
        let unread = unread.map_err(OpenError::io("read", &entry.data_path()))?;
        if unread > 0 {
            lost.push(format!(
                "the disk does not give {unread} bytes of {}",
                entry.data_path().display()
            ));
        }
    }
    if is_missing && !behind.is_empty() {
        lost.push("the file 'keys' is missing".to_owned());
    }
    behind.into_values().for_each(|key| keys.restore(key));
    for reason in lost {
        tracing::error!("{reason}: requests that were taken before may be stored again when their clients repeat them");
    }
    tracing::debug!(keys = keys.count(), "idempotency keys are remembered");
    keys.through.store(through.min(next - 1), Ordering::Release);
    Ok(keys)
}

/// Where to begin without a file: behind what is read are the newest generations, one at least.
fn fallback(row: &Row, next: Sequence) -> Sequence {
    let mut bytes = 0;
    let newest = row.segments(next).rev().take_while(|(entry, _)| {
        let is_first = bytes == 0;
        bytes += entry.disk_bytes.max(1);
        is_first || bytes <= FALLBACK_BYTES
    });
    newest.last().map_or(next, |(entry, _)| entry.first) - 1
}

/// Gives the keys of a generation's records, from the sequence `from` up to and without `end`; returns how many bytes the disk
/// does not give.
fn from_frames(
    entry: &Entry,
    from: Sequence,
    end: Sequence,
    told: &[Range],
    each: &mut dyn FnMut(Remembered),
) -> io::Result<u64> {
    let (index, unread) = match Index::scan_past_faults(&entry.data_path(), entry.key, told) {
        Ok(found) => found,
        // Its records are lost, which is told elsewhere.
        Err(error) if generations::is_damage(&error) => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut chunk = Assembled::from(from);
    let mut bytes = Vec::new();
    for at in index.seek(from).. {
        match index.read(at, &mut bytes) {
            Ok(Some(())) => {}
            Ok(None) => break,
            // It was read a moment ago.
            Err(_) => bytes.clear(),
        }
        let Some((header, payload)) = frame::check(&bytes, entry.key) else {
            continue;
        };
        if header.first >= end {
            break;
        }
        let mut added = chunk.add(&header, payload);
        if added == Added::Gap && header.first > chunk.expected() {
            chunk = Assembled::from(header.first);
            added = chunk.add(&header, payload);
        }
        if matches!(added, Added::Broken(_)) {
            chunk = Assembled::from(header.last() + 1);
        }
        for (sequence, entry) in chunk.take().filter(|(sequence, _)| *sequence < end) {
            let Ok((record, _)) = bincode::borrow_decode_from_slice::<RecordRef<'_>, _>(entry, DECODING) else {
                continue;
            };
            if let Some(idempotency) = &record.idempotency {
                let key = Remembered::of(idempotency, sequence, record.received_ms);
                if key.records >= 1 && key.last_seq() < end {
                    each(key);
                }
            }
        }
        chunk.forget();
    }
    Ok(unread)
}

#[cfg(test)]
#[path = "tests/keys.rs"]
mod tests;
