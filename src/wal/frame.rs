//! The frame: the unit that is written, found again and checked. docs/format.md has the layout in prose.
//!
//! sled may lay frames out in any order, repeat them when it rewrites a page, and lose its own structure;
//! a frame says everything about itself, so that a scan of the raw bytes needs nothing else. All integers
//! little endian:
//!
//! ```text
//! at size
//!  0   4  "TGF" and the version of this layout and of the entries in it, 0x01
//!  4   8  the generation's key: 8 random bytes, so that no payload can pass for a frame
//! 12   4  CRC-32C (Castagnoli) of everything after this field, payload included
//! 16   8  sequence of the first entry
//! 24   8  sequence of the first entry of the whole commit
//! 32   4  entries in the whole commit
//! 36   4  payload bytes that follow the header
//! 40   4  payload bytes before compression, of all parts together
//! 44   2  entries in this frame, or in all its parts together
//! 46   2  part, from 0
//! 48   2  parts; 1: the frame is whole
//! 50   1  1: lz4 (block format); 0: as is
//! 51   1  0
//! 52   -  payload: entries, each a u32 length and its bytes, compressed or not; or a slice of that
//! ```
//!
//! Entries are put together up to about 32 KiB (one entry may be larger) and compressed as one piece; where the
//! result is larger than a frame it is cut into parts, which share every header field but stored bytes, part
//! number and checksum.
//!
//! Knows nothing of files, sled, or what an entry means.

use crate::record::Sequence;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 52;
/// The most bytes of a frame, header included. sled writes a leaf page of up to 16 entries and 10 links as
/// one item, and an item beyond a quarter of its segment goes to a file of its own that is never fsynced:
/// 26 x 16 KiB stays below 2 MiB / 4.
pub const FRAME_BYTES_MAX: usize = 16 * 1024;
/// The most payload bytes of a frame.
pub const PAYLOAD_BYTES_MAX: usize = FRAME_BYTES_MAX - HEADER_BYTES;
/// Entries are put together up to so many bytes before compression: more of them compress better, and damage
/// costs all that were put together.
const RAW_BYTES_TARGET: usize = 32 * 1024;
/// The most payload bytes, before compression, that a header is believed to have: bounds what one can make a
/// reader allocate. Above every batch that a writer takes.
pub const RAW_BYTES_MAX: usize = 33 * 1024 * 1024;
/// lz4 says of at most so many bytes with one.
const LZ4_RATIO_MAX: usize = 255;
/// Bytes in front of each entry.
pub const ENTRY_PREFIX_BYTES: usize = 4;

const VERSION: u8 = 1;
const FLAG_LZ4: u8 = 1;

/// The random bytes that make one generation's frames its own.
pub type Key = [u8; 8];

/// What a frame of the generation with this key begins with.
#[must_use]
pub fn magic(key: Key) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h] = key;
    [b'T', b'G', b'F', VERSION, a, b, c, d, e, f, g, h]
}

/// A checked header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Sequence of the first entry.
    pub first: Sequence,
    /// Sequence of the commit's first entry.
    pub commit_first: Sequence,
    /// Entries in the commit.
    pub commit_count: u32,
    /// Payload bytes stored.
    pub stored_bytes: u32,
    /// Payload bytes before compression.
    pub raw_bytes: u32,
    /// Entries in the frame.
    pub count: u16,
    /// Part, from 0.
    pub part: u16,
    /// Parts.
    pub parts: u16,
    /// Whether the payload is lz4.
    pub lz4: bool,
}

impl Header {
    /// The sequence of the last entry in this frame.
    #[must_use]
    pub fn last(&self) -> Sequence {
        self.first + u64::from(self.count.max(1)) - 1
    }

    /// The sequence of the last entry of the commit.
    #[must_use]
    pub fn commit_last(&self) -> Sequence {
        self.commit_first + u64::from(self.commit_count.max(1)) - 1
    }

