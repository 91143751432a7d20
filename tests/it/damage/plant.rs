//! Kinds of damage, planted at random places.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::frames::{Generation, LOGS, Log, copies, folder};
use crate::support::Random;

/// A kind of damage. It says what it did.
pub type Kind = (&'static str, fn(&Path, &mut Random) -> String);

pub const KINDS: &[Kind] = &[
    ("a flipped bit", flipped_bit),
    ("a run of flipped bytes", flipped_bytes),
    ("a zeroed block", |wal, random| block(wal, random, 4096, false)),
    ("64 KiB zeroed", |wal, random| block(wal, random, 65_536, false)),
    ("garbage over a block", |wal, random| block(wal, random, 4096, true)),
    ("a block moved over another", moved_block),
    ("a frame in all its copies", all_copies),
    ("a truncated file", truncated),
    ("the newest file cut below what was committed", newest_cut),
    ("a missing generation", missing_generation),
    ("a missing data file", missing_file),
    ("an empty data file", empty_file),
    ("a missing witness", missing_witness),
    ("a witness without a whole slot", lost_witness),
    ("one slot of the witness", one_slot),
    ("a missing identity", missing_identity),
    ("a damaged identity", damaged_identity),
    ("the store's other files", stores_files),
    ("garbage at the end of a file", garbage_tail),
    ("damage in a side log", side_log),
    ("several at once", several),
];

fn pick<T>(random: &mut Random, from: &[T]) -> usize {
    usize::try_from(random.within(0, from.len() as u64)).unwrap()
}

fn below(random: &mut Random, end: usize) -> usize {
    usize::try_from(random.within(0, end.max(1) as u64)).unwrap()
}

fn garbage(random: &mut Random, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|_| random.next().to_le_bytes()[3]).collect()
}

/// A log: mostly the main one.
fn log(wal: &Path, random: &mut Random) -> Log {
    let side = LOGS[below(random, 3)];
    let logs = [side, "main"].into_iter().filter_map(|name| Log::read(wal, name));
    logs.into_iter()
        .find(|log| !log.generations.is_empty())
        .expect("a log with a generation")
}

/// A generation with something in it, if its log has one.
fn generation(wal: &Path, random: &mut Random) -> Generation {
    let mut generations = log(wal, random).generations;
    let full: Vec<usize> = (0..generations.len())
        .filter(|at| !generations[*at].frames.is_empty())
        .collect();
    let at = match full.is_empty() {
        true => 0,
        false => full[pick(random, &full)],
    };
    generations.swap_remove(at)
}

/// Its data file, and a place in it: mostly within a frame.
fn place(generation: &Generation, random: &mut Random) -> (PathBuf, usize) {
    let file = generation.folder.join("db");
    let size = fs::metadata(&file).map_or(0, |meta| usize::try_from(meta.len()).unwrap());
    let frames = &generation.frames;
    let at = match frames.is_empty() || random.within(0, 4) == 0 {
        true => below(random, size),
        false => {
            let frame = &frames[pick(random, frames)];
            frame.at + below(random, frame.bytes)
        }
    };
    (file, at)
}

fn write(file: &Path, at: usize, bytes: &[u8]) {
    let size = usize::try_from(fs::metadata(file).map_or(0, |meta| meta.len())).unwrap();
    let bytes = &bytes[..bytes.len().min(size.saturating_sub(at))];
    if !bytes.is_empty() {
        let file = OpenOptions::new().write(true).open(file).unwrap();
        file.write_all_at(bytes, at as u64).unwrap();
    }
}

fn flip(file: &Path, at: usize, masks: &[u8]) {
    let bytes = fs::read(file).unwrap_or_default();
    let bytes = bytes.get(at..).unwrap_or_default();
    let flipped: Vec<u8> = bytes.iter().zip(masks).map(|(byte, mask)| byte ^ mask).collect();
    write(file, at, &flipped);
}

fn flipped_bit(wal: &Path, random: &mut Random) -> String {
    let (file, at) = place(&generation(wal, random), random);
    flip(&file, at, &[1 << random.within(0, 8)]);
    format!("a bit of byte {at} of {}", file.display())
}

