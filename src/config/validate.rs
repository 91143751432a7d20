//! What several values mean together, checked before any port is bound and any folder is touched.
//!
//! A value on its own was checked when it was read (`read.rs`). Whether an address is free, a folder
//! writable or a broker there is not known here: that shows when they are used.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;

use super::value::Problem;
use super::{Config, ConfigError, Fields, SinkKind, Source, protected};
use crate::land::table::{META, POSITIONS, REJECTED};
use crate::record::{TOPIC_BYTES_MAX, Topic};

/// Paths of the ingest listener that no source may take.
const PATHS_TAKEN: &[&str] = &["hello", "user", "v1", "v3", "topics", "openapi.json"];
/// The longest name of a source, in bytes: it becomes a table's name too.
const SOURCE_NAME_BYTES_MAX: usize = 100;
/// The longest name of a gateway, in bytes.
const GATEWAY_ID_BYTES_MAX: usize = 200;
/// A shorter token can be guessed.
const TOKEN_BYTES_MIN: usize = 16;
/// librdkafka's default of `message.max.bytes`.
const MESSAGE_BYTES_MAX: u64 = 1_000_000;
/// What a record takes in librdkafka's count beside its payload: headers and framing.
const FRAMING_BYTES: u64 = 4096;
/// A log of fewer generations would refuse records while it still waits for one to be acknowledged.
const GENERATIONS_MIN: u64 = 4;

/// The longest name that becomes a table's or a column's, bytes: PostgreSQL cuts off at 63, and views end in `_invalid`.
const LANDED_NAME_BYTES_MAX: usize = 55;
/// Beginnings of names that databases keep for themselves.
const TABLE_PREFIXES_TAKEN: &[&str] = &["sqlite_", "pg_", "tidegate_"];

/// `land.path` as it is shipped.
const DATABASE: &str = "data/tidegate.db";

/// Where the Kafka of a command comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// `kafka.bootstrap_servers` must name it.
    Configured,
    /// One is embedded while `kafka.bootstrap_servers` is empty.
    MayBeEmbedded,
}

