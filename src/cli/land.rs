//! `tidegate land`: from Kafka into a database or files, until a signal, or once.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::exit::{LanderError, StoppedError};
use super::supervisor::{Look, Supervisor};
use super::{listen, options, print, signals};
use crate::config::{Broker, Config};
use crate::land::{self, Handle, Lander, Mode, Target};
use crate::{http, metrics, telemetry};

/// How often is looked whether the lander is done, or has stopped.
const LOOK: Duration = Duration::from_millis(50);
/// How long the lander may take beyond land.shutdown: a transaction that the database holds up, leaving the group.
const GRACE: Duration = Duration::from_secs(3);
/// How long the listener may take to finish its answers.
const LISTENER_GRACE: Duration = Duration::from_secs(1);

/// How to run.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Flags {
    /// Land everything up to the topics' present end, then exit
    #[arg(long)]
    once: bool,
    /// Write nothing: read the topics from their beginning to their present end, outside the consumer groups, and print
    /// how many records would be valid, invalid, duplicates and rejected. Of duplicates it finds those that are read together
    /// with their first: what lies further apart, or was landed before, counts as valid here
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(flags: &Flags, config: &Config) -> Result<()> {
    config.validate(Broker::Configured)?;
    config.validate_land(false)?;
    let mode = match (flags.dry_run, flags.once) {
        (true, _) => Mode::DryRun,
        (false, true) => Mode::Once,
        (false, false) => Mode::Forever,
    };
    // Its listener shows no log lines.
    drop(telemetry::init(config.log, telemetry::colour())?);
    let runtime = Runtime::new().context("no threads could be started")?;
    let result = runtime.block_on(start(config, mode));
    // A thread that hangs on a dead database must not keep the process.
    runtime.shutdown_background();
    result
}

async fn start(config: &Config, mode: Mode) -> Result<()> {
    let stop = signals::shutdown_token().context("signals cannot be handled")?;
    let scrape = metrics::install(metrics::Process::Lander)?;
    let landing = Landing::start(config, options::land(config, mode), scrape).await?;
    let handle = landing.handle.clone();
    let supervisor = {
        let handle = handle.clone();
        Supervisor::ready(move || look(&handle.status()))
    };
    let ended = tokio::select! {
        () = stop.cancelled() => Ok(()),
        ended = ended(&handle) => ended,
    };
    supervisor.stopping();
    if stop.is_cancelled() {
        tracing::info!(
            "what was read is written, for at most land.shutdown; the rest stays in Kafka for the next start"
        );
    }
    if mode == Mode::Once && handle.status().partitions.is_empty() {
        tracing::warn!(
            "nothing was landed: no partition was this lander's. Another one of its group has them all, or the topics are not \
             there"
        );
    }
    landing.end(config.land.shutdown).await;
    if mode != Mode::Forever {
        print(table(&handle).as_bytes())?;
    }
    let cut_short = mode != Mode::Forever && handle.finished() != Some(Ok(()));
    let ended = ended.and_then(|()| match cut_short {
        true => Err("a signal ended it before it had come to the end".to_owned()),
        false => Ok(()),
    });
    ended.map_err(|reason| StoppedError::Lander(reason).into())
}

/// What the service manager is told.
fn look(status: &land::Status) -> Look {
    if let Some(reason) = &status.stopped {
        return Err(format!("stopped: {reason}"));
    }
    let word = |up| if up { "up" } else { "away" };
    let (kafka, sink) = (word(status.kafka_up), word(status.sink_up));
    Ok(format!(
        "Kafka is {kafka}, {} is {sink}; {} records behind",
        status.sink, status.lag_records
    ))
}

/// Resolves when a lander has stopped although nobody asked it to.
pub(super) async fn stopped(handle: &Handle) -> String {
    loop {
        if let Some(reason) = handle.status().stopped {
            return reason;
        }
        sleep(LOOK).await;
    }
}

/// Resolves when the lander is done, or has stopped although nobody asked it to.
async fn ended(handle: &Handle) -> Result<(), String> {
    loop {
        if let Some(finished) = handle.finished() {
            return finished;
        }
        if let Some(reason) = handle.status().stopped {
            return Err(reason);
        }
        sleep(LOOK).await;
    }
}

/// What each source stored, a line each.
fn table(handle: &Handle) -> String {
    let mut text = format!(
        "{:<24} {:>12} {:>12} {:>12} {:>12}\n",
        "source", "valid", "invalid", "duplicates", "rejected"
    );
    for (source, totals) in handle.totals() {
        // Writing to a String cannot fail.
        writeln!(
            text,
            "{source:<24} {:>12} {:>12} {:>12} {:>12}",
            totals.valid, totals.invalid, totals.duplicates, totals.rejected
        )
        .unwrap_or_default();
    }
    text
}

/// A running lander and its listener.
pub(super) struct Landing {
    handle: Handle,
    lander: Lander,
    served: JoinHandle<std::io::Result<()>>,
    /// Readiness says that it ends.
    stopping: CancellationToken,
    stop_listener: CancellationToken,
}

impl Landing {
    pub(super) async fn start(config: &Config, options: land::Options, scrape: PrometheusHandle) -> Result<Self> {
        let listener = listen::listen(config, "land.listen", config.land.listen)?;
        let address = listener.local_addr()?;
        for source in &options.sources {
            metrics::zero_lag(&source.topic);
        }
        let origin = match &options.target {
            Target::Sqlite(_) | Target::Files(..) => config.origin("land.path"),
            Target::Postgres(_) => config.origin("land.url"),
        };
        let lander = spawn_blocking(move || Lander::start(options)).await?;
        let lander = lander.map_err(|source| LanderError { origin, source })?;
        let handle = lander.handle();
        let (stopping, stop_listener) = (CancellationToken::new(), CancellationToken::new());
        let shown = http::Lander {
            name: options::gateway_id(config),
            token: config.admin.token.reveal().map(str::to_owned),
            handle: handle.clone(),
            scrape,
            stopping: stopping.clone(),
        };
        let served = tokio::spawn(http::serve_lander(shown, listener, stop_listener.clone()));
        // Tests and supervisors read this line: message and field name stay.
        tracing::info!(addr = %address, "lander listening");
        tracing::info!(sink = handle.status().sink, "landing");
        Ok(Self {
            handle,
            lander,
            served,
            stopping,
            stop_listener,
        })
    }

    /// A view of it.
    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Writes what was read, for at most `limit`.
    pub(super) async fn end(self, limit: Duration) {
        self.stopping.cancel();
        let lander = self.lander;
        let ending = spawn_blocking(move || lander.shutdown(limit));
        if timeout(limit + GRACE, ending).await.is_err() {
            tracing::warn!("the lander did not end in land.shutdown; what it had read is read again by the next");
        }
        let status = self.handle.status();
        tracing::info!(
            valid = status.stored.valid,
            invalid = status.stored.invalid,
            duplicates = status.stored.duplicates,
            rejected = status.stored.rejected,
            "lander ended"
        );
        self.stop_listener.cancel();
        if timeout(LISTENER_GRACE, self.served).await.is_err() {
            tracing::debug!("an answer of the lander's listener was cut off");
        }
    }
}
