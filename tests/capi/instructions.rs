//! What a call costs, counted in instructions: a count is the same in every run, a time is not.

use super::*;

/// A count may differ from the committed one by this share, either way: libc and the compiler move
/// it a little, and what has become cheaper is to be written down.
const TOLERANCE: f64 = 0.05;

const GOLDEN: &str = "tests/golden/instructions.txt";

/// Instructions of `calls` calls of `count` floats, with all that stands around them.
fn counted(program: &Path, count: u64, calls: u64) -> u64 {
    let out = program.with_file_name(format!("callgrind.{count}.{calls}"));
    let mut valgrind = command("timeout");
    valgrind.args(["-k", "5", WATCHDOG_SECONDS, "valgrind", "--tool=callgrind"]);
    valgrind.arg(format!("--callgrind-out-file={}", out.display()));
    valgrind.arg(program).args([count.to_string(), calls.to_string()]);
    succeed(&mut valgrind);
    let profile = fs::read_to_string(&out).expect("a profile");
    let totals = profile.lines().find_map(|line| line.strip_prefix("totals: "));
    totals.and_then(|total| total.trim().parse().ok()).expect("a total")
}

/// What the program does over and over, on both ranks together, takes the instructions that are
/// written down: two all_reduces of 8 bytes, one of 64 KiB. After a wanted change, run this once
/// with `UNISONO_UPDATE_GOLDEN=1`.
#[test]
fn calls_take_the_instructions_that_are_written_down() {
    if !need("valgrind", "valgrind") {
        return;
    }
    let flags = ["-std=c11", "-pthread", "-O2"];
    let program = compile("instructions", &["tests/capi/instructions.c"], &flags);
    let calls = 200;
    let cost = |bytes: u64| {
        let count = bytes / 4;
        // What a first call makes (plans, scratch) is in both.
        (counted(&program, count, calls + 1) - counted(&program, count, 1)) / calls
    };
    let costs = [8, 64 << 10].map(|bytes| (bytes, cost(bytes)));
    let text: String = costs.iter().map(|(bytes, cost)| format!("{bytes} {cost}\n")).collect();
    if env::var_os("UNISONO_UPDATE_GOLDEN").is_some() {
        fs::write(root().join(GOLDEN), &text).expect("written");
    }
    let golden = fs::read_to_string(root().join(GOLDEN)).expect("the golden file");
    for (line, (bytes, cost)) in golden.lines().zip(costs) {
        let expected: u64 = line.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
        let change = cost as f64 / expected as f64 - 1.0;
        assert!(
            change.abs() <= TOLERANCE,
            "{bytes} bytes take {cost} instructions, not {expected}: {:+.1} %",
            100.0 * change
        );
    }
}
