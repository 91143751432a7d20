//! `wal import`: records out of a file of `wal export` into a log, with their identity.
//!
//! An import that was cut off can be gone on with, or made again: what is in the log twice carries one identity, and is
//! landed once. A log is opened, or made, only when there is something for it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::super::ask::Listener;
use super::super::at::{At, Where, in_use};
use super::super::exit::{Later, LogError, Usage};
use super::super::whole::folder;
use super::super::words::counted;
use super::super::{options, print, signals};
use super::export::is_zst;
use crate::config::Config;
use crate::ops::{self, ITEM_BYTES_MAX, Imported, Item, ItemError, Items};
use crate::record::Sequence;
use crate::telemetry::with_warnings;
use crate::wal::{Archive, ArchiveError, Wal};

/// What is sent to a gateway, or committed, at once.
pub(super) const BATCH_RECORDS: usize = 1000;
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// How long the log may take to make its next generation.
const ROOM_MAX: Duration = Duration::from_secs(30);

/// `wal import`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Import {
    /// A file of `wal export`, compressed if its name ends in .zst; - is stdin
    file: PathBuf,
    /// Leave out so many records at the beginning: the number that an import which was cut off has named
    #[arg(long, value_name = "N", default_value_t = 0)]
    skip: u64,
    /// The outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

/// Where imported records go. No `Debug`: a listener holds the token.
pub(super) enum Target {
    Gateway(Listener),
    Log(Wal),
}

impl Target {
    /// Commits them, all or none.
    pub(super) fn take(&self, items: Vec<Item>) -> Result<Imported> {
        let items = Items { items };
        match self {
            Self::Gateway(listener) => Ok(listener.post("/v1/wal/records", &items)?),
            Self::Log(wal) => {
                if !wal.log().wait_for_room(ROOM_MAX) {
                    return Err(Later(format!(
                        "the log has not made its next generation for {} s: check the disk's space and permissions",
                        ROOM_MAX.as_secs()
                    ))
                    .into());
                }
                Ok(ops::import(wal, &items.into_records()?)?)
            }
        }
    }
}

pub(super) fn import(flags: &Import, config: &Config) -> Result<()> {
    let place = flags.at.find(config)?;
    let lines = opened(&flags.file)?;
    let runtime = Runtime::new().context("no threads could be started")?;
    let stop = runtime
        .block_on(async { signals::shutdown_token() })
        .context("signals cannot be handled")?;
    let stopped = stop.clone();
    runtime.spawn(async move {
        stopped.cancelled().await;
        eprintln!("stopping: what was read is still taken. A second signal ends at once");
    });
    let mut taking = Taking {
        flags,
        config,
        place: Some(place),
        target: None,
        before: 0,
        batch: Vec::new(),
        bytes: 0,
        taken: 0,
        places: None,
    };
    let result = taking.all(lines, &stop);
    if let Some(Target::Log(wal)) = &taking.target {
        wal.close()?;
    }
    runtime.shutdown_background();
    result?;
    if flags.json {
        let (first, last) = taking.places.unzip();
        let outcome = serde_json::json!({"records": taking.taken, "first_seq": first, "last_seq": last});
        print(format!("{outcome}\n").as_bytes())?;
    }
    let taken = counted(taking.taken, "record");
    let Some((first, last)) = taking.places else {
        eprintln!("imported {taken}: there is none in {} to take", flags.file.display());
        return Ok(());
    };
    let behind = match taking.before {
        0 => "",
        _ => ", behind those that the log had before",
    };
    let pipe = match flags.file.as_os_str() == "-" {
        true => ". Whether they were all, the command that has written them says",
        false => "",
    };
    eprintln!(
        "imported {taken} with the identity they had, as new sequences {first} to {last}{behind}{pipe}. A file that is \
         imported twice is in the log twice, and landed once"
    );
    Ok(())
}

/// An import under way. No `Debug`: a listener holds the token.
struct Taking<'a> {
    flags: &'a Import,
    config: &'a Config,
    /// Where the records are to go, until there is one.
    place: Option<Where>,
    target: Option<Target>,
    /// The last sequence that the log had before, if it is a folder.
    before: Sequence,
    batch: Vec<Item>,
    /// Of the batch's lines.
    bytes: usize,
    taken: u64,
    /// Of the first record and of the last one.
    places: Option<(Sequence, Sequence)>,
}

