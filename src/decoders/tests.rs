//! Every decoder with arbitrary bytes, with valid ones that were changed, and with each file of its corpus.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::*;
use crate::record::{self, Origin};

/// Cases of a decoder: all of them together take seconds. `tests/fuzz/` is for more.
const CASES: u32 = 4000;

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fuzz/corpus")
        .join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn sample(value: &[u8]) -> Record {
    let mut record = record::tests::sample();
    record.value = Some(value.to_vec());
    record.headers.push(("h".into(), vec![0xff]));
    record
}

/// What our own encoders make.
fn seeds(name: &str) -> Vec<Vec<u8>> {
    let records = [sample(br#"{"a":1}"#), sample(&[0; 300]), sample(b"\xff\0")];
    let encoded = |record: &Record| bincode::encode_to_vec(record, ENCODING).unwrap();
    let frames = |lz4, entries: &[Vec<u8>]| -> Vec<Vec<u8>> {
        let frames = wal::Framer::new(KEY, lz4).frames(1, entries.iter().map(Vec::as_slice));
        frames.into_iter().map(|frame| frame.bytes).collect()
    };
    let entries: Vec<Vec<u8>> = records.iter().map(encoded).collect();
    let id = WalId(uuid::Uuid::from_bytes([7; 16]));
    let texts = |texts: &[&str]| texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    match name {
        "form" => texts(&["test01=111&test02=222&a=ddd", "a=1&b=2+%2B&a=3&%61=%E4%BD%A0", "a&b=&=c&&d=x=y"]),
        "json" => texts(&[
            r#"{"k":"v","b":[1,{"c":null}],"d":"\u00e9\ud83d\ude00"}"#,
            r#" [{"k":1.50},{"k":true,"k":null},{"x":"]"}] "#,
        ]),
        "ndjson" => texts(&["{\"k\":\"v\"}\n\n {\"k\":2}\r\n{\"a\":{}}\n"]),
        "request" => texts(&[
            "application/json; charset=\"utf-8\"\nidentity\nkey_field=k\nh\nfinancial_pro\n{\"k\":1}",
            "application/x-www-form-urlencoded\n\nkey=%00%ff+\nh\nt.v1-A\na=1&b=2",
            "application/x-ndjson\ngzip\n\n\n..\n{}\n{}",
        ]),
        // Compressed by other hands: what the files there have.
        "encoding" => corpus(name).into_iter().map(|(_, bytes)| bytes).collect(),
        "events" => texts(&[
            r#"{"specversion":"1.0","id":"7","source":"/pump","type":"t","subject":"s","data":{"a":[1]}}"#,
            r#"[{"specversion":"1.0","id":"7","source":"/pump","type":"t","data_base64":"aGk="}]"#,
        ]),
        "rest_proxy" => texts(&[
            r#"{"records":[{"key":"k","value":{"a":1.50}},{"value":null},{"key":null,"value":[1,"2"]}]}"#,
            r#"{"records":[{"key":"aw==","value":"dg=="}]}"#,
            "{\"key\":{\"type\":\"STRING\",\"data\":\"k\"},\"value\":{\"type\":\"JSON\",\"data\":{\"a\":1}},\
             \"headers\":[{\"name\":\"h\",\"value\":\"aGk=\"}]}\n{\"value\":{\"type\":\"BINARY\",\"data\":\"aGk=\"}}",
        ]),
        "record" => entries,
        "letter" => {
            let letter = Letter {
                origin: Origin { wal: [7; 16], seq: 3 },
                record: sample(b"v"),
                code: "MessageSizeTooLarge".into(),
                reason: "too large".into(),
                first_failed_ms: 1,
                last_failed_ms: 2,
            };
            vec![bincode::encode_to_vec(letter, ENCODING).unwrap()]
        }
        "frame" => [frames(false, &entries), frames(true, &entries)].concat(),
        "chunk" => {
            let large = [sample(&[7; 40_000])].iter().map(encoded).collect::<Vec<_>>();
            let framed = |frames: Vec<Vec<u8>>| {
                let frames = frames.into_iter();
                let framed = frames.map(|frame| [&u16::try_from(frame.len()).unwrap().to_le_bytes()[..], &frame].concat());
                framed.collect::<Vec<_>>().concat()
            };
            vec![framed(frames(false, &large)), framed(frames(true, &[entries, large].concat()))]
        }
        "witness" => {
            let marks = crate::wal::Marks {
                committed: 9,
                acked: 4,
            };
            vec![wal::encode_slot(7, marks)]
        }
        "identity" => vec![wal::identity_text(id).into_bytes(), format!("tidegate-wal 1\n{id}\n").into_bytes()],
        "ranges" => {
            let lines = wal::ranges_text(&[(1, 3), (7, 900), (4, 4)]);
            vec![wal::seal(lines.clone()).into_bytes(), lines.into_bytes()]
        }
        "stamps" => {
            let lines = wal::stamps_text(&[7, u64::MAX]);
            vec![wal::seal(lines.clone()).into_bytes(), lines.into_bytes()]
        }
        "keys" => {
            let key = |seq, records| crate::wal::Remembered {
                id: [1; 16],
                body: [2; 16],
                first_seq: seq,
                records,
                received_ms: 1_700_000_000_123,
            };
            let checkpoints = [(0, vec![]), (7, vec![key(3, 1), key(5, 300)])];
            let encoded = checkpoints.map(|(through, keys)| wal::encode_keys(&wal::Checkpoint { through, keys }));
            encoded.into()
        }
        "generation" => vec![wal::generation_name(77, KEY).into_bytes()],
        "watermark" => {
            let mut mark = Mark::parse(70, "1 00000000000000aa 5 60 - -").unwrap();
            mark.main.beyond = vec![(72, 80), (90, 90)];
            mark.lane.beyond = vec![(99, 1 << 40)];
            vec![[&70_i64.to_le_bytes()[..], mark.metadata().as_bytes()].concat()]
        }
        "item" => records
            .iter()
            .map(|record| serde_json::to_vec(&Item::of_record(id, 9, record)).unwrap())
            .collect(),
        "landed" => texts(&[
            "07070707-0707-0707-0707-070707070707\n300\n{\"text\":\"a\",\"integer\":7,\"real\":1.5,\"boolean\":\"true\",\
             \"timestamp\":\"2026-11-24T08:30:00.5+01:00\",\"json\":{\"a\":[1]}}",
            "x\n-1\n{\"a\":1,\"b\":2}",
        ]),
        "value" => texts(&["512 MiB", "1.5 GB", "30 s", "1h 5min", "0"]),
        "config" => vec![
            include_bytes!("../../config.toml").to_vec(),
            b"[http]\nlisten = \"127.0.0.1:4000\"\n[wal]\nretain = \"2 h\"\n[[source]]\nname = \"s\"\nfields = [\"a\"]\n"
                .to_vec(),
        ],
        "api_keys" => corpus(name).into_iter().map(|(_, bytes)| bytes).collect(),
        other => panic!("{other} has no seeds"),
    }
}

/// One change: where, what, with what.
fn change() -> impl Strategy<Value = (prop::sample::Index, u8, Vec<u8>, prop::sample::Index)> {
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..12),
        prop::sample::select(vec![
            &b"\xff\xff\xff\xff\xff\xff\xff\xff"[..],
            b"\0",
            b"18446744073709551615",
            b"-1",
            b"[[[[",
            b"\"",
            b"\n",
            b"%",
            b"\xfd\0\0\0\0\0\0\0\x40",
        ])
        .prop_map(<[u8]>::to_vec),
    ];
    (
        any::<prop::sample::Index>(),
        0_u8..5,
        piece,
        any::<prop::sample::Index>(),
    )
}

