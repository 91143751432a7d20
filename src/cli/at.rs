//! Which log a verb is for: that of a running gateway, asked through its admin listener, or a folder; and which piece of
//! a list is wanted.
//!
//! `--admin URL` is a running gateway, `--wal DIR` is a folder. Without either it is the configured folder, through
//! its gateway when one has it.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::ask::{Listener, Part, Place};
use super::exit::{Damage, InUse, LogError, Usage};
use super::options;
use crate::config::{Config, Origin};
use crate::record::Sequence;
use crate::telemetry::with_warnings;
use crate::wal::{self, Archive, ArchiveError, Wal};

/// Whom to ask.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct At {
    /// Ask the running gateway whose admin listener is there [default: the folder wal.path (--wal), or its gateway
    /// through admin.listen while that runs]
    #[arg(long, value_name = "URL")]
    pub(super) admin: Option<Place>,
}

/// A list that is shown in pieces.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Piece {
    /// Begin at this place: the number that the end of a list named
    #[arg(long, value_name = "N")]
    pub(super) from: Option<Sequence>,
    /// Show at most so many; 0: all
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// One JSON object a line
    #[arg(long)]
    pub(super) json: bool,
    #[command(flatten)]
    pub(super) at: At,
}

impl Piece {
    /// The most that are wanted.
    pub(super) fn limit(&self) -> usize {
        if self.limit == 0 { usize::MAX } else { self.limit }
    }
}

/// Where the log is. No `Debug`: a listener holds the token.
pub(super) enum Where {
    /// A gateway has it.
    Online(Listener),
    /// Nobody has it.
    Offline(PathBuf),
}

impl At {
    /// Decides.
    pub(super) fn find(&self, config: &Config) -> Result<Where> {
        let path = &config.wal.path;
        let gateway = || Where::Online(Listener::new(Part::Gateway, self.admin.clone(), config));
        let is_named = matches!(config.origin("wal.path"), Origin::Flag(_));
        match (&self.admin, is_named) {
            (Some(admin), true) => {
                let path = path.display();
                let text = format!(
                    "--wal {path} is a folder, --admin {admin} a running gateway: name one of them; nothing was done"
                );
                return Err(Usage(text).into());
            }
            (Some(_), false) => return Ok(gateway()),
            (None, true) => return Ok(Where::Offline(path.clone())),
            (None, false) => {}
        }
        match wal::check_unused(path) {
            Err(ArchiveError::InUse { .. }) => Ok(gateway()),
            // Somebody else's gateway may answer, such as that of `dev`, whose folder has another name.
            _ if !path.exists() => Ok(gateway()),
            Ok(()) => Ok(Where::Offline(path.clone())),
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens a folder for reading.
pub(super) fn archive(path: &std::path::Path) -> Result<Archive> {
    Archive::open(path).map_err(|error| match error {
        ArchiveError::Io { .. } if !path.exists() => {
            let text = format!(
                "there is no folder {}: name that of a log with --wal DIR; `tidegate config show` tells which one is configured \
                 (wal.path)",
                path.display()
            );
            Usage(text).into()
        }
        error => in_use(error),
    })
}

/// How a verb ends that has read all that there is: with the damage that shows in the folder, where something may be missing
/// that no reader comes across.
pub(super) fn check_signs(archive: &Archive) -> Result<()> {
    let folder = archive.folder();
    let signs = wal::signs(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    match signs.is_empty() {
        true => Ok(()),
        false => Err(Damage(format!(
            "this may not be all: {}. `tidegate wal verify --wal {}` tells what is lost",
            signs.join("; "),
            folder.display()
        ))
        .into()),
    }
}

/// Opens a folder to change it, as a start does, and closes it again.
pub(super) fn opened<T>(config: &Config, verb: impl FnOnce(&Wal) -> Result<T>) -> Result<T> {
    // Nothing is made where nothing was.
    archive(&config.wal.path)?;
    let wal = with_warnings(|| Wal::open(options::wal_for_verb(config))).map_err(|source| LogError {
        origin: config.origin("wal.path"),
        source,
    })?;
    let done = verb(&wal);
    wal.close()?;
    done
}

/// What to do when a gateway has the folder.
pub(super) fn in_use(error: ArchiveError) -> anyhow::Error {
    match error {
        ArchiveError::InUse { .. } => InUse(error).into(),
        error => error.into(),
    }
}
