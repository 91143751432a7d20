//! Reads a folder's logs whole: every frame's checksum, what is in it, and that none is missing.
//!
//! Whatever should be there and cannot be read is told as a range of sequences; nothing is missing in silence. What a
//! salvage has told before is not told again. One generation at a time is in memory, by its index (56 bytes a frame).
//!
//! Reads only. Places of the disk that cannot be read count as damaged, and reading goes on behind them.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::archive::{Archive, ArchiveError, Archived, Part, Witnessed};
use super::frame;
use super::generations::Entry;
use super::log::lock;
use super::reader::View as _;
use super::recovery::GUESSED;
use super::scan::{Added, Assembled, Index};
use super::{Letter, Watermarks, generations, ranges};
use crate::record::{DECODING, RecordRef, Sequence};

/// How many generations are read at once: one more than a small machine has cores, since some wait for the disk.
const READERS: usize = 3;

/// Sequences that should be there and are not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The first one.
    pub first: Sequence,
    /// The last one.
    pub last: Sequence,
    /// Why, as far as that can be seen.
    pub reason: String,
    /// The log went on without them: they were never acknowledged, although the watermark is past them.
    pub passed: bool,
}

/// What one log is like.
#[derive(Debug, Clone)]
pub struct Verified {
    /// Which one.
    pub part: Part,
    /// Its watermarks, as a start would find them.
    pub watermarks: Watermarks,
    /// How many generations it has.
    pub generations: usize,
    /// Bytes of their files.
    pub disk_bytes: u64,
    /// Entries that were read and are right.
    pub records: u64,
    /// What should be there and is not, in order.
    pub lost: Vec<Lost>,
    /// What is wrong without costing a record.
    pub faults: Vec<String>,
    /// What is worth knowing, and no damage.
    pub notes: Vec<String>,
}

impl Verified {
    /// How many sequences are lost.
    #[must_use]
    pub fn lost_records(&self) -> u64 {
        self.lost.iter().map(|range| range.last - range.first + 1).sum()
    }

    /// Whether something is wrong.
    #[must_use]
    pub fn is_damaged(&self) -> bool {
        !self.lost.is_empty() || !self.faults.is_empty()
    }
}

/// Reads one log whole. `progress` is told of bytes of files that were read, from several threads.
///
/// # Errors
/// A file that the system does not open.
pub fn verify(log: &Archived, progress: &(dyn Fn(u64) + Sync)) -> Result<Verified, ArchiveError> {
    let segments: Vec<(&Entry, Sequence)> = log.segments().collect();
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<(usize, Result<Found, ArchiveError>)>> = Mutex::default();
    thread::scope(|scope| {
        for _ in 0..READERS.min(segments.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some((entry, end)) = segments.get(at) else { return };
                    let found = read(log, entry, *end, &mut |_, _| Ok(()));
                    lock(&results).push((at, found.map_err(ArchiveError::io("read", &entry.data_path()))));
                    progress(entry.disk_bytes);
                }
            });
        }
    });
    let mut results = std::mem::take(&mut *lock(&results));
    results.sort_by_key(|(at, _)| *at);
    let mut found = Found::default();
    found.lost.extend(missing(log));
    for (_, result) in results {
        let result = result?;
        found.records += result.records;
        found.unreadable_bytes += result.unreadable_bytes;
        found.keys += result.keys;
        found.lost.extend(result.lost);
    }
    let mut verified = Verified {
        part: log.part(),
        watermarks: log.watermarks(),
        generations: log.generations(),
        disk_bytes: log.disk_bytes(),
        records: found.records,
        lost: untold(log, found.lost),
        faults: Vec::new(),
        notes: Vec::new(),
    };
    tell(log, found.unreadable_bytes, &mut verified);
    verified.faults.extend(keys_fault(log, found.keys));
    Ok(verified)
}

/// What is wrong with the file of idempotency keys, when so many records have one.
fn keys_fault(log: &Archived, keys: u64) -> Option<String> {
    let first = log.segments().next().map(|(entry, _)| entry.first);
    let what = match (log.keys(), first) {
        (Some(Err(reason)), _) => format!("the file 'keys' is damaged ({reason})"),
        (None, _) if log.part() == Part::Main && keys > 0 => {
            format!("the file 'keys' is missing, and {keys} records have an idempotency key")
        }
        (Some(Ok(through)), Some(first)) if through + 1 < first => {
            format!(
                "idempotency keys of the sequences {} to {} are lost with their generations",
                through + 1,
                first - 1
            )
        }
        _ => return None,
    };
    Some(format!(
        "{what}: requests that were taken before may be stored again when their clients repeat them"
    ))
}

