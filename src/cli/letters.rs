//! `tidegate dead-letters`: what Kafka can never take.
//!
//! Asks a running gateway, or works on the folder: then a list only reads it, and what changes it opens it as a start
//! does.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Subcommand;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ask::{AskError, Listener};
use super::at::{At, Piece, Where, archive, check_signs, in_use, opened};
use super::exit::{Damage, Usage};
use super::wal::look::{time, whole};
use super::whole::Whole;
use super::words::{counted, one_line, size};
use super::{print, print_while_read};
use crate::config::Config;
use crate::ops::{
    Discarded, LetterItem, LetterPage, LetterQuery, Letters, Limits, Name, Requeued, Selection, State, WholeLetter,
};
use crate::record::{Sequence, WalId};
use crate::wal::{self, Archive, Handled, Letter, LetterState, LettersError, Wal, Which};

const REQUEUE: &str = "/v1/dead-letters/requeue";
const DISCARD: &str = "/v1/dead-letters/discard";
/// Names that a message repeats.
const NAMES_TOLD: usize = 5;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the dead letters, oldest first
    List(List),
    /// Show one dead letter: why Kafka refused it, when, and the whole record
    Show(Show),
    /// Send dead letters once more, with the identity they had; each is removed once Kafka has it, and comes back if it is
    /// refused again
    Requeue(Requeue),
    /// Remove dead letters for good: these records are lost then
    Discard(Discard),
    /// Write dead letters as lines of JSON; they stay
    Export(Export),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    #[command(flatten)]
    piece: Piece,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// Its name, as `list` shows it (the sequence alone means this log)
    #[arg(value_name = "WAL:SEQ")]
    letter: Name,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Chosen {
    /// The names of letters, as `list` shows them (the sequence alone means this log)
    #[arg(value_name = "WAL:SEQ")]
    letters: Vec<Name>,
    /// All letters
    #[arg(long)]
    all: bool,
    /// All letters of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Requeue {
    #[command(flatten)]
    which: Chosen,
    /// The outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
pub(super) struct Discard {
    #[command(flatten)]
    which: Chosen,
    /// Do it; without it, only say what would be removed
    #[arg(long)]
    yes: bool,
    /// The outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// Only of this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// The file to write; it must not exist yet [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// One JSON object a line, which is what an export always is
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    at: At,
}

pub(super) fn run(command: Command, config: &Config) -> Result<()> {
    match command {
        Command::List(flags) => list(&flags, config),
        Command::Show(flags) => show(&flags, config),
        Command::Requeue(flags) => requeue(flags, config),
        Command::Discard(flags) => discard(flags, config),
        Command::Export(flags) => export(&flags, config),
    }
}

/// Where letters are read from. No `Debug`: a listener holds the token.
enum Source {
    Online(Listener),
    Offline(Box<(Archive, Letters)>),
}

impl Source {
    fn open(at: &At, config: &Config) -> Result<Self> {
        Ok(match at.find(config)? {
            Where::Online(listener) => Self::Online(listener),
            Where::Offline(path) => {
                let archive = archive(&path)?;
                let letters = Letters::folder(&archive, archive.id()?)?;
                Self::Offline(Box::new((archive, letters)))
            }
        })
    }

    fn page<T: DeserializeOwned>(
        &mut self,
        query: &LetterQuery,
        make: fn(WalId, Letter, LetterState) -> T,
    ) -> Result<LetterPage<T>> {
        match self {
            Self::Online(listener) => Ok(listener.get(&url(query))?),
            Self::Offline(folder) => {
                let (archive, letters) = folder.as_mut();
                let page = letters.page(query, Limits::ANSWER, make)?;
                if !page.damaged.is_empty() {
                    archive.check_unused().map_err(in_use)?;
                }
                Ok(page)
            }
        }
    }

    /// Gives all letters to `take`, page by page, until it has enough.
    fn each<T: DeserializeOwned>(
        &mut self,
        mut query: LetterQuery,
        make: fn(WalId, Letter, LetterState) -> T,
        mut take: impl FnMut(Vec<T>) -> Result<bool>,
    ) -> Result<Option<Sequence>> {
        let mut left = query.limit.unwrap_or(usize::MAX);
        let mut damaged = 0;
        loop {
            query.limit = Some(left);
            let page = self.page(&query, make)?;
            left = left.saturating_sub(page.items.len());
            for (first, last) in &page.damaged {
                damaged += last - first + 1;
                eprintln!("entries {first} to {last} of the dead letters were on disk and cannot be read");
            }
            let wanted = take(page.items)?;
            query.from = page.next;
            if !wanted || page.next.is_none() || left == 0 {
                break;
            }
        }
        match damaged {
            0 => {
                if let Self::Offline(folder) = self {
                    check_signs(&folder.0)?;
                }
                Ok(query.from)
            }
            damaged => Err(Damage(format!("{damaged} entries of the dead letters could not be read")).into()),
        }
    }
}

fn url(query: &LetterQuery) -> String {
    let mut url = format!("/v1/dead-letters?whole={}", query.whole);
    let mut add = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            url.push_str(&format!("&{name}={}", utf8_percent_encode(&value, NON_ALPHANUMERIC)));
        }
    };
    add("from", query.from.map(|from| from.to_string()));
    add("limit", query.limit.map(|limit| limit.to_string()));
    add("topic", query.topic.clone());
    url
}

