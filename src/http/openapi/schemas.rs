//! What bodies and answers look like, in JSON Schema 2020-12.

use serde_json::{Map, Value, json};

use super::super::error::Reason;
use crate::ingest::FORM_FIELDS_MAX;
use crate::land::table::Kind;
use crate::land::{Demand, Rule};

/// base64 (RFC 4648, section 4) as the gateway takes it: padded, and nothing in the bits that stand for nothing.
const BASE64: &str = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$";
/// A text that a column can hold.
const NO_NUL: &str = r"^[^\u0000]*$";
/// The most headers of a record of the REST Proxy, v3.
const RECORD_HEADERS_MAX: usize = crate::ingest::HEADERS_MAX;

/// What several paths have in common; [`shared_one`] points to it.
pub(super) fn shared() -> Value {
    json!({
        "Problem": {
            "description": "A refusal (RFC 9457).",
            "type": "object",
            "required": ["type", "title", "status", "detail"],
            "properties": {
                "type": {"type": "string", "format": "uri"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {
                    "description": "What happened, what it means and what to do, for people.",
                    "type": "string",
                },
                "retry_after": {
                    "description": "As Retry-After: after how many seconds to send it again.",
                    "type": "integer",
                    "minimum": 1,
                },
            },
        },
        "RestProxyError": {
            "description": "A refusal as Confluent's REST Proxy writes it.",
            "type": "object",
            "required": ["error_code", "message"],
            "properties": {"error_code": {"type": "integer"}, "message": {"type": "string"}},
        },
        "Receipt": {
            "description": "The records are on disk, under the sequences from first_seq to last_seq of the log wal.",
            "type": "object",
            "required": ["wal", "first_seq", "last_seq", "records"],
            "properties": {
                "wal": {"type": "string", "format": "uuid"},
                "first_seq": sequence(),
                "last_seq": sequence(),
                "records": {"type": "integer", "minimum": 1},
            },
        },
        "CloudEvent": {
            "description": "An event in the JSON format of CloudEvents 1.0, with further attributes as members.",
            "type": "object",
            "required": ["id", "source", "specversion", "type"],
            "properties": {
                "id": {"type": "string", "minLength": 1},
                "source": {"type": "string", "minLength": 1},
                "specversion": {"const": "1.0"},
                "type": {"type": "string", "minLength": 1},
            },
        },
        "Cluster": {
            "description": "The gateway, which clients of the REST Proxy take for a cluster.",
            "type": "object",
            "required": ["kind", "metadata", "cluster_id"],
            "properties": {
                "kind": {"const": "KafkaCluster"},
                "metadata": {
                    "type": "object",
                    "required": ["self", "resource_name"],
                    "properties": {"self": {"type": "string"}, "resource_name": {"type": "string"}},
                },
                "cluster_id": {"type": "string", "format": "uuid"},
            },
        },
    })
}

/// One of [`shared`].
pub(super) fn shared_one(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A place in the log.
pub(super) fn sequence() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": crate::record::SEQUENCE_MAX})
}

/// A place that a client names, which no record may have.
pub(super) fn any_sequence() -> Value {
    json!({"type": "integer", "minimum": 1, "maximum": u64::MAX})
}

pub(super) fn problem(status: u16, reasons: &[Reason]) -> Value {
    let types: Vec<String> = reasons.iter().map(|reason| reason.urn()).collect();
    json!({"allOf": [
        shared_one("Problem"),
        {"properties": {"type": {"enum": types}, "status": {"const": status}}},
    ]})
}

pub(super) fn rest_proxy_error(reasons: &[Reason]) -> Value {
    let mut codes: Vec<u16> = reasons.iter().map(|reason| reason.rest_proxy_code()).collect();
    codes.dedup();
    json!({"allOf": [shared_one("RestProxyError"), {"properties": {"error_code": {"enum": codes}}}]})
}

/// A form: one record.
pub(super) fn form(demand: Option<&Demand>) -> Value {
    let values = json!({"anyOf": [
        {"type": "string"},
        {"description": "A name that comes several times.", "type": "array", "minItems": 1, "items": {"type": "string"}},
    ]});
    let mut schema = Map::from_iter([
        ("type".to_owned(), json!("object")),
        ("minProperties".to_owned(), json!(1)),
        ("maxProperties".to_owned(), json!(FORM_FIELDS_MAX)),
        ("additionalProperties".to_owned(), values.clone()),
    ]);
    if let Some(demand) = demand {
        add_demand(&mut schema, demand, &values);
    }
    schema.into()
}

/// An object: one record.
pub(super) fn object(demand: Option<&Demand>) -> Value {
    let mut schema = Map::from_iter([("type".to_owned(), json!("object"))]);
    if let Some(demand) = demand {
        add_demand(&mut schema, demand, &json!({}));
    }
    schema.into()
}

/// What a source that rejects (`enforce`) demands: `any` is what a member may be at all.
fn add_demand(schema: &mut Map<String, Value>, demand: &Demand, any: &Value) {
    match demand.rule() {
        Rule::Any => {}
        Rule::Count(count) => {
            schema.insert("minProperties".into(), json!(count));
            schema.insert("maxProperties".into(), json!(count));
        }
        Rule::Fields => {
            let names: Vec<&str> = demand.fields().map(|(name, _)| name).collect();
            schema.insert("required".into(), json!(names));
            schema.insert("additionalProperties".into(), json!(false));
        }
    }
    let properties = demand.fields().map(|(name, kind)| {
        let kind = match kind {
            Kind::Text => json!({"description": "A text without NUL, or any other JSON as a text.", "pattern": NO_NUL}),
            Kind::Integer => json!({"description": "An integer of 64 bits, or a text of one."}),
            Kind::Real => json!({"description": "A finite number, or a text of one."}),
            Kind::Boolean => json!({"description": "true, false, 1 or 0, or a text of one."}),
            Kind::Timestamp => json!({"description": "A time as RFC 3339 writes it, with its offset."}),
            Kind::Json => json!({"description": "Any JSON without NUL."}),
        };
        (name.to_owned(), json!({"allOf": [any, kind]}))
    });
    let properties: Map<_, _> = properties.collect();
    if !properties.is_empty() {
        schema.insert("properties".into(), properties.into());
    }
}

/// A request to the REST Proxy, v2, whose keys and values look like `data`.
fn v2(data: &Value) -> Value {
    let is_there = |name: &str| json!({"required": [name], "properties": {name: {"not": {"type": "null"}}}});
    let schema = json!({"description": "No schema can be given.", "type": "null"});
    json!({
        "type": "object",
        "required": ["records"],
        "additionalProperties": false,
        "properties": {
            "records": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "description": "A key without a value is a tombstone.",
                    "type": "object",
                    "additionalProperties": false,
                    "properties": {
                        "key": data,
                        "value": data,
                        "partition": {"description": "Partitions follow from keys.", "type": "null"},
                    },
                    "anyOf": [is_there("key"), is_there("value")],
                },
            },
            "key_schema": schema,
            "key_schema_id": schema,
            "value_schema": schema,
            "value_schema_id": schema,
        },
    })
}

