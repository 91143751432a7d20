//! TLS of the ingest listener, by rustls: its certificate, and clients' certificates where they are asked for. The only
//! place that names rustls.
//!
//! TLS 1.2 and 1.3 with the cipher suites that rustls has (none of them is weak), HTTP/2 or HTTP/1.1 by ALPN, no early
//! data (it could be repeated by others). The files are read again when they change: a new connection gets what is in force
//! then, an open one stays as it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use openssl::asn1::Asn1Time;
use openssl::x509::X509;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, version};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::watched::{Watched, read_text};

/// The ALPN name of HTTP/2.
const H2: &[u8] = b"h2";
/// How a TLS connection begins: the type of a handshake record.
const HANDSHAKE: u8 = 0x16;
/// The largest of the files, bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// A certificate that ends sooner than this is warned of.
const DAYS_LEFT_MIN: i32 = 14;

/// Where certificate and key are, PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// The private key of the first.
    pub key: PathBuf,
    /// The CAs of clients; `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {what}")]
pub struct TlsError {
    path: String,
    what: String,
}

impl TlsError {
    /// The file that it is about.
    #[must_use]
    pub fn path(&self) -> &Path {
        Path::new(&self.path)
    }
}

/// What is in force, from files that may change.
pub struct Tls {
    files: TlsFiles,
    in_force: RwLock<(Arc<ServerConfig>, Option<Expiry>)>,
    watched: Mutex<Watched>,
}

/// A connection that could not become one of TLS.
pub(super) enum NoTls {
    /// Its client does not speak TLS.
    Plain(TcpStream),
    /// The client, its certificate or the connection broke off.
    Failed(io::Error),
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Where one cannot be read, is no PEM, or they do not belong together.
    pub fn open(files: TlsFiles) -> Result<Self, TlsError> {
        let paths = [Some(&files.certificate), Some(&files.key), files.client_ca.as_ref()];
        // Looked at first: what changes while it is read is read again.
        let watched = Watched::new(paths.into_iter().flatten().cloned());
        let in_force = load(&files)?;
        if let Some(expiry) = &in_force.1 {
            expiry.tell(&files.certificate);
        }
        Ok(Self {
            files,
            in_force: RwLock::new(in_force),
            watched: Mutex::new(watched),
        })
    }

    /// Whether a client needs a certificate.
    pub(super) fn wants_certificates(&self) -> bool {
        self.files.client_ca.is_some()
    }

    /// Until when the certificate in force holds, if it says so.
    #[must_use]
    pub fn expiry(&self) -> Option<Expiry> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Whether one of the files was changed to something that cannot be used.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).is_refused()
    }

    /// Reads the files again if one has changed: what is in force now, in words. Until they can be used again, those of before
    /// are in force.
    ///
    /// # Errors
    /// See [`Tls::open`]; each reason once.
    pub fn refresh(&self) -> Option<Result<String, TlsError>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = watched.refresh(|| {
            let loaded = load(&self.files)?;
            match &loaded.1 {
                Some(expiry) if expiry.is_over() => {
                    let what = format!(
                        "the certificate expired already, {}: clients would refuse it",
                        expiry.until
                    );
                    Err(wrong(&self.files.certificate, what))
                }
                _ => Ok(loaded),
            }
        })?;
        Some(loaded.map(|in_force| {
            if let Some(expiry) = &in_force.1 {
                expiry.tell(&self.files.certificate);
            }
            let until = in_force
                .1
                .as_ref()
                .map(|expiry| format!("a certificate until {}", expiry.until));
            *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = in_force;
            until.unwrap_or_default()
        }))
    }

    /// The handshake of a new connection. It has no limit of time.
    pub(super) async fn accept(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>, NoTls> {
        let mut first = [0];
        match tcp.peek(&mut first).await {
            Ok(1) if first != [HANDSHAKE] => return Err(NoTls::Plain(tcp)),
            Ok(_) => {}
            Err(error) => return Err(NoTls::Failed(error)),
        }
        let config = Arc::clone(&self.in_force.read().unwrap_or_else(PoisonError::into_inner).0);
        TlsAcceptor::from(config).accept(tcp).await.map_err(NoTls::Failed)
    }
}

/// Whether client and server agreed on HTTP/2.
pub(super) fn is_h2(stream: &TlsStream<TcpStream>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(H2)
}