fn json_lines(items: &[impl Serialize]) -> Result<String> {
    let mut text = String::new();
    for item in items {
        text.push_str(&serde_json::to_string(item)?);
        text.push('\n');
    }
    Ok(text)
}

fn list(flags: &List, config: &Config) -> Result<()> {
    let piece = &flags.piece;
    let mut source = Source::open(&piece.at, config)?;
    let query = LetterQuery {
        from: piece.from,
        limit: Some(piece.limit()),
        topic: flags.topic.clone(),
        ..LetterQuery::default()
    };
    let mut began = false;
    let next = source.each(query, LetterItem::of, |items| {
        let head = !items.is_empty() && !std::mem::replace(&mut began, true);
        let text = match piece.json {
            true => json_lines(&items)?,
            false => head
                .then(head_row)
                .into_iter()
                .chain(items.iter().map(item_row))
                .collect(),
        };
        Ok(print_while_read(text.as_bytes())?)
    })?;
    if let Some(next) = next {
        eprintln!("there are more: --from {next} goes on, --limit 0 lists everything");
    } else if !began {
        eprintln!("{}", nothing(flags.topic.as_deref(), piece.from));
    }
    Ok(())
}

/// Why nothing is listed.
fn nothing(topic: Option<&str>, from: Option<Sequence>) -> String {
    match (topic, from) {
        (Some(topic), None) => format!("there are no dead letters of topic {topic}: without --topic all are listed"),
        (_, Some(from)) => format!("no dead letter that is asked for lies at {from} or behind it"),
        (None, None) => {
            "there are no dead letters: Kafka has refused no record for good that was not requeued or discarded \
                         since"
                .to_owned()
        }
    }
}

fn head_row() -> String {
    row([
        "FIRST FAILED (UTC)",
        "LAST FAILED (UTC)",
        "STATE",
        "TOPIC",
        "BYTES",
        "CODE",
        "LETTER",
    ])
}

fn item_row(item: &LetterItem) -> String {
    row([
        &time(item.failure.first_failed_ms),
        &time(item.failure.last_failed_ms),
        item.failure.state.name(),
        &one_line(item.topic.as_bytes(), 40),
        &item.bytes.to_string(),
        &one_line(item.failure.code.as_bytes(), 40),
        &format!("{}:{}", item.wal, item.seq),
    ])
}

fn row(cells: [&str; 7]) -> String {
    let [first, last, state, topic, bytes, code, letter] = cells;
    format!("{first:<23}  {last:<23}  {state:<8}  {topic:<20}  {bytes:>8}  {code:<20}  {letter}\n")
}

