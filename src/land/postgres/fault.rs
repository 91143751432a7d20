//! Why PostgreSQL did not do something: whose fault it is, and what to do about it.
//!
//! Knows SQLSTATEs and the fields of the server's errors, which do not depend on its language. Does not know
//! statements.

use std::time::Duration;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use crate::land::sink::SinkError;

/// Why something failed.
#[derive(Debug)]
pub(super) enum Fault {
    Postgres(Error),
    /// Nothing came from the server for so long.
    Silent(Duration),
    /// See [`SinkError`].
    Away(String),
    /// See [`SinkError`].
    Refused(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Postgres(error)
    }
}

/// Classes that say nothing about a row: the connection, a conflict with others, resources, an operator, the system,
/// the server itself.
const AWAY: [&str; 6] = ["08", "40", "53", "57", "58", "XX"];
/// Classes of what a row can be refused for: its data, a constraint, a limit of its size, what a function of somebody's
/// makes of it.
const OF_ROWS: [&str; 12] = ["09", "20", "21", "22", "23", "27", "2F", "38", "39", "44", "54", "P0"];

/// The row will never be taken: its data, a check or a trigger of somebody's, a limit of the server.
pub(super) fn is_rows_fault(error: &Error) -> bool {
    error.as_db_error().is_some_and(|said| {
        is_of_row(
            said.code().code(),
            said.routine() == Some("exec_stmt_raise"),
            said.where_().is_some(),
        )
    })
}

/// `raised`: by PL/pgSQL's RAISE, which takes any code. `inside`: not by our statement but by something that it set off.
fn is_of_row(code: &str, raised: bool, inside: bool) -> bool {
    let class = code.get(..2).unwrap_or("");
    if AWAY.contains(&class) {
        return false;
    }
    // A trigger's own statement may be wrong for one row and right for another (a table named after a field). A right
    // that it lacks is missing for all of them: better told than every row rejected.
    let in_trigger = inside && ["42", "0A"].contains(&class) && code != SqlState::INSUFFICIENT_PRIVILEGE.code();
    raised || in_trigger || OF_ROWS.contains(&class)
}

/// What the server or the system says, without the crate's own wrapping.
pub(super) fn words(error: &Error) -> String {
    if let Some(said) = error.as_db_error() {
        let detail = said.detail().map_or_else(String::new, |detail| format!(" ({detail})"));
        return format!("{}{detail}", said.message());
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// For the sink's caller; `name` is `user@host:port/database`.
pub(super) fn explain(name: &str, fault: Fault) -> SinkError {
    let error = match fault {
        Fault::Refused(why) => return SinkError::Refused(format!("PostgreSQL {name}: {why}")),
        Fault::Away(why) => return SinkError::Away(format!("PostgreSQL {name}: {why}")),
        Fault::Silent(time) => {
            return SinkError::Away(format!(
                "PostgreSQL {name} does not answer: the connection is there, and nothing came for {} s. The connection was \
                 given up",
                time.as_secs()
            ));
        }
        Fault::Postgres(error) => error,
    };
    let text = words(&error);
    let away = |advice: &str| SinkError::Away(format!("PostgreSQL {name}: {text}{advice}"));
    let advice = match error.code().map(SqlState::code) {
        Some(code) if code.starts_with("28") => {
            "correct user, password and sslmode in land.url, or pg_hba.conf on the server"
        }
        Some("3D000") => "make the database (createdb), or name another in land.url",
        Some(code) if code == "42501" || code.starts_with("3F") => {
            "give this user the right (GRANT CREATE, USAGE ON SCHEMA, TEMPORARY ON DATABASE, and SELECT, INSERT, UPDATE on \
             the tables)"
        }
        Some("25006") => "this server takes no writes: name the primary in land.url",
        Some(code) if code.starts_with("42") || code.starts_with("0A") => {
            "what is in the database is not what the lander made: rename it, or give the source another name"
        }
        Some("57014") => {
            return away(
                ". If that comes again and again, the database is too slow for one batch: set land.batch_records_max lower, or \
                 see what its triggers and indexes cost",
            );
        }
        Some(_) => return away(""),
        // Also what the server says of ours: an alert.
        None if ["certificate", "not support TLS", "SSL alert"]
            .iter()
            .any(|words| text.contains(words)) =>
        {
            "correct sslmode, sslrootcert, sslcert and sslkey in land.url, or the server's certificate"
        }
        None => return away(""),
    };
    SinkError::Refused(format!("PostgreSQL {name}: {text}. Nothing was changed: {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_says_whose_fault_it_is() {
        // Of the server's own, at our statement.
        for code in ["22001", "23505", "54000", "44000", "P0001", "38000"] {
            assert!(is_of_row(code, false, false), "{code}");
        }
        for code in ["42501", "42P01", "42703", "55P03", "25006", "28000"] {
            assert!(!is_of_row(code, false, false), "{code}");
        }
        // In somebody's trigger.
        assert!(is_of_row("42P01", false, true));
        assert!(!is_of_row("42501", false, true));
        assert!(!is_of_row("55P03", false, true));
        // RAISE with a code of its own choice.
        for code in ["42501", "55P03", "AB123", "28000", "25006"] {
            assert!(is_of_row(code, true, true), "{code}");
        }
        for code in ["40001", "40P01", "08006", "53100", "57014", "58030", "XX000"] {
            assert!(!is_of_row(code, true, true), "{code}");
        }
    }
}