impl Config {
    /// Checks everything that can be checked without touching the machine.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with everything that is wrong.
    pub fn validate(&self, broker: Broker) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        self.check_listeners(&mut problems);
        self.check_limits(&mut problems);
        self.check_kafka(broker, &mut problems);
        self.check_topics(&mut problems);
        self.check_sources(&mut problems);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(problems))
        }
    }

    /// Checks what the lander needs beyond [`Config::validate`]; `beside`: it shares its process with a gateway.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with everything that is wrong.
    pub fn validate_land(&self, beside: bool) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        let listen = self.land.listen;
        if !is_loopback(listen) && self.admin.token.reveal().is_none() {
            problems.push(self.problem(
                "land.listen",
                format!(
                    "land.listen is {listen}: other machines can reach it, and admin.token is empty. Listen on 127.0.0.1, \
                     or set admin.token (TIDEGATE_ADMIN__TOKEN)"
                ),
            ));
        }
        let others = [("http.listen", self.http.listen), ("admin.listen", self.admin.listen)];
        for (key, other) in others {
            if beside && other.port() != 0 && other.port() == listen.port() {
                problems.push(self.problem(
                    "land.listen",
                    format!("land.listen ({listen}) and {key} ({other}) take the same port: give one another port"),
                ));
            }
        }
        if self.land.sink == SinkKind::Postgres && self.land.url.reveal().is_none() {
            let message = "land.url is empty: name the database, as postgres://user:password@host:5432/database \
                           (TIDEGATE_LAND__URL keeps the password out of files)"
                .to_owned();
            problems.push(self.problem("land.sink", message));
        }
        if self.land.path.as_os_str().is_empty() {
            let message = "land.path is empty: name the database's file, such as \"data/tidegate.db\"".to_owned();
            problems.push(self.problem("land.path", message));
        }
        if self.land.sink == SinkKind::Files && self.land.path == Path::new(DATABASE) {
            let message = format!(
                "land.sink is \"files\", and land.path is still {DATABASE:?}, the file of a database: name the folder for the \
                 files, such as path = \"data/landed\""
            );
            problems.push(self.problem("land.sink", message));
        }
        if self.sources.is_empty() && !beside {
            let message = "there is no [[source]], so there is nothing to land: declare one".to_owned();
            problems.push(self.problem("source", message));
        }
        self.check_tables(&mut problems);
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError::Invalid(problems))
        }
    }

    /// Sources as tables, fields as columns.
    fn check_tables(&self, problems: &mut Vec<Problem>) {
        let mut tables: HashSet<String> = [REJECTED, POSITIONS, META].map(str::to_owned).into();
        let mut shared = HashSet::new();
        for source in &self.sources {
            let mut wrong = |message: String| problems.push(Problem::at(&source.origin, message));
            if !shared.insert((source.topic.as_str(), source.group.as_str())) {
                wrong(format!(
                    "another source reads topic {:?} with the group {:?}: each would get only some of the partitions. Give \
                     source {:?} a group of its own",
                    source.topic.as_str(),
                    source.group,
                    source.name
                ));
            }
            let name = source.name.to_lowercase();
            let prefix = TABLE_PREFIXES_TAKEN.iter().find(|prefix| name.starts_with(**prefix));
            if let Some(prefix) = prefix {
                wrong(format!(
                    "the source's name {name:?} cannot be a table: databases keep names that begin with {prefix:?} for \
                     themselves. Give it another name (its topic may stay)"
                ));
            }
            if name.len() > LANDED_NAME_BYTES_MAX {
                wrong(format!(
                    "the source's name {name:?} is longer than {LANDED_NAME_BYTES_MAX} bytes and cannot be a table: give it a \
                     shorter one (its topic may stay)"
                ));
            }
            for table in [name.clone(), format!("{name}_valid"), format!("{name}_invalid")] {
                if !tables.insert(table.clone()) {
                    wrong(format!(
                        "the source {:?} needs a table or view {table:?}, which another source or the lander itself has: give \
                         it another name (its topic may stay)",
                        source.name
                    ));
                }
            }
            let Fields::Names(fields) = &source.fields else {
                continue;
            };
            for field in fields {
                if field.len() > LANDED_NAME_BYTES_MAX || field.chars().any(char::is_control) {
                    wrong(format!(
                        "fields of source {:?} has {field:?}, which cannot be a column: use at most {LANDED_NAME_BYTES_MAX} \
                         bytes and no control characters",
                        source.name
                    ));
                }
            }
        }
    }

    fn problem(&self, key: &str, message: String) -> Problem {
        Problem {
            origin: self.layers.entry(key).map(|entry| entry.origin.clone()),
            message,
        }
    }

    fn check_listeners(&self, problems: &mut Vec<Problem>) {
        let (ingest, admin) = (self.http.listen, self.admin.listen);
        let http = &self.http;
        let is_set = |file: &Path| !file.as_os_str().is_empty();
        let (with_keys, with_certificates) = (is_set(&http.api_keys_file), is_set(&http.tls_client_ca_file));
        if !is_loopback(ingest) && !http.allow_anonymous && !with_keys && !with_certificates {
            problems.push(self.problem(
                "http.listen",
                format!(
                    "http.listen is {ingest}: other machines can reach it, and there is no authentication. Have clients send \
                     an API key (http.api_keys_file) or a certificate (http.tls_client_ca_file), listen on 127.0.0.1, or write \
                     http.allow_anonymous = true to say that anybody there may send records"
                ),
            ));
        }
        if http.allow_anonymous && (with_keys || with_certificates) {
            let key = if with_keys {
                "http.api_keys_file"
            } else {
                "http.tls_client_ca_file"
            };
            problems.push(self.problem(
                "http.allow_anonymous",
                format!(
                    "http.allow_anonymous = true lets everybody send, and {key} asks everybody who they are: they contradict \
                     each other. Remove one of them"
                ),
            ));
        }
        if http.requests_per_second_max_per_key > 0 && !with_keys && !with_certificates {
            let message = "http.requests_per_second_max_per_key is set, and nothing tells who sends: set http.api_keys_file or \
                           http.tls_client_ca_file too, or http.requests_per_second_max_per_address instead";
            problems.push(self.problem("http.requests_per_second_max_per_key", message.to_owned()));
        }
        let (certificate, key) = (is_set(&http.tls_certificate_file), is_set(&http.tls_key_file));
        for (there, missing, missing_key) in [
            ("http.tls_certificate_file", certificate && !key, "http.tls_key_file"),
            ("http.tls_key_file", key && !certificate, "http.tls_certificate_file"),
            (
                "http.tls_client_ca_file",
                with_certificates && !certificate && !key,
                "http.tls_certificate_file",
            ),
        ] {
            if missing {
                let message = format!("{there} is set and {missing_key} is empty: TLS needs a certificate and its key");
                problems.push(self.problem(there, message));
            }
        }
        if !is_loopback(admin) && self.admin.token.reveal().is_none() {
            problems.push(self.problem(
                "admin.listen",
                format!(
                    "admin.listen is {admin}: other machines can reach it, and admin.token is empty. Listen on \
                     127.0.0.1, or set admin.token (TIDEGATE_ADMIN__TOKEN)"
                ),
            ));
        }
        if self
            .admin
            .token
            .reveal()
            .is_some_and(|token| token.len() < TOKEN_BYTES_MIN)
        {
            problems.push(self.problem(
                "admin.token",
                format!(
                    "admin.token is shorter than {TOKEN_BYTES_MIN} characters and could be guessed: use a longer one"
                ),
            ));
        }
        if self
            .admin
            .token
            .reveal()
            .is_some_and(|token| token.bytes().any(|byte| !byte.is_ascii_graphic()))
        {
            problems.push(
                self.problem(
                    "admin.token",
                    "admin.token has a character that cannot stand in a header: use letters, digits and punctuation, \
                 without spaces"
                        .to_owned(),
                ),
            );
        }
        let one_address = ingest.ip() == admin.ip() || ingest.ip().is_unspecified() || admin.ip().is_unspecified();
        if ingest.port() != 0 && ingest.port() == admin.port() && one_address {
            problems.push(self.problem(
                "admin.listen",
                format!("http.listen ({ingest}) and admin.listen ({admin}) take the same port: give one another port"),
            ));
        }
    }

    fn check_limits(&self, problems: &mut Vec<Problem>) {
        let id = &self.gateway.id;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.len() > GATEWAY_ID_BYTES_MAX || !id.chars().all(legal) {
            let message =
                format!("gateway.id is {id:?}: use at most {GATEWAY_ID_BYTES_MAX} letters, digits, '.', '_' and '-'");
            problems.push(self.problem("gateway.id", message));
        }
        if self.wal.path.as_os_str().is_empty() {
            let message = "wal.path is empty: name the folder of the log, such as \"data/wal\"".to_owned();
            problems.push(self.problem("wal.path", message));
        }
        let (bytes_max, generation) = (self.wal.bytes_max, self.wal.generation_bytes);
        if bytes_max < GENERATIONS_MIN.saturating_mul(generation) {
            problems.push(self.problem(
                "wal.bytes_max",
                format!(
                    "wal.bytes_max ({}) is less than {GENERATIONS_MIN} times wal.generation_bytes ({}): space comes back \
                     one generation at a time, so raise the one or lower the other",
                    size(bytes_max),
                    size(generation)
                ),
            ));
        }
        let record = self.http.record_bytes_max;
        for (key, limit) in [
            ("http.body_bytes_max", self.http.body_bytes_max),
            ("forward.in_flight_bytes_max", self.forward.in_flight_bytes_max),
        ] {
            if record > limit {
                let message = format!(
                    "http.record_bytes_max ({}) is more than {key} ({}): such a record could never pass. Raise {key}, or \
                     lower http.record_bytes_max",
                    size(record),
                    size(limit)
                );
                problems.push(self.problem("http.record_bytes_max", message));
            }
        }
    }

    fn check_kafka(&self, broker: Broker, problems: &mut Vec<Problem>) {
        let servers = self.kafka.bootstrap_servers.trim();
        if servers.is_empty() && broker == Broker::Configured {
            problems.push(self.problem(
                "kafka.bootstrap_servers",
                "kafka.bootstrap_servers is empty: name the brokers, such as \"kafka-1:9092,kafka-2:9092\" (--bootstrap-servers, \
                 TIDEGATE_KAFKA__BOOTSTRAP_SERVERS). To try tidegate without Kafka: `tidegate dev`"
                    .to_owned(),
            ));
        }
        if !servers.is_empty() {
            for server in servers.split(',').map(str::trim) {
                if !is_broker_address(server) {
                    problems.push(self.problem(
                        "kafka.bootstrap_servers",
                        format!("kafka.bootstrap_servers has {server:?}: write host:port, several of them with commas between"),
                    ));
                }
            }
        }
        for (name, entry) in &self.layers.properties {
            if let Some(refusal) = protected::refusal(name) {
                problems.push(Problem::at(
                    &entry.origin,
                    format!("kafka.properties {name:?} {refusal}"),
                ));
            }
        }
        let partitioner = self.kafka.properties.reveal().get("partitioner");
        if partitioner.is_some_and(|partitioner| partitioner.trim() == "random") {
            problems.push(
                self.problem(
                    "kafka.properties.partitioner",
                    "kafka.properties \"partitioner\" cannot be random, because the records of one key would lose their \
                 order: remove it, or use \"murmur2_random\""
                        .to_owned(),
                ),
            );
        }
        self.check_message_size(problems);
    }

    /// A record that is accepted must be one that the producer takes.
    fn check_message_size(&self, problems: &mut Vec<Problem>) {
        let set = self.kafka.properties.reveal().get("message.max.bytes");
        let limit = match set.map(|text| text.trim().parse::<u64>()) {
            None => MESSAGE_BYTES_MAX,
            Some(Ok(limit)) => limit,
            // librdkafka says what is wrong with it.
            Some(Err(_)) => return,
        };
        let record = self.http.record_bytes_max;
        if record.saturating_add(FRAMING_BYTES) > limit {
            problems.push(self.problem(
                "http.record_bytes_max",
                format!(
                    "http.record_bytes_max ({}) and {FRAMING_BYTES} bytes for headers and framing are more than Kafka's \
                     client takes (kafka.properties \"message.max.bytes\", {limit} bytes): lower the one, or raise the other here and on the brokers",
                    size(record)
                ),
            ));
        }
    }

    fn check_topics(&self, problems: &mut Vec<Problem>) {
        for pattern in &self.http.topics {
            // A star may stand for nothing: what is left of the pattern must be part of a legal name.
            let fixed: String = pattern.chars().filter(|c| *c != '*').collect();
            let legal = match Topic::parse(&fixed) {
                Ok(_) => true,
                Err(_) => pattern.contains('*') && matches!(fixed.as_str(), "" | "." | ".."),
            };
            if !legal {
                problems.push(self.problem(
                    "http.topics",
                    format!(
                        "http.topics has {pattern:?}, which no topic can match: a topic has 1 to {TOPIC_BYTES_MAX} of \
                         a-z A-Z 0-9 . _ -, and '*' stands for any of them"
                    ),
                ));
            }
        }
    }

    fn check_sources(&self, problems: &mut Vec<Problem>) {
        let mut names = HashSet::new();
        for source in &self.sources {
            let mut wrong = |message: String| problems.push(Problem::at(&source.origin, message));
            let name = &source.name;
            if !names.insert(name.as_str()) {
                wrong(format!("there is another source {name:?}: give each a name of its own"));
            }
            if let Some(message) = source_name_problem(name) {
                wrong(format!("the source's name {name:?} {message}"));
            }
            check_source(source, &mut wrong);
        }
    }
}

