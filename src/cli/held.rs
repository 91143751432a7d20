//! `tidegate held`: records whose topic does not work.
//!
//! A list works on a folder too. What changes the lane is the running gateway's: its forwarder works on it all the
//! time; Kafka need not be there.

use anyhow::Result;
use clap::Subcommand;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

use super::ask::Listener;
use super::at::{At, Piece, Where, archive, check_signs, in_use};
use super::exit::{Damage, Usage};
use super::wal::look::{Listing, time};
use super::words::{counted, one_line};
use super::{print, print_while_read};
use crate::config::Config;
use crate::ops::{Discarded, HeldOrder, HeldTopics, Limits, Page, Query, Redirected, held_topics, page};
use crate::record::{Sequence, Topic, WalId};
use crate::wal::{Archive, Part, Reader, count_sequences};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the topics that have held records, with the reason; or the records themselves
    List(List),
    /// Remove the held records of a topic for good: these records are lost then (a running gateway only)
    Discard(Chosen),
    /// Send the held records of a topic to another one, with the identity they had (a running gateway only)
    Redirect(Redirect),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// List the records of this topic instead of the topics
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// List the records of all topics instead of the topics
    #[arg(long)]
    records: bool,
    #[command(flatten)]
    piece: Piece,
}

/// Which records are meant, and whether that is serious.
#[derive(Debug, clap::Args)]
pub(super) struct Chosen {
    /// The topic whose records are held
    #[arg(long, value_name = "TOPIC", value_parser = topic_name)]
    topic: String,
    /// Do it; without it, only say how many records are meant
    #[arg(long)]
    yes: bool,
    /// The outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
pub(super) struct Redirect {
    #[command(flatten)]
    chosen: Chosen,
    /// The topic that takes its records instead
    #[arg(long, value_name = "TOPIC", value_parser = topic_name)]
    to: String,
}

fn topic_name(text: &str) -> Result<String, String> {
    let topic = Topic::parse(text).map_err(|error| error.to_string())?;
    Ok(topic.as_str().to_owned())
}

pub(super) fn run(command: Command, config: &Config) -> Result<()> {
    match command {
        Command::List(flags) if flags.records || flags.topic.is_some() => records(&flags, config),
        Command::List(flags) => topics(&flags, config),
        Command::Discard(chosen) => discard(&chosen, config),
        Command::Redirect(flags) => redirect(&flags, config),
    }
}

fn topics(flags: &List, config: &Config) -> Result<()> {
    let piece = &flags.piece;
    let mut folder = None;
    let held: HeldTopics = match piece.at.find(config)? {
        Where::Online(listener) => listener.get("/v1/held")?,
        Where::Offline(path) => {
            let archive = folder.insert(archive(&path)?);
            let held = match lane(archive) {
                Some(mut reader) => held_topics(&mut reader)?,
                None => HeldTopics::default(),
            };
            if !held.damaged.is_empty() {
                archive.check_unused().map_err(in_use)?;
            }
            held
        }
    };
    let mut text = String::new();
    if !piece.json && !held.topics.is_empty() {
        text.push_str(&row(["RECORDS", "SINCE (UTC)", "TOPIC", "REASON"]));
    }
    for topic in &held.topics {
        if piece.json {
            text.push_str(&serde_json::to_string(topic)?);
            text.push('\n');
            continue;
        }
        text.push_str(&row([
            &topic.records.to_string(),
            &time(topic.since_ms),
            &one_line(topic.topic.as_bytes(), 60),
            &one_line(topic.reason.as_deref().unwrap_or("-").as_bytes(), 200),
        ]));
    }
    print(text.as_bytes())?;
    if held.count > held.topics.len() as u64 {
        eprintln!("these are {} of {} held topics", held.topics.len(), held.count);
    }
    let damaged = count_sequences(&held.damaged);
    if damaged == 0 {
        folder.as_ref().map_or(Ok(()), check_signs)?;
        if held.topics.is_empty() {
            eprintln!("{NOTHING}");
        }
    }
    match damaged {
        0 => Ok(()),
        damaged => Err(Damage(format!(
            "{} of the held lane could not be read",
            counted(damaged, "record")
        ))
        .into()),
    }
}

fn row(cells: [&str; 4]) -> String {
    let [records, since, topic, reason] = cells;
    format!("{records:>10}  {since:<23}  {topic:<30}  {reason}\n")
}

/// What a lane holds.
fn lane(archive: &Archive) -> Option<Reader> {
    let log = archive.log(Part::Held)?;
    Some(log.reader(log.watermarks().acked + 1))
}

/// Of an empty lane.
const NOTHING: &str = "nothing is held: no record waits for a topic that is missing or denied";

/// Where held records are read from. No `Debug`: a listener holds the token.
enum Source {
    Online(Listener),
    Offline(Box<(Archive, Option<Reader>, WalId)>),
}

impl Source {
    fn page(&mut self, flags: &List, from: Option<Sequence>, limit: usize) -> Result<Page> {
        match self {
            Self::Online(listener) => {
                let mut url = format!("/v1/held?limit={limit}");
                if let Some(from) = from {
                    url.push_str(&format!("&from={from}"));
                }
                if let Some(topic) = &flags.topic {
                    url.push_str(&format!("&topic={}", utf8_percent_encode(topic, NON_ALPHANUMERIC)));
                }
                Ok(listener.get(&url)?)
            }
            Self::Offline(folder) => {
                let (archive, reader, id) = folder.as_mut();
                let Some(reader) = reader else {
                    return Ok(Page {
                        end: true,
                        ..Page::default()
                    });
                };
                let query = Query {
                    from_seq: from,
                    topic: flags.topic.clone(),
                    limit: Some(limit),
                    ..Query::default()
                };
                let page = page(reader, *id, &query, Limits::ANSWER)?;
                if !page.damaged.is_empty() {
                    archive.check_unused().map_err(in_use)?;
                }
                Ok(page)
            }
        }
    }
}

fn records(flags: &List, config: &Config) -> Result<()> {
    let piece = &flags.piece;
    let mut source = match piece.at.find(config)? {
        Where::Online(listener) => Source::Online(listener),
        Where::Offline(path) => {
            let archive = archive(&path)?;
            let (reader, id) = (lane(&archive), archive.id()?);
            Source::Offline(Box::new((archive, reader, id)))
        }
    };
    let mut listing = Listing::new(piece.json);
    let mut left = piece.limit();
    let mut from = piece.from;
    loop {
        let page = source.page(flags, from, left)?;
        left = left.saturating_sub(page.items.len());
        if !listing.print(&page.items)? {
            return Ok(());
        }
        listing.damaged(&page.damaged);
        from = Some(page.next);
        if page.end {
            if !listing.is_damaged()
                && let Source::Offline(folder) = &source
            {
                check_signs(&folder.0)?;
            }
            if listing.is_empty() {
                eprintln!(
                    "{}",
                    match (&flags.topic, piece.from) {
                        (Some(topic), None) => format!(
                            "no record of topic {topic} is held: `tidegate held list` shows which topics have some"
                        ),
                        (_, Some(from)) => format!("no held record that is asked for lies at {from} or behind it"),
                        (None, None) => NOTHING.to_owned(),
                    }
                );
            }
            return listing.end();
        }
        if left == 0 {
            eprintln!(
                "there may be more: --from {} goes on, --limit 0 lists everything",
                page.next
            );
            return listing.end();
        }
    }
}

impl Chosen {
    /// The gateway that runs, which is to do it; without `--yes`, only what it would do.
    fn gateway(&self, config: &Config, doing: &str) -> Result<Listener> {
        let listener = match self.at.find(config)? {
            Where::Online(listener) => listener,
            Where::Offline(_) => {
                let text = format!(
                    "held records can be {doing} by a running gateway only: start it with `tidegate serve` (Kafka need not \
                     be there), or name its admin listener with --admin URL"
                );
                return Err(Usage(text).into());
            }
        };
        if self.yes {
            return Ok(listener);
        }
        let held: HeldTopics = listener.get("/v1/held")?;
        let records = match held.topics.iter().find(|held| held.topic == self.topic) {
            Some(held) => counted(held.records, "held record"),
            // Not all topics are listed.
            None if held.count > held.topics.len() as u64 => "the held records".to_owned(),
            None => return Err(self.nothing(doing)),
        };
        let text = format!(
            "{records} of {} would be {doing}. Nothing was changed: add --yes to do it",
            self.topic
        );
        Err(Usage(text).into())
    }

