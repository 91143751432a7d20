//! `wal export` and `wal import`: records as lines of JSON, out of a log and into one, with their identity.
//!
//! An export is whole or not there: it gets its name once it is on disk. An import that was cut off can be made again:
//! what is in the log twice carries one identity, and is landed once.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::super::ask::Listener;
use super::super::at::{At, Where, in_use};
use super::super::exit::{Damage, LogError, Usage};
use super::super::whole::{Whole, folder};
use super::super::words::{counted, size};
use super::super::{options, print};
use super::progress;
use super::records::{Filter, Records};
use crate::config::Config;
use crate::ops::{self, Imported, Item, ItemError, Items};
use crate::record::Sequence;
use crate::telemetry::with_warnings;
use crate::wal::{Archive, ArchiveError, Wal, count_sequences};

/// What is sent to a gateway, or committed, at once.
pub(super) const BATCH_RECORDS: usize = 1000;
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// The longest line that is read: a record of 32 MiB as base64.
const LINE_BYTES_MAX: u64 = 48 << 20;

/// `wal export`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Export {
    #[command(flatten)]
    filter: Filter,
    /// The file to write, which must not exist yet; compressed and with a checksum if its name ends in .zst [default:
    /// stdout]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// One JSON object a line, which is what an export always is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

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

pub(super) fn export(flags: &Export, config: &Config) -> Result<()> {
    let mut records = Records::open(&flags.at, config)?;
    let mut query = flags.filter.query()?;
    // What comes meanwhile is for the next one: it would never end otherwise.
    let committed = records.committed()?;
    query.to_seq = Some(query.to_seq.map_or(committed, |to| to.min(committed)));
    let Some(path) = &flags.output else {
        let written = write(&mut records, &query, &mut BufWriter::new(io::stdout().lock()));
        return match written {
            Err(error) if broken_pipe(&error) => Ok(()),
            other => other?.told("stdout"),
        };
    };
    let mut file = Whole::create(path)?;
    let cannot = || format!("cannot write {}; start again once that is mended", path.display());
    let written = match is_zst(path) {
        true => {
            let mut encoder = zstd::Encoder::new(&mut file, 3).with_context(cannot)?;
            encoder.include_checksum(true).with_context(cannot)?;
            let written = write(&mut records, &query, &mut BufWriter::new(&mut encoder))?;
            encoder.finish().with_context(cannot)?;
            written
        }
        false => write(&mut records, &query, &mut file)?,
    };
    file.finish()?;
    written.told(&path.display().to_string())
}

/// What an export came to.
struct Written {
    records: u64,
    bytes: u64,
    places: Option<(Sequence, Sequence)>,
    damaged: u64,
}

impl Written {
    fn told(self, to: &str) -> Result<()> {
        let places = self
            .places
            .map_or(String::new(), |(first, last)| format!(" (sequences {first} to {last})"));
        eprintln!(
            "exported {}{places}, {} of JSON, to {to}",
            counted(self.records, "record"),
            size(self.bytes)
        );
        match self.damaged {
            0 => Ok(()),
            damaged => Err(Damage(format!(
                "{} more cannot be read: `tidegate wal verify` tells which",
                counted(damaged, "record")
            ))
            .into()),
        }
    }
}

fn write(records: &mut Records, query: &ops::Query, out: &mut dyn Write) -> Result<Written> {
    let bar = progress::records(query.to_seq.unwrap_or_default(), "exporting");
    let mut written = Written {
        records: 0,
        bytes: 0,
        places: None,
        damaged: 0,
    };
    let mut from = query.from_seq.unwrap_or(1);
    loop {
        let page = records.page(query, from)?;
        for mut item in page.items {
            let place = item.place();
            written.places = Some((written.places.map_or(place, |(first, _)| first), place));
            item.sequence = None;
            let line = serde_json::to_vec(&item)?;
            out.write_all(&line)?;
            out.write_all(b"\n")?;
            written.records += 1;
            written.bytes += line.len() as u64 + 1;
        }
        written.damaged += count_sequences(&page.damaged);
        from = page.next;
        bar.set_position(from);
        if page.end {
            break;
        }
    }
    out.flush()?;
    bar.finish_and_clear();
    Ok(written)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    (error.downcast_ref::<io::Error>()).is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_zst(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zst")
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
            Self::Log(wal) => Ok(ops::import(wal, &items.into_records()?)?),
        }
    }
}

