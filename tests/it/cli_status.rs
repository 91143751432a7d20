//! `tidegate status` beside a gateway and a lander that run, that end, and that are not there.

use std::fs::{self, File};
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::cli::{Ended, run};
use crate::support::gateway::{Config, Gateway, Killed, NOWHERE, command, send};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::store::Store;
use crate::support::{FORM, free_port, poll, seconds, unique, wait_until};

cases!["cli::status":
    it_shows_the_lag_going_to_0_and_a_lander_that_has_stopped [Kafka],
    nobody_there_is_exit_75_with_what_to_do [],
    a_folder_with_faults_tells_those_that_are_seen [],
    a_wrong_token_is_exit_2 [],
    a_watch_outlives_the_gateway_and_ends_with_a_signal [],
    a_watch_that_nobody_reads_ends_quietly [],
];

/// A token as the configuration wants one.
const TOKEN: &str = "a-token-of-the-admin-listener";

/// `tidegate status ARGUMENTS` with these variables, in a folder without a configuration file.
fn status(variables: &[(&str, &str)], arguments: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command();
    command.envs(variables.iter().copied());
    let ended = run(folder.path(), command, &[&["status"], arguments].concat());
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    ended
}

/// An address where nobody listens.
fn nobody() -> String {
    format!("127.0.0.1:{}", free_port())
}

#[track_caller]
fn json(ended: &Ended) -> Value {
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"))
}