pub(super) fn v2_json() -> Value {
    v2(&json!({"description": "Any JSON; it is kept as it is written."}))
}

pub(super) fn v2_binary() -> Value {
    v2(&base64())
}

fn base64() -> Value {
    json!({"type": ["string", "null"], "contentEncoding": "base64", "pattern": BASE64})
}

/// A record of the REST Proxy, v3.
pub(super) fn v3() -> Value {
    let data = |kind: &str, data: Value| {
        json!({
            "type": "object",
            "required": ["type"],
            "additionalProperties": false,
            "properties": {"type": {"const": kind}, "data": data},
        })
    };
    let any_data = json!({"anyOf": [
        data("BINARY", base64()),
        data("JSON", json!({"description": "Any JSON; it is kept as it is written."})),
        data("STRING", json!({"type": ["string", "null"]})),
        {"type": "null"},
    ]});
    let is_there = |name: &str| json!({"required": [name], "properties": {name: {"type": "object"}}});
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "key": any_data,
            "value": any_data,
            "headers": {
                "type": ["array", "null"],
                "maxItems": RECORD_HEADERS_MAX,
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": false,
                    "properties": {
                        "name": {
                            "description": "Not one that says which record it is.",
                            "type": "string",
                            "minLength": 1,
                            "not": {"pattern": "^tidegate-|^[iI][dD][eE][mM][pP][oO][tT][eE][nN][cC][yY]-[kK][eE][yY]$"},
                        },
                        "value": base64(),
                    },
                },
            },
            "partition_id": {"description": "Partitions follow from keys.", "type": "null"},
            "timestamp": {"description": "It says when the gateway received the record.", "type": "null"},
        },
        "anyOf": [is_there("key"), is_there("value")],
    })
}

