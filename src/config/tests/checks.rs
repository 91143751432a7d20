//! What is refused before anything starts, what goes on to librdkafka, and what is never shown.

use super::*;

#[test]
fn properties_go_on_as_written_and_from_the_environment() {
    let file =
        "[kafka.properties]\nsecurity.protocol = \"SSL\"\n\"linger.ms\" = 20\n\"socket.keepalive.enable\" = true\n";
    let config = load(file, &[("TIDEGATE_KAFKA__PROPERTIES__SASL_PASSWORD", "s3cret")]).unwrap();
    let properties: Vec<_> = config
        .kafka
        .properties
        .reveal()
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    assert_eq!(
        properties,
        [
            ("linger.ms", "20"),
            ("sasl.password", "s3cret"),
            ("security.protocol", "SSL"),
            ("socket.keepalive.enable", "true")
        ]
    );
}

#[test]
fn what_the_promises_rest_on_is_refused_under_every_name() {
    for name in [
        "acks",
        "request.required.acks",
        "enable.idempotence",
        "enable.gapless.guarantee",
        "max.in.flight",
        "max.in.flight.requests.per.connection",
        "message.timeout.ms",
        "delivery.timeout.ms",
        "retries",
        "message.send.max.retries",
        "transactional.id",
        "group.id",
        "enable.auto.commit",
        "enable.auto.offset.store",
        "auto.commit.enable",
        "auto.offset.reset",
        "isolation.level",
        "bootstrap.servers",
        "metadata.broker.list",
        "client.id",
    ] {
        let text = refused(&format!("[kafka.properties]\n\"{name}\" = \"1\"\n"));
        assert!(
            text.contains(&format!("t.toml:2: kafka.properties \"{name}\" ")),
            "{text}"
        );
    }
    accepted("[kafka.properties]\n\"compression.type\" = \"zstd\"\n");
}

#[test]
fn secrets_are_shown_nowhere() {
    let file = "[admin]\ntoken = \"hunter2hunter2hunter2\"\n[kafka.properties]\n\"sasl.username\" = \"hunter2\"\n\
                \"ssl.key.password\" = \"hunter2\"\n\"sasl.oauthbearer.client.secret\" = \"hunter2\"\n\
                \"ssl.key.pem\" = \"hunter2\"\n\"sasl.mechanism\" = \"PLAIN\"\n";
    let config = load(file, &[]).unwrap();
    let json = serde_json::to_string(&config.shown()).unwrap();
    for text in [
        format!("{config:?}"),
        format!("{config:#?}"),
        config.to_toml().to_string(),
        json,
    ] {
        assert!(!text.contains("hunter2"), "{text}");
        assert!(text.contains("[redacted]"), "{text}");
        assert!(text.contains("PLAIN"), "{text}");
    }
    assert_eq!(config.admin.token.reveal(), Some("hunter2hunter2hunter2"));
}

#[test]
fn what_is_shown_can_be_used_as_a_file() {
    let file = "[http]\ntopics = [\"a-*\"]\n[kafka.properties]\n\"linger.ms\" = 20\n[[source]]\nname = \"s\"\nfields = [\"a\", \"b\"]\nkey = \"a\"\n";
    let config = accepted(file);
    let again = accepted(&config.to_toml().to_string());
    let without_places = |config: &Config| {
        let shown = config.shown();
        shown
            .into_iter()
            .map(|shown| (shown.key, shown.value))
            .collect::<Vec<_>>()
    };
    assert_eq!(without_places(&config), without_places(&again));
    assert!(config.to_toml().to_string().contains("# built-in"));
}

#[test]
fn strangers_are_let_in_only_when_that_is_written_down() {
    assert!(refused("[http]\nlisten = \"0.0.0.0:4000\"\n").contains("http.allow_anonymous = true"));
    assert!(refused("[http]\nlisten = \"[::]:4000\"\n").contains("http.allow_anonymous = true"));
    accepted("[http]\nlisten = \"0.0.0.0:4000\"\nallow_anonymous = true\n");
    accepted("[http]\nlisten = \"[::1]:4000\"\n");
    accepted("[http]\nlisten = \"0.0.0.0:4000\"\napi_keys_file = \"keys.toml\"\n");
    let tls = "tls_certificate_file = \"c\"\ntls_key_file = \"k\"\n";
    assert!(refused(&format!("[http]\nlisten = \"0.0.0.0:4000\"\n{tls}")).contains("http.api_keys_file"));
    accepted(&format!(
        "[http]\nlisten = \"0.0.0.0:4000\"\n{tls}tls_client_ca_file = \"ca\"\n"
    ));
    let both = refused("[http]\nallow_anonymous = true\napi_keys_file = \"keys.toml\"\n");
    assert!(both.contains("contradict"), "{both}");
    assert!(refused("[admin]\nlisten = \"0.0.0.0:4001\"\n").contains("admin.token"));
    assert!(refused("[admin]\ntoken = \"short\"\n").contains("16 characters"));
    accepted("[admin]\nlisten = \"0.0.0.0:4001\"\ntoken = \"0123456789abcdef\"\n");
}

