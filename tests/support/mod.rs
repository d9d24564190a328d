//! Ranks as real processes: the test binary runs itself, and the copies do what they are told, a
//! line on standard input at a time.
//!
//! A test file that uses this has a `#[test] fn rank_program()` that calls [`rank_program`]: in a
//! copy (the variable [`ROLE`] is set) it never returns, in a normal run it does nothing. What a
//! rank says to its test begins with [`MARK`]; everything else on its output is noise of the test
//! runner.
#![allow(dead_code, missing_docs)]

mod calls;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use unisono::boot::id::UniqueId;
use unisono::comm::{Args, Communicator};
use unisono::config::Config;
use unisono::types::{Collective, Dtype, Rank, ReduceOp};
use unisono::{Error, Result};

/// Set in ranks.
pub(crate) const ROLE: &str = "UNISONO_TEST_ROLE";
/// Begins what a rank says.
pub(crate) const MARK: &str = "@@ ";
/// Ends whatever hangs. Never a measure of speed.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(90);

/// What a rank says of an error: code, culprit, text.
fn say_error(error: &Error) -> String {
    let peer = error.peer.map_or_else(|| "-".to_owned(), |r| r.0.to_string());
    format!("error {} peer={peer} {}", error.code, error.detail.replace('\n', " "))
}

fn say(text: &str) {
    // One write, so that lines of ranks that share a pipe stay whole.
    let line = format!("\n{MARK}{text}\n");
    let mut out = std::io::stdout();
    let _ = out.write_all(line.as_bytes()).and_then(|()| out.flush());
}

fn report(result: Result<()>) {
    match result {
        Ok(()) => say("ok"),
        Err(error) => say(&say_error(&error)),
    }
}

/// An all_reduce of `count` floats whose result is known.
pub(crate) fn checked_all_reduce(comm: &Communicator, count: usize) -> Result<()> {
    let (rank, world) = (comm.rank().0 as f32, comm.world_size() as f32);
    let send: Vec<f32> = (0..count).map(|i| (i % 13) as f32 + rank).collect();
    let mut recv = vec![0f32; count];
    comm.all_reduce(&send, &mut recv, ReduceOp::Sum)?;
    for (i, &x) in recv.iter().enumerate() {
        let wanted = world * (i % 13) as f32 + world * (world - 1.0) / 2.0;
        assert!(x == wanted, "element {i} is {x}, not {wanted}");
    }
    Ok(())
}

/// User and system time of this process, in milliseconds.
pub(crate) fn cpu_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("stat");
    let after = stat.rsplit_once(") ").expect("name").1;
    let fields: Vec<&str> = after.split(' ').collect();
    // Fields 14 and 15 of the whole line, in ticks of 10 ms.
    (fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")) * 10
}

fn init() -> Result<Communicator> {
    let number = |name: &str| std::env::var(name).ok().and_then(|t| t.parse::<i64>().ok());
    let config = Config::from_env()?;
    match std::env::var("UNISONO_TEST_ID") {
        Ok(id) => {
            let (rank, world) = (number("UNISONO_TEST_RANK"), number("UNISONO_TEST_WORLD"));
            Communicator::init_rank(&id.parse()?, rank.unwrap_or(0), world.unwrap_or(0), &config)
        }
        Err(_) => Communicator::init_env(&config),
    }
}

/// Does what it is told if this process is a rank; it then never returns.
pub(crate) fn rank_program() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let comm = match init() {
        Ok(comm) => comm,
        Err(error) => {
            say(&say_error(&error));
            std::process::exit(3);
        }
    };
    if role == "launched" {
        let done = checked_all_reduce(&comm, 100_003).and_then(|()| comm.barrier());
        let place = format!("rank {} of {}", comm.rank(), comm.world_size());
        let mut notes = comm.notes().iter();
        let note = notes.find(|n| n.starts_with("rank and world")).cloned().unwrap_or_default();
        match done.and_then(|()| comm.destroy()) {
            Ok(()) => say(&format!("{place} fine, {note}")),
            Err(error) => say(&format!("{place} {}", say_error(&error))),
        }
        std::process::exit(0);
    }
    say("ready");
    obey(comm);
    std::process::exit(0);
}

