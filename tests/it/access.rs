//! Who gets in on the ingest listener: API keys, TLS, clients' certificates, rates. Against the binary, with curl as the
//! client, which shares no code with the server.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};

use crate::cli::{Ended, run};
use crate::support::certificates::Authority;
use crate::support::client::Answer;
use crate::support::gateway::{Config, Gateway, NOWHERE, command};
use crate::support::kafka::Kafka;
use crate::support::{FORM, JSON, raw, seconds, wait_until};

cases!["access":
    a_key_opens_what_it_is_for_and_nothing_else [],
    keys_are_made_and_revoked_while_the_gateway_runs [],
    files_that_cannot_be_used_are_named_before_anything_is_accepted [],
    the_verbs_on_keys_say_what_they_do [],
    tls_takes_both_versions_of_http_and_no_old_one_of_tls [Curl],
    plain_http_to_a_tls_port_is_told_so [],
    a_renewed_certificate_is_served_without_a_restart [],
    only_clients_with_a_certificate_of_the_ca_get_in [Curl],
    an_address_that_sends_too_much_is_told_when_to_come_again [],
    a_key_that_sends_too_much_is_told_and_others_are_not [],
    a_broker_that_asks_for_tls_and_a_login_gets_the_records [OwnKafka],
    a_broker_that_asks_for_a_certificate_gets_the_records [OwnKafka],
];

/// The password of the broker's user.
const SECRET: &str = "secret-of-gw";

/// A folder with a file of keys.
pub struct Keys {
    pub folder: tempfile::TempDir,
}

impl Keys {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { folder }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.toml")
    }

    /// What `tidegate key ARGUMENTS` says.
    fn verb(&self, arguments: &[&str]) -> Ended {
        let file = self.path();
        let mut command = command();
        command.env("TIDEGATE_HTTP__API_KEYS_FILE", file);
        run(self.folder.path(), command, &[&["key"], arguments].concat())
    }

    /// A new key.
    pub fn create(&self, name: &str, more: &[&str]) -> String {
        let ended = self.verb(&[&["create", "--name", name], more].concat());
        assert_eq!(ended.code, Some(0), "{ended:?}");
        ended.stdout.trim_end().to_owned()
    }

    /// A configuration that asks for keys.
    pub fn config(&self) -> Config {
        let mut config = Config::new(NOWHERE);
        config.set("http.api_keys_file", self.path().to_str().unwrap());
        config
    }
}

fn basic(name: &str, key: &str) -> String {
    use base64::Engine as _;
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{key}"));
    format!("Basic {pair}")
}

