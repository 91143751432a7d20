//! The witness: how far the log was committed and acknowledged, outside sled.
//!
//! A small file of two slots, written in turn, each with its own checksum, so that a torn write leaves the
//! other. It is written (not fsynced) after each commit's fdatasync and before the OK: exact after a killed
//! process, because the kernel has it. It is fsynced every second and at a rotation: after a power loss it is
//! at most that old, and only then can damage within the last commit not be told from a torn tail.
//!
//! ```text
//! slot 0 at 0, slot 1 at 4096 (a sector of its own), little endian
//! at size
//!  0   8  "TGWITNES"
//!  8   4  CRC-32C of bytes 12..40
//! 12   4  version, 1
//! 16   8  counter: the higher one of two good slots is the newer
//! 24   8  committed
//! 32   8  acked
//! ```
//!
//! Knows nothing of generations and frames.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::durable;
use crate::record::{SEQUENCE_MAX, Sequence};

/// The file's name in the log's folder.
pub const FILE: &str = "witness";

const MAGIC: &[u8; 8] = b"TGWITNES";
const VERSION: u32 = 1;
/// Bytes of a slot.
pub const SLOT_BYTES: usize = 40;
const SLOT_STRIDE: u64 = 4096;

/// What a slot says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Marks {
    /// Everything up to here is on disk.
    pub committed: Sequence,
    /// Everything up to here is settled.
    pub acked: Sequence,
}

/// The open file, and what it says.
#[derive(Debug)]
pub struct Witness {
    file: File,
    counter: u64,
    marks: Marks,
    unsynced: bool,
}

impl Witness {
    /// Opens the witness of a log, or makes it. `None`: there was none, or neither slot is whole.
    ///
    /// # Errors
    /// The system's.
    pub fn open(folder: &Path) -> io::Result<(Self, Option<Marks>)> {
        let path = folder.join(FILE);
        let is_new = !path.exists();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        let newest = read(&file)?;
        let (counter, marks) = newest.unwrap_or_default();
        let witness = Self {
            file,
            counter,
            marks,
            unsynced: false,
        };
        if is_new {
            // Without marks until it is known what they are: a start that dies before that is none the wiser.
            witness.file.sync_all()?;
            durable::sync_folder(folder)?;
        }
        Ok((witness, newest.map(|(_, marks)| marks)))
    }

    /// What was written last.
    #[must_use]
    pub fn marks(&self) -> Marks {
        self.marks
    }

    /// Writes `marks` to the slot that is not the newest.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&mut self, marks: Marks) -> io::Result<()> {
        let counter = self.counter + 1;
        self.file
            .write_all_at(&encode(counter, marks), (counter % 2) * SLOT_STRIDE)?;
        self.counter = counter;
        self.marks = marks;
        self.unsynced = true;
        Ok(())
    }

    /// A second handle for an fsync that does not hold up the writer, if there is something to fsync.
    ///
    /// # Errors
    /// The system's.
    pub fn unsynced(&mut self) -> io::Result<Option<File>> {
        if !std::mem::take(&mut self.unsynced) {
            return Ok(None);
        }
        self.file.try_clone().map(Some)
    }

    /// fsyncs what was written.
    ///
    /// # Errors
    /// The system's.
    pub fn sync(&mut self) -> io::Result<()> {
        self.unsynced = false;
        self.file.sync_data()
    }
}

/// The newest whole slot of a witness file: its counter and its marks.
///
/// # Errors
/// The system's.
pub fn read(file: &File) -> io::Result<Option<(u64, Marks)>> {
    let mut newest: Option<(u64, Marks)> = None;
    for slot in 0..2 {
        let mut bytes = [0u8; SLOT_BYTES];
        match file.read_exact_at(&mut bytes, slot * SLOT_STRIDE) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
            other => other?,
        }
        if let Some((counter, marks)) = decode(&bytes)
            && newest.is_none_or(|(known, _)| counter > known)
        {
            newest = Some((counter, marks));
        }
    }
    Ok(newest)
}

/// A slot.
#[must_use]
pub fn encode(counter: u64, marks: Marks) -> Vec<u8> {
    let mut slot = Vec::with_capacity(SLOT_BYTES);
    slot.extend_from_slice(MAGIC);
    slot.extend_from_slice(&[0; 4]);
    slot.extend_from_slice(&VERSION.to_le_bytes());
    slot.extend_from_slice(&counter.to_le_bytes());
    slot.extend_from_slice(&marks.committed.to_le_bytes());
    slot.extend_from_slice(&marks.acked.to_le_bytes());
    let crc = crc32c::crc32c(slot.get(12..).unwrap_or_default());
    if let Some(place) = slot.get_mut(8..12) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
    slot
}

/// What a slot says: its counter and its marks.
#[must_use]
pub fn decode(slot: &[u8; SLOT_BYTES]) -> Option<(u64, Marks)> {
    let number = |at: usize| Some(u64::from_le_bytes(slot.get(at..at + 8)?.try_into().ok()?));
    let small = |at: usize| Some(u32::from_le_bytes(slot.get(at..at + 4)?.try_into().ok()?));
    let whole = slot.get(..8)? == MAGIC && small(8)? == crc32c::crc32c(slot.get(12..)?) && small(12)? == VERSION;
    let marks = Marks {
        committed: number(24)?,
        acked: number(32)?,
    };
    let sane = marks.acked <= marks.committed && marks.committed <= SEQUENCE_MAX;
    (whole && sane).then_some((number(16)?, marks))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let (mut witness, before) = Witness::open(folder.path()).unwrap();
        assert_eq!(before, None);
        for committed in 1..=9 {
            witness
                .write(Marks {
                    committed,
                    acked: committed / 2,
                })
                .unwrap();
        }
        let newest = witness.counter;
        drop(witness);
        let file = OpenOptions::new().write(true).open(folder.path().join(FILE)).unwrap();
        file.write_all_at(b"torn", (newest % 2) * SLOT_STRIDE + 20).unwrap();
        let (_, marks) = Witness::open(folder.path()).unwrap();
        assert_eq!(marks, Some(Marks { committed: 8, acked: 4 }));
    }

    #[test]
    fn a_witness_without_a_whole_slot_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), vec![0xFF; 5000]).unwrap();
        assert_eq!(Witness::open(folder.path()).unwrap().1, None);
    }
}
