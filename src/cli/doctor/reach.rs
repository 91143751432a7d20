//! Can this machine resolve a name and open a connection to it? With limits: neither the system's resolver nor a
//! network that swallows packets has any of its own that are short.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::thread;
use std::time::{Duration, Instant};

use super::within;

const RESOLVE_MAX: Duration = Duration::from_secs(5);
/// For all addresses of a name together.
const CONNECT_MAX: Duration = Duration::from_secs(4);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reach {
    /// Connected to this address.
    Open(SocketAddr),
    /// No such name, in the system's words.
    NoName(String),
    /// It resolves to these, and nobody answers there.
    Closed(Vec<SocketAddr>, Closed),
}

/// Why a connection did not come about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Closed {
    /// The machine is there, nobody listens.
    Refused,
    /// Nothing came back.
    Silent,
    /// The system's words.
    Other(String),
}

/// `host:port` in parts; an IPv6 address is in brackets.
pub(super) fn split(server: &str) -> Option<(String, u16)> {
    let (host, port) = server.trim().rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?))
}

/// Every one of them, at once, in their order.
pub(super) fn reach_all(places: &[(String, u16)]) -> Vec<Reach> {
    let threads: Vec<_> = places
        .iter()
        .cloned()
        .map(|(host, port)| thread::spawn(move || reach(&host, port)))
        .collect();
    let ended = threads.into_iter().map(thread::JoinHandle::join);
    ended
        .map(|reach| reach.unwrap_or_else(|_| Reach::NoName("the look at it failed".to_owned())))
        .collect()
}

fn reach(host: &str, port: u16) -> Reach {
    let name = host.to_owned();
    let resolved = within(RESOLVE_MAX, move || {
        (name.as_str(), port).to_socket_addrs().map(Iterator::collect::<Vec<_>>)
    });
    let addresses = match resolved {
        Some(Ok(addresses)) if !addresses.is_empty() => addresses,
        Some(Ok(_)) => return Reach::NoName("it has no address".to_owned()),
        Some(Err(error)) => {
            let text = error.to_string();
            let text = text.trim_start_matches("failed to lookup address information: ");
            return Reach::NoName(text.to_owned());
        }
        None => return Reach::NoName(format!("no answer within {} s", RESOLVE_MAX.as_secs())),
    };
    let end = Instant::now() + CONNECT_MAX;
    let mut closed = Closed::Silent;
    for (tried, address) in addresses.iter().enumerate() {
        let others = u32::try_from(addresses.len() - tried).unwrap_or(1);
        let limit = end.saturating_duration_since(Instant::now()) / others;
        if limit.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(address, limit) {
            Ok(_) => return Reach::Open(*address),
            Err(error) => {
                closed = match error.kind() {
                    ErrorKind::ConnectionRefused => Closed::Refused,
                    ErrorKind::TimedOut | ErrorKind::WouldBlock => Closed::Silent,
                    _ => Closed::Other(error.to_string()),
                };
            }
        }
    }
    Reach::Closed(addresses, closed)
}

impl Closed {
    /// Behind "nobody can be reached there: ".
    pub(super) fn words(&self) -> String {
        match self {
            Self::Refused => "connection refused".to_owned(),
            Self::Silent => format!("no answer within {} s", CONNECT_MAX.as_secs()),
            Self::Other(words) => words.clone(),
        }
    }

    /// What it means, and what to do about it.
    pub(super) fn advice(&self) -> (&'static str, &'static str) {
        match self {
            Self::Refused => (
                "the machine is there, and nobody listens on that port",
                "start the broker, or correct the port; a firewall that rejects looks the same",
            ),
            Self::Silent => (
                "packets get lost: the machine is off, the address is wrong, or a firewall drops them",
                "check the address with `ping`, then the firewalls and security groups in between for that port",
            ),
            Self::Other(_) => (
                "this machine has no way there",
                "check this machine's network and routes (`ip route get ADDRESS`)",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use super::*;

    #[test]
    fn a_place_is_reached_refused_or_has_no_name() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let found = reach_all(&[
            ("127.0.0.1".to_owned(), address.port()),
            ("127.0.0.1".to_owned(), 9),
            ("kafka-node-1.invalid".to_owned(), 9092),
        ]);
        assert_eq!(found[0], Reach::Open(address));
        assert!(matches!(&found[1], Reach::Closed(_, Closed::Refused)), "{found:?}");
        assert!(matches!(&found[2], Reach::NoName(_)), "{found:?}");
        assert_eq!(split("[::1]:9092"), Some(("::1".to_owned(), 9092)));
        assert_eq!(split(" kafka-1:9092"), Some(("kafka-1".to_owned(), 9092)));
        assert_eq!(split("kafka-1"), None);
    }
}
