//! The status page as people see it: a real browser, a real outage.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::support::browser::{Browser, Window};
use crate::support::client::{agent, answer};
use crate::support::gateway::{Config, Gateway, NOWHERE};
use crate::support::kafka::Kafka;
use crate::support::{FORM, JSON, Random, SEED_BODY, free_port, poll, seconds, unique, wait_until};

cases!["status_page":
    shows_an_outage_and_its_end_without_a_reload [OwnKafka, Chromium],
    is_whole_without_javascript [Chromium],
    fits_a_phone_by_day_and_by_night [Chromium],
    what_clients_wrote_is_text [Chromium],
    letters_are_listed_and_their_buttons_ask_for_them [Chromium],
    a_letter_is_requeued_from_the_page [Kafka, Chromium],
    without_a_token_nothing_can_be_requeued_from_the_page [Chromium],
    needs_the_token_and_takes_it_as_a_password [Chromium],
    changes_need_a_token_and_our_own_page [],
    says_when_the_gateway_is_gone_and_comes_back [Chromium],
    two_streams_tell_the_same_and_the_seventeenth_is_refused [],
    streams_end_with_the_gateway [],
    the_status_has_rates_times_and_errors [],
];

const TOKEN: &str = "a-token-of-the-admin-listener";

fn page(gateway: &Gateway) -> String {
    format!("http://{}/", gateway.admin)
}

