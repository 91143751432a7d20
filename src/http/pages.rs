//! The greeting pages: what a person sees who opens the ingest listener in a browser.

use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::error::{Problem, Reason};

/// What every path of this file takes.
const ALLOW: &str = "GET, HEAD";

/// A browser may not guess another type than we say: a name could look like a page.
const NO_SNIFF: (HeaderName, HeaderValue) = (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));

/// `GET /` and `GET /hello`.
pub(super) async fn hello() -> &'static str {
    "Hello World!"
}

/// `GET /hello/{name}`: an HTML page.
pub(super) async fn greeting(name: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| not_text())?;
    let name = escape(&name);
    let page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>Hello from tidegate</title></head>\n\
         <body><h1>Hello {name}!</h1></body>\n</html>\n"
    );
    Ok(([NO_SNIFF], axum::response::Html(page)).into_response())
}

/// `GET /user/{username}`.
pub(super) async fn user(username: Result<Path<String>, PathRejection>) -> Result<Response, Problem> {
    let Path(username) = username.map_err(|_| not_text())?;
    Ok(([NO_SNIFF], format!("hello Mr {username}")).into_response())
}

/// Every method but GET and HEAD.
pub(super) async fn get_only(method: Method) -> Response {
    only(&method, ALLOW)
}

/// Every method but POST.
pub(super) async fn post_only(method: Method) -> Response {
    only(&method, "POST")
}

/// OPTIONS is told what the path takes; any other method is wrong.
pub(super) fn only(method: &Method, allow: &'static str) -> Response {
    if method == Method::OPTIONS {
        return (StatusCode::NO_CONTENT, [(header::ALLOW, allow)]).into_response();
    }
    Problem::method(allow).into_response()
}

fn not_text() -> Problem {
    Problem::new(
        Reason::Malformed,
        "the name in the path is not UTF-8; percent-encode it as UTF-8.",
    )
}

/// Text as HTML that shows it, within elements and within quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_write_html() {
        assert_eq!(
            escape("<script>alert('&\"')</script>"),
            "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;"
        );
    }
}
