//! The configuration: one checked [`Config`] from the built-in file, the operator's file, the environment
//! and flags, in that order.
//!
//! `config.toml` at the root of the repository IS the default: it is embedded, and it is the schema too
//! (`layers.rs`). Every value knows where it came from, so that each message can say what to change and
//! `config show` can say why a value is what it is. Secrets never appear in `Debug`, in messages or in
//! `config show`. Only this module, `cli` and `main` know a `Config`; everything else gets an `Options`
//! of its own. Nothing here opens a port, a log or a connection.

mod layers;
mod protected;
mod read;
mod salvage;
mod secret;
mod show;
#[cfg(test)]
mod tests;
mod unknown;
mod validate;
mod value;

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

#[cfg(any(test, fuzzing))]
pub(crate) use read::{parse_size, parse_time};
pub use secret::{Properties, Secret};
pub use show::Shown;
pub use validate::Broker;
pub use value::{Origin, Problem};

use crate::land::table::Kind;
use crate::record::Topic;

/// Names the operator's file when no flag does.
pub const FILE_VARIABLE: &str = "TIDEGATE_CONFIG";
/// Where an operator's file is looked for when neither flag nor variable names one.
pub const FILE_PLACES: &[&str] = &["config.toml", "/etc/tidegate/config.toml"];

/// Why there is no usable configuration. Each of them is exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file that was asked for cannot be read.
    #[error(
        "cannot read the configuration file {path}: {source}. Name another one with --config, or correct its place or permissions"
    )]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path}:{line}: this is not TOML: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What the parser said; never the line's text, which may be a secret.
        message: String,
    },
    /// Values that cannot be used, all of them.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    match lines.as_slice() {
        [one] => format!("the configuration cannot be used: {one}"),
        many => format!(
            "the configuration cannot be used, for {} reasons:\n  {}",
            many.len(),
            many.join("\n  ")
        ),
    }
}

/// Where values may come from. Nothing is read from the process itself, so that tests need no globals.
#[derive(Default)]
pub struct Inputs {
    /// The file from the command line.
    pub file: Option<PathBuf>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Flags: the key ("http.listen"), the flag ("--listen") and its value.
    pub flags: Vec<(&'static str, &'static str, String)>,
}

/// Everything that can be set. Made by [`Config::load`] only, so each value is within its range;
/// [`Config::validate`] checks what several of them mean together.
#[derive(Clone)]
pub struct Config {
    /// `[gateway]`
    pub gateway: Gateway,
    /// `[http]`
    pub http: Http,
    /// `[admin]`
    pub admin: Admin,
    /// `[wal]`
    pub wal: Wal,
    /// `[forward]`
    pub forward: Forward,
    /// `[kafka]`
    pub kafka: Kafka,
    /// `[land]`
    pub land: Land,
    /// `[[source]]`, in the order written.
    pub sources: Vec<Source>,
    /// `[log]`
    pub log: Log,
    layers: layers::Layers,
}

/// `[gateway]`
#[derive(Debug, Clone)]
pub struct Gateway {
    /// The name; empty: the host name.
    pub id: String,
}

/// The longest `http.idempotency_window`.
pub const IDEMPOTENCY_WINDOW_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// The most `http.idempotency_keys_max`.
pub const IDEMPOTENCY_KEYS_MAX: u32 = 1_000_000;

/// `[http]`: the listener for clients.
#[derive(Debug, Clone)]
pub struct Http {
    /// Address and port.
    pub listen: SocketAddr,
    /// Whether a listener without authentication may be reachable from other machines.
    pub allow_anonymous: bool,
    /// The file of API keys; empty: nobody is asked for one.
    pub api_keys_file: PathBuf,
    /// The certificate chain of TLS, PEM; empty: no TLS.
    pub tls_certificate_file: PathBuf,
    /// Its private key, PEM.
    pub tls_key_file: PathBuf,
    /// The CAs that clients' certificates must be of, PEM; empty: none is asked for.
    pub tls_client_ca_file: PathBuf,
    /// The most requests a second of one address; 0: no limit.
    pub requests_per_second_max_per_address: u32,
    /// The most requests a second of one key or client's certificate; 0: no limit.
    pub requests_per_second_max_per_key: u32,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The largest body, in bytes.
    pub body_bytes_max: u64,
    /// The largest record, in bytes.
    pub record_bytes_max: u64,
    /// The most records of a request.
    pub records_max: u32,
    /// The largest request head, in bytes.
    pub header_bytes_max: u64,
    /// The most headers of a request.
    pub headers_max: u32,
    /// The most connections.
    pub connections_max: u32,
    /// The most requests at once.
    pub in_flight_max: u32,
    /// Time for a request's head.
    pub header_timeout: Duration,
    /// Time for a request's body.
    pub body_timeout: Duration,
    /// Time that a connection may idle.
    pub idle_timeout: Duration,
    /// Time for the whole of a graceful shutdown.
    pub shutdown: Duration,
    /// Patterns of the topics that `/v1/topics/{topic}` may write to.
    pub topics: Vec<String>,
    /// How long an idempotency key is remembered.
    pub idempotency_window: Duration,
    /// The most idempotency keys that are remembered; 0: none is taken.
    pub idempotency_keys_max: u32,
}

