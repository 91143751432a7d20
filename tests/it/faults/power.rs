//! The power goes: at any moment of a recorded run, with any of what no fsync has covered lost, torn or in place.

use std::fs;
use std::path::Path;
use std::thread;

use super::image::{Disk, Trust, calls};
use super::shim::{Plan, take};
use super::{Answered, Book, Records, fast_folder, judge};
use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::{Random, seconds, soak, unique, wait_until};

cases!["power":
    no_record_answered_ok_is_lost_whatever_reached_the_disk [],
    nor_while_kafka_acknowledges_and_generations_go [Kafka],
    nor_when_it_goes_again_during_the_start [],
    a_disk_that_lies_is_found_out [],
];

/// A recorded run: the calls, and what was answered.
struct Run {
    record: Vec<u8>,
    book: Book,
    kafka: Records,
}

fn images() -> usize {
    if soak() { 10_000 } else { 300 }
}

/// Of `images`, with none of what was answered OK lost.
fn print(run: &Run, images: usize, fault: &str) {
    let evidence = Evidence {
        injected: images as u64,
        answered: run.book.answered() as u64,
        ..Evidence::default()
    };
    evidence.print(fault);
}

/// Six clients post records of many sizes for some rotations' time.
fn load(gateway: &Gateway, book: &Book, record: &Path, posts: usize) {
    thread::scope(|scope| {
        for client in 0..6 {
            scope.spawn(move || {
                let (client_of, mut size) = (gateway.client(), 1 + client * 977);
                for _ in 0..posts {
                    size = size * 31 % 60_013;
                    // Most are small.
                    let bytes = if size % 5 == 0 { size } else { size % 700 };
                    assert!(book.post(&client_of, bytes, Some(record)), "the gateway answers");
                }
            });
        }
    });
}

fn config(bootstrap: &str) -> Config {
    let mut config = Config::new(bootstrap);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    config
}

fn recorded(bootstrap: &str, topic: &str, posts: usize) -> (Gateway, Run) {
    let mut config = config(bootstrap);
    let folder = std::sync::Arc::new(tempfile::tempdir().unwrap());
    let record = folder.path().join("record");
    Plan {
        record: Some(record.clone()),
        ..Plan::new(&folder.path().join("wal"))
    }
    .put(&mut config);
    let gateway = Gateway::start_in(folder, &config);
    let book = Book::new(topic);
    load(&gateway, &book, &record, posts);
    let run = Run {
        record: fs::read(&record).unwrap(),
        book,
        kafka: Records::new(),
    };
    (gateway, run)
}

/// Makes `count` images of the moments of a run and judges each; the faults. `before`: what the folder was when the run
/// began.
fn examine(run: &Run, root: &Path, before: &Path, trust: Trust, count: usize) -> Vec<String> {
    let mut random = Random::new();
    let all: Vec<_> = calls(&run.record).collect();
    let mut points: Vec<usize> = (0..count)
        .map(|_| usize::try_from(random.within(0, all.len() as u64)).unwrap())
        .collect();
    points.sort_unstable();
    let answered = run.book.answered.lock().unwrap().clone();
    let mut disk = Disk::new(root, before, trust);
    let mut faults = Vec::new();
    let mut applied = 0;
    for point in points {
        while applied <= point {
            disk.apply(&all[applied]);
            applied += 1;
        }
        let by = all[point].end;
        let folder = fast_folder();
        let image = folder.path().join("wal");
        fs::create_dir(&image).unwrap();
        disk.image(&image, &mut random);
        let due: Vec<&Answered> = answered.iter().filter(|answered| answered.by <= by).collect();
        if let Err(fault) = judge(&image, &run.book, &due, &run.kafka) {
            faults.push(format!(
                "seed {}, call {point} of {}: {fault}",
                random.seed(),
                all.len()
            ));
        }
    }
    faults
}

fn no_record_answered_ok_is_lost_whatever_reached_the_disk() {
    let (mut gateway, run) = recorded(NOWHERE, "t", 60);
    gateway.sigkill();
    let nothing = tempfile::tempdir().unwrap();
    let faults = examine(&run, &gateway.wal(), nothing.path(), Trust::All, images());
    assert_eq!(faults, Vec::<String>::new());
    print(&run, images(), "power loss: a disk image of any moment, Kafka away");
}

