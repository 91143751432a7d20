//! What the configuration promises: layers, messages, the shipped file. (`checks.rs`: what is refused.)

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod checks;
mod reference;

use std::collections::BTreeSet;

use super::layers::{BUILT_IN, Layers};
use super::*;

/// A configuration from a file's text and variables, without the machine's own.
fn load(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    load_with_flags(text, variables, Vec::new())
}

fn load_with_flags(
    text: &str,
    variables: &[(&str, &str)],
    flags: Vec<(&'static str, &'static str, String)>,
) -> Result<Config, ConfigError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(Inputs {
        file: Some(path),
        environment: variables.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
        flags,
    })
}

/// The text of the error, with the temporary folder's name taken out.
fn error_of(result: Result<Config, ConfigError>) -> String {
    let text = result.expect_err("this must not load").to_string();
    text.split(' ')
        .map(|word| {
            word.rsplit_once("/t.toml")
                .map_or(word.to_owned(), |(_, rest)| format!("t.toml{rest}"))
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn refused(text: &str) -> String {
    let checked = load(text, &[]).and_then(|config| config.validate(Broker::MayBeEmbedded).map(|()| config));
    error_of(checked)
}

fn accepted(text: &str) -> Config {
    let config = load(text, &[]).unwrap();
    config.validate(Broker::MayBeEmbedded).unwrap();
    config
}

/// Every key of the shipped file and another value for it.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("gateway.id", "\"north\""),
    ("http.listen", "\"127.0.0.1:5000\""),
    ("http.allow_anonymous", "true"),
    ("http.api_keys_file", "\"keys.toml\""),
    ("http.tls_certificate_file", "\"cert.pem\""),
    ("http.tls_key_file", "\"key.pem\""),
    ("http.tls_client_ca_file", "\"ca.pem\""),
    ("http.requests_per_second_max_per_address", "100"),
    ("http.requests_per_second_max_per_key", "200"),
    ("http.trusted_proxies", "[\"10.0.0.0/8\", \"::1\"]"),
    ("http.body_bytes_max", "\"8 MiB\""),
    ("http.record_bytes_max", "\"100 KiB\""),
    ("http.records_max", "7"),
    ("http.header_bytes_max", "\"16 KiB\""),
    ("http.headers_max", "50"),
    ("http.connections_max", "10"),
    ("http.in_flight_max", "11"),
    ("http.header_timeout", "\"3 s\""),
    ("http.body_timeout", "\"4 s\""),
    ("http.idle_timeout", "\"500 ms\""),
    ("http.shutdown", "\"1 min\""),
    ("http.topics", "[\"a\", \"b-*\"]"),
    ("http.idempotency_window", "\"2 h\""),
    ("http.idempotency_keys_max", "500"),
    ("admin.listen", "\"127.0.0.1:5001\""),
    ("land.listen", "\"127.0.0.1:5002\""),
    ("land.sink", "\"postgres\""),
    ("land.path", "\"elsewhere.db\""),
    ("land.url", "\"postgres://a:b@c/d\""),
    ("land.file_bytes_max", "\"1 MiB\""),
    ("land.file_age_max", "\"1 min\""),
    ("land.batch_records_max", "77"),
    ("land.batch_bytes_max", "\"1 MiB\""),
    ("land.batch_wait", "\"50 ms\""),
    ("land.shutdown", "\"2 min\""),
    ("admin.token", "\"0123456789abcdef\""),
    ("wal.path", "\"elsewhere\""),
    ("wal.bytes_max", "\"1 GiB\""),
    ("wal.free_bytes_min", "\"1 MiB\""),
    ("wal.generation_bytes", "\"8 MiB\""),
    ("wal.compression", "\"none\""),
    ("wal.retain", "\"10 min\""),
    ("wal.linger_us", "1000"),
    ("forward.delivery", "\"exactly_once\""),
    ("forward.bytes_per_second_max", "\"2 MiB\""),
    ("forward.in_flight_bytes_max", "\"16 MiB\""),
    ("kafka.bootstrap_servers", "\"kafka-1:9092\""),
    ("log.format", "\"json\""),
    ("log.level", "\"debug\""),
];

#[test]
fn the_shipped_file_is_the_default_and_valid() {
    let config = accepted("");
    assert_eq!(config.http.listen.to_string(), "127.0.0.1:4000");
    assert_eq!(config.admin.listen.to_string(), "127.0.0.1:4001");
    assert!(!config.http.allow_anonymous);
    assert_eq!(config.http.body_bytes_max, 16 << 20);
    assert_eq!(config.http.record_bytes_max, 900 << 10);
    assert_eq!(config.http.header_bytes_max, 32 << 10);
    assert_eq!((config.http.connections_max, config.http.in_flight_max), (4096, 2048));
    assert_eq!(config.http.shutdown, Duration::from_secs(20));
    assert_eq!(config.http.topics, ["*"]);
    assert_eq!(config.wal.path, Path::new("data/wal"));
    assert_eq!((config.wal.bytes_max, config.wal.free_bytes_min), (64 << 30, 256 << 20));
    assert_eq!(config.wal.generation_bytes, 64 << 20);
    assert_eq!(
        (config.wal.compression, config.wal.retain),
        (Compression::Lz4, Retain::Off)
    );
    assert_eq!(config.forward.bytes_per_second_max, None);
    assert_eq!(config.kafka.bootstrap_servers, "");
    let sources: Vec<_> = config
        .sources
        .iter()
        .map(|source| {
            (
                source.name.as_str(),
                source.topic.as_str(),
                source.fields.clone(),
                Some(source.group.as_str()),
            )
        })
        .collect();
    let expected = [
        ("identity_pro", 7, "ide_g"),
        ("financial_pro", 4, "fin_g"),
        ("internet_pro", 5, "int_g"),
        ("social_pro", 3, "soc_g"),
        ("trip_pro", 3, "tri_g"),
        ("communication_pro", 4, "com_g"),
    ];
    assert_eq!(
        sources,
        expected.map(|(name, count, group)| (name, name, Fields::Count(count), Some(group)))
    );
}

#[test]
fn every_shipped_key_is_read_and_can_be_changed() {
    let Ok(built_in) = Layers::built_in() else {
        panic!("config.toml is no TOML")
    };
    let shipped: BTreeSet<_> = built_in.entries.iter().map(|(key, _)| key.as_str()).collect();
    let tried: BTreeSet<_> = OTHER_VALUES.iter().map(|(key, _)| *key).collect();
    assert_eq!(shipped, tried);
    let default = format!("{:?}", accepted(""));
    for (key, value) in OTHER_VALUES {
        let (section, name) = key.split_once('.').unwrap();
        // What does not go without it.
        let more = match name {
            "tls_certificate_file" => "tls_key_file = \"k\"",
            "tls_key_file" => "tls_certificate_file = \"c\"",
            "requests_per_second_max_per_key" => "api_keys_file = \"keys.toml\"",
            "tls_client_ca_file" => "tls_certificate_file = \"c\"\ntls_key_file = \"k\"",
            _ => "",
        };
        let default = match more {
            "" => default.clone(),
            more => format!("{:?}", load(&format!("[{section}]\n{more}\n"), &[]).unwrap()),
        };
        let changed = accepted(&format!("[{section}]\n{name} = {value}\n{more}\n"));
        assert_ne!(format!("{changed:?}"), default, "{key} does nothing");
        let Origin::File { line, .. } = changed.origin(key) else {
            panic!("{key} is not from the file")
        };
        assert_eq!(line, 2);
    }
}

#[test]
fn every_shipped_key_can_be_set_in_the_environment() {
    let mut all = String::new();
    let mut variables = Vec::new();
    for (key, value) in OTHER_VALUES {
        let (section, name) = key.split_once('.').unwrap();
        all.push_str(&format!("{section}.{name} = {value}\n"));
        let plain = value.replace(['"', '[', ']'], "");
        variables.push((
            format!("TIDEGATE_{}__{}", section.to_uppercase(), name.to_uppercase()),
            plain,
        ));
    }
    let variables: Vec<_> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    let from_file = load(&all, &[]).unwrap();
    let from_environment = load("", &variables).unwrap();
    let sections = |config: &Config| format!("{:?} {:?} {:?}", config.gateway, config.http, config.wal);
    assert_eq!(sections(&from_file), sections(&from_environment));
    assert!(
        from_environment
            .shown()
            .iter()
            .any(|shown| shown.from == "environment TIDEGATE_HTTP__LISTEN")
    );
}

#[test]
fn flags_win_over_environment_over_file_over_built_in() {
    let file = "[http]\nlisten = \"127.0.0.1:1\"\nheaders_max = 20\n[wal]\npath = \"file\"\n";
    let variables = [
        ("TIDEGATE_HTTP__LISTEN", "127.0.0.1:2"),
        ("TIDEGATE_WAL__PATH", "variable"),
    ];
    let flags = vec![("http.listen", "--listen", "127.0.0.1:3".to_owned())];
    let config = load_with_flags(file, &variables, flags).unwrap();
    assert_eq!(config.http.listen.port(), 3);
    assert_eq!(config.origin("http.listen"), Origin::Flag("--listen"));
    assert_eq!(config.wal.path, Path::new("variable"));
    assert_eq!(config.http.headers_max, 20);
    assert_eq!(config.origin("http.topics"), Origin::BuiltIn);
}

#[test]
fn an_unknown_key_is_told_with_file_line_and_the_nearest_known_one() {
    assert_eq!(
        error_of(load("[http]\n# a comment\nlisten_on = \"127.0.0.1:1\"\n", &[])),
        "the configuration cannot be used: t.toml:3: unknown key \"http.listen_on\". The nearest known one is \
         \"http.listen\". Rename it, or remove the line."
    );
    assert_eq!(
        error_of(load("[htp]\nlisten = \"127.0.0.1:1\"\n", &[])),
        "the configuration cannot be used: t.toml:1: unknown section \"htp\". The nearest known one is [http]."
    );
    assert!(error_of(load("[wal]\nlisten = \"x\"\n", &[])).contains("\"http.listen\""));
    assert!(
        error_of(load("[[source]]\nname = \"a\"\ntopik = \"b\"\n", &[]))
            .contains("t.toml:3: unknown key \"topik\" of a [[source]]. The nearest known one is \"topic\"")
    );
    assert!(error_of(load("[wal]\nzzz = 1\n", &[])).contains("[wal] has: wal.path, "));
}

#[test]
fn an_unknown_variable_is_told_with_the_one_that_was_meant() {
    assert_eq!(
        error_of(load("", &[("TIDEGATE_HTTP__LISTN", "127.0.0.1:1")])),
        "the configuration cannot be used: environment TIDEGATE_HTTP__LISTN: unknown key \"http.listn\". The nearest \
         known one is \"http.listen\". Rename the variable to TIDEGATE_HTTP__LISTEN, or unset it."
    );
}

#[test]
fn variables_that_are_no_keys_are_left_alone() {
    let others = [
        ("TIDEGATE_CONFIG_DIR", "x"),
        ("TIDEGATE_TEST_KAFKA", "y"),
        ("OTHER__THING", "z"),
    ];
    assert!(load("", &others).is_ok());
}

#[test]
fn every_problem_is_told_at_once() {
    let text = error_of(load(
        "[http]\nrecords_max = 0\nbody_bytes_max = \"much\"\n[log]\nlevel = \"loud\"\n",
        &[],
    ));
    assert!(
        text.starts_with("the configuration cannot be used, for 3 reasons:"),
        "{text}"
    );
    for part in [
        "t.toml:2: http.records_max must be from 1 to 1000000",
        "t.toml:3: ",
        "t.toml:5: log.level is \"loud\"",
    ] {
        assert!(text.contains(part), "{part} not in {text}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_says_what_to_write() {
    assert!(error_of(load("[http]\nallow_anonymous = \"yes\"\n", &[])).contains("write true or false, without quotes"));
    assert!(error_of(load("http = 5\n", &[])).contains("write [http] on a line of its own"));
    assert!(error_of(load("[source]\nname = \"a\"\n", &[])).contains("[[source]], with two brackets"));
    assert!(error_of(load("[http]\nshutdown = \"20\"\n", &[])).contains("a time with its unit"));
    assert!(error_of(load("", &[("TIDEGATE_HTTP__RECORDS_MAX", "ten")])).contains("a whole number"));
    assert!(error_of(load("[http]\nlisten = \":4000\"\n", &[])).contains("\"0.0.0.0:4000\""));
}

#[test]
fn a_file_that_is_no_toml_is_told_by_line_without_its_text() {
    let text = error_of(load("[admin]\ntoken = hunter2hunter2hunter2\n", &[]));
    assert!(text.starts_with("t.toml:2: this is not TOML"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let missing = Inputs {
        file: Some("/nowhere/t.toml".into()),
        ..Inputs::default()
    };
    assert!(error_of(Config::load(missing)).contains("cannot read the configuration file"));
}

#[test]
fn sizes_and_times_are_read_the_way_people_write_them() {
    let config = accepted(
        "[wal]\nbytes_max = \"2 GB\"\nretain = \"2 GiB\"\n[http]\nrecord_bytes_max = 65536\nshutdown = \"1 min 30 s\"\n",
    );
    assert_eq!(config.wal.bytes_max, 2_000_000_000);
    assert_eq!(config.wal.retain, Retain::Bytes(2 << 30));
    assert_eq!(config.http.record_bytes_max, 65536);
    assert_eq!(config.http.shutdown, Duration::from_secs(90));
}

#[test]
fn a_declared_source_can_be_changed_in_the_environment() {
    let config = load("", &[("TIDEGATE_SOURCE__TRIP_PRO__TOPIC", "trips")]).unwrap();
    let trip = config.sources.iter().find(|source| source.name == "trip_pro").unwrap();
    assert_eq!(trip.topic.as_str(), "trips");
    let unknown = error_of(load("", &[("TIDEGATE_SOURCE__TRIPS__TOPIC", "trips")]));
    assert!(
        unknown.contains("no [[source]] has the name \"trips\"") && unknown.contains("trip_pro"),
        "{unknown}"
    );
}

#[test]
fn a_files_sources_replace_the_shipped_ones() {
    let config = accepted("[[source]]\nname = \"orders\"\nkey = \"id\"\n");
    assert_eq!(config.sources.len(), 1);
    assert_eq!(
        (config.sources[0].topic.as_str(), config.sources[0].key.as_deref()),
        ("orders", Some("id"))
    );
}

#[test]
fn the_shipped_file_explains_every_key() {
    for (index, line) in BUILT_IN.lines().enumerate() {
        let is_key = line.split_once(" = ").is_some_and(|(key, _)| !key.starts_with('#'));
        if !is_key {
            continue;
        }
        let above: Vec<_> = BUILT_IN.lines().take(index).collect();
        let explained = above
            .iter()
            .rev()
            .take_while(|line| !line.is_empty())
            .any(|line| line.starts_with('#'));
        let in_source = above.iter().any(|line| line.starts_with("[[source]]"));
        assert!(explained || in_source, "line {}: {line}", index + 1);
    }
}