/// What is wrong, or worth knowing, beside the records.
fn tell(log: &Archived, unreadable_bytes: u64, verified: &mut Verified) {
    // A log without generations has a witness too: without it nobody can say that nothing is missing.
    let witness = match log.witnessed() {
        Witnessed::Marks(_) => None,
        Witnessed::Missing => Some("missing"),
        Witnessed::Damaged => Some("damaged"),
    };
    if let Some(witness) = witness {
        verified.faults.push(format!(
            "the witness is {witness}: how far the log was committed and acknowledged is not known, so what is lost at \
             its end cannot be told, and a start sends everything that is here again"
        ));
    }
    if let Some(fault) = log.lost_fault() {
        verified
            .faults
            .push(format!("{fault}: what is known to be missing is told again"));
    }
    if unreadable_bytes > 0 {
        verified.faults.push(format!(
            "the disk does not give {unreadable_bytes} bytes of the files: it is failing, copy what is left (wal salvage) to another"
        ));
    }
    if log.unknown_bytes() > 0 {
        verified.faults.push(format!(
            "the newest files, of {} bytes, have no commit that can be read: records that were answered OK may be lost with \
             them, and no watermark tells (a commit that was cut off before anybody was answered looks the same)",
            log.unknown_bytes()
        ));
    }
    if log.is_end_lost() {
        let next = match log.part() {
            Part::Main => {
                format!(". A start, or a salvage, goes on {GUESSED} sequences later, so that none is used twice")
            }
            Part::Held | Part::DeadLetters => String::new(),
        };
        verified.notes.push(format!(
            "the end of the log is lost: it may have been further than {}{next}",
            log.watermarks().committed
        ));
    }
    if let Some((first, last)) = log.torn() {
        verified.notes.push(format!(
            "the last commit (sequences {first} to {last}) was cut off before anybody was answered OK: no damage, a start drops it"
        ));
    }
    for (first, last) in log.lost() {
        verified.notes.push(format!(
            "sequences {first} to {last} are not here since a salvage, which has told so"
        ));
    }
    for (first, last) in log.void() {
        verified.notes.push(format!(
            "no record has the sequences {first} to {last}: they were passed over, so that none is used twice{}",
            match last - first + 1 >= GUESSED {
                true => ". The end of the log was lost then, or its witness: whether records had them nobody knows",
                false => "",
            }
        ));
    }
    for entry in log.aside() {
        // Whatever of it can be read is acknowledged, or never was answered OK.
        let name = entry
            .folder
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        verified.notes.push(format!(
            "{name} was set aside in 'damaged' when something in it, or behind it, could not be read ({} bytes); remove it \
             when it is no longer wanted: nothing tells of what was lost with it then",
            entry.disk_bytes
        ));
    }
}

/// Reads every log of a folder.
///
/// # Errors
/// As [`verify`], or a gateway has taken the folder meanwhile: what was found may be its doing.
pub fn verify_all(archive: &Archive, progress: &(dyn Fn(u64) + Sync)) -> Result<Vec<Verified>, ArchiveError> {
    let there = archive.logs().map(|log| verify(log, progress));
    let mut verified: Vec<Verified> = there.collect::<Result<_, _>>()?;
    for gone in archive.gone() {
        let fault = format!("{gone}: {}", gone.advice());
        match verified.iter_mut().find(|log| log.part == gone.part) {
            // It was made anew.
            Some(log) => log.faults.push(fault),
            None => verified.push(Verified {
                part: gone.part,
                watermarks: Watermarks::default(),
                generations: 0,
                disk_bytes: 0,
                records: 0,
                lost: Vec::new(),
                faults: vec![fault],
                notes: Vec::new(),
            }),
        }
    }
    archive.check_unused()?;
    Ok(verified)
}

/// What reading a generation found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) records: u64,
    pub(super) lost: Vec<Lost>,
    pub(super) unreadable_bytes: u64,
    /// Records with an idempotency key.
    pub(super) keys: u64,
}

/// What is missing before the first generation: what the log went on without, and what it does not know of yet.
pub(super) fn missing(log: &Archived) -> Vec<Lost> {
    let marks = log.watermarks();
    let first = log
        .segments()
        .next()
        .map_or(marks.committed + 1, |(entry, _)| entry.first);
    let passed = log.unsent().iter().map(|(first, last)| Lost {
        first: *first,
        last: *last,
        reason: "it could not be read when its turn came; what is left of its generation is in 'damaged'".to_owned(),
        passed: true,
    });
    // It may have been told at a start, and not been passed yet.
    let unknown = ranges::unknown(marks.acked + 1, first.saturating_sub(1), log.unsent());
    let gone = unknown.into_iter().map(|(first, last)| Lost {
        first,
        last,
        reason: "their generation is missing".to_owned(),
        passed: false,
    });
    passed.chain(gone).collect()
}