#[track_caller]
fn post(gateway: &Gateway, records: u64) {
    let client = gateway.client();
    for _ in 0..records {
        let answer = client.post("/financial_pro", FORM, SEED_BODY.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

#[track_caller]
fn wait_for_text(browser: &Browser, id: &str, text: &str) {
    let mut last = String::new();
    let limit = seconds(60);
    wait_until(format_args!("{id} says {text:?}"), limit, || {
        last = browser.text(id);
        last == text
    });
}

#[track_caller]
fn assert_quiet(browser: &Browser) {
    let lines = browser.console();
    assert!(lines.is_empty(), "the console of the browser: {lines:#?}");
}

fn shows_an_outage_and_its_end_without_a_reload() {
    let kafka = Kafka::private();
    kafka.create_topic("financial_pro", 1, &[]);
    let mut config = Config::with(&kafka);
    config.source("financial_pro", "financial_pro", None);
    let gateway = Gateway::start(&config);
    let browser = Browser::start(&Window::default());
    browser.open(&page(&gateway));
    // A reload would take it away.
    browser.eval("(window.mark = 1)");
    wait_for_text(&browser, "kafka", "Kafka is up");
    assert_eq!(browser.eval("document.getElementById('gate').dataset.gate"), "open");

    kafka.kill();
    post(&gateway, 1234);
    wait_for_text(&browser, "kafka", "Kafka is away");
    wait_for_text(&browser, "backlog", "1,234");
    assert_eq!(browser.text("committed"), "1,234");
    assert_eq!(browser.text("next"), "1,235");
    assert_eq!(browser.text("acked"), "0");
    assert_eq!(browser.text("drain"), "not draining");
    assert!(browser.text("backlog-all").starts_with("1,234 records, "));
    assert!(browser.text("state-detail").contains("safe on disk"));
    assert_eq!(browser.eval("document.getElementById('gate').dataset.gate"), "shut");
    assert!(browser.text("gate-text").contains("1,234 records wait behind it"));
    let height = "Number(document.getElementById('water').getAttribute('height'))";
    assert!(browser.eval(height).as_f64().unwrap() > 0.0);
    assert!(browser.text("ingest-rate").parse::<f64>().unwrap() > 0.0);
    let title = browser.eval("document.title");
    assert_eq!(title, "under-test: 1,234 waiting - tidegate");

    kafka.start();
    wait_for_text(&browser, "kafka", "Kafka is up");
    wait_for_text(&browser, "backlog", "0");
    assert_eq!(browser.text("acked"), "1,234");
    assert_eq!(browser.text("drain-more"), "nothing waits");
    wait_for_text(&browser, "delivered", "1,234 records");
    assert!(browser.text("forward-rate").replace(',', "").parse::<f64>().unwrap() > 0.0);
    wait_until("the hour has the outage", seconds(15), || {
        browser
            .text("chart-text")
            .contains("the most in the last hour was 1,234")
    });
    assert_eq!(browser.eval("window.mark"), 1, "it was reloaded");
    assert_quiet(&browser);
}

fn is_whole_without_javascript() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    post(&gateway, 21);
    let answer = gateway.admin("/").unwrap();
    assert_eq!(answer.header("content-type"), "text/html; charset=utf-8");
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
    assert_eq!(answer.header("referrer-policy"), "no-referrer");
    let policy = answer.header("content-security-policy");
    assert!(
        policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
        "{policy}"
    );
    // Nothing is asked of anybody else.
    for outside in ["src=", "@import", "url(", "https://"] {
        assert!(!answer.body.contains(outside), "{outside}");
    }

    let browser = Browser::start(&Window {
        without_javascript: true,
        ..Window::default()
    });
    browser.open(&page(&gateway));
    let shown = browser.eval("document.body.innerText").as_str().unwrap().to_owned();
    assert!(
        shown.contains("Without JavaScript this page reloads itself"),
        "it is on: {shown}"
    );
    for words in [
        "Takes records",
        "Kafka is away",
        "21 records, ",
        " ms on average",
        "Disk used",
    ] {
        assert!(shown.contains(words), "{words}: {shown}");
    }
    let table = browser.eval("document.querySelector('table.readings').innerText");
    let table = table.as_str().unwrap();
    assert!(
        table.contains("Kafka is away") && table.contains("21 records, "),
        "{table}"
    );
    assert_eq!(browser.text("next"), "22");
    assert_quiet(&browser);
}

fn fits_a_phone_by_day_and_by_night() {
    let mut config = Config::new(NOWHERE);
    // Nowhere to break a line, as in topics too.
    let long = "x".repeat(200);
    config.set("gateway.id", &*long);
    let gateway = Gateway::start(&config);
    post(&gateway, 3);
    let mut grounds = Vec::new();
    for dark in [false, true] {
        let browser = Browser::start(&Window {
            dark,
            ..Window::default()
        });
        browser.open(&page(&gateway));
        wait_for_text(&browser, "link", ", live");
        let rows = json!([[long, "1", "1s", long]]);
        browser.eval(&format!("void show({{'held-part.data-count': '1', held: {rows}}})"));
        assert_eq!(browser.eval("matchMedia('(prefers-color-scheme: dark)').matches"), dark);
        for width in [320, 600, 1280] {
            browser.resize(width, 800);
            assert_eq!(browser.eval("innerWidth"), width);
            let needed = browser.eval("document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(
                needed <= u64::from(width),
                "{width} px wide, dark {dark}: it needs {needed}"
            );
        }
        grounds.push(browser.eval("getComputedStyle(document.body).backgroundColor"));
        assert_quiet(&browser);
    }
    assert_ne!(grounds[0], grounds[1]);
}

fn what_clients_wrote_is_text() {
    let evil = "<script>document.title='taken'</script><img src=x onerror=alert(1)>";
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let browser = Browser::start(&Window::default());
    browser.open(&page(&gateway));
    wait_for_text(&browser, "link", ", live");
    // As an event brings them: through the page's own function.
    browser.eval(&format!(
        "show({})",
        json!({"held": [[evil, evil]], "errors": [[evil, evil, evil]], "state-detail": evil})
    ));
    assert_eq!(browser.eval("document.querySelectorAll('img, main script').length"), 0);
    assert_eq!(browser.eval("document.querySelector('#held td').textContent"), evil);
    assert!(
        browser
            .eval("document.title")
            .as_str()
            .unwrap()
            .ends_with("waiting - tidegate")
    );
    assert_quiet(&browser);
}

fn with_token() -> Gateway {
    let mut config = Config::new(NOWHERE);
    config.set("admin.token", TOKEN);
    Gateway::start(&config)
}

/// Puts two letters and a place that takes questions between the page and the gateway.
fn with_letters(browser: &Browser) {
    let letters: Vec<Value> = [7, 1008]
        .into_iter()
        .map(|seq| {
            json!({
                "wal": "2fe308bb-3447-4469-9d2f-239a1183d085", "seq": seq, "topic": "orders", "key": "k", "bytes": 9,
                "code": "MessageSizeTooLarge", "reason": "<b>too large</b>", "first_failed_ms": 0, "last_failed_ms": 0,
                "state": "waiting",
            })
        })
        .collect();
    let letters = json!({"items": letters, "next": null});
    let script = format!(
        "(window.asked = [], window.fetch = async (url, options) => {{ asked.push([new URL(url).pathname, options]); \
         return Response.json(options ? {{requeued: 2}} : {letters}); }})"
    );
    browser.eval(&format!("void {script}"));
    browser.eval("void show({'letters.data-count': '2', 'letters-count': '2'})");
    wait_until("two rows", seconds(10), || {
        browser.eval("document.querySelectorAll('#letters-rows tr').length") == 2
    });
}

fn letters_are_listed_and_their_buttons_ask_for_them() {
    let gateway = with_token();
    let browser = Browser::start(&Window::default());
    browser.open(&format!("http://me:{TOKEN}@{}/", gateway.admin));
    wait_for_text(&browser, "link", ", live");
    with_letters(&browser);
    let row = browser.eval("document.querySelector('#letters-rows tr').innerText");
    let row = row.as_str().unwrap();
    for words in ["orders", "7", "<b>too large</b>", "1970-01-01 00:00:00", "Requeue"] {
        assert!(row.contains(words), "{words}: {row}");
    }
    let last_body = || {
        let asked = browser.eval("asked.findLast(([path, options]) => options)");
        let request = &asked[1];
        assert_eq!(asked[0], "/v1/dead-letters/requeue");
        assert_eq!(
            (&request["method"], &request["headers"]["content-type"]),
            (&json!("POST"), &json!(JSON))
        );
        serde_json::from_str::<Value>(request["body"].as_str().unwrap()).unwrap()
    };
    browser.click("#letters-rows tr:nth-child(2) button");
    wait_for_text(
        &browser,
        "letters-note",
        "2 requeued; a letter goes once Kafka has its record.",
    );
    let letter = json!({"wal": "2fe308bb-3447-4469-9d2f-239a1183d085", "seq": 1008});
    assert_eq!(last_body(), json!({"letters": [letter]}));
    browser.click("#requeue-all");
    wait_until("all are asked for", seconds(10), || last_body() == json!({"all": true}));
    assert_eq!(browser.text("letters-shown"), "", "they are all");
    browser.eval("void show({'letters.data-count': '3', 'letters-count': '3'})");
    wait_for_text(&browser, "letters-shown", "(the newest 2)");
    assert!(browser.text("letters-more").contains("tidegate dead-letters list"));
    assert_quiet(&browser);
}

fn a_letter_is_requeued_from_the_page() {
    let kafka = Kafka::shared();
    let topic = unique("requeued");
    kafka.create_topic(&topic, 1, &[("max.message.bytes", "20000")]);
    let mut config = Config::with(kafka);
    config.set("admin.token", TOKEN);
    let gateway = Gateway::start(&config);
    let browser = Browser::start(&Window::default());
    browser.open(&format!("http://me:{TOKEN}@{}/", gateway.admin));
    let value = json!({"x": Random::new().text(60_000)}).to_string();
    let path = format!("/v1/topics/{topic}");
    let answer = gateway.client().post(&path, JSON, value.as_bytes()).unwrap();
    assert_eq!(answer.status, 202, "{answer:?}");
    wait_for_text(&browser, "letters-count", "1");
    let rows = "document.getElementById('letters-rows').innerText";
    wait_until("its row", seconds(10), || {
        browser.eval(rows).as_str().is_some_and(|rows| rows.contains(&topic))
    });
    assert_eq!(kafka.read_topic(&topic, true).len(), 0);

    kafka.alter_topic(&topic, "max.message.bytes", "1000000");
    browser.click("#letters-rows button");
    wait_for_text(&browser, "letters-count", "0");
    let messages = kafka.read_topic(&topic, true);
    assert_eq!(messages.len(), 1);
    assert_eq!((messages[0].value.as_slice(), messages[0].seq()), (value.as_bytes(), 1));
    assert_quiet(&browser);
}

fn without_a_token_nothing_can_be_requeued_from_the_page() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let browser = Browser::start(&Window::default());
    browser.open(&page(&gateway));
    wait_for_text(&browser, "link", ", live");
    with_letters(&browser);
    let buttons = browser.eval("[...document.querySelectorAll('#letters button')].map((button) => button.disabled)");
    assert_eq!(buttons, json!([true, true, true]));
    assert!(browser.text("letters-note").contains("set admin.token"));
    assert_quiet(&browser);
}

fn needs_the_token_and_takes_it_as_a_password() {
    let gateway = with_token();
    for path in ["/", "/v1/status", "/v1/events", "/v1/events/page", "/metrics"] {
        let answer = gateway.admin(path).unwrap();
        assert_eq!(answer.status, 401, "{path}: {answer:?}");
    }
    let browser = Browser::start(&Window::default());
    browser.open(&format!("http://me:{TOKEN}@{}/", gateway.admin));
    wait_for_text(&browser, "link", ", live");
    let client = gateway.client();
    assert_eq!(
        client
            .post("/financial_pro", FORM, SEED_BODY.as_bytes())
            .unwrap()
            .status,
        200
    );
    wait_for_text(&browser, "backlog", "1");
    assert_eq!(browser.eval("document.getElementById('letters').dataset.token"), "yes");
    assert_quiet(&browser);
}

fn changes_need_a_token_and_our_own_page() {
    let change = |gateway: &Gateway, headers: &[(&str, &str)]| {
        let url = format!("http://{}/v1/no-such-verb", gateway.admin);
        let mut request = agent().post(url).header("content-type", JSON);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        answer(request.send("{}")).unwrap()
    };
    let open = Gateway::start(&Config::new(NOWHERE));
    assert_eq!(change(&open, &[]).status, 404, "the command line may ask");
    let own = format!("http://{}", open.admin);
    let refused = change(&open, &[("origin", &own)]);
    assert_eq!(refused.status, 403, "{refused:?}");
    assert!(refused.body.contains("admin.token"), "{refused:?}");

    let gateway = with_token();
    let own = format!("http://{}", gateway.admin);
    let bearer = ("authorization", &*format!("Bearer {TOKEN}"));
    assert_eq!(change(&gateway, &[("origin", &own)]).status, 401);
    assert_eq!(change(&gateway, &[bearer, ("origin", &own)]).status, 404);
    assert_eq!(
        change(&gateway, &[bearer, ("origin", "http://elsewhere.example")]).status,
        403
    );
}

fn says_when_the_gateway_is_gone_and_comes_back() {
    let mut config = Config::new(NOWHERE);
    config.set("admin.listen", format!("127.0.0.1:{}", free_port()));
    let mut gateway = Gateway::start(&config);
    post(&gateway, 2);
    let browser = Browser::start(&Window::default());
    browser.open(&page(&gateway));
    wait_for_text(&browser, "link", ", live");
    gateway.sigkill();
    wait_for_text(&browser, "link", ": the gateway does not answer; trying again");
    assert_eq!(browser.text("backlog"), "2", "the last numbers stay");
    gateway.restart();
    post(&gateway, 1);
    wait_for_text(&browser, "backlog", "3");
    wait_for_text(&browser, "link", ", live");
}

/// A stream of events by hand.
struct Events(BufReader<TcpStream>);

impl Events {
    /// Opens one; `Err` with the whole answer when it is refused.
    fn open(gateway: &Gateway, path: &str) -> Result<Self, String> {
        let mut tcp = TcpStream::connect(&gateway.admin).unwrap();
        tcp.set_read_timeout(Some(seconds(20))).unwrap();
        write!(tcp, "GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", gateway.admin).unwrap();
        let mut reader = BufReader::new(tcp);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(reader.read_line(&mut head).unwrap() > 0, "{head}");
        }
        if head.starts_with("HTTP/1.1 200 ") {
            assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
            return Ok(Self(reader));
        }
        Err(head)
    }

    /// The next event; `None` at the end of the stream.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut line = String::new();
            if self.0.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data: ") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }
}

