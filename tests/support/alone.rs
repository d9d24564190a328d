//! Tests that run in a process of their own: what a stand-in does stands in variables, and what it
//! counts belongs to a process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that runs a test.
const ALONE: &str = "UNISONO_TEST_ALONE";
/// Ends whatever hangs. Never a measure of speed.
const WATCHDOG: Duration = Duration::from_secs(60);

/// This program, to run one test alone, by its whole name.
pub(crate) fn program(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("an own name"));
    command.args(["--exact", "--nocapture", "--test-threads=1", test]);
    command.env(ALONE, test).stdout(Stdio::null());
    command
}

pub(crate) fn succeeds(mut command: Command) {
    let mut child = command.spawn().expect("a process");
    let until = Instant::now() + WATCHDOG;
    let status = loop {
        if let Some(status) = child.try_wait().expect("a child") {
            break status;
        }
        if Instant::now() > until {
            child.kill().expect("a child");
            panic!("{command:?} hangs");
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    assert!(status.success(), "{command:?}: {status}");
}

/// Whether this is the process of `test`; otherwise it is run in one, with these variables.
#[allow(dead_code, reason = "not every program that has this module uses it")]
pub(crate) fn by_itself(test: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return true;
    }
    let mut command = program(test);
    command.envs(variables.iter().copied());
    succeeds(command);
    false
}

/// Whether this is the process of `test`; otherwise it is run in one, over the CUDA driver
/// `library`, of which nothing may be left when it ends.
pub(crate) fn alone(test: &str, library: &Path, variables: &[(&str, &str)]) -> bool {
    if std::env::var(ALONE).is_ok_and(|name| name == test) {
        return true;
    }
    let name = test.replace("::", "-");
    let leaks = library.with_file_name(format!("leaks-{name}-{}", std::process::id()));
    let mut command = program(test);
    command.env("UNISONO_CUDA_LIB", library).env("STANDIN_CUDA_LEAKS", &leaks);
    command.envs(variables.iter().copied());
    succeeds(command);
    // It is not written where the driver was never initialised.
    if let Ok(text) = std::fs::read_to_string(&leaks) {
        std::fs::remove_file(&leaks).expect("it was there");
        assert!(text.lines().count() >= 9, "{text}");
        assert!(text.lines().all(|line| line.ends_with(" 0")), "left over:\n{text}");
    }
    false
}
