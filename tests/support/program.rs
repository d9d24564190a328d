//! The program as the tests on stand-ins start it, and what it says.

use std::ffi::OsStr;
use std::process::{Command, Output};

/// A program with nothing of this project's, of the stand-ins' or of NCCL's in its environment.
pub(crate) fn clean(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        if ["UNISONO_", "STANDIN_", "NCCL_"].iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

/// All that was said.
pub(crate) fn text(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!("{}{}", String::from_utf8_lossy(out), String::from_utf8_lossy(err))
}