fn two_streams_tell_the_same_and_the_seventeenth_is_refused() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let mut states = Events::open(&gateway, "/v1/events").unwrap();
    let mut pages = Events::open(&gateway, "/v1/events/page").unwrap();
    let first = pages.next().unwrap();
    assert_eq!(first["backlog"], "0", "at first all of it");
    post(&gateway, 3);
    poll("a state with 3 records", seconds(10), || {
        let state = states.next().unwrap();
        (state["wal"]["backlog_records"] == 3 && state["gateway"] == "under-test").then_some(())
    });
    let change = poll("a change to 3 records", seconds(10), || {
        let change = pages.next().unwrap();
        (change["backlog"] == "3").then_some(change)
    });
    assert!(change.get("gateway").is_none(), "then only what changed: {change}");

    let mut more: Vec<Events> = (2..16).map(|_| Events::open(&gateway, "/v1/events").unwrap()).collect();
    let refused = Events::open(&gateway, "/v1/events").err().expect("16 is the most");
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("retry-after"),
        "{refused}"
    );
    assert_eq!(gateway.admin("/livez").unwrap().status, 200);
    assert!(more.iter_mut().all(|events| events.next().is_some()));
    drop(more);
    // Whoever goes makes room.
    poll("room", seconds(20), || Events::open(&gateway, "/v1/events").ok());
}