    fn nothing(&self, doing: &str) -> anyhow::Error {
        anyhow::anyhow!(
            "no record of topic {} is held, so none was {doing}: `tidegate held list` shows which topics have held records",
            self.topic
        )
    }

    /// What came of it.
    fn told(&self, count: u64, done: &impl Serialize, doing: &str) -> Result<()> {
        let text = match self.json {
            true => format!("{}\n", serde_json::to_string(done)?),
            false if count == 0 => String::new(),
            false => format!("{} of {} {doing}\n", counted(count, "held record"), self.topic),
        };
        print_while_read(text.as_bytes())?;
        match count {
            0 => Err(self.nothing(doing)),
            _ => Ok(()),
        }
    }
}

fn discard(chosen: &Chosen, config: &Config) -> Result<()> {
    let doing = "discarded for good";
    let order = HeldOrder {
        topic: chosen.topic.clone(),
        to: None,
    };
    let done: Discarded = chosen.gateway(config, doing)?.post("/v1/held/discard", &order)?;
    chosen.told(done.discarded, &done, doing)
}

fn redirect(flags: &Redirect, config: &Config) -> Result<()> {
    let Redirect { chosen, to } = flags;
    if *to == chosen.topic {
        return Err(Usage("--to must name another topic than --topic".to_owned()).into());
    }
    let doing = format!("redirected to {to}");
    let order = HeldOrder {
        topic: chosen.topic.clone(),
        to: Some(to.clone()),
    };
    let done: Redirected = chosen.gateway(config, &doing)?.post("/v1/held/redirect", &order)?;
    chosen.told(done.redirected, &done, &doing)
}
