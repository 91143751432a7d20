//! Questions to the listeners of a gateway and of a lander that run.
//!
//! No proxy, no redirect: the token goes where the operator said and nowhere else. Time and size of an answer have
//! limits. An answer is JSON from whoever listens there: that it is JSON, and of the kind of process that was meant, is
//! checked here. Deliberately does not know what any value in it means.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use ureq::{Agent, Body, Timeout};

use super::words::one_line;
use crate::config::Config;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// For all of it. The gateway itself waits 3 s for a log that hangs, and then says so: that must arrive.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// A thousand held topics with their reasons, or the partitions of a large cluster, are below 1 MiB.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// For a verb: the gateway waits up to 20 s for the forwarder, and for a disk.
const VERB_TIMEOUT: Duration = Duration::from_secs(30);
/// For a page of records: 4 MiB of them, of which JSON may make several times as much.
const PAGE_BYTES_MAX: u64 = 64 << 20;
/// The most characters of a foreign text that a message shows.
const REASON_CHARACTERS_MAX: usize = 300;

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// Through its admin listener.
    Gateway,
    /// Through its own listener.
    Lander,
}

impl Part {
    /// As it stands in messages; also the member of its status that has its name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Lander => "lander",
        }
    }

    fn command(self) -> &'static str {
        match self {
            Self::Gateway => "tidegate serve",
            Self::Lander => "tidegate land",
        }
    }

    /// What else can be named when nobody is there.
    fn instead(self) -> &'static str {
        match self {
            Self::Gateway => ". A verb that only looks also takes a log's folder: --wal DIR",
            Self::Lander => "",
        }
    }

    /// The listener that is taken for it by mistake.
    fn beside(self) -> &'static str {
        match self {
            Self::Gateway => "; the one that takes records (http.listen) is another",
            Self::Lander => "; a gateway's is another",
        }
    }

    fn listener(self) -> &'static str {
        match self {
            Self::Gateway => "its admin listener with --admin URL",
            Self::Lander => "its listener with --lander URL",
        }
    }
}

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// Nobody is there.
    #[error("no {} answers on {address} ({named}){why}: start one with `{}`, or, if one runs, name {}{}", .part.name(), .part.command(), .part.listener(), .part.instead())]
    Away {
        part: Part,
        address: String,
        named: String,
        why: String,
    },
    /// The token is missing, or another one.
    #[error(
        "the {} on {address} wants its token ({code}): set admin.token (TIDEGATE_ADMIN__TOKEN) to the one that it was started with",
        .part.name()
    )]
    Denied { part: Part, address: String, code: u16 },
    /// Something else listens there.
    #[error("what answers on {address} ({named}) is no {}: {why}. Name {}{}", .part.name(), .part.listener(), .part.beside())]
    Stranger {
        part: Part,
        address: String,
        named: String,
        why: String,
    },
    /// It is there and does not tell.
    #[error("the {} on {address} does not tell its state: {why}", .part.name())]
    Unwell { part: Part, address: String, why: String },
    /// Nobody is there, and what the log's folder says cannot be shown either.
    #[error("{why}")]
    Folder { why: String, is_misdirected: bool },
    /// It understood, and will not.
    #[error("the {} on {address} refused: {why}", .part.name())]
    Refused { part: Part, address: String, why: String },
}

impl AskError {
    /// Nobody is there: what is normal for one of two.
    pub(super) fn is_away(&self) -> bool {
        matches!(self, Self::Away { .. })
    }

    /// The configuration, or a flag, is what must change.
    pub(super) fn is_misdirected(&self) -> bool {
        match self {
            Self::Denied { .. } | Self::Stranger { .. } => true,
            Self::Folder { is_misdirected, .. } => *is_misdirected,
            _ => false,
        }
    }
}

