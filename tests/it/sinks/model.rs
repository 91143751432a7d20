//! Random sequences of calls against the contract as a model in memory.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tidegate::land::row::{Batch, Field, Move, Row, clash};
use tidegate::land::sink::{Counts, Known, Position, Sink, Written};
use tidegate::land::table::{Kind, Table};

use super::place::{Place, Stored, StoredRejected, positions};
use super::{position, row};
use crate::support::{Random, soak};

const CLUSTERS: [&str; 2] = ["one", "two"];
const TOPICS: [&str; 2] = ["t", "u"];
const PARTITIONS: u64 = 3;

/// What the contract says of one source.
struct Model {
    table: Table,
    rows: BTreeMap<(String, i64), Stored>,
    rejected: Vec<StoredRejected>,
    positions: BTreeMap<(&'static str, &'static str, i32), Position>,
}

impl Model {
    fn new(source: &str) -> Self {
        Self {
            table: Table::new(source, &[("n".to_owned(), Kind::Integer)]),
            rows: BTreeMap::new(),
            rejected: Vec::new(),
            positions: BTreeMap::new(),
        }
    }

    fn known(&self, topic: &str) -> Vec<Known> {
        let here = self.positions.iter().filter(|((_, other, _), _)| *other == topic);
        here.map(|((cluster, _, partition), position)| Known {
            cluster: (*cluster).to_owned(),
            partition: *partition,
            position: position.clone(),
        })
        .collect()
    }

    /// The batch as it was before [`Batch::settle`].
    fn write(&mut self, (cluster, topic): (&'static str, &'static str), batch: &Batch) -> Written {
        let fits = |place: &Move| {
            let here = self.positions.get(&(cluster, topic, place.partition));
            here.is_some_and(|here| (here.epoch, here.next) == (place.epoch, place.from))
        };
        if !batch.moves.iter().all(fits) {
            return Written::Moved;
        }
        for place in &batch.moves {
            let here = self.positions.get_mut(&(cluster, topic, place.partition));
            here.expect("it fits").next = place.to;
        }
        let mut counts = Counts::default();
        // A row is compared with the first of its identity in the batch, or else with what is stored.
        let mut seen = HashMap::new();
        for row in &batch.rows {
            let identity = (row.wal.to_string(), row.seq);
            let record = (row.key.clone(), row.value.clone());
            let stored = |stored: &Stored| (stored.key.clone(), stored.value.clone());
            let first = seen.get(&identity).cloned();
            let there = first.or_else(|| self.rows.get(&identity).map(stored));
            let verdict = there.map(|there| there == record);
            seen.entry(identity.clone()).or_insert(record);
            match verdict {
                Some(true) => counts.duplicates += 1,
                Some(false) => {
                    counts.clashes += 1;
                    self.rejected.push(StoredRejected::of(batch, &clash(row.clone())));
                }
                None => {
                    match row.valid() {
                        true => counts.valid += 1,
                        false => counts.invalid += 1,
                    }
                    self.rows.insert(identity, Stored::of(&self.table, topic, row));
                }
            }
        }
        Written::Done(counts)
    }
}

pub fn any_sequence_of_calls_does_what_the_model_says(place: &dyn Place) {
    let mut random = Random::new();
    let seed = random.seed();
    let runs = if soak() { 100 } else { 4 };
    for run in 0..runs {
        // A source's tables are the run's own; the place is full of the runs before it.
        let mut models = [Model::new(&format!("a{run}")), Model::new(&format!("b{run}"))];
        let mut sinks: Vec<Vec<Box<dyn Sink>>> = (models.iter())
            .map(|model| (0..2).map(|_| place.sink(&model.table)).collect())
            .collect();
        for step in 0..80 {
            let at = format!("TIDEGATE_TEST_SEED={seed}, run {run}, step {step}");
            let (source, process) = (pick(&mut random, 2), pick(&mut random, 2));
            let (model, sink) = (&mut models[source], &mut sinks[source][process]);
            let of = (CLUSTERS[pick(&mut random, 2)], TOPICS[pick(&mut random, 2)]);
            match random.within(0, 10) {
                0..=1 => set(&mut random, model, sink.as_mut(), of, &at),
                2 => {
                    if random.within(0, 2) == 0 {
                        sink.close().unwrap();
                    }
                    *sink = place.sink(&model.table);
                }
                _ => write(&mut random, model, sink.as_mut(), of, &at),
            }
            assert_eq!(positions(sink.as_mut(), of.1), model.known(of.1), "{at}");
        }
        for sink in sinks.iter_mut().flatten() {
            sink.close().unwrap();
        }
        for mut model in models {
            let at = format!("TIDEGATE_TEST_SEED={seed}, run {run}, {}", model.table.name);
            let expected: Vec<Stored> = model.rows.into_values().collect();
            assert_eq!(place.stored(&model.table), expected, "{at}");
            model.rejected.sort();
            assert_eq!(place.apart(&model.table), model.rejected, "{at}");
        }
    }
}