    /// Bytes of the frame on disk.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.stored_bytes as usize
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The header of the frame that `bytes` begin with, if its fields can be true. The checksum is not looked
/// at: a scan reads headers first and then as much as they ask for.
#[must_use]
pub fn peek(bytes: &[u8], key: Key) -> Option<Header> {
    if field::<12>(bytes, 0)? != magic(key) {
        return None;
    }
    let header = Header {
        first: u64::from_le_bytes(field(bytes, 16)?),
        commit_first: u64::from_le_bytes(field(bytes, 24)?),
        commit_count: u32::from_le_bytes(field(bytes, 32)?),
        stored_bytes: u32::from_le_bytes(field(bytes, 36)?),
        raw_bytes: u32::from_le_bytes(field(bytes, 40)?),
        count: u16::from_le_bytes(field(bytes, 44)?),
        part: u16::from_le_bytes(field(bytes, 46)?),
        parts: u16::from_le_bytes(field(bytes, 48)?),
        lz4: field::<1>(bytes, 50)? == [FLAG_LZ4],
    };
    let sane = header.count >= 1
        && header.part < header.parts
        && header.stored_bytes as usize <= PAYLOAD_BYTES_MAX
        && header.raw_bytes as usize <= RAW_BYTES_MAX
        && header.first >= 1
        && header.first < u64::MAX / 2
        && header.commit_first <= header.first
        && header.last() <= header.commit_last();
    sane.then_some(header)
}

/// The header and payload of the frame that `bytes` begin with, if it is whole and its checksum holds.
#[must_use]
pub fn check(bytes: &[u8], key: Key) -> Option<(Header, &[u8])> {
    let header = peek(bytes, key)?;
    let frame = bytes.get(..header.frame_bytes())?;
    let stored = u32::from_le_bytes(field(frame, 12)?);
    (crc32c::crc32c(frame.get(16..)?) == stored).then_some(())?;
    Some((header, frame.get(HEADER_BYTES..)?))
}

/// Appends the uncompressed payload of a whole frame (or of all parts of a split one, put together) to `out`.
///
/// # Errors
/// When the bytes are not what the header says, although the checksum held.
pub fn expand(header: &Header, stored: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let raw_bytes = header.raw_bytes as usize;
    if !header.lz4 {
        if stored.len() != raw_bytes {
            return Err(format!(
                "frame of sequence {} has {} bytes, not {raw_bytes}",
                header.first,
                stored.len()
            ));
        }
        out.extend_from_slice(stored);
        return Ok(());
    }
    if raw_bytes > LZ4_RATIO_MAX.saturating_mul(stored.len()) {
        return Err(format!(
            "frame of sequence {} has {} bytes, which cannot be {raw_bytes}",
            header.first,
            stored.len()
        ));
    }
    let start = out.len();
    out.resize(start + raw_bytes, 0);
    let target = out.get_mut(start..).unwrap_or_default();
    match lz4_flex::block::decompress_into(stored, target) {
        Ok(n) if n == raw_bytes => Ok(()),
        Ok(n) => Err(format!(
            "frame of sequence {} expands to {n} bytes, not {raw_bytes}",
            header.first
        )),
        Err(error) => Err(format!("frame of sequence {} does not expand: {error}", header.first)),
    }
}

/// The entries of an expanded payload, as ranges in it.
///
/// # Errors
/// When lengths do not add up to the payload or to `count`.
pub fn entries(payload: &[u8], count: u16) -> Result<Vec<std::ops::Range<usize>>, String> {
    let mut ranges = Vec::with_capacity(usize::from(count));
    let mut at = 0;
    while at < payload.len() {
        let length = field::<4>(payload, at)
            .map(u32::from_le_bytes)
            .ok_or("an entry's length is cut off")? as usize;
        let start = at + ENTRY_PREFIX_BYTES;
        let end = start + length;
        if end > payload.len() {
            return Err("an entry is longer than its frame".to_owned());
        }
        ranges.push(start..end);
        at = end;
    }
    if ranges.len() == usize::from(count) {
        Ok(ranges)
    } else {
        Err(format!("{} entries, not {count}", ranges.len()))
    }
}

/// One frame, ready to be written.
#[derive(Debug)]
pub struct Frame {
    /// Sequence of its first entry.
    pub first: Sequence,
    /// Which part of a split entry it is.
    pub part: u16,
    /// The whole frame.
    pub bytes: Vec<u8>,
}

/// Cuts the entries of one commit into frames.
pub struct Framer {
    key: Key,
    lz4: bool,
    raw: Vec<u8>,
    packed: Vec<u8>,
}

impl Framer {
    /// For the generation with `key`; `lz4`: compress what becomes smaller by it.
    #[must_use]
    pub fn new(key: Key, lz4: bool) -> Self {
        Self {
            key,
            lz4,
            raw: Vec::with_capacity(FRAME_BYTES_MAX),
            packed: Vec::new(),
        }
    }

