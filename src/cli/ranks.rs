//! Ranks for `perf` and `check`: threads of this process, copies of this program, or what a
//! launcher has started.
//!
//! Copies meet by an id that this process serves. Each reads its standard input until it ends, so
//! that none outlives the process that started it, however that one ends.

use std::io::Read;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use unisono::boot::env::Launch;
use unisono::config::{Config, Family};
use unisono::{Communicator, Result};

/// How ranks reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Link {
    /// Ranks are threads of one process.
    Mem,
    /// Ranks are processes that share memory.
    Shm,
    /// Ranks are processes; everything goes through sockets.
    Tcp,
    /// Ranks are processes; everything goes by RDMA cards.
    Rdma,
    /// Ranks are processes; everything goes by RDMA cards, by sockets of librdmacm.
    Rsocket,
    /// Ranks are processes that `mpirun` has started; MPI moves everything. Not a link, but in its
    /// place where there is none to choose.
    #[value(skip)]
    Mpi,
}

impl Link {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
            Self::Rsocket => "rsocket",
            Self::Mpi => "mpi",
        }
    }

    /// Lets `config` use this link only.
    pub(crate) fn apply(self, config: &mut Config) {
        match self {
            Self::Mem => {}
            Self::Shm | Self::Tcp | Self::Rdma | Self::Rsocket => {
                (config.shm, config.tcp) = (self == Self::Shm, self == Self::Tcp);
                (config.rdma, config.rsocket) = (self == Self::Rdma, self == Self::Rsocket);
            }
            Self::Mpi => config.backend = Family::Mpi,
        }
    }
}

/// Whether a launcher (or [`Ranks::start`]) has made this process a rank.
pub(crate) fn is_rank() -> bool {
    Launch::from_env(0).is_ok()
}

/// Whether [`Ranks::start`] has made this process a rank.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Marks a process that [`Ranks::start`] has started.
const CHILD: &str = "UNISONO_CLI_CHILD";

/// Ends this process when the one that started it has gone; nothing for other processes.
pub(crate) fn follow_parent() {
    if !is_child() {
        return;
    }
    std::thread::spawn(|| {
        let mut bytes = [0; 16];
        // BOUND: as long as the parent lives; it writes nothing.
        while std::io::stdin().read(&mut bytes).is_ok_and(|count| count > 0) {}
        std::process::exit(1);
    });
}

/// Once a rank has failed the others have this long to say what they saw.
const GRACE: Duration = Duration::from_secs(5);

/// Copies of this program that are ranks. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Ranks {
    children: Vec<Child>,
}

impl Ranks {
    /// Starts `world` copies of this program with `arguments`; `piped`: their output is to be read.
    ///
    /// # Errors
    /// No id could be served, or a process could not start.
    pub(crate) fn start(world: usize, arguments: &[String], piped: bool) -> Result<Self> {
        let id = unisono::unique_id()?.to_hex();
        let program =
            std::env::current_exe().map_err(|e| unisono::Error::os(&e, "finding this program"))?;
        let mut ranks = Self { children: Vec::new() };
        for rank in 0..world {
            let child = Command::new(&program)
                .args(arguments)
                .env(CHILD, "1")
                .env("UNISONO_ID", &id)
                .env("UNISONO_RANK", rank.to_string())
                .env("UNISONO_WORLD", world.to_string())
                .env("UNISONO_LOCAL_RANK", rank.to_string())
                .env("UNISONO_LOCAL_WORLD", world.to_string())
                .stdin(Stdio::piped())
                .stdout(if piped { Stdio::piped() } else { Stdio::inherit() })
                .spawn()
                .map_err(|e| unisono::Error::os(&e, format!("starting rank {rank}")))?;
            ranks.children.push(child);
        }
        Ok(ranks)
    }

    /// What the ranks print, in rank order; once.
    pub(crate) fn outputs(&mut self) -> Vec<ChildStdout> {
        self.children.iter_mut().filter_map(|child| child.stdout.take()).collect()
    }

    /// Ends all that run.
    pub(crate) fn end(&mut self) {
        // All at once: who is left alone for a while has an error to tell.
        for child in &mut self.children {
            // It may have ended already; then there is nothing to end.
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }

    /// Waits until all have ended, at most `limit`; their statuses in rank order.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Vec<Option<ExitStatus>> {
        let mut until = limit.map(|limit| Instant::now() + limit);
        let mut ended: Vec<Option<ExitStatus>> = vec![None; self.children.len()];
        let mut pause = Duration::from_millis(1);
        let mut failed = false;
        // BOUND: `until`, and after the first failure the time of grace.
        while ended.iter().any(Option::is_none) {
            for (child, status) in self.children.iter_mut().zip(&mut ended) {
                if status.is_none() {
                    *status = child.try_wait().unwrap_or(None);
                }
            }
            if !failed && ended.iter().flatten().any(|status| !status.success()) {
                failed = true;
                let late = Instant::now() + GRACE;
                until = Some(until.map_or(late, |until| until.min(late)));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        self.end();
        ended
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs `body` for each of `world` ranks that are threads of this process; results in rank order.
///
/// # Errors
/// The communicators could not form.
pub(crate) fn threads<R: Send>(
    world: usize,
    config: &Config,
    body: impl Fn(Communicator) -> R + Sync,
) -> Result<Vec<R>> {
    let world = i64::try_from(world).unwrap_or(i64::MAX);
    let comms = Communicator::init_all(world, config)?;
    let body = &body;
    Ok(std::thread::scope(|scope| {
        let start = |comm| scope.spawn(move || body(comm));
        let running: Vec<_> = comms.into_iter().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, R>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        running.into_iter().map(join).collect()
    }))
}