/// Reads one generation, which holds the sequences before `end`: each intact entry is given to `each`, in order.
///
/// # Errors
/// The system's, or of `each`. What cannot be read is no error.
pub(super) fn read(
    log: &Archived,
    entry: &Entry,
    end: Sequence,
    each: &mut dyn FnMut(Sequence, &[u8]) -> io::Result<()>,
) -> io::Result<Found> {
    let mut found = Found::default();
    let told = log.told();
    let index = match Index::scan_past_faults(&entry.data_path(), entry.key, &told) {
        Ok((index, unreadable_bytes)) => {
            found.unreadable_bytes = unreadable_bytes;
            index
        }
        Err(error) if generations::is_damage(&error) => {
            if entry.first < end {
                found.lost.push(Lost {
                    first: entry.first,
                    last: end - 1,
                    reason: match error.kind() {
                        io::ErrorKind::NotFound => "their generation's file is missing".to_owned(),
                        _ => format!("their generation's file cannot be read: {error}"),
                    },
                    passed: false,
                });
            }
            return Ok(found);
        }
        Err(error) => return Err(error),
    };
    let reason = |first, last| match index.has_broken(first, last) {
        true => "damaged: a checksum does not hold".to_owned(),
        false => "missing: nothing of them is in their generation's file, or that generation is gone".to_owned(),
    };
    let mut lose = |first: Sequence, last: Sequence, reason: String| {
        found.lost.push(Lost {
            first,
            last,
            reason,
            passed: false,
        });
    };
    let mut chunk = Assembled::from(entry.first);
    let mut bytes = Vec::new();
    let mut at = 0;
    let (mut records, mut keys) = (0, 0);
    loop {
        match index.read(at, &mut bytes) {
            Ok(Some(())) => {}
            Ok(None) => break,
            // It was read a moment ago.
            Err(_) => bytes.clear(),
        }
        at += 1;
        let Some((header, payload)) = frame::check(&bytes, entry.key) else {
            continue;
        };
        if header.first >= end {
            break;
        }
        let mut added = chunk.add(&header, payload);
        if added == Added::Gap && header.first > chunk.expected() {
            lose(
                chunk.expected(),
                header.first - 1,
                reason(chunk.expected(), header.first - 1),
            );
            chunk = Assembled::from(header.first);
            added = chunk.add(&header, payload);
        }
        if let Added::Broken(reason) = added {
            lose(chunk.expected(), header.last().min(end - 1), reason);
            chunk = Assembled::from(header.last() + 1);
        }
        for (sequence, bytes) in chunk.take() {
            if sequence >= end {
                break;
            }
            match decodes(log.part(), bytes) {
                Ok(has_key) => {
                    each(sequence, bytes)?;
                    records += 1;
                    keys += u64::from(has_key);
                }
                Err(reason) => lose(sequence, sequence, reason),
            }
        }
        chunk.forget();
    }
    let expected = chunk.expected();
    if expected < end {
        lose(expected, end - 1, reason(expected, end - 1));
    }
    found.records = records;
    found.keys = keys;
    Ok(found)
}

/// Whether an entry is what its log holds; and then, whether it has an idempotency key.
fn decodes(part: Part, bytes: &[u8]) -> Result<bool, String> {
    let used = match part {
        Part::Main | Part::Held => bincode::borrow_decode_from_slice::<RecordRef<'_>, _>(bytes, DECODING)
            .map(|(record, used)| (record.idempotency.is_some(), used)),
        Part::DeadLetters => bincode::decode_from_slice::<Letter, _>(bytes, DECODING).map(|(_, used)| (false, used)),
    };
    match used {
        Ok((has_key, used)) if used == bytes.len() => Ok(has_key),
        Ok((_, used)) => Err(format!(
            "the record has {} bytes and makes sense for {used}",
            bytes.len()
        )),
        Err(error) => Err(format!("the record does not decode: {error}")),
    }
}

/// In order, what is alike and follows on joined, without what the log has told of before. What it went on without is told
/// apart from what was acknowledged.
pub(super) fn untold(log: &Archived, mut lost: Vec<Lost>) -> Vec<Lost> {
    lost.sort_by_key(|range| range.first);
    let mut untold: Vec<Lost> = Vec::new();
    for range in lost {
        for (first, last) in ranges::unknown(range.first, range.last, &log.told()) {
            for (first, last, is_marked) in ranges::parts(first, last, log.found_damaged()) {
                let passed = range.passed || is_marked;
                match untold.last_mut() {
                    Some(before)
                        if before.last + 1 == first && before.reason == range.reason && before.passed == passed =>
                    {
                        before.last = last;
                    }
                    _ => untold.push(Lost {
                        first,
                        last,
                        reason: range.reason.clone(),
                        passed,
                    }),
                }
            }
        }
    }
    untold
}
