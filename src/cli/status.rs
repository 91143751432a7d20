//! `tidegate status`: what a running gateway and a running lander say of themselves, once or again and again.
//!
//! Shows what was answered and computes nothing of its own but ages and shares. A value that is missing, or of another
//! kind than expected (another version answered), is a question mark. The log itself is looked at only where nobody has it
//! open ([`folder`]).

mod folder;
mod text;

use std::io::{self, IsTerminal as _};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::ask::{Answer, AskError, Listener, Part, Place};
use super::at::in_use;
use super::exit::NoStatus;
use super::{print_while_read, signals};
use crate::config::{Config, Origin};
use crate::wal::{self, ArchiveError};
use folder::FolderError;

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(2);
/// Of a terminal that does not tell its own.
const ROWS: u16 = 24;

/// Whom to ask, and how to show it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Flags {
    /// One line of JSON: {"gateway": its /v1/status (of its folder, with "running": false, while it does not run) or null,
    /// "lander": its /v1/status or null}
    #[arg(long)]
    json: bool,
    /// Look again every 2 seconds, until a signal
    #[arg(long)]
    watch: bool,
    /// The gateway's admin listener [default: admin.listen of the configuration]
    #[arg(long, value_name = "URL")]
    admin: Option<Place>,
    /// The lander's listener [default: land.listen of the configuration]
    #[arg(long, value_name = "URL")]
    lander: Option<Place>,
}

pub(super) fn run(flags: Flags, config: &Config) -> Result<()> {
    let path = &config.wal.path;
    let only_folder = flags.admin.is_none() && matches!(config.origin("wal.path"), Origin::Flag(_));
    if only_folder {
        wal::check_unused(path).map_err(in_use)?;
    }
    let watched = Watched {
        only_folder,
        folder: flags.admin.is_none().then(|| config.clone()),
        gateway: Listener::new(Part::Gateway, flags.admin, config),
        lander: Listener::new(Part::Lander, flags.lander, config),
    };
    if flags.watch {
        let runtime = Runtime::new().context("no threads could be started")?;
        let result = runtime.block_on(watch(watched, flags.json));
        // A question that is on its way must not keep the process.
        runtime.shutdown_background();
        return result;
    }
    // What the verdict says is not said here too.
    let seen = watched.look();
    if flags.json {
        print_while_read(seen.json().as_bytes())?;
        if seen.answered() {
            eprint!("{}", seen.complaints(AskError::is_away));
        }
    } else if seen.answered() {
        print_while_read(seen.text(&watched, AskError::is_away).as_bytes())?;
    }
    seen.verdict()
}

async fn watch(watched: Watched, json: bool) -> Result<()> {
    let stop = signals::shutdown_token().context("signals cannot be handled")?;
    let mut screen = Screen::of_stdout();
    let mut complaints = String::new();
    let mut first = true;
    loop {
        let asking = watched.clone();
        let seen = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            seen = spawn_blocking(move || asking.look()) => seen?,
        };
        // What is wrong from the beginning does not mend itself; what goes wrong later may.
        if first && seen.is_misdirected() {
            return seen.verdict();
        }
        let reading = if json {
            let now = seen.complaints(|_| true);
            if now != complaints {
                eprint!("{now}");
                complaints = now;
            }
            print_while_read(seen.json().as_bytes())?
        } else {
            let now = humantime::format_rfc3339_seconds(SystemTime::now());
            let block = format!("{now}\n\n{}", seen.text(&watched, |_| true));
            let drawn = match &mut screen {
                Some(screen) => screen.redraw(&block, rows()),
                None if first => block,
                None => format!("\n{block}"),
            };
            print_while_read(drawn.as_bytes())?
        };
        if !reading {
            return Ok(());
        }
        first = false;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(PAUSE) => {}
        }
    }
}

/// Who is looked at. No `Debug`: it holds the token.
#[derive(Clone)]
struct Watched {
    /// A folder was named: whoever listens somewhere has another one.
    only_folder: bool,
    /// Whose folder is looked at when no gateway answers.
    folder: Option<Config>,
    gateway: Listener,
    lander: Listener,
}

