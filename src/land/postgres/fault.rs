//! Why PostgreSQL did not do something: whose fault it is, and what to do about it.
//!
//! Knows SQLSTATEs and the fields of the server's errors, which do not depend on its language. Does not know
//! statements.

use std::time::Duration;

use tokio_postgres::Error;
use tokio_postgres::error::SqlState;

use super::schema::INCOMING;
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

/// For what a session made and cannot find again.
const POOLER: &str = "a pooler in between gives each transaction another session: use pool_mode = session, or name the \
     server itself in land.url";

/// The row will never be taken: its data, a check or a trigger of somebody's, a limit of the server.
pub(super) fn is_rows_fault(error: &Error) -> bool {
    error.as_db_error().is_some_and(|said| {
        // COPY tells its line there.
        let inside = said.where_().is_some_and(|place| !place.starts_with("COPY "));
        is_of_row(said.code().code(), said.routine().unwrap_or(""), inside)
    })
}

/// `routine`: the server's function that raised it. `inside`: not by our statement but by something that it set off.
fn is_of_row(code: &str, routine: &str, inside: bool) -> bool {
    let class = code.get(..2).unwrap_or("");
    // What a function in another language or an extension raises without a code of its own.
    if inside && code == SqlState::INTERNAL_ERROR.code() {
        return true;
    }
    if AWAY.contains(&class) {
        return false;
    }
    // PL/pgSQL's RAISE takes any code.
    let raised = routine == "exec_stmt_raise";
    // Row level security looks at each row; the right to the table is another matter.
    let by_policy = !inside && code == SqlState::INSUFFICIENT_PRIVILEGE.code() && routine == "ExecWithCheckOptions";
    // A trigger's own statement may be wrong for one row and right for another (a table named after a field). A right
    // that it lacks is missing for all of them: better told than every row rejected.
    let in_trigger = inside && ["42", "0A"].contains(&class) && code != SqlState::INSUFFICIENT_PRIVILEGE.code();
    raised || by_policy || in_trigger || OF_ROWS.contains(&class)
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
                 given up. If that comes again and again with batches only, the line to it is too slow for one: set \
                 land.batch_bytes_max lower",
                time.as_secs()
            ));
        }
        Fault::Postgres(error) => error,
    };
    let text = words(&error);
    let away = |advice: &str| SinkError::Away(format!("PostgreSQL {name}: {text}{advice}"));
    let advice = match error.code().map(SqlState::code) {
        Some("42P01" | "42P07") if text.contains(INCOMING) => POOLER,
        Some("26000" | "42P05") => POOLER,
        Some("55P03") => {
            return away(
                ". Another session holds it, and it is waited for: SELECT pid, pg_blocking_pids(pid) FROM pg_stat_activity \
                 WHERE cardinality(pg_blocking_pids(pid)) > 0 says which, while it is",
            );
        }
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
                ". If that comes again and again, the database is too slow for one batch, or the line to it is too slow: set \
                 land.batch_records_max and land.batch_bytes_max lower, or see what its triggers and indexes cost",
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
        // The client's own words about what it was given.
        None if ["invalid configuration", "authentication error"]
            .iter()
            .any(|words| text.starts_with(words)) =>
        {
            "correct user, password and hosts in land.url (~/.pgpass is not read)"
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
            assert!(is_of_row(code, "", false), "{code}");
        }
        for code in ["42501", "42P01", "42703", "55P03", "25006", "28000", "XX000", "XX001"] {
            assert!(!is_of_row(code, "", false), "{code}");
        }
        // A policy's.
        assert!(is_of_row("42501", "ExecWithCheckOptions", false));
        assert!(!is_of_row("42501", "aclcheck_error", false));
        // In somebody's trigger.
        assert!(is_of_row("42P01", "", true));
        assert!(is_of_row("XX000", "elog_finish", true));
        for code in ["42501", "55P03", "XX001", "XX002"] {
            assert!(!is_of_row(code, "", true), "{code}");
        }
        // RAISE with a code of its own choice.
        for code in ["42501", "55P03", "AB123", "28000", "25006"] {
            assert!(is_of_row(code, "exec_stmt_raise", true), "{code}");
        }
        for code in ["40001", "40P01", "08006", "53100", "57014", "58030", "XX001"] {
            assert!(!is_of_row(code, "exec_stmt_raise", true), "{code}");
        }
    }
}