/// `[admin]`: the listener for operators.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address and port.
    pub listen: SocketAddr,
    /// The bearer token; empty: none is asked for.
    pub token: Secret,
}

/// `[wal]`: the log.
#[derive(Debug, Clone)]
pub struct Wal {
    /// The folder.
    pub path: PathBuf,
    /// The most bytes it may take.
    pub bytes_max: u64,
    /// The bytes that must stay free on its file system.
    pub free_bytes_min: u64,
    /// The size of one generation, in bytes.
    pub generation_bytes: u64,
    /// Whether frames are compressed.
    pub compression: Compression,
    /// What is kept after the ack.
    pub retain: Retain,
    /// How long a commit waits for company.
    pub linger: Duration,
}

/// `wal.compression`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// lz4 for what it makes smaller.
    #[default]
    Lz4,
    /// As it is.
    None,
}

/// `wal.retain`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retain {
    /// Nothing.
    Off,
    /// So many bytes.
    Bytes(u64),
    /// As long as this.
    Time(Duration),
}

/// `[forward]`
#[derive(Debug, Clone)]
pub struct Forward {
    /// The guarantee.
    pub delivery: Delivery,
    /// The most payload bytes per second; none: no limit.
    pub bytes_per_second_max: Option<u64>,
    /// The most bytes of memory for records on their way, the Kafka client's share included.
    pub in_flight_bytes_max: u64,
}

/// `forward.delivery`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delivery {
    /// The idempotent producer.
    #[default]
    Idempotent,
    /// Transactions.
    ExactlyOnce,
}

/// `[kafka]`
#[derive(Debug, Clone)]
pub struct Kafka {
    /// The brokers, comma-separated; may be empty.
    pub bootstrap_servers: String,
    /// librdkafka's own properties.
    pub properties: Properties,
}

/// `[land]`: the lander.
#[derive(Debug, Clone)]
pub struct Land {
    /// Address and port of its own listener.
    pub listen: SocketAddr,
    /// What rows go to.
    pub sink: SinkKind,
    /// SQLite's file, or the folder of the files.
    pub path: PathBuf,
    /// PostgreSQL's URL, its password in it.
    pub url: Secret,
    /// A file of this size is complete.
    pub file_bytes_max: u64,
    /// A file of this age is complete.
    pub file_age_max: Duration,
    /// The most records of a transaction.
    pub batch_records_max: u32,
    /// The most bytes of a transaction.
    pub batch_bytes_max: u64,
    /// How long a transaction waits for records.
    pub batch_wait: Duration,
    /// Time for the whole of a graceful shutdown.
    pub shutdown: Duration,
}

/// `land.sink`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SinkKind {
    /// A SQLite database.
    #[default]
    Sqlite,
    /// A PostgreSQL database.
    Postgres,
    /// JSON lines in files.
    Files,
}

/// `[[source]]`
#[derive(Debug, Clone)]
pub struct Source {
    /// The path segment.
    pub name: String,
    /// The topic.
    pub topic: Topic,
    /// The field whose value is the Kafka key.
    pub key: Option<String>,
    /// What a record should have; for the lander.
    pub fields: Fields,
    /// What fields hold other than text; for the lander.
    pub types: Vec<(String, Kind)>,
    /// The consumer group; for the lander.
    pub group: String,
    /// How many consumers; for the lander.
    pub consumers: usize,
    /// What happens to a record that breaks the rule.
    pub enforce: Enforce,
    origin: Origin,
}