#[track_caller]
fn post(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> Answer {
    let headers = [&[("content-type", JSON)], headers].concat();
    gateway.client().post_with(path, &headers, br#"{"a":1}"#).unwrap()
}

fn a_key_opens_what_it_is_for_and_nothing_else() {
    let keys = Keys::new();
    let all = keys.create("all", &[]);
    let some = keys.create("press-4", &["--topic", "orders-*", "--source", "trip_pro"]);
    let gateway = Gateway::start(&keys.config());
    let bearer = |key: &str| format!("Bearer {key}");

    let none = post(&gateway, "/v1/topics/orders-eu", &[]);
    assert_eq!(none.status, 401);
    assert!(
        none.header("www-authenticate")
            .starts_with("Bearer realm=\"tidegate\", Basic"),
        "{none:?}"
    );
    assert!(
        none.json()["detail"].as_str().unwrap().contains("Nothing was taken"),
        "{none:?}"
    );
    assert_eq!(
        post(
            &gateway,
            "/v1/topics/orders-eu",
            &[("authorization", &bearer(&some[..20]))]
        )
        .status,
        401
    );
    for path in ["/", "/hello", "/openapi.json", "/trip_pro", "/v3/clusters", "/nothing"] {
        assert_eq!(
            gateway.client().get(path).unwrap().status,
            401,
            "a stranger gets nothing at {path}"
        );
    }
    let v2 = gateway
        .client()
        .post("/topics/orders-eu", "application/vnd.kafka.json.v2+json", b"{}")
        .unwrap();
    assert_eq!(
        (v2.status, v2.json()["error_code"].as_u64()),
        (401, Some(40101)),
        "{v2:?}"
    );

    let each: [&[(&str, &str)]; 3] = [
        &[("authorization", &bearer(&some))],
        &[("x-api-key", &some)],
        &[("authorization", &basic("device-7", &some))],
    ];
    for headers in each {
        assert_eq!(
            post(&gateway, "/v1/topics/orders-eu", headers).status,
            202,
            "{headers:?}"
        );
        assert_eq!(post(&gateway, "/trip_pro", headers).status, 200, "{headers:?}");
        let other = post(&gateway, "/v1/topics/trip_pro", headers);
        assert_eq!(other.status, 403, "{other:?}");
        assert!(
            other.json()["detail"].as_str().unwrap().contains("press-4"),
            "{other:?}"
        );
        assert_eq!(post(&gateway, "/social_pro", headers).status, 403);
        let v3 = post(&gateway, "/v3/clusters", headers);
        assert_eq!(v3.status, 405);
    }
    // What is escaped is what it stands for.
    for path in ["/%74rip_pro", "/v1/topics/%6frders-eu"] {
        assert!(post(&gateway, path, &[("x-api-key", &some)]).status < 300, "{path}");
    }
    for path in ["/%73ocial_pro", "/v1/topics/%74rip_pro"] {
        assert_eq!(post(&gateway, path, &[("x-api-key", &some)]).status, 403, "{path}");
    }
    for path in ["/v1/topics/trip_pro", "/v1/topics/orders-eu"] {
        assert_eq!(post(&gateway, path, &[("x-api-key", &all)]).status, 202);
    }
    assert_eq!(post(&gateway, "/social_pro", &[("x-api-key", &all)]).status, 200);
    assert_eq!(
        gateway.metric("tidegate_wal_committed_sequence"),
        11.0,
        "only what was answered 2xx"
    );
    let metrics = gateway.metrics();
    let refused = |reason: &str| metrics[&format!("tidegate_ingest_rejected_total{{reason=\"{reason}\"}}")];
    assert_eq!((refused("unauthorized"), refused("forbidden")), (9.0, 8.0));
    assert!(
        !gateway.log().contains(&some) && !gateway.log().contains(&all),
        "no key is in the log"
    );
    let shown = gateway.run(&["config", "show"]).1;
    assert!(!shown.contains(&all), "{shown}");
}

fn keys_are_made_and_revoked_while_the_gateway_runs() {
    let keys = Keys::new();
    let first = keys.create("first", &[]);
    let gateway = Gateway::start(&keys.config());
    let status = |key: &str| post(&gateway, "/trip_pro", &[("x-api-key", key)]).status;
    assert_eq!(status(&first), 200);
    let second = keys.create("second", &[]);
    wait_until("the new key is taken", seconds(10), || status(&second) == 200);
    let ended = keys.verb(&["revoke", "first", "--yes"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    wait_until("the revoked one is not", seconds(10), || status(&first) == 401);
    assert_eq!(status(&second), 200);
    fs::write(keys.path(), "[[key]]\nid = 7\n").unwrap();
    wait_until("it is told", seconds(10), || {
        gateway.log().contains("has changed and cannot be used")
    });
    assert_eq!(status(&second), 200, "what was in force stays");
}

fn files_that_cannot_be_used_are_named_before_anything_is_accepted() {
    let keys = Keys::new();
    let refused = |config: &Config, words: &[&str]| {
        fs::write(keys.folder.path().join("config.toml"), config.text()).unwrap();
        let ended = run(keys.folder.path(), command(), &["--config", "config.toml", "serve"]);
        assert_eq!(ended.code, Some(2), "{ended:?}");
        for word in words {
            assert!(ended.stderr.contains(word), "nothing like {word:?} in {}", ended.stderr);
        }
        assert!(!ended.stderr.contains("listening"), "{}", ended.stderr);
    };
    refused(
        &keys.config(),
        &["http.api_keys_file", "keys.toml", "tidegate key create --name NAME"],
    );
    fs::write(keys.path(), "nonsense").unwrap();
    refused(&keys.config(), &["http.api_keys_file", "keys.toml", "Correct the file"]);
    let authority = Authority::new("ca");
    let files = Files::of(&authority, keys.folder.path());
    let mut config = Config::new(NOWHERE);
    files.serve(&mut config);
    fs::write(&files.key, "").unwrap();
    refused(&config, &["http.tls_key_file", "key.pem", "no private key"]);
    fs::write(&files.key, authority.issue("127.0.0.1").1).unwrap();
    refused(&config, &["certificate.pem", "cannot be used with the key"]);
    fs::remove_file(&files.certificate).unwrap();
    refused(&config, &["certificate.pem", "No such file"]);
}

fn the_verbs_on_keys_say_what_they_do() {
    let keys = Keys::new();
    let listed = keys.verb(&["list"]);
    assert_eq!((listed.code, listed.stdout.as_str()), (Some(0), ""), "{listed:?}");
    assert!(listed.stderr.contains("key create --name"), "{listed:?}");
    let key = keys.create("press-4", &["--topic", "orders-*"]);
    assert!(key.starts_with("tg_") && key.len() == 55, "{key}");
    assert_eq!(keys.verb(&["create", "--name", "press-4"]).code, Some(2));
    let unknown = keys.verb(&["create", "--name", "x", "--source", "tripp_pro"]);
    assert!(
        unknown.code == Some(0) && unknown.stderr.contains("no source"),
        "{unknown:?}"
    );
    let text = keys.verb(&["list"]).stdout;
    assert!(text.contains("press-4") && text.contains("topics orders-*"), "{text}");
    let lines = keys.verb(&["list", "--json"]).stdout;
    let line: serde_json::Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&line["name"], &line["topics"][0]),
        (&"press-4".into(), &"orders-*".into())
    );
    assert!(!lines.contains("sha256"), "{lines}");
    let asked = keys.verb(&["revoke", "press-4"]);
    assert!(asked.code == Some(2) && asked.stderr.contains("--yes"), "{asked:?}");
    assert_eq!(keys.verb(&["list", "--json"]).stdout, lines, "nothing was changed");
    assert_eq!(
        keys.verb(&["revoke", line["id"].as_str().unwrap(), "--yes"]).code,
        Some(0)
    );
    let gone = keys.verb(&["revoke", &key, "--yes"]);
    assert!(gone.code == Some(1) && !gone.stderr.contains(&key), "{gone:?}");
    let mut nowhere = command();
    nowhere.env("TIDEGATE_HTTP__API_KEYS_FILE", "missing/keys.toml");
    let refused = run(keys.folder.path(), nowhere, &["key", "create", "--name", "x"]);
    let folder = keys.folder.path().join("missing");
    let words = format!("there is no folder {}", folder.display());
    assert!(
        refused.code == Some(2) && refused.stderr.contains(&words) && !folder.exists(),
        "{refused:?}"
    );
    let without = run(keys.folder.path(), command(), &["key", "list"]);
    assert!(
        without.code == Some(2) && without.stderr.contains("http.api_keys_file"),
        "{without:?}"
    );
}

/// PEM files of a server, and its CA's.
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
}

impl Files {
    fn of(authority: &Authority, folder: &Path) -> Self {
        let files = Self {
            ca: folder.join("ca.pem"),
            certificate: folder.join("certificate.pem"),
            key: folder.join("key.pem"),
        };
        fs::write(&files.ca, authority.pem()).unwrap();
        files.issue(authority);
        files
    }

    /// A new certificate in place of the one that is there.
    fn issue(&self, authority: &Authority) {
        let (certificate, key) = authority.issue("127.0.0.1");
        fs::write(&self.certificate, certificate).unwrap();
        fs::write(&self.key, key).unwrap();
    }

    fn serve(&self, config: &mut Config) {
        config
            .set("http.tls_certificate_file", self.certificate.to_str().unwrap())
            .set("http.tls_key_file", self.key.to_str().unwrap());
    }
}

/// A gateway with TLS.
fn secure() -> (tempfile::TempDir, Authority, Files, Gateway) {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new("ca");
    let files = Files::of(&authority, folder.path());
    let mut config = Config::new(NOWHERE);
    files.serve(&mut config);
    let gateway = Gateway::start(&config);
    (folder, authority, files, gateway)
}

/// What curl says of a record that it posts: status and version of HTTP; its own words where there was no answer.
fn curl(gateway: &Gateway, ca: &Path, more: &[&str]) -> Result<String, String> {
    let output = Command::new("curl")
        .args([
            "-sS",
            "--noproxy",
            "*",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{http_version}",
        ])
        .args([
            "--max-time",
            "20",
            "-H",
            "content-type: application/json",
            "-d",
            r#"{"a":1}"#,
            "--cacert",
        ])
        .arg(ca)
        .args(more)
        .arg(format!("https://{}/trip_pro", gateway.ingest))
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn tls_takes_both_versions_of_http_and_no_old_one_of_tls() {
    let (_folder, _, files, gateway) = secure();
    for (more, expected) in [
        (&["--http2"][..], "200 2"),
        (&["--http1.1"], "200 1.1"),
        (&["--http2", "--tlsv1.3"], "200 2"),
        (&["--http2", "--tls-max", "1.2"], "200 2"),
        (&["--http1.1", "--tls-max", "1.2"], "200 1.1"),
    ] {
        assert_eq!(curl(&gateway, &files.ca, more).as_deref(), Ok(expected), "{more:?}");
    }
    for more in [
        &["--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT:@SECLEVEL=0"][..],
        &["--cacert", "/etc/hostname"],
    ] {
        assert!(curl(&gateway, &files.ca, more).is_err(), "{more:?}");
    }
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 5.0);
    // Bodies that come in many pieces, and many requests on one connection.
    let large = files.ca.with_file_name("large");
    let line = format!("{{\"v\":\"{}\"}}\n", "x".repeat(1000));
    fs::write(&large, line.repeat(8000)).unwrap();
    let place = format!("@{}", large.display());
    for version in ["--http2", "--http1.1"] {
        let output = Command::new("curl")
            .args([
                "-sS",
                "--noproxy",
                "*",
                version,
                "-H",
                "content-type: application/x-ndjson",
                "-w",
                "%{http_code}\n",
            ])
            .args(["-o", "/dev/null", "--data-binary", &place, "--cacert"])
            .arg(&files.ca)
            .args((0..3).map(|n| format!("https://{}/v1/topics/large-{n}", gateway.ingest)))
            .output()
            .unwrap();
        // Each further address needs an -o of its own: its answer is printed before the status.
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text.matches("\n").count(), 3, "{text}");
        assert_eq!(text.matches("202\n").count(), 3, "{text}");
    }
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 5.0 + 6.0 * 8000.0);
}

