//! What the launcher says in the environment: who this process is and where the others are.
//!
//! The reading is a pure function of the variables and a few facts about the process, so that its
//! table of cases is tested without setting a variable. Launchers are tried from the most specific
//! to the least: `unisono run`, torchrun, Open MPI, Hydra (MPICH, Intel MPI), Slurm. The first
//! whose rank and world are both set wins, so a half set one hides none that is whole.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::id::UniqueId;
use super::key::Key;
use super::meet::FILE_NAME;
use crate::error::{Code, Error, Result, quoted};
use crate::sys::process;
use crate::types::WORLD_MAX;

/// Where the ranks of a job meet.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Root {
    /// The launcher gave a whole id; somebody serves it already.
    Id(UniqueId),
    /// Rank 0 serves at this port of this host.
    Address {
        /// A name or an address of rank 0's host.
        host: String,
        /// The port.
        port: u16,
    },
    /// All ranks are on one host; rank 0 writes its id to this private file.
    File(PathBuf),
}

/// What the environment says about this process.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Launch {
    /// Its rank.
    pub rank: u32,
    /// The number of ranks.
    pub world: u32,
    /// Its number among the ranks of its host, where the launcher tells.
    pub local_rank: Option<u32>,
    /// The number of ranks on its host, where the launcher tells.
    pub local_world: Option<u32>,
    /// Who started it.
    pub launcher: &'static str,
    /// Where the ranks meet.
    pub rendezvous: Root,
    /// The key comes from data others can know: whoever reaches the ports can join the job.
    pub weak_key: bool,
    /// The job's key, for roots that do not bring their own.
    pub(crate) key: Option<Key>,
}

/// The environment's variables.
pub(crate) type Vars = BTreeMap<String, OsString>;

/// What the reading needs to know about the process besides its variables.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// A private directory for rendezvous files; it need not exist yet.
    pub directory: PathBuf,
    /// The launcher's process on this host and when it started.
    pub launcher: (u32, u64),
}

struct Launcher {
    name: &'static str,
    rank: &'static str,
    world: &'static [&'static str],
    local_rank: &'static str,
    local_world: Option<&'static str>,
    /// Variables that tell this job from others, the same on all its ranks.
    job: &'static [&'static str],
}

