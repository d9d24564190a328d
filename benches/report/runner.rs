//! Runs commands in turn, each with a limit on its time, and takes medians of what they print.
//!
//! A command leads a process group of its own. When its time is over the group is asked to end,
//! then killed; no other process is touched.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

/// From the request to end to the kill.
const GRACE: Duration = Duration::from_secs(5);

/// A command under a contestant's name.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) name: String,
    pub(super) words: Vec<String>,
    pub(super) env: Vec<(String, String)>,
}

impl Job {
    pub(super) fn new(name: &str, words: impl IntoIterator<Item = String>) -> Self {
        Self { name: name.to_owned(), words: words.into_iter().collect(), env: Vec::new() }
    }
}

/// How a command went.
#[derive(Debug)]
pub(super) struct Outcome {
    /// The JSON objects among the lines it printed.
    pub(super) lines: Vec<Value>,
    /// When it was started, in nanoseconds of the system's clock.
    pub(super) started_ns: u128,
    /// From its start to its end.
    pub(super) took: Duration,
    /// What went wrong.
    pub(super) fault: Option<String>,
}

/// Runs `job` for at most `limit`.
pub(super) fn run(job: &Job, limit: Duration) -> Outcome {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let begun = Instant::now();
    let mut outcome = Outcome {
        lines: Vec::new(),
        started_ns: since_epoch.as_nanos(),
        took: Duration::ZERO,
        fault: None,
    };
    let mut child = match spawn(job) {
        Ok(child) => child,
        Err(error) => {
            outcome.fault = Some(error);
            return outcome;
        }
    };
    let printed = reader(child.stdout.take());
    let said = reader(child.stderr.take());
    let status = wait(&mut child, begun + limit);
    outcome.took = begun.elapsed();
    // Nobody of the group is needed any more; whoever is left would keep the pipes open.
    signal(&child, libc::SIGKILL);
    let _ = child.wait();
    // BOUND: what left the group may hold a pipe for ever.
    let text = |pipe: Receiver<String>| pipe.recv_timeout(GRACE).unwrap_or_default();
    let (printed, said) = (text(printed), text(said));
    outcome.lines = objects(&printed);
    let last = last_lines(&said);
    outcome.fault = match status {
        None => Some(format!("ended after {} s", limit.as_secs())),
        Some(status) if !status.success() => Some(format!("{status}: {last}")),
        Some(_) if outcome.lines.is_empty() => Some(format!("no figures: {last}")),
        Some(_) => None,
    };
    outcome
}

fn spawn(job: &Job) -> Result<Child, String> {
    let (program, arguments) = job.words.split_first().ok_or("no command")?;
    let mut command = Command::new(program);
    command.args(arguments).envs(job.env.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    // SAFETY: between fork and exec only a system call is made.
    unsafe {
        command.pre_exec(|| {
            // A group of its own hears no Ctrl-C: it ends when we do. Should this fail, the
            // measurement is still good.
            let _ = libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            Ok(())
        });
    }
    command.spawn().map_err(|error| format!("{program}: {error}"))
}

/// Reads all of a pipe on a thread of its own.
fn reader(pipe: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read before an error counts.
            let _ = pipe.read_to_end(&mut bytes);
        }
        // Nobody may be waiting any more.
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    receiver
}

/// The status, or `None` when the time was over first.
fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    let mut pause = Duration::from_micros(200);
    let mut asked: Option<Instant> = None;
    // BOUND: `until`, and then the time of grace.
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return if asked.is_none() { Some(status) } else { None };
        }
        let now = Instant::now();
        match asked {
            None if now >= until => {
                signal(child, libc::SIGTERM);
                asked = Some(now);
            }
            Some(since) if now >= since + GRACE => return None,
            _ => {}
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// To the group that `child` leads; to nobody when there is none.
fn signal(child: &Child, signal: i32) {
    if let Ok(group) = i32::try_from(child.id()) {
        // SAFETY: the call takes numbers. The group is the one made above; its number is not given
        // away while a member lives, and a group without members is an error that means nothing.
        unsafe { libc::kill(-group, signal) };
    }
}

/// The end of what a command said: the reason, and what its launcher adds.
fn last_lines(said: &str) -> String {
    let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(3)..].join(" / ")
}

/// The JSON objects in `text`, one a line; launchers may put labels before them.
pub(super) fn objects(text: &str) -> Vec<Value> {
    let object = |line: &str| serde_json::from_str(&line[line.find('{')?..]).ok();
    text.lines().filter_map(object).collect()
}

/// What one contestant showed.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) name: String,
    /// By size: a figure of each round.
    pub(super) rows: BTreeMap<u64, Vec<f64>>,
    /// Each fault once.
    pub(super) faults: Vec<String>,
}

