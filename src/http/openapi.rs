//! `GET /openapi.json`: the ingest listener in OpenAPI 3.1, made at the start from the table of its routes, the table of its
//! refusals and the options in force.
//!
//! Built as JSON, not with utoipa: its macros describe Rust types that are known to the compiler. Here every declared source
//! is a path, bodies are bytes that never become a type, receipts are written by hand, and what may be refused follows from
//! the configuration. What a macro would give, a path that cannot be forgotten, a row of `routes.rs` gives too; that the
//! words are true, tests/it/openapi.rs shows with requests made from them.
//!
//! What JSON Schema has no words for is said in English: parameters that exclude each other, and headers whose names are a
//! pattern.
//!
//! Deliberately does not know: what handlers do.

pub(super) mod paths;
mod schemas;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::error::{PROBLEM_JSON, Reason};
use super::{Gateway, Options, routes};

/// The version of the specification; the oldest 3.1, which every tool for 3.1 reads.
const OPENAPI: &str = "3.1.0";
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What a description depends on.
pub(super) struct Facts<'o> {
    options: &'o Options,
    /// The log's identity: the only cluster that clients of the REST Proxy find.
    wal_id: &'o str,
}

/// The paths that a route stands for, each with what it takes: of a route with a declared name in it, one for each.
pub(super) type Describe = fn(&Facts<'_>, path: &str) -> Vec<(String, Value)>;

/// `GET /openapi.json`.
pub(super) async fn answer(State(gateway): State<Arc<Gateway>>) -> Response {
    ([(header::CONTENT_TYPE, JSON)], gateway.openapi.clone()).into_response()
}

/// The document, as it is sent.
pub(super) fn document(options: &Options, wal_id: &str) -> Bytes {
    let facts = Facts { options, wal_id };
    let routes = routes::all();
    let described = routes.iter().flat_map(|route| (route.describe)(&facts, route.path));
    let mut document = json!({
        "openapi": OPENAPI,
        "info": {
            "title": "tidegate",
            "summary": "What clients send to this gateway, and what they read.",
            "description": "A request that is answered 2xx is on disk, all of its records or none; Kafka gets them from there. \
                One that is answered otherwise, or not at all, may be sent again: with an Idempotency-Key it is stored once. \
                Wait for as long as Retry-After says. Paths take HEAD where they take GET; another method is 405 with Allow, \
                and OPTIONS is 204 with Allow.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "paths": described.collect::<Map<_, _>>(),
        "components": {"schemas": schemas::shared()},
    });
    let (schemes, required) = security(options);
    if let Some(document) = document.as_object_mut()
        && !required.is_empty()
    {
        document.insert("security".into(), required.into());
        if let Some(components) = document.get_mut("components").and_then(Value::as_object_mut) {
            components.insert("securitySchemes".into(), schemes.into());
        }
    }
    // Writing JSON to memory cannot fail.
    serde_json::to_vec(&document).unwrap_or_default().into()
}

/// How senders are known, and which of it a request needs: any one of the list. Empty: nobody is asked.
fn security(options: &Options) -> (Map<String, Value>, Vec<Value>) {
    let mut schemes = Map::new();
    let mut required = Vec::new();
    if options.keys.is_some() {
        for (name, scheme) in [
            (
                "bearer",
                json!({"type": "http", "scheme": "bearer", "description": "An API key."}),
            ),
            (
                "apiKey",
                json!({"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key."}),
            ),
            (
                "basic",
                json!({"type": "http", "scheme": "basic", "description": "An API key as the password of any name."}),
            ),
        ] {
            schemes.insert(name.into(), scheme);
            required.push(Map::from_iter([(name.to_owned(), json!([]))]));
        }
    }
    if options.tls.as_ref().is_some_and(|tls| tls.wants_certificates()) {
        let scheme = json!({"type": "mutualTLS", "description": "A certificate of the gateway's CA for clients."});
        schemes.insert("mutualTLS".into(), scheme);
        if required.is_empty() {
            required.push(Map::new());
        }
        for all in &mut required {
            all.insert("mutualTLS".into(), json!([]));
        }
    }
    (schemes, required.into_iter().map(Value::Object).collect())
}

/// In whose words a path refuses.
#[derive(Clone, Copy)]
enum Said {
    /// RFC 9457.
    Problem,
    /// Confluent's REST Proxy, in an answer of this media type.
    RestProxy(&'static str),
}

/// What a method of a path takes and answers.
struct Operation {
    id: String,
    summary: String,
    description: String,
    parameters: Vec<Value>,
    body: Option<Value>,
    /// Status, and what of it [`answers`] makes.
    answer: (u16, Value),
    /// What it is refused for beside what [`Facts::refusals`] names.
    refusals: &'static [&'static [Reason]],
    said: Said,
}

impl Operation {
    /// As the document has it.
    fn describe(self, facts: &Facts<'_>) -> Value {
        let mut responses = Map::new();
        let mut reasons = facts.refusals();
        reasons.extend(self.refusals.iter().copied().flatten());
        let mut by_status = BTreeMap::<u16, Vec<Reason>>::new();
        for reason in reasons {
            let of_status = by_status.entry(reason.status().as_u16()).or_default();
            if !of_status.contains(&reason) {
                of_status.push(reason);
            }
        }
        for (status, reasons) in by_status {
            responses.insert(status.to_string(), refusal(status, &reasons, self.said));
        }
        responses.insert(self.answer.0.to_string(), self.answer.1);
        if facts.limits_rates() {
            for response in responses.values_mut() {
                add_rates(response);
            }
        }
        let mut operation = json!({
            "operationId": self.id,
            "summary": self.summary,
            "description": self.description,
            "responses": responses,
        });
        if let Some(operation) = operation.as_object_mut() {
            if !self.parameters.is_empty() {
                operation.insert("parameters".into(), self.parameters.into());
            }
            if let Some(body) = self.body {
                operation.insert("requestBody".into(), body);
            }
        }
        operation
    }
}

impl Facts<'_> {
    /// What any request may be refused for, whatever it asks.
    fn refusals(&self) -> Vec<Reason> {
        let all = [
            Reason::Malformed,
            Reason::Unauthorized,
            Reason::Forbidden,
            Reason::Timeout,
            Reason::Rate,
            Reason::Headers,
            Reason::InFlight,
            Reason::ShuttingDown,
        ];
        let asks = self.options.keys.is_some() || self.options.tls.as_ref().is_some_and(|tls| tls.wants_certificates());
        let may = all.into_iter().filter(|reason| self.may_refuse(*reason));
        may.filter(|reason| *reason != Reason::Forbidden || asks).collect()
    }

    /// Whether it is a reason at all, as this gateway is configured.
    fn may_refuse(&self, reason: Reason) -> bool {
        match reason {
            Reason::Unauthorized => self.options.keys.is_some(),
            Reason::Rate => self.limits_rates(),
            _ => true,
        }
    }

    fn limits_rates(&self) -> bool {
        self.options.requests_per_second_max_per_address > 0 || self.options.requests_per_second_max_per_key > 0
    }
}

/// A refusal for one of `reasons`, which have this status.
fn refusal(status: u16, reasons: &[Reason], said: Said) -> Value {
    let titles: Vec<&str> = reasons.iter().map(|reason| reason.title()).collect();
    let mut headers = Map::new();
    if reasons.iter().any(|reason| reason.retry_after().is_some()) {
        let seconds = json!({"type": "integer", "minimum": 1});
        headers.insert(
            "Retry-After".into(),
            sent("After how many seconds to send it again.", seconds),
        );
    }
    match status {
        401 => headers.insert("WWW-Authenticate".into(), sent("How a key is sent.", text())),
        415 => headers.insert(
            "Accept-Encoding".into(),
            json!({"description": "What the body may be compressed with, where it was with something else.", "schema": text()}),
        ),
        _ => None,
    };
    let (media, schema) = match said {
        Said::Problem => (PROBLEM_JSON, schemas::problem(status, reasons)),
        Said::RestProxy(media) => (media, schemas::rest_proxy_error(reasons)),
    };
    json!({"description": format!("{}.", titles.join("; ")), "headers": headers, "content": {media: {"schema": schema}}})
}

/// An answer that is no refusal, with its headers and contents.
fn answers(description: &str, headers: &[(&str, Value)], contents: &[(&str, Value)]) -> Value {
    let headers = headers
        .iter()
        .map(|(name, header)| ((*name).to_owned(), header.clone()));
    let contents = contents
        .iter()
        .map(|(media, schema)| ((*media).to_owned(), json!({"schema": schema})));
    json!({
        "description": description,
        "headers": headers.collect::<Map<_, _>>(),
        "content": contents.collect::<Map<_, _>>(),
    })
}

/// What every answer says of the limits, as far as the request has met one.
fn add_rates(response: &mut Value) {
    let Some(headers) = response.get_mut("headers").and_then(Value::as_object_mut) else {
        return;
    };
    for (name, description) in [
        (
            "RateLimit-Policy",
            "Requests (q) in a window of seconds (w), of each limit.",
        ),
        (
            "RateLimit",
            "Requests left (r), and the seconds until it is full again (t), of each limit.",
        ),
    ] {
        headers.insert(name.into(), json!({"description": description, "schema": text()}));
    }
}

/// A header that is always there.
fn sent(description: &str, schema: Value) -> Value {
    json!({"description": description, "required": true, "schema": schema})
}

fn text() -> Value {
    json!({"type": "string"})
}