impl Watched {
    /// Asks both at once: one that hangs takes its time from nobody.
    fn look(&self) -> Seen {
        std::thread::scope(|scope| {
            let lander = scope.spawn(|| self.lander.status());
            let gateway = match self.only_folder {
                true => Err(self.gateway.away(String::new())),
                false => self.gateway.status(),
            };
            let gateway = match (gateway, &self.folder) {
                (Err(error), Some(config)) if error.is_away() => self.folder_status(config, error),
                (gateway, _) => gateway,
            };
            Seen {
                gateway,
                lander: lander.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            }
        })
    }
}

impl Watched {
    /// What the folder says, where there is a log that nobody has open.
    fn folder_status(&self, config: &Config, away: AskError) -> Result<Answer, AskError> {
        let path = &config.wal.path;
        match folder::status(path, config) {
            Ok(answer) => Ok(answer),
            Err(_) if !self.only_folder && !path.exists() => Err(away),
            // Its gateway runs, and is asked in the wrong place.
            Err(FolderError::Archive(ArchiveError::InUse { path, pid })) if !self.only_folder => {
                Err(AskError::Folder {
                    why: format!(
                        "process {pid} has the log in {} open, and no gateway answers on {} ({}): if that process is a gateway, \
                     name its admin listener with --admin URL, or set admin.listen to where it is",
                        path.display(),
                        self.gateway.address(),
                        self.gateway.named()
                    ),
                    is_misdirected: false,
                })
            }
            Err(error) => Err(AskError::Folder {
                why: error.to_string(),
                is_misdirected: error.is_misdirected(),
            }),
        }
    }
}

/// What they said.
#[derive(Debug)]
struct Seen {
    gateway: Result<Answer, AskError>,
    lander: Result<Answer, AskError>,
}

impl Seen {
    fn answered(&self) -> bool {
        self.gateway.is_ok() || self.lander.is_ok()
    }

    fn errors(&self) -> impl Iterator<Item = &AskError> {
        [&self.gateway, &self.lander]
            .into_iter()
            .filter_map(|seen| seen.as_ref().err())
    }

    /// The token or an address is wrong.
    fn is_misdirected(&self) -> bool {
        self.errors().any(AskError::is_misdirected)
    }

    /// One of them not running is no failure; none of them, or one that is there and was not understood, is.
    fn verdict(self) -> Result<()> {
        let answered = self.answered();
        let errors = [self.gateway.err(), self.lander.err()].into_iter().flatten();
        let errors: Vec<_> = errors.filter(|error| !answered || !error.is_away()).collect();
        if errors.is_empty() {
            return Ok(());
        }
        Err(NoStatus(errors).into())
    }

    fn json(&self) -> String {
        let member = |seen: &Result<Answer, AskError>| match seen {
            Ok(answer) => answer.json.clone(),
            Err(_) => "null".to_owned(),
        };
        format!(
            "{{\"gateway\":{},\"lander\":{}}}\n",
            member(&self.gateway),
            member(&self.lander)
        )
    }

    /// Why something is null, a line each, of those that are `told`.
    fn complaints(&self, told: fn(&AskError) -> bool) -> String {
        let told = self.errors().filter(|error| told(error));
        told.map(|error| format!("tidegate: {error}\n")).collect()
    }

    /// What each says, or a line why it says nothing, if that is `told` here.
    fn text(&self, watched: &Watched, told: fn(&AskError) -> bool) -> String {
        let gateway = match &self.gateway {
            Ok(answer) if answer.value.get("running") == Some(&false.into()) => Some(text::folder(&answer.value)),
            Ok(answer) => Some(text::gateway(watched.gateway.address(), &answer.value)),
            Err(error) => told(error).then(|| format!("{error}\n")),
        };
        let lander = match &self.lander {
            Ok(answer) => Some(text::lander(watched.lander.address(), &answer.value)),
            Err(error) => told(error).then(|| format!("{error}\n")),
        };
        let parts: Vec<_> = [gateway, lander].into_iter().flatten().collect();
        parts.join("\n")
    }
}

/// A terminal that is drawn over.
#[derive(Debug, Default)]
struct Screen {
    /// Rows from the beginning of what was drawn last to the cursor.
    drawn: usize,
}

impl Screen {
    /// `None` where stdout is a file, a pipe, or a terminal without a cursor to move.
    fn of_stdout() -> Option<Self> {
        let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
        (io::stdout().is_terminal() && !dumb).then(Self::default)
    }

