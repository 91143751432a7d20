//! Every refusal: its status, its `application/problem+json` (RFC 9457) and its metric label.
//!
//! The one place that maps errors of ingest and log to HTTP. A detail tells the CLIENT what happened to
//! its request and what to do; reasons that concern the operator only (paths, errno) stay in the log.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::ingest::IngestError;
use crate::metrics as names;
use crate::wal::AppendError;

/// Why a request was refused: one value of the label `reason` of `tidegate_ingest_rejected_total` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reason {
    Malformed,
    Unauthorized,
    Forbidden,
    NotFound,
    Method,
    Timeout,
    TooLarge,
    MediaType,
    Invalid,
    Rate,
    KeyInFlight,
    KeyMismatch,
    Headers,
    WalFull,
    DiskLow,
    Poisoned,
    InFlight,
    ShuttingDown,
    Busy,
}

impl Reason {
    /// Label, status, title, and the seconds after which a client may try again.
    const fn facts(self) -> (&'static str, StatusCode, &'static str, Option<u32>) {
        match self {
            Self::Malformed => ("malformed", StatusCode::BAD_REQUEST, "Malformed request", None),
            Self::Unauthorized => ("unauthorized", StatusCode::UNAUTHORIZED, "Not authenticated", None),
            Self::Forbidden => ("forbidden", StatusCode::FORBIDDEN, "Not allowed", None),
            Self::NotFound => ("not_found", StatusCode::NOT_FOUND, "Not found", None),
            Self::Method => ("method", StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", None),
            Self::Timeout => ("timeout", StatusCode::REQUEST_TIMEOUT, "Request too slow", None),
            Self::TooLarge => ("too_large", StatusCode::PAYLOAD_TOO_LARGE, "Too large", None),
            Self::MediaType => (
                "media_type",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "Media type not taken",
                None,
            ),
            Self::Invalid => ("invalid", StatusCode::UNPROCESSABLE_ENTITY, "Cannot be done", None),
            Self::Rate => ("rate", StatusCode::TOO_MANY_REQUESTS, "Too many requests", Some(1)),
            Self::KeyInFlight => (
                "idempotency_in_flight",
                StatusCode::CONFLICT,
                "Request under way",
                Some(1),
            ),
            Self::KeyMismatch => (
                "idempotency_mismatch",
                StatusCode::UNPROCESSABLE_ENTITY,
                "Idempotency-Key used before",
                None,
            ),
            Self::Headers => (
                "headers",
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "Headers too large",
                None,
            ),
            Self::WalFull => ("wal_full", StatusCode::SERVICE_UNAVAILABLE, "Log full", Some(10)),
            Self::DiskLow => ("disk_low", StatusCode::SERVICE_UNAVAILABLE, "Disk space low", Some(10)),
            Self::Poisoned => ("poisoned", StatusCode::SERVICE_UNAVAILABLE, "Log stopped", Some(30)),
            Self::InFlight => (
                "in_flight",
                StatusCode::SERVICE_UNAVAILABLE,
                "Too many requests at once",
                Some(1),
            ),
            Self::ShuttingDown => (
                "shutting_down",
                StatusCode::SERVICE_UNAVAILABLE,
                "Shutting down",
                Some(5),
            ),
            Self::Busy => ("busy", StatusCode::SERVICE_UNAVAILABLE, "Busy", Some(1)),
        }
    }

    pub(super) const fn status(self) -> StatusCode {
        self.facts().1
    }

    /// What a person reads first.
    pub(super) const fn title(self) -> &'static str {
        self.facts().2
    }

    /// After how many seconds a client may try again, if it may.
    pub(super) const fn retry_after(self) -> Option<u32> {
        self.facts().3
    }

    /// The problem's type.
    pub(super) fn urn(self) -> String {
        format!("urn:tidegate:problem:{}", self.facts().0)
    }

    /// The REST Proxy's code: of a topic that is denied or is not there it has two digits more than the status.
    pub(super) fn rest_proxy_code(self) -> u16 {
        let status = self.status().as_u16();
        match self {
            Self::Forbidden | Self::NotFound | Self::Unauthorized => status * 100 + 1,
            _ => status,
        }
    }

    /// Counts one refusal on the ingest listener.
    pub(super) fn count(self) {
        metrics::counter!(names::INGEST_REJECTED_TOTAL, "reason" => self.facts().0).increment(1);
    }
}

