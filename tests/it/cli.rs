//! The command line: wrong configurations end before a request is accepted, with their exit code and a
//! message that says what to do; and the quick start does what it says.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::gateway::{BINARY, Config, Gateway, NOWHERE, command};
use crate::support::{poll, seconds, unshare};

cases!["cli":
    an_unknown_key_is_named_with_its_nearest [],
    values_that_make_no_sense_are_refused [],
    an_unknown_environment_key_is_refused_and_others_are_not [],
    serve_without_brokers_says_so [],
    a_protected_property_is_refused [],
    listeners_for_strangers_need_a_word [],
    a_port_in_use_is_named [],
    a_folder_that_cannot_be_made_is_named [],
    a_read_only_folder_is_named [TinyDisk],
    a_file_system_without_space_is_named [TinyDisk],
    a_folder_in_use_is_exit_4_and_the_owner_goes_on [],
    wrong_usage_is_exit_2 [],
    config_check_and_show_tell_what_is_in_force [],
    what_is_recommended_for_small_machines_is_accepted [],
    dev_delivers_what_its_curl_line_posts [Curl],
];

/// What a command that ends by itself said.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Runs `tidegate ARGUMENTS` in `folder`; it must end within seconds.
pub fn run(folder: &Path, mut command: Command, arguments: &[&str]) -> Ended {
    let file = |name: &str| fs::File::create(folder.join(name)).unwrap();
    let mut child = command
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(file("stdout"))
        .stderr(file("stderr"))
        .spawn()
        .unwrap();
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
    let started = std::time::Instant::now();
    let status = poll("the command ends", seconds(30), || {
        let status = child.try_wait().unwrap();
        if status.is_none() && started.elapsed() > seconds(20) {
            child.kill().unwrap();
        }
        status
    });
    Ended {
        code: status.code(),
        stdout: read("stdout"),
        stderr: read("stderr"),
    }
}

/// `tidegate serve` with this configuration ends with `code`, says all of `words`, and never listened.
#[track_caller]
fn assert_refused(config: &Config, code: i32, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    assert_refused_in(folder.path(), command(), config, code, words);
}

#[track_caller]
fn assert_refused_in(folder: &Path, command: Command, config: &Config, code: i32, words: &[&str]) {
    fs::write(folder.join("config.toml"), config.text()).unwrap();
    let ended = run(folder, command, &["--config", "config.toml", "serve"]);
    assert_eq!(ended.code, Some(code), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
    }
    assert!(
        !ended.stderr.contains("ingest listening"),
        "it must not have accepted anything: {ended:?}"
    );
    assert_eq!(ended.stdout, "", "messages go to stderr");
    assert!(!ended.stderr.contains("panicked"), "{ended:?}");
}

fn config() -> Config {
    Config::new(NOWHERE)
}

fn an_unknown_key_is_named_with_its_nearest() {
    assert_refused(
        config().set("http.body_byte_max", "1 MiB"),
        2,
        &["config.toml", "body_byte_max", "body_bytes_max"],
    );
    assert_refused(
        config().set("htpp.listen", "127.0.0.1:0"),
        2,
        &["config.toml", "htpp", "http"],
    );
}

fn values_that_make_no_sense_are_refused() {
    assert_refused(
        config().set("wal.bytes_max", "12 parsecs"),
        2,
        &["wal.bytes_max", "12 parsecs"],
    );
    assert_refused(
        config().set("http.body_timeout", "soon"),
        2,
        &["http.body_timeout", "soon"],
    );
    assert_refused(config().set("http.connections_max", 0), 2, &["http.connections_max"]);
    assert_refused(
        config().set("forward.delivery", "at_most_once"),
        2,
        &["forward.delivery", "idempotent"],
    );
    assert_refused(config().set("http.listen", "here"), 2, &["http.listen", "here"]);
}

fn an_unknown_environment_key_is_refused_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let with = |name: &str| {
        let mut command = command();
        command.env(name, "x");
        command
    };
    let ended = run(folder.path(), with("TIDEGATE_HTTP__LISEN"), &["config", "check"]);
    assert!(
        ended.code == Some(2) && ended.stderr.contains("TIDEGATE_HTTP__LISEN"),
        "{ended:?}"
    );
    let arguments = ["config", "check", "--bootstrap-servers", NOWHERE];
    let ended = run(folder.path(), with("TIDEGATE_WHATEVER"), &arguments);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

