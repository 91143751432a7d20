//! What clients send, good and bad.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits {
    record_bytes_max: 1000,
    records_max: 10,
    request_bytes_max: 5000,
};

fn envelope(key: Key) -> Envelope {
    Envelope {
        topic: Topic::parse("t").unwrap(),
        key,
        content_type: None,
        headers: Vec::new(),
        received_ms: 7,
    }
}

fn records(media: Media, shape: Shape, body: &[u8], key: Key) -> Result<Vec<Record>, IngestError> {
    let mut records = Vec::new();
    let taken = read(media, shape, body, envelope(key), LIMITS, |record| {
        records.push(record.clone());
    })?;
    assert_eq!(taken.records, records.len());
    assert_eq!(
        taken.bytes,
        records.iter().map(|record| record.payload_bytes() as u64).sum::<u64>()
    );
    Ok(records)
}

fn values(media: Media, shape: Shape, body: &[u8]) -> Vec<String> {
    let records = records(media, shape, body, Key::None).unwrap();
    records
        .into_iter()
        .map(|record| String::from_utf8(record.value.unwrap()).unwrap())
        .collect()
}

fn form(body: &str) -> String {
    values(Media::Form, Shape::One, body.as_bytes()).remove(0)
}

fn refusal(media: Media, shape: Shape, body: &[u8]) -> String {
    records(media, shape, body, Key::None).unwrap_err().to_string()
}

fn keys(media: Media, shape: Shape, body: &[u8], field: &str) -> Result<Vec<Option<Vec<u8>>>, IngestError> {
    let records = records(media, shape, body, Key::Field(field.into()))?;
    Ok(records.into_iter().map(|record| record.key).collect())
}

