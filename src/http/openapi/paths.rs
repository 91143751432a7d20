//! Each path in words, one function for a row of `routes.rs`.

use serde_json::{Map, Value, json};

use super::super::error::Reason;
use super::super::rest_proxy::{V2, V3};
use super::{Facts, Operation, Said, answers, schemas, sent, text};
use crate::ingest::JSON_DEPTH_MAX;
use crate::record::TOPIC_BYTES_MAX;

const TEXT: &str = "text/plain";
const HTML: &str = "text/html";
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";

/// An `Idempotency-Key`: bare, or a string of structured fields.
const IDEMPOTENCY_KEY: &str = r#"^(?:[!#-~]{1,255}|"(?:[!#-\[\]-~]|\\["\\]){1,255}")$"#;

/// What a request that takes records is refused for beside what any request is.
const OF_RECORDS: &[Reason] = &[
    Reason::Malformed,
    Reason::TooLarge,
    Reason::MediaType,
    Reason::Invalid,
    Reason::KeyInFlight,
    Reason::KeyMismatch,
    Reason::WalFull,
    Reason::DiskLow,
    Reason::Poisoned,
    Reason::Busy,
];

type Paths = Vec<(String, Value)>;

/// A path with one method.
fn one(path: &str, method: &str, operation: Operation, facts: &Facts<'_>) -> Paths {
    vec![(path.to_owned(), json!({method: operation.describe(facts)}))]
}

/// A GET that only shows something.
fn page(id: &str, summary: &str, answer: Value) -> Operation {
    Operation {
        id: id.into(),
        summary: summary.into(),
        description: "Stores nothing.".into(),
        parameters: Vec::new(),
        body: None,
        answer: (200, answer),
        refusals: &[],
        said: Said::Problem,
    }
}

pub(in super::super) fn root(facts: &Facts<'_>, path: &str) -> Paths {
    one(path, "get", hello_page("root"), facts)
}

pub(in super::super) fn hello(facts: &Facts<'_>, path: &str) -> Paths {
    one(path, "get", hello_page("hello"), facts)
}

fn hello_page(id: &str) -> Operation {
    let answer = answers("The greeting.", &[], &[(TEXT, json!({"const": "Hello World!"}))]);
    page(id, "A greeting, which shows that the gateway is there.", answer)
}

pub(in super::super) fn greeting(facts: &Facts<'_>, path: &str) -> Paths {
    let answer = answers("A page with the name.", &[], &[(HTML, text())]);
    let mut page = page("greeting", "A greeting by name.", answer);
    page.parameters.push(in_path("name", "Any text.", name()));
    one(path, "get", page, facts)
}

pub(in super::super) fn user(facts: &Facts<'_>, path: &str) -> Paths {
    let answer = answers("A line with the name.", &[], &[(TEXT, text())]);
    let mut page = page("user", "A greeting by name, as text.", answer);
    page.parameters.push(in_path("username", "Any text.", name()));
    one(path, "get", page, facts)
}

pub(in super::super) fn openapi(facts: &Facts<'_>, path: &str) -> Paths {
    let schema = json!({"type": "object", "required": ["openapi", "info", "paths", "components"]});
    let answer = answers("OpenAPI 3.1.", &[], &[(JSON, schema)]);
    one(path, "get", page("openapi", "This document.", answer), facts)
}

/// One path for each declared source.
pub(in super::super) fn sources(facts: &Facts<'_>, path: &str) -> Paths {
    let sources = facts.options.sources.iter();
    sources
        .map(|source| {
            let (name, demand) = (&source.name, source.demand.as_ref());
            let mut description = format!("The record goes to the topic {}.", source.topic);
            if let Some(key) = &source.key {
                description += &format!(" Its Kafka key is its field {key:?} (then a string, a number or a boolean), where the request gives none.");
            }
            if demand.is_some() {
                description += " A record that breaks the source's rule is refused (422) and not stored.";
            }
            let receipt = schemas::shared_one("Receipt");
            let answer = answers(
                "The record is on disk. The receipt comes where Accept names application/json.",
                &identity(),
                &[(TEXT, json!({"const": "OK"})), (JSON, receipt)],
            );
            let operation = Operation {
                id: format!("source_{name}"),
                summary: format!("Stores one record of the source {name}."),
                description,
                parameters: vec![idempotency_key(), tidegate_key()],
                body: Some(body(
                    facts,
                    "One record. A form becomes a JSON object of strings; JSON is kept byte for byte.",
                    &[(FORM, schemas::form(demand)), (JSON, schemas::object(demand))],
                )),
                answer: (200, answer),
                refusals: &[OF_RECORDS],
                said: Said::Problem,
            };
            let path = path.replace("{source}", name);
            (path, json!({"post": operation.describe(facts)}))
        })
        .collect()
}