fn flipped_bytes(wal: &Path, random: &mut Random) -> String {
    let (file, at) = place(&generation(wal, random), random);
    let length = 1 + below(random, 300);
    flip(&file, at, &garbage(random, length));
    format!("{length} bytes from {at} of {}", file.display())
}

fn block(wal: &Path, random: &mut Random, bytes: usize, random_bytes: bool) -> String {
    let (file, at) = place(&generation(wal, random), random);
    let at = at / bytes * bytes;
    let over = match random_bytes {
        true => garbage(random, bytes),
        false => vec![0; bytes],
    };
    write(&file, at, &over);
    format!("{bytes} bytes from {at} of {}", file.display())
}

fn moved_block(wal: &Path, random: &mut Random) -> String {
    let generation = generation(wal, random);
    let ((file, from), (_, to)) = (place(&generation, random), place(&generation, random));
    let (from, to) = (from / 4096 * 4096, to / 4096 * 4096);
    let bytes = fs::read(&file).unwrap_or_default();
    write(&file, to, &bytes[from.min(bytes.len())..(from + 4096).min(bytes.len())]);
    format!("the block at {from} over {to} of {}", file.display())
}

fn all_copies(wal: &Path, random: &mut Random) -> String {
    let generation = generation(wal, random);
    let file = generation.folder.join("db");
    if generation.frames.is_empty() {
        return flipped_bit(wal, random);
    }
    let frame = &generation.frames[pick(random, &generation.frames)];
    let copies = copies(&generation.frames, frame);
    for copy in &copies {
        flip(
            &file,
            copy.start + below(random, copy.len()),
            &[1 << random.within(0, 8)],
        );
    }
    format!(
        "all {} copies of the frame of {} in {}",
        copies.len(),
        frame.first,
        file.display()
    )
}

fn cut(file: &Path, to: usize) -> String {
    if let Ok(opened) = OpenOptions::new().write(true).open(file) {
        opened.set_len(to as u64).unwrap();
    }
    format!("{} cut to {to} bytes", file.display())
}

fn truncated(wal: &Path, random: &mut Random) -> String {
    let (file, at) = place(&generation(wal, random), random);
    cut(&file, at)
}

fn newest_cut(wal: &Path, random: &mut Random) -> String {
    let log = Log::read(wal, "main").unwrap();
    let newest = log.generations.iter().rev().find(|one| !one.frames.is_empty());
    let Some(newest) = newest else { return String::new() };
    let last = newest.frames.iter().map(|frame| frame.first).max().unwrap();
    let at = newest
        .frames
        .iter()
        .filter(|frame| frame.first == last)
        .map(|frame| frame.at)
        .min();
    cut(
        &newest.folder.join("db"),
        at.unwrap().saturating_sub(below(random, 20_000)),
    )
}

fn missing_generation(wal: &Path, random: &mut Random) -> String {
    let generations = log(wal, random).generations;
    let at = match random.within(0, 3) {
        0 => 0,
        1 => generations.len() - 1,
        _ => pick(random, &generations),
    };
    let folder = &generations[at].folder;
    fs::remove_dir_all(folder).unwrap();
    format!("{} removed", folder.display())
}

fn missing_file(wal: &Path, random: &mut Random) -> String {
    let file = generation(wal, random).folder.join("db");
    if file.exists() {
        fs::remove_file(&file).unwrap();
    }
    format!("{} removed", file.display())
}

fn empty_file(wal: &Path, random: &mut Random) -> String {
    cut(&generation(wal, random).folder.join("db"), 0)
}

fn witness(wal: &Path, random: &mut Random) -> PathBuf {
    let name = LOGS[below(random, 3)];
    let found = [name, "main"].map(|name| folder(wal, name).join("witness"));
    found
        .into_iter()
        .find(|file| file.exists())
        .unwrap_or_else(|| wal.join("witness"))
}

