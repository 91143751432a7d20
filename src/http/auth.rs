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

/// What an `Authorization` header says.
pub(super) struct Given {
    /// The token of a bearer, the password of HTTP basic.
    pub(super) secret: Vec<u8>,
    /// It is one that a browser sends unasked, whatever page had it send the request.
    is_browsers: bool,
}

/// The secret of an `Authorization` header.
pub(super) fn authorization(headers: &HeaderMap) -> Option<Given> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, given) = given.split_once(' ')?;
    let given = given.trim();
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(Given {
            secret: given.as_bytes().to_vec(),
            is_browsers: false,
        });
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let mut pair = STANDARD.decode(given).ok()?;
        let colon = pair.iter().position(|byte| *byte == b':')?;
        // Whatever the name: the password says who it is.
        return Some(Given {
            secret: pair.split_off(colon + 1),
            is_browsers: true,
        });
    }
    None
}

/// Who sends a request; `None`: nobody is asked.
pub(super) fn caller(
    headers: &HeaderMap,
    keys: Option<&Book>,
    certificate: Option<&Arc<str>>,
) -> Result<Option<Caller>, Problem> {
    let (caller, is_browsers) = match (keys, certificate) {
        (Some(keys), _) => {
            let (holder, is_browsers) = holder(headers, keys)?;
            (Caller::Key(holder), is_browsers)
        }
        (None, Some(owner)) => (Caller::Certificate(Arc::clone(owner)), true),
        (None, None) => return Ok(None),
    };
    if is_browsers && headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(
            Reason::Forbidden,
            "this request comes from a page in a browser (it has an Origin), whose browser sent the password or certificate along \
             unasked. Nothing was taken; a page that may send has the key itself and sends it as a bearer.",
        ));
    }
    Ok(Some(caller))
}

/// Whose key a request has, and whether a browser could have sent it by itself.
fn holder(headers: &HeaderMap, keys: &Book) -> Result<(Arc<Holder>, bool), Problem> {
    let alone = || {
        let secret = headers.get(API_KEY)?.as_bytes().trim_ascii().to_vec();
        Some(Given {
            secret,
            is_browsers: false,
        })
    };
    let refused = |detail: &str| Problem::new(Reason::Unauthorized, detail).with(header::WWW_AUTHENTICATE, CHALLENGE);
    let Some(given) = authorization(headers).or_else(alone) else {
        return Err(refused(
            "this gateway needs an API key, and the request has none that can be read. Nothing was taken; send the header \
             \"Authorization: Bearer KEY\" or \"x-api-key: KEY\", or HTTP basic with the key as the password.",
        ));
    };
    let holder = std::str::from_utf8(&given.secret).ok().and_then(|key| keys.holder(key));
    let holder = holder.ok_or_else(|| {
        refused(
            "the API key is not known here: it is misspelt, was revoked, or belongs to another gateway. Nothing was taken; \
             `tidegate key list` on the gateway shows which there are.",
        )
    })?;
    Ok((holder, given.is_browsers))
}

/// Whose the sender's idempotency keys are; the name of a key stays when it is replaced by another of that name.
pub(super) fn name(sender: &Extensions) -> &str {
    match sender.get::<Caller>() {
        Some(Caller::Key(holder)) => &holder.name,
        Some(Caller::Certificate(owner)) => owner,
        None => "",
    }
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
        let ask = |pairs: &[(&'static str, String)]| caller(&headers(pairs), Some(&keys), None);
        let opens = |pairs: &[(&'static str, String)]| ask(pairs).is_ok();
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
            let problem = ask(std::slice::from_ref(&wrong)).unwrap_err();
            let response = problem.into_response();
            assert_eq!(response.status(), 401, "{wrong:?}");
            assert!(
                response.headers()[header::WWW_AUTHENTICATE]
                    .to_str()
                    .unwrap()
                    .starts_with("Bearer")
            );
        }

        // What a browser sends along with whatever a page asks of it.
        let page = ("origin", "https://evil.example".to_owned());
        let by_page = [("authorization", basic(format!("a:{key}"))), page.clone()];
        assert_eq!(ask(&by_page).unwrap_err().into_response().status(), 403);
        assert!(
            opens(&[("x-api-key", key.clone()), page.clone()]),
            "the page has the key"
        );
        let owner: Arc<str> = "owner".into();
        assert!(caller(&headers(&[page]), None, Some(&owner)).is_err());
        assert!(caller(&HeaderMap::new(), None, Some(&owner)).unwrap().is_some());
        assert!(caller(&HeaderMap::new(), None, None).unwrap().is_none());

        let mut sender = Extensions::new();
        assert!(
            may_post(&sender, "x").is_ok() && may_write(&sender, "x").is_ok(),
            "nobody is asked"
        );
        sender.insert(ask(&[("x-api-key", key)]).unwrap().unwrap());
        assert!(may_post(&sender, "trip_pro").is_ok());
        let refused = may_post(&sender, "x").unwrap_err().into_response();
        assert_eq!(refused.status(), 403);
        assert_eq!(
            may_write(&sender, "trip_pro").unwrap_err().into_response().status(),
            403
        );
    }
}