fn serve_without_brokers_says_so() {
    assert_refused(&Config::new(""), 2, &["kafka.bootstrap_servers"]);
    assert_checked(&Config::new(""), &["kafka.bootstrap_servers"]);
}

/// `config check` has found what `serve` ends with at its start, and has no other verdict.
#[track_caller]
fn assert_checked(config: &Config, words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), config.text()).unwrap();
    let ended = run(
        folder.path(),
        command(),
        &["--config", "config.toml", "config", "check"],
    );
    assert!(ended.code == Some(2) && ended.stdout.is_empty(), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "nothing about {word:?} in {ended:?}");
    }
}

fn a_protected_property_is_refused() {
    for name in [
        "acks",
        "enable.idempotence",
        "message.timeout.ms",
        "request.required.acks",
    ] {
        assert_refused(config().property(name, "1"), 2, &[name]);
    }
    let mut unknown = config();
    unknown.property("no.such.property", "1");
    assert_refused(&unknown, 2, &["no.such.property"]);
    assert_checked(&unknown, &["no.such.property"]);
    // A file that is not there.
    for name in ["ssl.ca.location", "ssl.certificate.location", "ssl.key.location"] {
        let mut config = config();
        config
            .property("security.protocol", "ssl")
            .property(name, "not-there.pem");
        assert_refused(&config, 2, &[name]);
        assert_checked(&config, &[name]);
    }
}

fn listeners_for_strangers_need_a_word() {
    // An address for documentation: no machine has it, so that nothing could ever listen there.
    assert_refused(
        config().set("http.listen", "192.0.2.1:4000"),
        2,
        &["192.0.2.1", "allow_anonymous"],
    );
    assert_refused(
        config().set("admin.listen", "192.0.2.1:4001"),
        2,
        &["192.0.2.1", "admin.token"],
    );
}

fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    assert_refused(config().set("http.listen", address.as_str()), 2, &[&address, "in use"]);
    assert_refused(config().set("admin.listen", address.as_str()), 2, &[&address, "in use"]);
}

fn a_folder_that_cannot_be_made_is_named() {
    // Below a regular file nobody can make a folder, root included.
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let wal = folder.path().join("file/wal");
    let wal = wal.to_str().unwrap();
    assert_refused(config().set("wal.path", wal), 2, &[wal]);
    // A file where the folder should be.
    let file = folder.path().join("file");
    let file = file.to_str().unwrap();
    assert_refused(config().set("wal.path", file), 2, &[file]);
}

/// The binary on a file system of its own, mounted at `folder`/small by `mount` (a line of shell), unseen by
/// everybody else and gone when it ends.
fn on_a_mount(folder: &Path, mount: &str) -> Command {
    fs::create_dir_all(folder.join("small")).unwrap();
    let mut command = unshare();
    command.args(["sh", "-c", &format!(r#"{mount} && exec "$0" "$@""#), BINARY]);
    command
}

fn a_read_only_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let command = on_a_mount(folder.path(), "mount -t tmpfs -o ro,size=1m none small");
    let mut config = config();
    config.set("wal.path", "small/wal");
    assert_refused_in(folder.path(), command, &config, 2, &["small/wal"]);
}

fn a_file_system_without_space_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let full = "mount -t tmpfs -o size=1m none small; head -c 2m /dev/zero >small/filler 2>/dev/null; true";
    let command = on_a_mount(folder.path(), full);
    let mut config = config();
    config.set("wal.path", "small/wal").set("wal.free_bytes_min", "0 B");
    assert_refused_in(folder.path(), command, &config, 75, &["small/wal"]);
}

fn a_folder_in_use_is_exit_4_and_the_owner_goes_on() {
    let owner = Gateway::start(&config());
    let wal = owner.wal();
    let wal = wal.to_str().unwrap();
    let pid = owner.pid().to_string();
    assert_refused(config().set("wal.path", wal), 4, &[wal, "in use", &pid]);
    let answer = owner
        .client()
        .post("/financial_pro", crate::support::FORM, b"a=1")
        .unwrap();
    assert_eq!(answer.status, 200, "the owner is not disturbed: {answer:?}");
}

fn wrong_usage_is_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["serv"][..],
        &["serve", "--no-such-flag"],
        &["--config", "not-there.toml", "serve"],
    ] {
        let ended = run(folder.path(), command(), arguments);
        assert!(
            ended.code == Some(2) && !ended.stderr.is_empty(),
            "{arguments:?}: {ended:?}"
        );
    }
    let ended = run(folder.path(), command(), &["--version"]);
    assert!(
        ended.code == Some(0) && ended.stdout.contains(env!("CARGO_PKG_VERSION")),
        "{ended:?}"
    );
}

