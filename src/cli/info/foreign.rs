//! The CUDA driver and NCCL, which are loaded to be asked; and what else is installed here that
//! later versions can work with, which is looked for only.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use unisono::config::Config;
use unisono::kernel::cuda::ARCHITECTURES;

use super::Part;
use crate::cli::table::Table;

/// Something foreign.
struct Foreign {
    name: &'static str,
    /// Its library or program.
    file: &'static str,
    install: &'static str,
}

const FOREIGN: &[Foreign] = &[
    Foreign { name: "RDMA verbs", file: "libibverbs.so.1", install: "the package libibverbs1" },
    Foreign { name: "RDMA connections", file: "librdmacm.so.1", install: "the package librdmacm1" },
];

/// The CUDA driver and its devices, or the reason why there is none.
pub(super) fn cuda() -> Part {
    let found = Config::from_env().and_then(|config| unisono::comm::cuda(&config));
    let (text, value) = match found {
        Ok(lines) => {
            let text = lines.iter().map(|line| format!("  {line}\n")).collect();
            (text, json!({"driver": lines[0], "devices": lines[1..]}))
        }
        Err(error) => (format!("  none: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    Part { name: "cuda", title: "CUDA".to_owned(), text, value }
}

/// Which NCCL is here, and what it has.
pub(super) fn nccl() -> Part {
    let found = Config::from_env().and_then(|config| unisono::comm::nccl(&config));
    let (text, value) = match found {
        Ok(line) => (format!("  {line}\n"), json!({"found": line})),
        Err(error) => (format!("  none: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    let title = "NCCL".to_owned();
    Part { name: "nccl", title, text, value }
}

pub(super) fn part() -> Part {
    let cache = cached_libraries();
    let mut table = Table::new(2, &[]);
    let mut values = serde_json::Map::new();
    for one in FOREIGN {
        let found = if one.file.starts_with("lib") {
            library(one.file, &cache)
        } else {
            in_folders(one.file, std::env::var_os("PATH"))
        };
        let value = match &found {
            Some(path) => {
                table.row([one.name, "found", &path.display().to_string()]);
                Value::from(path.display().to_string())
            }
            None => {
                table.row([one.name, "not found", &format!("would come with {}", one.install)]);
                Value::Null
            }
        };
        values.insert(
            one.name.to_owned(),
            json!({"path": value, "install": one.install, "used": false}),
        );
    }
    Part {
        name: "foreign",
        title: "Also on this machine (not used by this version yet)".to_owned(),
        text: table.text(),
        value: Value::Object(values),
    }
}

/// The CUDA kernels that the build has made.
pub(super) fn kernels() -> Part {
    let text = if ARCHITECTURES.is_empty() {
        "  none: the build found no nvcc that works (its warning says what to install)\n".to_owned()
    } else {
        format!("  for {}\n", ARCHITECTURES.join(", "))
    };
    Part {
        name: "cuda_kernels",
        title: "CUDA kernels in this build (compute_: for later devices)".to_owned(),
        text,
        value: Value::from(ARCHITECTURES),
    }
}

/// What the dynamic linker's cache lists: names and paths.
fn cached_libraries() -> Vec<(String, PathBuf)> {
    let programs = ["/sbin/ldconfig", "/usr/sbin/ldconfig", "ldconfig"];
    let output = programs.iter().find_map(|program| {
        let mut command = Command::new(program);
        command.arg("-p").stdin(Stdio::null()).stderr(Stdio::null());
        command.output().ok().filter(|output| output.status.success())
    });
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let entry = |line: &str| {
        let (name, path) = line.split_once(" => ")?;
        let name = name.split_whitespace().next()?;
        Some((name.to_owned(), PathBuf::from(path.trim())))
    };
    text.lines().filter_map(entry).collect()
}

/// Where `dlopen` would find a library whose name is `name` or begins with it.
fn library(name: &str, cache: &[(String, PathBuf)]) -> Option<PathBuf> {
    let by_path = in_folders(name, std::env::var_os("LD_LIBRARY_PATH"));
    let by_cache = || {
        let fits = |found: &str| {
            found.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        cache.iter().find(|(found, _)| fits(found)).map(|(_, path)| path.clone())
    };
    by_path.or_else(by_cache)
}

fn in_folders(name: &str, folders: Option<std::ffi::OsString>) -> Option<PathBuf> {
    let folders = folders?;
    let absolute = |folder: &PathBuf| folder.is_absolute();
    let file = |folder: PathBuf| Some(folder.join(name)).filter(|path| Path::is_file(path));
    std::env::split_paths(&folders).filter(absolute).find_map(file)
}
