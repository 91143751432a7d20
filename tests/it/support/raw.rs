//! A client that misbehaves: bytes on a TCP connection, as slow, as many and as wrong as wanted.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::client::Answer;

/// A connection to `address`.
pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the listener accepts");
    stream.set_nodelay(true).expect("a TCP option");
    stream
}

/// Writes `request`, and returns what comes back until the server closes or says no more for `limit`.
/// That the server closes while it is written to is no error: its answer is what counts.
pub fn exchange(address: &str, request: &[u8], limit: Duration) -> String {
    let mut stream = connect(address);
    send(&mut stream, request);
    receive(&mut stream, limit)
}

/// Writes; false when the server has closed.
pub fn send(stream: &mut TcpStream, bytes: &[u8]) -> bool {
    stream
        .set_write_timeout(Some(Duration::from_secs(10)))
        .expect("a TCP option");
    stream.write_all(bytes).is_ok()
}

/// Reads one whole answer (head, and as many bytes of body as it announces), or what there is until the
/// server closes or `limit` is over.
pub fn receive(stream: &mut TcpStream, limit: Duration) -> String {
    let started = Instant::now();
    let mut received = Vec::new();
    let mut buffer = [0; 16 * 1024];
    while !is_whole(&received) {
        let left = limit.saturating_sub(started.elapsed());
        if left.is_zero() {
            break;
        }
        stream.set_read_timeout(Some(left)).expect("a TCP option");
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => received.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&received).into_owned()
}

fn is_whole(received: &[u8]) -> bool {
    let text = String::from_utf8_lossy(received);
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    length.is_some_and(|length| body.len() >= length)
}

/// The status of an answer; 0 when there is none.
pub fn status(answer: &str) -> u16 {
    answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0)
}

/// An answer, taken apart; status 0 when there is none.
pub fn answer(text: &str) -> Answer {
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
    let headers = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    Answer {
        status: status(text),
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect(),
        body: body.to_owned(),
    }
}
