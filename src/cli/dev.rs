//! `tidegate dev`: the whole way on one machine with nothing else installed.
//!
//! A broker is embedded while none is configured; it keeps what it gets in memory, for this run. Each
//! delivery is a line on stdout, everything else goes to stderr.

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

use super::ask::reachable;
use super::gateway::{self, Addresses, Plan};
use super::options;
use super::words::one_line;
use crate::config::{Broker, Config, Http, SinkKind};
use crate::forward::{self, EmbeddedBroker};
use crate::land::Mode;

/// The most characters of a value that a line shows.
const VALUE_CHARACTERS_MAX: usize = 120;

pub(super) fn run(config: &Config) -> Result<()> {
    config.validate(Broker::MayBeEmbedded)?;
    config.validate_land(true)?;
    let mut config = config.clone();
    let mut forward = options::forward(&config);
    let mut land = options::land(&config, Mode::Forever);
    // Lives until the gateway has ended.
    let embedded = if forward.bootstrap_servers.is_empty() {
        Some(EmbeddedBroker::start().context("the embedded broker did not start")?)
    } else {
        None
    };
    let kind = match &embedded {
        Some(broker) => {
            forward.bootstrap_servers = broker.bootstrap_servers();
            forward.properties.extend(EmbeddedBroker::properties());
            land.bootstrap_servers = broker.bootstrap_servers();
            land.properties.extend(EmbeddedBroker::properties());
            land.topic_ids = false;
            for source in &land.sources {
                let made = broker.make_topic(&source.topic);
                made.context("the embedded broker did not make a source's topic")?;
            }
            // Its topics are made by their first records: they are looked for more often.
            let often = ("topic.metadata.refresh.interval.ms".to_owned(), "1000".to_owned());
            land.properties.extend([often]);
            // The log of a real gateway must never drain into a broker that forgets.
            config.wal.path = beside(&config.wal.path);
            "embedded: it forgets everything when this ends"
        }
        None => "from the configuration",
    };
    forward.on_delivery = Some(Box::new(print_deliveries()));
    let path = example_path(&config);
    let query = example_query(&config);
    let broker = format!("{} ({kind})", forward.bootstrap_servers);
    let reach = Reach::of(&config.http);
    gateway::run(Plan {
        config: &config,
        forward,
        land: Some(land),
        on_listening: Box::new(move |addresses| {
            eprint!("{}", greeting(addresses, &reach, &path, &broker, query.as_deref()))
        }),
    })
}

/// `data/wal-dev` for `data/wal`, and for `data/wal/` too.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or(OsStr::new("wal")).to_owned();
    name.push("-dev");
    match path.file_name() {
        Some(_) => path.with_file_name(name),
        // "." or "..": inside is the only place that is known.
        None => path.join(name),
    }
}

/// Where the example goes: the source that everybody has, else the first, else a topic.
fn example_path(config: &Config) -> String {
    let names = || config.sources.iter().map(|source| source.name.as_str());
    match names().find(|name| *name == "financial_pro").or_else(|| names().next()) {
        Some(name) => format!("/{name}"),
        None => "/v1/topics/try".to_owned(),
    }
}

/// How to see the example's row, once it is landed.
fn example_query(config: &Config) -> Option<String> {
    let path = example_path(config);
    let source = path.strip_prefix('/').filter(|name| !name.contains('/'))?;
    let place = config.land.path.display();
    let query = format!("SELECT * FROM \"{source}\" ORDER BY received_at DESC LIMIT 5");
    Some(match config.land.sink {
        SinkKind::Sqlite => format!("sqlite3 {place} '{query}'"),
        SinkKind::Postgres => format!("psql URL -c '{query}'   (URL: that of land.url)"),
        SinkKind::Files => format!("tail {place}/{source}/valid/*"),
    })
}

/// How a client gets in.
struct Reach {
    scheme: &'static str,
    /// What curl needs for it.
    options: String,
}

