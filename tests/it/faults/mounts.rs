//! The power goes on a real file system: ext4 (and xfs, where its tools and the kernel's part are there) on a loop device, shut
//! down under load without its journal. And a disk that becomes read-only, or slow.
//!
//! Needs root and a loop device. Where a machine gives none, `power::` shows the same from recorded calls.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::shim::{Plan, take};
use super::{Answered, Book, Records, judge};
use crate::support::evidence::Evidence;
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::mount::{Disk, run};
use crate::support::{Random, seconds, soak, wait_until};

cases!["mounts":
    no_record_answered_ok_is_lost_when_ext4_loses_its_power [LoopMount],
    no_record_answered_ok_is_lost_when_xfs_loses_its_power [LoopMount],
    where_a_sync_does_nothing_records_are_lost [LoopMount],
    a_disk_that_becomes_read_only_costs_nothing_answered_ok [LoopMount],
    nobody_is_answered_before_a_slow_sync_is_through [],
];

fn config() -> Config {
    let mut config = Config::new(NOWHERE);
    config
        .set("wal.generation_bytes", "1 MiB")
        .set("wal.compression", "none");
    config
}

/// Clients at work until nobody answers; `meanwhile` runs beside them.
fn under_load(gateway: &Gateway, book: &Book, meanwhile: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for client in 0..4 {
            let stop = &stop;
            scope.spawn(move || {
                let (client_of, mut size) = (gateway.client(), 1 + client * 977);
                while !stop.load(Ordering::Relaxed) {
                    size = size * 31 % 60_013;
                    if !book.post(&client_of, size % 3_000, None) {
                        break;
                    }
                }
            });
        }
        meanwhile();
        stop.store(true, Ordering::Relaxed);
    });
}

/// What the judge says of everything that was answered.
fn verdict(wal: &Path, book: &Book) -> Result<(), String> {
    let answered = book.answered.lock().unwrap().clone();
    let due: Vec<&Answered> = answered.iter().collect();
    judge(wal, book, &due, &Records::new())
}

/// The power goes `cycles` times, in the middle of the load, on one log; the fault that was found, if any.
fn cut(disk: &Disk, book: &Book, cycles: u64, plan: Option<Plan>) -> Result<(), String> {
    let mut random = Random::new();
    for cycle in 0..cycles {
        let mut config = config();
        if let Some(plan) = &plan {
            plan.put(&mut config);
        }
        let mut gateway = Gateway::start_in(Arc::clone(&disk.folder), &config);
        under_load(&gateway, book, || {
            thread::sleep(Duration::from_millis(random.within(30, 300)));
            disk.power_off();
        });
        gateway.sigkill();
        disk.unmount();
        disk.mount()?;
        verdict(&disk.wal(), book).map_err(|fault| format!("cycle {cycle}, seed {}: {fault}", random.seed()))?;
    }
    Ok(())
}

fn lose_power(kind: &str) {
    let disk = match Disk::make(kind) {
        Ok(disk) => disk,
        // ext4 was tried before.
        Err(why) if kind != "ext4" => return println!("left out here: {why}"),
        Err(why) => panic!("{why}"),
    };
    let book = Book::new("t");
    let cycles = if soak() { 100 } else { 10 };
    cut(&disk, &book, cycles, None).unwrap();
    let answered = book.answered() as u64;
    assert!(answered > cycles, "{answered} answers are no load");
    Evidence {
        injected: cycles,
        answered,
        ..Evidence::default()
    }
    .print(&format!("power loss: {kind} on a loop device, shut down under load"));
}

fn no_record_answered_ok_is_lost_when_ext4_loses_its_power() {
    lose_power("ext4");
}

fn no_record_answered_ok_is_lost_when_xfs_loses_its_power() {
    lose_power("xfs");
}

/// A suite that cannot fail proves nothing.
fn where_a_sync_does_nothing_records_are_lost() {
    let disk = Disk::make("ext4").unwrap();
    let book = Book::new("t");
    let plan = Plan {
        calls: "s",
        does: "lie",
        at: Some(1),
        for_ever: true,
        ..Plan::new(&disk.wal())
    };
    let found = cut(&disk, &book, 5, Some(plan));
    let fault = found.expect_err("a disk that only says so loses what was answered OK");
    println!("{fault}");
    Evidence {
        injected: 1,
        answered: book.answered() as u64,
        lost: 1,
        ..Evidence::default()
    }
    .print("control: the same on ext4 with every fsync a lie (at least the first record that was found missing)");
}

fn a_disk_that_becomes_read_only_costs_nothing_answered_ok() {
    let disk = Disk::make("ext4").unwrap();
    let book = Book::new("t");
    let cycles = if soak() { 20 } else { 3 };
    for _ in 0..cycles {
        let mut gateway = Gateway::start_in(Arc::clone(&disk.folder), &config());
        let before = book.answered();
        under_load(&gateway, &book, || {
            wait_until("the load runs", seconds(30), || book.answered() > before + 50);
            // As ext4 does it by itself after an error, whoever has files open for writing.
            run(Command::new("mount").args(["-o", "remount,abort"]).arg(disk.wal())).unwrap();
            // It notices with the next write, and ends.
            wait_until("it has ended", seconds(30), || gateway.admin("/livez").is_err());
        });
        assert_eq!(gateway.wait_for_exit(seconds(30)).code(), Some(75), "{}", gateway.log());
        disk.unmount();
        disk.mount().unwrap();
        verdict(&disk.wal(), &book).unwrap();
    }
    Evidence {
        injected: cycles,
        answered: book.answered() as u64,
        ..Evidence::default()
    }
    .print("the file system becomes read-only under load (ext4)");
}

fn nobody_is_answered_before_a_slow_sync_is_through() {
    let folder = Arc::new(tempfile::tempdir().unwrap());
    let mut config = config();
    let gateway = Gateway::start_in(Arc::clone(&folder), &config);
    let wal = gateway.wal();
    drop(gateway);
    Plan {
        calls: "s",
        does: "slow",
        at: Some(1),
        for_ever: true,
        ..Plan::new(&wal)
    }
    .put(&mut config);
    let mut gateway = Gateway::start_in(Arc::clone(&folder), &config);
    let book = Book::new("t");
    let client = gateway.client();
    let posts = 3;
    for _ in 0..posts {
        let began = Instant::now();
        assert!(book.post(&client, 100, None));
        assert!(began.elapsed() >= seconds(1), "answered after {:?}", began.elapsed());
        assert_eq!(gateway.admin("/livez").unwrap().status, 200);
    }
    assert_eq!(book.answered(), posts);
    gateway.sigkill();
    take(gateway.config());
    verdict(&wal, &book).unwrap();
    Evidence {
        injected: posts as u64,
        answered: posts as u64,
        ..Evidence::default()
    }
    .print("a sync that takes a second longer");
}
