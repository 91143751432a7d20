//! From values to meanings: sizes, durations, addresses, choices, each within its range.
//!
//! A value that is wrong is told with its key, where it stands and what to write instead; reading goes on
//! with a stand-in, so that one run tells everything that is wrong. The stand-in is never used: problems
//! end the process. What two keys mean together is `validate.rs`'s business.

use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use ipnet::IpNet;

use super::layers::{Entry, Layers, SourceTable};
use super::value::{Origin, Problem, Value};
use super::{
    Admin, Compression, Config, Delivery, Enforce, Fields, Forward, Gateway, Http, IDEMPOTENCY_KEYS_MAX,
    IDEMPOTENCY_WINDOW_MAX, Kafka, Land, Log, LogFormat, LogLevel, Properties, Retain, Secret, SinkKind, Source, Wal,
};
use crate::land::table::Kind;
use crate::record::Topic;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
/// The shortest time limit of a connection: anything shorter would cut off ordinary clients.
const TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// What "off" is called.
const OFF: &str = "off";
/// The most fields and consumers that a source may declare.
const FIELDS_MAX: i64 = 1000;
const CONSUMERS_MAX: i64 = 64;
/// The highest rate that can be asked for: no machine serves more.
const RATE_MAX: u32 = 1_000_000;

/// Reads every key once.
pub(super) fn read(layers: &Layers) -> Result<Config, Vec<Problem>> {
    let mut reader = Reader {
        layers,
        problems: layers.problems.clone(),
    };
    let config = Config {
        gateway: Gateway {
            id: reader.text("gateway.id"),
        },
        http: reader.http(),
        admin: Admin {
            listen: reader.address("admin.listen"),
            token: Secret(reader.text("admin.token")),
        },
        wal: Wal {
            path: reader.text("wal.path").into(),
            bytes_max: reader.size("wal.bytes_max", MIB..=1024 * TIB),
            free_bytes_min: reader.size("wal.free_bytes_min", 0..=1024 * TIB),
            generation_bytes: reader.size("wal.generation_bytes", MIB..=4 * GIB),
            compression: reader.choice(
                "wal.compression",
                &[("lz4", Compression::Lz4), ("none", Compression::None)],
            ),
            retain: reader.retain("wal.retain"),
            linger: Duration::from_micros(reader.count("wal.linger_us", 0..=1_000_000)),
        },
        forward: Forward {
            delivery: reader.delivery("forward.delivery"),
            bytes_per_second_max: reader.size_or_off("forward.bytes_per_second_max", KIB..=TIB),
            in_flight_bytes_max: reader.size("forward.in_flight_bytes_max", MIB..=4 * GIB),
        },
        kafka: Kafka {
            bootstrap_servers: reader.text("kafka.bootstrap_servers"),
            properties: Properties(
                layers
                    .properties
                    .iter()
                    .map(|(name, entry)| (name.clone(), text_of(&entry.value)))
                    .collect(),
            ),
        },
        land: Land {
            listen: reader.address("land.listen"),
            sink: reader.choice(
                "land.sink",
                &[
                    ("sqlite", SinkKind::Sqlite),
                    ("postgres", SinkKind::Postgres),
                    ("files", SinkKind::Files),
                ],
            ),
            path: reader.text("land.path").into(),
            url: Secret(reader.text("land.url")),
            file_bytes_max: reader.size("land.file_bytes_max", 64 * KIB..=16 * GIB),
            file_age_max: reader.time("land.file_age_max", Duration::from_secs(1)..=24 * HOUR),
            batch_records_max: reader.count("land.batch_records_max", 1..=100_000),
            batch_bytes_max: reader.size("land.batch_bytes_max", 64 * KIB..=64 * MIB),
            batch_wait: reader.time("land.batch_wait", Duration::ZERO..=Duration::from_secs(10)),
            shutdown: reader.time("land.shutdown", Duration::ZERO..=HOUR),
        },
        sources: layers
            .sources
            .iter()
            .filter_map(|source| reader.source(source))
            .collect(),
        log: Log {
            format: reader.choice("log.format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]),
            level: reader.choice(
                "log.level",
                &[
                    ("error", LogLevel::Error),
                    ("warn", LogLevel::Warn),
                    ("info", LogLevel::Info),
                    ("debug", LogLevel::Debug),
                    ("trace", LogLevel::Trace),
                ],
            ),
        },
        layers: layers.clone(),
    };
    if reader.problems.is_empty() {
        Ok(config)
    } else {
        Err(reader.problems)
    }
}

struct Reader<'a> {
    layers: &'a Layers,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn http(&mut self) -> Http {
        Http {
            listen: self.address("http.listen"),
            allow_anonymous: self.boolean("http.allow_anonymous"),
            api_keys_file: self.text("http.api_keys_file").into(),
            tls_certificate_file: self.text("http.tls_certificate_file").into(),
            tls_key_file: self.text("http.tls_key_file").into(),
            tls_client_ca_file: self.text("http.tls_client_ca_file").into(),
            requests_per_second_max_per_address: self.count("http.requests_per_second_max_per_address", 0..=RATE_MAX),
            requests_per_second_max_per_key: self.count("http.requests_per_second_max_per_key", 0..=RATE_MAX),
            trusted_proxies: self.networks("http.trusted_proxies"),
            body_bytes_max: self.size("http.body_bytes_max", KIB..=32 * MIB),
            record_bytes_max: self.size("http.record_bytes_max", 1..=32 * MIB),
            records_max: self.count("http.records_max", 1..=1_000_000),
            header_bytes_max: self.size("http.header_bytes_max", 8 * KIB..=MIB),
            headers_max: self.count("http.headers_max", 8..=1000),
            connections_max: self.count("http.connections_max", 1..=1_000_000),
            in_flight_max: self.count("http.in_flight_max", 1..=1_000_000),
            header_timeout: self.time("http.header_timeout", TIMEOUT_MIN..=HOUR),
            body_timeout: self.time("http.body_timeout", TIMEOUT_MIN..=HOUR),
            idle_timeout: self.time("http.idle_timeout", TIMEOUT_MIN..=HOUR),
            shutdown: self.time("http.shutdown", Duration::ZERO..=HOUR),
            topics: self.list("http.topics"),
            idempotency_window: self.time("http.idempotency_window", MINUTE..=IDEMPOTENCY_WINDOW_MAX),
            idempotency_keys_max: self.count("http.idempotency_keys_max", 0..=IDEMPOTENCY_KEYS_MAX),
        }
    }

    fn wrong(&mut self, key: &str, message: &str) {
        let origin = self.layers.entry(key).map(|entry| entry.origin.clone());
        self.problems.push(Problem {
            origin,
            message: format!("{key} {message}"),
        });
    }

    /// The value of a key. Layers have checked its kind; that the shipped file has the key is a test's
    /// business, and a problem here.
    fn value(&mut self, key: &str) -> Option<Value> {
        let value = self.layers.entry(key).map(|entry| entry.value.clone());
        if value.is_none() {
            self.wrong(
                key,
                "is missing from the built-in configuration: this program is broken",
            );
        }
        value
    }

    fn text(&mut self, key: &str) -> String {
        self.value(key).map(|value| text_of(&value)).unwrap_or_default()
    }

    fn boolean(&mut self, key: &str) -> bool {
        matches!(self.value(key), Some(Value::Boolean(true)))
    }

    fn list(&mut self, key: &str) -> Vec<String> {
        match self.value(key) {
            Some(Value::List(items)) => items,
            _ => Vec::new(),
        }
    }

    fn networks(&mut self, key: &str) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for text in self.list(key) {
            let address = || text.trim().parse::<IpAddr>().map(IpNet::from);
            match text.trim().parse::<IpNet>().or_else(|_| address()) {
                // The other end of a connection is never told this way.
                Ok(network) if matches!(network.addr(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) => {
                    self.wrong(key, &format!("has {text:?}: write the IPv4 address itself"));
                }
                Ok(network) => networks.push(network),
                Err(_) => self.wrong(
                    key,
                    &format!("has {text:?}: write addresses and networks, such as \"10.0.0.7\" or \"10.0.0.0/8\""),
                ),
            }
        }
        networks
    }

    fn count<N: TryFrom<i64> + Copy + PartialOrd + Display>(&mut self, key: &str, range: RangeInclusive<N>) -> N {
        let count = match self.value(key) {
            Some(Value::Integer(integer)) => N::try_from(integer).ok(),
            _ => None,
        };
        match count {
            Some(count) if range.contains(&count) => count,
            _ => {
                let (low, high) = (range.start(), range.end());
                self.wrong(key, &format!("must be from {low} to {high}"));
                *low
            }
        }
    }

    fn size(&mut self, key: &str, range: RangeInclusive<u64>) -> u64 {
        let text = self.text(key);
        parse_size(&text, &range).unwrap_or_else(|message| {
            self.wrong(key, &message);
            *range.start()
        })
    }

    fn size_or_off(&mut self, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(key);
        if text.trim() == OFF {
            return None;
        }
        parse_size(&text, &range)
            .map_err(|message| self.wrong(key, &format!("{message} (or \"off\")")))
            .ok()
    }

    fn retain(&mut self, key: &str) -> Retain {
        let text = self.text(key);
        if text.trim() == OFF {
            return Retain::Off;
        }
        if let Ok(bytes) = parse_size(&text, &(MIB..=1024 * TIB)) {
            return Retain::Bytes(bytes);
        }
        if let Ok(time) = parse_time(&text, &(Duration::from_secs(1)..=HOUR * 24 * 365)) {
            return Retain::Time(time);
        }
        self.wrong(
            key,
            &format!(
                "is {text:?}: write \"off\", a size such as \"2 GiB\" (at least 1 MiB), or a time such as \"10 min\""
            ),
        );
        Retain::Off
    }

    fn time(&mut self, key: &str, range: RangeInclusive<Duration>) -> Duration {
        let text = self.text(key);
        parse_time(&text, &range).unwrap_or_else(|message| {
            self.wrong(key, &message);
            *range.start()
        })
    }

    fn address(&mut self, key: &str) -> SocketAddr {
        let text = self.text(key);
        text.trim().parse().unwrap_or_else(|_| {
            self.wrong(
                key,
                &format!(
                    "is {text:?}: write an IP address and a port, such as \"127.0.0.1:4000\" (this machine only) or \
                     \"0.0.0.0:4000\" (every IPv4 address)"
                ),
            );
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn choice<T: Copy + Default>(&mut self, key: &str, choices: &[(&str, T)]) -> T {
        let text = self.text(key);
        match choices.iter().find(|(name, _)| *name == text) {
            Some((_, choice)) => *choice,
            None => {
                let names: Vec<_> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
                self.wrong(key, &format!("is {text:?}: write {}", names.join(" or ")));
                T::default()
            }
        }
    }

    fn delivery(&mut self, key: &str) -> Delivery {
        let choices = [
            ("idempotent", Delivery::Idempotent),
            ("exactly_once", Delivery::ExactlyOnce),
        ];
        self.choice(key, &choices)
    }

    /// None when a part is wrong that has no stand-in; the problem is told.
    fn source(&mut self, table: &SourceTable) -> Option<Source> {
        let mut fields = SourceReader {
            table,
            problems: &mut self.problems,
        };
        let Some(name) = fields.text("name") else {
            let message = "this [[source]] has no name: add a line such as name = \"orders\"";
            fields.problems.push(Problem::at(&table.origin, message));
            return None;
        };
        let topic = fields.text("topic").unwrap_or_else(|| name.clone());
        let topic = Topic::parse(&topic)
            .map_err(|error| fields.wrong("topic", &format!("is {topic:?}: {error}")))
            .ok()?;
        let enforce = match fields.text("enforce").as_deref() {
            None | Some("mark") => Enforce::Mark,
            Some("reject") => Enforce::Reject,
            Some(other) => {
                fields.wrong("enforce", &format!("is {other:?}: write \"mark\" or \"reject\""));
                Enforce::Mark
            }
        };
        let names = match fields.entry("fields").map(|entry| &entry.value) {
            Some(Value::List(names)) => Some(names.clone()),
            _ => None,
        };
        let declared = match (names, fields.integer("field_count", 1..=FIELDS_MAX)) {
            (Some(_), Some(_)) => {
                let message = "stands beside fields: leave one of them out (the names give the count)";
                fields.wrong("field_count", message);
                Fields::Any
            }
            (Some(names), None) => Fields::Names(names),
            (None, Some(count)) => Fields::Count(usize::try_from(count).unwrap_or_default()),
            (None, None) => Fields::Any,
        };
        if enforce == Enforce::Reject && declared == Fields::Any {
            let message = "is \"reject\", and nothing says what a record must be like: add fields or field_count";
            fields.wrong("enforce", message);
        }
        let types = fields.types();
        let consumers = fields.integer("consumers", 1..=CONSUMERS_MAX).unwrap_or(1);
        Some(Source {
            topic,
            key: fields.text("key"),
            fields: declared,
            group: fields.text("group").unwrap_or_else(|| format!("tidegate-{name}")),
            types,
            consumers: usize::try_from(consumers).unwrap_or(1),
            enforce,
            name,
            origin: table.origin.clone(),
        })
    }
}

struct SourceReader<'a> {
    table: &'a SourceTable,
    problems: &'a mut Vec<Problem>,
}

impl SourceReader<'_> {
    fn entry(&self, key: &str) -> Option<&Entry> {
        self.table.entries.get(key)
    }

    fn wrong(&mut self, key: &str, message: &str) {
        let origin: Origin = self
            .entry(key)
            .map_or_else(|| self.table.origin.clone(), |entry| entry.origin.clone());
        let name = self.table.name();
        self.problems
            .push(Problem::at(&origin, format!("{key} of source {name:?} {message}")));
    }

    fn text(&self, key: &str) -> Option<String> {
        self.entry(key)
            .map(|entry| text_of(&entry.value))
            .filter(|text| !text.is_empty())
    }

    fn types(&mut self) -> Vec<(String, Kind)> {
        let Some(Value::List(items)) = self.entry("types").map(|entry| entry.value.clone()) else {
            return Vec::new();
        };
        let mut types = Vec::new();
        for item in items {
            let known = item.rsplit_once(':').and_then(|(field, kind)| {
                let (_, kind) = Kind::ALL.iter().find(|(name, _)| *name == kind.trim())?;
                Some((field.trim().to_owned(), *kind))
            });
            match known {
                Some(known) => types.push(known),
                None => {
                    let names: Vec<&str> = Kind::ALL.iter().map(|(name, _)| *name).collect();
                    let message = format!(
                        "has {item:?}: write a field and what it holds, such as \"amount: real\"; known are {}",
                        names.join(", ")
                    );
                    self.wrong("types", &message);
                }
            }
        }
        types
    }

    fn integer(&mut self, key: &str, range: RangeInclusive<i64>) -> Option<i64> {
        let Some(Value::Integer(integer)) = self.entry(key).map(|entry| entry.value.clone()) else {
            return None;
        };
        if !range.contains(&integer) {
            self.wrong(key, &format!("must be from {} to {}", range.start(), range.end()));
        }
        Some(integer)
    }
}

fn text_of(value: &Value) -> String {
    match value {
        Value::Text(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn parse_size(text: &str, range: &RangeInclusive<u64>) -> Result<u64, String> {
    let size = ByteSize::from_str(text.trim())
        .map_err(|_| format!("is {text:?}: write a size such as \"512 MiB\" or \"500 MB\""))?;
    if range.contains(&size.0) {
        return Ok(size.0);
    }
    let (low, high) = (ByteSize(*range.start()), ByteSize(*range.end()));
    Err(format!("is {text:?}: it must be from \"{low}\" to \"{high}\""))
}

pub(crate) fn parse_time(text: &str, range: &RangeInclusive<Duration>) -> Result<Duration, String> {
    // A bare 0 needs no unit to be understood.
    let text = if text.trim() == "0" { "0 s" } else { text };
    let time = humantime::parse_duration(text.trim())
        .map_err(|_| format!("is {text:?}: write a time with its unit, such as \"30 s\", \"500 ms\" or \"5 min\""))?;
    if range.contains(&time) {
        return Ok(time);
    }
    let (low, high) = (
        humantime::format_duration(*range.start()),
        humantime::format_duration(*range.end()),
    );
    Err(format!("is {text:?}: it must be from \"{low}\" to \"{high}\""))
}