/// Whom a client's certificate is for, in a form that stays when it is renewed: a hash of who signed it, its subject, and its
/// other names.
pub(super) fn owner(stream: &TlsStream<TcpStream>) -> Option<Arc<str>> {
    let certificate = stream.get_ref().1.peer_certificates()?.first()?;
    let mut hash = Sha256::new();
    match X509::from_der(certificate) {
        Ok(parsed) => {
            for name in [parsed.issuer_name(), parsed.subject_name()] {
                hash.update(name.to_der().unwrap_or_default());
            }
            for name in parsed.subject_alt_names().into_iter().flatten() {
                let texts = [name.dnsname(), name.uri(), name.email()];
                let bytes = texts.into_iter().flatten().map(str::as_bytes).chain(name.ipaddress());
                for name in bytes {
                    hash.update((name.len() as u64).to_be_bytes());
                    hash.update(name);
                }
            }
        }
        // rustls has read it, and OpenSSL has not: it stands for itself.
        Err(_) => hash.update(certificate),
    }
    let text: String = hash
        .finalize()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    Some(text.into())
}

fn load(files: &TlsFiles) -> Result<(Arc<ServerConfig>, Option<Expiry>), TlsError> {
    let chain = certificates(&files.certificate)?;
    let expiry = chain.first().and_then(Expiry::of);
    let key_pem = read(&files.key)?;
    let key = PrivateKeyDer::from_pem_slice(&key_pem).map_err(|error| {
        let what = match memchr::memmem::find(&key_pem, b"ENCRYPTED") {
            Some(_) => "the key is encrypted: store it without a passphrase, readable for this user alone".to_owned(),
            None => format!("there is no private key in it (PEM, -----BEGIN PRIVATE KEY-----): {error}"),
        };
        wrong(&files.key, what)
    })?;
    let provider = Arc::new(ring::default_provider());
    let versions = [&version::TLS13, &version::TLS12];
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(&versions);
    let builder = builder.map_err(|error| wrong(&files.certificate, error.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| wrong(path, error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(path, error.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| {
        wrong(
            &files.certificate,
            format!("it cannot be used with the key {}: {error}", files.key.display()),
        )
    })?;
    config.alpn_protocols = vec![H2.to_vec(), b"http/1.1".to_vec()];
    config.ticketer = ring::Ticketer::new().map_err(|error| wrong(&files.certificate, error.to_string()))?;
    Ok((Arc::new(config), expiry))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| wrong(path, error.to_string()))?;
    match chain.is_empty() {
        true => Err(wrong(
            path,
            "there is no certificate in it (PEM, -----BEGIN CERTIFICATE-----)".to_owned(),
        )),
        false => Ok(chain),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let text = read_text(path, FILE_BYTES_MAX).map_err(|error| wrong(path, error.to_string()))?;
    Ok(text.into_bytes())
}

fn wrong(path: &Path, what: String) -> TlsError {
    let path = path.display().to_string();
    TlsError { path, what }
}

/// Until when a certificate holds: its clients find out too late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expiry {
    /// The certificate's own words.
    pub until: String,
    /// Whole days; below 0 when it is over.
    pub days: i32,
    /// The same as Unix time.
    pub timestamp_seconds: i64,
}

impl Expiry {
    /// Whether somebody should see to it.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.days < DAYS_LEFT_MIN
    }

    /// Whether clients refuse it.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.days < 0
    }

    fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let certificate = X509::from_der(certificate).ok()?;
        let since = Asn1Time::from_unix(0).ok()?.diff(certificate.not_after()).ok()?;
        let left = Asn1Time::days_from_now(0).ok()?.diff(certificate.not_after()).ok()?;
        // Hours beyond the last whole day count against it once they are negative.
        let days = if left.days <= 0 && left.secs < 0 {
            left.days - 1
        } else {
            left.days
        };
        Some(Self {
            until: certificate.not_after().to_string(),
            days,
            timestamp_seconds: i64::from(since.days) * 86_400 + i64::from(since.secs),
        })
    }

    fn tell(&self, path: &Path) {
        let (path, until) = (path.display(), &self.until);
        if self.is_over() {
            tracing::error!(%path, until, "the certificate of TLS has expired: clients refuse it. Replace the file");
        } else if self.is_near() {
            tracing::warn!(%path, until, "the certificate of TLS expires soon: replace the file, it is read again when it changes");
        } else {
            tracing::info!(%path, until, "certificate of TLS");
        }
    }
}
