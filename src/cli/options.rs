//! From the one `Config` to the `Options` of each part.

use super::guard::Guard;
use crate::config::{
    Compression, Config, Delivery, Enforce, Fields, IDEMPOTENCY_KEYS_MAX, IDEMPOTENCY_WINDOW_MAX, Retain, SinkKind,
    Source,
};
use crate::land::table::{Kind, Table};
use crate::{forward, http, land, wal};

pub(super) fn wal(config: &Config) -> wal::Options {
    wal::Options {
        path: config.wal.path.clone(),
        bytes_max: config.wal.bytes_max,
        free_bytes_min: config.wal.free_bytes_min,
        generation_bytes: config.wal.generation_bytes,
        compression: config.wal.compression == Compression::Lz4,
        retain: match config.wal.retain {
            Retain::Off => wal::Retain::Off,
            Retain::Bytes(bytes) => wal::Retain::Bytes(bytes),
            Retain::Time(time) => wal::Retain::Time(time),
        },
        linger: config.wal.linger,
        keys: wal::KeysOptions {
            max: in_memory(u64::from(config.http.idempotency_keys_max).min(keys_that_fit(config.wal.bytes_max))),
            window: config.http.idempotency_window,
        },
    }
}

/// How many idempotency keys a small log may remember: their file, and the next one while it is written, take an eighth of
/// `wal.bytes_max` at most, 52 bytes a key (docs/format.md).
const fn keys_that_fit(wal_bytes_max: u64) -> u64 {
    wal_bytes_max / 8 / (2 * 52)
}

/// The store keeps about twice a generation in memory, two of them while one follows the other: a verb on an operator's
/// machine takes less.
const VERB_GENERATION_BYTES_MAX: u64 = 16 << 20;

/// For a verb on a folder: its records are the gateway's to remove, whose `wal.retain` may be another.
pub(super) fn wal_for_verb(config: &Config) -> wal::Options {
    let options = wal(config);
    wal::Options {
        retain: wal::Retain::All,
        generation_bytes: options.generation_bytes.min(VERB_GENERATION_BYTES_MAX),
        // Nor does it forget keys that the gateway, by a configuration of its own, would not.
        keys: wal::KeysOptions {
            max: in_memory(IDEMPOTENCY_KEYS_MAX.into()),
            window: IDEMPOTENCY_WINDOW_MAX,
        },
        ..options
    }
}

pub(super) fn forward(config: &Config) -> forward::Options {
    forward::Options {
        bootstrap_servers: config.kafka.bootstrap_servers.trim().to_owned(),
        client_id: gateway_id(config),
        properties: config.kafka.properties.reveal().clone(),
        in_flight_bytes_max: config.forward.in_flight_bytes_max,
        bytes_per_second_max: config.forward.bytes_per_second_max,
        guarantee: match config.forward.delivery {
            Delivery::Idempotent => forward::Guarantee::Idempotent,
            Delivery::ExactlyOnce => forward::Guarantee::ExactlyOnce,
        },
        on_delivery: None,
    }
}

/// What a source demands of its records, and the table that they go to.
fn rule_of(source: &Source) -> (land::Rule, Table) {
    let kind = |field: &String| {
        let typed = source.types.iter().find(|(name, _)| name == field);
        typed.map_or(Kind::Text, |(_, kind)| *kind)
    };
    let (fields, rule) = match &source.fields {
        Fields::Any => (Vec::new(), land::Rule::Any),
        Fields::Count(count) => (Vec::new(), land::Rule::Count(*count)),
        Fields::Names(names) => (
            names.iter().map(|name| (name.clone(), kind(name))).collect(),
            land::Rule::Fields,
        ),
    };
    (rule, Table::new(&source.name, &fields))
}

