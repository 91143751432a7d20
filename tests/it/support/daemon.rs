//! A server of a test's own: a process that ends with this one, however that ends, and takes its folder along.
//!
//! It is the child of a shell that reads a pipe from this process: when the pipe closes the shell kills the
//! server and removes its folder. (A parent-death signal would be tied to the thread that started it.)

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::gateway::send;
use super::wait_until;

/// Starts the server, prints its pid, and waits for the pipe to close. `$1` is the folder, the rest the command.
/// The folder goes with it, unless a line on the pipe said to keep it.
const WATCHDOG: &str = r#"
    folder=$1; shift
    "$@" >>"$folder/console" 2>&1 </dev/null &
    server=$!
    echo "$server"
    keep=
    while read -r line; do keep=$line; done
    kill -9 "$server" 2>/dev/null
    wait "$server" 2>/dev/null
    [ -n "$keep" ] || rm -rf "$folder"
"#;

/// See the module.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    running: Mutex<Option<Running>>,
}

struct Running {
    shell: Child,
    pipe: Option<ChildStdin>,
    server: u32,
}

impl Daemon {
    pub fn new(folder: tempfile::TempDir) -> Self {
        Self {
            folder,
            running: Mutex::new(None),
        }
    }

    /// Starts `command`, as `user` (uid and gid) when given; gives its pid.
    pub fn launch(&self, command: &Command, user: Option<(u32, u32)>) -> u32 {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(running.is_none(), "the server runs already");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", WATCHDOG, "sh"])
            .arg(self.folder.path())
            .arg(command.get_program())
            .args(command.get_args())
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some((uid, gid)) = user {
            shell.uid(uid).gid(gid);
        }
        let mut shell = shell.spawn().expect("sh runs");
        let pipe = shell.stdin.take();
        let mut line = String::new();
        let stdout = shell.stdout.take().expect("a pipe from the shell");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("the pid of the server");
        let server = line.trim().parse().expect("the pid of the server");
        *running = Some(Running { shell, pipe, server });
        server
    }

    /// What it printed.
    pub fn console(&self) -> String {
        fs::read_to_string(self.folder.path().join("console")).unwrap_or_default()
    }

    pub fn is_running(pid: u32) -> bool {
        Path::new(&format!("/proc/{pid}")).exists()
    }

    /// It was started, and has not ended by itself.
    pub fn runs(&self) -> bool {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.as_ref().is_some_and(|running| !has_ended(running.server))
    }

    /// Sends it a signal that does not end it.
    pub fn signal(&self, signal: &str) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        send(running.as_ref().expect("the server runs").server, signal);
    }

    /// Ends it with a signal and waits until it is gone; the folder stays when `keep` says so.
    pub fn end(&self, signal: &str, keep: bool) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut running) = running.take() else { return };
        send(running.server, signal);
        wait_until("the server has ended", Duration::from_secs(60), || {
            has_ended(running.server)
        });
        let mut pipe = running.pipe.take().expect("a pipe to the shell");
        if keep {
            pipe.write_all(b"keep\n").expect("the shell reads");
        }
        drop(pipe);
        running.shell.wait().expect("the watchdog ends");
    }
}

/// A zombie has ended: the shell collects it when the pipe closes.
fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end("-KILL", false);
    }
}
