//! One generation that is being written: a sled store of frames. The ONLY file that names sled.
//!
//! sled never opens what it did not just create: its open is where it fails (one flipped bit makes it panic
//! or overwrite what follows). So a [`Generation`] is always a fresh folder, and once it is sealed, or after
//! a restart, its file is read by `scan.rs` without sled.
//!
//! Knows frames as bytes with a place in an order. Knows nothing of commits, quotas or acknowledgements.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::time::SystemTime;

use super::durable;
use super::error::disk;
use super::frame::{Frame, Key};
use crate::record::Sequence;

/// sled's unit of writing. An item beyond a quarter of it would become a blob file, which sled never fsyncs;
/// `frame::FRAME_BYTES_MAX` is chosen so that none does.
const SEGMENT_BYTES: usize = 2 * 1024 * 1024;
/// What sled may keep of the live generation in memory.
const CACHE_BYTES: u64 = 8 * 1024 * 1024;
/// The name of sled's data file in its folder: what `scan.rs` reads.
pub const DATA_FILE: &str = "db";

/// A live store.
pub struct Generation {
    db: sled::Db,
    data: File,
    /// Held open, because the folder is renamed when it is put to use.
    blobs: File,
    blobs_made: SystemTime,
    key: Key,
}

impl Generation {
    /// Makes the folder and a store in it, and proves that a flush of it reaches the disk.
    ///
    /// # Errors
    /// The system's, or that sled's flush did not call fdatasync.
    pub fn create(folder: &Path, key: Key) -> io::Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(folder)?;
        let db = sled::Config::new()
            .path(folder)
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES)
            // Its own flusher only logs a failed fsync; every flush here is ours.
            .flush_every_ms(None)
            .open()
            .map_err(io_error)?;
        let before = durable::calls();
        db.insert([0u8; 0], &[]).map_err(io_error)?;
        db.flush().map_err(io_error)?;
        if durable::calls() == before {
            return Err(io::Error::other("a flush of the store did not call fdatasync"));
        }
        for name in [DATA_FILE, "conf"] {
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o600))?;
        }
        File::open(folder.join("conf"))?.sync_all()?;
        durable::sync_folder(folder)?;
        let data = File::open(folder.join(DATA_FILE))?;
        let blobs = File::open(folder.join("blobs"))?;
        let blobs_made = blobs.metadata()?.modified()?;
        Ok(Self {
            db,
            data,
            blobs,
            blobs_made,
            key,
        })
    }

    /// The key that its frames carry.
    #[must_use]
    pub fn key(&self) -> Key {
        self.key
    }

    /// Hands a frame to sled; on disk only after [`flush`](Self::flush).
    ///
    /// # Errors
    /// sled's. The generation is of no more use then.
    pub fn put(&self, frame: Frame) -> io::Result<()> {
        let place = place(frame.first, frame.part);
        self.db.insert(place, frame.bytes).map_err(io_error)?;
        Ok(())
    }

    /// Returns once everything put is on disk.
    ///
    /// # Errors
    /// sled's, which carries the failed fdatasync's. Never try again: the kernel forgets what it failed to write.
    pub fn flush(&self) -> io::Result<()> {
        self.db.flush().map_err(io_error)?;
        Ok(())
    }

    /// Whether sled put something outside its data file, where nothing fsyncs it. Must never be; told by the
    /// folder's time, which costs one fstat.
    ///
    /// # Errors
    /// The system's.
    pub fn has_blobs(&self) -> io::Result<bool> {
        Ok(self.blobs.metadata()?.modified()? != self.blobs_made)
    }

    /// Bytes of the data file.
    ///
    /// # Errors
    /// The system's.
    pub fn data_bytes(&self) -> io::Result<u64> {
        Ok(self.data.metadata()?.len())
    }

    /// The frames from the one that may hold `from`, in order, uncommitted ones included.
    ///
    /// # Errors
    /// sled's, here or at any frame: a page of it cannot be read back. The file's scan may still find the frames.
    pub fn frames_from(
        &self,
        from: Sequence,
    ) -> io::Result<impl Iterator<Item = io::Result<impl AsRef<[u8]> + use<>>> + use<>> {
        // The frame that holds `from` begins at or before it.
        let start = self.db.get_lt(place(from.saturating_add(1), 0)).map_err(io_error)?;
        let lower = start.map_or_else(|| place(from, 0).to_vec(), |(key, _)| key.to_vec());
        // Of a split entry, begin with its first part.
        let lower = lower.get(..8).map_or_else(|| place(from, 0).to_vec(), <[u8]>::to_vec);
        Ok(self.db.range(lower..).values().map(|value| value.map_err(io_error)))
    }
}

/// sled's key for a frame: big endian, so that its order is the order of sequences.
fn place(first: Sequence, part: u16) -> [u8; 10] {
    let mut place = [0; 10];
    let (sequence, rest) = place.split_at_mut(8);
    sequence.copy_from_slice(&first.to_be_bytes());
    rest.copy_from_slice(&part.to_be_bytes());
    place
}

fn io_error(error: sled::Error) -> io::Error {
    match error {
        sled::Error::Io(source) => source,
        other => disk(&other),
    }
}
