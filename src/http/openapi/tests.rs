//! The document as a whole: every route is in it, and what is said depends on what is configured.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;

use super::*;
use crate::http::tests::options;
use crate::keys::Book;

const WAL: &str = "2fe308bb-3447-4469-9d2f-239a1183d085";

fn made(options: &Options) -> Value {
    serde_json::from_slice(&document(options, WAL)).unwrap()
}

fn methods(document: &Value) -> Vec<(String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let methods = paths
        .iter()
        .flat_map(|(path, item)| item.as_object().unwrap().iter().map(move |method| (path, method)));
    methods
        .map(|(path, (method, operation))| (format!("{method} {path}"), operation))
        .collect()
}

#[test]
fn every_route_and_every_source_is_described() {
    let options = options();
    let document = made(&options);
    let mut expected: HashSet<String> = routes::all().iter().map(|route| route.path.to_owned()).collect();
    assert!(expected.remove("/{source}"));
    expected.extend(options.sources.iter().map(|source| format!("/{}", source.name)));
    let described: HashSet<String> = document["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(described, expected);
    let mut ids = HashSet::new();
    for (name, operation) in methods(&document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}");
        let of_path: Vec<&str> = name
            .split('{')
            .skip(1)
            .filter_map(|rest| rest.split('}').next())
            .collect();
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let declared = parameters.filter(|parameter| parameter["in"] == "path");
        let declared: Vec<&str> = declared.map(|parameter| parameter["name"].as_str().unwrap()).collect();
        assert_eq!(declared, of_path, "{name}");
    }
}

#[test]
fn whoever_may_come_back_reads_when() {
    for (name, operation) in methods(&made(&options())) {
        for (status, response) in operation["responses"].as_object().unwrap() {
            let says_when = response["headers"]["Retry-After"].is_object();
            assert_eq!(["409", "503"].contains(&status.as_str()), says_when, "{name} {status}");
        }
    }
}

#[test]
fn only_what_is_configured_is_asked_for() {
    let open = made(&options());
    assert!(open.get("security").is_none() && open["components"].get("securitySchemes").is_none());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    crate::keys::create(&path, "a", Vec::new(), Vec::new(), String::new()).unwrap();
    let mut options = options();
    options.keys = Some(Arc::new(Book::open(&path).unwrap()));
    options.requests_per_second_max_per_key = 1;
    let guarded = made(&options);
    assert_eq!(guarded["security"].as_array().unwrap().len(), 3);
    for (name, operation) in methods(&guarded) {
        for status in ["401", "403", "429"] {
            assert!(operation["responses"][status].is_object(), "{name} {status}");
        }
        assert!(operation["responses"]["200"]["headers"]["RateLimit"].is_object() || name.contains("/v1/"));
    }
    for (name, operation) in methods(&open) {
        let responses = operation["responses"].as_object().unwrap();
        assert!(
            !responses.contains_key("401") && !responses.contains_key("429"),
            "{name}"
        );
    }
}

#[test]
fn a_receipt_is_described() {
    let options = options();
    let facts = Facts {
        options: &options,
        wal_id: WAL,
    };
    let described = paths::receipt(&facts, "/v1/receipts/{seq}");
    assert!(described[0].1["get"]["responses"]["200"].is_object());
}