fn obey(comm: Communicator) {
    let comm = std::sync::Arc::new(comm);
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |i: usize| words.get(i).and_then(|w| w.parse::<usize>().ok()).unwrap_or(0);
        say(&format!("begins {line}"));
        match words[0] {
            "all_reduce" => report(checked_all_reduce(&comm, number(1))),
            "all_reduce_f64" => {
                let mut data = vec![1f64; number(1)];
                report(comm.all_reduce_in_place(&mut data, ReduceOp::Sum));
            }
            "calls" => report(calls::checked_calls(&comm, number(1))),
            "ordered" => calls::say_ordered(calls::ordered_sum(&comm, number(1))),
            "notes" => say(&format!("notes {}", comm.notes().join("; "))),
            "barrier" => report(comm.barrier()),
            "broadcast" => {
                let root = Rank(u32::try_from(number(2)).expect("rank"));
                report(comm.broadcast(&mut vec![7u8; number(1)], root));
            }
            "recv" => {
                let peer = Rank(u32::try_from(number(2)).expect("rank"));
                report(comm.recv(&mut vec![0u8; number(1)], peer));
            }
            "test_recv" => {
                let peer = Rank(u32::try_from(number(2)).expect("rank"));
                report(recv_by_testing(&comm, number(1), peer));
            }
            "send" => {
                let peer = Rank(u32::try_from(number(2)).expect("rank"));
                report(comm.send(&vec![0u8; number(1)], peer));
            }
            "loop" => report(loop {
                if let Err(error) = checked_all_reduce(&comm, number(1)) {
                    break Err(error);
                }
            }),
            "loop_exit" => {
                // Ends without a goodbye as soon as it has said why.
                let why = loop {
                    if let Err(error) = checked_all_reduce(&comm, number(1)) {
                        break Err(error);
                    }
                };
                report(why);
                std::process::exit(0);
            }
            "rounds" => {
                let mut rounds = (0..number(2)).map(|_| checked_all_reduce(&comm, number(1)));
                report(rounds.find(Result::is_err).unwrap_or(Ok(())));
            }
            "abort_behind" => {
                // From another thread, once this one is (nearly) inside the call that follows.
                let comm = comm.clone();
                std::thread::spawn(move || {
                    std::thread::sleep(Duration::from_millis(100));
                    comm.abort();
                });
                say("ok");
            }
            // Splits in two; with "full", where not one more file may be opened.
            "split" => {
                if words.get(2) == Some(&"full") {
                    no_more_files();
                }
                let color = i32::try_from(number(1)).expect("a color");
                report(comm.split(color, 0).map(drop));
            }
            "cpu" => say(&format!("cpu {}", cpu_ms())),
            "rss" => say(&format!("rss {}", rss_kb())),
            "exit" => std::process::exit(0),
            "destroy" => break,
            other => panic!("{other}?"),
        }
    }
    match std::sync::Arc::try_unwrap(comm) {
        Ok(comm) => report(comm.destroy()),
        Err(_) => say("still aborting"),
    }
}

/// From here on this process opens nothing.
fn no_more_files() {
    let next = std::fs::File::open("/dev/null").expect("the last one");
    let limit = u64::try_from(std::os::fd::AsRawFd::as_raw_fd(&next)).expect("a number");
    let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
    // SAFETY: `limit` is a local that lives through the call.
    let done = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) };
    assert_eq!(done, 0, "RLIMIT_NOFILE");
}

