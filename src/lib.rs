//! tidegate: a durable ingest gateway for sites with an unreliable network.
//!
//! An HTTP request is on the local disk (fdatasync returned) before its client reads OK; a forwarder
//! drains that log to Kafka and removes nothing before Kafka acknowledged it.
//!
//! # The layers
//! A module may name those above it in this table and nothing else; `tests/tidy.rs` fails otherwise.
//!
//! | module | what it is | what it never knows |
//! |---|---|---|
//! | [`record`] | a record, its topic, its sequence, the identity of a WAL | anybody |
//! | [`metrics`] | every metric name, once | anybody |
//! | [`wal`] | the log on disk: append, commit, read, ack | tokio's runtime, HTTP, Kafka, configuration |
//! | [`ingest`] | bytes from a client -> records | axum, the log, the clock |
//! | [`forward`] | the log -> Kafka -> the watermark | HTTP, sled |
//! | [`http`] | the two listeners; the only place that names axum | sled, rdkafka |
//! | [`config`] | file, environment and flags -> one checked `Config` | everything below: others get an `Options` of their own |
//! | [`telemetry`] | log lines, as text or JSON | everything but `config` |
//! | [`cli`] | the commands: wiring only; the only place that names clap | nothing |

pub mod cli;
pub mod config;
pub mod forward;
pub mod http;
pub mod ingest;
pub mod metrics;
pub mod record;
pub mod telemetry;
pub mod wal;
