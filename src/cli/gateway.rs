//! A running gateway: the parts started in order, and ended in order.
//!
//! Start: sockets, log, forwarder, then the first request. Whatever is wrong with the configuration has
//! ended the process before that. End: no new requests, those under way finish, what is committed is
//! forwarded for the time that is left, the log is closed. What blocks runs beside the runtime.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::runtime::Runtime;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::exit::{LogError, NoSpaceError, StoppedError};
use super::guard::Guard;
use super::land::{Landing, stopped};
use super::supervisor::{Look, Supervisor};
use super::{listen, options, signals};
use crate::config::Config;
use crate::forward::Forwarder;
use crate::wal::Wal;
use crate::{forward, http, land, metrics, record, telemetry, wal};

/// How long a poisoned process still answers what it has taken (with 503): it must end soon.
const POISON_GRACE: Duration = Duration::from_secs(2);
/// How long the forwarder may take to stop once its time is over: one question to Kafka, and a last report.
const FORWARDER_GRACE: Duration = Duration::from_secs(3);
/// How long the admin listener may take to finish its answers at the end.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// How often is looked whether the forwarder still runs.
const FORWARDER_LOOK: Duration = Duration::from_secs(1);

/// What to run.
pub(super) struct Plan<'a> {
    pub(super) config: &'a Config,
    pub(super) forward: forward::Options,
    /// A lander in the same process.
    pub(super) land: Option<land::Options>,
    /// Called once clients can connect.
    pub(super) on_listening: Box<dyn FnOnce(Addresses)>,
}

/// Where the listeners are, real ports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub(super) ingest: SocketAddr,
    pub(super) admin: SocketAddr,
}

/// Runs a gateway until a signal (Ok) or until it cannot go on.
pub(super) fn run(plan: Plan<'_>) -> Result<()> {
    let recent = telemetry::init(plan.config.log, telemetry::colour())?;
    let connections_max = listen::connections_allowed(plan.config.http.connections_max);
    listen::make_room(connections_max);
    let runtime = Runtime::new().context("no threads could be started")?;
    let result = runtime.block_on(start(plan, connections_max, recent));
    // A thread that hangs on a dead disk must not keep the process.
    runtime.shutdown_background();
    result
}

async fn start(plan: Plan<'_>, connections_max: u32, recent: telemetry::Recent) -> Result<()> {
    let config = plan.config;
    let stop = signals::shutdown_token().context("signals cannot be handled")?;
    let ingest = listen::listen(config, "http.listen", config.http.listen)?;
    let admin = listen::listen(config, "admin.listen", config.admin.listen)?;

    let guard = Guard::open(config)?;

    // Before the log: what it finds on opening is counted too.
    let scrape = metrics::install(match plan.land {
        None => metrics::Process::Gateway,
        Some(_) => metrics::Process::Both,
    })?;

    let wal = open_log(config).await?;
    let forwarder = Forwarder::start(wal.clone(), plan.forward)?;

    let (handle, operator) = (forwarder.handle(), forwarder.handle());
    let landing = match plan.land {
        Some(options) => Some(Landing::start(config, options, scrape.clone()).await?),
        None => None,
    };
    let http = http::Gateway::new(
        options::http(config, connections_max, guard),
        wal.clone(),
        Arc::new(move || handle.status()),
        scrape,
        Arc::new(record::now_ms),
        Arc::new(move || recent.lines().into_iter().map(log_line).collect()),
    )?;
    http.operate(operator);
    let running = Running {
        wal,
        forwarder,
        landing,
        stop_admin: CancellationToken::new(),
        stop_ingest: CancellationToken::new(),
    };
    running
        .serve(config, http, (ingest, admin), plan.on_listening, stop)
        .await
}

async fn open_log(config: &Config) -> Result<Wal> {
    let origin = config.origin("wal.path");
    let wal_options = options::wal(config);
    let opened = spawn_blocking(move || Wal::open(wal_options)).await?;
    let wal = opened.map_err(|source| LogError {
        origin: origin.clone(),
        source,
    })?;
    let status = wal.status();
    if let Some(reason) = status.refusing {
        // With a backlog the gateway runs: it refuses, and makes room by forwarding.
        if status.backlog_records == 0 && status.held_records == 0 {
            let closing = wal.clone();
            spawn_blocking(move || closing.close()).await??;
            return Err(NoSpaceError { reason, origin }.into());
        }
        tracing::warn!("records are refused for now: {reason}");
    }
    let marks = status.watermarks;
    tracing::info!(
        path = %absolute(&config.wal.path).display(),
        wal = %wal.id(),
        committed = marks.committed,
        acked = marks.acked,
        "log open"
    );
    Ok(wal)
}

struct Running {
    wal: Wal,
    forwarder: Forwarder,
    landing: Option<Landing>,
    stop_ingest: CancellationToken,
    stop_admin: CancellationToken,
}