impl Taking<'_> {
    /// Takes all lines, or those before the first that is wrong.
    fn all(&mut self, lines: Box<dyn BufRead>, stop: &CancellationToken) -> Result<()> {
        let read = self.lines(lines, stop);
        // What comes before a line that is wrong is taken all the same.
        let number = self.send().and(read).map_err(|error| {
            let begin = self.flags.skip + self.taken;
            let file = self.flags.file.display();
            let text = match begin {
                0 => format!("{file}: {error}. None was taken"),
                _ => format!(
                    "{file}: {error}. {} before that were taken; `--skip {begin}` goes on behind them",
                    counted(self.taken, "record"),
                ),
            };
            error.context(text)
        })?;
        if self.flags.skip > number {
            let (skip, path) = (self.flags.skip, self.flags.file.display());
            return Err(Usage(format!("--skip {skip}: {path} has only {}", counted(number, "record"))).into());
        }
        Ok(())
    }

    /// Reads the lines, sends whole batches; how many records there are.
    fn lines(&mut self, mut lines: Box<dyn BufRead>, stop: &CancellationToken) -> Result<u64> {
        let mut number: u64 = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut lines).take(ITEM_BYTES_MAX as u64).read_until(b'\n', &mut line);
            // Also at the end: the same signal has ended what writes into a pipe.
            if stop.is_cancelled() {
                return Err(Later("stopped by a signal".to_owned()).into());
            }
            let length = read.map_err(|error| anyhow!("it cannot be read on ({error})"))?;
            if length == ITEM_BYTES_MAX {
                return Err(anyhow!("line {} is longer than a record can be", number + 1));
            }
            if length == 0 {
                return Ok(number);
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            number += 1;
            if number <= self.flags.skip {
                continue;
            }
            let item = serde_json::from_slice::<Item>(&line).map_err(ItemError::from);
            // Whether it can be a record is known before any of its batch goes.
            let item = item.and_then(|item| item.clone().into_record().map(|_| item));
            self.batch
                .push(item.map_err(|error| anyhow!("record {number}: {error}"))?);
            self.bytes += line.len();
            if self.batch.len() >= BATCH_RECORDS || self.bytes >= BATCH_BYTES {
                self.send()?;
            }
        }
    }

    /// What has gathered goes to the log, all of it or none.
    fn send(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.batch);
        self.bytes = 0;
        if let Some(place) = self.place.take() {
            self.target = Some(match place {
                Where::Online(listener) => Target::Gateway(listener),
                Where::Offline(path) => {
                    let (wal, before) = log(&path, self.config)?;
                    self.before = before;
                    Target::Log(wal)
                }
            });
        }
        let Some(target) = &self.target else { return Ok(()) };
        let count = batch.len() as u64;
        let imported = target.take(batch)?;
        self.places = Some((
            self.places.map_or(imported.first_seq, |(first, _)| first),
            imported.last_seq,
        ));
        self.taken += count;
        Ok(())
    }
}

/// The log of a folder, made if there is none, and the last sequence that it has.
fn log(path: &Path, config: &Config) -> Result<(Wal, Sequence)> {
    let is_new = match Archive::open(path) {
        Ok(_) => false,
        Err(ArchiveError::Io { .. } | ArchiveError::NotAWal { .. }) => true,
        Err(error @ ArchiveError::InUse { .. }) => return Err(in_use(error)),
        Err(_) => false,
    };
    let is_strange = is_new && fs::read_dir(path).is_ok_and(|mut items| items.next().is_some());
    if is_strange {
        let text = format!(
            "{} is a folder with other things in it, and no log: name the folder of a log with --wal, or one that does not exist \
             yet; nothing was changed",
            path.display()
        );
        return Err(Usage(text).into());
    }
    if is_new && !path.exists() && !folder(path).is_dir() {
        let text = format!(
            "a new log is made for an import only where the folder around it is there, and {} is not: name the folder of a \
             log with --wal, or make that one; nothing was changed",
            folder(path).display()
        );
        return Err(Usage(text).into());
    }
    let wal = with_warnings(|| Wal::open(options::wal_for_verb(config))).map_err(|source| LogError {
        origin: config.origin("wal.path"),
        source,
    })?;
    let committed = wal.log().committed();
    let damaged = wal.status().corruption_records;
    if damaged > 0 {
        eprintln!(
            "the log in {} has {} that cannot be read: `tidegate wal verify` tells which; what is imported is not touched by it",
            path.display(),
            counted(damaged, "record")
        );
    }
    if is_new {
        eprintln!("made a new log in {}, identity {}", path.display(), wal.id());
    }
    Ok((wal, committed))
}

fn opened(path: &Path) -> Result<Box<dyn BufRead>> {
    let file: Box<dyn Read> = match path.as_os_str() == "-" {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).map_err(|error| {
            Usage(format!(
                "cannot read {} ({error}): name a file that `tidegate wal export -o FILE` has written, or - for stdin; \
                 nothing was changed",
                path.display()
            ))
        })?),
    };
    if is_zst(path) {
        sound(path)?;
    }
    Ok(match is_zst(path) {
        true => Box::new(BufReader::new(zstd::Decoder::new(file)?)),
        false => Box::new(BufReader::new(file)),
    })
}

/// Reads all of a compressed file for its checksum, which comes last: a line may be changed and still be a record.
fn sound(path: &Path) -> Result<()> {
    let read = File::open(path).and_then(|file| io::copy(&mut zstd::Decoder::new(file)?, &mut io::sink()));
    match read {
        Ok(_) => Ok(()),
        Err(error) => Err(anyhow!(
            "{} is damaged, or not all of it is here ({error}): take another copy of it; nothing was changed",
            path.display()
        )),
    }
}
