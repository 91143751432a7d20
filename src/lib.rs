//! tidegate: a durable ingest gateway for sites with an unreliable network.
//!
//! An HTTP request is on the local disk (fdatasync returned) before its client reads OK; a forwarder
//! drains that log to Kafka and removes nothing before Kafka acknowledged it; a lander takes the records
//! from Kafka into a database or files, each of them once.
//!
//! # The layers
//! A module may name those above it in this table and nothing else; `tests/tidy.rs` fails otherwise.
//!
//! | module | what it is | what it never knows |
//! |---|---|---|
//! | `docs` | for tests: pages of docs/ that are made from the code | anybody |
//! | [`record`] | a record, its topic, its sequence, the identity of a WAL | anybody |
//! | [`metrics`] | every metric name, once | anybody |
//! | `words` | how values are written for people | anybody |
//! | `watched` | files that may be replaced while the process runs | what is in them |
//! | [`keys`] | API keys: their file, who they belong to, what those may do | requests, headers |
//! | `kafka` | what every client of Kafka shares: settings, the connection's state, raw calls | the log, tables, HTTP, configuration |
//! | [`wal`] | the log on disk: append, commit, read, ack | tokio's runtime, HTTP, Kafka, configuration |
//! | [`ingest`] | bytes from a client -> records | axum, the log, the clock |
//! | [`land`] | Kafka -> rules -> a database or files, each record once | the log, ingest, HTTP, configuration |
//! | [`forward`] | the log -> Kafka -> the watermark | HTTP, sled |
//! | [`ops`] | what operators do with a log, for the command line and the admin listener alike | HTTP, Kafka, configuration |
//! | [`http`] | the listeners; the only place that names axum | sled, rdkafka |
//! | [`config`] | file, environment and flags -> one checked `Config` | everything below: others get an `Options` of their own |
//! | [`telemetry`] | log lines, as text or JSON | everything but `config` |
//! | [`cli`] | the commands: wiring only; the only place that names clap | nothing |
//! | `decoders` | for tests and fuzzing: every decoder of bytes from outside, and what must hold of it | files, connections |

pub mod cli;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod decoders;
#[cfg(test)]
mod docs;
pub mod forward;
pub mod http;
pub mod ingest;
mod kafka;
pub mod keys;
pub mod land;
pub mod metrics;
pub mod ops;
pub mod record;
pub mod telemetry;
pub mod wal;
mod watched;
mod words;
