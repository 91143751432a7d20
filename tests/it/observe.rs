//! What Prometheus and Grafana are given: rules, alerts and dashboards, on a real Prometheus that watches real gateways and a
//! lander through an outage of Kafka and the death of a gateway.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tidegate::metrics::{self, ALL, Kind, Process};

use crate::support::certificates::Authority;
use crate::support::client::{agent, answer};
use crate::support::gateway::{Config, Gateway};
use crate::support::kafka::Kafka;
use crate::support::lander::{self, Lander};
use crate::support::prometheus::{Prometheus, copy_with, promtool};
use crate::support::{FORM, SEED_BODY, free_port, python, seconds, wait_until};

cases!["observe":
    promtool_finds_nothing_and_the_rules_pass_their_tests [Prometheus],
    every_name_in_docs_rules_and_dashboards_is_a_metric_and_each_metric_is_used [],
    alerts_say_what_to_do_and_link_a_page [],
    dashboards_are_what_their_script_makes_and_each_panel_says_what_to_do [Python],
    a_real_prometheus_sees_an_outage_and_its_end [OwnKafka, Prometheus],
];

/// Metrics that neither a dashboard nor a rule has, with the reason.
const NOT_SHOWN: &[(&str, &str)] = &[
    (
        metrics::WAL_NEXT_SEQUENCE,
        "one above the committed one, but for an instant",
    ),
    (
        metrics::PROCESS_VIRTUAL_MEMORY_BYTES,
        "says nothing of a process that maps files",
    ),
    (metrics::PROCESS_VIRTUAL_MEMORY_MAX_BYTES, "mostly no limit"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn dashboards() -> Vec<(PathBuf, Value)> {
    let folder = fs::read_dir(root().join("grafana/dashboards")).unwrap();
    let paths = folder.map(|entry| entry.unwrap().path());
    let parsed = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, serde_json::from_str(&text).unwrap())
    };
    paths.map(parsed).collect()
}

/// The panels of a dashboard that show something.
fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row")
}

fn title(panel: &Value) -> &str {
    panel["title"].as_str().unwrap()
}

fn expressions(panel: &Value) -> impl Iterator<Item = &str> {
    let targets = panel["targets"].as_array().unwrap().iter();
    targets.map(|target| target["expr"].as_str().unwrap())
}

/// A rule: its name, and its expression on one line.
#[derive(Debug)]
struct Rule {
    name: String,
    expression: String,
    text: String,
}

/// The rules of a file: those that are named by `key` (`record` or `alert`).
fn rules(path: &str, key: &str) -> Vec<Rule> {
    let text = read(path);
    let mark = format!("- {key}: ");
    let each = text.split(&mark).skip(1).map(|text| {
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let at = lines.iter().position(|line| line.starts_with("expr:")).unwrap();
        let own = lines[at].trim_start_matches("expr:").trim_start_matches(" |");
        // A block of several lines ends where the next key or rule begins.
        let is_next =
            |line: &&&str| !line.is_empty() && !["for:", "labels:", "#"].iter().any(|key| line.starts_with(key));
        let more = lines[at + 1..].iter().take_while(is_next).copied();
        Rule {
            name: lines[0].to_owned(),
            expression: [own].into_iter().chain(more).collect::<Vec<_>>().join(" "),
            text: text.to_owned(),
        }
    });
    each.collect()
}

const RULES: &str = "deploy/prometheus/tidegate.rules.yml";
const ALERTS: &str = "deploy/prometheus/tidegate.alerts.yml";

fn promtool_finds_nothing_and_the_rules_pass_their_tests() {
    let folder = root().join("deploy/prometheus");
    let said = promtool(
        &folder,
        &["check", "rules", "tidegate.rules.yml", "tidegate.alerts.yml"],
        "",
    );
    assert_eq!(said.matches("SUCCESS").count(), 2, "{said}");
    promtool(&folder, &["check", "config", "--syntax-only", "prometheus.yml"], "");
    promtool(&folder, &["test", "rules", "tests/rules.yml", "tests/alerts.yml"], "");
    // Each alert has a test in which it fires.
    let tests = read("deploy/prometheus/tests/alerts.yml");
    for rule in rules(ALERTS, "alert") {
        let fires = format!("alertname=\"{}\"", rule.name);
        assert!(tests.contains(&fires), "no test shows that {} fires", rule.name);
    }
}