/// The answer to a request of v2.
pub(super) fn v2_answer() -> Value {
    json!({
        "type": "object",
        "required": ["offsets", "key_schema_id", "value_schema_id"],
        "properties": {
            "offsets": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["partition", "offset", "error_code", "error", "seq"],
                    "properties": {
                        "partition": {"type": "null"},
                        "offset": {"description": "Kafka has not given one yet.", "type": "null"},
                        "error_code": {"type": "null"},
                        "error": {"type": "null"},
                        "seq": sequence(),
                    },
                },
            },
            "key_schema_id": {"type": "null"},
            "value_schema_id": {"type": "null"},
        },
    })
}

/// The answer to a record of v3.
pub(super) fn v3_answer() -> Value {
    let size = json!({
        "type": "object",
        "required": ["type", "size"],
        "properties": {"type": {"enum": ["BINARY", "JSON", "STRING"]}, "size": {"type": "integer", "minimum": 0}},
    });
    json!({
        "type": "object",
        "required": ["error_code", "cluster_id", "topic_name", "partition_id", "offset", "timestamp", "seq"],
        "properties": {
            "error_code": {"const": 200},
            "cluster_id": {"type": "string", "format": "uuid"},
            "topic_name": {"type": "string"},
            "partition_id": {"type": "null"},
            "offset": {"description": "Kafka has not given one yet.", "type": "null"},
            "timestamp": {"description": "When the gateway received it.", "type": "string", "format": "date-time"},
            "key": size,
            "value": size,
            "seq": sequence(),
        },
    })
}

/// The answer to `GET /v3/clusters`.
pub(super) fn clusters_answer() -> Value {
    json!({
        "type": "object",
        "required": ["kind", "metadata", "data"],
        "properties": {
            "kind": {"const": "KafkaClusterList"},
            "metadata": {
                "type": "object",
                "required": ["self", "next"],
                "properties": {"self": {"type": "string"}, "next": {"type": "null"}},
            },
            "data": {"type": "array", "minItems": 1, "maxItems": 1, "items": shared_one("Cluster")},
        },
    })
}

/// The answer to `GET /v1/receipts/{seq}`.
pub(super) fn receipt_answer() -> Value {
    json!({
        "type": "object",
        "required": ["wal", "seq", "state", "partition", "offset", "reason"],
        "properties": {
            "wal": {"type": "string", "format": "uuid"},
            "seq": any_sequence(),
            "state": {
                "description": "committed: on disk; acknowledged: Kafka has it; held: its topic does not exist or is denied; \
                    dead_lettered: Kafka refused it; lost: damage has it; unknown: never taken, or forgotten.",
                "enum": ["committed", "acknowledged", "held", "dead_lettered", "lost", "unknown"],
            },
            "partition": {"type": ["integer", "null"], "minimum": 0},
            "offset": {
                "description": "Kafka's, with partition, for the newest deliveries since the start.",
                "type": ["integer", "null"],
                "minimum": 0,
            },
            "reason": {"description": "Why, where it is not on its way.", "type": ["string", "null"]},
        },
    })
}