fn it_shows_the_lag_going_to_0_and_a_lander_that_has_stopped() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("seen");
    kafka.create_topic(&topic, 1, &[]);
    let mut config = store.config(kafka);
    config.landed("seen", &topic, &[("field_count", 1.into())]);
    let gateway = Gateway::start(&config);
    let mut lander = Lander::start(&config);
    for form in ["a=1", "a=2", "a=3&b=4"] {
        let answer = gateway.client().post("/seen", FORM, form.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let (admin, listener) = (format!("http://{}", gateway.admin), format!("http://{}", lander.admin));
    let places = ["--admin", &admin, "--lander", &listener];
    let in_json = [&places[..], &["--json"]].concat();

    let landed = poll("status --json says that all is landed", seconds(60), || {
        let ended = status(&[], &in_json);
        assert!(ended.code == Some(0) && ended.stderr.is_empty(), "{ended:?}");
        let seen = json(&ended);
        let partition = &seen["lander"]["partitions"][0];
        // The end, and that Kafka answers, are told a second later.
        let done = partition["position"] == 3 && partition["end"] == 3 && seen["lander"]["kafka_up"] == true;
        done.then_some(seen)
    });
    assert_eq!(landed["gateway"]["wal"]["acked"], 3);
    assert_eq!(landed["lander"]["lag_records"], 0);
    assert_eq!(landed["lander"]["stored"]["valid"], 2);

    let ended = status(&[], &places);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for words in [
        &*format!("gateway under-test on {}, version", gateway.admin),
        "acknowledged 3, committed 3, next 4",
        "backlog       0 records",
        &*format!("lander under-test on {}, version", lander.admin),
        "2 valid, 1 invalid, 0 duplicates",
        "0 records in 1 partition\n",
    ] {
        assert!(
            ended.stdout.contains(words),
            "nothing like {words:?} in {}",
            ended.stdout
        );
    }
    let row = ended.stdout.lines().last().unwrap();
    let cells: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(cells, ["seen", &topic, "0", "3", "3", "0"], "{}", ended.stdout);

    lander.sigkill();
    let ended = status(&[], &places);
    let line = format!(
        "no lander answers on {} (--lander): start one with `tidegate land`, or, if one runs, name its listener with --lander URL\n",
        lander.admin
    );
    assert!(ended.code == Some(0) && ended.stdout.ends_with(&line), "{ended:?}");
    assert!(ended.stdout.contains("gateway under-test"), "{ended:?}");
    let ended = status(&[], &in_json);
    let seen = json(&ended);
    assert!(
        ended.code == Some(0) && seen["lander"].is_null() && seen["gateway"].is_object(),
        "{ended:?}"
    );
    assert!(ended.stderr.contains(line.trim_end()), "{ended:?}");
}

fn nobody_there_is_exit_75_with_what_to_do() {
    let (admin, lander) = (nobody(), nobody());
    let ended = status(
        &[("TIDEGATE_ADMIN__LISTEN", &admin), ("TIDEGATE_LAND__LISTEN", &lander)],
        &[],
    );
    assert!(ended.code == Some(75) && ended.stdout.is_empty(), "{ended:?}");
    for words in [
        format!(
            "no gateway answers on {admin} (admin.listen, environment TIDEGATE_ADMIN__LISTEN): start one with `tidegate serve`"
        ),
        format!(
            "no lander answers on {lander} (land.listen, environment TIDEGATE_LAND__LISTEN): start one with `tidegate land`"
        ),
        "--admin URL".to_owned(),
    ] {
        assert!(ended.stderr.contains(&words), "nothing like {words:?} in {ended:?}");
    }
    let ended = status(&[], &["--json", "--admin", &admin, "--lander", &lander]);
    assert_eq!(ended.code, Some(75), "{ended:?}");
    assert_eq!(ended.stdout, "{\"gateway\":null,\"lander\":null}\n");
    for place in ["https://127.0.0.1:1", "http://user:password@127.0.0.1:1", "4711"] {
        let ended = status(&[], &["--admin", place]);
        assert!(
            ended.code == Some(2) && ended.stderr.contains("http://HOST:PORT"),
            "{ended:?}"
        );
    }
}

fn a_folder_with_faults_tells_those_that_are_seen() {
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    let answer = gateway
        .client()
        .post("/v1/topics/t", "application/json", b"{}")
        .unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    let wal = gateway.wal();
    let lander = nobody();
    // A gateway has it that is not asked there.
    let admin = nobody();
    let ended = status(
        &[
            ("TIDEGATE_WAL__PATH", wal.to_str().unwrap()),
            ("TIDEGATE_ADMIN__LISTEN", &admin),
            ("TIDEGATE_LAND__LISTEN", &lander),
        ],
        &[],
    );
    for words in [
        &*format!("process {} has the log in", gateway.pid()),
        &admin,
        "--admin URL",
    ] {
        assert!(
            ended.code == Some(75) && ended.stderr.contains(words),
            "nothing like {words:?} in {ended:?}"
        );
    }
    gateway.sigkill();
    let question = ["--wal", wal.to_str().unwrap(), "--lander", &lander];
    let ended = status(&[], &question);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let look = format!(
        "  checked       only the end of the log was looked at: `tidegate wal verify --wal {}`",
        wal.display()
    );
    assert!(
        ended.stdout.contains(&look) && !ended.stdout.contains("on disk"),
        "{ended:?}"
    );
    fs::remove_file(wal.join("witness")).unwrap();
    fs::create_dir_all(wal.join("damaged/gen-1")).unwrap();
    let ended = status(&[], &question);
    for words in [
        "  damage        main: the witness is missing",
        "main: 1 generation set aside in 'damaged'",
        "wal verify",
    ] {
        assert!(ended.stdout.contains(words), "{words}: {ended:?}");
    }
    let faults = &json(&status(&[], &[&question[..], &["--json"]].concat()))["gateway"]["wal"]["faults"];
    assert_eq!(faults.as_array().map(Vec::len), Some(2), "{faults}");
}

fn a_wrong_token_is_exit_2() {
    let gateway = Gateway::start(Config::new(NOWHERE).set("admin.token", TOKEN));
    let lander = nobody();
    let asked = |token: &[(&str, &str)]| status(token, &["--admin", &gateway.admin, "--lander", &lander]);
    for token in [&[][..], &[("TIDEGATE_ADMIN__TOKEN", "a-token-of-somebody-else")]] {
        let ended = asked(token);
        assert!(
            ended.code == Some(2) && ended.stderr.contains("set admin.token"),
            "{ended:?}"
        );
        assert!(!ended.stderr.contains("somebody-else"), "{ended:?}");
    }
    let ended = asked(&[("TIDEGATE_ADMIN__TOKEN", TOKEN)]);
    assert!(
        ended.code == Some(0) && ended.stdout.contains("gateway under-test"),
        "{ended:?}"
    );
    // The ingest listener is no admin listener.
    let ended = status(&[], &["--admin", &gateway.ingest, "--lander", &lander]);
    assert!(
        ended.code == Some(2) && ended.stderr.contains("is no gateway"),
        "{ended:?}"
    );
}

/// `tidegate status --watch` of this gateway and no lander.
fn watch(admin: &str, arguments: &[&str], stdout: impl Into<Stdio>) -> Child {
    command()
        .args(["status", "--watch", "--admin", admin, "--lander", &nobody()])
        .args(arguments)
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn a_watch_outlives_the_gateway_and_ends_with_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let admin = nobody();
    let mut gateway = Gateway::start(Config::new(NOWHERE).set("admin.listen", admin.as_str()));
    let output = |name: &str| File::create(folder.path().join(name)).unwrap();
    let said = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let mut lines = Killed(watch(&admin, &["--json"], output("lines")));
    let mut blocks = Killed(watch(&admin, &[], output("blocks")));
    let seen = |there: bool| {
        let last = said("lines").lines().last().map(|line| line.contains("under-test"));
        let block = said("blocks");
        let block = block.rsplit("Z\n\n").next().unwrap_or_default();
        let word = if there {
            "gateway under-test on"
        } else {
            "no gateway answers on"
        };
        last == Some(there) && block.starts_with(word)
    };
    wait_until("the gateway is seen", seconds(20), || seen(true));
    gateway.sigkill();
    wait_until("its end is seen", seconds(20), || seen(false));
    gateway.restart();
    wait_until("its return is seen", seconds(20), || seen(true));
    for watch in [&mut lines, &mut blocks] {
        send(watch.0.id(), "-TERM");
        let status = poll("the watch has ended", seconds(10), || watch.0.try_wait().unwrap());
        assert_eq!(status.code(), Some(0));
    }
    for line in said("lines").lines() {
        let seen: Value = serde_json::from_str(line).unwrap();
        assert!(seen["lander"].is_null(), "{line}");
    }
    assert!(!said("blocks").contains('\x1b'), "a file is no terminal");
}

fn a_watch_that_nobody_reads_ends_quietly() {
    let mut watch = Killed(watch(&nobody(), &[], Stdio::piped()));
    drop(watch.0.stdout.take());
    let status = poll("the watch has ended", seconds(10), || watch.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}