/// The block that benches/small.rs measures.
fn what_is_recommended_for_small_machines_is_accepted() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/small.md")).unwrap();
    let block = page.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next());
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("config.toml"), block.unwrap()).unwrap();
    let arguments = ["config", "check", "--bootstrap-servers", NOWHERE];
    let ended = run(folder.path(), command(), &arguments);
    assert!(ended.code == Some(0) && ended.stdout.ends_with("ok\n"), "{ended:?}");
}

fn config_check_and_show_tell_what_is_in_force() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config();
    config
        .set("admin.token", "a-secret-of-the-admin")
        .property("sasl.password", "a-secret-of-kafka");
    fs::write(folder.path().join("config.toml"), config.text()).unwrap();
    let arguments = ["--config", "config.toml", "config"];
    let ended = run(folder.path(), command(), &[&arguments[..], &["check"]].concat());
    assert!(
        ended.code == Some(0) && ended.stdout.ends_with("\nok\n") && ended.stderr.is_empty(),
        "{ended:?}"
    );
    let mut from_environment = command();
    from_environment.env("TIDEGATE_WAL__BYTES_MAX", "5 GiB");
    let ended = run(folder.path(), from_environment, &[&arguments[..], &["show"]].concat());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for word in ["5 GiB", "TIDEGATE_WAL__BYTES_MAX", "config.toml", "financial_pro"] {
        assert!(ended.stdout.contains(word), "nothing about {word}: {ended:?}");
    }
    assert!(!ended.stdout.contains("a-secret"), "{ended:?}");
    config.set("wal.no_such_key", 1);
    fs::write(folder.path().join("config.toml"), config.text()).unwrap();
    let ended = run(folder.path(), command(), &[&arguments[..], &["check"]].concat());
    assert!(
        ended.code == Some(2) && ended.stderr.contains("no_such_key"),
        "{ended:?}"
    );
}

fn dev_delivers_what_its_curl_line_posts() {
    let folder = tempfile::tempdir().unwrap();
    // The second time, a database is there that knows another broker.
    for _ in 0..2 {
        dev_delivers(folder.path());
    }
}

fn dev_delivers(folder: &Path) {
    let output = folder.join("output");
    let file = fs::File::create(&output).unwrap();
    let child = command()
        .arg("dev")
        .current_dir(folder)
        .env("TIDEGATE_HTTP__LISTEN", "127.0.0.1:0")
        .env("TIDEGATE_ADMIN__LISTEN", "127.0.0.1:0")
        .env("TIDEGATE_LAND__LISTEN", "127.0.0.1:0")
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    let mut child = crate::support::gateway::Killed(child);
    let said = || fs::read_to_string(&output).unwrap_or_default();
    let curl = poll("dev prints a curl line", seconds(60), || {
        assert!(child.0.try_wait().unwrap().is_none(), "dev ended: {}", said());
        said()
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with("curl "))
            .map(str::to_owned)
    });
    let before = said().len();
    let curled = Command::new("sh").args(["-c", &curl]).output().unwrap();
    assert!(curled.status.success(), "{curl}: {curled:?}");
    assert_eq!(String::from_utf8_lossy(&curled.stdout).trim(), "OK", "{curl}");
    poll("the delivery is printed", seconds(30), || {
        let said = said();
        let delivered = said
            .get(before..)?
            .lines()
            .find(|line| line.starts_with("delivered "))?
            .to_owned();
        assert!(
            delivered.contains("topic=financial_pro") && delivered.contains(r#"{"test01":"111""#),
            "{delivered}"
        );
        Some(())
    });
    let said_now = said();
    let address = |line: &str| {
        let line = said_now.lines().find(|found| found.contains(line)).unwrap();
        line.rsplit_once("addr=").unwrap().1.to_owned()
    };
    let (admin, lander) = (address("admin listening"), address("lander listening"));
    assert!(
        said_now.contains(&format!("status page   http://{admin}/\n")),
        "{said_now}"
    );
    poll("it is landed", seconds(30), || {
        let question = ["status", "--json", "--admin", &admin, "--lander", &lander];
        run(folder, command(), &question)
            .stdout
            .contains(r#""valid":1,"#)
            .then_some(())
    });
    assert!(!said().contains(" WARN "), "{}", said());
}