    /// What draws `text` where the last one was. Lines are cut at the edge, not wrapped, so that a line is a row; what
    /// has no place in `rows` is left out, because a screen that has scrolled cannot be drawn over.
    fn redraw(&mut self, text: &str, rows: u16) -> String {
        let mut drawing = "\r".to_owned();
        if self.drawn > 0 {
            drawing.push_str(&format!("\x1b[{}A", self.drawn));
        }
        drawing.push_str("\x1b[?7l");
        let place = usize::from(rows).saturating_sub(1).max(2);
        let lines: Vec<&str> = text.lines().collect();
        let shown = if lines.len() > place { place - 1 } else { lines.len() };
        for line in lines.iter().take(shown) {
            drawing.push_str(&format!("{line}\x1b[K\n"));
        }
        self.drawn = shown;
        if shown < lines.len() {
            drawing.push_str(&format!(
                "... {} more lines: make the window higher, or look without --watch\x1b[K\n",
                lines.len() - shown
            ));
            self.drawn += 1;
        }
        drawing.push_str("\x1b[J\x1b[?7h");
        drawing
    }
}

/// The height of the terminal now: it may change.
fn rows() -> u16 {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 => size.ws_row,
        _ => ROWS,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;
    use crate::cli::exit;

    fn answer() -> Result<Answer, AskError> {
        Ok(Answer {
            value: serde_json::json!({}),
            json: "{}".to_owned(),
        })
    }

    fn away(part: Part) -> Result<Answer, AskError> {
        Err(AskError::Away {
            part,
            address: "127.0.0.1:4001".to_owned(),
            named: "admin.listen, built-in".to_owned(),
            why: String::new(),
        })
    }

    fn denied() -> Result<Answer, AskError> {
        Err(AskError::Denied {
            part: Part::Lander,
            address: "127.0.0.1:4002".to_owned(),
            code: 401,
        })
    }

    fn code(gateway: Result<Answer, AskError>, lander: Result<Answer, AskError>) -> Option<u8> {
        let verdict = Seen { gateway, lander }.verdict();
        verdict.err().map(|error| exit::code(&error))
    }

    #[test]
    fn one_that_does_not_run_is_no_failure() {
        assert_eq!(code(answer(), answer()), None);
        assert_eq!(code(answer(), away(Part::Lander)), None);
        assert_eq!(code(away(Part::Gateway), answer()), None);
        assert_eq!(code(away(Part::Gateway), away(Part::Lander)), Some(75));
        assert_eq!(code(answer(), denied()), Some(2));
        assert_eq!(code(away(Part::Gateway), denied()), Some(2));
    }

    #[test]
    fn who_is_not_there_is_null_and_told_with_what_to_do() {
        let seen = Seen {
            gateway: away(Part::Gateway),
            lander: answer(),
        };
        assert_eq!(seen.json(), "{\"gateway\":null,\"lander\":{}}\n");
        assert_eq!(
            seen.errors().next().map(ToString::to_string).as_deref(),
            Some(
                "no gateway answers on 127.0.0.1:4001 (admin.listen, built-in): start one with `tidegate serve`, or, if one runs, name its admin listener with --admin URL. A verb that only looks also takes a log's folder: --wal DIR"
            )
        );
    }

    #[test]
    fn a_redraw_begins_where_the_last_one_began() {
        let mut screen = Screen::default();
        assert_eq!(
            screen.redraw("a\nb\n", 24),
            "\r\x1b[?7la\x1b[K\nb\x1b[K\n\x1b[J\x1b[?7h"
        );
        assert!(screen.redraw("a\n", 24).starts_with("\r\x1b[2A\x1b[?7la\x1b[K\n"));
        assert!(screen.redraw("", 24).starts_with("\r\x1b[1A"));
        assert!(screen.redraw("", 24).starts_with("\r\x1b[?7l"));
    }

    #[test]
    fn a_window_that_is_too_low_is_never_scrolled() {
        for rows in [0, 1, 2, 3, 10] {
            let mut screen = Screen::default();
            let drawing = screen.redraw(&"line\n".repeat(50), rows);
            assert_eq!(drawing.matches('\n').count(), screen.drawn);
            assert!(screen.drawn < usize::from(rows.max(3)), "{rows}: {drawing:?}");
            assert!(drawing.contains("more lines"));
        }
        let mut screen = Screen::default();
        assert!(!screen.redraw(&"line\n".repeat(9), 10).contains("more lines"));
    }
}
