//! `wal export`: a log's records as lines of JSON, with their identity.
//!
//! An export is whole or not there. One from a running gateway ends where the log ended when it was asked for.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::super::at::At;
use super::super::exit::{Damage, Later};
use super::super::signals;
use super::super::whole::Whole;
use super::super::words::{counted, size};
use super::progress;
use super::records::{Filter, Records};
use crate::config::Config;
use crate::ops;
use crate::record::Sequence;
use crate::wal::count_sequences;

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

pub(super) fn export(flags: &Export, config: &Config) -> Result<()> {
    let mut records = Records::open(&flags.at, config)?;
    let mut query = flags.filter.query()?;
    // What comes meanwhile is for the next one: it would never end otherwise.
    let committed = records.committed()?;
    query.to_seq = Some(query.to_seq.map_or(committed, |to| to.min(committed)));
    let runtime = Runtime::new().context("no threads could be started")?;
    let stop = runtime
        .block_on(async { signals::shutdown_token() })
        .context("signals cannot be handled")?;
    let Some(path) = &flags.output else {
        let written = write(&mut records, &query, &mut BufWriter::new(io::stdout().lock()), &stop);
        return written
            .context("not everything was written to stdout")?
            .told("stdout", &records);
    };
    let mut file = Whole::create(path)?;
    let cannot = || format!("cannot write {}; start again once that is mended", path.display());
    let written = match is_zst(path) {
        true => {
            let mut encoder = zstd::Encoder::new(&mut file, 3).with_context(cannot)?;
            encoder.include_checksum(true).with_context(cannot)?;
            let written = write(&mut records, &query, &mut BufWriter::new(&mut encoder), &stop).with_context(cannot)?;
            encoder.finish().with_context(cannot)?;
            written
        }
        false => write(&mut records, &query, &mut file, &stop).with_context(cannot)?,
    };
    file.finish()?;
    written.told(&path.display().to_string(), &records)
}

/// What an export came to.
struct Written {
    records: u64,
    bytes: u64,
    places: Option<(Sequence, Sequence)>,
    damaged: u64,
}

impl Written {
    fn told(self, to: &str, records: &Records) -> Result<()> {
        let places = self
            .places
            .map_or(String::new(), |(first, last)| format!(" (sequences {first} to {last})"));
        eprintln!(
            "exported {}{places}, {} of JSON, to {to}",
            counted(self.records, "record"),
            size(self.bytes)
        );
        match self.damaged {
            0 => records.whole(),
            damaged => Err(Damage(format!(
                "{} more cannot be read: `tidegate wal verify` tells which",
                counted(damaged, "record")
            ))
            .into()),
        }
    }
}

fn write(records: &mut Records, query: &ops::Query, out: &mut dyn Write, stop: &CancellationToken) -> Result<Written> {
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
        if stop.is_cancelled() {
            out.flush()?;
            let written = counted(written.records, "record");
            return Err(Later(format!("stopped by a signal after {written}")).into());
        }
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

pub(super) fn is_zst(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "zst")
}
