//! `tidegate wal`: the same records from a running gateway and from its folder, out of one log and into another, and
//! from a dead machine's disk to Kafka.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use serde_json::{Value, json};

use crate::cli::{Ended, run};
use crate::support::gateway::{Config, Gateway, Killed, NOWHERE, command, send};
use crate::support::kafka::Kafka;
use crate::support::lander::Lander;
use crate::support::store::Store;
use crate::support::{JSON, poll, seconds, unique, wait_until};

cases!["wal":
    a_gateway_and_its_folder_show_the_same [],
    a_tail_follows_what_comes_in [],
    an_export_keeps_identities_in_another_log [],
    what_cannot_be_exported_or_imported_is_told [],
    where_nothing_is_that_is_said [],
    a_pulled_disk_is_replayed_while_the_original_restarts [Kafka],
    a_replay_tells_what_kafka_refuses_and_sends_the_rest [Kafka],
    a_replay_goes_to_a_running_gateway [],
    what_a_worse_copy_lacked_is_sent_from_a_better_one [],
    a_replay_without_kafka_can_be_gone_on_with [Kafka],
];

/// `tidegate wal ARGUMENTS`, in a folder without a configuration file.
fn wal(arguments: &[&str]) -> Ended {
    let folder = tempfile::tempdir().unwrap();
    let ended = run(folder.path(), command(), &[&["wal"], arguments].concat());
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    ended
}

