//! Signs of damage in a WAL's folder that show without reading a record: for who asks whether all is well, quickly and
//! also while a gateway has the folder. Changes nothing. What only a scan finds is `verify.rs`'s.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::archive::Part;
use super::generation::DATA_FILE;
use super::generations::DAMAGED;
use super::identity::IDENTITY;
use super::witness::Marks;
use super::{Gone, keys, ranges, witness};

/// What shows, in words for people; nothing of a folder in which no log was made yet.
///
/// # Errors
/// The folder cannot be read.
pub fn signs(folder: &Path) -> io::Result<Vec<String>> {
    let mut signs = Vec::new();
    for part in Part::ALL {
        let place = part.folder(folder);
        if place.try_exists()? {
            of_part(part, &place, &mut signs)?;
        }
        signs.extend(Gone::look(folder, part)?.map(|gone| gone.to_string()));
    }
    Ok(signs)
}

fn of_part(part: Part, folder: &Path, signs: &mut Vec<String>) -> io::Result<()> {
    let of = match part {
        Part::Main => String::new(),
        side => format!(" of {}", side.name()),
    };
    let generations = generations(folder)?;
    let is_made = part != Part::Main || !generations.is_empty() || folder.join(IDENTITY).try_exists()?;
    let witnessed = File::open(folder.join(witness::FILE)).and_then(|file| witness::read(&file));
    if is_made && let Some(fault) = fault_of(&witnessed) {
        signs.push(format!("the witness{of} {fault}"));
    }
    if part == Part::Main
        && let Some(Err(keys::Fault::Damaged(reason))) = keys::read(folder)?
    {
        signs.push(format!("the file of idempotency keys is damaged: {reason}"));
    }
    let lost = generations
        .iter()
        .filter(|name| !folder.join(name).join(DATA_FILE).exists());
    let lost = lost.count();
    if lost > 0 {
        signs.push(format!("generations{of} whose file is gone: {lost}"));
    }
    if is_made
        && generations.is_empty()
        && let Ok(Some((_, marks))) = witnessed
        && has_backlog(folder, marks)
    {
        signs.push(format!(
            "all generations{of} are gone, and records were waiting in them"
        ));
    }
    let marked = generations
        .iter()
        .filter(|name| folder.join(name).join(ranges::DAMAGED).exists());
    let marked = marked.count();
    if marked > 0 {
        signs.push(format!(
            "generations{of} in which something could not be read: {marked}"
        ));
    }
    let aside = folder.join(DAMAGED);
    if aside.is_dir() {
        let aside = self::generations(&aside)?.len();
        if aside > 0 {
            signs.push(format!("generations{of} that are set aside in '{DAMAGED}': {aside}"));
        }
    }
    Ok(())
}

/// Whether records were not acknowledged, by the witness.
fn has_backlog(folder: &Path, marks: Marks) -> bool {
    let told = ranges::Told::read(folder).map(|told| told.all()).unwrap_or_default();
    ranges::count_unknown(marks.acked + 1, marks.committed, &told) > 0
}

fn fault_of<T>(witnessed: &io::Result<Option<T>>) -> Option<String> {
    match witnessed {
        Ok(Some(_)) => None,
        Ok(None) => Some("is damaged".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some("is missing".to_owned()),
        Err(error) => Some(format!("cannot be read ({error})")),
    }
}

fn generations(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let mut names = Vec::new();
    for item in fs::read_dir(folder)? {
        let name = item?.file_name();
        if name.to_string_lossy().starts_with("gen-") {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wal::witness::Witness;

    #[test]
    fn each_sign_is_told_and_a_whole_log_has_none() {
        let folder = tempfile::tempdir().unwrap();
        let wal = folder.path();
        let generation = "gen-00000000000000000001-9f8e7d6c5b4a3921";
        assert_eq!(signs(wal).unwrap(), Vec::<String>::new(), "no log was made yet");
        let (mut witness, _) = Witness::open(wal).unwrap();
        let marks = Marks { committed: 7, acked: 3 };
        witness.write(marks).unwrap();
        fs::write(wal.join(IDENTITY), "").unwrap();
        assert_eq!(
            signs(wal).unwrap(),
            ["all generations are gone, and records were waiting in them"]
        );
        fs::create_dir(wal.join(generation)).unwrap();
        assert_eq!(signs(wal).unwrap(), ["generations whose file is gone: 1"]);
        fs::write(wal.join(generation).join(DATA_FILE), "").unwrap();
        assert_eq!(signs(wal).unwrap(), Vec::<String>::new());
        fs::remove_file(wal.join(witness::FILE)).unwrap();
        assert_eq!(signs(wal).unwrap(), ["the witness is missing"]);

        fs::write(wal.join(witness::FILE), [0xFF; 5000]).unwrap();
        fs::write(wal.join(generation).join(ranges::DAMAGED), "").unwrap();
        fs::create_dir_all(wal.join(DAMAGED).join(generation)).unwrap();
        fs::create_dir(Part::Held.folder(wal)).unwrap();
        fs::write(wal.join("dead-letters.made"), "").unwrap();
        fs::write(wal.join("held.gone"), "").unwrap();
        let before = signs(wal).unwrap();
        assert_eq!(
            before,
            [
                "the witness is damaged",
                "generations in which something could not be read: 1",
                "generations that are set aside in 'damaged': 1",
                "the witness of held is missing",
                "the folder 'held' was gone when it was needed, and was made anew",
                "the folder 'dead-letters' was made and is gone",
            ]
        );
        assert_eq!(signs(wal).unwrap(), before, "the look changed nothing");
    }
}
