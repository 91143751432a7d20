//! A client of HTTP/2 that misbehaves: frames on a TLS connection, as many and as wrong as wanted (RFC 9113; header blocks as
//! literals of RFC 7541, without a table).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use openssl::ssl::{SslConnector, SslMethod, SslStream, SslVerifyMode};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// A header as a literal that is in no table.
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    [&[0][..], &string(name), &string(value)].concat()
}

/// A string: its length as a prefixed integer of 7 bits.
fn string(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    if text.len() < 127 {
        bytes.push(u8::try_from(text.len()).unwrap());
    } else {
        bytes.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            bytes.push(u8::try_from(rest % 128 + 128).unwrap());
            rest /= 128;
        }
        bytes.push(u8::try_from(rest).unwrap());
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes
}

/// The header block of a POST of JSON.
pub fn head(path: &str) -> Vec<u8> {
    [
        literal(":method", "POST"),
        literal(":scheme", "https"),
        literal(":authority", "x"),
        literal(":path", path),
        literal("content-type", "application/json"),
    ]
    .concat()
}

pub struct Connection {
    stream: SslStream<TcpStream>,
    next: u32,
}

impl Connection {
    /// A connection that has said its preface.
    pub fn open(address: &str) -> Self {
        let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
        connector.set_verify(SslVerifyMode::NONE);
        connector.set_alpn_protos(b"\x02h2").unwrap();
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut stream = connector.build().connect("127.0.0.1", tcp).unwrap();
        assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"h2"[..]));
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        let mut connection = Self { stream, next: 1 };
        // No table for headers: what is in an answer can be read as it stands.
        assert!(connection.send(SETTINGS, 0, 0, &[0, 1, 0, 0, 0, 0]));
        connection
    }

    /// A connection that never takes an answer: its window is empty.
    pub fn open_without_window(address: &str) -> Self {
        let mut connection = Self::open(address);
        assert!(connection.send(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]));
        connection
    }

    /// Sends a frame; false when the other side has closed, or takes no more.
    pub fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> bool {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let frame = [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat();
        self.stream.write_all(&frame).is_ok()
    }

    /// Opens a request and gives it up.
    pub fn open_and_reset(&mut self) -> bool {
        let stream = self.next;
        self.next += 2;
        self.send(HEADERS, END_HEADERS, stream, &head("/v1/topics/t"))
            && self.send(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
    }

    /// The status of a request of its own.
    pub fn post(&mut self, path: &str, body: &[u8]) -> u16 {
        let stream = self.next;
        self.next += 2;
        assert!(self.send(HEADERS, END_HEADERS, stream, &head(path)));
        assert!(self.send(DATA, END_STREAM, stream, body));
        self.stream
            .get_ref()
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let mut status = 0;
        loop {
            let (kind, flags, of, payload) = self.frame().expect("an answer");
            match kind {
                SETTINGS if flags & ACK == 0 => assert!(self.send(SETTINGS, ACK, 0, b"")),
                HEADERS if of == stream => status = status_of(&payload),
                _ => {}
            }
            if of == stream && flags & END_STREAM != 0 {
                return status;
            }
        }
    }

    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.stream.read_exact(&mut payload).ok()?;
        Some((head[3], head[4], stream, payload))
    }

    /// Reads until the other side closes.
    #[track_caller]
    pub fn read_to_end(&mut self, limit: Duration) {
        let began = Instant::now();
        let mut buffer = [0; 16 * 1024];
        loop {
            let left = limit.saturating_sub(began.elapsed());
            assert!(!left.is_zero(), "it does not end");
            self.stream.get_ref().set_read_timeout(Some(left)).unwrap();
            match self.stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => {
                    assert!(began.elapsed() < limit, "it does not end");
                    return;
                }
            }
        }
    }
}

/// The status of an answer's header block, which comes first: 200 is in the static table, others are literals of its name.
fn status_of(block: &[u8]) -> u16 {
    // A change of the table's size may stand before it.
    let block = match block {
        [size, rest @ ..] if size & 0xe0 == 0x20 => rest,
        block => block,
    };
    match block {
        [0x88, ..] => 200,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [first, length, digits @ ..] if first & 0x0f == 8 || first & 0x3f == 8 => {
            let digits = &digits[..usize::from(length & 0x7f)];
            let text = match length & 0x80 {
                0 => String::from_utf8_lossy(digits).into_owned(),
                _ => huffman(digits),
            };
            text.parse().unwrap()
        }
        other => panic!("no status in {other:?}"),
    }
}

/// Digits in the code of RFC 7541, appendix B: 0, 1, 2 have 5 bits, the others 6.
fn huffman(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1))
        .collect();
    let number = |bits: &[u8]| bits.iter().fold(0_u8, |number, bit| number << 1 | bit);
    let (mut text, mut at) = (String::new(), 0);
    while at + 5 <= bits.len() {
        match number(&bits[at..at + 5]) {
            digit @ 0..=2 => {
                text.push(char::from(b'0' + digit));
                at += 5;
            }
            _ if at + 6 <= bits.len() => {
                let digit = number(&bits[at..at + 6]);
                if !(0x19..=0x1f).contains(&digit) {
                    break;
                }
                text.push(char::from(b'3' + digit - 0x19));
                at += 6;
            }
            _ => break,
        }
    }
    text
}