/// The words of a text that could be names: of metrics, and of recorded rules, which have colons.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || matches!(letter, '_' | ':')));
    words
        .map(|word| word.trim_end_matches(':'))
        .filter(|word| {
            ["tidegate_", "process_", "instance:", "fleet:"]
                .iter()
                .any(|start| word.starts_with(start))
        })
        .collect()
}

/// The metric that a series belongs to.
fn metric_of(name: &str) -> Option<&'static str> {
    let known = |name: &str| ALL.iter().find(|metric| metric.name == name);
    let of_histogram = || {
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end))?;
        known(base).filter(|metric| metric.kind == Kind::Histogram)
    };
    known(name).or_else(of_histogram).map(|metric| metric.name)
}

fn every_name_in_docs_rules_and_dashboards_is_a_metric_and_each_metric_is_used() {
    let recorded: BTreeSet<String> = rules(RULES, "record").into_iter().map(|rule| rule.name).collect();
    assert!(recorded.len() > 10, "{recorded:?}");
    let (mut used, mut asked, mut strangers) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    let mut look = |place: &str, text: &str, counts: bool| {
        for name in names(text) {
            match metric_of(name) {
                Some(metric) if counts => drop(used.insert(metric)),
                Some(_) => {}
                None if recorded.contains(name) => drop(asked.insert(name.to_owned())),
                None => strangers.push(format!("{place}: {name}")),
            }
        }
    };
    for (path, dashboard) in &dashboards() {
        let place = path.display().to_string();
        for panel in panels(dashboard) {
            expressions(panel).for_each(|expression| look(&place, expression, true));
            look(&place, panel["description"].as_str().unwrap(), false);
        }
        for variable in dashboard["templating"]["list"].as_array().unwrap() {
            look(&place, variable["definition"].as_str().unwrap_or_default(), false);
        }
    }
    for (path, key) in [(RULES, "record"), (ALERTS, "alert")] {
        rules(path, key)
            .iter()
            .for_each(|rule| look(path, &rule.expression, true));
        look(path, &read(path), false);
    }
    for path in [
        "README.md",
        "docs/http.md",
        "docs/operate.md",
        "docs/scale.md",
        "docs/metrics.md",
        "docs/ARCHITECTURE.md",
        "docs/runbook/README.md",
    ] {
        look(path, &read(path), false);
    }
    for page in fs::read_dir(root().join("docs/runbook")).unwrap() {
        let path = page.unwrap().path();
        look(&path.display().to_string(), &fs::read_to_string(&path).unwrap(), false);
    }
    assert!(
        strangers.is_empty(),
        "these are neither metrics nor recorded:\n{}",
        strangers.join("\n")
    );
    let unasked: Vec<_> = recorded.difference(&asked).collect();
    assert!(unasked.is_empty(), "recorded, and asked by nobody: {unasked:?}");
    let all: BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
    let not_shown: BTreeSet<&str> = NOT_SHOWN.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        all.difference(&used).copied().collect::<BTreeSet<_>>(),
        not_shown,
        "unused, or used after all"
    );
    let documented = read("docs/metrics.md");
    let missing: Vec<_> = all
        .iter()
        .filter(|name| !documented.contains(&format!("| `{name}` ")))
        .collect();
    assert!(missing.is_empty(), "not in docs/metrics.md: {missing:?}");
}

fn alerts_say_what_to_do_and_link_a_page() {
    let index = read("docs/runbook/README.md");
    let alerts = rules(ALERTS, "alert");
    assert!((15..=25).contains(&alerts.len()), "few, and all that are needed");
    for Rule { name, text, .. } in &alerts {
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(text.contains(part), "{name} has no {part}");
        }
        let page = text
            .split("runbook_url: ")
            .nth(1)
            .and_then(|rest| rest.split_whitespace().next());
        let page = page.unwrap_or_else(|| panic!("{name} has no page"));
        assert!(root().join(page).exists(), "{name}: {page} is not there");
        let file = page.trim_start_matches("docs/runbook/");
        let row = index.lines().find(|line| line.contains(&format!("{name}`")));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the index"));
        assert!(row.contains(file), "the index sends {name} elsewhere: {row}");
        let told = read(page);
        assert!(told.contains(name.as_str()), "{page} does not name {name}");
    }
}

