//! Which log a verb is for: that of a running gateway, asked through its admin listener, or a folder.
//!
//! `--admin URL` is a running gateway, `--wal DIR` is a folder. Without either it is the configured folder, through
//! its gateway when one has it.

use std::path::PathBuf;

use anyhow::Result;

use super::ask::{Listener, Part, Place};
use super::exit::{InUse, LogError, Usage};
use super::options;
use crate::config::{Config, Origin};
use crate::wal::{self, Archive, ArchiveError, Wal};

/// Whom to ask.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct At {
    /// Ask the running gateway whose admin listener is there [default: the folder wal.path (--wal), or its gateway
    /// through admin.listen while that runs]
    #[arg(long, value_name = "URL")]
    pub(super) admin: Option<Place>,
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
    Archive::open(path).map_err(in_use)
}

/// Opens a folder to change it, as a start does, and closes it again.
pub(super) fn opened<T>(config: &Config, verb: impl FnOnce(&Wal) -> Result<T>) -> Result<T> {
    // Nothing is made where nothing was.
    archive(&config.wal.path)?;
    let wal = Wal::open(options::wal_for_verb(config)).map_err(|source| LogError {
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