fn plain_http_to_a_tls_port_is_told_so() {
    let (_folder, _, _, gateway) = secure();
    let said = raw::exchange(
        &gateway.ingest,
        b"POST /trip_pro HTTP/1.1\r\nHost: x\r\n\r\n",
        seconds(10),
    );
    let answer = raw::answer(&said);
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(
        answer.json()["detail"].as_str().unwrap().contains("https://"),
        "{answer:?}"
    );
}

/// The serial number of the certificate that is served.
fn serial(gateway: &Gateway) -> String {
    let mut connector = SslConnector::builder(SslMethod::tls_client()).unwrap();
    connector.set_verify(SslVerifyMode::NONE);
    let stream = TcpStream::connect(&gateway.ingest).unwrap();
    let stream = connector.build().connect("127.0.0.1", stream).unwrap();
    let certificate = stream.ssl().peer_certificate().unwrap();
    let number = certificate.serial_number().to_bn().unwrap();
    number.to_hex_str().unwrap().to_string()
}

fn a_renewed_certificate_is_served_without_a_restart() {
    let (_folder, authority, files, gateway) = secure();
    let first = serial(&gateway);
    files.issue(&authority);
    wait_until("the new certificate is served", seconds(10), || {
        serial(&gateway) != first
    });
    let second = serial(&gateway);
    fs::write(&files.certificate, "nonsense").unwrap();
    wait_until("it is told", seconds(10), || {
        gateway.log().contains("has changed and cannot be used")
    });
    assert_eq!(serial(&gateway), second, "what was in force stays");
}

