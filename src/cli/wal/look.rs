//! `wal list`, `wal show`, `wal tail`: records as a table, or as JSON.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::super::at::At;
use super::super::exit::{Damage, Usage};
use super::super::words::{counted, one_line, size};
use super::super::{print, print_while_read, signals};
use super::records::{Filter, Records};
use crate::config::Config;
use crate::ops::{Item, Query};
use crate::record::Sequence;

/// Between two looks of `tail --follow`.
const PAUSE: Duration = Duration::from_millis(500);
/// Characters of a key and of a value in a table.
const KEY_CHARACTERS: usize = 20;
const VALUE_CHARACTERS: usize = 80;

/// `wal list`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Show at most so many records; 0: all that match
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u64,
    /// One JSON object a line, as `wal export` writes them, and `sequence` where a record came from another log
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

/// `wal show`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Show {
    /// The sequence of the record, as `wal list` shows it
    sequence: Sequence,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

/// `wal tail`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Tail {
    /// How many records to begin with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    lines: u64,
    /// Go on with what comes in, until a signal (a running gateway only)
    #[arg(short, long)]
    follow: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

pub(super) fn list(flags: &List, config: &Config) -> Result<()> {
    let mut records = Records::open(&flags.at, config)?;
    let mut query = flags.filter.query()?;
    let mut left = if flags.limit == 0 { u64::MAX } else { flags.limit };
    let mut from = query.from_seq.unwrap_or(1);
    let mut listing = Listing::new(flags.json);
    loop {
        query.limit = Some(usize::try_from(left).unwrap_or(usize::MAX));
        let page = records.page(&query, from)?;
        left -= (page.items.len() as u64).min(left);
        if !listing.print(&page.items)? {
            return Ok(());
        }
        listing.damaged(&page.damaged);
        from = page.next;
        if page.end {
            break;
        }
        if left == 0 {
            eprintln!("there may be more: --from-seq {from} goes on, --limit 0 lists everything");
            break;
        }
    }
    if listing.is_empty() {
        eprintln!("{}", nothing(&records, query.is_any())?);
    }
    listing.end()
}

/// Why nothing is listed.
fn nothing(records: &Records, all: bool) -> Result<String> {
    let (trimmed, committed) = (records.trimmed()?, records.committed()?);
    Ok(if committed == 0 {
        "the log is empty: it has taken no record yet".to_owned()
    } else if trimmed >= committed {
        format!(
            "no record is in the log: everything up to sequence {committed} was acknowledged by Kafka and removed (wal.retain \
             keeps records longer)"
        )
    } else if all {
        format!(
            "none of the sequences {} to {committed} is a record that can be listed",
            trimmed + 1
        )
    } else {
        format!(
            "no record matches: the log has the sequences {} to {committed}",
            trimmed + 1
        )
    })
}

pub(super) fn show(flags: &Show, config: &Config) -> Result<()> {
    let sequence = flags.sequence;
    if sequence == 0 {
        return Err(
            Usage("there is no record 0: sequences begin at 1, `tidegate wal list` shows them".to_owned()).into(),
        );
    }
    let mut records = Records::open(&flags.at, config)?;
    let query = Query {
        from_seq: Some(sequence),
        to_seq: Some(sequence),
        ..Query::default()
    };
    let page = records.page(&query, sequence)?;
    let Some(item) = page.items.first() else {
        if !page.damaged.is_empty() {
            let text =
                format!("record {sequence} was on disk and cannot be read; `tidegate wal verify` tells what is lost");
            return Err(Damage(text).into());
        }
        let (trimmed, committed) = (records.trimmed()?, records.committed()?);
        let why = if committed == 0 {
            "it has taken none yet".to_owned()
        } else if sequence > committed {
            format!("its last one is {committed}")
        } else if sequence <= trimmed {
            let rest = match trimmed < committed {
                true => format!("; the first one that is still there is {}", trimmed + 1),
                false => String::new(),
            };
            match records.unreadable(sequence)? {
                (_, Some(true)) => {
                    return Err(Damage(format!(
                        "record {sequence} could not be read when its turn came, and the log went on without it; `tidegate \
                         wal verify` tells all that is lost"
                    ))
                    .into());
                }
                (1.., None) => format!(
                    "it was acknowledged by Kafka and removed, or it is one of those that could not be read: `tidegate wal \
                     verify` on the folder tells which{rest}"
                ),
                _ => format!("it was acknowledged by Kafka and removed (wal.retain keeps records longer){rest}"),
            }
        } else {
            "no record has this sequence: a salvage has told it as lost, or a start has passed it over".to_owned()
        };
        anyhow::bail!("there is no record {sequence} in the log: {why}");
    };
    let text = match flags.json {
        true => format!("{}\n", serde_json::to_string(item)?),
        false => whole(item),
    };
    print(text.as_bytes())
}

