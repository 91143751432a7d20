//! TLS, and what else a URL asks for.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tidegate::land::table::Table;

use super::{place, produce_all, sink, sink_refuses, topic_of};
use crate::support::certificates::Authority;
use crate::support::gateway::command;
use crate::support::kafka::Kafka;
use crate::support::postgres::{PASSWORD, Postgres, give};
use crate::support::store::{Store, once};

cases!["land_postgres":
    tls_is_what_the_url_asks_for [Kafka, Postgres],
    a_url_that_lacks_something_is_refused [Postgres],
];

fn tls_is_what_the_url_asks_for() {
    let kafka = Kafka::shared();
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let file = |name: &str, text: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (root, other_root) = (file("ours.crt", &ours.pem()), file("theirs.crt", &theirs.pem()));
    let (certificate, key) = ours.issue("carl");
    let carl = format!(
        "sslcert={}&sslkey={}",
        file("carl.crt", &certificate),
        file("carl.key", &key)
    );
    let (certificate, key) = theirs.issue("carl");
    let false_carl = format!(
        "sslcert={}&sslkey={}",
        file("false.crt", &certificate),
        file("false.key", &key)
    );
    let postgres = Arc::new(Postgres::private_with(|data| serve_tls(data, &ours)));
    let store = Store::on(Arc::clone(&postgres));
    let (_, database, _) = place(&store);
    store.query(&format!(
        "CREATE USER ann SUPERUSER PASSWORD '{PASSWORD}'; CREATE USER carl SUPERUSER"
    ));
    let table = Table::new("tls", &[]);
    let of = |user: &str, query: &str| format!("{}?{query}", postgres.url_of(user, database));
    let (mut config, topic) = topic_of("tls", kafka, &store, &[]);
    let verified = of("ann", &format!("sslmode=verify-full&sslrootcert={root}"));
    produce_all(kafka, &topic, &["x"]);
    config.set("land.url", verified.as_str());
    once(&config);
    assert_eq!(store.count("tls"), 1);
    let works = |url: String| drop(sink(&url, &table).unwrap_or_else(|error| panic!("{url}: {error}")));
    works(of("ann", "sslmode=require"));
    works(of("ann", "sslmode=prefer"));
    works(of("ann", &format!("sslmode=verify-ca&sslrootcert={root}")));
    works(verified);
    let by_name = |query: &str| of("ann", query).replace("127.0.0.1", "localhost");
    // The name does not count before verify-full.
    works(by_name(&format!("sslmode=verify-ca&sslrootcert={root}")));
    works(of("carl", &format!("sslmode=verify-full&sslrootcert={root}&{carl}")));
    let wrong = |url: String, words: &[&str]| sink_refuses(&url, &table, words);
    wrong(
        of("ann", &format!("sslmode=verify-full&sslrootcert={other_root}")),
        &["certificate verify failed", "sslrootcert"],
    );
    wrong(
        of("ann", &format!("sslmode=require&sslrootcert={other_root}")),
        &["certificate verify failed", "sslrootcert"],
    );
    wrong(
        by_name(&format!("sslmode=verify-full&sslrootcert={root}")),
        &["certificate verify failed", "sslmode"],
    );
    wrong(of("ann", "sslmode=disable"), &["no encryption", "sslmode"]);
    wrong(of("carl", "sslmode=require"), &["valid client certificate"]);
    wrong(of("carl", &format!("sslmode=require&{false_carl}")), &["sslcert"]);
    // Whom the system trusts does not count.
    config.set(
        "land.url",
        of("ann", &format!("sslmode=verify-ca&sslrootcert={other_root}")),
    );
    let file = file("config.toml", config.text().as_bytes());
    let mut lander = command();
    lander
        .env("SSL_CERT_FILE", &root)
        .args(["--config", &file, "land", "--once"]);
    let ended = lander.current_dir(folder.path()).output().unwrap();
    let told = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{told}");
    assert!(told.contains("certificate verify failed"), "{told}");
}

/// TLS with a certificate for 127.0.0.1; ann and carl get in with it only, carl with a certificate of his own.
fn serve_tls(data: &Path, authority: &Authority) {
    let (certificate, key) = authority.issue("127.0.0.1");
    for (name, text) in [
        ("server.crt", certificate),
        ("server.key", key),
        ("root.crt", authority.pem()),
    ] {
        fs::write(data.join(name), text).unwrap();
        give(&data.join(name));
    }
    let settings = fs::read_to_string(data.join("postgresql.conf")).unwrap();
    fs::write(
        data.join("postgresql.conf"),
        format!("{settings}\nssl = on\nssl_ca_file = 'root.crt'\n"),
    )
    .unwrap();
    fs::write(
        data.join("pg_hba.conf"),
        "hostssl all ann 127.0.0.1/32 scram-sha-256\nhostssl all carl 127.0.0.1/32 cert\nhost all tidegate 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
}

fn a_url_that_lacks_something_is_refused() {
    let store = Store::postgres();
    let (postgres, database, _) = place(&store);
    let (table, port) = (Table::new("lacking", &[]), postgres.port());
    let advice = "user, password and hosts in land.url (~/.pgpass is not read)";
    sink_refuses(
        &format!("postgres://tidegate@127.0.0.1:{port}/{database}"),
        &table,
        &["password missing", advice],
    );
    sink_refuses(
        &format!("postgres://tidegate:{PASSWORD}@127.0.0.1:{port}/{database}?port=1,2,3"),
        &table,
        &["number of ports", advice],
    );
}