fn only_clients_with_a_certificate_of_the_ca_get_in() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, stranger) = (Authority::new("ca"), Authority::new("stranger"));
    let files = Files::of(&authority, folder.path());
    let mut config = Config::new(NOWHERE);
    files.serve(&mut config);
    config.set("http.tls_client_ca_file", files.ca.to_str().unwrap());
    let gateway = Gateway::start(&config);
    let client = |name: &str, authority: &Authority| {
        let (certificate, key) = authority.issue(name);
        let pem = folder.path().join(format!("{name}.pem"));
        fs::write(&pem, [key, certificate].concat()).unwrap();
        pem.to_str().unwrap().to_owned()
    };
    let (known, unknown) = (client("press-4", &authority), client("press-5", &stranger));
    for version in ["--http2", "--http1.1"] {
        assert!(curl(&gateway, &files.ca, &[version]).is_err(), "without a certificate");
        assert!(
            curl(&gateway, &files.ca, &[version, "--cert", &unknown]).is_err(),
            "of another CA"
        );
        let said = curl(&gateway, &files.ca, &[version, "--cert", &known]);
        assert!(said.as_deref().is_ok_and(|said| said.starts_with("200")), "{said:?}");
    }
    assert_eq!(gateway.metric("tidegate_wal_committed_sequence"), 2.0);
}

