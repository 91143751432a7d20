//! Chromium without a screen, driven over WebDriver: JSON over HTTP to chromedriver on a port of its own.
//!
//! Not a crate's client: the lightest brings 45 crates along, one of them under a licence that deny.toml refuses, for
//! the eight requests below.

use std::process::Command;

use serde_json::{Value, json};

use super::client::agent;
use super::daemon::Daemon;
use super::{answers, free_port, is_root, poll, seconds};

/// What is missing for a browser; `None` when all is there.
pub fn missing() -> Option<String> {
    if !answers("chromium", &["--version"]) {
        return Some("no `chromium` (Debian: chromium)".to_owned());
    }
    (!answers("chromedriver", &["--version"])).then(|| "no `chromedriver` (Debian: chromium-driver)".to_owned())
}

/// One window with a new profile. Dropped: gone, with its driver.
pub struct Browser {
    _driver: Daemon,
    session: String,
}

/// How a window is.
#[derive(Default)]
pub struct Window {
    pub dark: bool,
    pub without_javascript: bool,
}

impl Browser {
    pub fn start(window: &Window) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("tidegate-browser-")
            .tempdir()
            .expect("a temporary folder");
        let port = free_port();
        let profile = folder.path().join("profile");
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}"));
        let driver = Daemon::new(folder);
        driver.launch(&command, None);
        let address = format!("http://127.0.0.1:{port}");
        poll("chromedriver", seconds(30), || {
            let status = agent().get(format!("{address}/status")).call().ok()?;
            status.status().is_success().then_some(())
        });
        let mut arguments = vec![
            "--headless=new".to_owned(),
            // It ends with the driver, however that ends.
            "--remote-debugging-pipe".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--disable-background-networking".to_owned(),
            "--no-first-run".to_owned(),
            "--no-proxy-server".to_owned(),
            format!("--user-data-dir={}", profile.display()),
        ];
        if is_root() {
            arguments.push("--no-sandbox".to_owned());
        }
        if window.dark {
            arguments.push("--force-dark-mode".to_owned());
        }
        let mut options = json!({"args": arguments});
        if window.without_javascript {
            options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2});
        }
        let capabilities = json!({
            "browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
        });
        let sessions = format!("{address}/session");
        let answer = ask(&sessions, &json!({"capabilities": {"alwaysMatch": capabilities}}));
        let id = answer["sessionId"].as_str().expect("a session").to_owned();
        Self {
            _driver: driver,
            session: format!("{sessions}/{id}"),
        }
    }

    pub fn open(&self, url: &str) {
        self.ask("url", &json!({"url": url}));
    }

    /// What this expression is in the page.
    pub fn eval(&self, expression: &str) -> Value {
        self.ask(
            "execute/sync",
            &json!({"script": format!("return {expression}"), "args": []}),
        )
    }

    /// The text of the element with this id.
    #[track_caller]
    pub fn text(&self, id: &str) -> String {
        let text = self.eval(&format!("document.getElementById({}).textContent", json!(id)));
        text.as_str().expect("an element with text").to_owned()
    }

    /// The size of what the page sees, whatever the least size of a window is.
    pub fn resize(&self, width: u32, height: u32) {
        let size = json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
    }

    /// A command of Chromium's own protocol.
    pub fn devtools(&self, command: &str, parameters: &Value) -> Value {
        self.ask("goog/cdp/execute", &json!({"cmd": command, "params": parameters}))
    }

    /// A click on the element with this id.
    pub fn click(&self, selector: &str) {
        let element = self.ask("element", &json!({"using": "css selector", "value": selector}));
        let id = element.as_object().and_then(|element| element.values().next());
        let id = id.and_then(Value::as_str).expect("an element");
        self.ask(&format!("element/{id}/click"), &json!({}));
    }

    /// What the page and the browser wrote to the console since the last look.
    pub fn console(&self) -> Vec<String> {
        let entries = self.ask("se/log", &json!({"type": "browser"}));
        let entries = entries.as_array().expect("a list").iter();
        entries
            .map(|entry| format!("{}: {}", entry["level"], entry["message"]))
            .collect()
    }

    fn ask(&self, command: &str, body: &Value) -> Value {
        ask(&format!("{}/{command}", self.session), body)
    }
}

fn ask(url: &str, body: &Value) -> Value {
    let answer = agent()
        .post(url)
        .header("content-type", "application/json")
        .send(body.to_string());
    let answer = super::client::answer(answer).expect("chromedriver answers");
    assert_eq!(answer.status, 200, "{url} {body}: {}", answer.body);
    answer.json()["value"].take()
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver goes in any case.
        drop(agent().delete(&self.session).call());
    }
}