fn pick(random: &mut Random, of: u64) -> usize {
    usize::try_from(random.within(0, of)).unwrap()
}

/// Sets a position, from where it is or from somewhere else.
fn set(random: &mut Random, model: &mut Model, sink: &mut dyn Sink, of: (&'static str, &'static str), at: &str) {
    let partition = i32::try_from(random.within(0, PARTITIONS)).unwrap();
    let here = model.positions.get(&(of.0, of.1, partition)).cloned();
    let mut from = here.clone();
    match (random.within(0, 6), &mut from) {
        (0, Some(from)) => from.next += 1,
        (1, Some(from)) => from.epoch -= 1,
        (0, from) => *from = Some(position(1, 0)),
        (2, from) => *from = None,
        _ => {}
    }
    let to = Known {
        cluster: of.0.to_owned(),
        partition,
        position: Position {
            // An epoch reads each offset once at most.
            epoch: here.as_ref().map_or(0, |here| here.epoch) + 1,
            next: i64::try_from(random.within(0, 12)).unwrap(),
            topic_id: (random.within(0, 2) == 0).then(|| format!("id {}", random.within(0, 3))),
        },
    };
    let expected = from == here;
    assert_eq!(
        sink.set_position(of.1, &to, from.as_ref()).unwrap(),
        expected,
        "{at}: {to:?} from {from:?}, which is {here:?}"
    );
    if expected {
        model.positions.insert((of.0, of.1, partition), to.position);
    }
}

/// Writes a batch of some partitions; one in four does not fit, and one in four is written twice.
fn write(random: &mut Random, model: &mut Model, sink: &mut dyn Sink, of: (&'static str, &'static str), at: &str) {
    let mut batch = Batch {
        cluster: of.0.to_owned(),
        topic: of.1.to_owned(),
        ..Batch::default()
    };
    for partition in 0..i32::try_from(PARTITIONS).unwrap() {
        let Some(here) = model.positions.get(&(of.0, of.1, partition)) else {
            continue;
        };
        if random.within(0, 2) == 0 {
            continue;
        }
        let mut next = here.next;
        for _ in 0..random.within(0, 9) {
            // With holes.
            next += i64::from(random.within(0, 5) == 0);
            batch.rows.push(some_row(random, of, partition, here.epoch, next));
            next += 1;
        }
        batch.moves.push(Move {
            partition,
            epoch: here.epoch,
            from: here.next,
            to: next,
        });
    }
    if batch.moves.is_empty() {
        return;
    }
    let (fault, place) = (random.within(0, 12), pick(random, batch.moves.len() as u64));
    match fault {
        0 => batch.moves[place].from -= 1,
        1 => batch.moves[place].epoch += 1,
        2 => batch.moves[place].partition = 99,
        _ => {}
    }
    let mut settled = batch.clone();
    settled.settle();
    for _ in 0..(1 + u64::from(random.within(0, 4) == 0)) {
        let expected = model.write(of, &batch);
        let written = sink.write(&settled).unwrap();
        assert_eq!(written, expected, "{at}: {batch:?}");
    }
}

/// Identities, keys and values are few, so that they meet.
fn some_row(random: &mut Random, of: (&str, &str), partition: i32, epoch: i64, offset: i64) -> Row {
    const BYTES: [Option<&[u8]>; 6] = [None, Some(b""), Some(b"a"), Some(b"a"), Some(b"\xff"), Some(b"\\N\t")];
    let (key, value) = (BYTES[pick(random, 2)], BYTES[pick(random, 6)]);
    let mut some = row(i64::try_from(random.within(0, 20)).unwrap(), key, value);
    if random.within(0, 3) == 0 {
        some.wal = Arc::from(format!("kafka:{}/{}/{partition}/{epoch}", of.0, of.1));
        some.seq = offset;
    }
    (some.partition, some.offset) = (partition, offset);
    if random.within(0, 4) == 0 {
        some.reason = Some("a reason".to_owned());
        some.fields = vec![Field::Null];
    }
    some
}