#[test]
fn tls_needs_a_certificate_and_its_key() {
    assert!(refused("[http]\ntls_key_file = \"k\"\n").contains("tls_certificate_file is empty"));
    assert!(refused("[http]\ntls_certificate_file = \"c\"\n").contains("tls_key_file is empty"));
    assert!(refused("[http]\ntls_client_ca_file = \"ca\"\n").contains("tls_certificate_file is empty"));
    accepted("[http]\ntls_certificate_file = \"c\"\ntls_key_file = \"k\"\n");
}

#[test]
fn two_listeners_cannot_share_a_port() {
    assert!(refused("[admin]\nlisten = \"127.0.0.1:4000\"\n").contains("the same port"));
    accepted("[http]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n");
}

#[test]
fn limits_that_contradict_each_other_are_refused() {
    assert!(refused("[wal]\nbytes_max = \"100 MiB\"\n").contains("4 times wal.generation_bytes"));
    assert!(refused("[http]\nbody_bytes_max = \"100 KiB\"\n").contains("http.body_bytes_max"));
    assert!(refused("[http]\nrecord_bytes_max = \"2 MiB\"\n").contains("message.max.bytes"));
    accepted("[http]\nrecord_bytes_max = \"2 MiB\"\n[kafka.properties]\n\"message.max.bytes\" = 3000000\n");
    // The client counts headers and framing too.
    assert!(refused("[http]\nrecord_bytes_max = 1000000\n").contains("headers and framing"));
}

#[test]
fn a_partitioner_that_breaks_the_order_of_a_key_is_refused() {
    assert!(refused("[kafka.properties]\npartitioner = \"random\"\n").contains("murmur2_random"));
    accepted("[kafka.properties]\npartitioner = \"consistent\"\n");
}

#[test]
fn serve_needs_brokers_and_dev_does_not() {
    let config = accepted("");
    let text = config.validate(Broker::Configured).unwrap_err().to_string();
    assert!(
        text.contains("kafka.bootstrap_servers is empty") && text.contains("tidegate dev"),
        "{text}"
    );
    for wrong in ["a:b", "a b:1", "a:9092,,b:9092", "a:0", "http://a/:1"] {
        assert!(
            refused(&format!("[kafka]\nbootstrap_servers = \"{wrong}\"\n")).contains("host:port"),
            "{wrong}"
        );
    }
    for right in [
        "a",
        "a:9092, b:9093",
        "SASL_SSL://a:9092",
        "[::1]:9092",
        "127.0.0.1:9092",
    ] {
        let config = accepted(&format!("[kafka]\nbootstrap_servers = \"{right}\"\n"));
        config.validate(Broker::Configured).unwrap();
    }
}

#[test]
fn a_source_that_cannot_be_served_is_refused() {
    for (source, why) in [
        ("topic = \"a\"", "has no name"),
        ("name = \"hello\"", "is a path of the gateway"),
        ("name = \"v1\"", "is a path of the gateway"),
        ("name = \"a/b\"\ntopic = \"a\"", "cannot be a path"),
        ("name = \"a\"\ntopic = \"a b\"", "topic of source"),
        ("name = \"a\"\ntopic = \"__consumer_offsets\"", "Kafka's own"),
        ("name = \"a\"\nfields = [\"x\"]\nfield_count = 1", "beside fields"),
        ("name = \"a\"\nfields = [\"x\", \"x\"]", "twice"),
        ("name = \"a\"\nfields = [\"x\"]\nkey = \"y\"", "none of its fields"),
        ("name = \"a\"\nenforce = \"reject\"", "add fields or field_count"),
        ("name = \"a\"\nenforce = \"drop\"", "\"mark\" or \"reject\""),
        ("name = \"a\"\nconsumers = 0", "from 1 to 64"),
        ("name = \"a\"\n[[source]]\nname = \"a\"", "another source"),
    ] {
        let text = refused(&format!("[[source]]\n{source}\n"));
        assert!(text.contains(why), "{why} not in {text}");
    }
}