pub(in super::super) fn topic(facts: &Facts<'_>, path: &str) -> Paths {
    let event = schemas::shared_one("CloudEvent");
    let contents = [
        (
            JSON,
            json!({"anyOf": [
                {"description": "One record.", "type": "object"},
                {"description": "A record for each element.", "type": "array", "minItems": 1},
            ]}),
        ),
        (
            "application/x-ndjson",
            json!({"description": "A record for each line; empty ones are nothing.", "type": "array", "minItems": 1}),
        ),
        ("application/cloudevents+json", event.clone()),
        (
            "application/cloudevents-batch+json",
            json!({"type": "array", "minItems": 1, "items": event}),
        ),
        (FORM, schemas::form(None)),
        (
            TEXT,
            json!({"description": "One record, the bytes as they are.", "type": "string", "minLength": 1}),
        ),
        (
            "application/octet-stream",
            json!({"description": "One record, the bytes as they are.", "type": "string", "minLength": 1}),
        ),
    ];
    let key = in_query("key", "The Kafka key of every record.");
    let key_field = in_query(
        "key_field",
        "The field that is the Kafka key of each record: a string, a number or a boolean of a JSON object or a form, an \
         attribute of a CloudEvent. A record without it, or with null, has none.",
    );
    let headers = [("idempotency-replayed", replayed())];
    let operation = Operation {
        id: "topic".into(),
        summary: "Stores records of a topic: all of them or none.".into(),
        description: "The key is given once: by one of key, key_field and tidegate-key. A header tidegate-header-NAME becomes \
            the Kafka header NAME of every record (not one that begins with tidegate-, and not idempotency-key). CloudEvents \
            in binary mode have their attributes in headers ce-*; their body may be of any type, and empty."
            .into(),
        parameters: vec![in_path_topic(facts), key, key_field, idempotency_key(), tidegate_key()],
        body: Some(body(
            facts,
            "One record or several. application/ndjson and application/jsonl are application/x-ndjson; any other text/* is taken as \
             text/plain is.",
            &contents,
        )),
        answer: (
            202,
            answers("The records are on disk.", &headers, &[(JSON, schemas::shared_one("Receipt"))]),
        ),
        refusals: &[OF_RECORDS, &[Reason::Forbidden]],
        said: Said::Problem,
    };
    one(path, "post", operation, facts)
}

/// Where records are, by their sequence.
pub(in super::super) fn receipt(facts: &Facts<'_>, path: &str) -> Paths {
    let parameter = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "description": description, "schema": schema});
    let operation = Operation {
        id: "receipt".into(),
        summary: "What became of a record.".into(),
        description:
            "With wait the answer comes once Kafka has the record, or after timeout, which goes with wait only.".into(),
        parameters: vec![
            in_path(
                "seq",
                "The record's sequence, as an answer told it.",
                schemas::any_sequence(),
            ),
            parameter("wait", "Wait for Kafka.", json!({"const": "acked"})),
            parameter(
                "timeout",
                "How long to wait, such as 10s or 500ms; 60s at most.",
                json!({"type": "string", "pattern": "^(?:0|(?:60|[1-5]?[0-9])s|[1-9]?[0-9]{1,3}ms)$"}),
            ),
            parameter(
                "wal",
                "The log of the receipt: records of another one are unknown.",
                json!({"type": "string", "format": "uuid"}),
            ),
        ],
        body: None,
        answer: (200, answers("Where it is.", &[], &[(JSON, schemas::receipt_answer())])),
        refusals: &[&[Reason::Poisoned, Reason::Busy]],
        said: Said::Problem,
    };
    one(path, "get", operation, facts)
}

pub(in super::super) fn v2(facts: &Facts<'_>, path: &str) -> Paths {
    let operation = Operation {
        id: "rest_proxy_v2".into(),
        summary: "Stores records as Confluent's REST Proxy v2 takes them: all of them or none.".into(),
        description: "Partition and offset of the answer are null: Kafka has not given them yet.".into(),
        parameters: vec![in_path_topic(facts), idempotency_key()],
        body: Some(body(
            facts,
            "Records with keys and values in JSON or base64.",
            &[
                ("application/vnd.kafka.json.v2+json", schemas::v2_json()),
                ("application/vnd.kafka.binary.v2+json", schemas::v2_binary()),
            ],
        )),
        answer: (
            200,
            answers("The records are on disk.", &identity(), &[(V2, schemas::v2_answer())]),
        ),
        refusals: &[OF_RECORDS, &[Reason::Forbidden]],
        said: Said::RestProxy(V2),
    };
    one(path, "post", operation, facts)
}