impl Seen {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    pub(super) fn medians(&self) -> BTreeMap<u64, f64> {
        let middle = |(&size, values): (&u64, &Vec<f64>)| Some((size, median(values)?));
        self.rows.iter().filter_map(middle).collect()
    }

    pub(super) fn fault(&mut self, text: String) {
        if !self.faults.contains(&text) {
            self.faults.push(text);
        }
    }

    /// Takes note of the sizes in `outcome`; a row with wrong data is no row.
    fn add(&mut self, outcome: Outcome, key: &str) {
        let mut found = false;
        for line in &outcome.lines {
            let (Some(at), Some(time)) = (line[key].as_u64(), line["median_us"].as_f64()) else {
                continue;
            };
            found = true;
            match line["wrong"].as_u64() {
                Some(wrong) if wrong > 0 => self.fault(format!("wrong data at {at} {key}")),
                _ => self.rows.entry(at).or_default().push(time),
            }
        }
        if let Some(fault) = outcome.fault {
            self.fault(fault);
        } else if !found {
            self.fault(format!("no line has {key} and median_us"));
        }
    }
}

/// How often, how long, and who hears of each command before it starts.
pub(super) struct Schedule<'a> {
    pub(super) rounds: usize,
    pub(super) limit: Duration,
    pub(super) tell: &'a dyn Fn(usize, &str),
}

impl Schedule<'_> {
    /// Runs every job once in each round, in turn, and gives each outcome to `each`.
    pub(super) fn run(&self, jobs: &[Job], mut each: impl FnMut(usize, Outcome)) {
        for round in 1..=self.rounds {
            for (index, job) in jobs.iter().enumerate() {
                (self.tell)(round, &job.name);
                let outcome = run(job, self.limit);
                if let Some(fault) = &outcome.fault {
                    (self.tell)(round, &format!("{}: {fault}", job.name));
                }
                each(index, outcome);
            }
        }
    }

    /// Times by what `key` names in the lines that the jobs print.
    pub(super) fn times(&self, jobs: &[Job], key: &str) -> Vec<Seen> {
        let mut seen: Vec<Seen> = jobs.iter().map(|job| Seen::new(&job.name)).collect();
        self.run(jobs, |index, outcome| seen[index].add(outcome, key));
        seen
    }
}

/// The middle value; of an even number the mean of the middle two.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let odd = !sorted.len().is_multiple_of(2);
    Some(if odd { upper } else { f64::midpoint(sorted[sorted.len() / 2 - 1], upper) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(name: &str, script: &str) -> Job {
        Job::new(name, ["sh", "-c", script].map(str::to_owned))
    }

    #[test]
    fn medians_of_none_odd_and_even() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn objects_are_found_behind_labels_and_among_other_lines() {
        let found = objects("# head\n[0] {\"bytes\":8,\"median_us\":1.5}\n{broken\n\n{\"a\":1}\n");
        assert_eq!(found.len(), 2);
        assert_eq!(found[0]["bytes"], 8);
    }

    #[test]
    fn rounds_take_turns_and_wrong_data_is_no_figure() {
        let good = shell("good", r#"echo '{"bytes":8,"median_us":2.5,"wrong":0}'"#);
        let bad = shell("bad", r#"echo '{"bytes":8,"median_us":0.1,"wrong":3}'; exit 1"#);
        let order = std::cell::RefCell::new(Vec::new());
        let tell = |round: usize, name: &str| order.borrow_mut().push(format!("{name}{round}"));
        let schedule = Schedule { rounds: 2, limit: Duration::from_secs(60), tell: &tell };
        let seen = schedule.times(&[good, bad], "bytes");
        let failed = "bad: exit status: 1: ";
        let turns =
            ["good1", "bad1", &format!("{failed}1"), "good2", "bad2", &format!("{failed}2")];
        assert_eq!(order.take(), turns);
        assert_eq!(seen[0].medians(), BTreeMap::from([(8, 2.5)]));
        assert_eq!(seen[0].rows[&8].len(), 2);
        assert!(seen[1].medians().is_empty());
        assert_eq!(seen[1].faults.len(), 2, "{:?}", seen[1].faults);
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended_and_what_it_printed_counts() {
        let job = shell("slow", r#"echo '{"bytes":8,"median_us":1}'; sleep 100"#);
        let outcome = run(&job, Duration::from_millis(500));
        assert_eq!(outcome.lines.len(), 1);
        assert!(outcome.fault.expect("late").starts_with("ended after"));
    }

    #[test]
    fn a_command_that_is_not_there_is_a_fault() {
        let job = Job::new("none", ["/no/such/program".to_owned()]);
        assert!(run(&job, Duration::from_secs(9)).fault.expect("a fault").contains("/no/such"));
    }
}
