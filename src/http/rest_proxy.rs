//! What clients of Confluent's REST Proxy ask for, v2 and v3: producing, and the name of the cluster. Shapes, media types and
//! error codes are the original's (docs.confluent.io/platform/current/kafka-rest/api.html).
//!
//! ```text
//! POST /topics/{topic}                          v2  200 {"offsets": [{"partition": null, "offset": null, ...}], ...}
//! GET  /v3/clusters                             v3  one, whose id is the log's identity
//! POST /v3/clusters/{id}/topics/{topic}/records v3  200, an object for each record, one after another
//! ```
//!
//! Two things differ, and have to: the answer comes before Kafka has the records, so that partition and offset are null
//! (`seq` is the record's place in the log), and a request is taken whole or not at all.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::error::{Problem, Reason};
use super::produce::{self, Ask, Kept, Way};
use super::{Gateway, pages};
use crate::ingest::Key;
use crate::ingest::rest_proxy::Size;

pub(super) const V2: &str = "application/vnd.kafka.v2+json";
pub(super) const V3: &str = "application/json";
const POST: &str = "POST";
/// How many records an answer tells of in one piece: a long one is made while it is read, so that clients that do not
/// read cost no memory.
const PIECE_RECORDS: u64 = 100;

/// `POST /topics/{topic}`.
pub(super) async fn v2(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return only(&request, POST);
    }
    let topic = request
        .uri()
        .path()
        .strip_prefix("/topics/")
        .unwrap_or_default()
        .to_owned();
    match produce(&gateway, request, &topic, Way::V2).await {
        Err(problem) => problem.of_rest_proxy(V2),
        Ok(kept) => {
            let entry = |text: &mut String, seq: u64| {
                write!(
                    text,
                    r#"{{"partition":null,"offset":null,"error_code":null,"error":null,"seq":{seq}}}"#
                )
            };
            let head = r#"{"offsets":["#;
            let tail = r#"],"key_schema_id":null,"value_schema_id":null}"#;
            answer(&gateway, &kept, V2, [head, ",", tail], entry)
        }
    }
}

/// `POST /v3/clusters/{id}/topics/{topic}/records`.
pub(super) async fn v3(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    if request.method() != Method::POST {
        return only(&request, POST);
    }
    let path = request.uri().path().to_owned();
    let mut parts = path.split('/').skip(3);
    let (cluster, topic) = (parts.next().unwrap_or_default(), parts.nth(1).unwrap_or_default());
    if let Err(problem) = check_cluster(&gateway, cluster) {
        return problem.of_rest_proxy(V3);
    }
    match produce(&gateway, request, topic, Way::V3).await {
        Err(problem) => problem.of_rest_proxy(V3),
        Ok(mut kept) => {
            let (cluster, first) = (gateway.wal_id.clone(), kept.receipt.first_seq);
            // A topic's name needs no escape in JSON.
            let (topic, time, sizes) = (kept.topic.clone(), kept.received_at(), std::mem::take(&mut kept.sizes));
            let entry = move |text: &mut String, seq: u64| {
                write!(
                    text,
                    r#"{{"error_code":200,"cluster_id":"{cluster}","topic_name":"{}","partition_id":null,"offset":null,"timestamp":"{time}""#,
                    topic.as_str()
                )?;
                let at = usize::try_from(seq - first).unwrap_or(usize::MAX);
                if let Some(sizes) = sizes.get(at) {
                    told(text, "key", sizes.key)?;
                    told(text, "value", sizes.value)?;
                }
                write!(text, r#","seq":{seq}}}"#)
            };
            answer(&gateway, &kept, V3, ["", "\n", "\n"], entry)
        }
    }
}

fn told(text: &mut String, name: &str, size: Size) -> std::fmt::Result {
    match size {
        Some((kind, bytes)) => write!(text, r#","{name}":{{"type":"{}","size":{bytes}}}"#, kind.facts().0),
        None => Ok(()),
    }
}

/// `GET /v3/clusters`.
pub(super) async fn clusters(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return only(&request, "GET, HEAD");
    }
    let list = json!({
        "kind": "KafkaClusterList",
        "metadata": {"self": place(&gateway, &request, "/v3/clusters"), "next": null},
        "data": [cluster_of(&gateway, &request)],
    });
    json_answer(&list)
}

/// `GET /v3/clusters/{id}`.
pub(super) async fn cluster(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return only(&request, "GET, HEAD");
    }
    let id = request.uri().path().strip_prefix("/v3/clusters/").unwrap_or_default();
    match check_cluster(&gateway, id) {
        Ok(()) => json_answer(&cluster_of(&gateway, &request)),
        Err(problem) => problem.of_rest_proxy(V3),
    }
}