/// How many of these requests are taken until the first is refused, and that refusal.
fn until_refused(gateway: &Gateway, headers: &[(&str, &str)]) -> (u32, Answer) {
    for taken in 0..1000 {
        let answer = post(gateway, "/trip_pro", headers);
        if answer.status != 200 {
            return (taken, answer);
        }
        assert!(answer.header("ratelimit").contains(";r="), "{answer:?}");
    }
    panic!("nothing was refused");
}

fn an_address_that_sends_too_much_is_told_when_to_come_again() {
    let mut config = Config::new(NOWHERE);
    config
        .set("http.requests_per_second_max_per_address", 2)
        .set("http.trusted_proxies", vec!["127.0.0.1"]);
    let gateway = Gateway::start(&config);
    let (taken, refused) = until_refused(&gateway, &[("x-forwarded-for", "192.0.2.1")]);
    assert!((20..30).contains(&taken), "{taken}");
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.header("ratelimit-policy"), "\"address\";q=20;w=10");
    let again: u64 = refused.header("retry-after").parse().unwrap();
    assert!(
        (1..=2).contains(&again) && refused.json()["retry_after"] == again,
        "{refused:?}"
    );
    assert!(
        refused.json()["detail"]
            .as_str()
            .unwrap()
            .contains("http.requests_per_second_max_per_address")
    );
    let other = post(&gateway, "/trip_pro", &[("x-forwarded-for", "192.0.2.1, 192.0.2.2")]);
    assert_eq!(other.status, 200, "another address");
    wait_until("it is taken again", seconds(10), || {
        post(&gateway, "/trip_pro", &[("x-forwarded-for", "192.0.2.1")]).status == 200
    });
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);

    // Without a trusted proxy everybody says what they like, and is one address.
    config.set("http.trusted_proxies", Vec::<String>::new());
    let gateway = Gateway::start(&config);
    for n in 0..20 {
        let address = format!("192.0.2.{n}");
        assert_eq!(
            post(&gateway, "/trip_pro", &[("x-forwarded-for", &address)]).status,
            200
        );
    }
    let (_, refused) = until_refused(&gateway, &[("x-forwarded-for", "192.0.2.99")]);
    assert_eq!(refused.status, 429);
}