#[test]
fn form_becomes_an_object_of_strings_in_the_order_sent() {
    assert_eq!(
        form("test01=111&test02=222&test03=ccc&test04=ddd"),
        r#"{"test01":"111","test02":"222","test03":"ccc","test04":"ddd"}"#
    );
    assert_eq!(form("z=1&a=2"), r#"{"z":"1","a":"2"}"#);
    assert_eq!(form("a=1+2%2B3&b=%22%E4%BD%A0"), r#"{"a":"1 2+3","b":"\"你"}"#);
    assert_eq!(form("a&b=&=c&&d=x=y"), r#"{"a":"","b":"","":"c","d":"x=y"}"#);
}

#[test]
fn repeated_form_name_becomes_an_array_and_nothing_is_dropped() {
    assert_eq!(form("a=1&b=2&a=3&%61=4"), r#"{"a":["1","3","4"],"b":"2"}"#);
}

#[test]
fn cut_or_foreign_form_is_refused_with_its_byte_position() {
    let cut = refusal(Media::Form, Shape::One, b"test01=111&test02=2%2");
    assert!(cut.contains("at byte 20 "), "{cut}");
    let plain_percent = refusal(Media::Form, Shape::One, b"a=100%&b=1");
    assert!(
        plain_percent.contains("at byte 6 ") && plain_percent.contains("%25"),
        "{plain_percent}"
    );
    let latin1 = refusal(Media::Form, Shape::One, b"a=1&b=%41%E4x");
    assert!(latin1.contains("value at byte 10 "), "{latin1}");
    let raw = refusal(Media::Form, Shape::One, b"a=\xff");
    assert!(raw.contains("byte 3 "), "{raw}");
    let name = refusal(Media::Form, Shape::One, b"\xffa=1");
    assert!(name.contains("name at byte 1 "), "{name}");
}

#[test]
fn empty_bodies_are_refused() {
    assert!(refusal(Media::Form, Shape::One, b"").contains("empty"));
    assert!(refusal(Media::Form, Shape::One, b"&&").contains("empty"));
    assert!(refusal(Media::Json, Shape::One, b" \n").contains("empty"));
    assert!(refusal(Media::Json, Shape::Many, b"[]").contains("empty"));
    assert!(refusal(Media::Ndjson, Shape::Many, b"\n \r\n").contains("empty"));
}

#[test]
fn form_with_too_many_fields_is_refused() {
    let body = "a=1&".repeat(1001);
    assert!(refusal(Media::Form, Shape::One, body.as_bytes()).contains("1000"));
}

#[test]
fn json_object_is_kept_byte_for_byte() {
    let body = " {\"b\": 1.0e400,\n \"a\":\"\\ud800\", \"a\" :[ ]}\n";
    assert_eq!(values(Media::Json, Shape::One, body.as_bytes()), [body]);
}

#[test]
fn record_says_what_its_value_is() {
    let mut with_header = envelope(Key::Given(b"".to_vec()));
    with_header.headers.push(("trace".into(), b"\xff1".to_vec()));
    let mut seen = Vec::new();
    read(Media::Form, Shape::One, b"a=1", with_header, LIMITS, |record| {
        seen.push(record.clone());
    })
    .unwrap();
    let expected = Record {
        topic: "t".into(),
        key: Some(Vec::new()),
        value: Some(b"{\"a\":\"1\"}".to_vec()),
        headers: vec![
            ("content-type".into(), b"application/json".to_vec()),
            ("trace".into(), b"\xff1".to_vec()),
        ],
        received_ms: 7,
        origin: None,
        idempotency: None,
    };
    assert_eq!(seen, [expected]);
}

#[test]
fn array_and_ndjson_give_one_record_each_byte_for_byte() {
    assert_eq!(
        values(Media::Json, Shape::Many, b" [ {\"a\": 1}, 2 ,\"x\",null,[1, 2]] "),
        ["{\"a\": 1}", "2", "\"x\"", "null", "[1, 2]"]
    );
    assert_eq!(
        values(Media::Ndjson, Shape::Many, b"{\"a\": 1}\r\n\n  2\n{}"),
        ["{\"a\": 1}", "2", "{}"]
    );
}

#[test]
fn invalid_json_is_refused_with_line_and_column() {
    let cut = refusal(Media::Json, Shape::One, b"{\"a\":\n1,");
    assert!(cut.contains("line 2 column 2"), "{cut}");
    let trailing = refusal(Media::Json, Shape::One, b"{} {}");
    assert!(
        trailing.contains("trailing") && trailing.contains("column 4"),
        "{trailing}"
    );
    let element = refusal(Media::Json, Shape::Many, b"[{},\n{]");
    assert!(element.contains("line 2 column 2"), "{element}");
    let tail = refusal(Media::Json, Shape::Many, b"[1] x");
    assert!(tail.contains("trailing"), "{tail}");
    let line = refusal(Media::Ndjson, Shape::Many, b"{}\n\n{\"a\"}\n");
    assert!(
        line.contains("line 3 of the NDJSON body") && line.contains("at column 5") && !line.contains("line 1"),
        "{line}"
    );
    assert!(refusal(Media::Json, Shape::One, b"\xEF\xBB\xBF{}").contains("byte order mark"));
    assert!(refusal(Media::Json, Shape::One, b"{\"a\":\"\xff\"}").contains("byte 7 "));
    assert!(refusal(Media::Json, Shape::One, b"NaN").contains("line 1 column 1"));
    assert!(refusal(Media::Json, Shape::One, b"42").contains("neither an object"));
    assert!(refusal(Media::Json, Shape::One, b"[{}]").contains("/v1/topics"));
}

#[test]
fn deep_nesting_is_refused_and_brackets_in_strings_are_not_nesting() {
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    assert_eq!(values(Media::Json, Shape::One, nested(126).as_bytes()).len(), 1);
    assert!(refusal(Media::Json, Shape::One, nested(127).as_bytes()).contains("nested"));
    assert!(refusal(Media::Json, Shape::One, nested(100_000).as_bytes()).contains("nested"));
    // Many brackets, and hardly any depth.
    let flat = format!("{{\"a\":[{}]}}", vec!["[]"; 200].join(","));
    assert_eq!(values(Media::Json, Shape::One, flat.as_bytes()), [flat]);
    let array = format!("[{}]", nested(127));
    assert!(refusal(Media::Json, Shape::Many, array.as_bytes()).contains("element 1"));
    let string = format!(r#"{{"a":"\"{}\\"}}"#, "[".repeat(500));
    assert_eq!(values(Media::Json, Shape::One, string.as_bytes()), [string]);
}

#[test]
fn key_field_takes_strings_numbers_and_booleans() {
    let body = br#"[{"k":"a\u0062"},{"k":1.50},{"k":true},{"k":null},{},{"\u006b":"last","k":""}]"#;
    let expected: Vec<Option<Vec<u8>>> = vec![
        Some(b"ab".to_vec()),
        Some(b"1.50".to_vec()),
        Some(b"true".to_vec()),
        None,
        None,
        Some(Vec::new()),
    ];
    assert_eq!(keys(Media::Json, Shape::Many, body, "k").unwrap(), expected);
    let lines = br#"{"k":"1"}
{"x":2}"#;
    assert_eq!(
        keys(Media::Ndjson, Shape::Many, lines, "k").unwrap(),
        [Some(b"1".to_vec()), None]
    );
    assert_eq!(
        keys(Media::Form, Shape::One, b"k=a+b&x=1", "k").unwrap(),
        [Some(b"a b".to_vec())]
    );
    assert_eq!(keys(Media::Form, Shape::One, b"x=1", "k").unwrap(), [None]);
}

#[test]
fn key_field_that_is_no_key_is_refused() {
    for body in [
        &b"[{},3]"[..],
        b"[{},[\"k\"]]",
        b"[{},{\"k\":{}}]",
        b"[{},{\"k\":\"\\ud800\"}]",
    ] {
        let error = keys(Media::Json, Shape::Many, body, "k").unwrap_err().to_string();
        assert!(error.contains("element 2") && error.contains("\"k\""), "{error}");
    }
    assert!(keys(Media::Form, Shape::One, b"k=1&k=2", "k").is_err());
}

#[test]
fn limits_are_per_record_and_name_it() {
    let body = format!("[{{}},\"{}\"]", "x".repeat(1000));
    let error = records(Media::Json, Shape::Many, body.as_bytes(), Key::None).unwrap_err();
    assert!(
        matches!(
            error,
            IngestError::RecordTooLarge {
                record: 2,
                bytes_max: 1000,
                ..
            }
        ),
        "{error}"
    );
    let lines = "1\n".repeat(11);
    assert_eq!(
        records(Media::Ndjson, Shape::Many, lines.as_bytes(), Key::None),
        Err(IngestError::TooManyRecords { records_max: 10 })
    );
    assert!(records(Media::Ndjson, Shape::Many, "1\n".repeat(10).as_bytes(), Key::None).is_ok());
    let error = records(Media::Json, Shape::One, b"{}", Key::Given(vec![0; 1000])).unwrap_err();
    assert!(matches!(error, IngestError::RecordTooLarge { record: 1, .. }));
}

#[test]
fn headers_cannot_multiply_a_small_body_without_limit() {
    let mut large = envelope(Key::None);
    large.headers.push(("h".into(), vec![b'x'; 900]));
    let mut given = 0;
    let error = read(Media::Ndjson, Shape::Many, b"1\n2\n3\n4\n5\n6\n", large, LIMITS, |_| {
        given += 1
    })
    .unwrap_err();
    assert_eq!((error, given), (IngestError::RequestTooLarge { bytes_max: 5000 }, 5));
}

#[test]
fn media_types_are_told_apart_and_others_refused_with_what_is_taken() {
    let parse = |text: &str, shape| Media::parse(Some(text.as_bytes()), shape);
    assert_eq!(parse("application/json", Shape::One), Ok(Media::Json));
    assert_eq!(
        parse("Application/JSON; charset=\"UTF-8\"", Shape::Many),
        Ok(Media::Json)
    );
    assert_eq!(parse("application/x-www-form-urlencoded", Shape::One), Ok(Media::Form));
    assert_eq!(parse("application/x-ndjson", Shape::Many), Ok(Media::Ndjson));
    for (text, shape) in [
        ("text/plain", Shape::One),
        ("application/json; charset=latin1", Shape::One),
        ("application/x-ndjson", Shape::One),
        ("text/", Shape::Many),
        ("image/png", Shape::Many),
        ("application/cloudevents+json", Shape::One),
        ("application/cloudevents+avro", Shape::Many),
        ("", Shape::Many),
    ] {
        let error = parse(text, shape).unwrap_err().to_string();
        assert!(error.contains("application/json"), "{error}");
    }
    assert!(Media::parse(None, Shape::One).is_err());
    assert!(Media::parse(Some(b"\xff"), Shape::One).is_err());
    for (text, media) in [
        ("application/x-www-form-urlencoded", Media::Form),
        ("text/plain; charset=latin1", Media::Bytes),
        ("TEXT/csv", Media::Bytes),
        ("application/octet-stream", Media::Bytes),
        ("application/cloudevents+json; charset=utf-8", Media::Event),
        ("application/cloudevents-batch+json", Media::Events),
    ] {
        assert_eq!(parse(text, Shape::Many), Ok(media), "{text}");
    }
}

#[test]
fn key_is_said_once() {
    assert_eq!(Key::from_query(""), Ok(Key::None));
    assert_eq!(Key::from_query("key="), Ok(Key::Given(Vec::new())));
    assert_eq!(Key::from_query("key=a%2Fb+c%ff"), Ok(Key::Given(b"a/b c\xff".to_vec())));
    assert_eq!(Key::from_query("key_field=id"), Ok(Key::Field("id".into())));
    for query in [
        "key=1&key=2",
        "key=1&key_field=a",
        "keyfield=a",
        "key=%2",
        "key_field=%ff",
    ] {
        assert!(Key::from_query(query).is_err(), "{query}");
    }
    assert!(Key::Given(Vec::new()).or(Key::Given(Vec::new())).is_err());
}

#[test]
fn reserved_and_empty_header_names_are_refused() {
    assert_eq!(client_header("trace-id"), Ok("trace-id"));
    assert!(client_header("").is_err());
    assert!(client_header("tidegate-seq").is_err());
    assert!(client_header("Idempotency-Key").is_err());
}

proptest! {
    #[test]
    fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200), query in "\\PC{0,40}", field in "[ak]?") {
        for media in [Media::Form, Media::Json, Media::Ndjson] {
            for shape in [Shape::One, Shape::Many] {
                for key in [Key::None, Key::Field(field.clone())] {
                    if let Err(error) = records(media, shape, &body, key) {
                        prop_assert!(!error.to_string().is_empty());
                    }
                }
            }
        }
        drop(Key::from_query(&query));
        drop(Media::parse(Some(&body), Shape::Many));
    }

    #[test]
    fn no_json_like_bytes_panic(body in "[\\[\\]{}\",:ak1 \\\\\n%&=+]{0,60}") {
        for media in [Media::Form, Media::Json, Media::Ndjson] {
            drop(records(media, Shape::Many, body.as_bytes(), Key::Field("a".into())));
        }
    }

    #[test]
    fn every_form_comes_out_whole(fields in proptest::collection::vec((".{0,8}", ".{0,20}"), 1..9)) {
        let encode = |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let body: Vec<String> = fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        let value = form(&body.join("&"));
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&value).unwrap();
        for (name, value) in &fields {
            let there = match &object[name] {
                serde_json::Value::Array(values) => values.iter().any(|one| one == value),
                one => one == value,
            };
            prop_assert!(there);
        }
    }

    #[test]
    fn batches_come_out_byte_for_byte(numbers in proptest::collection::vec(any::<f64>().prop_filter("finite", |x| x.is_finite()), 1..10)) {
        let texts: Vec<String> = numbers.iter().map(|number| format!("{{ \"n\" : {number:?} }}")).collect();
        prop_assert_eq!(&values(Media::Json, Shape::Many, format!("[{}]", texts.join(" ,")).as_bytes()), &texts);
        prop_assert_eq!(&values(Media::Ndjson, Shape::Many, texts.join("\n").as_bytes()), &texts);
    }
}

const EVENT_JSON: &str =
    r#"{"specversion":"1.0","id":"7","source":"/pump","type":"t","partitionkey":"p","data":{"a":1}}"#;

#[test]
fn bytes_are_taken_as_they_are_with_their_type() {
    let mut envelope = envelope(Key::None);
    envelope.content_type = Some(b"text/csv".to_vec());
    let mut records = Vec::new();
    read(Media::Bytes, Shape::Many, b"a;\xff\r\n", envelope, LIMITS, |record| {
        records.push(record.clone());
    })
    .unwrap();
    assert_eq!(records[0].value.as_deref(), Some(&b"a;\xff\r\n"[..]));
    assert_eq!(records[0].headers, [("content-type".to_owned(), b"text/csv".to_vec())]);
    assert!(refusal(Media::Bytes, Shape::Many, b"").contains("empty"));
    assert!(
        keys(Media::Bytes, Shape::Many, b"a", "k")
            .unwrap_err()
            .to_string()
            .contains("?key=")
    );
}

#[test]
fn an_event_goes_out_whole_and_a_batch_one_by_one() {
    let batch = format!("[{EVENT_JSON}, {EVENT_JSON}]");
    for (media, body, count) in [(Media::Event, EVENT_JSON, 1), (Media::Events, &*batch, 2)] {
        let records = records(media, Shape::Many, body.as_bytes(), Key::Field("partitionkey".into())).unwrap();
        assert_eq!(records.len(), count);
        for record in records {
            assert_eq!(record.value.as_deref(), Some(EVENT_JSON.as_bytes()));
            assert_eq!(record.key.as_deref(), Some(&b"p"[..]));
            assert_eq!(record.headers, [("content-type".to_owned(), EVENT.to_vec())]);
        }
    }
    for (from, to) in [
        ("\"1.0\"", "\"0.3\""),
        ("\"id\":\"7\"", "\"id\":7"),
        ("\"id\":\"7\"", "\"id\":\"\""),
        ("\"source\"", "\"sauce\""),
        ("\"type\"", "\"tüpe\""),
        (EVENT_JSON, r#"["7", "/a", "1.0", "t"]"#),
    ] {
        let body = format!("[{EVENT_JSON}, {}]", EVENT_JSON.replace(from, to));
        let refused = records(Media::Events, Shape::Many, body.as_bytes(), Key::None);
        assert!(matches!(refused, Err(IngestError::Malformed(_))), "{to}");
    }
    assert!(refusal(Media::Events, Shape::Many, b"[]").contains("empty"));
    assert!(refusal(Media::Events, Shape::Many, EVENT_JSON.as_bytes()).contains("array"));
    assert!(refusal(Media::Event, Shape::Many, b"[]").contains("no event"));
}

#[test]
fn attributes_become_headers_and_one_of_them_the_key() {
    use cloud_events::Attributes;
    let of = |headers: &[(&str, &str)]| {
        let mut attributes = Attributes::default();
        for (name, value) in headers {
            attributes.push(name, value.as_bytes())?;
        }
        attributes.into_headers(Key::Field("subject".into()))
    };
    let whole = [
        ("id", "7"),
        ("source", "/a"),
        ("specversion", "1.0"),
        ("type", "t"),
        ("subject", "\"Z%C3%BCrich\\\" %25\""),
    ];
    let (headers, key) = of(&whole).unwrap().unwrap();
    assert_eq!(key, Key::Given("Zürich\" %".into()));
    assert_eq!(headers.len(), 5);
    assert_eq!(headers[4], ("ce_subject".to_owned(), "Zürich\" %".into()));
    assert_eq!(of(&[]).unwrap(), None);
    for without in 0..4 {
        let mut headers = whole.to_vec();
        headers.remove(without);
        assert!(of(&headers).is_err(), "{headers:?}");
    }
    for wrong in [("id", "8"), ("Id", "8"), ("a-b", "x"), ("", "x"), ("x", "%ff")] {
        assert!(of(&[&whole[..], &[wrong]].concat()).is_err(), "{wrong:?}");
    }
    let (_, key) = of(&whole[..4]).unwrap().unwrap();
    assert_eq!(key, Key::None, "the attribute is not there");
}

fn v2(embedded: rest_proxy::Embedded, body: &str) -> Result<Vec<Record>, IngestError> {
    let mut records = Vec::new();
    read_v2(embedded, body.as_bytes(), envelope(Key::None), LIMITS, |record| {
        records.push(record.clone());
    })?;
    Ok(records)
}

#[test]
fn rest_proxy_v2_keeps_keys_and_values_byte_for_byte() {
    use rest_proxy::Embedded;
    let pairs = |records: Vec<Record>| {
        let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| String::from_utf8(bytes).unwrap());
        let pairs = records.into_iter().map(|record| (text(record.key), text(record.value)));
        pairs.collect::<Vec<_>>()
    };
    let some = |text: &str| Some(text.to_owned());
    let body = r#"{"records": [{"key": "k", "value": {"a": 1.50}}, {"value": [1, 2]}, {"key": 7, "value": null}]}"#;
    assert_eq!(
        pairs(v2(Embedded::Json, body).unwrap()),
        [
            (some("\"k\""), some("{\"a\": 1.50}")),
            (None, some("[1, 2]")),
            (some("7"), None)
        ]
    );
    let body = r#"{"records": [{"key": "aw==", "value": "dg=="}], "value_schema_id": null}"#;
    let records = v2(Embedded::Binary, body).unwrap();
    assert_eq!(records[0].headers[0].1, BYTES);
    assert_eq!(pairs(records), [(some("k"), some("v"))]);
    for (body, invalid) in [
        ("{}", true),
        (r#"{"records": []}"#, true),
        (r#"{"records": {}}"#, true),
        (r#"{"records": [{}]}"#, true),
        (r#"{"records": [{"value": 1}], "value_schema_id": 1}"#, true),
        (r#"{"records": [{"vlaue": 1}]}"#, false),
        (r#"{"records": [{"value": 1, "timestamp": 1}]}"#, false),
        (r#"{"records": [{"value": 1, "partition": 0}]}"#, true),
        (r#"{"records": [{"value": 1}, 2]}"#, false),
        (r#"{"records": [{"value": 1}]"#, false),
        (r#"{"records": [["k", 1, null]]}"#, false),
        (r#"[[{"value": 1}]]"#, false),
        ("[]", false),
        ("", false),
    ] {
        let error = v2(Embedded::Json, body).unwrap_err();
        assert_eq!(matches!(error, IngestError::Invalid(_)), invalid, "{body}: {error}");
    }
    for body in [r#"{"records": [{"value": 1}]}"#, r#"{"records": [{"value": "a"}]}"#] {
        assert!(v2(Embedded::Binary, body).is_err(), "{body}");
    }
}

#[test]
fn rest_proxy_v3_takes_records_one_after_another() {
    let read = |body: &str| {
        let mut records = Vec::new();
        let read = read_v3(body.as_bytes(), envelope(Key::None), LIMITS, |record| {
            records.push(record.clone())
        });
        read.map(|(_, sizes)| (records, sizes))
    };
    let body = r#"{"key": {"type": "STRING", "data": "Zoë"}, "value": {"type": "JSON", "data": {"a": "b"}},
        "headers": [{"name": "h", "value": "aGk="}]}{"value": {"type": "BINARY", "data": "/w=="}}
        {"key": {"type": "JSON", "data": "k"}, "value": {"type": "STRING", "data": null}} {"key": {"type": "STRING", "data": ""}}"#;
    let (records, sizes) = read(body).unwrap();
    assert_eq!(records[0].key.as_deref(), Some("Zoë".as_bytes()));
    assert_eq!(records[0].value.as_deref(), Some(&br#"{"a": "b"}"#[..]));
    let own = ("h".to_owned(), b"hi".to_vec());
    assert_eq!(records[0].headers, [("content-type".to_owned(), JSON.to_vec()), own]);
    assert_eq!(records[1].headers, [("content-type".to_owned(), BYTES.to_vec())]);
    assert_eq!(
        (records[1].key.as_ref(), records[1].value.as_deref()),
        (None, Some(&b"\xff"[..]))
    );
    assert_eq!(
        (records[2].key.as_deref(), records[2].value.as_ref()),
        (Some(&b"\"k\""[..]), None)
    );
    assert_eq!(records[3].key.as_deref(), Some(&b""[..]));
    assert_eq!((sizes.len(), sizes[0].key), (4, Some((rest_proxy::Kind::String, 4))));
    assert_eq!(sizes[3].value, None);
    for body in [
        "",
        " ",
        "[]",
        r#"[null, null, null, null, {"type": "JSON", "data": 1}]"#,
        r#"{"value": ["JSON", 1]}"#,
        "{}",
        r#"{"vlaue": {"type": "JSON", "data": 1}}"#,
        r#"{"value": {"type": "JSON", "daat": 1}}"#,
        r#"{"headers": [["h", "aGk="]]}"#,
        r#"{"value": {"type": "AVRO", "data": 1}}"#,
        r#"{"value": {"data": 1}}"#,
        r#"{"value": {"type": "STRING", "data": 1}}"#,
        r#"{"value": {"type": "BINARY", "data": "?"}}"#,
        r#"{"partition_id": 0, "value": {"type": "JSON", "data": 1}}"#,
        r#"{"timestamp": "2026-01-01T00:00:00Z"}"#,
        r#"{"headers": [{"name": "tidegate-seq", "value": "aGk="}]}"#,
        r#"{"value": {"type": "JSON", "data": 1}}{"#,
    ] {
        assert!(read(body).is_err(), "{body}");
    }
}

#[test]
fn the_limits_hold_in_every_protocol() {
    let many = format!("[{}]", [EVENT_JSON; 11].join(","));
    assert!(matches!(
        records(Media::Events, Shape::Many, many.as_bytes(), Key::None),
        Err(IngestError::TooManyRecords { records_max: 10 })
    ));
    let long = "x".repeat(2_000);
    let v2 = v2(
        rest_proxy::Embedded::Json,
        &format!(r#"{{"records": [{{"value": "{long}"}}]}}"#),
    );
    assert!(
        matches!(v2, Err(IngestError::RecordTooLarge { record: 1, .. })),
        "{v2:?}"
    );
    let body = r#"{"key": {"type": "STRING", "data": ""}}"#.repeat(11);
    let v3 = read_v3(body.as_bytes(), envelope(Key::None), LIMITS, |_| {});
    assert!(matches!(v3, Err(IngestError::TooManyRecords { .. })), "{v3:?}");
    let many = vec![r#"{"name": "h"}"#; 101].join(",");
    let body = format!(r#"{{"key": {{"type": "STRING", "data": ""}}, "headers": [{many}]}}"#);
    let v3 = read_v3(body.as_bytes(), envelope(Key::None), LIMITS, |_| {});
    assert!(matches!(v3, Err(IngestError::Malformed(_))), "{v3:?}");
    let body = format!(r#"{{"key": {{"type": "STRING", "data": ""}}, "headers": [{{"name": "{long}"}}]}}"#);
    let v3 = read_v3(body.as_bytes(), envelope(Key::None), LIMITS, |_| {});
    assert!(matches!(v3, Err(IngestError::RecordTooLarge { .. })), "{v3:?}");
}
