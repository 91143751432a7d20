//! Where the lander stores: whether it is there, lets this user in, and would take rows. Nothing is written there but
//! a file that is removed at once, to see whether one can be made.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use super::disk::{existing, space};
use super::line::{Findings, Line};
use super::probe::Probe;
use super::within;
use crate::cli::options;
use crate::cli::words::{counted, size};
use crate::config::{Config, SinkKind};
use crate::land::Mode;
use crate::land::check::{Seen, Server, look as look_at};
use crate::land::sink::SinkError;

/// A server that has fallen silent ends later by itself.
const LIMIT: Duration = Duration::from_secs(40);
/// Less is soon full.
const ROOM_MIN: u64 = 256 << 20;

pub(super) fn look(config: &Config, _: &AtomicBool) -> Vec<Line> {
    let mut findings = Findings::of("database");
    if config.land.sink == SinkKind::Postgres && config.land.url.reveal().is_none() {
        findings.failure(
            "PostgreSQL",
            "land.url is empty",
            "`tidegate land` does not start",
            "set it to postgres://user:password@host:5432/database (TIDEGATE_LAND__URL keeps the password out of files)",
        );
        return findings.lines;
    }
    let options = options::land(config, Mode::Forever);
    let seen = within(LIMIT, move || look_at(&options.target, &options.sources));
    if config.land.sink == SinkKind::Postgres {
        server(seen, config.sources.len(), &mut findings);
        return findings.lines;
    }
    let path = std::path::absolute(&config.land.path).unwrap_or_else(|_| config.land.path.clone());
    let folder = match config.land.sink {
        SinkKind::Files => path.clone(),
        _ => path.parent().unwrap_or(Path::new("/")).to_owned(),
    };
    let there = existing(&folder);
    local(
        &Local {
            is_folder: config.land.sink == SinkKind::Files,
            writable: Probe::make(&there).map(drop).map_err(|error| error.to_string()),
            free: space(&there).ok().map(|(free, _)| free),
            is_made: there == folder,
            path,
            there,
        },
        seen,
        &mut findings,
    );
    findings.lines
}

type Answer = Option<Result<Seen, SinkError>>;

/// What is known of a place on this machine.
struct Local {
    /// land.path.
    path: PathBuf,
    /// It is a folder of files, no database.
    is_folder: bool,
    /// The nearest folder that is there.
    there: PathBuf,
    /// It is the one that is wanted.
    is_made: bool,
    writable: Result<(), String>,
    free: Option<u64>,
}

fn local(local: &Local, seen: Answer, findings: &mut Findings) {
    let (path, there) = (local.path.display(), local.there.display());
    match &local.writable {
        Ok(()) if local.is_made => findings.ok("folder", format!("{there} can be written by this user")),
        Ok(()) => findings.ok("folder", format!("is not there yet, and can be made in {there}")),
        Err(why) => findings.failure(
            "folder",
            format!("{there} cannot be written by this user: {why}"),
            "the lander does not start; records stay in Kafka",
            "run doctor as the user that the lander runs as; if it is, give that user the folder, or set land.path to another",
        ),
    }
    match local.free {
        Some(free) if free < ROOM_MIN => findings.warning(
            "space",
            format!("{} are free in {there}", size(free)),
            "landing stops when that is full; records stay in Kafka for as long as its retention keeps them",
            "free some space, or set land.path to a larger disk",
        ),
        Some(free) => findings.ok("space", format!("{} are free", size(free))),
        None => {}
    }
    let check = if local.is_folder { "files" } else { "SQLite" };
    match seen {
        Some(Ok(Seen::Nothing)) => findings.ok(check, format!("{path} is not there yet: the lander makes it")),
        Some(Ok(_)) => findings.ok(check, format!("{path} is there and opens")),
        Some(Err(error)) => refused(check, &error, findings),
        None => silent(check, findings),
    }
}

fn server(seen: Answer, sources: usize, findings: &mut Findings) {
    const CHECK: &str = "PostgreSQL";
    match seen {
        Some(Ok(Seen::Server(Server { name, version, tables }))) => findings.ok(
            CHECK,
            format!(
                "{name}, version {version}, UTF8; {tables} of {} are there, this user may do what landing needs",
                counted(sources as u64, "table")
            ),
        ),
        Some(Ok(_)) => {}
        Some(Err(error)) => refused(CHECK, &error, findings),
        None => silent(CHECK, findings),
    }
}

fn refused(check: &str, error: &SinkError, findings: &mut Findings) {
    let means = "nothing is landed; records stay in Kafka for as long as its retention keeps them";
    match error {
        // Its words end with what to do.
        SinkError::Refused(text) => {
            let text = text.strip_prefix(check).map_or(text.as_str(), str::trim_start);
            let (found, todo) = text
                .split_once(". Nothing was changed: ")
                .or_else(|| text.rsplit_once(": "))
                .unwrap_or((text, "see there"));
            findings.failure(check, found, means, todo);
        }
        SinkError::Away(text) => findings.failure(
            check,
            text.strip_prefix(check).map_or(text.as_str(), str::trim_start),
            means,
            "start the database, or correct host and port in land.url; then look at the firewalls in between",
        ),
    }
}

fn silent(check: &str, findings: &mut Findings) {
    findings.failure(
        check,
        format!("no answer within {} s", LIMIT.as_secs()),
        "nothing is landed; records stay in Kafka",
        "look at that machine or disk: something there is stuck",
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::super::line::Verdict::{self, Failure, Ok as Fine, Warning};
    use super::super::told::told;
    use super::*;

    fn fine() -> Local {
        Local {
            path: "/srv/rows.db".into(),
            is_folder: false,
            there: "/srv".into(),
            is_made: true,
            writable: Ok(()),
            free: Some(1 << 40),
        }
    }

    #[track_caller]
    fn says(place: &Local, seen: Answer, check: &str, verdict: Verdict, words: &str) {
        let mut findings = Findings::of("database");
        local(place, seen, &mut findings);
        told(&findings.lines, check, verdict, &[words]);
    }

    #[test]
    fn a_file_is_told_with_its_folder() {
        says(&fine(), Some(Ok(Seen::Nothing)), "SQLite", Fine, "the lander makes it");
        says(&fine(), Some(Ok(Seen::There)), "SQLite", Fine, "opens");
        says(&fine(), None, "SQLite", Failure, "stuck");
        let refused = SinkError::Refused("/srv/rows.db is no SQLite database: move it away".into());
        says(&fine(), Some(Err(refused)), "SQLite", Failure, "no SQLite database");
        let place = Local {
            writable: Err("denied".into()),
            free: Some(1 << 20),
            ..fine()
        };
        says(&place, Some(Ok(Seen::Nothing)), "folder", Failure, "denied");
        says(&place, Some(Ok(Seen::Nothing)), "space", Warning, "1.0 MiB");
        let place = Local {
            is_made: false,
            is_folder: true,
            ..fine()
        };
        says(&place, Some(Ok(Seen::There)), "files", Fine, "opens");
        says(&place, Some(Ok(Seen::There)), "folder", Fine, "can be made");
    }

    #[test]
    fn a_servers_advice_is_what_to_do() {
        let error = SinkError::Refused("PostgreSQL a@b: no. Nothing was changed: correct it".into());
        let mut findings = Findings::of("database");
        refused("PostgreSQL", &error, &mut findings);
        let line = &findings.lines[0];
        assert_eq!((line.found.as_str(), line.todo.as_str()), ("a@b: no", "correct it"));
    }
}
