//! `wal verify`, `list` and `salvage` on folders that are in use, no folders, or not theirs; salvages that are
//! interrupted, doubled, or have no room.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::frames::Log;
use super::source::{Source, copy, snapshot, text, tidegate};
use crate::faults::shim::Plan;
use crate::support::evidence::Evidence;
use crate::support::gateway::{BINARY, Config, Gateway, NOWHERE, command};
use crate::support::{FORM, Random, is_root, seconds, soak, unshare, wait_until};

cases!["damage_folder":
    an_interrupted_salvage_begins_anew [],
    of_two_salvages_to_one_target_one_says_so [],
    targets_that_cannot_be_are_refused [],
    a_salvage_without_room_leaves_nothing [TinyDisk],
    a_folder_in_use_is_exit_4_and_its_gateway_goes_on [],
    two_verifies_at_once_are_fine [],
    what_is_no_wal_is_exit_2 [],
    a_newer_version_is_exit_2_and_untouched [],
    a_folder_of_another_user_is_named [Alone],
    a_gateway_starts_while_it_is_verified [],
    what_no_reader_comes_across_is_told [Kafka],
    a_tail_goes_back_over_what_holds_nothing [],
];

/// `tidegate wal VERB --wal FOLDER MORE` ends with `code` and says all of `words`.
#[track_caller]
fn ends(arguments: &[&str], code: i32, words: &[&str]) -> String {
    let output = tidegate(&[&["wal"], arguments].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "nothing about {word:?}: {stderr}");
    }
    stderr
}

