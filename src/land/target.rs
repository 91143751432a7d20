//! From a [`Target`] to sinks, and the sink of a dry run, which writes nothing.

use super::lander::StartError;
use super::postgres::Postgres;
use super::row::Batch;
use super::sink::{Counts, Known, Position, Sink, SinkError, Written};
use super::table::Table;
use super::{Mode, Options, Target, files, sqlite};

/// Makes the sinks of one lander.
pub(super) struct Opener {
    place: Place,
    name: String,
}

enum Place {
    Nowhere,
    Sqlite(sqlite::Database),
    Postgres(String),
    Files(files::Folder),
}

impl Opener {
    pub(super) fn new(options: &Options) -> Result<Self, StartError> {
        if options.mode == Mode::DryRun {
            return Ok(Self {
                place: Place::Nowhere,
                name: "nothing (a dry run)".to_owned(),
            });
        }
        let (place, name) = match &options.target {
            Target::Sqlite(path) => (
                Place::Sqlite(sqlite::Database::new(path)),
                format!("SQLite {}", path.display()),
            ),
            Target::Postgres(url) => {
                let probe = Postgres::new(url, Table::new("", &[]));
                let name = probe.map_err(|error| StartError::Sink(error.to_string()))?;
                (Place::Postgres(url.clone()), format!("PostgreSQL {}", name.name()))
            }
            Target::Files(path, rotation) => (
                Place::Files(files::Folder::new(path, *rotation)),
                format!("files in {}", path.display()),
            ),
        };
        Ok(Self { place, name })
    }

    /// For messages: never with a password.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn sink(&self, table: &Table) -> Result<Box<dyn Sink>, StartError> {
        let table = table.clone();
        Ok(match &self.place {
            Place::Nowhere => Box::new(Nowhere),
            Place::Sqlite(database) => Box::new(database.sink(table)),
            Place::Files(folder) => Box::new(folder.sink(table)),
            Place::Postgres(url) => {
                let sink = Postgres::new(url, table);
                Box::new(sink.map_err(|error| StartError::Sink(error.to_string()))?)
            }
        })
    }
}

/// Counts what it would store.
struct Nowhere;

impl Sink for Nowhere {
    fn prepare(&mut self) -> Result<(), SinkError> {
        Ok(())
    }

    fn positions(&mut self, _: &str) -> Result<Vec<Known>, SinkError> {
        Ok(Vec::new())
    }

    fn set_position(&mut self, _: &str, _: &Known, _: Option<&Position>) -> Result<bool, SinkError> {
        Ok(true)
    }

    fn write(&mut self, batch: &Batch) -> Result<Written, SinkError> {
        let count = |valid: bool| batch.rows.iter().filter(|row| row.valid() == valid).count() as u64;
        Ok(Written::Done(Counts {
            valid: count(true),
            invalid: count(false),
            duplicates: batch.duplicates,
            clashes: batch.rejected.len() as u64,
            refused: 0,
        }))
    }
}