pub(super) fn tail(flags: &Tail, config: &Config) -> Result<()> {
    let mut records = Records::open(&flags.at, config)?;
    if flags.follow && !records.is_online() {
        return Err(
            Usage("nothing comes into a folder whose gateway does not run: leave --follow out".to_owned()).into(),
        );
    }
    if flags.lines == 0 && !flags.follow {
        return Ok(());
    }
    let (mut from, mut skip) = last(&mut records, flags.lines)?;
    let mut listing = Listing::new(flags.json);
    let query = Query::default();
    let mut look = || -> Result<bool> {
        loop {
            let page = records.page(&query, from)?;
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(page.items.len());
            skip -= skipped as u64;
            if !listing.print(page.items.get(skipped..).unwrap_or_default())? {
                return Ok(false);
            }
            listing.damaged(&page.damaged);
            from = page.next;
            if page.end {
                return Ok(true);
            }
        }
    };
    if !flags.follow {
        look()?;
        if listing.is_empty() {
            eprintln!("{}", nothing(&records, true)?);
        }
        return listing.end();
    }
    let runtime = Runtime::new().context("no threads could be started")?;
    runtime.block_on(async {
        let stop = signals::shutdown_token().context("signals cannot be handled")?;
        while !stop.is_cancelled() && tokio::task::block_in_place(&mut look)? {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(PAUSE) => {}
            }
        }
        Ok(())
    })
}

/// From where on there are the last `count` records, and how many of those there are to be left out. The last sequences may
/// hold none: a start or a salvage passes over a million where the end was lost.
fn last(records: &mut Records, count: u64) -> Result<(Sequence, u64)> {
    let (trimmed, committed) = (records.trimmed()?, records.committed()?);
    let mut span = count;
    loop {
        let first = (committed + 1).saturating_sub(span).max(trimmed + 1);
        let query = Query {
            to_seq: Some(committed),
            only_count: true,
            ..Query::default()
        };
        let (mut from, mut found) = (first, 0);
        while from <= committed {
            let page = records.page(&query, from)?;
            found += page.matched;
            from = page.next;
            if page.end {
                break;
            }
        }
        if found >= count || first == trimmed + 1 {
            return Ok((first, found.saturating_sub(count)));
        }
        span = span.saturating_mul(4);
    }
}

/// A table that begins with the first record, or lines of JSON.
pub(in crate::cli) struct Listing {
    json: bool,
    began: bool,
    damaged: u64,
}

impl Listing {
    pub(in crate::cli) fn new(json: bool) -> Self {
        Self {
            json,
            began: false,
            damaged: 0,
        }
    }

    /// Whether there was nothing to show, nor anything that could not be read.
    pub(in crate::cli) fn is_empty(&self) -> bool {
        !self.began && self.damaged == 0
    }

    /// Whether something could not be read.
    pub(in crate::cli) fn is_damaged(&self) -> bool {
        self.damaged > 0
    }

