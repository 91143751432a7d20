//! Who may send, as the configuration says it: the files of keys and certificates, opened before anything else is.

use std::path::Path;
use std::sync::Arc;

use super::exit::FileError;
use crate::config::Config;
use crate::http::{Tls, TlsFiles};
use crate::keys::{Book, KeysError};

/// What guards the ingest listener.
pub(super) struct Guard {
    pub(super) keys: Option<Arc<Book>>,
    pub(super) tls: Option<Arc<Tls>>,
}

impl Guard {
    /// Reads the files, and warns of what is open to strangers.
    ///
    /// # Errors
    /// Where one of them cannot be used.
    pub(super) fn open(config: &Config) -> Result<Self, FileError> {
        let guard = Self {
            keys: keys(config)?.map(Arc::new),
            tls: tls(config)?.map(Arc::new),
        };
        if let Some(keys) = &guard.keys {
            if keys.count() == 0 {
                tracing::warn!(
                    "http.api_keys_file has no key: nobody can send. `tidegate key create --name NAME` makes one"
                );
            }
            if guard.tls.is_none() && !config.http.listen.ip().is_loopback() {
                tracing::warn!(
                    "API keys cross the network in clear text: set http.tls_certificate_file and http.tls_key_file, or put a \
                     proxy that speaks TLS in front"
                );
            }
        }
        Ok(guard)
    }
}

fn is_set(file: &Path) -> bool {
    !file.as_os_str().is_empty()
}

fn keys(config: &Config) -> Result<Option<Book>, FileError> {
    let path = &config.http.api_keys_file;
    if !is_set(path) {
        return Ok(None);
    }
    let book = Book::open(path).map_err(|error| FileError {
        key: "http.api_keys_file",
        advice: match &error {
            error if error.is_missing() => "Make it and the first key with `tidegate key create --name NAME`",
            KeysError::Io { source, .. } if source.kind() == std::io::ErrorKind::InvalidInput => "Name a file, not a folder",
            KeysError::Io { .. } => "Let the user of the gateway read it (chown, chmod): `key create` makes a file that its owner alone reads",
            _ => "Correct the file, or make another with `tidegate key create`",
        },
        origin: config.origin("http.api_keys_file"),
        source: error.into(),
    })?;
    Ok(Some(book))
}

fn tls(config: &Config) -> Result<Option<Tls>, FileError> {
    let http = &config.http;
    if !is_set(&http.tls_certificate_file) {
        return Ok(None);
    }
    let tls = Tls::open(TlsFiles {
        certificate: http.tls_certificate_file.clone(),
        key: http.tls_key_file.clone(),
        client_ca: is_set(&http.tls_client_ca_file).then(|| http.tls_client_ca_file.clone()),
    });
    let tls = tls.map_err(|error| {
        let (key, advice) = if error.path() == http.tls_key_file {
            (
                "http.tls_key_file",
                "Name a PEM file with the private key of the certificate, without a passphrase, that this user can read",
            )
        } else if error.path() == http.tls_client_ca_file {
            ("http.tls_client_ca_file", "Name a PEM file with the CAs of clients' certificates, that this user can read")
        } else {
            (
                "http.tls_certificate_file",
                "Name a PEM file with the certificate (X.509 version 3, for the name that clients use), those between it and its \
                 CA behind it, and its own key in http.tls_key_file",
            )
        };
        FileError {
            key,
            advice,
            origin: config.origin(key),
            source: error.into(),
        }
    })?;
    Ok(Some(tls))
}