fn show(flags: &Show, config: &Config) -> Result<()> {
    let missing = "there is no such dead letter: it was never one, was discarded, or was delivered after a requeue";
    let letter: WholeLetter = match Source::open(&flags.at, config)? {
        Source::Online(listener) => {
            let wal = match &flags.letter.wal {
                Some(wal) => wal.clone(),
                None => {
                    let status = listener.status()?.value;
                    let wal = status.pointer("/wal/id").and_then(serde_json::Value::as_str);
                    wal.context("the gateway's status has no wal.id: it is of another version")?
                        .to_owned()
                }
            };
            listener.get(&format!("/v1/dead-letters/{wal}/{}", flags.letter.seq))?
        }
        Source::Offline(folder) => {
            let (archive, mut letters) = *folder;
            let origin = flags.letter.origin(archive.id()?).map_err(Usage)?;
            letters.one(&origin)?.context(missing)?
        }
    };
    let text = match flags.json {
        true => json_lines(std::slice::from_ref(&letter))?,
        false => {
            let failure = &letter.failure;
            let fact = |name: &str, value: &str| format!("{name:<14}{value}\n");
            [
                fact("state", failure.state.name()),
                fact("code", &one_line(failure.code.as_bytes(), 200)),
                fact("reason", &one_line(failure.reason.as_bytes(), 1000)),
                fact("first failed", &format!("{} UTC", time(failure.first_failed_ms))),
                fact("last failed", &format!("{} UTC", time(failure.last_failed_ms))),
                whole(&letter.record),
            ]
            .concat()
        }
    };
    print(text.as_bytes())
}

impl Chosen {
    fn selection(self, dry_run: bool) -> Selection {
        Selection {
            all: self.all,
            letters: (!self.letters.is_empty()).then_some(self.letters),
            topic: self.topic,
            dry_run,
            within: None,
        }
    }
}

/// Does it on the folder.
fn offline(
    selection: &Selection,
    config: &Config,
    verb: impl FnOnce(&Wal, &Which, wal::Piece) -> Result<Handled, LettersError>,
) -> Result<u64> {
    opened(config, |wal| {
        let which = selection.which(wal.id()).map_err(Usage)?;
        Ok(verb(wal, &which, wal::Piece::default())?.letters)
    })
}

/// Has the gateway do it, in as many pieces as it needs to answer each in time.
fn online(
    mut selection: Selection,
    mut piece: impl FnMut(&Selection) -> Result<(u64, Option<(Sequence, Sequence)>), AskError>,
) -> Result<u64> {
    let mut done = 0;
    loop {
        let asked = piece(&selection);
        let (count, left) = match done {
            0 => asked?,
            _ => asked.with_context(|| format!("{} done, then it ended: do it again for the others", are(done)))?,
        };
        done += count;
        match left {
            None => return Ok(done),
            left => selection.within = left,
        }
    }
}

/// How many letters of the folder wait and are meant: only read.
fn waiting(selection: &Selection, at: &At, config: &Config) -> Result<u64> {
    let own = archive(&config.wal.path)?.id()?;
    let which = selection.which(own).map_err(Usage)?;
    let query = LetterQuery {
        topic: selection.topic.clone(),
        ..LetterQuery::default()
    };
    let is_meant = |item: &LetterItem| match &which {
        Which::These(these) => item.name().origin(own).is_ok_and(|origin| these.contains(&origin)),
        Which::All | Which::Topic(_) => true,
    };
    let mut count = 0;
    Source::open(at, config)?.each(query, LetterItem::of, |items| {
        let waits = |item: &&LetterItem| item.failure.state == State::Waiting && is_meant(item);
        count += items.iter().filter(waits).count() as u64;
        Ok(true)
    })?;
    Ok(count)
}

fn requeue(flags: Requeue, config: &Config) -> Result<()> {
    let selection = flags.which.selection(false);
    let (requeued, when) = match flags.at.find(config)? {
        Where::Online(listener) => {
            let requeued = online(selection.clone(), |selection| {
                let Requeued { requeued, left } = listener.post(REQUEUE, selection)?;
                Ok((requeued, left))
            })?;
            (requeued, "now")
        }
        Where::Offline(_) => {
            let requeued = offline(&selection, config, Wal::requeue_letters)?;
            (requeued, "after the next start of the gateway")
        }
    };
    let text = match flags.json {
        true => json_lines(&[Requeued { requeued, left: None }])?,
        false => format!(
            "{} sent once more {when}: each is removed when Kafka has it, or waits again if it fails again\n",
            are(requeued)
        ),
    };
    told(&selection, requeued, flags.json, &text, "sent once more")
}