/// Where somebody listens: host, port and, behind a proxy, the beginning of the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place(String);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Self(reachable(address).to_string())
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_url = text.contains("://");
        let url = match is_url {
            true => text.to_owned(),
            false => format!("http://{text}"),
        };
        let uri: Uri = url
            .parse()
            .map_err(|error| format!("{error}: write http://HOST:PORT"))?;
        if uri.scheme_str() != Some("http") {
            return Err("only plain HTTP can be asked: write http://HOST:PORT".to_owned());
        }
        let host = uri.authority().map_or("", |authority| authority.as_str());
        if host.is_empty() || host.contains('@') || uri.query().is_some() {
            return Err(
                "only host, port and path can be named (the token is admin.token): write http://HOST:PORT".into(),
            );
        }
        // A port, or a name, that stands alone is neither: it would be asked as a host, on port 80.
        if !is_url && uri.port().is_none() {
            return Err(format!(
                "{text:?} is neither a URL nor HOST:PORT: write http://HOST:PORT"
            ));
        }
        Ok(Self(format!("{host}{}", uri.path().trim_end_matches('/'))))
    }
}

/// An address to connect to: "every address" is none.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => [127, 0, 0, 1].into(),
            SocketAddr::V6(_) => [0, 0, 0, 0, 0, 0, 0, 1u16].into(),
        });
    }
    address
}

/// What was answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// For looking into.
    pub(super) value: Value,
    /// As it was sent, on one line: members in their order, numbers as written.
    pub(super) json: String,
}

/// One listener. No `Debug`: it holds the token.
#[derive(Clone)]
pub(super) struct Listener {
    part: Part,
    place: Place,
    /// By which flag, or by which key and from where.
    named: String,
    token: Option<String>,
}

impl Listener {
    /// The one that the configuration names, or the one at `place`.
    pub(super) fn new(part: Part, place: Option<Place>, config: &Config) -> Self {
        let (flag, key, configured) = match part {
            Part::Gateway => ("--admin", "admin.listen", config.admin.listen),
            Part::Lander => ("--lander", "land.listen", config.land.listen),
        };
        let (place, named) = match place {
            Some(place) => (place, flag.to_owned()),
            None => (configured.into(), format!("{key}, {}", config.origin(key))),
        };
        Self {
            part,
            place,
            named,
            token: config.admin.token.reveal().map(str::to_owned),
        }
    }

    /// Host and port as messages show them.
    pub(super) fn address(&self) -> &str {
        &self.place.0
    }

    /// By which flag the place was named, or by which key and from where.
    pub(super) fn named(&self) -> &str {
        &self.named
    }

    /// `GET /v1/status`.
    pub(super) fn status(&self) -> Result<Answer, AskError> {
        let answer = self.call("/v1/status", None::<&()>, ANSWER_TIMEOUT, ANSWER_BYTES_MAX);
        // Every gateway and every lander has a status: who refuses this is neither.
        let answer = answer.map_err(|error| match error {
            AskError::Refused { why, .. } => self.stranger(why),
            error => error,
        })?;
        let name = self.part.name();
        if !answer.value.get(name).is_some_and(Value::is_string) {
            return Err(self.stranger(format!("its answer is JSON without the name of a {name}")));
        }
        Ok(answer)
    }