pub(in super::super) fn v3(facts: &Facts<'_>, path: &str) -> Paths {
    let operation = Operation {
        id: "rest_proxy_v3".into(),
        summary: "Stores records as Confluent's REST Proxy v3 takes them: all of them or none.".into(),
        description: "A body of several records has one object after another, and so has its answer.".into(),
        parameters: vec![in_path_cluster(facts), in_path_topic(facts), idempotency_key()],
        body: Some(body(facts, "A record, or one after another.", &[(JSON, schemas::v3())])),
        answer: (
            200,
            answers("The records are on disk.", &identity(), &[(V3, schemas::v3_answer())]),
        ),
        refusals: &[OF_RECORDS, &[Reason::Forbidden, Reason::NotFound]],
        said: Said::RestProxy(V3),
    };
    one(path, "post", operation, facts)
}

pub(in super::super) fn clusters(facts: &Facts<'_>, path: &str) -> Paths {
    let answer = answers("One cluster.", &[], &[(V3, schemas::clusters_answer())]);
    let operation = Operation {
        said: Said::RestProxy(V3),
        ..page(
            "clusters",
            "Says the id that the paths of REST Proxy v3 have in them.",
            answer,
        )
    };
    one(path, "get", operation, facts)
}

pub(in super::super) fn cluster(facts: &Facts<'_>, path: &str) -> Paths {
    let answer = answers("The cluster.", &[], &[(V3, schemas::shared_one("Cluster"))]);
    let operation = Operation {
        parameters: vec![in_path_cluster(facts)],
        refusals: &[&[Reason::NotFound]],
        said: Said::RestProxy(V3),
        ..page("cluster", "The cluster of an id.", answer)
    };
    one(path, "get", operation, facts)
}

/// A body with its limits.
fn body(facts: &Facts<'_>, what: &str, contents: &[(&str, Value)]) -> Value {
    let options = facts.options;
    let contents = contents
        .iter()
        .map(|(media, schema)| ((*media).to_owned(), json!({"schema": schema})));
    json!({
        "description": format!(
            "{what} At most {} bytes, also when Content-Encoding (gzip, deflate, zstd) is expanded; a record has at most {} bytes \
             with topic, key and headers, and a request at most {} records. JSON is UTF-8, nested at most {JSON_DEPTH_MAX} deep.",
            options.body_bytes_max, options.record_bytes_max, options.records_max
        ),
        "required": true,
        "content": contents.collect::<Map<_, _>>(),
    })
}

/// What says which records they are.
fn identity() -> [(&'static str, Value); 3] {
    [
        (
            "tidegate-wal",
            sent("The identity of the log.", json!({"type": "string", "format": "uuid"})),
        ),
        (
            "tidegate-seq",
            sent("The sequence of the first record.", schemas::sequence()),
        ),
        ("idempotency-replayed", replayed()),
    ]
}

fn replayed() -> Value {
    json!({
        "description": "The answer is that of an earlier request with this Idempotency-Key; nothing was stored.",
        "schema": {"const": "true"},
    })
}

fn name() -> Value {
    json!({"type": "string", "minLength": 1})
}

fn in_path(name: &str, description: &str, schema: Value) -> Value {
    json!({"name": name, "in": "path", "required": true, "description": description, "schema": schema})
}

fn in_path_topic(facts: &Facts<'_>) -> Value {
    let mut description = "A Kafka topic; __ at the beginning is for Kafka's own.".to_owned();
    if !facts.options.topics.iter().any(|pattern| pattern == "*") {
        description += &format!(" Taken here: {}.", facts.options.topics.join(", "));
    }
    let pattern = format!(r"^(?!__|\.\.?$)[a-zA-Z0-9._-]{{1,{TOPIC_BYTES_MAX}}}$");
    in_path("topic", &description, json!({"type": "string", "pattern": pattern}))
}

fn in_path_cluster(facts: &Facts<'_>) -> Value {
    let schema = json!({"type": "string", "enum": [facts.wal_id]});
    in_path("id", "The log's identity; GET /v3/clusters says it.", schema)
}

fn in_query(name: &str, description: &str) -> Value {
    json!({"name": name, "in": "query", "description": description, "schema": text()})
}

fn idempotency_key() -> Value {
    json!({
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A name for this request that no other one has. Sent again with it, the request is answered as the first \
            time and stored once.",
        "schema": {"type": "string", "pattern": IDEMPOTENCY_KEY},
    })
}

fn tidegate_key() -> Value {
    json!({"name": "tidegate-key", "in": "header", "description": "The Kafka key of every record.", "schema": text()})
}
