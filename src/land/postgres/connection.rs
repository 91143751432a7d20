//! A connection and the runtime that drives it, for one thread that asks one thing at a time.
//!
//! The server may be silent for so long, then it is away: a machine that was frozen, a network that swallows packets,
//! a process that hangs while its system still answers for it. Neither TCP nor the server's own time limits end
//! those. Does not know what is asked.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep_until, timeout};
use tokio_postgres::{Client, Config, Transaction};

use super::fault::Fault;

/// How long all of a connection may take, from its first packet to the server's welcome.
const CONNECT_MAX: Duration = Duration::from_secs(20);
/// How long nothing may come from the server. It ends a statement or a wait for a lock itself before that (see
/// [`SESSION`]), so a server that works has said something by then.
const SILENCE_MAX: Duration = Duration::from_secs(35);
/// What every session begins with: the longest statement and the longest wait for somebody else's lock. The server
/// ends a session whose lander is frozen or gone: until then nobody else may have the rows of its positions. Whatever
/// the server's defaults are, the guard of the positions is made for READ COMMITTED. The temporary table, and its end
/// with the session, wait for no standby: while one is missing, each session would leave a process that waits for it.
const SESSION: &str = "SET statement_timeout = '30s'; SET lock_timeout = '20s'; SET TIME ZONE 'UTC'; \
     SET default_transaction_isolation = 'read committed'; SET idle_in_transaction_session_timeout = '60s'; \
     SET tcp_keepalives_idle = 20; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 3; \
     SET tcp_user_timeout = '30s'; SET synchronous_commit = local";
/// How long a goodbye may take.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Connection {
    client: Client,
    task: JoinHandle<Result<(), tokio_postgres::Error>>,
    /// When the socket last had something for us.
    heard: Arc<Mutex<Instant>>,
    // Last: dropped last, and with it the socket.
    runtime: Runtime,
}

impl Connection {
    pub(super) fn open(config: &Config, tls: &postgres_openssl::MakeTlsConnector) -> Result<Self, Fault> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Fault::Away(format!("no runtime for the connection: {error}")))?;
        let connected = runtime.block_on(async { timeout(CONNECT_MAX, config.connect(tls.clone())).await });
        let (client, connection) = match connected {
            Ok(Ok(connected)) => connected,
            failed => {
                // Without waiting for a name server that does not answer.
                runtime.shutdown_background();
                return Err(failed.map_or(Fault::Silent(CONNECT_MAX), |error| match error {
                    Err(error) => Fault::Postgres(error),
                    Ok(_) => Fault::Silent(CONNECT_MAX),
                }));
            }
        };
        let heard = Arc::new(Mutex::new(Instant::now()));
        let hears = Arc::clone(&heard);
        let task = runtime.spawn(async move {
            let mut connection = pin!(connection);
            poll_fn(|context| {
                // Woken by the socket, or by a statement that is to be sent.
                hear(&hears);
                connection.as_mut().poll(context)
            })
            .await
        });
        let mut connection = Self {
            client,
            task,
            heard,
            runtime,
        };
        connection.run(async |client| Ok(client.batch_execute(SESSION).await?))?;
        Ok(connection)
    }

    /// Runs `act` for as long as the server does not fall silent. After an error the connection is of no more use.
    pub(super) fn run<T>(&mut self, act: impl AsyncFnOnce(&mut Client) -> Result<T, Fault>) -> Result<T, Fault> {
        let (client, heard) = (&mut self.client, &self.heard);
        hear(heard);
        let result = self.runtime.block_on(async {
            tokio::select! {
                result = act(client) => result,
                () = silence(heard) => Err(Fault::Silent(SILENCE_MAX)),
            }
        });
        match result {
            // What ended it is the task's to tell.
            Err(Fault::Postgres(error)) if error.is_closed() && self.task.is_finished() => {
                match self.runtime.block_on(&mut self.task) {
                    Ok(Err(why)) => Err(why.into()),
                    _ => Err(error.into()),
                }
            }
            result => result,
        }
    }

    /// How long ago the server was heard last.
    pub(super) fn quiet(&self) -> Duration {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Says goodbye.
    pub(super) fn close(self) {
        let Self {
            client, task, runtime, ..
        } = self;
        drop(client);
        if runtime.block_on(async { timeout(CLOSE_MAX, task).await }).is_err() {
            tracing::debug!("PostgreSQL took no goodbye");
        }
    }
}

/// A transaction that is as durable as the server is set up to make it.
pub(super) async fn begin(client: &mut Client) -> Result<Transaction<'_>, tokio_postgres::Error> {
    let transaction = client.transaction().await?;
    transaction
        .batch_execute("SET LOCAL synchronous_commit TO DEFAULT")
        .await?;
    Ok(transaction)
}

fn hear(heard: &Mutex<Instant>) {
    *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
}

/// Ends once nothing was heard for [`SILENCE_MAX`].
async fn silence(heard: &Mutex<Instant>) {
    loop {
        let until = *heard.lock().unwrap_or_else(PoisonError::into_inner) + SILENCE_MAX;
        if until <= Instant::now() {
            return;
        }
        sleep_until(until.into()).await;
    }
}