pub(super) fn import(flags: &Import, config: &Config) -> Result<()> {
    let place = flags.at.find(config)?;
    // Before a log is made for what cannot be read.
    let lines = opened(&flags.file)?;
    let (target, before) = match place {
        Where::Online(listener) => (Target::Gateway(listener), None),
        Where::Offline(path) => {
            let (wal, before) = log(&path, config)?;
            (Target::Log(wal), Some(before))
        }
    };
    let result = import_lines(flags, lines, &target);
    if let Target::Log(wal) = &target {
        wal.close()?;
    }
    let (taken, places) = result?;
    if flags.json {
        let (first, last) = places.unzip();
        let outcome = serde_json::json!({"records": taken, "first_seq": first, "last_seq": last});
        print(format!("{outcome}\n").as_bytes())?;
    }
    let taken = counted(taken, "record");
    let Some((first, last)) = places else {
        eprintln!("imported {taken}: there is none in {} to take", flags.file.display());
        return Ok(());
    };
    let behind = match before {
        None | Some(0) => "",
        Some(_) => ", behind those that the log had before",
    };
    eprintln!(
        "imported {taken} with the identity they had, as new sequences {first} to {last}{behind}. A file that is imported \
         twice is in the log twice, and landed once"
    );
    Ok(())
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
    Ok(match is_zst(path) {
        true => Box::new(BufReader::new(zstd::Decoder::new(file)?)),
        false => Box::new(BufReader::new(file)),
    })
}

/// How many were taken, and the places of the first and the last one.
fn import_lines(
    flags: &Import,
    mut lines: Box<dyn BufRead>,
    target: &Target,
) -> Result<(u64, Option<(Sequence, Sequence)>)> {
    let path = flags.file.display();
    let mut places = None;
    let mut taken = 0;
    let mut number: u64 = 0;
    let mut batch = Vec::new();
    let mut bytes = 0;
    let mut line = Vec::new();
    loop {
        let cut_off = |what: String| {
            let begin = flags.skip + taken;
            let taken = counted(taken, "record");
            format!(
                "{path}: {what}. {taken} before that were taken; once it is mended `--skip {begin}` goes on behind them"
            )
        };
        line.clear();
        let read = (&mut lines).take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        let length = read.map_err(|error| anyhow::anyhow!(cut_off(format!("it cannot be read on ({error})"))))?;
        if length as u64 == LINE_BYTES_MAX {
            bail!(cut_off(format!("line {} is longer than a record can be", number + 1)));
        }
        let end = length == 0;
        if !line.trim_ascii().is_empty() {
            number += 1;
            if number > flags.skip {
                let item = serde_json::from_slice::<Item>(&line).map_err(ItemError::from);
                // Whether it can be a record is known before any of its batch goes.
                let item = item.and_then(|item| item.clone().into_record().map(|_| item));
                let item = item.map_err(|error| anyhow::anyhow!(cut_off(format!("record {number}: {error}"))))?;
                batch.push(item);
                bytes += line.len();
            }
        }
        if !batch.is_empty() && (end || batch.len() >= BATCH_RECORDS || bytes >= BATCH_BYTES) {
            let count = batch.len() as u64;
            let imported = target.take(std::mem::take(&mut batch));
            let imported = imported.map_err(|error| {
                let text = cut_off(error.to_string());
                error.context(text)
            })?;
            places = Some((places.map_or(imported.first_seq, |(first, _)| first), imported.last_seq));
            taken += count;
            bytes = 0;
        }
        if end {
            if flags.skip > number {
                let text = format!("--skip {}: {path} has only {}", flags.skip, counted(number, "record"));
                return Err(Usage(text).into());
            }
            return Ok((taken, places));
        }
    }
}
