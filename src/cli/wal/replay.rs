//! `wal replay`: a folder's records, sent to Kafka or to a running gateway, with the identity they have.
//!
//! The folder is only read. What Kafka has already it gets once more, under the same identity: a lander stores it once.
//! By default what Kafka has not acknowledged is sent: the main log's backlog, then what is held.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use super::super::ask::{AskError, Listener, Part as Asked, Place as Address};
use super::super::at::{archive, check_signs, in_use};
use super::super::exit::{Damage, Later, Usage};
use super::super::whole::Kept;
use super::super::words::{counted, size};
use super::super::{options, print, signals};
use super::import::{BATCH_BYTES, BATCH_RECORDS, Target};
use super::progress;
use super::records::Filter;
use crate::config::{Broker, Config};
use crate::forward::{Pace, Refused, SendError, Sender};
use crate::ops::{Item, Query};
use crate::record::{Origin, Record, RecordRef, Sequence, WalId};
use crate::wal::{self, Archive, Part, Range, Read, Reader, count_sequences};

/// How long the other side may take nothing.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries of a gateway.
const RETRY: Duration = Duration::from_secs(1);
/// The place to go on from is written at most this often.
const SAVE_EVERY: Duration = Duration::from_secs(1);
/// How many ranges that cannot be read are told one by one.
const RANGES_TOLD: usize = 20;
/// How many refused records are told one by one.
const REFUSED_TOLD: usize = 20;
/// More refused records than this end a replay: something is wrong with all of them.
const REFUSED_MAX: usize = 100_000;

/// `wal replay`
#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Replay {
    #[command(flatten)]
    filter: Filter,
    /// Also send what Kafka has acknowledged and is still on disk [default: only what it has not, and what is held]
    #[arg(long)]
    all: bool,
    /// Send to the running gateway whose admin listener is there [default: to Kafka, kafka.bootstrap_servers]
    #[arg(long, value_name = "URL")]
    admin: Option<Address>,
    /// Send at most so many bytes a second, such as "2 MiB"
    #[arg(long, value_name = "SIZE")]
    rate: Option<bytesize::ByteSize>,
    /// Only tell how many records would be sent, by topic
    #[arg(long)]
    dry_run: bool,
    /// Keep the place in this file; if the file exists, go on from there
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// One JSON object at the end
    #[arg(long)]
    json: bool,
}

/// Where a replay is, in the file of --resume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Progress {
    wal: String,
    query: Query,
    all: bool,
    /// Kafka's address, or the gateway's.
    to: String,
    main: Place,
    held: Place,
}

/// Where it is in one log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// The first sequence that was not tried.
    next: Sequence,
    /// Before it, those that were refused and are not through yet: tried again.
    refused: Vec<Sequence>,
    /// Before it, those that could not be read: tried again, for the folder may be a better copy then.
    damaged: Vec<Range>,
}

/// What it came to.
#[derive(Debug, Default, Serialize)]
struct Sums {
    records: u64,
    bytes: u64,
    refused: u64,
    topics: BTreeMap<String, u64>,
}