fn changed(mut bytes: Vec<u8>, changes: Vec<(prop::sample::Index, u8, Vec<u8>, prop::sample::Index)>) -> Vec<u8> {
    for (at, kind, piece, other) in changes {
        let (at, other) = (at.index(bytes.len() + 1), other.index(bytes.len() + 1));
        let end = (at + piece.len()).min(bytes.len());
        match kind {
            // Flip, cut, insert, put over, and splice: from somewhere else on.
            0 if at < bytes.len() => bytes[at] ^= 1 << (other % 8),
            1 => bytes.truncate(at),
            2 => drop(bytes.splice(at..at, piece)),
            3 => drop(bytes.splice(at..end, piece)),
            _ => bytes = [&bytes[..at], &bytes[other..]].concat(),
        }
        bytes.truncate(100_000);
    }
    bytes
}

/// The same cases each time; a failure says which bytes, shrunk.
fn cases(decode: fn(&[u8]), bytes: impl Strategy<Value = Vec<u8>>) {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let held = runner.run(&bytes, |bytes| {
        decode(&bytes);
        Ok(())
    });
    held.unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn whatever_the_bytes_are() {
    for (name, decode) in ALL {
        println!("{name}");
        cases(*decode, prop::collection::vec(any::<u8>(), 0..300));
    }
}

#[test]
fn valid_bytes_that_were_changed() {
    for (name, decode) in ALL {
        println!("{name}");
        let valid: Vec<Vec<u8>> = seeds(name)
            .into_iter()
            .chain(corpus(name).into_iter().map(|(_, bytes)| bytes))
            .collect();
        let changes = prop::collection::vec(change(), 0..5);
        cases(
            *decode,
            (prop::sample::select(valid), changes).prop_map(|(bytes, changes)| changed(bytes, changes)),
        );
    }
}

#[test]
fn every_file_of_the_corpus_is_decoded() {
    for (name, decode) in ALL {
        let files = corpus(name);
        assert!(!files.is_empty(), "{name}");
        for (path, bytes) in files {
            println!("{}", path.display());
            decode(&bytes);
        }
    }
}

/// The seeds get to the ends of their decoders: or everything above would be about nothing.
#[test]
fn seeds_are_valid() {
    for (name, decode) in ALL {
        for seed in seeds(name) {
            decode(&seed);
        }
    }
    assert!(seeds("frame").iter().all(|frame| wal::check(frame, KEY).is_some()));
    assert!(
        seeds("item")
            .iter()
            .all(|item| serde_json::from_slice::<Item>(item).unwrap().into_record().is_ok())
    );
    assert!(seeds("letter").iter().all(|letter| Letter::decode(letter).is_ok()));
    let record = |bytes: &Vec<u8>| bincode::decode_from_slice::<Record, _>(bytes, DECODING).is_ok();
    assert!(seeds("record").iter().all(record));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    assert!(wal::lines(&text(&seeds("ranges")[0])).is_some_and(|lines| wal::parse_ranges(lines).is_ok()));
    assert!(wal::lines(&text(&seeds("stamps")[0])).is_some_and(|lines| wal::parse_stamps(lines).is_ok()));
    assert!(config::Config::of_text(&text(&seeds("config")[0])).is_ok());
}