/// A refusal.
#[derive(Debug)]
pub(super) struct Problem {
    reason: Reason,
    detail: String,
    /// After how many seconds a client may try again, where that is known better than by the reason.
    retry_after: Option<u32>,
    /// A header that belongs to the status: `Allow`, `WWW-Authenticate`, `Accept-Encoding`.
    header: Option<(header::HeaderName, HeaderValue)>,
}

#[derive(serde::Serialize)]
struct Document<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
}

impl Problem {
    /// `detail` says what happened, what it means for the client and what to do.
    pub(super) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            retry_after: None,
            header: None,
        }
    }

    /// Says it in other words: an operator is told more than a client.
    pub(super) fn saying(mut self, detail: String) -> Self {
        self.detail = detail;
        self
    }

    /// Ends the connection: what follows on it may not be what its client meant. (HTTP/2 has no such header, and no need.)
    pub(super) fn closing(self) -> Self {
        self.with(header::CONNECTION, "close")
    }

    /// Says when to come again.
    pub(super) fn after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    fn retry_after(&self) -> Option<u32> {
        self.retry_after.or(self.reason.retry_after())
    }

    pub(super) fn with(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.header = Some((name, HeaderValue::from_static(value)));
        self
    }

    /// 405 with `Allow`.
    pub(super) fn method(allow: &'static str) -> Self {
        Self::new(Reason::Method, format!("this path takes {allow}; nothing was done.")).with(header::ALLOW, allow)
    }

    pub(super) fn shutting_down() -> Self {
        Self::new(
            Reason::ShuttingDown,
            "the gateway is shutting down. This request was not taken; send it again, to another gateway or after the \
             restart. What was answered OK before is safe on disk.",
        )
    }

    fn document(&self) -> Vec<u8> {
        let document = Document {
            r#type: self.reason.urn(),
            title: self.reason.title(),
            status: self.reason.status().as_u16(),
            detail: &self.detail,
            retry_after: self.retry_after(),
        };
        // Writing strings and numbers to memory cannot fail; the status alone would still be true.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// The whole answer as bytes, for a connection that hyper has no request of; asks to close it.
    pub(super) fn to_http1(&self) -> Vec<u8> {
        let status = self.reason.status();
        let document = self.document();
        let retry_after = self
            .retry_after()
            .map_or(String::new(), |seconds| format!("retry-after: {seconds}\r\n"));
        let mut answer = format!(
            "HTTP/1.1 {} {}\r\ncontent-type: {PROBLEM_JSON}\r\n{retry_after}connection: close\r\ncontent-length: \
             {}\r\n\r\n",
            status.as_str(),
            status.canonical_reason().unwrap_or_default(),
            document.len()
        )
        .into_bytes();
        answer.extend_from_slice(&document);
        answer
    }
}

/// The media type of every refusal.
pub(super) const PROBLEM_JSON: &str = "application/problem+json";

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let document = self.document();
        self.with_body(PROBLEM_JSON, document)
    }
}

impl Problem {
    /// As Confluent's REST Proxy says it: `{"error_code": CODE, "message": TEXT}` of this media type.
    pub(super) fn of_rest_proxy(self, media: &'static str) -> Response {
        let code = self.reason.rest_proxy_code();
        let document = serde_json::json!({"error_code": code, "message": self.detail}).to_string();
        self.with_body(media, document.into_bytes())
    }

