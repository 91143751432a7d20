//! A look at a server: who it is, and whether it would take rows. Reads only.

use tokio_postgres::Client;

use super::connection::Connection;
use super::fault::{Fault, explain};
use super::schema::{Schema, check_encoding};
use super::{Postgres, Table};
use crate::land::sink::SinkError;
use crate::land::table::quoted;

/// `server_version_num` of the oldest version that is supported.
const VERSION_MIN: i32 = 120_000;

/// A PostgreSQL server that lets this user in and is fit for landing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// `user@host:port/database`.
    pub name: String,
    /// Its version, as it says itself.
    pub version: String,
    /// Tables of sources that are there already.
    pub tables: usize,
}

impl Postgres {
    /// Connects, asks, and leaves.
    ///
    /// # Errors
    /// What [`Sink::prepare`](crate::land::sink::Sink::prepare) would refuse as well, as far as that can be seen without
    /// making anything.
    pub(in crate::land) fn look(url: &str, tables: &[Table]) -> Result<Server, SinkError> {
        let Self { config, tls, name, .. } = Self::new(url, Table::new("", &[]))?;
        let look = || {
            let mut connection = Connection::open(&config, &tls)?;
            let found = connection.run(async |client| ask(client, tables).await)?;
            connection.close();
            Ok(found)
        };
        let (version, there) = look().map_err(|fault| explain(&name, fault))?;
        Ok(Server {
            name,
            version,
            tables: there,
        })
    }
}

async fn ask(client: &Client, tables: &[Table]) -> Result<(String, usize), Fault> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int, \
             pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on', current_user::text, \
             current_schema()::text, has_schema_privilege(current_schema(), 'CREATE')",
            &[],
        )
        .await?;
    let version: String = row.try_get(0)?;
    if row.try_get::<_, i32>(1)? < VERSION_MIN {
        return Err(Fault::Refused(format!(
            "the server is version {version}; landing needs PostgreSQL 12 or later: update it, or name another in land.url"
        )));
    }
    if row.try_get::<_, bool>(2)? {
        return Err(Fault::Refused(
            "this server takes no writes (a standby, or default_transaction_read_only): name the primary in land.url"
                .to_owned(),
        ));
    }
    check_encoding(client).await?;
    let (user, schema): (&str, Option<&str>) = (row.try_get(3)?, row.try_get(4)?);
    let mut there = 0;
    for table in tables {
        let row = client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&quoted(&table.name)])
            .await?;
        if row.try_get(0)? {
            there += 1;
        }
        Schema::new(table.clone()).check_rights(client).await?;
    }
    // Who finds all the tables needs not make any.
    let may_make = row.try_get::<_, Option<bool>>(5)? == Some(true);
    match schema {
        _ if there == tables.len() || may_make => Ok((version, there)),
        None => Err(Fault::Refused(format!(
            "the user {user} has no schema to make tables in: CREATE SCHEMA AUTHORIZATION {}, or set its search_path",
            quoted(user)
        ))),
        Some(schema) => Err(Fault::Refused(format!(
            "the user {user} may not make tables in the schema {schema}: GRANT CREATE, USAGE ON SCHEMA {} TO {}",
            quoted(schema),
            quoted(user)
        ))),
    }
}