fn streams_end_with_the_gateway() {
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    let mut events = Events::open(&gateway, "/v1/events").unwrap();
    assert!(events.next().is_some());
    assert!(gateway.sigterm(seconds(30)).success());
    while events.next().is_some() {}
    // In order: the last chunk was read, nothing was cut off.
    let mut rest = Vec::new();
    events.0.read_to_end(&mut rest).unwrap();
}

fn the_status_has_rates_times_and_errors() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    post(&gateway, 5);
    let status = poll("rates and times", seconds(20), || {
        let status = gateway.status();
        let known = status["rates"]["ingest_records_per_second"]
            .as_f64()
            .is_some_and(|rate| rate > 0.0);
        let errors = !status["recent_errors"].as_array().unwrap().is_empty();
        (known && errors).then_some(status)
    });
    assert_eq!(status["rates"]["forward_records_per_second"], 0.0);
    assert_eq!(status["drain_seconds"], Value::Null);
    let (average, max) = (&status["wal"]["commit_ms_average"], &status["wal"]["commit_ms_max"]);
    let (average, max) = (average.as_f64().unwrap(), max.as_f64().unwrap());
    assert!(0.0 < average && average <= max && max < 60_000.0, "{average} {max}");
    // Kafka is away, and the log says so.
    let line = &status["recent_errors"][0];
    assert!(["WARN", "ERROR"].contains(&line["level"].as_str().unwrap()), "{line}");
    assert!(!line["message"].as_str().unwrap().is_empty() && line["time_ms"].as_i64().unwrap() > 0);
}
