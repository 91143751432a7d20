//! The client that behaves: ureq, which shares no code with the server.

use std::collections::BTreeMap;

use super::seconds;

/// What the client read.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The body as JSON; the test fails when it is none.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }
}

/// An HTTP client that keeps its connections. One for each thread.
pub struct Client {
    agent: ureq::Agent,
    ingest: String,
}

impl Client {
    /// A client of the listener at `ingest`.
    pub fn new(ingest: &str) -> Self {
        Self {
            agent: agent(),
            ingest: ingest.to_owned(),
        }
    }

    /// POST to the ingest listener. An error means that the answer is unknown.
    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Result<Answer, String> {
        self.post_with(path, &[("content-type", content_type)], body)
    }

    /// POST with headers.
    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer, String> {
        let mut request = self.agent.post(format!("http://{}{path}", self.ingest));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send(body))
    }

    /// GET on the ingest listener.
    pub fn get(&self, path: &str) -> Result<Answer, String> {
        answer(self.agent.get(format!("http://{}{path}", self.ingest)).call())
    }
}

pub fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(seconds(60)))
        .proxy(None)
        .build()
        .into()
}

pub fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Result<Answer, String> {
    let mut response = result.map_err(|error| error.to_string())?;
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect();
    let body = response
        .body_mut()
        .read_to_string()
        .map_err(|error| error.to_string())?;
    Ok(Answer {
        status: response.status().as_u16(),
        headers,
        body,
    })
}