fn cluster_of(gateway: &Gateway, request: &Request) -> serde_json::Value {
    let id = gateway.wal_id.clone();
    json!({
        "kind": "KafkaCluster",
        "metadata": {"self": place(gateway, request, &format!("/v3/clusters/{id}")), "resource_name": format!("crn:///kafka={id}")},
        "cluster_id": id,
    })
}

fn json_answer(value: &serde_json::Value) -> Response {
    ([(header::CONTENT_TYPE, V3)], value.to_string()).into_response()
}

/// A path as the client can ask for it. HTTP/2 has the host in the address.
fn place(gateway: &Gateway, request: &Request, path: &str) -> String {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let scheme = if gateway.options.tls.is_some() { "https" } else { "http" };
    match host.or_else(|| request.uri().authority().map(|authority| authority.as_str())) {
        Some(host) => format!("{scheme}://{host}{path}"),
        None => path.to_owned(),
    }
}

fn check_cluster(gateway: &Gateway, id: &str) -> Result<(), Problem> {
    if gateway.wal_id == id {
        return Ok(());
    }
    let id: String = id.chars().take(100).collect();
    Err(Problem::new(
        Reason::NotFound,
        format!("this gateway is no cluster with the id {id:?}; GET /v3/clusters says which it is. Nothing was taken."),
    ))
}

/// As [`pages::only`], in the words of these paths.
fn only(request: &Request, allow: &'static str) -> Response {
    match *request.method() {
        Method::OPTIONS => pages::only(request.method(), allow),
        _ => refused(Problem::method(allow), request.uri().path()),
    }
}

/// A refusal as the client of a path reads it.
pub(super) fn refused(problem: Problem, path: &str) -> Response {
    if path.starts_with("/topics/") {
        problem.of_rest_proxy(V2)
    } else if path.starts_with("/v3/") {
        problem.of_rest_proxy(V3)
    } else {
        problem.into_response()
    }
}

async fn produce(gateway: &Arc<Gateway>, request: Request, topic: &str, way: Way) -> Result<Kept, Problem> {
    if request.uri().query().is_some() {
        return Err(Problem::new(
            Reason::Malformed,
            "this path takes no parameters: each record says its key itself. Nothing was taken; leave out what follows the ?.",
        ));
    }
    let ask = Ask {
        topic: produce::check_topic(gateway, &request, topic)?,
        key: Key::None,
        key_default: Key::None,
        demand: None,
        way,
    };
    let kept = produce::take(gateway, request, ask).await?;
    gateway.counters.topic(kept.topic.as_str()).committed(&kept);
    Ok(kept)
}

/// An answer with an entry for each record: what stands before, between and behind them.
fn answer(
    gateway: &Gateway,
    kept: &Kept,
    media: &'static str,
    [head, between, tail]: [&'static str; 3],
    entry: impl Fn(&mut String, u64) -> std::fmt::Result + Send + 'static,
) -> Response {
    let (first, last) = (kept.receipt.first_seq, kept.receipt.last_seq);
    let piece = move |from: u64| -> Result<Bytes, std::fmt::Error> {
        let to = last.min(from + (PIECE_RECORDS - 1));
        let mut text = String::from(if from == first { head } else { between });
        for seq in from..=to {
            if seq > from {
                text.push_str(between);
            }
            entry(&mut text, seq)?;
        }
        if to == last {
            text.push_str(tail);
        }
        Ok(Bytes::from(text))
    };
    let body = if last - first < PIECE_RECORDS {
        // Writing to memory cannot fail.
        Body::from(piece(first).unwrap_or_default())
    } else {
        let step = usize::try_from(PIECE_RECORDS).unwrap_or(1);
        Body::from_stream(futures_util::stream::iter((first..=last).step_by(step).map(piece)))
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    produce::identify(gateway, kept, headers);
    response
}