pub(super) fn replay(flags: &Replay, config: &Config) -> Result<()> {
    let path = &config.wal.path;
    let source = archive(path)?;
    let id = source.id()?;
    let query = flags.filter.query()?;
    let rate = flags.rate.map(|rate| rate.as_u64());
    if rate == Some(0) {
        return Err(Usage("--rate 0 would send nothing: name bytes a second, such as \"2 MiB\"".to_owned()).into());
    }
    let mut place = Progress {
        wal: id.to_string(),
        query: query.clone(),
        all: flags.all,
        to: match &flags.admin {
            Some(admin) => format!("gateway {admin}"),
            None => format!("kafka {}", config.kafka.bootstrap_servers.trim()),
        },
        main: begin(&source, Part::Main, flags.all || query.from_seq.is_some()),
        held: begin(&source, Part::Held, flags.all),
    };
    // What was not sent must be sent another time.
    let kept = flags.resume.as_deref().filter(|_| !flags.dry_run);
    // Until the end: two would each forget what the other has sent.
    let _alone = kept.map(Kept::take).transpose()?;
    // Of a replay that was begun before.
    let resumed_file = flags.resume.as_ref().filter(|file| file.exists());
    if let Some(file) = resumed_file {
        place = resumed(file, place)?;
    }
    let before = place.clone();
    let mut way = match (&flags.admin, flags.dry_run) {
        (_, true) => Way::Nowhere,
        (Some(admin), false) => {
            let listener = Listener::new(Asked::Gateway, Some(admin.clone()), config);
            Way::Gateway(Target::Gateway(listener), id)
        }
        (None, false) => {
            config.validate(Broker::Configured)?;
            Way::Kafka(Box::new(
                Sender::new(options::forward(config), id, PATIENCE, Box::new(waiting)).map_err(kafka)?,
            ))
        }
    };
    let runtime = Runtime::new().context("no threads could be started")?;
    let stop = runtime
        .block_on(async { signals::shutdown_token() })
        .context("signals cannot be handled")?;
    let mut run = Run {
        source: &source,
        id,
        query,
        // Nothing is sent that could be too fast.
        pace: Pace::new(rate.filter(|_| !flags.dry_run), Instant::now()),
        stop,
        sums: Sums::default(),
        refused: Vec::new(),
        refused_here: Vec::new(),
        damaged_told: 0,
        file: kept,
        saved_at: Instant::now(),
        bar: ProgressBar::hidden(),
    };
    let ended = run.all(&mut way, &mut place);
    let saved = run.save(&place, true);
    runtime.shutdown_background();
    told(&run, flags)?;
    saved?;
    ended.map_err(|error| {
        let on = match &flags.resume {
            Some(file) => format!("the same command with --resume {} goes on there", file.display()),
            // A place says nothing of what is held: that goes only with all of it.
            None if run.has_held() => {
                "send it again with --resume FILE, which remembers the place; what arrives twice \
                                       carries one identity and is landed once"
                    .to_owned()
            }
            None => format!(
                "--from-seq {} goes on there (with --resume FILE it is remembered)",
                place.main.next
            ),
        };
        error.context(format!("not everything was sent: {on}"))
    })?;
    if let Some(file) = resumed_file.filter(|_| place == before && run.sums.records == 0) {
        eprintln!(
            "the replay that {} belongs to was complete already: nothing was left to send. `--all` without --resume, or with \
             another file, sends everything that is on disk again",
            file.display()
        );
    }
    let damaged = count_sequences(&place.main.damaged) + count_sequences(&place.held.damaged);
    if damaged > 0 {
        let damaged = counted(damaged, "record");
        return Err(Damage(format!(
            "{damaged} of the folder cannot be read; `tidegate wal verify` tells which"
        ))
        .into());
    }
    check_signs(&source)?;
    if run.sums.refused > 0 {
        anyhow::bail!(
            "{} {} refused, and still in {}: what is told above must be mended, then a replay sends them",
            counted(run.sums.refused, "record"),
            if run.sums.refused == 1 { "was" } else { "were" },
            path.display()
        );
    }
    Ok(())
}

fn waiting(why: &str) {
    eprintln!(
        "Kafka takes nothing now ({why}); waiting for it, {} s at most",
        PATIENCE.as_secs()
    );
}

/// The first sequence to be sent.
fn begin(source: &Archive, part: Part, acked_too: bool) -> Place {
    let marks = source.log(part).map(|log| log.watermarks()).unwrap_or_default();
    Place {
        next: match acked_too {
            true => marks.trimmed + 1,
            false => marks.acked + 1,
        },
        ..Place::default()
    }
}

fn resumed(file: &Path, place: Progress) -> Result<Progress> {
    let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let before: Progress = serde_json::from_slice(&text).map_err(|error| {
        Usage(format!(
            "{} is no file of --resume ({error}): name another",
            file.display()
        ))
    })?;
    // A place at the beginning is nobody's.
    let is_begun = (&before.main, &before.held) != (&place.main, &place.held);
    let same = |progress: &Progress| Progress {
        main: Place::default(),
        held: Place::default(),
        to: if is_begun { progress.to.clone() } else { String::new() },
        ..progress.clone()
    };
    if same(&before) != same(&place) {
        let text = format!(
            "{} belongs to another replay (of log {} to {}, or with other filters): name another file, or use the same flags",
            file.display(),
            before.wal,
            before.to
        );
        return Err(Usage(text).into());
    }
    Ok(Progress { to: place.to, ..before })
}

