//! A URL as libpq reads it: what the client's crate knows, and the four parameters about TLS that it does not
//! (`sslmode` in full, `sslrootcert`, `sslcert`, `sslkey`).
//!
//! `disable`; `prefer` (TLS where the server has it, whoever it is; the default); `require` (TLS, whoever it is, unless
//! `sslrootcert` is given: then like `verify-ca`); `verify-ca` (a certificate of an authority in that file, and of no
//! other); `verify-full` (and for this host). The last two need `sslrootcert`.

use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use postgres_openssl::MakeTlsConnector;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// How a URL is written; also what is said of one that cannot be told apart from its password.
const HOW: &str = "write it as postgres://user:password@host:5432/database, with characters such as @, / and ? in the \
     password as %40, %2F and %3F";

/// The connection's settings; the error is for the user, without a password in it.
pub(super) fn read(url: &str) -> Result<(Config, MakeTlsConnector), String> {
    if !["postgres://", "postgresql://"]
        .iter()
        .any(|start| url.starts_with(start))
    {
        return Err(format!("land.url cannot be read: {HOW}"));
    }
    let (base, query) = url.split_once('?').unwrap_or((url, ""));
    let (mut mode, mut root, mut certificate, mut key) = ("prefer".to_owned(), None, None, None);
    let mut others = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_encoding::percent_decode_str(value)
            .decode_utf8_lossy()
            .into_owned();
        match name {
            "sslmode" => mode = value,
            "sslrootcert" => root = Some(value),
            "sslcert" => certificate = Some(value),
            "sslkey" => key = Some(value),
            _ => others.push(pair),
        }
    }
    // What follows the first @ is taken for the host, and hosts are shown.
    if base.matches('@').count() > 1 || query.contains('?') || others.iter().any(|pair| pair.contains('@')) {
        return Err(format!("land.url has an @ or ? too many: {HOW}"));
    }
    let rest = if others.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", others.join("&"))
    };
    let mut config: Config = rest
        .parse()
        .map_err(|error| format!("land.url cannot be read ({error}): {HOW}"))?;
    let is_wrong = |host: &Host| matches!(host, Host::Tcp(host) if host.contains('@'));
    if config.get_hosts().iter().any(is_wrong) {
        return Err(format!("land.url has an @ in a host: {HOW}"));
    }
    if config.get_hosts().is_empty() {
        return Err("land.url names no host: write it as postgres://user:password@host:5432/database".to_owned());
    }
    let (ssl, chain, name) = match mode.as_str() {
        "disable" => (SslMode::Disable, false, false),
        "prefer" | "allow" => (SslMode::Prefer, root.is_some(), false),
        "require" => (SslMode::Require, root.is_some(), false),
        "verify-ca" => (SslMode::Require, true, false),
        "verify-full" => (SslMode::Require, true, true),
        other => {
            return Err(format!(
                "land.url has sslmode={other}: write disable, prefer, require, verify-ca or verify-full"
            ));
        }
    };
    match root.as_deref() {
        Some("system") => {
            return Err(
                "land.url has sslrootcert=system, which is not supported: name the authority with sslrootcert=FILE"
                    .to_owned(),
            );
        }
        None if chain => {
            return Err(format!(
                "land.url has sslmode={mode} and nobody to trust: name the authority with sslrootcert=FILE"
            ));
        }
        _ => {}
    }
    config.ssl_mode(ssl);
    let broken = |what: &str, error: &dyn std::fmt::Display| format!("land.url: {what} cannot be used: {error}");
    let mut builder = SslConnector::builder(SslMethod::tls()).map_err(|error| broken("OpenSSL", &error))?;
    if let Some(root) = &root {
        // The builder trusts the system's authorities; a file would only be added to them.
        let nobody = X509StoreBuilder::new().map_err(|error| broken("OpenSSL", &error))?;
        builder.set_cert_store(nobody.build());
        builder
            .set_ca_file(root)
            .map_err(|error| broken(&format!("sslrootcert={root}"), &error))?;
    }
    if let Some(certificate) = &certificate {
        builder
            .set_certificate_chain_file(certificate)
            .map_err(|error| broken(&format!("sslcert={certificate}"), &error))?;
    }
    if let Some(key) = &key {
        builder
            .set_private_key_file(key, SslFiletype::PEM)
            .map_err(|error| broken(&format!("sslkey={key}"), &error))?;
    }
    if !chain {
        builder.set_verify(SslVerifyMode::NONE);
    }
    let mut connector = MakeTlsConnector::new(builder.build());
    connector.set_callback(move |connection, _| {
        connection.set_verify_hostname(name);
        Ok(())
    });
    Ok((config, connector))
}

/// `user@host:port/database`.
pub(super) fn name(config: &Config) -> String {
    let host = config.get_hosts().first().map_or_else(String::new, |host| match host {
        Host::Tcp(host) => host.clone(),
        Host::Unix(path) => path.display().to_string(),
    });
    let port = config.get_ports().first().copied().unwrap_or(5432);
    let user = config.get_user().unwrap_or("");
    let database = config.get_dbname().unwrap_or(user);
    format!("{user}@{host}:{port}/{database}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_libpq_reads_it_and_its_password_never_told() {
        let (config, _) = read("postgres://ann:hunter2@db:5433/rows?sslmode=require&connect_timeout=3").unwrap();
        assert_eq!(name(&config), "ann@db:5433/rows");
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        let wrong = |url: &str| read(url).err().unwrap();
        assert!(wrong("postgres://ann:hunter2@db/rows?sslmode=maybe").contains("verify-full"));
        assert!(wrong("postgres://ann:hunter2@db/rows?sslmode=require&sslrootcert=/nowhere").contains("/nowhere"));
        for mode in ["verify-ca", "verify-full"] {
            let error = wrong(&format!("postgres://ann:hunter2@db/rows?sslmode={mode}"));
            assert!(error.contains("name the authority with sslrootcert=FILE"), "{error}");
        }
        assert!(wrong("postgres://db/rows?sslmode=verify-full&sslrootcert=system").contains("sslrootcert=FILE"));
        for url in [
            "postgres://ann:hunter2@db:port/rows",
            "mysql:hunter2",
            "postgres://",
            "host=db user=ann password=hunter2 sslmode=require",
            "hunter2=1",
        ] {
            let error = wrong(url);
            assert!(error.contains("land.url") && !error.contains("hunter2"), "{error}");
        }
        for url in [
            "postgres://ann:p@hunter2@db/rows",
            "postgres://ann:p@x/hunter2@db/rows",
            "postgres://ann:p?hunter2@db/rows?sslmode=require",
            "postgres://ann:p@x?hunter2=1@db/rows",
            "postgres:///rows?host=p@hunter2",
        ] {
            let error = wrong(url);
            assert!(error.contains("%40") && !error.contains("hunter2"), "{error}");
        }
    }
}