#[test]
fn topic_patterns_must_be_able_to_match() {
    accepted("[http]\ntopics = []\n");
    accepted("[http]\ntopics = [\"orders\", \"eu.*-raw\"]\n");
    assert!(refused("[http]\ntopics = [\"a b\"]\n").contains("no topic can match"));
}

#[test]
fn what_cannot_be_a_table_or_a_column_is_refused_before_anything_is_landed() {
    let refused =
        |text: &str| error_of(load(text, &[]).and_then(|config| config.validate_land(false).map(|()| config)));
    let source = |name: &str, more: &str| format!("[[source]]\nname = {name:?}\n{more}\n");
    for (text, word) in [
        (source("sqlite_x", ""), "keep names"),
        (source(&"x".repeat(56), ""), "55 bytes"),
        (source("Rejected", ""), "rejected"),
        (source("a", "") + &source("a_valid", ""), "a_valid"),
        (source("A", "") + &source("a", ""), "another source"),
        (source("a", "fields = [\"x\\ny\"]"), "control characters"),
        (
            source("a", "group = \"g\"") + &source("b", "topic = \"a\"\ngroup = \"g\""),
            "a group of its own",
        ),
        ("[land]\nsink = \"postgres\"\n".to_owned(), "land.url is empty"),
        ("[land]\nlisten = \"0.0.0.0:4002\"\n".to_owned(), "admin.token"),
        ("[land]\npath = \"\"\n".to_owned(), "land.path"),
        ("[land]\nsink = \"files\"\n".to_owned(), "name the folder"),
    ] {
        let error = refused(&text);
        assert!(error.contains(word), "{text}: {error}");
    }
    assert!(load("", &[]).unwrap().validate_land(true).is_ok());
    let clash = load("[land]\nlisten = \"127.0.0.1:4001\"\n", &[]).unwrap();
    assert!(clash.validate_land(false).is_ok() && clash.validate_land(true).is_err());
}

#[test]
fn types_name_a_field_and_a_kind() {
    let with = |types: &str| format!("[[source]]\nname = \"a\"\nfields = [\"n\", \"a:b\"]\ntypes = {types}\n");
    let config = accepted(&with("[\"n: integer\", \"a:b: json\"]"));
    assert_eq!(
        config.sources[0].types,
        [("n".to_owned(), Kind::Integer), ("a:b".to_owned(), Kind::Json)]
    );
    assert_eq!(config.sources[0].group, "tidegate-a");
    assert!(refused(&with("[\"n: number\"]")).contains("known are text, integer"));
    assert!(refused(&with("[\"m: text\"]")).contains("none of its fields"));
    assert!(refused(&with("[\"n: text\", \"n: real\"]")).contains("twice"));
}

#[test]
fn the_password_of_the_database_is_never_shown() {
    let config = load("[land]\nurl = \"postgres://a:hunter2@b/c\"\n", &[]).unwrap();
    let shown = format!("{config:?} {} {:?}", config.to_toml(), config.shown());
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn what_works_of_a_wrong_configuration_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.toml");
    let inputs = Inputs {
        file: Some(file.clone()),
        environment: vec![("TIDEGATE_HTTP__LISTEN".into(), "everywhere".into())],
        flags: Vec::new(),
    };
    let text = "[wal]\npath = \"/srv/log\"\nbytes_max = \"much\"\n[htp]\nx = 1\n[[source]]\nname = \"a\"\ntopic = \"no topic\"\n";
    std::fs::write(&file, text).unwrap();
    let (config, errors) = Config::load_what_works(&inputs).unwrap();
    assert_eq!(config.wal.path, std::path::Path::new("/srv/log"));
    assert_eq!((config.wal.bytes_max, config.http.listen.port()), (64 << 30, 4000));
    assert_eq!(config.sources.first().map(|source| source.topic.as_str()), Some("a"));
    let [ConfigError::Invalid(problems)] = &errors[..] else {
        panic!("{errors:?}")
    };
    assert_eq!(problems.len(), 4, "{problems:?}");

    std::fs::write(&file, "[wal\n").unwrap();
    let (config, errors) = Config::load_what_works(&inputs).unwrap();
    assert_eq!(config.wal.path, std::path::Path::new("data/wal"));
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(matches!(errors[0], ConfigError::Syntax { line: 1, .. }), "{errors:?}");

    std::fs::write(&file, "").unwrap();
    let fine = Inputs {
        file: Some(file),
        ..Inputs::default()
    };
    assert!(Config::load_what_works(&fine).unwrap().1.is_empty());
}