/// A receive that nothing but `test` moves on, between stretches of other work.
fn recv_by_testing(comm: &Communicator, count: usize, peer: Rank) -> Result<()> {
    let mut data = vec![0u8; count];
    let mut args = Args::new(Collective::Recv, Dtype::U8);
    (args.root, args.recv, args.count) = (i64::from(peer.0), data.as_mut_ptr(), count as u64);
    let call = comm.prepare(&args)?;
    // SAFETY: the data outlives the request, which has ended when this returns.
    let mut request = unsafe { comm.start(call) }?;
    while !request.test()? {
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Resident memory of this process in KiB.
pub(crate) fn rss_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("a number")
}

/// A rank in a process of its own. Killed when dropped.
pub(crate) struct Proc {
    pub(crate) child: Child,
    pub(crate) name: String,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Proc {
    /// Starts `command`, which must end up in [`rank_program`].
    pub(crate) fn start(mut command: Command, name: &str) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let output = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(std::io::Result::ok) {
                if let Some(text) = line.strip_prefix(MARK)
                    && sender.send(text.to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Self { input: child.stdin.take(), child, name: name.to_owned(), lines }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives the rank a command.
    pub(crate) fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("open");
        writeln!(input, "{line}").and_then(|()| input.flush()).expect("a living rank");
    }

    /// What it says next, without the echoes of commands.
    pub(crate) fn hear(&mut self) -> String {
        loop {
            let line = self.hear_any();
            if !line.starts_with("begins ") {
                return line;
            }
        }
    }

    /// What it says next.
    pub(crate) fn hear_any(&mut self) -> String {
        match self.lines.recv_timeout(WATCHDOG) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{} says nothing: it hangs", self.name),
            Err(RecvTimeoutError::Disconnected) => "gone".to_owned(),
        }
    }

    /// Whatever it still says until it ends.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        loop {
            match self.hear_any() {
                line if line == "gone" => return said,
                line => said.push(line),
            }
        }
    }

    pub(crate) fn signal(&self, number: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: a child of ours that has not been waited for, so the number is still its.
        assert_eq!(unsafe { libc::kill(pid, number) }, 0, "signal {number}");
    }

    /// Its exit status (`None`: by a signal), once it has ended.
    pub(crate) fn ended(&mut self) -> Option<i32> {
        self.input = None;
        let until = Instant::now() + WATCHDOG;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status.code();
            }
            assert!(Instant::now() < until, "{} does not end", self.name);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        // Already gone, mostly.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This test binary as a rank.
pub(crate) fn myself(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("an own name"));
    command.args(["--exact", "rank_program", "--nocapture", "--test-threads=1"]);
    command.env(ROLE, role);
    command
}

/// `command` as the last arguments of another program, which must become it.
pub(crate) fn within(wrapper: &[&str], command: &Command) -> Command {
    let mut outer = Command::new(wrapper[0]);
    outer.args(&wrapper[1..]).arg(command.get_program()).args(command.get_args());
    let set = |(name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
        Some((name.to_owned(), value?.to_owned()))
    };
    outer.envs(command.get_envs().filter_map(set));
    outer
}

/// The command of rank `rank` of the job of `id`.
pub(crate) fn rank_command(
    id: &UniqueId,
    rank: usize,
    world: usize,
    settings: &[(&str, &str)],
) -> Command {
    let mut command = myself("obey");
    command
        .env("UNISONO_TEST_ID", id.to_hex())
        .env("UNISONO_TEST_RANK", rank.to_string())
        .env("UNISONO_TEST_WORLD", world.to_string())
        .envs(settings.iter().copied());
    command
}

/// Rank `rank` of the job of `id`.
pub(crate) fn rank(id: &UniqueId, rank: usize, world: usize, settings: &[(&str, &str)]) -> Proc {
    Proc::start(rank_command(id, rank, world, settings), &format!("rank {rank} of {world}"))
}

/// A whole job, formed.
pub(crate) fn job(world: usize, settings: &[(&str, &str)]) -> Vec<Proc> {
    let id = unisono::unique_id().expect("an id");
    let mut ranks: Vec<Proc> = (0..world).map(|r| rank(&id, r, world, settings)).collect();
    for proc in &mut ranks {
        assert_eq!(proc.hear(), "ready", "{}", proc.name);
    }
    ranks
}

/// Tells every rank the same.
pub(crate) fn tell_all(ranks: &mut [Proc], line: &str) {
    ranks.iter_mut().for_each(|r| r.tell(line));
}

/// Every rank says `wanted`.
pub(crate) fn hear_all(ranks: &mut [Proc], wanted: &str) {
    for proc in ranks {
        assert_eq!(proc.hear(), wanted, "{}", proc.name);
    }
}

/// Waits until every rank has begun the command `line`.
pub(crate) fn begun(ranks: &mut [Proc], line: &str) {
    for proc in ranks {
        assert_eq!(proc.hear_any(), format!("begins {line}"), "{}", proc.name);
    }
}

/// A skip that the summary counts.
pub(crate) fn skip(what: &str, why: &str) {
    eprintln!("SKIPPED {what}: {why}");
    if let Ok(path) = std::env::var("UNISONO_TEST_SKIPS") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        let written = file.and_then(|mut f| f.write_all(format!("{what}: {why}\n").as_bytes()));
        written.expect("the list of skips");
    }
}
