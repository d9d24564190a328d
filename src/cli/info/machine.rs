//! The machine and the environment.

use serde_json::{Value, json};
use unisono::Code;
use unisono::boot::env::Launch;
use unisono::boot::survey;
use unisono::config::{Config, KNOBS};
use unisono::kernel::Isa;

use super::Part;
use crate::cli::table::Table;

pub(super) fn processor() -> Part {
    let name = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    let name = name.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let all = std::fs::read_dir("/sys/devices/system/cpu").into_iter().flatten().flatten();
    let is_cpu = |name: &str| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
    let all = all.filter(|entry| entry.file_name().to_str().is_some_and(is_cpu)).count();
    let usable = survey::cores();
    let best = Isa::best();
    let others: Vec<_> = Isa::available().filter(|&isa| isa != best).map(Isa::name).collect();
    let mut table = Table::new(2, &[]);
    table.row(["model", &name]);
    table.row(["usable", &format!("{usable} of {}", all.max(usable))]);
    table.row(["kernels", &format!("{best} (this CPU also runs {})", others.join(", "))]);
    Part {
        name: "processor",
        title: "Processor".to_owned(),
        text: table.text(),
        value: json!({"model": name, "usable": usable, "all": all, "kernels": best.name(), "other_kernels": others}),
    }
}

pub(super) fn memory() -> Part {
    let mut table = Table::new(2, &[]);
    let mut found = serde_json::Map::new();
    for one in survey::memory() {
        table.row([one.name, if one.works { "works" } else { "fails" }, &one.text]);
        found.insert(one.name.to_owned(), json!({"works": one.works, "text": one.text}));
    }
    let setting = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
    let setting = setting.unwrap_or_default();
    // The one in brackets holds.
    let holds = setting.split_once('[').and_then(|(_, rest)| Some(rest.split_once(']')?.0));
    let (state, text) = match holds {
        None => ("unknown", "the kernel does not tell"),
        Some("never" | "deny") => {
            ("off", "shared segments use small pages; root may write advise to shmem_enabled")
        }
        Some(_) => ("on", "shared segments may use huge pages"),
    };
    table.row(["huge pages", state, text]);
    found.insert("huge pages".to_owned(), json!({"works": state == "on", "text": text}));
    Part {
        name: "memory",
        title: "Memory shared by the ranks of this host".to_owned(),
        text: table.text(),
        value: Value::Object(found),
    }
}

pub(super) fn network() -> Part {
    let spec = std::env::var("UNISONO_INTERFACE").ok();
    let title = "Network".to_owned();
    let found = match survey::interfaces(spec.as_deref()) {
        Ok(found) => found,
        Err(error) => {
            let text = format!("  {}\n", error.detail);
            return Part { name: "network", title, text, value: json!({"error": &*error.detail}) };
        }
    };
    let mut table = Table::new(2, &[]);
    let mut rows = Vec::new();
    for one in &found.all {
        let address = format!("{}/{}", one.address, one.prefix);
        let state = if one.up { "up" } else { "down" };
        table.row([one.name.as_str(), &address, state, if one.chosen { "chosen" } else { "" }]);
        rows.push(
            json!({"name": one.name, "address": address, "up": one.up, "chosen": one.chosen}),
        );
    }
    let (works, reason) = match &found.reason {
        Ok(reason) => (true, reason.as_str()),
        Err(error) => (false, &*error.detail),
    };
    let what = if works { "why" } else { "error" };
    let text = format!("{}  {what}: {reason}\n", table.text());
    Part { name: "network", title, text, value: json!({"interfaces": rows, what: reason}) }
}

pub(super) fn launcher() -> Part {
    let (text, value) = match Launch::from_env(0) {
        Ok(launch) => {
            let (rank, world) = (launch.rank, launch.world);
            let mut text = format!("  {}: rank {rank} of {world}", launch.launcher);
            if let (Some(rank), Some(world)) = (launch.local_rank, launch.local_world) {
                text += &format!(", {rank} of {world} on this host");
            }
            text.push('\n');
            if let Some(warning) = launch.warning() {
                text += &format!("  {warning}\n");
            }
            (text, json!({"name": launch.launcher, "rank": rank, "world": world}))
        }
        Err(error) if is_none(&error) => {
            let text = "  none: no rank is set in the environment (unisono run, mpirun, srun and \
                        torchrun set one)\n";
            (text.to_owned(), Value::Null)
        }
        Err(error) => (format!("  half set: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    Part { name: "launcher", title: "Launcher".to_owned(), text, value }
}

fn is_none(error: &unisono::Error) -> bool {
    error.code == Code::NoLauncher || error.detail.starts_with("no launcher")
}

/// Which MPI calls would go by.
pub(super) fn mpi() -> Part {
    let found = Config::from_env().and_then(|config| unisono::comm::mpi(&config));
    let (text, value) = match found {
        Ok(line) => (format!("  {line}\n"), json!({"found": line})),
        Err(error) => (format!("  none: {}\n", error.detail), json!({"error": &*error.detail})),
    };
    Part { name: "mpi", title: "MPI (UNISONO_BACKEND=mpi)".to_owned(), text, value }
}

/// The knobs that are set, and whether they are understood.
pub(super) fn settings() -> Part {
    let mut table = Table::new(2, &[]);
    let mut set = serde_json::Map::new();
    for knob in KNOBS {
        if let Some(value) = std::env::var_os(knob.variable) {
            let value = value.to_string_lossy().into_owned();
            table.row([knob.variable, &value, knob.text]);
            set.insert(knob.variable.to_owned(), value.into());
        }
    }
    let mut text = table.text();
    if set.is_empty() {
        text = "  defaults everywhere (unisono info --knobs lists them)\n".to_owned();
    }
    if let Err(error) = Config::from_env() {
        text += &format!("  error: {}\n", error.detail);
        set.insert("error".to_owned(), (&*error.detail).into());
    }
    Part {
        name: "settings",
        title: "Settings in the environment".to_owned(),
        text,
        value: Value::Object(set),
    }
}