    /// The frames of a commit: `entries` are in order, the first has the sequence `commit_first`. Each goes to `put` as soon as it is
    /// made: all of a large commit would be in memory twice.
    ///
    /// # Errors
    /// That of `put`, at once.
    pub fn frame<'a, E>(
        &mut self,
        commit_first: Sequence,
        entries: impl Iterator<Item = &'a [u8]> + Clone,
        mut put: impl FnMut(Frame) -> Result<(), E>,
    ) -> Result<(), E> {
        let commit_count = u32::try_from(entries.clone().count()).unwrap_or(u32::MAX);
        let mut first = commit_first;
        let mut count: u16 = 0;
        self.raw.clear();
        for entry in entries {
            let with_prefix = entry.len() + ENTRY_PREFIX_BYTES;
            if count > 0 && (self.raw.len() + with_prefix > RAW_BYTES_TARGET || count == u16::MAX) {
                self.emit(first, count, commit_first, commit_count, &mut put)?;
                first += u64::from(count);
                count = 0;
                self.raw.clear();
            }
            self.raw
                .extend_from_slice(&u32::try_from(entry.len()).unwrap_or(u32::MAX).to_le_bytes());
            self.raw.extend_from_slice(entry);
            count += 1;
        }
        if count > 0 {
            self.emit(first, count, commit_first, commit_count, &mut put)?;
        }
        Ok(())
    }

    fn emit<E>(
        &mut self,
        first: Sequence,
        count: u16,
        commit_first: Sequence,
        commit_count: u32,
        put: &mut impl FnMut(Frame) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut stored: &[u8] = &self.raw;
        let mut lz4 = false;
        if self.lz4 {
            self.packed
                .resize(lz4_flex::block::get_maximum_output_size(self.raw.len()), 0);
            if let Ok(n) = lz4_flex::block::compress_into(&self.raw, &mut self.packed)
                && n < self.raw.len()
            {
                stored = self.packed.get(..n).unwrap_or_default();
                lz4 = true;
            }
        }
        let parts = u16::try_from(stored.len().div_ceil(PAYLOAD_BYTES_MAX)).unwrap_or(u16::MAX);
        for (part, payload) in stored.chunks(PAYLOAD_BYTES_MAX).enumerate() {
            let part = u16::try_from(part).unwrap_or(u16::MAX);
            let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
            bytes.extend_from_slice(&magic(self.key));
            bytes.extend_from_slice(&[0; 4]);
            bytes.extend_from_slice(&first.to_le_bytes());
            bytes.extend_from_slice(&commit_first.to_le_bytes());
            bytes.extend_from_slice(&commit_count.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(self.raw.len()).unwrap_or(u32::MAX).to_le_bytes());
            bytes.extend_from_slice(&count.to_le_bytes());
            bytes.extend_from_slice(&part.to_le_bytes());
            bytes.extend_from_slice(&parts.to_le_bytes());
            bytes.push(if lz4 { FLAG_LZ4 } else { 0 });
            bytes.push(0);
            bytes.extend_from_slice(payload);
            let crc = crc32c::crc32c(bytes.get(16..).unwrap_or_default());
            if let Some(place) = bytes.get_mut(12..16) {
                place.copy_from_slice(&crc.to_le_bytes());
            }
            put(Frame { first, part, bytes })?;
        }
        Ok(())
    }