fn dashboards_are_what_their_script_makes_and_each_panel_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let made = Command::new(python())
        .arg(root().join("grafana/make.py"))
        .arg(folder.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let all = dashboards();
    assert_eq!(all.len(), 2);
    for (path, dashboard) in all {
        let made = fs::read_to_string(folder.path().join(path.file_name().unwrap())).unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert!(
            made == kept,
            "{}: run grafana/make.py and commit what it writes",
            path.display()
        );
        assert!(panels(&dashboard).count() > 20);
        for panel in panels(&dashboard) {
            let (name, says) = (title(panel), panel["description"].as_str().unwrap());
            assert!(says.len() > 15, "{name} says nothing");
            if let Some(pages) = says.split_once("unbook ").or(says.split_once("unbooks ")) {
                let page = pages.1.split([',', '.', ' ', ':']).next().unwrap();
                assert!(
                    root().join(format!("docs/runbook/{page}.md")).exists(),
                    "{name}: {page}"
                );
            }
            assert!(
                panel["fieldConfig"]["defaults"]["unit"].is_string(),
                "{name} has no unit"
            );
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}");
            assert!(expressions(panel).count() > 0, "{name}");
        }
    }
}

/// An expression as Grafana would send it with all of everything chosen.
fn filled_in(expression: &str) -> String {
    let mut text = expression.replace("$__rate_interval", "10s");
    for variable in ["$site", "$instance", "$lander"] {
        text = text.replace(variable, ".*");
    }
    assert!(!text.contains('$'), "{text}");
    text
}

/// The configuration that is shipped, at the pace of a test: scraped each second, and no alert waits.
fn configured(targets: &[(&str, &str, &str, &str)]) -> tempfile::TempDir {
    let (folder, shipped) = (tempfile::tempdir().unwrap(), root().join("deploy/prometheus"));
    let to = |name: &str| folder.path().join(name);
    let pace = [
        ("scrape_interval: 15s", "scrape_interval: 1s"),
        ("evaluation_interval: 15s", "evaluation_interval: 1s"),
    ];
    copy_with(&shipped.join("prometheus.yml"), &to("prometheus.yml"), &pace);
    copy_with(&root().join(RULES), &to("tidegate.rules.yml"), &[]);
    let waits = ["2m", "5m", "10m", "15m", "1h"].map(|wait| format!("        for: {wait}\n"));
    let mut shorter: Vec<(&str, &str)> = waits.iter().map(|wait| (wait.as_str(), "")).collect();
    // The one range that is itself a wait, for Kafka.
    shorter.push(("(tidegate_forward_broker_up[30m])", "(tidegate_forward_broker_up[5s])"));
    copy_with(&root().join(ALERTS), &to("tidegate.alerts.yml"), &shorter);
    fs::create_dir(to("targets")).unwrap();
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    for (file, address, site, instance) in targets {
        let target = format!("- targets: [\"{address}\"]\n  labels: {{ site: {site}, instance: {instance} }}\n");
        files.entry(*file).or_default().push_str(&target);
    }
    for (file, text) in files {
        fs::write(to("targets").join(file), text).unwrap();
    }
    folder
}

/// Posts form after form until the flag is up.
fn post_until(gateway: &Gateway, done: &AtomicBool) {
    let client = gateway.client();
    while !done.load(Ordering::Relaxed) {
        let answer = client.post("/trip_pro", FORM, SEED_BODY.as_bytes()).unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

fn a_real_prometheus_sees_an_outage_and_its_end() {
    let kafka = Kafka::private();
    kafka.create_topic("trips", 2, &[]);
    let database = tempfile::tempdir().unwrap();
    let mut config = Config::with(&kafka);
    config
        .landed("trip_pro", "trips", &[("field_count", 4.into())])
        .set("land.path", database.path().join("landed.db").to_str().unwrap())
        // Less than the file system has left: what others write to it is no matter of this log.
        .set("wal.bytes_max", "8 GiB");
    lander::settings(&mut config);
    let gateway = Gateway::start(&config);
    let lander = Lander::start(&config);
    // A second one, with TLS: only there is a certificate. Its end is two days away, which is an alert.
    let files = tempfile::tempdir().unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|name| files.path().join(name));
    let (its_certificate, its_key) = Authority::new("ca").issue("127.0.0.1");
    fs::write(&certificate, its_certificate).unwrap();
    fs::write(&key, its_key).unwrap();
    let mut config = Config::with(&kafka);
    config
        .set("http.tls_certificate_file", certificate.to_str().unwrap())
        .set("http.tls_key_file", key.to_str().unwrap())
        // It dies and comes back under the same address.
        .set("admin.listen", format!("127.0.0.1:{}", free_port()))
        .set("wal.bytes_max", "8 GiB");
    let mut other = Gateway::start(&config);

    for (admin, process) in [(&gateway.admin, Process::Gateway), (&lander.admin, Process::Lander)] {
        let url = format!("http://{admin}/metrics");
        let scrape = answer(agent().get(url).call()).unwrap();
        let said = promtool(root(), &["check", "metrics"], &scrape.body);
        assert_eq!(said, "", "of {process:?}");
    }

    let prometheus = Prometheus::start(configured(&[
        ("gateways.yml", &gateway.admin, "zurich", "edge-7"),
        ("gateways.yml", &other.admin, "basel", "edge-8"),
        ("landers.yml", &lander.admin, "zurich", "land-1"),
    ]));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| post_until(&gateway, &done));
        watch(&prometheus, &kafka, &gateway, &mut other, &lander);
        done.store(true, Ordering::Relaxed);
    });
    gateway.wait_drained(seconds(30));
}