fn kafka(error: SendError) -> anyhow::Error {
    match error {
        SendError::Properties(_) => Usage(error.to_string()).into(),
        SendError::Away { .. } | SendError::Stopped => Later(error.to_string()).into(),
    }
}

fn told(run: &Run<'_>, flags: &Replay) -> Result<()> {
    for refused in run.refused.iter().take(REFUSED_TOLD) {
        eprintln!(
            "refused: sequence {} of {}: {}",
            refused.sequence, refused.topic, refused.reason
        );
    }
    let sums = &run.sums;
    if flags.json {
        return print(format!("{}\n", serde_json::to_string(sums)?).as_bytes());
    }
    let what = if flags.dry_run { "would send" } else { "sent" };
    let mut text = format!("{what} {}, {}\n", counted(sums.records, "record"), size(sums.bytes));
    for (topic, records) in &sums.topics {
        text.push_str(&format!("  {topic}: {records}\n"));
    }
    print(text.as_bytes())
}

/// Where records go. No `Debug`: a listener holds the token.
enum Way {
    Nowhere,
    Gateway(Target, WalId),
    Kafka(Box<Sender>),
}

impl Way {
    /// All of them are there, or refused.
    fn send(&mut self, batch: &[(Sequence, Record)], stop: &CancellationToken) -> Result<Vec<Refused>> {
        match self {
            Self::Nowhere => Ok(Vec::new()),
            Self::Kafka(sender) => sender.send(batch, &|| stop.is_cancelled()).map_err(kafka),
            Self::Gateway(target, id) => {
                let deadline = Instant::now() + PATIENCE;
                let mut told = false;
                loop {
                    let items = batch.iter().map(|(sequence, record)| {
                        let mut item = Item::of_record(*id, *sequence, record);
                        item.sequence = None;
                        item
                    });
                    match target.take(items.collect()) {
                        Ok(_) => return Ok(Vec::new()),
                        Err(error) if !may_pass(&error) || Instant::now() >= deadline => return Err(error),
                        Err(error) if stop.is_cancelled() => return Err(error),
                        Err(error) => {
                            if !std::mem::replace(&mut told, true) {
                                eprintln!("{error}; trying again, {} s at most", PATIENCE.as_secs());
                            }
                            std::thread::sleep(RETRY);
                        }
                    }
                }
            }
        }
    }
}

/// The gateway is away or full now.
fn may_pass(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<AskError>(),
        Some(AskError::Away { .. } | AskError::Unwell { .. })
    )
}

/// Records on their way to be a batch.
#[derive(Default)]
struct Gathered {
    batch: Vec<(Sequence, Record)>,
    bytes: usize,
    damaged: Vec<Range>,
}

impl Gathered {
    fn push(&mut self, own: WalId, sequence: Sequence, record: &RecordRef<'_>) {
        let mut record = record.to_record();
        record.idempotency = None;
        record.origin.get_or_insert(Origin {
            wal: *own.0.as_bytes(),
            seq: sequence,
        });
        self.bytes += record.payload_bytes();
        self.batch.push((sequence, record));
    }

    fn is_full(&self, pace: &Pace) -> bool {
        self.batch.len() >= BATCH_RECORDS || self.bytes >= pace.chunk_bytes(BATCH_BYTES)
    }
}

impl Progress {
    fn of(&mut self, part: Part) -> &mut Place {
        match part {
            Part::Held => &mut self.held,
            Part::Main | Part::DeadLetters => &mut self.main,
        }
    }
}

struct Run<'a> {
    source: &'a Archive,
    id: WalId,
    query: Query,
    pace: Pace,
    stop: CancellationToken,
    sums: Sums,
    refused: Vec<Refused>,
    /// Those of the log that is being sent, all of them.
    refused_here: Vec<Sequence>,
    /// Ranges that could not be read, so far.
    damaged_told: usize,
    file: Option<&'a Path>,
    saved_at: Instant,
    bar: ProgressBar,
}