impl Reach {
    fn of(http: &Http) -> Self {
        let is_set = |file: &Path| !file.as_os_str().is_empty();
        let mut reach = Self {
            scheme: "http",
            options: String::new(),
        };
        if is_set(&http.tls_certificate_file) {
            reach.scheme = "https";
            reach.options.push_str("--cacert CA_FILE ");
        }
        if is_set(&http.tls_client_ca_file) {
            reach.options.push_str("--cert YOUR_CERTIFICATE --key ITS_KEY ");
        }
        if is_set(&http.api_keys_file) {
            reach.options.push_str("-H 'x-api-key: KEY' ");
        }
        reach
    }
}

fn greeting(addresses: Addresses, reach: &Reach, path: &str, broker: &str, query: Option<&str>) -> String {
    let (ingest, admin) = (reachable(addresses.ingest), reachable(addresses.admin));
    let Reach { scheme, options } = reach;
    let curl = if path.starts_with("/v1/") {
        format!(
            "curl {options}-H 'content-type: application/json' -d '{{\"test01\":\"111\"}}' {scheme}://{ingest}{path}"
        )
    } else {
        format!("curl {options}-d 'test01=111&test02=222&test03=ccc&test04=ddd' {scheme}://{ingest}{path}")
    };
    let query = query.map_or_else(String::new, |query| {
        format!("  and the row, a moment later, with:\n\n    {query}\n\n")
    });
    format!(
        "\n  records in    {scheme}://{ingest}\n  status page   http://{admin}/\n  metrics       http://{admin}/metrics\n  Kafka         {broker}\n\n  Try it in \
         another terminal; the record then appears here:\n\n    {curl}\n\n{query}"
    )
}

/// Prints until nobody reads any more.
fn print_deliveries() -> impl Fn(&forward::Delivery<'_>) + Send + Sync {
    let reading = AtomicBool::new(true);
    move |delivery| {
        if !reading.load(Ordering::Relaxed) {
            return;
        }
        let line = format!(
            "delivered topic={} partition={} offset={} seq={} value={}\n",
            delivery.topic,
            delivery.partition,
            delivery.offset,
            delivery.seq,
            delivery.value.map_or_else(
                || "(none: a tombstone)".to_owned(),
                |value| one_line(value, VALUE_CHARACTERS_MAX)
            )
        );
        if io::stdout().lock().write_all(line.as_bytes()).is_err() {
            reading.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::net::SocketAddr;

    use super::*;
    use crate::config::Inputs;

    #[test]
    fn the_log_of_a_trial_lies_beside_the_real_one() {
        for path in ["data/wal", "data/wal/"] {
            assert_eq!(beside(Path::new(path)), Path::new("data/wal-dev"));
        }
    }

    #[test]
    fn the_printed_address_can_be_connected_to() {
        let addresses = Addresses {
            ingest: SocketAddr::from(([0, 0, 0, 0], 4000)),
            admin: SocketAddr::from(([127, 0, 0, 1], 4001)),
        };
        let environment = |keys: &[(&str, &str)]| {
            let environment = keys.iter().map(|(name, value)| ((*name).into(), (*value).into()));
            let inputs = Inputs {
                environment: environment.collect(),
                ..Inputs::default()
            };
            Reach::of(&Config::load(inputs).unwrap().http)
        };
        let text = |reach: &Reach| greeting(addresses, reach, "/financial_pro", "127.0.0.1:1 (embedded)", None);
        let guarded = environment(&[
            ("TIDEGATE_HTTP__API_KEYS_FILE", "k"),
            ("TIDEGATE_HTTP__TLS_CERTIFICATE_FILE", "c"),
        ]);
        let guarded = text(&guarded);
        assert!(
            guarded.contains("curl --cacert CA_FILE -H 'x-api-key: KEY' -d"),
            "{guarded}"
        );
        assert!(guarded.contains("https://127.0.0.1:4000/financial_pro"), "{guarded}");
        let text = text(&environment(&[]));
        assert!(text.contains("http://127.0.0.1:4000/financial_pro"), "{text}");
        assert!(text.contains("status page   http://127.0.0.1:4001/\n"), "{text}");
    }
}
