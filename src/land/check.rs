//! What the lander would find where it stores, without storing anything: facts for `tidegate doctor`.

use super::postgres::Postgres;
pub use super::postgres::Server;
use super::sink::SinkError;
use super::{Source, Target, files, sqlite};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Nothing yet: the lander will make it.
    Nothing,
    /// A database, or a folder that was landed into.
    There,
    /// A PostgreSQL server that lets this user in.
    Server(Server),
}

/// Looks; `sources`: whose tables are wanted.
///
/// # Errors
/// Why the lander could not store there now, in words that never have a password in them.
pub fn look(target: &Target, sources: &[Source]) -> Result<Seen, SinkError> {
    let there = match target {
        Target::Sqlite(path) => sqlite::Database::new(path).look()?,
        Target::Files(path, rotation) => files::Folder::new(path, *rotation).look()?,
        Target::Postgres(url) => {
            let tables: Vec<_> = sources.iter().map(|source| source.table.clone()).collect();
            return Postgres::look(url, &tables).map(Seen::Server);
        }
    };
    Ok(if there { Seen::There } else { Seen::Nothing })
}