    /// `GET` of a path with its query, as JSON of this kind.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, AskError> {
        self.typed(&self.verb(path, None::<&()>)?)
    }

    /// `POST` of JSON, answered by JSON of this kind.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, AskError> {
        self.typed(&self.verb(path, Some(body))?)
    }

    fn verb(&self, path: &str, body: Option<&impl Serialize>) -> Result<Answer, AskError> {
        match self.call(path, body, VERB_TIMEOUT, PAGE_BYTES_MAX) {
            // Whether it is for a gateway to refuse.
            Err(AskError::Refused { part, address, why }) => {
                self.status()?;
                Err(AskError::Refused { part, address, why })
            }
            answer => answer,
        }
    }

    fn typed<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, AskError> {
        serde_json::from_str(&answer.json)
            .map_err(|error| self.stranger(format!("its answer is not what this version expects ({error})")))
    }

    fn call(
        &self,
        path: &str,
        body: Option<&impl Serialize>,
        timeout: Duration,
        bytes_max: u64,
    ) -> Result<Answer, AskError> {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_global(Some(timeout))
            .build()
            .into();
        let mut request = Request::builder().uri(format!("http://{}{path}", self.place.0));
        if let Some(token) = &self.token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            // A token that cannot stand in a header cannot be the right one either.
            let mut value = value.map_err(|_| self.denied(StatusCode::UNAUTHORIZED))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let sent = match body {
            None => request.body(()).map(|request| agent.run(request)),
            Some(body) => {
                let body = serde_json::to_vec(body).map_err(|error| self.stranger(error.to_string()))?;
                let request = request.method("POST").header(header::CONTENT_TYPE, "application/json");
                request.body(body).map(|request| agent.run(request))
            }
        };
        let sent = sent.map_err(|error| self.stranger(error.to_string()))?;
        let mut response = sent.map_err(|error| self.failed(error, timeout))?;
        let body = response.body_mut().with_config().limit(bytes_max).read_to_vec();
        let body = body.map_err(|error| self.failed(error, timeout))?;
        self.understood(&response, &body)
    }

    fn understood(&self, response: &Response<Body>, body: &[u8]) -> Result<Answer, AskError> {
        let code = response.status();
        let value = serde_json::from_slice::<Value>(body);
        if code != StatusCode::OK {
            let detail = value.as_ref().ok().and_then(|problem| problem.get("detail")?.as_str());
            let detail_text = detail.map_or_else(String::new, |text| {
                let text = one_line(text.as_bytes(), REASON_CHARACTERS_MAX);
                text.trim_end_matches('.').to_owned()
            });
            let why = match detail {
                Some(_) => format!("it answered {}: {detail_text}", code.as_u16()),
                None => format!("it answered {}", code.as_u16()),
            };
            return Err(match code {
                StatusCode::UNAUTHORIZED => self.denied(code),
                StatusCode::FORBIDDEN if detail.is_none() => self.denied(code),
                _ if code.is_server_error() => self.unwell(why),
                StatusCode::FORBIDDEN
                | StatusCode::BAD_REQUEST
                | StatusCode::NOT_FOUND
                | StatusCode::CONFLICT
                | StatusCode::PAYLOAD_TOO_LARGE
                | StatusCode::UNPROCESSABLE_ENTITY
                    if detail.is_some() =>
                {
                    AskError::Refused {
                        part: self.part,
                        address: self.place.0.clone(),
                        why: detail_text,
                    }
                }
                _ => self.stranger(why),
            });
        }
        let value = value.map_err(|error| self.stranger(format!("its answer is not JSON ({error})")))?;
        let text = String::from_utf8_lossy(body);
        Ok(Answer {
            value,
            json: json_line(&text),
        })
    }

    fn failed(&self, error: ureq::Error, timeout: Duration) -> AskError {
        use std::io::ErrorKind::{ConnectionRefused, InvalidData};
        match error {
            ureq::Error::Io(error) if error.kind() == ConnectionRefused => self.away(String::new()),
            ureq::Error::Io(error) if error.kind() != InvalidData => self.away(format!(" ({error})")),
            ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => self.away(format!(" ({error})")),
            ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
                self.away(format!(" within {} s", CONNECT_TIMEOUT.as_secs()))
            }
            ureq::Error::Timeout(_) => self.unwell(format!(
                "it took the connection and did not answer within {} s. Look at its log and at its machine",
                timeout.as_secs()
            )),
            error => self.stranger(one_line(error.to_string().as_bytes(), REASON_CHARACTERS_MAX)),
        }
    }

    pub(super) fn away(&self, why: String) -> AskError {
        AskError::Away {
            part: self.part,
            address: self.place.0.clone(),
            named: self.named.clone(),
            why,
        }
    }

    fn denied(&self, code: StatusCode) -> AskError {
        AskError::Denied {
            part: self.part,
            address: self.place.0.clone(),
            code: code.as_u16(),
        }
    }

    fn stranger(&self, why: String) -> AskError {
        AskError::Stranger {
            part: self.part,
            address: self.place.0.clone(),
            named: self.named.clone(),
            why,
        }
    }

    fn unwell(&self, why: String) -> AskError {
        AskError::Unwell {
            part: self.part,
            address: self.place.0.clone(),
            why,
        }
    }
}