fn are(count: u64) -> String {
    format!(
        "{} {}",
        counted(count, "dead letter"),
        if count == 1 { "is" } else { "are" }
    )
}

/// Nothing that was asked for is there.
fn none(selection: &Selection, doing: &str) -> anyhow::Error {
    let list =
        "`tidegate dead-letters list` shows them with their state; those on their way to Kafka again are left alone";
    match (&selection.letters, &selection.topic) {
        (Some(letters), _) => {
            let names: Vec<String> = letters.iter().take(NAMES_TOLD).map(ToString::to_string).collect();
            let more = if letters.len() > NAMES_TOLD { ", ..." } else { "" };
            let names = names.join(", ");
            anyhow::anyhow!("no dead letter that waits is named {names}{more}, so none was {doing}: {list}")
        }
        (None, Some(topic)) => {
            anyhow::anyhow!("no dead letter of topic {topic} waits, so none was {doing}: {list}")
        }
        (None, None) => anyhow::anyhow!("no dead letter waits, so none was {doing}: {list}"),
    }
}

/// What came of it; nothing is a failure.
fn told(selection: &Selection, count: u64, json: bool, text: &str, doing: &str) -> Result<()> {
    if count > 0 || json {
        print(text.as_bytes())?;
    }
    if count == 0 {
        return Err(none(selection, doing));
    }
    let named = selection.letters.as_ref().map_or(0, |letters| letters.len() as u64);
    if named > count {
        eprintln!("{count} of {named} that were named; the others are no dead letters that wait");
    }
    Ok(())
}

fn discard(flags: Discard, config: &Config) -> Result<()> {
    let selection = flags.which.selection(!flags.yes);
    let discarded = match flags.at.find(config)? {
        Where::Online(listener) => online(selection.clone(), |selection| {
            let Discarded { discarded, left } = listener.post(DISCARD, selection)?;
            Ok((discarded, left))
        })?,
        Where::Offline(_) if flags.yes => offline(&selection, config, Wal::discard_letters)?,
        Where::Offline(_) => waiting(&selection, &flags.at, config)?,
    };
    if !flags.yes {
        if discarded == 0 {
            return Err(none(&selection, "removed"));
        }
        let text = format!(
            "{} would be removed for good. Nothing was changed: add --yes to do it (`dead-letters export` keeps a copy)",
            counted(discarded, "dead letter")
        );
        return Err(Usage(text).into());
    }
    let text = match flags.json {
        true => json_lines(&[Discarded { discarded, left: None }])?,
        false => format!("{} removed\n", are(discarded)),
    };
    told(&selection, discarded, flags.json, &text, "removed")
}

fn export(flags: &Export, config: &Config) -> Result<()> {
    let mut source = Source::open(&flags.at, config)?;
    let query = LetterQuery {
        topic: flags.topic.clone(),
        whole: true,
        ..LetterQuery::default()
    };
    let Some(path) = &flags.output else {
        let printed = source.each(query, WholeLetter::of, |items| {
            Ok(print_while_read(json_lines(&items)?.as_bytes())?)
        });
        return printed.map(drop);
    };
    let mut file = Whole::create(path)?;
    let (mut count, mut bytes) = (0, 0);
    let exported = source.each(query, WholeLetter::of, |items| {
        let text = json_lines(&items)?;
        count += items.len() as u64;
        bytes += text.len() as u64;
        file.write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(true)
    });
    // What can be read is exported all the same.
    if exported.as_ref().is_err_and(|error| !error.is::<Damage>()) {
        return exported.map(drop);
    }
    file.finish()?;
    eprintln!(
        "{} exported to {} ({})",
        counted(count, "dead letter"),
        path.display(),
        size(bytes)
    );
    exported.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_escaped() {
        let query = LetterQuery {
            from: Some(3),
            limit: Some(5),
            topic: Some("a&b".into()),
            whole: true,
            ..LetterQuery::default()
        };
        assert_eq!(url(&query), "/v1/dead-letters?whole=true&from=3&limit=5&topic=a%26b");
    }
}
