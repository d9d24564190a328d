//! train_lm: the three ways to train, the same weights on any number of ranks, checkpoints, and the
//! progress bar.

use std::time::{Duration, Instant};

use super::*;

fn sources() -> Vec<String> {
    let lm = fs::read_dir(root().join("ffi/examples/lm")).expect("lm");
    let lm = lm.map(|f| f.expect("file").path().to_string_lossy().into_owned());
    let mut sources: Vec<String> = lm.filter(|f| f.ends_with(".c")).collect();
    sources.push("ffi/examples/train_lm.c".to_owned());
    sources
}

/// The program, compiled with these flags besides.
#[track_caller]
pub(super) fn train_lm(name: &str, flags: &[&str]) -> PathBuf {
    let sources = sources();
    let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
    compile(name, &sources, &[&["-std=c99"], flags].concat())
}

pub(super) fn program() -> PathBuf {
    train_lm("train_lm", &["-O2"])
}

/// Trains a small model, in host memory.
fn train(world: usize, arguments: &[&str]) -> Vec<String> {
    let program = program();
    ranks(world, || {
        let mut command = watched(&program);
        command.args(["--deterministic", "--width", "32", "--layers", "1", "--device", "none"]);
        command.args(arguments).arg("ffi/examples/train_lm.c");
        command
    })
}

/// A value of the line of JSON that rank 0 ends with.
#[track_caller]
pub(super) fn result(said: &[String], key: &str) -> String {
    let line = said[0].lines().find(|l| l.contains("\"checksum\"")).expect("a result");
    let value = line.split(&format!("\"{key}\":")).nth(1).expect("a value");
    value.trim_matches('"').split(['"', ',', '}']).next().expect("its end").to_owned()
}

fn quiet(world: usize, arguments: &[&str]) -> Vec<String> {
    train(world, &[&["--json", "--quiet"], arguments].concat())
}

fn checksum(world: usize, arguments: &[&str]) -> String {
    let sum = result(&quiet(world, arguments), "checksum");
    assert_eq!(sum.len(), 16, "{sum}");
    sum
}

const SIX: [&str; 2] = ["--steps", "6"];

#[test]
fn training_gives_the_same_weights_on_one_two_and_four_ranks_in_both_exact_modes() {
    let run = |world, mode| checksum(world, &[&SIX[..], &["--mode", mode]].concat());
    let one = run(1, "allreduce");
    for (world, mode) in [(2, "allreduce"), (4, "allreduce"), (2, "sharded"), (4, "sharded")] {
        assert_eq!(run(world, mode), one, "{mode} on {world} ranks");
    }
    succeed(watched(&program()).arg("--self-test"));
    // Without a launcher: a job of one rank.
    succeed(watched(&program()).args(["--steps", "1", "--quiet", "ffi/examples/train_lm.c"]));
}

#[test]
fn local_training_averages_what_ranks_learn_apart() {
    let local = |world, steps, every| {
        quiet(world, &["--mode", "local", "--average-every", every, "--steps", steps])
    };
    // The ranks compare their checksums at the end: weights that were not averaged fail the run.
    for world in [2, 4] {
        let loss = |steps| -> f64 {
            result(&local(world, steps, "4"), "val_loss").parse().expect("a loss")
        };
        let (before, after) = (loss("0"), loss("30"));
        assert!(after < before - 0.5, "{world} ranks: {before} before, {after} after");
    }
    let sum = |world, every| result(&local(world, "6", every), "checksum");
    assert_eq!(sum(1, "2"), checksum(1, &SIX), "one rank has nothing to average");
    assert_eq!(sum(2, "3"), sum(2, "3"), "the same run again");
    assert_ne!(sum(2, "3"), sum(2, "6"), "how often is averaged must matter");
}