/// As [`wal`]; it succeeds.
#[track_caller]
fn done(arguments: &[&str]) -> String {
    let ended = wal(arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    ended.stdout
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A log with records of several topics, keys and kinds, that waits for Kafka.
fn filled() -> Gateway {
    let mut config = Config::new(NOWHERE);
    config.set("wal.generation_bytes", "1 MiB");
    let gateway = Gateway::start(&config);
    let client = gateway.client();
    for n in 0..120_u32 {
        let path = format!("/v1/topics/t{}?key=k{}", n % 3, n % 5);
        let body = format!(r#"{{"n":{n},"name":"needle-{}"}}"#, n % 40);
        let answer = client.post(&path, JSON, body.as_bytes()).unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
    let large = format!(r#"{{"large":"{}"}}"#, "x".repeat(300_000));
    let answer = client.post("/v1/topics/large", JSON, large.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    gateway
}

fn a_gateway_and_its_folder_show_the_same() {
    let mut gateway = filled();
    let admin = format!("http://{}", gateway.admin);
    let folder = gateway.wal();
    let questions: &[&[&str]] = &[
        &["list"],
        &["list", "--json", "--limit", "0"],
        &["list", "--json", "--topic", "t1", "--limit", "7"],
        &["list", "--json", "--key", "k3"],
        &["list", "--json", "--text", "needle-7\""],
        &["list", "--json", "--from-seq", "30", "--to-seq", "35"],
        &["list", "--json", "--limit", "0", "--since", "1 h"],
        &["list", "--json", "--until", "1 h"],
        &["show", "17"],
        &["show", "17", "--json"],
        &["tail", "-n", "3", "--json"],
        &["export", "--topic", "t2", "--json"],
    ];
    let online: Vec<String> = (questions.iter())
        .map(|question| done(&[question, &["--admin", &admin][..]].concat()))
        .collect();
    let of = |at: usize| lines(&online[at]);
    assert_eq!(of(1).len(), 121);
    assert!(of(2).len() == 7 && of(2).iter().all(|record| record["topic"] == "t1"));
    assert!(of(3).len() == 24 && of(3).iter().all(|record| record["key"] == "k3"));
    assert_eq!(of(4).len(), 3, "7, 47 and 87");
    let places: Vec<u64> = of(5).iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(places, [30, 31, 32, 33, 34, 35]);
    assert_eq!(of(6).len(), of(1).len());
    assert_eq!(of(7).len(), 0);
    assert!(
        online[8].contains("needle-16") && online[8].contains("tidegate-seq"),
        "{}",
        online[8]
    );
    assert_eq!(of(9)[0]["value"], r#"{"n":16,"name":"needle-16"}"#);
    assert_eq!(of(10).len(), 3);
    assert_eq!(of(11).len(), 40);

    // The folder of a running gateway is not read behind its back.
    let busy = wal(&["list", "--wal", text(&folder)]);
    assert_eq!(busy.code, Some(4), "{busy:?}");
    assert!(
        busy.stderr.contains("--admin URL") && busy.stdout.is_empty(),
        "{busy:?}"
    );

    gateway.sigkill();
    for (question, online) in questions.iter().zip(&online) {
        let offline = done(&[question, &["--wal", text(&folder)][..]].concat());
        assert_eq!(&offline, online, "{question:?}");
    }
    let gone = wal(&["show", "9999", "--wal", text(&folder)]);
    assert_eq!(gone.code, Some(1));
    assert!(gone.stderr.contains("its last one is"), "{gone:?}");
    let nonsense = wal(&["list", "--from-seq", "9", "--to-seq", "3", "--wal", text(&folder)]);
    assert_eq!(nonsense.code, Some(2), "{nonsense:?}");
    let follow = wal(&["tail", "--follow", "--wal", text(&folder)]);
    assert_eq!(follow.code, Some(2), "{follow:?}");
}

fn a_tail_follows_what_comes_in() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let admin = format!("http://{}", gateway.admin);
    let child = command()
        .args(["wal", "tail", "--follow", "--json", "--admin", &admin])
        .current_dir(folder.path())
        .stdout(fs::File::create(&out).unwrap())
        .spawn()
        .unwrap();
    let mut tail = Killed(child);
    let client = gateway.client();
    for n in 1..=3 {
        let body = format!(r#"{{"n":{n}}}"#);
        client.post("/v1/topics/t", JSON, body.as_bytes()).unwrap();
        wait_until("the tail shows it", seconds(10), || {
            lines(&fs::read_to_string(&out).unwrap()).len() == n
        });
    }
    send(tail.0.id(), "-TERM");
    let status = poll("it ends", seconds(10), || tail.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

fn an_export_keeps_identities_in_another_log() {
    let mut source = filled();
    source.sigkill();
    let folder = tempfile::tempdir().unwrap();
    let (plain, packed) = (folder.path().join("all.jsonl"), folder.path().join("all.jsonl.zst"));
    done(&["export", "--wal", text(&source.wal()), "-o", text(&plain)]);
    // What an export that was cut off has left is in nobody's way.
    fs::write(folder.path().join("all.jsonl.zst.partial"), "half").unwrap();
    done(&["export", "--wal", text(&source.wal()), "-o", text(&packed)]);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&packed).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let unpacked = Command::new("zstd").args(["-dc", text(&packed)]).output();
    if let Ok(unpacked) = unpacked {
        assert_eq!(unpacked.stdout, fs::read(&plain).unwrap());
    }
    let exported = fs::read_to_string(&plain).unwrap();
    let members = ["wal", "seq", "topic", "key", "headers", "received_ms"];
    for record in lines(&exported) {
        let names: BTreeSet<&str> = record.as_object().unwrap().keys().map(String::as_str).collect();
        let value = if names.contains("value") {
            "value"
        } else {
            "value_base64"
        };
        assert_eq!(names, members.into_iter().chain([value]).collect());
    }

    // Into a running gateway, and into a folder.
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let admin = format!("http://{}", gateway.admin);
    done(&["import", text(&packed), "--admin", &admin]);
    assert_eq!(done(&["export", "--admin", &admin]), exported);
    let other = folder.path().join("other");
    let made = wal(&["import", text(&plain), "--wal", text(&other)]);
    assert_eq!(made.code, Some(0), "{made:?}");
    for words in ["made a new log in", "identity", "as new sequences 1 to 121. A file"] {
        assert!(made.stderr.contains(words), "{words}: {made:?}");
    }
    assert_eq!(done(&["export", "--wal", text(&other)]), exported);
    // Once more is not refused, but told.
    let more = wal(&["import", text(&plain), "--json", "--wal", text(&other)]);
    assert_eq!(
        lines(&more.stdout),
        [json!({"records": 121, "first_seq": 122, "last_seq": 242})]
    );
    assert_eq!(more.code, Some(0), "{more:?}");
    let words = "as new sequences 122 to 242, behind those that the log had before";
    assert!(
        more.stderr.contains(words) && !more.stderr.contains("made a new log"),
        "{more:?}"
    );
    // Their place is told where it is not their identity's.
    let listed = lines(&done(&["list", "--json", "--limit", "1", "--wal", text(&other)]));
    assert_eq!(listed[0]["sequence"], 1);

    // An import that was cut off says where to go on.
    let half = exported.lines().take(40).collect::<Vec<_>>().join("\n") + "\n{\"wal\":\"x\"}\n";
    let broken = folder.path().join("broken.jsonl");
    fs::write(&broken, half).unwrap();
    let third = folder.path().join("third");
    let ended = wal(&["import", text(&broken), "--wal", text(&third)]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("record 41") && ended.stderr.contains("`--skip 40` goes on"),
        "{ended:?}"
    );

    // A signal ends both sides of a pipe: where the lines end then is not the end of the export.
    let fourth = folder.path().join("fourth");
    let errors = folder.path().join("errors");
    let child = command()
        .args(["wal", "import", "-", "--wal", text(&fourth)])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stderr(fs::File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let mut import = Killed(child);
    let mut pipe = import.0.stdin.take().unwrap();
    for line in exported.lines().take(7) {
        writeln!(pipe, "{line}").unwrap();
    }
    let told = |words: &str| fs::read_to_string(&errors).unwrap().contains(words);
    // It must be there to get the signal: the first thing that it does with a line is to look at it.
    wait_until("it waits for more", seconds(20), || unread(&pipe) == 0);
    send(import.0.id(), "-INT");
    wait_until("it says that it stops", seconds(20), || told("stopping"));
    drop(pipe);
    let status = poll("it ends", seconds(20), || import.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(75));
    assert!(told("`--skip 7` goes on"), "{}", fs::read_to_string(&errors).unwrap());
}

/// Bytes in a pipe that nobody has read yet.
fn unread(pipe: &ChildStdin) -> usize {
    rustix::io::ioctl_fionread(pipe).unwrap() as usize
}

fn what_cannot_be_exported_or_imported_is_told() {
    let mut source = filled();
    source.sigkill();
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("all.zst");
    done(&["export", "--wal", text(&source.wal()), "-o", text(&packed)]);
    let again = wal(&["export", "--wal", text(&source.wal()), "-o", text(&packed)]);
    assert_eq!(again.code, Some(2), "{again:?}");
    assert!(again.stderr.contains("nothing was changed"));
    // A flipped bit is found by the checksum.
    let mut bytes = fs::read(&packed).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&packed, bytes).unwrap();
    let ended = wal(&["import", text(&packed), "--wal", text(&folder.path().join("new"))]);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stderr.contains("nothing was changed"), "{ended:?}");
    assert!(!folder.path().join("new").exists());
    let missing = wal(&["import", "/nowhere/at/all", "--wal", text(&folder.path().join("new"))]);
    assert_eq!(missing.code, Some(2), "{missing:?}");
    assert!(missing.stderr.contains("wal export -o FILE"), "{missing:?}");
    // Nothing is made for a name that is a mistake.
    let whole = done(&["export", "--wal", text(&source.wal())]);
    let packed = folder.path().join("all.jsonl");
    fs::write(&packed, whole).unwrap();
    let garbage = folder.path().join("garbage");
    fs::write(&garbage, "no record\n").unwrap();
    let made = folder.path().join("of-garbage");
    let ended = wal(&["import", text(&garbage), "--wal", text(&made)]);
    assert!(ended.code == Some(1) && !made.exists(), "{ended:?}");
    // A folder with other things in it is no place for a log.
    let ended = wal(&["import", text(&packed), "--wal", text(folder.path())]);
    assert!(
        ended.code == Some(2) && !folder.path().join("identity").exists(),
        "{ended:?}"
    );
    for (file, place) in [(Path::new("/nowhere"), "made"), (&packed, "no/such")] {
        let place = folder.path().join(place);
        let ended = wal(&["import", text(file), "--wal", text(&place)]);
        assert!(
            !place.exists() && ended.stderr.contains("nothing was changed"),
            "{ended:?}"
        );
    }
    let nowhere = wal(&["list", "--wal", text(&folder.path().join("nowhere"))]);
    assert_eq!(nowhere.code, Some(2), "{nowhere:?}");
    assert!(nowhere.stderr.contains("--wal DIR"), "{nowhere:?}");
    let nobody = wal(&["export", "--admin", "http://127.0.0.1:9"]);
    assert_eq!(nobody.code, Some(75), "{nobody:?}");
    let strange = wal(&["export", "--wal", text(folder.path())]);
    assert_eq!(strange.code, Some(2), "{strange:?}");
}

/// Each of `questions` to a log ends with its code, nothing on stdout, and its words.
#[track_caller]
fn said(at: [&str; 2], questions: &[(&[&str], i32, &str)]) {
    for (question, code, words) in questions {
        let folder = tempfile::tempdir().unwrap();
        let ended = run(folder.path(), command(), &[question, &at[..]].concat());
        assert_eq!(
            (ended.code, ended.stdout.as_str()),
            (Some(*code), ""),
            "{question:?}: {ended:?}"
        );
        assert!(ended.stderr.contains(words), "{question:?}: {words}: {ended:?}");
    }
}

fn where_nothing_is_that_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("none.jsonl");
    fs::write(&file, "").unwrap();
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    assert!(gateway.sigterm(seconds(30)).success());
    let empty = gateway.wal();
    said(
        ["--wal", text(&empty)],
        &[
            (&["wal", "list"], 0, "the log is empty: it has taken no record yet"),
            (&["wal", "list", "--json"], 0, "the log is empty"),
            (&["wal", "tail"], 0, "the log is empty"),
            (&["wal", "show", "0"], 2, "sequences begin at 1"),
            (&["wal", "show", "1"], 1, "it has taken none yet"),
            (&["wal", "rewind", "--from-seq", "0"], 2, "sequences begin at 1"),
            (&["wal", "rewind", "--from-seq", "1"], 1, "has acknowledged nothing yet"),
            (
                &["wal", "rewind", "--from-seq", "1", "--yes"],
                1,
                "has acknowledged nothing yet",
            ),
            (&["held", "list"], 0, "nothing is held"),
            (&["held", "list", "--records", "--json"], 0, "nothing is held"),
            (&["dead-letters", "list"], 0, "there are no dead letters"),
            (
                &["dead-letters", "list", "--topic", "t"],
                0,
                "there are no dead letters of topic t",
            ),
            (&["dead-letters", "requeue", "--all"], 1, "`tidegate dead-letters list`"),
            (
                &["dead-letters", "requeue", "7"],
                1,
                "no dead letter that waits is named 7",
            ),
            (
                &["dead-letters", "discard", "--topic", "t"],
                1,
                "no dead letter of topic t waits",
            ),
            (
                &["dead-letters", "discard", "--all", "--yes"],
                1,
                "no dead letter waits, so none was removed",
            ),
        ],
    );
    let gateway = filled();
    let admin = format!("http://{}", gateway.admin);
    said(
        ["--admin", &admin],
        &[
            (
                &["wal", "list", "--topic", "t9"],
                0,
                "no record matches: the log has the sequences 1 to 121",
            ),
            (
                &["wal", "rewind", "--from-seq", "5", "--yes"],
                1,
                "has acknowledged nothing yet",
            ),
            (&["held", "list", "--topic", "t"], 0, "no record of topic t is held"),
            (&["held", "discard", "--topic", "t"], 1, "no record of topic t is held"),
            (&["held", "discard", "--topic", "t", "--yes"], 1, "`tidegate held list`"),
            (
                &["held", "redirect", "--topic", "t", "--to", "u", "--yes"],
                1,
                "so none was redirected to u",
            ),
            (
                &["dead-letters", "requeue", "--topic", "t"],
                1,
                "no dead letter of topic t waits",
            ),
            (
                &["dead-letters", "discard", "9", "--yes"],
                1,
                "no dead letter that waits is named 9",
            ),
        ],
    );
}

/// Posts `count` records to a source and gives their sequences.
fn post(gateway: &Gateway, source: &str, count: u32) {
    let client = gateway.client();
    for chunk in (0..count).collect::<Vec<_>>().chunks(500) {
        let body: Vec<String> = chunk
            .iter()
            .map(|n| format!(r#"{{"n":"{n}","key":"{}"}}"#, n % 7))
            .collect();
        let path = format!("/v1/topics/{source}?key_field=key");
        let answer = client
            .post(&path, JSON, format!("[{}]", body.join(",")).as_bytes())
            .unwrap();
        assert_eq!(answer.status, 202, "{answer:?}");
    }
}

fn a_pulled_disk_is_replayed_while_the_original_restarts() {
    let kafka = Kafka::shared();
    let store = Store::sqlite();
    let topic = unique("pulled");
    kafka.create_topic(&topic, 3, &[]);
    let mut config = store.config(kafka);
    config.landed("pulled", &topic, &[("field_count", 2.into())]);
    let mut away = config.clone();
    away.set("kafka.bootstrap_servers", NOWHERE)
        .set("wal.generation_bytes", "1 MiB");
    let mut original = Gateway::start(&away);
    post(&original, &topic, 20_000);
    original.sigkill();
    let folder = tempfile::tempdir().unwrap();
    let pulled = folder.path().join("pulled");
    let copied = Command::new("cp")
        .args(["-r", text(&original.wal()), text(&pulled)])
        .status();
    assert!(copied.unwrap().success());

    original.set("kafka.bootstrap_servers", kafka.bootstrap());
    original.restart();
    // Slow enough to be killed in the middle, again and again; each goes on where the last one was.
    let progress = folder.path().join("progress");
    let arguments = [
        "wal",
        "replay",
        "--wal",
        text(&pulled),
        "--bootstrap-servers",
        kafka.bootstrap(),
        "--resume",
        text(&progress),
    ];
    for _ in 0..3 {
        let before = fs::read(&progress).ok();
        let slow = command()
            .args(arguments)
            .args(["--rate", "100 KiB"])
            .current_dir(folder.path())
            .spawn()
            .unwrap();
        let _slow = Killed(slow);
        wait_until("some of it is sent", seconds(20), || {
            fs::read(&progress).ok() != before && progress.exists()
        });
    }
    let place: Value = serde_json::from_slice(&fs::read(&progress).unwrap()).unwrap();
    assert!(
        place["main"]["next"].as_u64().unwrap() < 20_000,
        "the kills were in the middle: {place}"
    );
    let ended = run(folder.path(), command(), &arguments);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    original.wait_drained(seconds(60));

    let lander = Lander::start(&config);
    wait_until("both copies are landed", seconds(60), || {
        lander.metric("tidegate_land_lag_records") == 0.0 && store.file().exists() && store.count("pulled") >= 20_000
    });
    let rows = store.query("SELECT count(*), count(DISTINCT seq), min(seq), max(seq) FROM pulled");
    assert_eq!(rows, [["20000", "20000", "1", "20000"]]);
    assert!(kafka.count(&topic).unwrap() > 30_000, "both have sent");
    assert!(lander.metric("tidegate_land_duplicates_total") > 10_000.0);
    assert_eq!(store.count("rejected"), 0);
}

fn a_replay_tells_what_kafka_refuses_and_sends_the_rest() {
    let kafka = Kafka::shared();
    let (good, missing) = (unique("good"), unique("missing"));
    kafka.create_topic(&good, 1, &[("max.message.bytes", "20000")]);
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    let client = gateway.client();
    for n in 0..50 {
        let body = match n {
            20 => {
                let noise: String = (0..3000)
                    .map(|at| format!("{:09x}", (at * 2_654_435_761_u64) ^ (at << 21)))
                    .collect();
                format!(r#"{{"n":{n},"noise":"{noise}"}}"#)
            }
            _ => format!(r#"{{"n":{n}}}"#),
        };
        let topic = if n % 10 == 3 { &missing } else { &good };
        let answer = client
            .post(&format!("/v1/topics/{topic}"), JSON, body.as_bytes())
            .unwrap();
        assert_eq!(answer.status, 202);
    }
    gateway.sigkill();
    let path = gateway.wal();
    let replay = |more: &[&str]| {
        let to = [
            "replay",
            "--wal",
            text(&path),
            "--bootstrap-servers",
            kafka.bootstrap(),
            "--json",
        ];
        wal(&[&to[..], more].concat())
    };
    let dry = replay(&["--dry-run"]);
    assert_eq!(dry.code, Some(0), "{dry:?}");
    let sums: Value = serde_json::from_str(&dry.stdout).unwrap();
    assert_eq!((&sums["records"], &sums["topics"][&missing]), (&50.into(), &5.into()));
    assert_eq!(kafka.count(&good), Some(0));

    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("place");
    let resume = ["--all", "--resume", text(&place)];
    assert_eq!(replay(&[&resume[..], &["--dry-run"]].concat()).code, Some(0));
    let ended = replay(&resume);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("sequence 21 of") && ended.stderr.contains("MessageSizeTooLarge"),
        "{ended:?}"
    );
    assert!(ended.stderr.contains("does not exist in Kafka"), "{ended:?}");
    let sums: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&sums["records"], &sums["refused"]), (&44.into(), &6.into()));
    let sent: Vec<u64> = kafka
        .read_topic(&good, true)
        .iter()
        .map(|message| message.seq())
        .collect();
    let expected: Vec<u64> = (1..=50).filter(|seq| seq % 10 != 4 && *seq != 21).collect();
    assert_eq!(sent, expected, "in the order of the log");
    // Once the causes are gone, what was refused is sent, and nothing else.
    kafka.create_topic(&missing, 1, &[]);
    let ended = replay(&resume);
    assert_eq!(ended.code, Some(1), "{ended:?}");
    kafka.wait_for_count(&missing, 5, seconds(10));
    kafka.alter_topic(&good, "max.message.bytes", "1000000");
    wait_until("the large one is taken", seconds(30), || {
        replay(&resume).code == Some(0)
    });
    kafka.wait_for_count(&good, 45, seconds(10));
    assert_eq!(kafka.count(&missing), Some(5));
    // Only what is asked for.
    let ended = replay(&["--topic", &missing, "--to-seq", "30"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    kafka.wait_for_count(&missing, 8, seconds(10));
}

fn a_replay_goes_to_a_running_gateway() {
    let mut source = filled();
    source.sigkill();
    let exported = done(&["export", "--wal", text(&source.wal())]);
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let admin = format!("http://{}", gateway.admin);
    let told = done(&["replay", "--wal", text(&source.wal()), "--admin", &admin]);
    assert!(told.contains("  t1: 40\n"), "{told}");
    assert_eq!(done(&["export", "--admin", &admin]), exported);
}

fn what_a_worse_copy_lacked_is_sent_from_a_better_one() {
    let mut source = filled();
    source.sigkill();
    let (good, folder) = (source.wal(), tempfile::tempdir().unwrap());
    let (bad, place) = (folder.path().join("copy"), folder.path().join("place"));
    assert!(
        Command::new("cp")
            .arg("-r")
            .arg(&good)
            .arg(&bad)
            .status()
            .unwrap()
            .success()
    );
    for entry in fs::read_dir(&bad).unwrap().flatten() {
        let data = entry.path().join("db");
        if let Ok(mut bytes) = fs::read(&data) {
            let from = bytes.len() / 8;
            bytes[from..].fill(0);
            fs::write(&data, bytes).unwrap();
        }
    }
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let admin = format!("http://{}", gateway.admin);
    let replay = |from: &Path| {
        let resume = ["--admin", &admin, "--resume", text(&place)];
        wal(&[&["replay", "--wal", text(from)], &resume[..]].concat())
    };
    let ended = replay(&bad);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let ended = replay(&good);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let sorted = |exported: String| {
        let mut lines: Vec<String> = exported.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    let there = sorted(done(&["export", "--admin", &admin]));
    assert_eq!(there, sorted(done(&["export", "--wal", text(&good)])));
}

fn a_replay_without_kafka_can_be_gone_on_with() {
    let kafka = Kafka::shared();
    let topic = unique("later");
    kafka.create_topic(&topic, 1, &[]);
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    post(&gateway, &topic, 1000);
    gateway.sigkill();
    let folder = tempfile::tempdir().unwrap();
    let progress = folder.path().join("progress");
    let path = gateway.wal();
    let child = command()
        .args(["wal", "replay", "--wal", text(&path), "--bootstrap-servers", NOWHERE])
        .args(["--resume", text(&progress)])
        .current_dir(folder.path())
        .stderr(fs::File::create(folder.path().join("stderr")).unwrap())
        .stdout(fs::File::create(folder.path().join("stdout")).unwrap())
        .spawn()
        .unwrap();
    let mut replay = Killed(child);
    // It waits for Kafka, and says so; a signal ends that.
    wait_until("it says that it waits", seconds(20), || {
        fs::read_to_string(folder.path().join("stderr")).is_ok_and(|text| text.contains("waiting"))
    });
    let second = wal(&[
        "replay",
        "--wal",
        text(&path),
        "--bootstrap-servers",
        NOWHERE,
        "--resume",
        text(&progress),
    ]);
    assert!(
        second.code == Some(75) && second.stderr.contains("another command uses"),
        "{second:?}"
    );
    send(replay.0.id(), "-TERM");
    let status = poll("it ends", seconds(20), || replay.0.try_wait().unwrap());
    assert_eq!(status.code(), Some(75));
    let stderr = fs::read_to_string(folder.path().join("stderr")).unwrap();
    assert!(stderr.contains("--resume"), "{stderr}");
    let to = [
        "replay",
        "--wal",
        text(&path),
        "--bootstrap-servers",
        kafka.bootstrap(),
        "--resume",
        text(&progress),
    ];
    done(&to);
    assert_eq!(kafka.count(&topic), Some(1000));
    let again = wal(&to);
    assert!(
        again.code == Some(0) && again.stderr.contains("was complete already"),
        "{again:?}"
    );
    assert_eq!(kafka.count(&topic), Some(1000), "nothing is left to be sent");
    let never = wal(&[&to[..], &["--rate", "0"]].concat());
    assert!(
        never.code == Some(2) && never.stderr.contains("would send nothing"),
        "{never:?}"
    );
    // The place belongs to one log and one question.
    let other = wal(&[&to[..], &["--topic", "x"]].concat());
    assert_eq!(other.code, Some(2), "{other:?}");
}