impl Running {
    async fn serve(
        self,
        config: &Config,
        http: Arc<http::Gateway>,
        (ingest, admin): (TcpListener, TcpListener),
        on_listening: Box<dyn FnOnce(Addresses)>,
        stop: CancellationToken,
    ) -> Result<()> {
        let addresses = Addresses {
            ingest: ingest.local_addr()?,
            admin: admin.local_addr()?,
        };
        let mut ingest = tokio::spawn(http::serve_ingest(Arc::clone(&http), ingest, self.stop_ingest.clone()));
        let mut admin = tokio::spawn(http::serve_admin(http, admin, self.stop_admin.clone()));
        // Tests and supervisors read these two lines: message and field names stay.
        tracing::info!(addr = %addresses.ingest, "ingest listening");
        tracing::info!(addr = %addresses.admin, "admin listening");
        on_listening(addresses);
        let supervisor = {
            let (wal, forwarder) = (self.wal.clone(), self.forwarder.handle());
            Supervisor::ready(move || look(&wal.status(), &forwarder.status()))
        };

        let ended = tokio::select! {
            () = stop.cancelled() => Ended::Signal,
            reason = self.wal.poisoned() => Ended::Poisoned(reason),
            reason = forwarder_stopped(self.forwarder.handle()) => Ended::Forwarder(reason),
            reason = lander_stopped(self.landing.as_ref()) => Ended::Lander(reason),
            result = &mut ingest => Ended::Listener("ingest", format!("{result:?}")),
            result = &mut admin => Ended::Listener("admin", format!("{result:?}")),
        };
        supervisor.stopping();
        let grace = if matches!(ended, Ended::Poisoned(_)) {
            POISON_GRACE
        } else {
            config.http.shutdown
        };
        if let Ended::Poisoned(_) = ended {
            // sled panics where it is dropped while its disk takes nothing, and the panic of this thread would be the exit
            // code. The process ends now, and everything is given back by the system.
            std::mem::forget(self.wal.clone());
        }
        self.end(ingest, admin, Instant::now() + grace, &ended).await?;
        match ended {
            Ended::Signal => Ok(()),
            Ended::Poisoned(reason) => Err(StoppedError::Log(reason).into()),
            Ended::Forwarder(reason) => Err(StoppedError::Forwarder(reason).into()),
            Ended::Lander(reason) => Err(StoppedError::Lander(reason).into()),
            Ended::Listener(name, result) => bail!("the {name} listener ended by itself: {result}"),
        }
    }

    async fn end<T>(self, ingest: JoinHandle<T>, admin: JoinHandle<T>, deadline: Instant, ended: &Ended) -> Result<()> {
        self.stop_ingest.cancel();
        if !ingest.is_finished() {
            match timeout(left(deadline), ingest).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::error!("the ingest listener failed while it ended: {error}"),
                Err(_) => tracing::warn!("some requests did not finish in http.shutdown; their clients got no answer"),
            }
        }
        if let Ended::Signal = ended {
            tracing::info!(
                "no new requests are taken; what is committed is forwarded for at most {:.1} s, what is left of http.shutdown",
                left(deadline).as_secs_f64()
            );
        }
        let forwarder = self.forwarder;
        let forwarding = spawn_blocking(move || forwarder.shutdown(left(deadline)));
        match ended {
            // Its disk may hang: it is not waited for longer than this, and there is nothing to close.
            Ended::Poisoned(_) => {
                if timeout(left(deadline), forwarding).await.is_err() {
                    tracing::warn!("the forwarder did not stop in time; what it sent and did not settle is sent again");
                }
            }
            _ => {
                match timeout(left(deadline) + FORWARDER_GRACE, forwarding).await {
                    Ok(ended) => ended?,
                    Err(_) => tracing::warn!(
                        "the forwarder did not stop in http.shutdown; what it sent and did not settle is sent again"
                    ),
                }
                let wal = self.wal.clone();
                spawn_blocking(move || wal.close()).await??;
            }
        }
        // A poisoned log may hang with its locks held: it is not asked.
        if !matches!(ended, Ended::Poisoned(_)) {
            let status = self.wal.status();
            tracing::info!(
                committed = status.watermarks.committed,
                acked = status.watermarks.acked,
                left = status.backlog_records,
                held = status.held_records,
                "log closed; what is left and what is held is forwarded after the next start"
            );
        }
        if let Some(landing) = self.landing {
            landing.end(left(deadline)).await;
        }
        self.stop_admin.cancel();
        if !admin.is_finished() && timeout(ADMIN_GRACE, admin).await.is_err() {
            tracing::debug!("an answer of the admin listener was cut off");
        }
        Ok(())
    }
}

/// What the service manager is told.
fn look(wal: &wal::Status, forward: &forward::Status) -> Look {
    if let Some(reason) = wal.poisoned.as_ref().or(forward.stopped.as_ref()) {
        return Err(format!("stopped: {reason}"));
    }
    let intake = match &wal.refusing {
        Some(reason) => format!("takes no records: {reason}"),
        None => "takes records".to_owned(),
    };
    let kafka = if forward.broker_up { "up" } else { "away" };
    let (backlog, held) = (wal.backlog_records, wal.held_records);
    Ok(format!(
        "{intake}; Kafka is {kafka}, {backlog} to be forwarded, {held} held"
    ))
}

fn log_line(line: telemetry::Line) -> http::LogLine {
    http::LogLine {
        time_ms: line.time_ms,
        level: line.level,
        message: line.message,
    }
}

/// A relative path depends on where the process was started: the log line says what came of it.
fn absolute(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_path_buf())
}

/// Why the gateway ends.
enum Ended {
    Signal,
    Poisoned(String),
    Forwarder(String),
    Lander(String),
    Listener(&'static str, String),
}

/// Resolves when the forwarder ended although nobody asked it to.
async fn forwarder_stopped(forwarder: forward::Handle) -> String {
    loop {
        if let Some(reason) = forwarder.status().stopped {
            return reason;
        }
        tokio::time::sleep(FORWARDER_LOOK).await;
    }
}

/// Resolves when the lander beside the gateway ended although nobody asked it to.
async fn lander_stopped(landing: Option<&Landing>) -> String {
    match landing {
        Some(landing) => stopped(landing.handle()).await,
        None => std::future::pending().await,
    }
}

/// The time until `deadline`, 0 behind it.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