    /// Whether anybody still reads.
    pub(in crate::cli) fn print(&mut self, items: &[Item]) -> Result<bool> {
        let mut text = String::new();
        for item in items {
            let is_first = !std::mem::replace(&mut self.began, true);
            if self.json {
                text.push_str(&serde_json::to_string(item)?);
                text.push('\n');
                continue;
            }
            if is_first {
                text.push_str(&row(["SEQUENCE", "RECEIVED (UTC)", "TOPIC", "KEY", "BYTES", "VALUE"]));
            }
            let bytes = bytes(item).to_string();
            text.push_str(&row([
                &item.place().to_string(),
                &time(item.received_ms),
                &one_line(item.topic.as_bytes(), 40),
                &key(item),
                &bytes,
                &value(item, VALUE_CHARACTERS),
            ]));
        }
        Ok(print_while_read(text.as_bytes())?)
    }

    pub(in crate::cli) fn damaged(&mut self, ranges: &[(Sequence, Sequence)]) {
        for (first, last) in ranges {
            self.damaged += last - first + 1;
            eprintln!("records {first} to {last} were on disk and cannot be read: `tidegate wal verify` tells more");
        }
    }

    pub(in crate::cli) fn end(self) -> Result<()> {
        match self.damaged {
            0 => Ok(()),
            damaged => Err(Damage(format!("{} could not be read", counted(damaged, "record"))).into()),
        }
    }
}

fn row(cells: [&str; 6]) -> String {
    let [sequence, received, topic, key, bytes, value] = cells;
    let line = format!("{sequence:>10}  {received:<23}  {topic:<20}  {key:<12}  {bytes:>8}  {value}");
    format!("{}\n", line.trim_end())
}

pub(in crate::cli) fn time(ms: i64) -> String {
    let since = Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    match SystemTime::UNIX_EPOCH.checked_add(since) {
        // humantime ends at the year 9999.
        Some(time) if ms < 253_402_300_800_000 => humantime::format_rfc3339_millis(time).to_string().replace('Z', ""),
        _ => ms.to_string(),
    }
}

pub(in crate::cli) fn key(item: &Item) -> String {
    match (&item.key, &item.key_base64) {
        (Some(key), _) => one_line(key.as_bytes(), KEY_CHARACTERS),
        (None, Some(base64)) => format!("base64:{}", one_line(base64.as_bytes(), KEY_CHARACTERS)),
        (None, None) => "-".to_owned(),
    }
}

fn value(item: &Item, characters: usize) -> String {
    match (&item.value, &item.value_base64) {
        (_, Some(base64)) => format!("base64:{}", one_line(base64.as_bytes(), characters)),
        (Some(text), None) => match &text.0 {
            Some(text) => one_line(text.as_bytes(), characters),
            None => "(none: a tombstone)".to_owned(),
        },
        (None, None) => String::new(),
    }
}

fn bytes(item: &Item) -> usize {
    let text = item
        .value
        .as_ref()
        .and_then(|text| text.0.as_ref())
        .map_or(0, String::len);
    let binary = item.value_base64.as_ref().map_or(0, |base64| base64.len() / 4 * 3);
    text + binary
}

/// One record, with everything that it has.
pub(in crate::cli) fn whole(item: &Item) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text.push_str(&format!("{name:<14}{value}\n"));
    line("sequence", &item.place().to_string());
    line("topic", &one_line(item.topic.as_bytes(), 249));
    line(
        "received",
        &format!("{} UTC ({} ms)", time(item.received_ms), item.received_ms),
    );
    line("tidegate-wal", &item.wal);
    line("tidegate-seq", &item.seq.to_string());
    line("key", &key(item));
    for header in &item.headers {
        let value = match (&header.value, &header.value_base64) {
            (Some(text), _) => one_line(text.as_bytes(), 1000),
            (None, Some(base64)) => format!("base64:{base64}"),
            (None, None) => String::new(),
        };
        line("header", &format!("{}: {value}", one_line(header.name.as_bytes(), 200)));
    }
    line("value", &size(bytes(item) as u64));
    text.push_str(&value(item, usize::MAX / 8));
    text.push('\n');
    text
}