    fn with_body(self, media: &'static str, body: Vec<u8>) -> Response {
        let (status, retry_after) = (self.reason.status(), self.retry_after());
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        response.extensions_mut().insert(self.reason);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        response
    }
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Self {
        let detail = error.to_string();
        match error {
            IngestError::Malformed(_) => Self::new(Reason::Malformed, detail),
            IngestError::RecordTooLarge { .. }
            | IngestError::TooManyRecords { .. }
            | IngestError::ExpandedTooLarge { .. }
            | IngestError::RequestTooLarge { .. } => Self::new(Reason::TooLarge, detail),
            IngestError::Invalid(_) => Self::new(Reason::Invalid, detail),
            IngestError::MediaType { .. } => Self::new(Reason::MediaType, detail),
            IngestError::ContentEncoding { .. } => {
                Self::new(Reason::MediaType, detail).with(header::ACCEPT_ENCODING, "gzip, deflate, zstd, identity")
            }
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::Full { .. } => Self::new(
                Reason::WalFull,
                "the gateway's log has reached its limit (wal.bytes_max): Kafka has not taken the backlog yet. This request was not taken; keep it and \
                 send it again later. What was answered OK before is safe on disk.",
            ),
            AppendError::DiskLow { .. } => Self::new(
                Reason::DiskLow,
                "the gateway's disk is almost full. This request was not taken; keep it and send it again later. What \
                 was answered OK before is safe on disk.",
            ),
            AppendError::Outgrown => Self::new(
                Reason::DiskLow,
                "the gateway's disk does not take a new file: it is full, or was taken away. This request was not \
                 taken; keep it and send it again later. What was answered OK before is safe on disk.",
            ),
            AppendError::Busy { .. } => Self::new(
                Reason::Busy,
                "more data is waiting for the gateway's disk than it can hold in memory. This request was not taken; \
                 send it again in a moment.",
            ),
            // Unlike the others it can come after the write began: whether the record survives is open.
            AppendError::Poisoned { .. } => Self::new(
                Reason::Poisoned,
                "the gateway's log has stopped after a disk fault and the gateway is about to restart. This request is \
                 not confirmed; send it again. What was answered OK before is safe on disk.",
            ),
            AppendError::Closed => Self::shutting_down(),
            AppendError::TooLarge { bytes, bytes_max } => Self::new(
                Reason::TooLarge,
                format!(
                    "the records of this request take {bytes} bytes in the log, and one commit takes {bytes_max}. None \
                     of them was taken; send them in smaller requests."
                ),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const ALL: &[Reason] = &[
        Reason::Malformed,
        Reason::Unauthorized,
        Reason::Forbidden,
        Reason::NotFound,
        Reason::Method,
        Reason::Timeout,
        Reason::TooLarge,
        Reason::MediaType,
        Reason::Invalid,
        Reason::Rate,
        Reason::KeyInFlight,
        Reason::KeyMismatch,
        Reason::Headers,
        Reason::WalFull,
        Reason::DiskLow,
        Reason::Poisoned,
        Reason::InFlight,
        Reason::ShuttingDown,
        Reason::Busy,
    ];

    #[test]
    fn every_reason_is_a_known_label() {
        for reason in ALL {
            assert!(names::REJECTED_REASONS.contains(&reason.facts().0), "{reason:?}");
        }
    }

    #[test]
    fn whoever_may_come_back_is_told_when() {
        for reason in ALL {
            let (_, status, _, retry_after) = reason.facts();
            assert_eq!(
                [
                    StatusCode::SERVICE_UNAVAILABLE,
                    StatusCode::TOO_MANY_REQUESTS,
                    StatusCode::CONFLICT
                ]
                .contains(&status),
                retry_after.is_some(),
                "{reason:?}"
            );
        }
    }

    #[test]
    fn full_log_is_a_503_that_says_what_is_safe() {
        let problem = Problem::from(AppendError::Full { bytes_max: 1 });
        let document: serde_json::Value = serde_json::from_slice(&problem.document()).unwrap();
        assert_eq!(document["status"], 503);
        assert_eq!(document["retry_after"], 10);
        assert_eq!(document["type"], "urn:tidegate:problem:wal_full");
        assert!(document["detail"].as_str().unwrap().contains("safe on disk"));
        let response = problem.into_response();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()[header::RETRY_AFTER], "10");
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
    }

    #[test]
    fn append_errors_have_their_status() {
        let status = |error: AppendError| Problem::from(error).into_response().status().as_u16();
        assert_eq!(status(AppendError::DiskLow { free_bytes_min: 1 }), 503);
        assert_eq!(status(AppendError::Busy { queue_bytes_max: 1 }), 503);
        assert_eq!(status(AppendError::Closed), 503);
        assert_eq!(
            status(AppendError::Poisoned {
                reason: "/secret".into()
            }),
            503
        );
        assert_eq!(status(AppendError::TooLarge { bytes: 2, bytes_max: 1 }), 413);
    }

    #[test]
    fn operators_reason_is_not_shown_to_clients() {
        let problem = Problem::from(AppendError::Poisoned {
            reason: "/secret/path: EIO".into(),
        });
        assert!(!String::from_utf8(problem.to_http1()).unwrap().contains("secret"));
    }

    #[test]
    fn raw_answer_is_whole_http() {
        let answer = String::from_utf8(Problem::shutting_down().to_http1()).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(head.contains("retry-after: 5\r\n"));
    }
}