fn check_source(source: &Source, wrong: &mut dyn FnMut(String)) {
    let (name, topic) = (&source.name, source.topic.as_str());
    if topic.starts_with("__") {
        wrong(format!(
            "topic of source {name:?} is {topic:?}: topics that begin with \"__\" are Kafka's own"
        ));
    }
    let names: &[String] = match &source.fields {
        Fields::Names(names) => names,
        Fields::Any | Fields::Count(_) => &[],
    };
    let mut typed = HashSet::new();
    for (field, _) in &source.types {
        if !names.contains(field) {
            wrong(format!(
                "types of source {name:?} has {field:?}, which is none of its fields: correct it, or add it to fields"
            ));
        }
        if !typed.insert(field.as_str()) {
            wrong(format!("types of source {name:?} has {field:?} twice"));
        }
    }
    let Fields::Names(fields) = &source.fields else {
        return;
    };
    if fields.is_empty() || fields.iter().any(String::is_empty) {
        wrong(format!(
            "fields of source {name:?} has no name, or an empty one: name each field"
        ));
    }
    let mut seen = HashSet::new();
    if let Some(twice) = fields.iter().find(|field| !seen.insert(field.as_str())) {
        wrong(format!("fields of source {name:?} names {twice:?} twice"));
    }
    if let Some(key) = source.key.as_ref().filter(|key| !fields.contains(key)) {
        wrong(format!(
            "key of source {name:?} is {key:?}, which is none of its fields"
        ));
    }
}

fn source_name_problem(name: &str) -> Option<String> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if PATHS_TAKEN.contains(&name) {
        return Some("is a path of the gateway itself: take another".to_owned());
    }
    if name.is_empty() || name.len() > SOURCE_NAME_BYTES_MAX || !name.chars().all(legal) || matches!(name, "." | "..") {
        return Some(format!(
            "cannot be a path: use 1 to {SOURCE_NAME_BYTES_MAX} letters, digits, '.', '_' and '-'"
        ));
    }
    None
}

/// Whether only this machine can reach the address.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// host, host:port or PROTOCOL://host:port, as librdkafka takes them.
fn is_broker_address(server: &str) -> bool {
    let address = server.split_once("://").map_or(server, |(_, address)| address);
    let (host, port) = match address.rsplit_once(':') {
        // More than one colon without brackets is an IPv6 address without a port.
        Some((host, _)) if host.contains(':') && !host.ends_with(']') => (address, None),
        Some((host, port)) => (host, Some(port)),
        None => (address, None),
    };
    !host.is_empty()
        && !host.chars().any(|c| c.is_whitespace() || c == '/')
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).to_string()
}