fn start(source: &Path, target: &Path, environment: &[(&'static str, String)]) -> Child {
    let salvage = ["wal", "salvage", "--wal", text(source), "--to", text(target)];
    let mut command = command();
    command.args(salvage).stdout(Stdio::null()).stderr(Stdio::piped());
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command.spawn().unwrap()
}

/// Everything that is in `of` is in `target`, and nothing lies beside it.
#[track_caller]
fn assert_salvaged(target: &Path, of: &Path) {
    let (saved, source) = (Log::read(target, "main").unwrap(), Log::read(of, "main").unwrap());
    assert!(saved.whole() == source.whole());
    assert!(!target.with_extension("salvaging").exists());
    ends(&["verify", "--wal", text(target)], 0, &["no damage"]);
}

fn an_interrupted_salvage_begins_anew() {
    let mut random = Random::new();
    let source = Source::killed(&mut random, 1_000);
    let folder = tempfile::tempdir().unwrap();
    let before = snapshot(&source.wal());
    let (mut halfway, mut kills) = (0, 0);
    let counter = folder.path().join("count");
    // Killed before the n-th call that changes something below the new folder.
    let plan = |at| Plan {
        does: "kill",
        at,
        count: Some(counter.clone()),
        ..Plan::new(folder.path())
    };
    let whole = folder.path().join("whole");
    start(&source.wal(), &whole, &plan(None).environment()).wait().unwrap();
    let total = u64::from_le_bytes(fs::read(&counter).unwrap().try_into().unwrap());
    for n in 0..if soak() { total } else { 15 } {
        let target = folder.path().join(format!("new-{n}"));
        for time in 0..3 {
            let at = if soak() && time == 0 {
                n + 1
            } else {
                random.within(1, total + 1)
            };
            let mut child = start(&source.wal(), &target, &plan(Some(at)).environment());
            kills += u64::from(!child.wait().unwrap().success());
            halfway += usize::from(target.with_extension("salvaging").join("lock").exists());
            if target.exists() {
                break;
            }
        }
        match target.exists() {
            true => ends(
                &["salvage", "--wal", text(&source.wal()), "--to", text(&target)],
                2,
                &["not empty"],
            ),
            false => ends(
                &["salvage", "--wal", text(&source.wal()), "--to", text(&target)],
                0,
                &["has everything"],
            ),
        };
        assert_salvaged(&target, &source.wal());
    }
    assert!(halfway > 0, "seed {}: some were halfway", random.seed());
    assert_eq!(snapshot(&source.wal()), before);
    let evidence = Evidence {
        injected: kills,
        answered: source.entries["main"].len() as u64,
        ..Evidence::default()
    };
    evidence.print("a salvage killed at a call of its own, and begun anew");
}

fn of_two_salvages_to_one_target_one_says_so() {
    let source = Source::killed(&mut Random::new(), 400);
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("new");
    // One that is at work.
    let work = folder.path().join("new.salvaging");
    fs::create_dir(&work).unwrap();
    let lock = File::create(work.join("lock")).unwrap();
    lock.lock().unwrap();
    let salvage = ["salvage", "--wal", text(&source.wal()), "--to", text(&target)].map(str::to_owned);
    let salvage: Vec<&str> = salvage.iter().map(String::as_str).collect();
    ends(&salvage, 75, &["another salvage", text(&target)]);
    assert!(!target.exists() && work.exists());
    drop(lock);

    for _ in 0..if soak() { 100 } else { 5 } {
        let both = [start(&source.wal(), &target, &[]), start(&source.wal(), &target, &[])];
        let ended = both.map(|child| child.wait_with_output().unwrap());
        let mut codes = ended.each_ref().map(|output| output.status.code().unwrap());
        codes.sort_unstable();
        assert!(codes[0] == 0 && [2, 75].contains(&codes[1]), "{ended:?}");
        let loser = ended.iter().find(|output| !output.status.success()).unwrap();
        let said = String::from_utf8_lossy(&loser.stderr);
        assert!(said.contains("another salvage") || said.contains("not empty"), "{said}");
        assert_salvaged(&target, &source.wal());
        fs::remove_dir_all(&target).unwrap();
    }
}

fn targets_that_cannot_be_are_refused() {
    let source = Source::killed(&mut Random::new(), 400);
    let wal = source.wal();
    let folder = tempfile::tempdir().unwrap();
    let before = snapshot(&wal);
    fs::create_dir(folder.path().join("full")).unwrap();
    fs::write(folder.path().join("full/file"), "x").unwrap();
    std::os::unix::fs::symlink(&wal, folder.path().join("link")).unwrap();
    let there = snapshot(folder.path());
    let to = |target: &Path, words: &[&str]| {
        ends(&["salvage", "--wal", text(&wal), "--to", text(target)], 2, words);
        assert_eq!(snapshot(&wal), before, "{}", target.display());
        assert_eq!(snapshot(folder.path()), there, "{}", target.display());
    };
    to(&folder.path().join("full"), &["not empty", "full"]);
    to(&folder.path().join("full/file"), &["full/file"]);
    to(&folder.path().join("full/file/below"), &["full/file"]);
    to(&wal, &["not empty"]);
    to(&wal.join("new"), &["lies in the folder"]);
    to(&wal.join("not/yet/there"), &["lies in the folder"]);
    to(&folder.path().join("link/new"), &["lies in the folder"]);
    // An empty one is as good as none.
    let target = folder.path().join("empty");
    fs::create_dir(&target).unwrap();
    ends(
        &["salvage", "--wal", text(&wal), "--to", text(&target)],
        0,
        &["has everything"],
    );
    assert_salvaged(&target, &wal);
}

fn a_salvage_without_room_leaves_nothing() {
    let source = Source::killed(&mut Random::new(), 1_000);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("small")).unwrap();
    let script = r#"mount -t tmpfs -o size=128k none small || exit 9
        "$0" wal salvage --wal "$1" --to small/new; code=$?
        ls -A small; exit $code"#;
    let mut command = unshare();
    let output = command
        .args(["sh", "-c", script, BINARY, text(&source.wal())])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert_eq!(output.stdout, b"", "nothing is left of it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("No space left") && said.contains("Nothing was put in place"),
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
}

fn a_folder_in_use_is_exit_4_and_its_gateway_goes_on() {
    let gateway = Gateway::start(&Config::new(NOWHERE));
    let post = || {
        let answer = gateway.client().post("/financial_pro", FORM, b"a=1").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    };
    post();
    let wal = gateway.wal();
    let target = wal.with_file_name("new");
    let pid = gateway.pid().to_string();
    let words = ["in use", &pid, "without --wal", "--admin URL"];
    ends(&["verify", "--wal", text(&wal)], 4, &words);
    ends(&["list", "--wal", text(&wal)], 4, &words);
    ends(&["show", "1", "--wal", text(&wal)], 4, &words);
    ends(&["salvage", "--wal", text(&wal), "--to", text(&target)], 4, &words);
    assert!(!target.exists() && !target.with_extension("salvaging").exists());
    post();
    // As the message says.
    let admin = format!("http://{}", gateway.admin);
    ends(&["verify", "--admin", &admin], 0, &[]);
    post();
}

fn two_verifies_at_once_are_fine() {
    let source = Source::killed(&mut Random::new(), 400);
    let before = snapshot(&source.wal());
    for _ in 0..5 {
        let both = [(); 2].map(|()| {
            let mut command = command();
            command.args(["wal", "verify", "--json", "--wal", text(&source.wal())]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        });
        let [one, other] = both.map(|child| child.wait_with_output().unwrap());
        assert!(one.status.success() && other.status.success(), "{one:?} {other:?}");
        assert_eq!(one.stdout, other.stdout);
    }
    assert_eq!(snapshot(&source.wal()), before);
}

fn what_is_no_wal_is_exit_2() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir_all(path("other/held")).unwrap();
    fs::write(path("other/report.txt"), "x").unwrap();
    fs::write(path("file"), "x").unwrap();
    let before = snapshot(folder.path());
    for name in ["empty", "other", "file", "missing", "file/below"] {
        let wal = path(name);
        let target = path("new");
        for arguments in [
            &["verify", "--wal", text(&wal)][..],
            &["list", "--wal", text(&wal)],
            &["salvage", "--wal", text(&wal), "--to", text(&target)],
        ] {
            ends(arguments, 2, &[text(&wal)]);
            assert_eq!(snapshot(folder.path()), before, "{arguments:?}");
        }
    }
}

fn a_newer_version_is_exit_2_and_untouched() {
    let source = Source::killed(&mut Random::new(), 400);
    let folder = tempfile::tempdir().unwrap();
    let (wal, target) = (folder.path().join("wal"), folder.path().join("new"));
    copy(&source.wal(), &wal);
    fs::write(
        wal.join("identity"),
        format!("tidegate-wal 2\n{}\nand more\n", source.id),
    )
    .unwrap();
    let before = snapshot(folder.path());
    for arguments in [
        &["verify", "--wal", text(&wal)][..],
        &["list", "--wal", text(&wal)],
        &["salvage", "--wal", text(&wal), "--to", text(&target)],
        &[
            "salvage",
            "--wal",
            text(&wal),
            "--to",
            text(&target),
            "--identity",
            &source.id,
        ],
    ] {
        ends(arguments, 2, &["tidegate-wal 2", "nothing was changed"]);
        assert_eq!(snapshot(folder.path()), before, "{arguments:?}");
    }
}

fn a_folder_of_another_user_is_named() {
    let source = Source::killed(&mut Random::new(), 400);
    let folder = tempfile::tempdir().unwrap();
    let (wal, binary) = (folder.path().join("wal"), folder.path().join("tidegate"));
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    copy(&source.wal(), &wal);
    fs::copy(BINARY, &binary).unwrap();
    // root may read everything: another user must ask.
    let mut command = match is_root() {
        true => Command::new("setpriv"),
        false => Command::new("env"),
    };
    match is_root() {
        true => drop(command.args(["--reuid=65534", "--regid=65534", "--clear-groups"])),
        false => fs::set_permissions(&wal, Permissions::from_mode(0o000)).unwrap(),
    }
    let output = command
        .arg(&binary)
        .args(["wal", "verify", "--wal", text(&wal)])
        .output()
        .unwrap();
    fs::set_permissions(&wal, Permissions::from_mode(0o700)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(
        said.contains(text(&wal)) && said.contains("Permission denied"),
        "{said}"
    );
    assert!(output.stdout.is_empty() && !said.contains("panicked"), "{output:?}");
}

fn a_gateway_starts_while_it_is_verified() {
    let mut gateway = Gateway::start(&Config::new(NOWHERE));
    let answer = gateway.client().post("/financial_pro", FORM, b"a=1").unwrap();
    assert_eq!(answer.status, 200);
    gateway.sigkill();
    let wal = gateway.wal();
    let stop = Arc::new(AtomicBool::new(false));
    let verifiers: Vec<_> = (0..2)
        .map(|_| {
            let (wal, stop) = (wal.clone(), Arc::clone(&stop));
            thread::spawn(move || {
                let mut codes = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let output = tidegate(&["wal", "verify", "--wal", text(&wal)]);
                    codes.push(output.status.code().unwrap());
                    assert!([0, 4].contains(&codes[codes.len() - 1]), "{output:?}");
                }
                codes
            })
        })
        .collect();
    for _ in 0..if soak() { 100 } else { 5 } {
        gateway.restart();
        wait_until("it accepts", seconds(10), || {
            let answer = gateway.client().post("/financial_pro", FORM, b"a=1");
            answer.is_ok_and(|answer| answer.status == 200)
        });
        gateway.sigkill();
    }
    stop.store(true, Ordering::Relaxed);
    let codes: Vec<i32> = verifiers
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    assert!(
        codes.contains(&0) && codes.contains(&4),
        "before, between and during: {codes:?}"
    );
}

/// Where a whole log is gone, or what says how far one had come, all that is read is right, and not all that there was.
fn what_no_reader_comes_across_is_told() {
    let source = Source::partly_acknowledged(&mut Random::new());
    let folder = tempfile::tempdir().unwrap();
    let without = |part: &str| {
        let wal = folder.path().join(part);
        source.copy_to(&wal);
        let gone = wal.join(part);
        match gone.is_dir() {
            true => fs::remove_dir_all(gone).unwrap(),
            false => fs::remove_file(gone).unwrap(),
        }
        wal
    };
    let told = |arguments: &[&str], words: &str| {
        let output = tidegate(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {stderr}");
        assert!(
            stderr.contains("this may not be all") && stderr.contains(words),
            "{stderr}"
        );
        assert!(
            !stderr.contains("nothing is held") && !stderr.contains("there are no dead"),
            "{stderr}"
        );
    };
    let wal = without("held");
    told(&["held", "list", "--wal", text(&wal)], "'held' was made and is gone");
    told(
        &["held", "list", "--records", "--wal", text(&wal)],
        "'held' was made and is gone",
    );
    let wal = without("dead-letters");
    for verb in ["list", "export"] {
        told(
            &["dead-letters", verb, "--wal", text(&wal)],
            "'dead-letters' was made and is gone",
        );
    }
    let wal = without("witness");
    told(&["wal", "export", "--wal", text(&wal)], "the witness is missing");
    told(
        &["wal", "replay", "--dry-run", "--all", "--wal", text(&wal)],
        "the witness is missing",
    );
}

/// A salvage passes over a million sequences where nobody knows how far the log had come.
fn a_tail_goes_back_over_what_holds_nothing() {
    let source = Source::killed(&mut Random::new(), 400);
    let folder = tempfile::tempdir().unwrap();
    let (copy, saved) = (folder.path().join("copy"), folder.path().join("saved"));
    source.copy_to(&copy);
    fs::remove_file(copy.join("witness")).unwrap();
    ends(
        &["salvage", "--wal", text(&copy), "--to", text(&saved)],
        3,
        &["has everything else"],
    );
    let lines = |arguments: &[&str]| {
        let output = tidegate(&[&["wal"], arguments, &["--json", "--wal", text(&saved)]].concat());
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let all = lines(&["list", "--limit", "0"]);
    for count in [1, 7, 10_000] {
        let last = &all[all.len().saturating_sub(count)..];
        assert_eq!(lines(&["tail", "-n", &count.to_string()]), last, "{count}");
    }
}