const LAUNCHERS: &[Launcher] = &[
    Launcher {
        name: "unisono run",
        rank: "UNISONO_RANK",
        world: &["UNISONO_WORLD"],
        local_rank: "UNISONO_LOCAL_RANK",
        local_world: Some("UNISONO_LOCAL_WORLD"),
        job: &["UNISONO_JOB_ID"],
    },
    Launcher {
        name: "torchrun",
        rank: "RANK",
        world: &["WORLD_SIZE"],
        local_rank: "LOCAL_RANK",
        local_world: Some("LOCAL_WORLD_SIZE"),
        job: &["TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "MASTER_ADDR", "MASTER_PORT"],
    },
    Launcher {
        name: "Open MPI's mpirun",
        rank: "OMPI_COMM_WORLD_RANK",
        world: &["OMPI_COMM_WORLD_SIZE"],
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
        local_world: Some("OMPI_COMM_WORLD_LOCAL_SIZE"),
        job: &["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"],
    },
    Launcher {
        name: "Hydra (MPICH or Intel MPI)",
        rank: "PMI_RANK",
        world: &["PMI_SIZE"],
        local_rank: "MPI_LOCALRANKID",
        local_world: Some("MPI_LOCALNRANKS"),
        job: &["PMI_KVSNAME", "PMI_JOBID"],
    },
    Launcher {
        name: "Slurm's srun",
        rank: "SLURM_PROCID",
        world: &["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"],
        local_rank: "SLURM_LOCALID",
        // Slurm tells the tasks of every node, in words.
        local_world: None,
        job: &["SLURM_JOB_ID", "SLURM_STEP_ID"],
    },
];

/// Variables of ours that must be text. The key may be any bytes.
const TEXTS: &[&str] = &[
    "UNISONO_RANK",
    "UNISONO_WORLD",
    "UNISONO_LOCAL_RANK",
    "UNISONO_LOCAL_WORLD",
    "UNISONO_JOB_ID",
    "UNISONO_ID",
    "UNISONO_ROOT",
    "UNISONO_PORT",
    "UNISONO_REQUIRE_KEY",
];

/// Processes that start ranks on a host; the ranks may be wrapped in scripts of their own.
const STARTERS: &[&str] = &[
    "hydra_pmi_proxy",
    "hydra_bstrap_pr",
    "pmi_proxy",
    "prterun",
    "prted",
    "orted",
    "mpirun",
    "mpiexec",
    "mpiexec.hydra",
    "slurmstepd",
    "unisono",
];

impl Launch {
    /// Reads the environment. `instance` counts the communicators made this way one after the
    /// other, from 0, so that they do not meet each other's.
    ///
    /// # Errors
    /// `NoLauncher` when no launcher's variables are set; `InvalidEnvironment` names the variable
    /// that is missing or wrong and its launcher.
    pub fn from_env(instance: u32) -> Result<Self> {
        // A name that is not text cannot be ours.
        let named = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value));
        let vars: Vars = std::env::vars_os().filter_map(named).collect();
        Self::from_vars(&vars, instance, &Facts::of_process(&vars))
    }

    /// Reads a table of variables.
    pub(crate) fn from_vars(vars: &Vars, instance: u32, facts: &Facts) -> Result<Self> {
        let not_text = |name: &&&str| vars.get(**name).is_some_and(|v| v.to_str().is_none());
        if let Some(name) = TEXTS.iter().find(not_text) {
            return Err(bad(name, &vars[*name].to_string_lossy(), "text (UTF-8)"));
        }
        let launcher = find(vars)?;
        let rank = number(vars, launcher.name, launcher.rank)?.unwrap_or(0);
        let world_name = launcher.world.iter().find(|name| is_set(vars, name));
        let world_name = world_name.copied().unwrap_or(launcher.world[0]);
        let world = number(vars, launcher.name, world_name)?.unwrap_or(0);
        if world == 0 || world > WORLD_MAX || rank >= world {
            let text = format!(
                "{}: {}={rank} and {world_name}={world} name no rank of 1 to {WORLD_MAX}",
                launcher.name, launcher.rank
            );
            return Err(Error::new(Code::InvalidEnvironment, text));
        }
        let local_rank = number(vars, launcher.name, launcher.local_rank)?;
        let named = launcher.local_world.map(|name| number(vars, launcher.name, name));
        let mut local_world = named.transpose()?.flatten();
        if local_world.is_none() && one_host(vars) {
            local_world = Some(world);
        }
        // One rank is alone wherever it is.
        let alone = world == 1 || local_world == Some(world);
        let job = Job { launcher, vars, facts, instance, alone };
        let (rendezvous, key, weak_key) = job.root()?;
        Ok(Self {
            rank,
            world,
            local_rank,
            local_world,
            launcher: launcher.name,
            rendezvous,
            weak_key,
            key,
        })
    }

    /// A sentence for the log when the key is weak.
    #[must_use]
    pub fn warning(&self) -> Option<String> {
        self.weak_key.then(|| {
            "the job's key comes from public data, so whoever reaches its ports can join: set \
             UNISONO_JOB_KEY to the same secret on every rank"
                .to_owned()
        })
    }
}

impl Facts {
    fn of_process(vars: &Vars) -> Self {
        let user = process::user_id();
        let runtime = vars.get("XDG_RUNTIME_DIR").map(PathBuf::from);
        let runtime = runtime.filter(|path| path.is_absolute() && path.is_dir());
        let directory = runtime.map_or_else(
            || PathBuf::from(format!("/tmp/unisono-{user}")),
            |path| path.join("unisono"),
        );
        Self { directory, launcher: starter() }
    }
}

/// The process that started the ranks of this host: the nearest ancestor that is a launcher, else
/// the parent.
fn starter() -> (u32, u64) {
    let found = process::ancestors().find(|(_, name)| STARTERS.contains(&name.as_str()));
    let chosen = found.map_or_else(std::os::unix::process::parent_id, |(pid, _)| pid);
    (chosen, process::start_ticks(chosen).unwrap_or(0))
}

fn is_set(vars: &Vars, name: &str) -> bool {
    value(vars, name).is_some()
}

fn value<'a>(vars: &'a Vars, name: &str) -> Option<&'a str> {
    let text = vars.get(name).and_then(|value| value.to_str());
    text.map(str::trim).filter(|value| !value.is_empty())
}