fn nor_while_kafka_acknowledges_and_generations_go() {
    let kafka = Kafka::shared();
    let topic = unique("power");
    kafka.create_topic(&topic, 1, &[]);
    let (gateway, mut run) = recorded(kafka.bootstrap(), &topic, 60);
    gateway.wait_drained(seconds(60));
    run.record = fs::read(gateway.wal().with_file_name("record")).unwrap();
    let wal = gateway.status()["wal"]["id"].as_str().unwrap().to_owned();
    for message in kafka.read_topic(&topic, true) {
        if message.identity().is_some_and(|(from, _)| from == wal) {
            run.kafka.insert(message.seq(), message.value);
        }
    }
    let nothing = tempfile::tempdir().unwrap();
    let faults = examine(&run, &gateway.wal(), nothing.path(), Trust::All, images());
    assert_eq!(faults, Vec::<String>::new());
    print(
        &run,
        images(),
        "power loss: a disk image of any moment, while forwarding",
    );
}

fn nor_when_it_goes_again_during_the_start() {
    let (mut gateway, mut run) = recorded(NOWHERE, "t", 30);
    gateway.sigkill();
    let root = gateway.wal();
    let before = tempfile::tempdir().unwrap();
    let mut random = Random::new();
    let first = run.record.clone();
    let all: Vec<_> = calls(&first).collect();
    let rounds = if soak() { 40 } else { 4 };
    let answered = run.book.answered.lock().unwrap().clone();
    for round in 0..rounds {
        // What the first power cut leaves...
        let point = usize::try_from(random.within(all.len() as u64 / 2, all.len() as u64)).unwrap();
        let mut disk = Disk::new(&root, Path::new("/nonexistent"), Trust::All);
        all[..=point].iter().for_each(|call| disk.apply(call));
        let by = all[point].end;
        let image = before.path().join(round.to_string());
        fs::create_dir(&image).unwrap();
        disk.image(&image, &mut random);
        // ... is started on, and the start recorded...
        fs::remove_dir_all(&root).unwrap();
        copy(&image, &root);
        let record = root.with_file_name(format!("record-{round}"));
        Plan {
            record: Some(record.clone()),
            ..Plan::new(&root)
        }
        .put(gateway.config());
        gateway.restart();
        wait_until("the next generation is made", seconds(20), || {
            fs::read_dir(&root)
                .unwrap()
                .any(|item| item.unwrap().file_name().to_string_lossy().starts_with("next-"))
        });
        gateway.sigkill();
        take(gateway.config());
        // ... and the power goes again in the midst of it.
        run.record = fs::read(&record).unwrap();
        let due = answered.iter().filter(|answered| answered.by <= by).cloned();
        *run.book.answered.lock().unwrap() = due.map(|answered| Answered { by: 0, ..answered }).collect();
        let faults = examine(&run, &root, &image, Trust::All, images() / rounds);
        assert_eq!(faults, Vec::<String>::new(), "round {round}, seed {}", random.seed());
    }
    *run.book.answered.lock().unwrap() = answered;
    print(
        &run,
        images() / rounds * rounds,
        "power loss, and again during the start after it",
    );
}

/// A suite that cannot fail proves nothing.
fn a_disk_that_lies_is_found_out() {
    let (mut gateway, run) = recorded(NOWHERE, "t", 30);
    gateway.sigkill();
    let nothing = tempfile::tempdir().unwrap();
    for trust in [Trust::NoDataSync, Trust::Nothing] {
        let faults = examine(&run, &gateway.wal(), nothing.path(), trust, 50);
        let lost = faults
            .iter()
            .filter(|fault| fault.contains("lost") || fault.contains("loss") || fault.contains("cannot"))
            .count();
        assert!(lost >= 10, "{trust:?}: {faults:?}");
        let evidence = Evidence {
            injected: 50,
            answered: run.book.answered() as u64,
            lost: lost as u64,
            repeated: 0,
        };
        evidence.print(&format!(
            "control: disk images with an fsync that lies, {trust:?} (lost: images with a loss)"
        ));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for item in fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        match item.file_type().unwrap().is_dir() {
            true => copy(&item.path(), &target),
            false => drop(fs::copy(item.path(), target).unwrap()),
        }
    }
}
