//! The program from outside: what it prints, how it ends, and whom it leaves behind.
#![cfg(feature = "cli")]
#![allow(missing_docs)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
const WATCHDOG: Duration = Duration::from_secs(100);

fn unisono(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unisono"));
    command.args(args).stdin(Stdio::null());
    // Whoever runs the tests may be a rank.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["UNISONO_", "OMPI_", "PMI", "SLURM_", "RANK", "WORLD_SIZE", "LOCAL_"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            command.env_remove(&name);
        }
    }
    command
}

/// Ends a process that hangs; dropped in time, does nothing.
struct Watchdog(#[expect(dead_code, reason = "its drop is the signal")] Sender<()>);

fn watch(child: &Child) -> Watchdog {
    let (sender, receiver) = channel::<()>();
    let pid = child.id();
    thread::spawn(move || {
        if receiver.recv_timeout(WATCHDOG) == Err(RecvTimeoutError::Timeout) {
            signal(pid, "KILL");
        }
    });
    Watchdog(sender)
}

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
    assert!(sent.expect("kill").success(), "process {pid} is gone before SIG{name}");
}

fn finish(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("start");
    let _watchdog = watch(&child);
    child.wait_with_output().expect("output")
}

/// Exit status, stdout, stderr.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let output = finish(unisono(args));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// `script` by a shell as each of `ranks` ranks.
fn ranks(ranks: u32, options: &[&str], script: &str) -> (Option<i32>, String, String) {
    let number = ranks.to_string();
    let mut args = vec!["run", "-n", &number];
    args.extend(options);
    args.extend(["--", "sh", "-c", script]);
    run(&args)
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<_> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("unisono-cli-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A job under way, and its labelled stdout.
struct Job {
    child: Child,
    out: BufReader<ChildStdout>,
    _watchdog: Watchdog,
}

impl Job {
    fn start(args: &[&str]) -> Self {
        let mut command = unisono(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("start");
        let watchdog = watch(&child);
        let out = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, out, _watchdog: watchdog }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.out.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    /// Waits until both of two ranks have said "ready".
    fn ready(&mut self) {
        let mut lines = [self.line(), self.line()];
        lines.sort_unstable();
        assert_eq!(lines, ["[0] ready", "[1] ready"]);
    }

    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.out.read_to_string(&mut out).expect("stdout");
        self.child.stderr.take().expect("stderr").read_to_string(&mut err).expect("stderr");
        (self.child.wait().expect("wait").code(), out, err)
    }
}

#[test]
fn every_line_carries_its_rank_and_unfinished_ones_are_kept() {
    let script = "echo out $UNISONO_RANK/$UNISONO_WORLD; echo err >&2; printf last";
    let (status, out, err) = ranks(3, &[], script);
    assert_eq!(status, Some(0));
    let expected =
        ["[0] last", "[0] out 0/3", "[1] last", "[1] out 1/3", "[2] last", "[2] out 2/3"];
    assert_eq!(sorted(&out), expected);
    assert_eq!(sorted(&err), ["[0] err", "[1] err", "[2] err"]);
}

#[test]
fn long_lines_of_many_ranks_stay_whole() {
    let script = "i=0; while [ $i -lt 200 ]; do printf '%0500d\\n' $UNISONO_RANK; i=$((i+1)); done";
    let (status, out, _) = ranks(4, &["--no-label"], script);
    assert_eq!(status, Some(0));
    assert_eq!(out.lines().count(), 800);
    for line in out.lines() {
        assert!(line.len() == 500 && line[..499].bytes().all(|b| b == b'0'), "{line}");
    }
}

#[test]
fn the_places_of_the_ranks_are_in_their_environment() {
    let script = "echo $UNISONO_LOCAL_RANK $UNISONO_LOCAL_WORLD $UNISONO_JOB_ID";
    let (_, out, _) = ranks(2, &["--no-label"], script);
    let lines = sorted(&out);
    let words: Vec<Vec<&str>> = lines.iter().map(|l| l.split(' ').collect()).collect();
    assert_eq!((words[0][..2].join(" "), words[1][..2].join(" ")), ("0 2".into(), "1 2".into()));
    assert_eq!(words[0][2], words[1][2]);
    assert_eq!(words[0][2].len(), 32);
    let (_, again, _) = ranks(1, &["--no-label"], script);
    assert!(!again.contains(words[0][2]), "the next job has another name");
}

#[test]
fn a_job_ends_with_the_status_of_its_ranks() {
    for (script, status, said) in [
        ("exit 0", 0, None),
        ("exit 3", 3, Some("exited with status 3")),
        ("kill -KILL $$", 137, Some("was killed by SIGKILL (signal 9)")),
        ("kill -TERM $$", 143, Some("was killed by SIGTERM (signal 15)")),
    ] {
        let (found, _, err) = ranks(2, &[], script);
        assert_eq!(found, Some(status), "{script}");
        match said {
            Some(said) => assert!(err.contains(said), "{script}: {err}"),
            None => assert_eq!(err, ""),
        }
    }
}

#[test]
fn the_first_failure_ends_the_others_and_is_named() {
    let script = "if [ $UNISONO_RANK = 2 ]; then exit 5; fi; exec sleep 600";
    let (status, _, err) = ranks(4, &[], script);
    assert_eq!(status, Some(5));
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.starts_with("unisono: rank 2 (process "), "{err}");
    assert!(err.contains("exited with status 5; ending the other 3"), "{err}");
}

#[test]
fn ranks_that_ignore_the_end_are_killed_after_the_grace() {
    let folder = Folder::new("grace");
    // Rank 0 fails once rank 1 ignores the end.
    let script = format!(
        "trap '' TERM
         if [ $UNISONO_RANK = 0 ]; then until [ -e {0} ]; do sleep 0.01; done; exit 7; fi
         : > {0}
         while :; do sleep 1; done",
        folder.0.join("ready").display()
    );
    let (status, _, err) = ranks(2, &["--grace", "0.2"], &script);
    assert_eq!(status, Some(7), "{err}");
    assert!(err.contains("killed"), "{err}");
}

#[test]
fn with_keep_going_the_others_run_to_their_end() {
    let folder = Folder::new("keep");
    let pid = folder.0.join("pid");
    // Rank 1 goes on once rank 0 is dead.
    let script = format!(
        "if [ $UNISONO_RANK = 0 ]; then echo $$ > {0}.new; mv {0}.new {0}; exit 4; fi
         until [ -s {0} ]; do sleep 0.01; done
         while grep -qs '^State:.[RSD]' /proc/$(cat {0})/status; do sleep 0.01; done
         echo done",
        pid.display()
    );
    let (status, out, err) = ranks(2, &["--keep-going"], &script);
    assert_eq!((status, out.as_str()), (Some(4), "[1] done\n"), "{err}");
    assert!(err.contains("rank 0") && err.contains("goes on"), "{err}");
}

#[test]
fn a_program_that_cannot_be_started_is_named() {
    let (status, out, err) = run(&["run", "-n", "2", "--", "no-such-program"]);
    assert_eq!((status, out.as_str()), (Some(127), ""));
    assert_eq!(err, "unisono: run: program not found in PATH: no-such-program\n");
    let (status, _, err) = run(&["run", "-n", "2", "--", "/etc/passwd"]);
    assert_eq!(status, Some(126));
    assert!(err.contains("/etc/passwd"), "{err}");
}

#[test]
fn signals_reach_every_rank_and_what_it_started() {
    for name in ["TERM", "INT", "HUP", "USR1", "USR2"] {
        let script = format!("trap 'echo got; exit 0' {name}; echo ready; sleep 600 & wait");
        let mut job = Job::start(&["run", "-n", "2", "--", "sh", "-c", &script]);
        job.ready();
        signal(job.child.id(), name);
        let (status, out, err) = job.end();
        assert_eq!(sorted(&out), ["[0] got", "[1] got"], "{name}: {err}");
        assert_eq!(status, Some(0), "{name}: {err}");
    }
}

#[test]
fn a_second_interrupt_kills() {
    let script = "trap '' INT; echo ready; while :; do sleep 600; done";
    let mut job = Job::start(&["run", "-n", "2", "--", "sh", "-c", script]);
    job.ready();
    signal(job.child.id(), "INT");
    let mut err = BufReader::new(job.child.stderr.take().expect("stderr"));
    let mut note = String::new();
    err.read_line(&mut note).expect("a note");
    assert!(note.contains("interrupt passed on"), "{note}");
    signal(job.child.id(), "INT");
    let mut rest = String::new();
    err.read_to_string(&mut rest).expect("stderr");
    assert!(rest.contains("SIGKILL"), "{rest}");
    assert_eq!(job.child.wait().expect("wait").code(), Some(137));
}

/// Whether the process runs: a zombie does not.
fn runs(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

#[test]
fn nobody_survives_a_launcher_that_is_killed() {
    // Each rank has a child, and that child ignores what can be ignored.
    let script = "(trap '' TERM HUP INT; exec sleep 600) & echo $$ $!; wait";
    let mut job = Job::start(&["run", "-n", "2", "--no-label", "--", "sh", "-c", script]);
    let lines = [job.line(), job.line()];
    let pids: Vec<&str> = lines.iter().flat_map(|line| line.split(' ')).collect();
    assert_eq!(pids.len(), 4);
    assert!(pids.iter().all(|pid| runs(pid)), "{pids:?}");
    signal(job.child.id(), "KILL");
    job.child.wait().expect("wait");
    let limit = Instant::now() + WATCHDOG;
    while pids.iter().any(|pid| runs(pid)) {
        assert!(Instant::now() < limit, "some of {pids:?} survived");
        thread::yield_now();
    }
}

#[test]
fn what_ranks_leave_behind_ends_with_the_job() {
    let script = "sleep 600 & echo $!";
    let (status, out, _) = ranks(2, &["--no-label"], script);
    assert_eq!(status, Some(0));
    let limit = Instant::now() + WATCHDOG;
    while out.lines().any(runs) {
        assert!(Instant::now() < limit, "{out}");
        thread::yield_now();
    }
}

#[test]
fn bound_ranks_share_out_the_processors() {
    let list = "grep Cpus_allowed: /proc/self/status";
    let (_, free, _) = ranks(1, &["--no-label"], list);
    let (status, bound, err) = ranks(1, &["--no-label", "--bind-to", "core"], list);
    assert_eq!((status, &bound), (Some(0), &free), "{err}");
    let count = |text: &str| text.chars().filter_map(|c| c.to_digit(16)).map(u32::count_ones).sum();
    let all: u32 = count(free.split_once(':').expect("a list").1);
    let (_, both, _) = ranks(2, &["--no-label", "--bind-to", "core"], list);
    let each: Vec<u32> =
        both.lines().map(|line| count(line.split_once(':').expect("a list").1)).collect();
    assert_eq!(each.iter().sum::<u32>(), all.max(2), "{both}");
}

#[test]
fn a_job_ends_when_its_time_is_over() {
    let (status, _, err) = ranks(2, &["--timeout", "0.3"], "exec sleep 600");
    assert_eq!(status, Some(124));
    assert_eq!(err, "unisono: 0.3 s have passed; ending 2 ranks\n");
}

#[test]
fn standard_input_goes_to_rank_0_and_bytes_pass_unchanged() {
    let bytes: Vec<u8> =
        (0..500_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut command = unisono(&["run", "-n", "3", "--no-label", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("start");
    let _watchdog = watch(&child);
    let mut to = child.stdin.take().expect("stdin");
    let sent = bytes.clone();
    let writer = thread::spawn(move || to.write_all(&sent).expect("write"));
    let output = child.wait_with_output().expect("output");
    writer.join().expect("writer");
    assert!(output.status.success());
    assert!(output.stdout == bytes, "{} bytes came back", output.stdout.len());
}

#[test]
fn a_reader_that_goes_away_ends_the_job() {
    let mut job = Job::start(&["run", "-n", "2", "--", "yes"]);
    assert!(job.line().ends_with("] y"));
    drop(job.out);
    let status = job.child.wait().expect("wait");
    assert_eq!(status.code(), Some(128 + 13));
}

#[test]
fn ranks_find_each_other() {
    let program = env!("CARGO_BIN_EXE_unisono");
    for link in ["shm", "tcp"] {
        let (status, out, err) = run(&["run", "-n", "2", "--", program, "demo", "--part", link]);
        assert_eq!(status, Some(0), "{err}");
        assert!(out.starts_with("[0]   2 processes"), "{out}");
    }
}

#[test]
fn demo_shows_every_link_and_equal_bits() {
    let (status, out, err) = run(&["demo"]);
    assert_eq!(status, Some(0), "{err}");
    for word in ["4 threads, mem", "2 processes, shm", "2 processes, tcp", "equal to the last bit"]
    {
        assert!(out.contains(word), "{word}: {out}");
    }
}

#[test]
fn info_says_what_is_here() {
    let (status, out, _) = run(&["info"]);
    assert_eq!(status, Some(0));
    let version = format!("unisono {}\n", env!("CARGO_PKG_VERSION"));
    assert!(out.starts_with(&version), "{out}");
    for word in ["kernels", "memfd", "pidfd", "huge pages", "chosen", "NCCL", "RDMA", "none: "] {
        assert!(out.contains(word), "{word}: {out}");
    }
    let output = finish({
        let mut command = unisono(&["info"]);
        command.env("RANK", "1").env("UNISONO_WINDOW", "99");
        command
    });
    let out = String::from_utf8(output.stdout).expect("text");
    assert!(out.contains("half set: torchrun: RANK is set, WORLD_SIZE is missing"), "{out}");
    assert!(out.contains("error: UNISONO_WINDOW=\"99\""), "{out}");
}

#[test]
fn info_tables_hold_every_type_collective_knob_and_size() {
    let (_, types, _) = run(&["info", "--types"]);
    for dtype in unisono::Dtype::ALL {
        let row = types.lines().find(|l| l.trim_start().starts_with(&format!("{dtype} ")));
        let row = row.unwrap_or_else(|| panic!("no {dtype}: {types}"));
        let yes = unisono::ReduceOp::ALL.iter().filter(|op| op.supports(*dtype)).count();
        assert_eq!(row.matches("yes").count(), yes, "{row}");
    }
    let (_, plans, _) = run(&["info", "--plans"]);
    assert!(unisono::Collective::ALL.iter().all(|c| plans.contains(c.name())), "{plans}");
    let (_, knobs, _) = run(&["info", "--knobs"]);
    for knob in unisono::config::KNOBS {
        assert!(knobs.contains(knob.variable) && knobs.contains(knob.text), "{knobs}");
    }
    let (_, tuning, _) = run(&["info", "--tuning", "-n", "8"]);
    for word in ["8 ranks", "link shm", "8 B", "128 MiB", "all_to_all", "flat", "staged"] {
        assert!(tuning.contains(word), "{word}: {tuning}");
    }
    let (_, tuning, _) = run(&["info", "--tuning", "--registered", "--collective", "reduce"]);
    assert!(tuning.contains("direct") && !tuning.contains("all_to_all"), "{tuning}");
}

#[test]
fn a_table_shows_in_what_is_chosen() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let info = ["info", "--tuning", "-n", "3", "--link", "tcp", "--collective", "all_reduce"];
    let mut command = unisono(&info);
    command.env("UNISONO_TUNING", golden.join("example.tuning"));
    let output = finish(command);
    let out = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0));
    let file = golden.join("info_tuning.txt");
    if std::env::var_os("UNISONO_UPDATE_GOLDEN").is_some() {
        fs::write(&file, &out).expect("write");
    }
    assert_eq!(out, fs::read_to_string(&file).expect("golden"), "{}", file.display());

    let mut command = unisono(&info);
    command.env("UNISONO_TUNING", file);
    let output = finish(command);
    let err = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(2));
    assert!(err.contains("line 1: a table begins with the line"), "{err}");
}

#[test]
fn what_tune_writes_is_read_by_those_who_are_told() {
    let folder = Folder::new("tune");
    let path = folder.0.join("table");
    let at = path.to_str().expect("text");
    for link in ["shm", "tcp"] {
        let tune = ["tune", "-n", "2", "--link", link, "--seconds", "1", "-o", at];
        let (status, out, err) = run(&tune);
        assert_eq!((status, out.as_str()), (Some(0), ""), "{err}");
        let text = fs::read_to_string(&path).expect("a table");
        assert!(text.contains(&format!("# {link}, 2 ranks: up to ")), "{text}");
        unisono::tune::table::Table::parse(&text).expect("a table");
        let perf = ["perf", "all_reduce", "--link", link, "-e", "64K", "--iters", "1"];
        let mut command = unisono(&perf);
        command.env("UNISONO_TUNING", &path);
        assert_eq!(finish(command).status.code(), Some(0));
    }
}

#[test]
fn info_as_json_is_one_object() {
    let (status, out, _) = run(&["info", "--json", "--types", "--plans", "--tuning", "--knobs"]);
    assert_eq!((status, out.lines().count()), (Some(0), 1));
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["types"]["bf16"]["accumulator"], "f32");
    assert_eq!(value["plans"]["all_reduce"]["ring"]["tree_order"], false);
    assert_eq!(value["knobs"]["UNISONO_WINDOW"]["default"], "2");
    assert_eq!(value["tuning"]["rows"][0]["bytes"], 8);
    let (_, out, _) = run(&["info", "--json"]);
    let value: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(value["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(value["memory"]["memfd"]["works"], true);
}

#[test]
fn a_plan_reads_as_its_golden() {
    let (status, out, _) = run(&["plan", "all_reduce", "--ranks", "6", "--algo", "ring"]);
    assert_eq!(status, Some(0));
    let file =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/plan_all_reduce_6_ring.txt");
    if std::env::var_os("UNISONO_UPDATE_GOLDEN").is_some() {
        fs::write(&file, &out).expect("write");
    }
    assert_eq!(out, fs::read_to_string(&file).expect("golden"), "{}", file.display());
}

#[test]
fn plans_are_compared_proved_and_shown_for_any_rank() {
    let (status, out, _) = run(&["plan", "all_reduce", "--hosts", "2,2,4"]);
    assert_eq!(status, Some(0));
    for name in
        ["ring", "binomial", "tree", "doubling", "halving", "pairwise", "direct", "hierarchical"]
    {
        assert!(out.lines().any(|line| line.starts_with(name)), "{name}: {out}");
    }
    let all = ["plan", "reduce", "-n", "4", "--algo", "binomial", "--root", "2", "--all"];
    let (_, out, _) = run(&[&all[..], &["--op", "pre_mul_sum"]].concat());
    for rank in 0..4 {
        let head = format!("reduce binomial, rank {rank} of 4, root 2, prepared");
        assert!(out.contains(&head), "{head}: {out}");
    }
    assert!(out.contains("proved for all 4 ranks"), "{out}");
}

/// Every opened element is closed, and in order.
fn well_formed(text: &str) -> Result<usize, String> {
    let mut open: Vec<&str> = Vec::new();
    let mut elements = 0;
    for piece in text.split('<').skip(1) {
        let (tag, rest) = piece.split_once('>').ok_or("a tag without end")?;
        if rest.contains('>') {
            return Err(format!("a bare > after <{tag}>"));
        }
        if tag.starts_with(['?', '!']) {
            continue;
        }
        if let Some(name) = tag.strip_prefix('/') {
            if open.pop() != Some(name) {
                return Err(format!("</{name}> closes nothing"));
            }
            continue;
        }
        if tag.matches('"').count() % 2 != 0 {
            return Err(format!("quotes in <{tag}>"));
        }
        elements += 1;
        if !tag.ends_with('/') {
            open.push(tag.split_whitespace().next().unwrap_or(""));
        }
    }
    if open.is_empty() { Ok(elements) } else { Err(format!("{open:?} stay open")) }
}

#[test]
fn a_drawing_is_well_formed() {
    let folder = Folder::new("svg");
    let file = folder.0.join("plan.svg");
    let path = file.to_str().expect("text");
    let (status, _, err) =
        run(&["plan", "all_gather", "-n", "5", "--algo", "bruck", "--svg", path]);
    assert_eq!(status, Some(0), "{err}");
    let text = fs::read_to_string(&file).expect("drawing");
    assert!(text.starts_with("<svg") || text.starts_with("<?xml"), "{}", &text[..40]);
    assert!(well_formed(&text).expect("XML") > 20);
    let bad = folder.0.join("no/such/folder.svg");
    let args = ["plan", "barrier", "-n", "2", "--algo", "doubling", "--svg"];
    let (status, _, err) = run(&[&args[..], &[bad.to_str().expect("text")]].concat());
    assert_eq!(status, Some(1), "{err}");
}

#[test]
fn usage_errors_are_one_line_and_status_2() {
    for (args, said) in [
        (&["plan", "all_redcue", "-n", "4"][..], "there are all_reduce, reduce,"),
        (&["plan", "all_reduce", "-n", "4", "--algo", "rign"], "there are ring, binomial,"),
        (&["plan", "all_reduce", "-n", "4", "--algo", "bruck"], "these do: ring, binomial,"),
        (
            &["plan", "reduce_scatter", "-n", "6", "--algo", "halving"],
            "in a world of 6; these do: ring",
        ),
        (&["plan", "all_reduce", "-n", "4", "--algo", "hierarchical"], "--hosts 2,2,4"),
        (&["plan", "all_reduce", "-n", "4", "--algo", "ring", "--op", "mean"], "there are sum,"),
        (&["plan", "all_reduce", "-n", "4", "--algo", "ring", "--rank", "4"], "--rank 4"),
        (&["plan", "reduce", "-n", "4", "--algo", "ring", "--root", "9"], "--root 9"),
        (&["plan", "all_reduce", "-n", "5", "--hosts", "2,2"], "the hosts have 4 ranks, not 5"),
        (&["plan", "all_reduce", "--hosts", "2,0"], "at least 1 rank"),
        (&["plan", "all_reduce", "-n", "0"], "invalid value '0'"),
        (&["info", "--tuning", "--collective", "nope"], "there are all_reduce,"),
        (&["info", "--tuning", "--collective", "all_gather_v"], "the counts of all ranks"),
        (&["info", "--tuning", "--collective", "send"], "the pair of ranks"),
        (&["info", "--collective", "broadcast"], "--tuning"),
        (&["info", "-n", "4"], "--tuning"),
        (&["info", "--no-such-flag"], "--no-such-flag"),
        (&["run", "-n", "0", "--", "true"], "invalid value '0'"),
        (&["perf", "all_reduce", "--min-bw", "nan"], "not a number of GB/s"),
        (&["perf", "all_reduce", "--min-bw", "inf"], "not a number of GB/s"),
        (&["perf", "all_reduce", "-i", "0"], "at least 1"),
        (&["run", "-n", "2"], "PROGRAM"),
        (&["run", "-n", "2", "--grace", "-1", "--", "true"], "-1"),
        (&["run", "--no-such-flag"], "--no-such-flag"),
        (&["demo", "--no-such-flag"], "--no-such-flag"),
        (&["no-such-command"], "no-such-command"),
    ] {
        let (status, out, err) = run(args);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
        assert!(err.starts_with("unisono: ") && err.contains(said), "{args:?}: {err}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["run", "--help"], &["info", "-h"], &["plan", "--help"]] {
        let (status, out, err) = run(args);
        assert_eq!((status, err.as_str()), (Some(0), ""), "{args:?}");
        assert!(out.contains("Usage: unisono"), "{out}");
    }
    let (status, out, _) = run(&["--version"]);
    assert_eq!((status, out), (Some(0), format!("unisono {}\n", env!("CARGO_PKG_VERSION"))));
}

/// Commands that write to stdout, each in a way of its own.
const WRITERS: &[&[&str]] = &[
    &["--help"],
    &["info", "--types"],
    &["plan", "all_reduce", "-n", "4"],
    &["check", "--list", "-n", "2"],
    &["check", "--link", "mem", "-n", "2", "--quick", "-v"],
    &["check", "--link", "shm", "-n", "2", "--quick", "-v", "--filter", "types"],
    &["perf", "all_reduce", "-n", "2", "-b", "8", "-e", "1K", "--iters", "2", "--link", "mem"],
    &["perf", "all_reduce", "-n", "2", "-b", "8", "-e", "1K", "--iters", "2", "--json"],
    &["demo"],
    &["run", "-n", "2", "--", "echo", "text"],
];

/// Exit status and stderr of a program whose stdout is `out`.
fn into(args: &[&str], out: impl Into<Stdio>) -> (Option<i32>, String) {
    let mut command = unisono(args);
    let child = command.stdout(out).stderr(Stdio::piped()).spawn().expect("start");
    let _watchdog = watch(&child);
    let output = child.wait_with_output().expect("output");
    (output.status.code(), String::from_utf8(output.stderr).expect("text"))
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    for args in WRITERS {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let (status, err) = into(args, full);
        assert_eq!(status, Some(1), "{args:?}: {err}");
        let said = "unisono: writing to stdout: No space left on device (os error 28)";
        assert_eq!(err.lines().next(), Some(said), "{args:?}: {err}");
    }
}

#[test]
fn a_reader_that_has_gone_ends_every_command_without_a_word() {
    for args in WRITERS {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (status, err) = into(args, writer);
        assert_eq!((status, err.as_str()), (Some(128 + 13), ""), "{args:?}");
    }
}

#[test]
fn a_message_that_cannot_be_written_changes_no_status() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let mut command = unisono(&["plan", "nonsense", "-n", "2"]);
    let status = command.stdout(Stdio::null()).stderr(full).status().expect("status");
    assert_eq!(status.code(), Some(2));
}

#[test]
fn perf_refuses_an_algorithm_that_would_be_passed_over() {
    for (args, said) in [
        (
            &["perf", "all_reduce", "--algo", "bruck"][..],
            "bruck does not do all_reduce by 2 ranks; these do: ring, binomial, tree, doubling, \
             halving, pairwise, hierarchical",
        ),
        (&["perf", "all_to_all", "--algo", "ring"], "these do: pairwise, bruck"),
        (
            &["perf", "all_reduce", "-n", "3", "--algo", "ring", "--deterministic"],
            "in the deterministic mode by 3 ranks; these do: binomial, doubling, halving, pairwise",
        ),
        (
            &["perf", "reduce_scatter", "-n", "3", "--algo", "halving"],
            "by 3 ranks; these do: ring, pairwise",
        ),
        (
            &["perf", "all_reduce", "--algo", "direct"],
            "direct does not do all_reduce in plain memory over shm by 2 ranks",
        ),
        (
            &["perf", "all_reduce", "--algo", "direct", "--link", "mem", "-o", "pre_mul_sum"],
            "direct does not do all_reduce of pre_mul_sum",
        ),
        (
            &["perf", "all_to_all", "--algo", "direct", "--link", "mem"],
            "direct does not do all_to_all in place",
        ),
        (&["perf", "sendrecv", "--algo", "ring"], "these do: pairwise"),
    ] {
        let (status, out, err) = run(args);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{args:?}: {err}");
        assert!(err.starts_with("unisono: ") && err.contains(said), "{args:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{args:?}: {err}");
    }
}

#[test]
fn perf_says_which_algorithm_its_figures_are_of() {
    let small = ["-b", "8", "-e", "8", "--iters", "2", "--link", "mem"];
    let (status, out, err) = run(&[&["perf", "all", "--algo", "direct"][..], &small].concat());
    assert_eq!(status, Some(0), "{err}");
    let left_out = out.lines().next().unwrap_or_default();
    assert!(left_out.starts_with("# left out, not done by direct: all_to_all, "), "{out}");
    assert!(left_out.ends_with(", sendrecv, pingpong"), "{out}");
    assert!(out.contains("algorithm direct"), "{out}");
    let mut command = unisono(&[&["perf", "all_reduce"][..], &small].concat());
    command.env("UNISONO_ALGORITHM", "bruck");
    let output = finish(command);
    let out = String::from_utf8(output.stdout).expect("text");
    assert_eq!(output.status.code(), Some(0));
    assert!(out.contains("algorithm UNISONO_ALGORITHM where it fits"), "{out}");
}

#[test]
fn a_sweep_times_every_algorithm_beside_the_choice() {
    let sweep = ["perf", "all_reduce", "--sweep-algos", "-n", "2", "--rounds", "2", "--iters", "2"];
    let (status, out, err) = run(&[&sweep[..], &["-b", "8", "-e", "1M", "--json"]].concat());
    assert_eq!(status, Some(0), "{err}");
    let rows: Vec<serde_json::Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    for (bytes, chosen) in [(8, "flat"), (262_144, "staged")] {
        let rows: Vec<_> = rows.iter().filter(|row| row["bytes"] == bytes).collect();
        let names = |chosen: bool| {
            let of = rows.iter().filter(move |row| row["chosen"] == chosen);
            of.map(|row| row["algo"].as_str().expect("a name")).collect::<Vec<_>>()
        };
        assert_eq!(names(true), [chosen], "{out}");
        let others = names(false);
        assert!(["doubling", "pairwise", "ring", "staged"].iter().all(|a| others.contains(a)));
        assert!(!others.contains(&"direct"), "its buffers are not shared: {out}");
        assert_eq!(rows.iter().filter(|row| row["fastest"] == true).count(), 1, "{out}");
        assert!(rows.iter().all(|row| row["wrong"] == 0), "{out}");
    }
    let (status, out, err) = run(&[&sweep[..], &["-b", "8", "-e", "8", "--link", "mem"]].concat());
    assert_eq!(status, Some(0), "{err}");
    assert_eq!(out.matches('*').count(), 2, "one in the legend, one in the table: {out}");
    assert!(out.contains("# the choice is at most "), "{out}");
    let (status, _, err) = run(&["perf", "sendrecv", "--sweep-algos"]);
    assert_eq!(status, Some(2));
    assert!(err.contains("no choice of algorithms"), "{err}");
}

#[test]
fn perf_says_how_much_memory_it_could_not_have() {
    // Less address space than asked for, however much this machine would promise.
    let script = "ulimit -v 16777216 && exec \"$0\" perf all_reduce -n 2 -b 100G -e 100G --link $1";
    for link in ["mem", "shm"] {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_unisono"), link]).stdin(Stdio::null());
        let output = finish(command);
        let err = String::from_utf8(output.stderr).expect("text");
        assert_eq!(output.status.code(), Some(1), "{link}: {err}");
        assert!(err.contains("107374190592 bytes"), "{link}: {err}");
        assert!(err.lines().all(|line| line.starts_with("unisono: rank ")), "{link}: {err}");
    }
}

#[test]
fn plans_of_the_largest_world_are_compared_at_once() {
    let world = unisono::types::WORLD_MAX.to_string();
    let (status, out, err) = run(&["plan", "all_reduce", "-n", &world]);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.lines().any(|line| line.starts_with("pairwise")), "{out}");
}

#[test]
fn all_plans_of_a_world_are_shown_one_after_the_other() {
    // Together they take gigabytes: whoever reads the first lines gets them at once.
    let world = unisono::types::WORLD_MAX.to_string();
    let mut job = Job::start(&["plan", "all_reduce", "-n", &world, "--algo", "pairwise", "--all"]);
    assert!(job.line().starts_with("all_reduce pairwise, rank 0 of"));
    drop(job.out);
    assert_eq!(job.child.wait().expect("wait").code(), Some(128 + 13));
}
