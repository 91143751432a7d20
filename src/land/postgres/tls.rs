//! A URL as libpq reads it: what the client's crate knows, and the four parameters about TLS that it does not
//! (`sslmode` in full, `sslrootcert`, `sslcert`, `sslkey`).
//!
//! `disable`; `prefer` (TLS where the server has it, whoever it is; the default); `require` (TLS, whoever it is, unless
//! `sslrootcert` is given: then like `verify-ca`); `verify-ca` (a certificate of that CA, or of the system's);
//! `verify-full` (and for this host).

use openssl::ssl::{SslConnector, SslFiletype, SslMethod, SslVerifyMode};
use postgres_openssl::MakeTlsConnector;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// The connection's settings; the error is for the user, without a password in it.
pub(super) fn read(url: &str) -> Result<(Config, MakeTlsConnector), String> {
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
    let rest = if others.is_empty() {
        base.to_owned()
    } else {
        format!("{base}?{}", others.join("&"))
    };
    let mut config: Config = rest.parse().map_err(|error| {
        format!(
            "land.url cannot be read ({error}): write it as postgres://user:password@host:5432/database, with characters such \
             as @ and / in the password as %40 and %2F"
        )
    })?;
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
    config.ssl_mode(ssl);
    let broken = |what: &str, error: &dyn std::fmt::Display| format!("land.url: {what} cannot be used: {error}");
    let mut builder = SslConnector::builder(SslMethod::tls()).map_err(|error| broken("OpenSSL", &error))?;
    if let Some(root) = &root {
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
        let (config, _) = read("postgres://ann:hunter2@db:5433/rows?sslmode=verify-full&connect_timeout=3").unwrap();
        assert_eq!(name(&config), "ann@db:5433/rows");
        assert_eq!(config.get_ssl_mode(), SslMode::Require);
        let wrong = |url: &str| read(url).err().unwrap();
        assert!(wrong("postgres://ann:hunter2@db/rows?sslmode=maybe").contains("verify-full"));
        assert!(wrong("postgres://ann:hunter2@db/rows?sslmode=require&sslrootcert=/nowhere").contains("/nowhere"));
        for url in ["postgres://ann:hunter2@db:port/rows", "mysql:hunter2", "postgres://"] {
            let error = wrong(url);
            assert!(error.contains("land.url") && !error.contains("hunter2"), "{error}");
        }
    }
}