/// Valid JSON on one line that a terminal can be shown: outside of its strings control characters are blank space,
/// inside of them they may be written as escapes.
fn json_line(json: &str) -> String {
    let mut line = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' | '\r' | '\t' => {}
            c if c.is_control() => line.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => line.push(c),
        }
    }
    line
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn place(text: &str) -> Result<String, String> {
        text.parse::<Place>().map(|place| place.0)
    }

    #[test]
    fn a_place_is_a_url_or_host_and_port() {
        for (text, place_of) in [
            ("http://127.0.0.1:4001", "127.0.0.1:4001"),
            ("127.0.0.1:4001", "127.0.0.1:4001"),
            ("http://[::1]:4001/", "[::1]:4001"),
            ("http://gateways.example/edge-7/", "gateways.example/edge-7"),
        ] {
            assert_eq!(place(text).as_deref(), Ok(place_of), "{text}");
        }
        for text in [
            "",
            "https://x:1",
            "http://a:b@c:1",
            "http://x:1/?y",
            "ftp://x",
            "http://",
            "a b",
            "4711",
            "localhost",
            "localhost/x",
        ] {
            assert!(
                place(text).is_err_and(|error| error.contains("http://HOST:PORT")),
                "{text}"
            );
        }
    }

    #[test]
    fn a_wildcard_is_asked_on_the_loopback() {
        for (listen, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            assert_eq!(Place::from(listen.parse::<SocketAddr>().unwrap()).0, asked);
        }
    }

    #[test]
    fn json_of_any_layout_is_one_line_without_control_characters() {
        let json = "{\n  \"b\": 18446744073709551617,\r\n\t\"a\": \"\u{9b}2J\u{7f}\\u001b\"\n}\n";
        let line = json_line(json);
        assert_eq!(line, r#"{  "b": 18446744073709551617,"a": "\u009b2J\u007f\u001b"}"#);
        let same = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        assert_eq!(same(&line), same(json));
    }

    /// A listener that answers once with this, whatever it is asked.
    fn asked(answer: &'static [u8]) -> Result<Answer, AskError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place::from(listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            // It may have read enough.
            drop(stream.write_all(answer));
        });
        let listener = Listener {
            part: Part::Gateway,
            place,
            named: "--admin".to_owned(),
            token: Some("a-token".to_owned()),
        };
        let result = listener.status();
        server.join().unwrap();
        result
    }

    #[test]
    fn whatever_answers_is_told_in_words() {
        let told = |answer| asked(answer).unwrap_err();
        let denied = told(b"HTTP/1.1 403 x\r\ncontent-length: 0\r\n\r\n");
        assert!(matches!(denied, AskError::Denied { code: 403, .. }), "{denied}");
        let unwell = told(b"HTTP/1.1 503 x\r\ncontent-length: 22\r\n\r\n{\"detail\":\"a\\u001b[2J\"}");
        assert!(matches!(unwell, AskError::Unwell { .. }), "{unwell}");
        assert!(!unwell.to_string().contains('\x1b'), "{unwell}");
        for stranger in [
            &b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n"[..],
            b"HTTP/1.1 302 x\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n",
            b"HTTP/1.1 200 x\r\ncontent-length: 4\r\n\r\n<p/>",
            b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\n[]",
            b"HTTP/1.1 200 x\r\ncontent-length: 14\r\n\r\n{\"lander\":\"a\"}",
            b"HTTP/1.1 200 x\r\ncontent-length: 99999999999\r\n\r\n{",
            b"SSH-2.0-x\r\n",
        ] {
            let error = told(stranger);
            assert!(
                !matches!(error, AskError::Denied { .. } | AskError::Unwell { .. }),
                "{error}"
            );
        }
        let answer = asked(b"HTTP/1.1 200 x\r\ncontent-length: 17\r\n\r\n{\"gateway\": \"a\"}\n").unwrap();
        assert_eq!(answer.json, r#"{"gateway": "a"}"#);
    }
}
