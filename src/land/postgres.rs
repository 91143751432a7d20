//! Rows in PostgreSQL: one connection for each sink, COPY into a temporary table, then into the real one.
//!
//! The rows' identities are the primary key, so what is there already is passed over by ON CONFLICT; the temporary
//! table is there because COPY itself cannot pass over anything. Keys and values that a text column cannot hold
//! ([`as_text`](super::row::as_text)) go to `key_bytes` and `value_bytes`. Does not know Kafka, rules or retries.

mod check;
mod connection;
mod copy;
mod fault;
mod schema;
mod store;
mod tls;

use std::time::Duration;

use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config};

pub use self::check::Server;

use self::connection::{Connection, begin};
use self::fault::{Fault, explain};
use self::schema::Schema;
use super::row::Batch;
use super::sink::{Known, Position, Sink, SinkError, Written};
use super::table::{POSITIONS, Table};

/// Limits of a connection that the URL does not set itself.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_TIMEOUT: Duration = Duration::from_secs(30);

/// An idle connection that has been quiet for so long is asked whether it is still there.
const QUIET_MAX: Duration = Duration::from_secs(10);

/// How many batches take the long way after one that had to.
const DETOURS: u32 = 16;

/// A table in a PostgreSQL database.
pub struct Postgres {
    config: Config,
    tls: postgres_openssl::MakeTlsConnector,
    /// `user@host:port/database`.
    name: String,
    schema: Schema,
    connection: Option<Connection>,
    /// So many batches are not tried straight: the last one that was had repeats.
    detours: u32,
    /// Rows may be copied straight into the table: no policy guards it.
    may_copy: bool,
}

impl Postgres {
    /// Reads the URL; nothing is connected before [`Sink::prepare`].
    ///
    /// # Errors
    /// [`SinkError::Refused`]: the URL, or a certificate that it names, cannot be used.
    pub fn new(url: &str, table: Table) -> Result<Self, SinkError> {
        let (mut config, tls) = tls::read(url).map_err(SinkError::Refused)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        if config.get_tcp_user_timeout().is_none() {
            config.tcp_user_timeout(TCP_TIMEOUT);
        }
        if config.get_application_name().is_none() {
            config.application_name("tidegate");
        }
        Ok(Self {
            name: tls::name(&config),
            config,
            tls,
            schema: Schema::new(table),
            connection: None,
            detours: 0,
            may_copy: false,
        })
    }

    /// `user@host:port/database`, for messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `act` on the connection; after an error it is gone, so that the next prepare opens another.
    fn with<T>(&mut self, act: impl AsyncFnOnce(&mut Client, &Schema) -> Result<T, Fault>) -> Result<T, SinkError> {
        let result = match self.connection.take() {
            Some(mut connection) => {
                let schema = &self.schema;
                let result = connection.run(async |client| act(client, schema).await);
                if result.is_ok() {
                    self.connection = Some(connection);
                }
                result
            }
            None => Err(Fault::Refused("not connected".to_owned())),
        };
        result.map_err(|fault| explain(&self.name, fault))
    }
}

impl Sink for Postgres {
    fn prepare(&mut self) -> Result<(), SinkError> {
        self.connection = None;
        let opened = Connection::open(&self.config, &self.tls);
        self.connection = Some(opened.map_err(|fault| explain(&self.name, fault))?);
        self.may_copy = self.with(async |client, schema| schema.make(client).await)?;
        Ok(())
    }

    fn positions(&mut self, topic: &str) -> Result<Vec<Known>, SinkError> {
        self.with(async |client, schema| {
            let rows = client
                .query(
                    &format!(
                        "SELECT kafka_cluster, kafka_partition, epoch, next, topic_id FROM {POSITIONS} WHERE source = $1 AND \
                         kafka_topic = $2"
                    ),
                    &[&schema.table.name, &topic],
                )
                .await?;
            rows.iter()
                .map(|row| {
                    Ok(Known {
                        cluster: row.try_get(0)?,
                        partition: row.try_get(1)?,
                        position: Position {
                            epoch: row.try_get(2)?,
                            next: row.try_get(3)?,
                            topic_id: row.try_get(4)?,
                        },
                    })
                })
                .collect()
        })
    }

    fn set_position(&mut self, topic: &str, to: &Known, from: Option<&Position>) -> Result<bool, SinkError> {
        let new = &to.position;
        self.with(async |client, schema| {
            let source = &schema.table.name;
            let transaction = begin(client).await?;
            let changed = match from {
                None => {
                    let statement = format!(
                        "INSERT INTO {POSITIONS} (source, kafka_cluster, kafka_topic, kafka_partition, epoch, next, topic_id) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
                    );
                    let (epoch, next, id) = (&new.epoch, &new.next, &new.topic_id);
                    let values: [&(dyn ToSql + Sync); 7] =
                        [source, &to.cluster, &topic, &to.partition, epoch, next, id];
                    transaction.execute(&statement, &values).await?
                }
                Some(from) => {
                    let statement = format!(
                        "UPDATE {POSITIONS} SET epoch = $1, next = $2, topic_id = $3 WHERE source = $4 AND kafka_cluster = $5 \
                         AND kafka_topic = $6 AND kafka_partition = $7 AND epoch = $8 AND next = $9 AND topic_id IS NOT \
                         DISTINCT FROM $10"
                    );
                    let values: [&(dyn ToSql + Sync); 10] = [
                        &new.epoch,
                        &new.next,
                        &new.topic_id,
                        source,
                        &to.cluster,
                        &topic,
                        &to.partition,
                        &from.epoch,
                        &from.next,
                        &from.topic_id,
                    ];
                    transaction.execute(&statement, &values).await?
                }
            };
            transaction.commit().await?;
            Ok(changed == 1)
        })
    }

    fn write(&mut self, batch: &Batch) -> Result<Written, SinkError> {
        let straight = self.may_copy && self.detours == 0;
        let mut stored_straight = true;
        let written = self.with(async |client, schema| {
            let transaction = begin(client).await?;
            for place in &batch.moves {
                let statement = format!(
                    "UPDATE {POSITIONS} SET next = $1 WHERE source = $2 AND kafka_cluster = $3 AND kafka_topic = $4 AND \
                     kafka_partition = $5 AND epoch = $6 AND next = $7"
                );
                let values: [&(dyn ToSql + Sync); 7] = [
                    &place.to,
                    &schema.table.name,
                    &batch.cluster,
                    &batch.topic,
                    &place.partition,
                    &place.epoch,
                    &place.from,
                ];
                let changed = transaction.execute(&statement, &values).await?;
                if changed != 1 {
                    transaction.rollback().await?;
                    return Ok(Written::Moved);
                }
            }
            let counts;
            (counts, stored_straight) = store::store(&transaction, schema, batch, straight).await?;
            transaction.commit().await?;
            Ok(Written::Done(counts))
        })?;
        self.detours = match (straight, stored_straight) {
            (true, true) => 0,
            (true, false) => DETOURS,
            (false, _) => self.detours.saturating_sub(1),
        };
        Ok(written)
    }

    fn tick(&mut self) -> Result<(), SinkError> {
        match &self.connection {
            // A database that went away meanwhile is found before a batch needs it.
            Some(connection) if connection.quiet() > QUIET_MAX => {
                self.with(async |client, _| Ok(client.batch_execute("SELECT 1").await?))
            }
            _ => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), SinkError> {
        if let Some(connection) = self.connection.take() {
            connection.close();
        }
        Ok(())
    }
}