fn a_key_that_sends_too_much_is_told_and_others_are_not() {
    let keys = Keys::new();
    let (greedy, modest) = (keys.create("greedy", &[]), keys.create("modest", &[]));
    let mut config = keys.config();
    config.set("http.requests_per_second_max_per_key", 1);
    let gateway = Gateway::start(&config);
    let (taken, refused) = until_refused(&gateway, &[("x-api-key", &greedy)]);
    assert!((10..15).contains(&taken), "{taken}");
    assert_eq!(refused.status, 429, "{refused:?}");
    assert_eq!(refused.header("ratelimit-policy"), "\"key\";q=10;w=10");
    assert_eq!(post(&gateway, "/trip_pro", &[("x-api-key", &modest)]).status, 200);
    let v2 = gateway.client().post_with(
        "/topics/t",
        &[
            ("content-type", "application/vnd.kafka.json.v2+json"),
            ("x-api-key", &greedy),
        ],
        br#"{"records":[{"value":1}]}"#,
    );
    let v2 = v2.unwrap();
    assert_eq!(
        (v2.status, v2.json()["error_code"].as_u64()),
        (429, Some(429)),
        "{v2:?}"
    );
}

/// Records reach a topic of this broker.
fn deliver(kafka: &Kafka, topic: &str, config: &Config) {
    kafka.create_topic(topic, 1, &[]);
    let gateway = Gateway::start(config);
    for _ in 0..10 {
        let path = format!("/v1/topics/{topic}");
        let answer = gateway.client().post(&path, FORM, b"a=1").unwrap();
        assert_eq!(answer.status, 202);
    }
    gateway.wait_drained(seconds(60));
    assert_eq!(kafka.count(topic), Some(10));
    let shown = gateway.run(&["config", "show"]).1;
    assert!(!shown.contains(SECRET) && !gateway.log().contains(SECRET), "{shown}");
}

fn a_broker_that_asks_for_tls_and_a_login_gets_the_records() {
    let authority = Authority::new("authority");
    let (kafka, address) = Kafka::private_secure(&authority);
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, authority.pem()).unwrap();
    for (mechanism, password) in [("SCRAM-SHA-512", "secret"), ("PLAIN", SECRET)] {
        let mut config = Config::new(&address);
        config
            .property("security.protocol", "SASL_SSL")
            .property("sasl.mechanism", mechanism)
            .property("sasl.username", "gw")
            .property("ssl.ca.location", ca.to_str().unwrap())
            .environment("TIDEGATE_KAFKA__PROPERTIES__SASL_PASSWORD", Some(password));
        deliver(&kafka, mechanism, &config);
    }
}

fn a_broker_that_asks_for_a_certificate_gets_the_records() {
    let authority = Authority::new("authority");
    let (kafka, address) = Kafka::private_mutual(&authority);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (certificate, key) = authority.issue("gateway");
    let mut config = Config::new(&address);
    config
        .property("security.protocol", "SSL")
        .property("ssl.ca.location", &file("ca.pem", &authority.pem()))
        .property("ssl.certificate.location", &file("certificate.pem", &certificate))
        .property("ssl.key.location", &file("key.pem", &key));
    deliver(&kafka, "t", &config);
    // Somebody else's, which the broker does not take: what is accepted meanwhile is kept.
    let (certificate, key) = Authority::new("stranger").issue("gateway");
    config
        .property("ssl.certificate.location", &file("other.pem", &certificate))
        .property("ssl.key.location", &file("other-key.pem", &key));
    let gateway = Gateway::start(&config);
    assert_eq!(gateway.client().post("/v1/topics/t", FORM, b"a=1").unwrap().status, 202);
    wait_until("it is told", seconds(30), || {
        gateway.log().contains("Kafka unreachable")
    });
    assert_eq!(
        (gateway.metric("tidegate_wal_backlog_records"), kafka.count("t")),
        (1.0, Some(10))
    );
}