fn missing_witness(wal: &Path, random: &mut Random) -> String {
    let file = witness(wal, random);
    if file.exists() {
        fs::remove_file(&file).unwrap();
    }
    format!("{} removed", file.display())
}

fn lost_witness(wal: &Path, random: &mut Random) -> String {
    let file = witness(wal, random);
    for slot in [0, 4096] {
        flip(&file, slot + below(random, 40), &[1 << random.within(0, 8)]);
    }
    format!("both slots of {}", file.display())
}

fn one_slot(wal: &Path, random: &mut Random) -> String {
    let file = witness(wal, random);
    let slot = below(random, 2) * 4096;
    // Something must be left to say how far the log had come.
    let other = fs::read(&file).unwrap_or_default();
    let is_written = other.get(4096 - slot..4096 - slot + 8) == Some(b"TGWITNES");
    if is_written {
        let bytes = garbage(random, 40);
        write(&file, slot, &bytes);
    }
    format!("the slot at {slot} of {}: {is_written}", file.display())
}

fn missing_identity(wal: &Path, _: &mut Random) -> String {
    let file = wal.join("identity");
    if file.exists() {
        fs::remove_file(file).unwrap();
    }
    "removed".to_owned()
}

fn damaged_identity(wal: &Path, random: &mut Random) -> String {
    let file = wal.join("identity");
    let size = fs::read(&file).map_or(0, |bytes| bytes.len());
    let at = below(random, size);
    let bit = random.within(0, 8);
    match random.within(0, 3) {
        0 => cut(&file, at),
        1 => {
            write(&file, 0, &vec![0; size]);
            "zeroed".to_owned()
        }
        _ => {
            flip(&file, at, &[1 << bit]);
            format!("bit {bit} of byte {at}")
        }
    }
}

fn stores_files(wal: &Path, random: &mut Random) -> String {
    let folder = generation(wal, random).folder;
    for item in fs::read_dir(&folder).into_iter().flatten() {
        let path = item.unwrap().path();
        match path.is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false if path.ends_with("db") => {}
            false => fs::remove_file(path).unwrap(),
        }
    }
    format!("all but db in {}", folder.display())
}

/// What a crash leaves: a frame that was not written to its end, and rubbish.
fn garbage_tail(wal: &Path, random: &mut Random) -> String {
    let generation = generation(wal, random);
    let file = generation.folder.join("db");
    let mut bytes = fs::read(&file).unwrap_or_default();
    if let Some(frame) = generation.frames.last() {
        let half = bytes[frame.at..frame.at + below(random, frame.bytes)].to_vec();
        bytes.extend_from_slice(&half);
    }
    let length = below(random, 9000);
    bytes.extend(garbage(random, length));
    if file.exists() {
        fs::write(&file, bytes).unwrap();
    }
    format!("a tail on {}", file.display())
}

fn side_log(wal: &Path, random: &mut Random) -> String {
    let sides: Vec<PathBuf> = LOGS[1..]
        .iter()
        .map(|name| wal.join(name))
        .filter(|path| path.is_dir())
        .collect();
    let Some(side) = sides.get(pick(random, &[(), ()]) % sides.len().max(1)) else {
        return flipped_bit(wal, random);
    };
    // A side log is a log as any other.
    let (name, plant) = KINDS[below(random, 14)];
    format!("{}: {name}: {}", side.display(), plant(side, random))
}

/// Not the slot: with one slot and the last commit gone, nobody can know how far the log had come.
fn several(wal: &Path, random: &mut Random) -> String {
    let told = (0..random.within(2, 5)).map(|_| {
        let (name, plant) = loop {
            let kind = KINDS[below(random, KINDS.len() - 1)];
            if kind.0 != "one slot of the witness" && kind.0 != "damage in a side log" {
                break kind;
            }
        };
        let has_generation = Log::read(wal, "main").is_some_and(|log| !log.generations.is_empty());
        match has_generation {
            true => format!("{name}: {}", plant(wal, random)),
            false => String::new(),
        }
    });
    told.collect::<Vec<_>>().join("; ")
}