    /// All of them, for tests.
    #[cfg(any(test, fuzzing))]
    pub fn frames<'a>(
        &mut self,
        commit_first: Sequence,
        entries: impl Iterator<Item = &'a [u8]> + Clone,
    ) -> Vec<Frame> {
        let mut frames = Vec::new();
        let put = |frame| {
            frames.push(frame);
            Ok::<(), std::convert::Infallible>(())
        };
        match self.frame(commit_first, entries, put) {
            Ok(()) => frames,
            Err(never) => match never {},
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: Key = *b"8 bytes!";

    fn read_back(frames: &[Frame]) -> Vec<(Sequence, Vec<u8>)> {
        let mut found = Vec::new();
        let mut stored = Vec::new();
        for frame in frames {
            let (header, payload) = check(&frame.bytes, KEY).unwrap();
            stored.extend_from_slice(payload);
            if header.part + 1 < header.parts {
                continue;
            }
            let mut raw = Vec::new();
            expand(&header, &stored, &mut raw).unwrap();
            stored.clear();
            for (i, range) in entries(&raw, header.count).unwrap().into_iter().enumerate() {
                found.push((header.first + i as u64, raw[range].to_vec()));
            }
        }
        found
    }

    proptest! {
        #[test]
        fn what_was_framed_is_read_back(
            first in 1u64..1 << 40,
            lz4: bool,
            batch in prop::collection::vec(prop_oneof![
                prop::collection::vec(any::<u8>(), 0..400),
                prop::collection::vec(0u8..3, 0..60_000),
                prop::collection::vec(any::<u8>(), 0..60_000),
            ], 1..40),
        ) {
            let frames = Framer::new(KEY, lz4).frames(first, batch.iter().map(Vec::as_slice));
            prop_assert!(frames.iter().all(|frame| frame.bytes.len() <= FRAME_BYTES_MAX));
            let expected: Vec<_> = batch.into_iter().enumerate().map(|(i, entry)| (first + i as u64, entry)).collect();
            prop_assert_eq!(read_back(&frames), expected);
        }

        #[test]
        fn every_flipped_bit_is_noticed(at in 0usize..400, bit in 0u8..8) {
            let entry = vec![0xA5u8; 300];
            let mut frame = Framer::new(KEY, false).frames(9, std::iter::once(entry.as_slice())).remove(0).bytes;
            let at = at % frame.len();
            frame[at] ^= 1 << bit;
            prop_assert!(check(&frame, KEY).is_none());
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), count: u16) {
            drop(entries(&bytes, count));
            if bytes.len() >= 12 {
                bytes[..12].copy_from_slice(&magic(KEY));
            }
            if let Some(header) = peek(&bytes, KEY) {
                let mut out = Vec::new();
                drop(expand(&header, &bytes, &mut out));
            }
            prop_assert!(check(&bytes, KEY).is_none() || bytes.len() >= HEADER_BYTES);
        }
    }

    /// The bytes on disk may not change under those who have them: this is version 1, for ever.
    #[test]
    fn version_1_keeps_its_bytes() {
        let frame = Framer::new(KEY, true)
            .frames(258, std::iter::once(&b"abc"[..]))
            .remove(0)
            .bytes;
        let hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "544746013820627974657321\
             844cc053\
             0201000000000000\
             0201000000000000\
             01000000\
             07000000\
             07000000\
             0100\
             0000\
             0100\
             00\
             00\
             03000000616263"
        );
    }
}