/// The certificate of the second gateway.
const ALWAYS: [&str; 2] = [
    "TidegateCertificateExpired page edge-8",
    "TidegateCertificateExpires warning edge-8",
];

fn watch(prometheus: &Prometheus, kafka: &Kafka, gateway: &Gateway, other: &mut Gateway, lander: &Lander) {
    wait_until("records are landed", seconds(60), || {
        lander.metric("tidegate_land_records_total") > 0.0
    });
    alerts(prometheus, "all is well", &[&ALWAYS]);

    kafka.stop();
    let in_outage = [
        "TidegateKafkaUnreachable warning edge-7",
        "TidegateKafkaUnreachable warning edge-8",
        "TidegateLanderAway warning land-1",
    ];
    alerts(prometheus, "Kafka is away", &[&ALWAYS[..], &in_outage]);
    other.sigkill();
    let with_a_death = [
        "TidegateKafkaUnreachable warning edge-7",
        "TidegateLanderAway warning land-1",
        "TidegateGatewayDown page edge-8",
    ];
    alerts(prometheus, "a gateway is down", &[&with_a_death]);
    assert!(
        gateway.metric("tidegate_wal_backlog_records") > 0.0,
        "senders notice nothing"
    );
    // Some panels show something only while something is wrong.
    let mut empty = asked();
    empty.retain(|(_, expression)| has_no_answer(prometheus, expression));

    other.restart();
    kafka.start();
    alerts(prometheus, "all is well again", &[&ALWAYS]);
    let started = Instant::now();
    while !empty.is_empty() {
        assert!(started.elapsed() < seconds(30), "no data at any time: {empty:#?}");
        thread::sleep(Duration::from_millis(200));
        empty.retain(|(_, expression)| has_no_answer(prometheus, expression));
    }
    assert_eq!(prometheus.sick_rules(), Vec::<String>::new());
    for rule in rules(ALERTS, "alert") {
        for metric in names(&rule.expression) {
            let has = prometheus.query(&format!("count({metric})"));
            assert!(
                !has.is_empty(),
                "{} asks for {metric}, of which there is nothing",
                rule.name
            );
        }
    }
}

/// Waits until just these alerts fire.
#[track_caller]
fn alerts(prometheus: &Prometheus, what: &str, expected: &[&[&str]]) {
    let expected: BTreeSet<String> = expected.concat().into_iter().map(str::to_owned).collect();
    let started = Instant::now();
    loop {
        let mut firing: BTreeSet<String> = prometheus.firing().into_iter().collect();
        // How fast the disk is under these tests is not the matter here.
        firing.retain(|alert| !alert.starts_with("TidegateCommitSlow "));
        if firing == expected {
            return;
        }
        assert!(
            started.elapsed() < seconds(60),
            "{what}: expected {expected:?}, and there are {firing:?}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

/// Every expression of a panel or a recording rule, with where it is.
fn asked() -> Vec<(String, String)> {
    let mut all: Vec<(String, String)> = Vec::new();
    for (_, dashboard) in dashboards() {
        for panel in panels(&dashboard) {
            let place = format!("{}, {}", title(&dashboard), title(panel));
            all.extend(expressions(panel).map(|expression| (place.clone(), filled_in(expression))));
        }
    }
    all.extend(
        rules(RULES, "record")
            .into_iter()
            .map(|rule| (rule.name.clone(), rule.name)),
    );
    assert!(all.len() > 100, "{}", all.len());
    all
}

fn has_no_answer(prometheus: &Prometheus, expression: &str) -> bool {
    prometheus.query(expression).iter().all(|sample| sample.value.is_nan())
}