pub(super) fn land(config: &Config, mode: land::Mode) -> land::Options {
    let sources = config.sources.iter().map(|source| {
        let (rule, table) = rule_of(source);
        land::Source {
            table,
            topic: source.topic.as_str().to_owned(),
            group: source.group.clone(),
            consumers: source.consumers,
            rule,
        }
    });
    land::Options {
        bootstrap_servers: config.kafka.bootstrap_servers.trim().to_owned(),
        client_id: gateway_id(config),
        properties: config.kafka.properties.reveal().clone(),
        topic_ids: true,
        sources: sources.collect(),
        target: match config.land.sink {
            SinkKind::Sqlite => land::Target::Sqlite(config.land.path.clone()),
            SinkKind::Files => land::Target::Files(
                config.land.path.clone(),
                land::files::Rotation {
                    file_bytes_max: config.land.file_bytes_max,
                    file_age_max: config.land.file_age_max,
                },
            ),
            SinkKind::Postgres => land::Target::Postgres(config.land.url.reveal().unwrap_or_default().to_owned()),
        },
        batch_records_max: in_memory(config.land.batch_records_max.into()),
        batch_bytes_max: in_memory(config.land.batch_bytes_max),
        batch_wait: config.land.batch_wait,
        mode,
    }
}

/// `connections_max` may be lower than the configured one: the system has limits too.
pub(super) fn http(config: &Config, connections_max: u32, guard: Guard) -> http::Options {
    let sources = config.sources.iter().map(|source| http::Source {
        name: source.name.clone(),
        topic: source.topic.clone(),
        key: source.key.clone(),
        demand: (source.enforce == Enforce::Reject).then(|| {
            let (rule, table) = rule_of(source);
            land::Demand::new(rule, table)
        }),
    });
    http::Options {
        body_bytes_max: in_memory(config.http.body_bytes_max),
        record_bytes_max: in_memory(config.http.record_bytes_max),
        records_max: in_memory(config.http.records_max.into()),
        header_bytes_max: in_memory(config.http.header_bytes_max),
        headers_max: in_memory(config.http.headers_max.into()),
        connections_max: in_memory(connections_max.into()),
        in_flight_max: in_memory(config.http.in_flight_max.into()),
        header_timeout: config.http.header_timeout,
        body_timeout: config.http.body_timeout,
        idle_timeout: config.http.idle_timeout,
        shutdown_timeout: config.http.shutdown,
        topics: config.http.topics.clone(),
        sources: sources.collect(),
        requests_per_second_max_per_address: config.http.requests_per_second_max_per_address,
        requests_per_second_max_per_key: config.http.requests_per_second_max_per_key,
        trusted_proxies: config.http.trusted_proxies.clone(),
        tls: guard.tls,
        keys: guard.keys,
        admin_token: config.admin.token.reveal().map(str::to_owned),
        gateway_id: gateway_id(config),
    }
}

/// The configured name, else the host's.
pub(super) fn gateway_id(config: &Config) -> String {
    if !config.gateway.id.is_empty() {
        return config.gateway.id.clone();
    }
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if host.is_empty() { "tidegate".to_owned() } else { host }
}

/// A size that memory must hold anyway.
fn in_memory(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::config::{Broker, Inputs};

    #[test]
    fn the_largest_body_that_can_be_configured_fits_one_commit() {
        let largest = |text: &str| {
            let environment = vec![("TIDEGATE_HTTP__BODY_BYTES_MAX".into(), text.into())];
            Config::load(Inputs {
                environment,
                ..Inputs::default()
            })
        };
        assert!(largest(&wal::COMMIT_BYTES_MAX.to_string()).is_ok());
        assert!(largest(&(wal::COMMIT_BYTES_MAX + 1).to_string()).is_err());
    }

    #[test]
    fn a_source_cannot_take_a_path_of_the_gateway() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.toml");
        for name in http::SOURCE_NAMES_RESERVED {
            std::fs::write(&path, format!("[[source]]\nname = {name:?}\n")).unwrap();
            let inputs = Inputs {
                file: Some(path.clone()),
                ..Inputs::default()
            };
            let config = Config::load(inputs).unwrap();
            assert!(config.validate(Broker::MayBeEmbedded).is_err(), "{name}");
        }
    }
}
