//! The listeners' sockets, and how many files the process may have open.

use std::net::SocketAddr;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpSocket;

use super::exit::ListenError;
use crate::config::Config;

/// Connections that the kernel completes while the gateway is busy. Its own limit may be lower.
const BACKLOG: u32 = 4096;
/// Files that are no client's connection: the log, Kafka's connections, the admin listener.
const FILES_RESERVED: u64 = 512;
/// The table of files is not made larger than for so many at once: each takes 8 bytes of the kernel's memory.
const TABLE_FILES_MAX: u64 = 65_536;

/// Opens a listener; needs a tokio runtime around it.
pub(super) fn listen(
    config: &Config,
    key: &'static str,
    address: SocketAddr,
) -> Result<std::net::TcpListener, ListenError> {
    let open = || {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        // A restart must not wait for the old process's connections to time out.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)?.into_std()
    };
    open().map_err(|source| ListenError {
        address,
        key,
        origin: config.origin(key),
        source,
    })
}

/// How many files the process needs for so many connections.
pub(super) fn files_needed(connections: u32) -> u64 {
    u64::from(connections).saturating_add(FILES_RESERVED)
}

/// How many of `wanted` connections the limit of open files allows, after raising it as far as it goes.
/// Without this, connections would eat the files that the log needs.
pub(super) fn connections_allowed(wanted: u32) -> u32 {
    let needed = files_needed(wanted);
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(u64::MAX);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    if current >= needed {
        return wanted;
    }
    let raised = needed.min(maximum);
    let new = Rlimit {
        current: Some(raised),
        maximum: limit.maximum,
    };
    let files = if setrlimit(Resource::Nofile, new).is_ok() {
        raised
    } else {
        current
    };
    let allowed = u32::try_from(files.saturating_sub(FILES_RESERVED).max(files / 4))
        .unwrap_or(u32::MAX)
        .min(wanted);
    if allowed < wanted {
        tracing::warn!(
            "the limit of open files ({files}, ulimit -n) allows {allowed} connections, not http.connections_max = {wanted}: \
             raise it, or lower connections_max"
        );
    }
    allowed
}

/// Gives the process's table of files its size. The kernel doubles it as files come, and with threads each time whoever opened one
/// waits for some 10 ms (Linux, fs/file.c: `expand_files` ends with `synchronize_rcu`): clients would, when many connect. To be called
/// while there is one thread.
pub(super) fn make_room(connections: u32) {
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let files = files_needed(connections).min(allowed).clamp(1, TABLE_FILES_MAX);
    let last = i32::try_from(files - 1).unwrap_or(i32::MAX);
    if let Err(error) = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), last) {
        tracing::debug!(%error, "the table of files grows as they come");
    }
}