/// The job's secret: text without the blanks around it, or any other bytes.
fn job_key(vars: &Vars) -> Option<&[u8]> {
    let value = vars.get("UNISONO_JOB_KEY")?;
    let bytes = match value.to_str() {
        Some(text) => text.trim().as_bytes(),
        None => value.as_bytes().trim_ascii(),
    };
    (!bytes.is_empty()).then_some(bytes)
}

/// Whether a key that others can know is forbidden.
fn requires_key(vars: &Vars) -> Result<bool> {
    match value(vars, "UNISONO_REQUIRE_KEY") {
        None | Some("0") => Ok(false),
        Some("1") => Ok(true),
        Some(other) => Err(bad("UNISONO_REQUIRE_KEY", other, "0 or 1")),
    }
}

fn number(vars: &Vars, launcher: &str, name: &str) -> Result<Option<u32>> {
    let Some(text) = value(vars, name) else {
        return Ok(None);
    };
    text.parse().map(Some).map_err(|_| {
        let text = format!("{launcher}: {name}={} is no number", quoted(text));
        Error::new(Code::InvalidEnvironment, text)
    })
}

/// The first launcher whose rank and world are both set.
fn find(vars: &Vars) -> Result<&'static Launcher> {
    let has_world = |one: &Launcher| one.world.iter().any(|name| is_set(vars, name));
    if let Some(whole) = LAUNCHERS.iter().find(|one| is_set(vars, one.rank) && has_world(one)) {
        return Ok(whole);
    }
    for one in LAUNCHERS {
        let (set, missing) = match (is_set(vars, one.rank), has_world(one)) {
            (true, _) => (one.rank, one.world[0]),
            (_, true) => (one.world[0], one.rank),
            _ => continue,
        };
        let text = format!("{}: {set} is set, {missing} is missing", one.name);
        return Err(Error::new(Code::InvalidEnvironment, text));
    }
    if is_set(vars, "UNISONO_ID") {
        let text = "unisono run: UNISONO_ID is set, UNISONO_RANK and UNISONO_WORLD are missing";
        return Err(Error::new(Code::InvalidEnvironment, text));
    }
    let pairs = LAUNCHERS.iter().map(|one| {
        let worlds = one.world.join(" or ");
        format!("{} and {worlds} ({})", one.rank, one.name)
    });
    let text = format!("looked for {}", pairs.collect::<Vec<_>>().join(", "));
    Err(Error::new(Code::NoLauncher, text))
}

/// Whether other variables than the launcher's say that there is one host only.
fn one_host(vars: &Vars) -> bool {
    let nodes = value(vars, "SLURM_STEP_NUM_NODES").or_else(|| value(vars, "SLURM_NNODES"));
    nodes == Some("1")
        || value(vars, "MASTER_ADDR").is_some_and(|host| {
            host == "localhost"
                || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        })
}

/// One job of one launcher, on its way to a root.
struct Job<'a> {
    launcher: &'static Launcher,
    vars: &'a Vars,
    facts: &'a Facts,
    instance: u32,
    /// All ranks are on this host.
    alone: bool,
}