/// What a source says of its records' fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fields {
    /// Nothing.
    Any,
    /// Their names.
    Names(Vec<String>),
    /// How many.
    Count(usize),
}

/// `enforce` of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforce {
    /// Taken, and marked by the lander.
    Mark,
    /// Not taken: the client is told why.
    Reject,
}

/// `[log]`
#[derive(Debug, Clone, Copy)]
pub struct Log {
    /// For people or for machines.
    pub format: LogFormat,
    /// What is told.
    pub level: LogLevel,
}

/// `log.format`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// `log.level`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogLevel {
    /// Faults only.
    Error,
    /// And what needs attention.
    Warn,
    /// And what happens.
    #[default]
    Info,
    /// And why.
    Debug,
    /// Everything.
    Trace,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("gateway", &self.gateway)
            .field("http", &self.http)
            .field("admin", &self.admin)
            .field("wal", &self.wal)
            .field("forward", &self.forward)
            .field("kafka", &self.kafka)
            .field("land", &self.land)
            .field("sources", &self.sources)
            .field("log", &self.log)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// Reads every layer. Each value is then within its range, and [`Config::validate`] is next.
    ///
    /// # Errors
    /// [`ConfigError`]; problems with values are collected, not told one by one.
    pub fn load(inputs: Inputs) -> Result<Self, ConfigError> {
        let file = file_to_read(&inputs);
        read::read(&every_layer(&inputs, file)?).map_err(ConfigError::Invalid)
    }

    /// What a file of this text makes, for src/decoders.rs.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_text(text: &str) -> Result<Self, ConfigError> {
        let syntax = |error: layers::SyntaxError| ConfigError::Syntax {
            path: "config.toml".to_owned(),
            line: error.line,
            message: error.message,
        };
        let mut layers = layers::Layers::built_in().map_err(syntax)?;
        layers.add_file("config.toml", text).map_err(syntax)?;
        read::read(&layers).map_err(ConfigError::Invalid)
    }

    /// Where the value of "section.key" came from; what nobody set is built in.
    #[must_use]
    pub fn origin(&self, key: &str) -> Origin {
        self.layers
            .entry(key)
            .map_or(Origin::BuiltIn, |entry| entry.origin.clone())
    }

    /// Where each value came from.
    pub fn origins(&self) -> impl Iterator<Item = &Origin> {
        let layers = &self.layers;
        let sources = layers.sources.iter().flat_map(|source| source.entries.values());
        let plain = layers.entries.iter().map(|(_, entry)| entry);
        plain
            .chain(layers.properties.values())
            .chain(sources)
            .map(|entry| &entry.origin)
    }

    /// The file that was read, if any.
    #[must_use]
    pub fn file(&self) -> Option<&str> {
        self.layers.file.as_deref()
    }
}

/// Every layer, this file among them.
fn every_layer(inputs: &Inputs, file: Option<PathBuf>) -> Result<layers::Layers, ConfigError> {
    let syntax = |path: &str, error: layers::SyntaxError| ConfigError::Syntax {
        path: path.to_owned(),
        line: error.line,
        message: error.message,
    };
    let mut layers = layers::Layers::built_in().map_err(|error| syntax("built-in config.toml", error))?;
    if let Some(path) = file {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: name.clone(),
            source,
        })?;
        layers.add_file(&name, &text).map_err(|error| syntax(&name, error))?;
        layers.file = Some(name);
    }
    layers.add_environment(inputs.environment.iter().cloned());
    for (key, flag, value) in &inputs.flags {
        layers.set_from_text(key, Origin::Flag(flag), value);
    }
    Ok(layers)
}

/// A file that was asked for must be there; of the usual places, the first that has one.
fn file_to_read(inputs: &Inputs) -> Option<PathBuf> {
    let from_variable = || {
        inputs
            .environment
            .iter()
            .find(|(name, value)| name == FILE_VARIABLE && !value.is_empty())
            .map(|(_, value)| PathBuf::from(value))
    };
    inputs.file.clone().or_else(from_variable).or_else(|| {
        FILE_PLACES
            .iter()
            .map(Path::new)
            .find(|place| place.exists())
            .map(Path::to_path_buf)
    })
}
