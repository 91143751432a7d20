//! Who sends, on the ingest listener: the API key of a request, and what it may do.
//!
//! A program sends the key as a bearer or as `x-api-key`; old devices, which know HTTP basic only, send it as the password
//! of any name. Without a file of keys (`http.api_keys_file`) nobody is asked, and everybody may send everywhere.

use std::sync::Arc;

use axum::http::{Extensions, HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::error::{Problem, Reason};
use crate::keys::{Book, Holder};

/// The header with a key and nothing else.
const API_KEY: &str = "x-api-key";
/// How a key is sent: for programs first.
const CHALLENGE: &str = "Bearer realm=\"tidegate\", Basic realm=\"tidegate\", charset=\"UTF-8\"";

/// Who sends a request, in its extensions where that is asked.
#[derive(Debug, Clone)]
pub(super) enum Caller {
    /// The holder of a key.
    Key(Arc<Holder>),
    /// The owner of a certificate, by a hash of its subject.
    Certificate(Arc<str>),
}

impl Caller {
    /// What tells it from every other one.
    pub(super) fn id(&self) -> &str {
        match self {
            Self::Key(holder) => &holder.id,
            Self::Certificate(subject) => subject,
        }
    }
}

/// The secret of an `Authorization` header: the token of a bearer, the password of HTTP basic.
pub(super) fn authorization(headers: &HeaderMap) -> Option<Vec<u8>> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, given) = given.split_once(' ')?;
    let given = given.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(given.as_bytes().to_vec());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let mut pair = STANDARD.decode(given).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        // Whatever the name: the password says who it is.
        return Some(pair.split_off(colon + 1));
    }
    None
}

/// Whose key a request has.
pub(super) fn caller(headers: &HeaderMap, keys: &Book) -> Result<Caller, Problem> {
    let key = authorization(headers).or_else(|| headers.get(API_KEY).map(|key| key.as_bytes().trim_ascii().to_vec()));
    let refused = |detail: &str| Problem::new(Reason::Unauthorized, detail).with(header::WWW_AUTHENTICATE, CHALLENGE);
    let Some(key) = key else {
        return Err(refused(
            "this gateway needs an API key, and the request has none that can be read. Nothing was taken; send the header \
             \"Authorization: Bearer KEY\" or \"x-api-key: KEY\", or HTTP basic with the key as the password.",
        ));
    };
    let holder = std::str::from_utf8(&key).ok().and_then(|key| keys.holder(key));
    holder.map(Caller::Key).ok_or_else(|| {
        refused(
            "the API key is not known here: it is misspelt, was revoked, or belongs to another gateway. Nothing was taken; \
             `tidegate key list` on the gateway shows which there are.",
        )
    })
}

/// Refuses a topic that the sender may not write to.
pub(super) fn may_write(sender: &Extensions, topic: &str) -> Result<(), Problem> {
    allowed(sender, "write to the topic", topic, Holder::may_write)
}

/// Refuses a source that the sender may not post to.
pub(super) fn may_post(sender: &Extensions, source: &str) -> Result<(), Problem> {
    allowed(sender, "post to the source", source, Holder::may_post)
}

fn allowed(sender: &Extensions, act: &str, place: &str, may: fn(&Holder, &str) -> bool) -> Result<(), Problem> {
    match sender.get::<Caller>() {
        Some(Caller::Key(holder)) if !may(holder, place) => Err(Problem::new(
            Reason::Forbidden,
            format!(
                "the API key {:?} (id {}) may not {act} {place}. Nothing was taken; use a key that may (`tidegate key create`).",
                holder.name, holder.id
            ),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use axum::http::HeaderValue;
    use axum::response::IntoResponse as _;

    use super::*;

    fn headers(pairs: &[(&'static str, String)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn a_key_comes_as_a_bearer_a_header_or_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let key = crate::keys::create(&path, "press", Vec::new(), vec!["trip_pro".into()], String::new()).unwrap();
        let keys = Book::open(&path).unwrap();
        let basic = |pair: String| format!("Basic {}", STANDARD.encode(pair));
        let opens = |pairs: &[(&'static str, String)]| caller(&headers(pairs), &keys).is_ok();
        assert!(opens(&[("authorization", format!("Bearer {key}"))]));
        assert!(opens(&[("authorization", format!("bearer  {key}"))]));
        assert!(opens(&[("authorization", basic(format!("anybody:{key}")))]));
        assert!(opens(&[("authorization", basic(format!(":{key}")))]));
        assert!(opens(&[("x-api-key", key.clone())]));
        for wrong in [
            ("authorization", key.clone()),
            ("authorization", format!("Bearer {key}x")),
            ("authorization", basic(format!("{key}:"))),
            ("authorization", format!("Digest {key}")),
            ("x-api-key", String::new()),
            ("x-key", key.clone()),
        ] {
            let problem = caller(&headers(std::slice::from_ref(&wrong)), &keys).unwrap_err();
            let response = problem.into_response();
            assert_eq!(response.status(), 401, "{wrong:?}");
            assert!(
                response.headers()[header::WWW_AUTHENTICATE]
                    .to_str()
                    .unwrap()
                    .starts_with("Bearer")
            );
        }

        let mut sender = Extensions::new();
        assert!(
            may_post(&sender, "x").is_ok() && may_write(&sender, "x").is_ok(),
            "nobody is asked"
        );
        sender.insert(caller(&headers(&[("x-api-key", key)]), &keys).unwrap());
        assert!(may_post(&sender, "trip_pro").is_ok());
        let refused = may_post(&sender, "x").unwrap_err().into_response();
        assert_eq!(refused.status(), 403);
        assert_eq!(
            may_write(&sender, "trip_pro").unwrap_err().into_response().status(),
            403
        );
    }
}
