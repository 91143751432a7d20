//! The loss of a whole side log (`held`, `dead-letters`): two empty files beside its folder tell of it.
//!
//! `NAME.made` says that the folder was made, so that one that is not there now was lost. When the gateway needs it
//! again it makes it anew, and `NAME.gone` says from then on what had happened, until somebody removes that file.
//! What was in the folder nobody knows.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::archive::Part;
use super::durable;

/// A side log whose folder was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Which.
    pub part: Part,
    is_made_anew: bool,
}

impl Gone {
    /// Whether it was lost.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(super) fn look(wal: &Path, part: Part) -> io::Result<Option<Self>> {
        if part == Part::Main {
            return Ok(None);
        }
        let is_made_anew = gone_mark(wal, part.name()).try_exists()?;
        let is_missing = !part.folder(wal).try_exists()? && made_mark(wal, part.name()).try_exists()?;
        Ok((is_made_anew || is_missing).then_some(Self { part, is_made_anew }))
    }

    /// What is lost with it, and what to do.
    #[must_use]
    pub fn advice(&self) -> String {
        let name = self.part.name();
        match self.is_made_anew {
            true => format!(
                "what had been in it is lost, and nobody knows how much that was. Remove the file '{name}.gone' beside it to \
                 accept the loss"
            ),
            false => format!(
                "what was in it is lost, and nobody knows how much that was. Put it back while the gateway is stopped, or \
                 remove the file '{name}.made' beside it to accept the loss"
            ),
        }
    }
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.part.name();
        match self.is_made_anew {
            true => write!(f, "the folder '{name}' was gone when it was needed, and was made anew"),
            false => write!(f, "the folder '{name}' was made and is gone"),
        }
    }
}

/// Before the folder is made: one that was lost is told of from now on.
///
/// # Errors
/// The folder cannot be read or written.
pub(super) fn remember(wal: &Path, name: &str) -> io::Result<()> {
    let made = made_mark(wal, name);
    if wal.join(name).try_exists()? || !made.try_exists()? {
        return Ok(());
    }
    fs::rename(made, gone_mark(wal, name))?;
    durable::sync_folder(wal)?;
    tracing::error!(
        log = name,
        "the folder '{name}' of the log is gone, and is made anew now that it is needed: what had been in it is lost. Remove the \
         file '{name}.gone' beside it to accept the loss"
    );
    Ok(())
}

/// The folder was made, and nothing is in it yet.
///
/// # Errors
/// The folder cannot be written.
pub(super) fn made(wal: &Path, name: &str) -> io::Result<()> {
    let mark = made_mark(wal, name);
    if mark.try_exists()? {
        return Ok(());
    }
    File::create(mark)?;
    durable::sync_folder(wal)
}

fn made_mark(wal: &Path, name: &str) -> PathBuf {
    wal.join(format!("{name}.made"))
}

fn gone_mark(wal: &Path, name: &str) -> PathBuf {
    wal.join(format!("{name}.gone"))
}