impl Run<'_> {
    fn all(&mut self, way: &mut Way, place: &mut Progress) -> Result<()> {
        self.part(Part::Main, way, place)?;
        // Sequences of the held lane are places in another log: only the other filters choose there.
        if self.query.from_seq.is_none() && self.query.to_seq.is_none() {
            self.part(Part::Held, way, place)?;
        } else if self.has_held() {
            eprintln!(
                "held records are left out: --from-seq and --to-seq are places in the main log. A replay without them sends \
                 those too"
            );
        }
        Ok(())
    }

    /// Whether records wait in the held lane.
    fn has_held(&self) -> bool {
        self.source.log(Part::Held).is_some_and(|log| log.waiting() > 0)
    }

    fn part(&mut self, part: Part, way: &mut Way, place: &mut Progress) -> Result<()> {
        let Some(log) = self.source.log(part).map(Arc::clone) else {
            return Ok(());
        };
        let at = place.of(part);
        let first = at.next.max(self.query.from_seq.unwrap_or(1));
        let last = self.query.to_seq.unwrap_or(Sequence::MAX);
        let mut reader = log.reader(first);
        self.bar = progress::records(log.watermarks().committed.min(last), "sending");
        // What was refused, or could not be read, of this copy or of a worse one, first: it is older. Each is kept in mind until
        // it is through.
        at.refused.sort_unstable();
        let again = (at.refused.iter().map(|sequence| (*sequence, *sequence))).chain(at.damaged.iter().copied());
        let mut gathered = Gathered::default();
        let known = at.damaged.len();
        self.refused_here.clear();
        for range in wal::joined(again.collect()) {
            self.stretch(part, &mut reader, range, &mut gathered, way, place)?;
        }
        self.batch(way, &mut gathered, place.of(part))?;
        // Those before, as they are now: what was refused is lost, sent, removed meanwhile, or was refused again.
        let at = place.of(part);
        at.damaged = at.damaged.split_off(known);
        at.refused = std::mem::take(&mut self.refused_here);
        let end = self.stretch(part, &mut reader, (first, last), &mut gathered, way, place)?;
        self.batch(way, &mut gathered, place.of(part))?;
        place.of(part).next = end;
        self.save(place, false)?;
        self.bar.finish_and_clear();
        Ok(())
    }

    /// Sends what there is of a range, but for a last batch that is not full; returns where it came to.
    fn stretch(
        &mut self,
        part: Part,
        reader: &mut Reader,
        (first, last): Range,
        gathered: &mut Gathered,
        way: &mut Way,
        place: &mut Progress,
    ) -> Result<Sequence> {
        reader.seek(first);
        let bytes_max = if first == last { 1 } else { BATCH_BYTES };
        while reader.position() <= last {
            match reader.read(bytes_max)? {
                Read::Nothing => break,
                Read::Damaged { told: true, .. } => {}
                Read::Damaged { first, last: until, .. } => {
                    if first <= last {
                        // A gateway that has started meanwhile removes what is acknowledged: that is no damage.
                        self.source.check_unused().map_err(in_use)?;
                        self.lost(gathered, (first, until.min(last)));
                    }
                }
                Read::Records(chunk) => {
                    for (sequence, record) in chunk.records() {
                        if sequence > last {
                            break;
                        }
                        let Ok(record) = record else {
                            self.lost(gathered, (sequence, sequence));
                            continue;
                        };
                        // An entry without a topic is a mark of the held lane.
                        if record.topic.is_empty() || !self.query.matches(&record) {
                            continue;
                        }
                        gathered.push(self.id, sequence, &record);
                        if gathered.is_full(&self.pace) {
                            self.batch(way, gathered, place.of(part))?;
                            let at = place.of(part);
                            at.next = at.next.max(sequence + 1);
                            self.save(place, false)?;
                            self.bar.set_position(sequence);
                        }
                    }
                }
            }
        }
        Ok(reader.position())
    }

    /// A range cannot be read.
    fn lost(&mut self, gathered: &mut Gathered, range: Range) {
        gathered.damaged.push(range);
        self.damaged_told += 1;
        let (first, last) = range;
        match self.damaged_told {
            ..RANGES_TOLD => eprintln!("records {first} to {last} were on disk and cannot be read; the rest goes on"),
            RANGES_TOLD => eprintln!("more ranges cannot be read; `tidegate wal verify` tells all of them"),
            _ => {}
        }
    }

    /// Sends what has gathered.
    fn batch(&mut self, way: &mut Way, gathered: &mut Gathered, place: &mut Place) -> Result<()> {
        loop {
            if self.stop.is_cancelled() {
                return Err(Later("stopped by a signal".to_owned()).into());
            }
            let wait = self.pace.wait(Instant::now());
            if wait.is_zero() {
                break;
            }
            std::thread::sleep(wait.min(Duration::from_millis(200)));
        }
        let Gathered { batch, bytes, damaged } = gathered;
        let refused = match batch.is_empty() {
            true => Vec::new(),
            false => way.send(batch, &self.stop)?,
        };
        place.damaged.append(damaged);
        let is_tried = |sequence: &Sequence| batch.binary_search_by_key(sequence, |(at, _)| *at).is_ok();
        place.refused.retain(|sequence| !is_tried(sequence));
        self.pace.take(*bytes);
        for (_, record) in batch.iter() {
            *self.sums.topics.entry(record.topic.clone()).or_default() += 1;
        }
        for refused in &refused {
            if let Some(count) = self.sums.topics.get_mut(&refused.topic) {
                *count -= 1;
            }
        }
        self.sums.records += (batch.len() - refused.len()) as u64;
        let sent = (batch.iter()).filter(|(at, _)| !refused.iter().any(|refused| refused.sequence == *at));
        self.sums.bytes += sent.map(|(_, record)| record.payload_bytes() as u64).sum::<u64>();
        self.sums.refused += refused.len() as u64;
        place.refused.extend(refused.iter().map(|refused| refused.sequence));
        self.refused_here.extend(refused.iter().map(|refused| refused.sequence));
        let room = REFUSED_TOLD.saturating_sub(self.refused.len());
        self.refused.extend(refused.into_iter().take(room));
        batch.clear();
        *bytes = 0;
        if place.refused.len() > REFUSED_MAX {
            anyhow::bail!("over {REFUSED_MAX} records were refused: mend that before the rest is sent");
        }
        Ok(())
    }

    fn save(&mut self, place: &Progress, now: bool) -> Result<()> {
        let Some(file) = self.file else { return Ok(()) };
        if !now && self.saved_at.elapsed() < SAVE_EVERY {
            return Ok(());
        }
        self.saved_at = Instant::now();
        let new = PathBuf::from(format!("{}.new", file.display()));
        fs::write(&new, serde_json::to_vec(place)?)
            .and_then(|()| fs::File::open(&new)?.sync_all())
            .and_then(|()| fs::rename(&new, file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::wal::{Batch, Options, Retain, Wal};

    #[test]
    fn what_was_refused_is_kept_in_mind_until_it_is_through() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wal");
        let wal = Wal::open(Options {
            path: path.clone(),
            bytes_max: 1 << 30,
            free_bytes_min: 0,
            generation_bytes: 1 << 20,
            compression: true,
            retain: Retain::Off,
            linger: Duration::ZERO,
            keys: Default::default(),
        });
        let wal = wal.unwrap();
        let mut batch = Batch::new();
        for _ in 0..3 {
            batch.push(&Record {
                topic: "t".into(),
                key: None,
                value: None,
                headers: Vec::new(),
                received_ms: 1,
                origin: None,
                idempotency: None,
            });
        }
        wal.log().append(batch).unwrap().wait().unwrap();
        wal.close().unwrap();
        let source = Archive::open(&path).unwrap();
        let mut run = Run {
            source: &source,
            id: source.id().unwrap(),
            query: Query::default(),
            pace: Pace::new(None, Instant::now()),
            stop: CancellationToken::new(),
            sums: Sums::default(),
            refused: Vec::new(),
            refused_here: Vec::new(),
            damaged_told: 0,
            file: None,
            saved_at: Instant::now(),
            bar: ProgressBar::hidden(),
        };
        let begun = Place {
            next: 4,
            refused: vec![2],
            damaged: vec![(3, 3)],
        };
        let mut place = Progress {
            wal: run.id.to_string(),
            query: Query::default(),
            all: true,
            to: String::new(),
            main: begun.clone(),
            held: Place::default(),
        };
        run.stop.cancel();
        run.all(&mut Way::Nowhere, &mut place).unwrap_err();
        assert_eq!(place.main, begun);
        run.stop = CancellationToken::new();
        run.all(&mut Way::Nowhere, &mut place).unwrap();
        assert_eq!(run.sums.records, 2);
        let ended = Place {
            refused: Vec::new(),
            damaged: Vec::new(),
            ..begun
        };
        assert_eq!(place.main, ended);
    }
}
