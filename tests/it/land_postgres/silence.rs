//! Servers and landers that fall silent.

use std::fs;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use postgres::{Client, NoTls};
use tidegate::land::sink::{Sink as _, SinkError, Written};
use tidegate::land::table::Table;

use super::{batch, begin, place, produce_all, sink, topic_of, trigger, values};

use crate::support::gateway::{Config, send};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::postgres::Postgres;
use crate::support::proxy::Proxy;
use crate::support::store::Store;
use crate::support::{poll, seconds, wait_until};

cases!["land_postgres":
    a_server_that_falls_silent_is_told_and_waited_for [Kafka, Postgres],
    a_missing_standby_holds_up_what_is_stored_and_leaves_nothing_behind [Postgres],
];

/// A member that stays one however slow the machine is.
fn patient(config: &mut Config) {
    config.property("session.timeout.ms", "30000");
}

/// A lander has said that the database does not answer, and was a member of its group all the time.
fn has_told(lander: &Lander) -> bool {
    let status = lander.admin("/v1/status").unwrap().json();
    assert_eq!(status["partitions"].as_array().unwrap().len(), 1, "{status}");
    let metrics = lander.metrics();
    let failed = metrics
        .get(r#"tidegate_land_errors_total{reason="database"}"#)
        .is_some_and(|failed| *failed >= 1.0);
    let lines = fs::read_to_string(format!("/proc/{}/fd/2", lander.pid())).unwrap();
    failed && lines.contains("does not answer")
}

/// One of the server's processes, which stands still until it is dropped.
struct Stopped(u32);

impl Stopped {
    fn new(pid: &str) -> Self {
        let pid = pid.parse().unwrap();
        send(pid, "-STOP");
        Self(pid)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        send(self.0, "-CONT");
    }
}

/// One network falls silent in the middle of a transaction, and a process of another server hangs: both are waited
/// for at the same time, and what is to be seen meanwhile is looked at meanwhile.
fn a_server_that_falls_silent_is_told_and_waited_for() {
    let kafka = Kafka::shared();
    let store = Store::postgres();
    let (server, _, url) = place(&store);
    let proxy = Proxy::start(server.port());
    let by_proxy = url.replace(&server.port().to_string(), &proxy.port().to_string());
    let (mut config, topic) = topic_of("silent", kafka, &store, &["1"]);
    patient(&mut config);
    config.set("land.url", by_proxy.as_str());
    let lander = Lander::start(&config);
    let (mut new, _) = topic_of("new", kafka, &store, &["1"]);
    new.set("land.url", by_proxy.as_str());
    let others = Store::on(Arc::new(Postgres::private()));
    let (mut hanging, hanging_topic) = topic_of("hangs", kafka, &others, &["1"]);
    patient(&mut hanging);
    let hanging = Lander::start(&hanging);
    wait_until("the first are landed", seconds(30), || {
        store.count("silent") == 1 && others.count("hangs") == 1
    });
    // The process hangs.
    let (_, database, _) = place(&others);
    let pid = others.query(&format!(
        "SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND application_name = 'tidegate'"
    ));
    let stopped = Stopped::new(&pid[0][0]);
    produce_all(kafka, &hanging_topic, &["2", "3"]);
    // The network falls silent while the server waits for a lock; then it has answered, and hears nothing more.
    trigger(
        &store,
        "silent",
        "BEFORE",
        "IF NEW.value = '2' THEN PERFORM pg_advisory_lock(7); PERFORM pg_advisory_unlock(7); END IF;",
    );
    let mut locked = Client::connect(&url, NoTls).unwrap();
    locked.batch_execute("SELECT pg_advisory_lock(7)").unwrap();
    produce_all(kafka, &topic, &["2", "3"]);
    let backends = |which: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND {which}");
        store.query(&sql)[0][0] == "1"
    };
    wait_until("it is in its transaction", seconds(30), || {
        backends("wait_event = 'advisory'")
    });
    proxy.freeze(true);
    let frozen = Instant::now();
    drop(locked);
    wait_until("the server waits for it", seconds(30), || {
        backends("state LIKE 'idle in transaction%'")
    });
    // Nor does it answer who comes new.
    let once = thread::spawn(move || (Lander::run(&new, &["--once"]), frozen.elapsed()));
    // Others cannot have the position, and are told why.
    let mut other = sink(&url, &Table::new("silent", &[])).unwrap();
    let known = other.positions(&topic).unwrap().remove(0);
    let Err(SinkError::Away(told)) = other.set_position(&topic, &known, Some(&known.position)) else {
        panic!("the position is locked")
    };
    assert!(told.contains("Another session holds it"), "{told}");
    wait_until("both have told", seconds(60), || {
        has_told(&lander) && has_told(&hanging)
    });
    wait_until("readiness says so too", seconds(30), || {
        let ready = lander.admin("/readyz").unwrap();
        ready.status == 503 && ready.body.contains("does not answer")
    });
    drop(stopped);
    wait_until("the rest is landed there", seconds(60), || {
        values(&others, "hangs") == ["1", "2", "3"]
    });
    // An idle connection that somebody closed is found without a batch.
    let mut idle = sink(&place(&others).2, &Table::new("idle", &[])).unwrap();
    others.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()");
    wait_until("it is found", seconds(30), || idle.tick().is_err());
    let (ended, took) = once.join().unwrap();
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert!(ended.stderr.contains("does not answer"), "{ended:?}");
    assert!(took < seconds(45), "{took:?}");
    poll("the server has ended the transaction", seconds(90), || {
        other.prepare().unwrap();
        other.set_position(&topic, &known, Some(&known.position)).ok()
    });
    assert!(frozen.elapsed() < seconds(90), "{:?}", frozen.elapsed());
    proxy.freeze(false);
    wait_until("the rest is landed", seconds(60), || {
        values(&store, "silent") == ["1", "2", "3"]
    });
    wait_until("it is ready again", seconds(30), || {
        lander.admin("/readyz").unwrap().status == 200
    });
}

fn a_missing_standby_holds_up_what_is_stored_and_leaves_nothing_behind() {
    let store = Store::on(Arc::new(Postgres::private()));
    let (_, _, url) = place(&store);
    let table = Table::new("standing", &[]);
    let mut first = sink(&url, &table).unwrap();
    begin(&mut first);
    first.close().unwrap();
    store.query("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
    store.query("SELECT pg_reload_conf()");
    let ours = |which: &str| {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidegate' AND {which}");
        store.query(&sql)[0][0].clone()
    };
    wait_until("the server waits for its standby", seconds(30), || {
        store.query("SHOW synchronous_standby_names") == [["nobody"]]
    });
    drop(sink(&url, &table).unwrap());
    wait_until("nothing is left of it", seconds(30), || ours("true") == "0");
    let mut second = sink(&url, &table).unwrap();
    let writes = thread::spawn(move || second.write(&batch(&["1"])).unwrap());
    wait_until("what is stored waits for the standby", seconds(30), || {
        ours("wait_event = 'SyncRep'") == "1"
    });
    store.query("ALTER SYSTEM RESET synchronous_standby_names");
    store.query("SELECT pg_reload_conf()");
    assert!(matches!(writes.join().unwrap(), Written::Done(counts) if counts.valid == 1));
}
