//! What the benchmarks share: alternating runs side by side in one process, the table, and the goals.

// A benchmark uses some of it.
#[allow(dead_code)]
pub mod closed;
#[allow(dead_code)]
pub mod log;
#[allow(dead_code)]
pub mod open;
#[allow(dead_code)]
pub mod server;

use std::collections::BTreeMap;

/// One line of a table: what was run, and its figures in the order of the runs.
pub struct Row {
    pub name: String,
    pub figures: Vec<f64>,
}

/// Says what was measured where.
pub fn print_machine() {
    print_machine_for(runs());
}

/// As [`print_machine`], for another number of runs.
pub fn print_machine_for(runs: usize) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or("");
    let kernel = read("/proc/sys/kernel/osrelease");
    println!(
        "\ntidegate {}, Linux {}, {} cores ({}), {} runs of each, alternating",
        env!("CARGO_PKG_VERSION"),
        kernel.trim(),
        std::thread::available_parallelism().map_or(0, usize::from),
        model.trim_start_matches([' ', '\t', ':']),
        runs
    );
}

/// Runs per contender: `TIDEGATE_BENCH_RUNS`, 5 by default.
pub fn runs() -> usize {
    setting("TIDEGATE_BENCH_RUNS", 5)
}

/// For how long each is loaded: `TIDEGATE_BENCH_SECONDS`, 3 by default.
pub fn seconds() -> u32 {
    setting("TIDEGATE_BENCH_SECONDS", 3)
}

/// A number from the environment, or the usual one.
pub fn setting<T: std::str::FromStr>(name: &str, usual: T) -> T {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Min, median, max.
pub fn spread(figures: &[f64]) -> (f64, f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
}

/// Prints a table in Markdown: each row, and its ratio to the row before named `limit` by medians.
pub fn print_table(title: &str, unit: &str, rows: &[Row], limit: &str) {
    let limit_median = rows
        .iter()
        .find(|row| row.name == limit)
        .map(|row| spread(&row.figures).1);
    println!("\n### {title}\n\n| | {unit}: min | median | max | median to limit |\n|---|--:|--:|--:|--:|");
    for row in rows {
        let (min, median, max) = spread(&row.figures);
        let ratio = limit_median.map_or(String::new(), |limit| format!("{:.2}", median / limit));
        println!(
            "| {} | {} | {} | {} | {ratio} |",
            row.name,
            number(min),
            number(median),
            number(max)
        );
    }
}

/// The ratio of two rows' medians.
pub fn ratio(rows: &[Row], of: &str, to: &str) -> f64 {
    let median = |name: &str| {
        rows.iter()
            .find(|row| row.name == name)
            .map(|row| spread(&row.figures).1)
    };
    median(of).zip(median(to)).map_or(f64::NAN, |(of, to)| of / to)
}

/// What a figure is to be.
#[allow(dead_code)]
#[derive(Clone, Copy)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

/// Says whether a goal is met, in a form that `benches/run` makes its first table of. `unit`: "" for a ratio.
pub fn print_goal(what: &str, goal: Goal, measured: f64, unit: &str) {
    let (words, wanted, is_met) = match goal {
        Goal::AtLeast(least) => ("at least", least, measured >= least),
        Goal::AtMost(most) => ("at most", most, measured <= most),
    };
    let unit = if unit.is_empty() {
        String::new()
    } else {
        format!(" {unit}")
    };
    let verdict = if is_met { "met" } else { "missed" };
    let measured = if wanted < 10.0 {
        format!("{measured:.3}")
    } else {
        number(measured)
    };
    println!(
        "\nGoal: {what}: {words} {}{unit}; measured {measured}{unit}: {verdict}.",
        number(wanted)
    );
}

pub fn number(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

/// About 200 bytes of JSON, as a device sends it: `i` makes each one differ.
pub fn json_record(i: u64) -> Vec<u8> {
    let mut state = i
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    format!(
        r#"{{"device":"press-{:02}","line":{},"at":"2026-01-{:02}T{:02}:{:02}:{:02}.{:03}Z","temperature":{}.{},"pressure":{}.{:02},"state":"running","batch":"{:016x}","operator":"op-{:03}","ok":true,"n":1{:08}}}"#,
        next() % 40, next() % 8, 1 + next() % 28, next() % 24, next() % 60, next() % 60, next() % 1000,
        20 + next() % 60, next() % 10, 1 + next() % 9, next() % 100, next(), next() % 300, i % 100_000_000,
    )
    .into_bytes()
}

/// Bytes that a process handed to the kernel (`wchar`), and that it made the kernel write to storage
/// (`write_bytes`: whole pages of 4 KiB), from `/proc/PID/io`.
pub fn bytes_written(pid: u32) -> (u64, u64) {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let field = |name: &str| {
        io.lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|n| n.trim().parse().ok())
            .unwrap_or(0)
    };
    (field("wchar: "), field("write_bytes: "))
}

/// Resident memory of a process, in MiB.
pub fn rss_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok())
        .unwrap_or(0.0);
    kib / 1024.0
}

/// Processor time that a process has spent, in user and kernel mode, in seconds. (Linux counts it in hundredths for this file,
/// whatever its own ticks are: proc_pid_stat(5), USER_HZ.)
pub fn cpu_seconds(pid: u32) -> f64 {
    cpu_seconds_of(&std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
}

/// The same of the thread that asks.
pub fn thread_cpu_seconds() -> f64 {
    cpu_seconds_of(&std::fs::read_to_string("/proc/thread-self/stat").unwrap_or_default())
}

/// The same of each thread of a process that still runs, by its name.
pub fn cpu_seconds_by_thread(pid: u32) -> BTreeMap<String, f64> {
    let mut spent = BTreeMap::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let name = stat
            .split_once('(')
            .and_then(|(_, rest)| Some(rest.rsplit_once(')')?.0));
        *spent.entry(name.unwrap_or("").to_owned()).or_default() += cpu_seconds_of(&stat);
    }
    spent
}

fn cpu_seconds_of(stat: &str) -> f64 {
    // The name of the program, in parentheses, may have spaces.
    let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// The process whose command names this folder, but for the shell that watches over it.
pub fn pid_in(folder: &std::path::Path) -> u32 {
    let folder = folder.to_str().unwrap();
    let mut processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (!command.starts_with("sh\0") && command.contains(folder)).then_some(pid)
    });
    processes.next().unwrap()
}