impl Job<'_> {
    /// Where the ranks meet, with which key, and whether others could know it.
    fn root(&self) -> Result<(Root, Option<Key>, bool)> {
        let required = requires_key(self.vars)?;
        if let Some(text) = value(self.vars, "UNISONO_ID") {
            if self.instance > 0 {
                let text = "UNISONO_ID serves one communicator; split it to get more";
                return Err(Error::new(Code::Unsupported, text));
            }
            return Ok((Root::Id(text.parse()?), None, false));
        }
        let key = job_key(self.vars);
        let explicit = is_set(self.vars, "UNISONO_ROOT");
        if self.alone && !explicit && key.is_none() {
            return Ok((Root::File(self.facts.directory.join(self.file_name())), None, false));
        }
        let Some((host, port)) = self.address()? else {
            if self.alone {
                return Ok((Root::File(self.facts.directory.join(self.file_name())), None, false));
            }
            let text = format!(
                "{}: ranks on several hosts need UNISONO_ROOT=host:port of rank 0 and a secret \
                 UNISONO_JOB_KEY (or UNISONO_ID)",
                self.launcher.name
            );
            return Err(Error::new(Code::InvalidEnvironment, text));
        };
        let (key, weak) = match key {
            Some(bytes) => (Key::from_text(bytes), false),
            None if required => {
                let text = "UNISONO_REQUIRE_KEY is 1 and there is no key: set UNISONO_JOB_KEY to \
                            the same secret on every rank";
                return Err(Error::new(Code::InvalidEnvironment, text));
            }
            None => {
                let public = format!("weak {host} {port} {}", self.identity().unwrap_or_default());
                (Key::from_text(public.as_bytes()), true)
            }
        };
        Ok((Root::Address { host, port }, Some(key), weak))
    }

    /// What tells this job from others, from variables that are the same on all its ranks.
    fn identity(&self) -> Option<String> {
        let set = |name: &&str| Some(format!("{name}={}", value(self.vars, name)?));
        let words: Vec<String> = self.launcher.job.iter().filter_map(set).collect();
        if words.is_empty() {
            return None;
        }
        Some(format!("{} {} {}", self.launcher.name, words.join(" "), self.instance))
    }

    fn hash(&self, identity: &str) -> blake3::Hash {
        blake3::hash(format!("unisono job {identity} {}", self.instance).as_bytes())
    }

    fn file_name(&self) -> String {
        let (pid, start) = self.facts.launcher;
        let identity =
            self.identity().unwrap_or_else(|| format!("{} {pid} {start}", self.launcher.name));
        format!("{FILE_NAME}{}", &self.hash(&identity).to_hex()[..32])
    }

    /// Rank 0's host and port, where the variables tell.
    fn address(&self) -> Result<Option<(String, u16)>> {
        let port_set = number(self.vars, "unisono", "UNISONO_PORT")?;
        let (host, port) = if let Some(root) = value(self.vars, "UNISONO_ROOT") {
            let split = root.rsplit_once(':');
            let split = split.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
            let Some((host, port)) = split.filter(|(host, port)| !host.is_empty() && *port > 0)
            else {
                return Err(bad("UNISONO_ROOT", root, "host:port"));
            };
            (host.trim_matches(['[', ']']).to_owned(), u32::from(port))
        } else if let Some(host) = value(self.vars, "MASTER_ADDR") {
            let master = number(self.vars, self.launcher.name, "MASTER_PORT")?;
            // The agent serves its own store at MASTER_PORT for the whole job.
            let agent = value(self.vars, "TORCHELASTIC_USE_AGENT_STORE") == Some("True");
            let port = port_set.or_else(|| Some(master? + u32::from(agent)));
            let Some(port) = port else {
                let text =
                    format!("{}: MASTER_ADDR is set, MASTER_PORT is missing", self.launcher.name);
                return Err(Error::new(Code::InvalidEnvironment, text));
            };
            (host.to_owned(), port)
        } else if let Some((name, list)) = slurm_nodes(self.vars) {
            let Some(host) = super::nodelist::first_host(list) else {
                return Err(bad(name, list, "a list of hosts"));
            };
            let derived = || {
                let identity = self.identity().unwrap_or_default();
                let bytes = self.hash(&identity);
                let number = u16::from_le_bytes([bytes.as_bytes()[0], bytes.as_bytes()[1]]);
                // Below the range from which the system takes ports for outgoing connections.
                20_000 + u32::from(number % 12_000)
            };
            // A derived port differs by instance already.
            let given = port_set.map(|port| port.saturating_add(self.instance));
            return Ok(Some((host, self.checked_port(given.unwrap_or_else(derived))?)));
        } else {
            return Ok(None);
        };
        Ok(Some((host, self.checked_port(port.saturating_add(self.instance))?)))
    }

    fn checked_port(&self, port: u32) -> Result<u16> {
        u16::try_from(port).ok().filter(|&port| port > 0).ok_or_else(|| {
            let text = format!("{}: there is no port {port}", self.launcher.name);
            Error::new(Code::InvalidEnvironment, text)
        })
    }
}

fn slurm_nodes(vars: &Vars) -> Option<(&'static str, &str)> {
    ["SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST"]
        .into_iter()
        .find_map(|name| Some((name, value(vars, name)?)))
}

fn bad(name: &str, value: &str, wanted: &str) -> Error {
    Error::new(Code::InvalidEnvironment, format!("{name}={} is not {wanted}", quoted(value)))
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