#[test]
fn a_checkpoint_goes_on_as_if_nothing_had_been() {
    let at = scratch("checkpoint");
    let undisturbed = checksum(1, &SIX);
    // Written by so many ranks in one mode, resumed by others in another.
    for (name, (ranks, mode), (later_ranks, later_mode)) in [
        ("a", (2, "allreduce"), (2, "allreduce")),
        ("b", (2, "allreduce"), (4, "sharded")),
        ("c", (4, "sharded"), (1, "allreduce")),
        ("d", (2, "sharded"), (2, "sharded")),
    ] {
        let file = at.join(name);
        let file = ["--checkpoint", file.to_str().expect("text")];
        checksum(ranks, &[&file[..], &["--steps", "3", "--mode", mode]].concat());
        let later = ["--steps", "6", "--resume", "--mode", later_mode];
        let sum = checksum(later_ranks, &[&file[..], &later].concat());
        assert_eq!(sum, undisturbed, "{mode} on {ranks}, then {later_mode} on {later_ranks}");
    }
    let local = ["--mode", "local", "--average-every", "3"];
    let file = at.join("local");
    let file = ["--checkpoint", file.to_str().expect("text")];
    checksum(2, &[&file[..], &local, &["--steps", "3"]].concat());
    let resumed = checksum(2, &[&file[..], &local, &["--resume"], &SIX].concat());
    assert_eq!(resumed, checksum(2, &[&local[..], &SIX].concat()), "local");
}

/// What train_lm says when it refuses to resume.
fn refused(arguments: &[&str]) -> String {
    let mut command = watched(&program());
    command.args(["--resume", "--layers", "1"]).args(arguments).arg("ffi/examples/train_lm.c");
    let output = command.output().expect("train_lm");
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    text(&output)
}

#[test]
fn a_killed_run_resumes_from_its_last_checkpoint() {
    let file = scratch("killed").join("checkpoint");
    let name = file.to_str().expect("text");
    let mut run = command(program());
    run.args(["--deterministic", "--width", "32", "--layers", "1", "--quiet"]);
    run.args(["--steps", "1000000", "--checkpoint", name, "--checkpoint-every", "5"]);
    let mut run = run.arg("ffi/examples/train_lm.c").spawn().expect("train_lm");
    let until = Instant::now() + Duration::from_secs(90);
    while !file.exists() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    run.kill().expect("still running");
    run.wait().expect("wait");
    assert!(file.exists(), "no checkpoint in all that time");
    // How far it had come is in the words of the refusal.
    let words = refused(&["--width", "32", "--steps", "1", "--checkpoint", name]);
    let done = words.split(" has ").nth(1).and_then(|rest| rest.split(' ').next());
    let done: u32 = done.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{words}"));
    assert_eq!(done % 5, 0, "{words}");
    let steps = ["--steps".to_owned(), (done + 2).to_string()];
    let steps = [&*steps[0], &*steps[1]];
    let resumed = checksum(2, &[&steps[..], &["--resume", "--checkpoint", name]].concat());
    assert_eq!(resumed, checksum(1, &steps), "after {done} steps");
}

#[test]
fn a_checkpoint_that_does_not_fit_is_refused() {
    let at = scratch("refused");
    let file = at.join("whole");
    let name = file.to_str().expect("text");
    checksum(1, &["--steps", "2", "--checkpoint", name]);
    let six = ["--width", "32", "--steps", "6"];
    // Of another model.
    let words = refused(&["--width", "64", "--steps", "6", "--checkpoint", name]);
    assert!(words.contains(name), "{words}");
    // Damaged, cut short, missing.
    let whole = fs::read(&file).expect("the checkpoint");
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    for (part, bytes) in
        [("damaged", Some(&damaged[..])), ("cut", Some(&whole[..100])), ("no", None)]
    {
        let file = at.join(part);
        if let Some(bytes) = bytes {
            fs::write(&file, bytes).expect("write");
        }
        let name = file.to_str().expect("text");
        let words = refused(&[&six[..], &["--checkpoint", name]].concat());
        assert!(words.contains(name), "{part}: {words}");
    }
}

#[test]
fn progress_is_a_bar_on_a_terminal_and_lines_elsewhere() {
    let lines = &train(2, &["--steps", "3"])[0];
    assert!(lines.contains("step 3/3  loss ") && !lines.contains('['), "{lines}");
    assert!(lines.contains(" tokens/s  comm "), "{lines}");
    let full = format!("\r[{}] step 3/3", "#".repeat(24));
    let forced = &train(2, &["--steps", "3", "--progress"])[0];
    assert!(forced.contains(&full), "{forced}");
    let silent = &train(2, &["--steps", "3", "--quiet", "--progress"])[0];
    assert!(!silent.contains("step 3/3"), "{silent}");
    if !need("script", "bsdutils") {
        return;
    }
    // `script` runs a program on a terminal of its own.
    let program = program();
    let line = format!("{} --steps 3 ffi/examples/train_lm.c", program.display());
    let mut terminal = watched(Path::new("script"));
    terminal.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    let shown = succeed(&mut terminal);
    assert!(shown.contains(&full), "{shown}");
}
