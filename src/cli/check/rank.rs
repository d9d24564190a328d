//! What one rank does: every section's cases, in the order in which every other rank does them.

use std::io::Write;
use std::process::ExitCode;
use std::sync::{Barrier, Mutex};
use std::time::Duration;

use unisono::boot::id::UniqueId;
use unisono::comm::DeviceStream;
use unisono::config::{Config, Level};
use unisono::{Communicator, Error, Rank, Result};

use super::Options;
use super::event::{Event, Verdict};
use super::suite::{Act, Section, sections};
use crate::cli::data::Case;
use crate::cli::data::memory::Source;
use crate::cli::data::pattern::{Flavor, Patterns};
use crate::cli::data::shape::Shape;
use crate::cli::ranks::Link;

/// A call that should end ends well before this.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);

/// Where threads get communicators from.
#[derive(Debug)]
pub(super) struct Meeting {
    barrier: Barrier,
    made: Mutex<Vec<Option<Result<Communicator>>>>,
}

impl Meeting {
    pub(super) fn new(world: usize) -> Self {
        Self { barrier: Barrier::new(world), made: Mutex::new(Vec::new()) }
    }

    fn fresh(&self, rank: usize, world: u32, config: &Config) -> Result<Communicator> {
        let made = || self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if rank == 0 {
            *made() = match Communicator::init_all(i64::from(world), config) {
                Ok(comms) => comms.into_iter().map(|comm| Some(Ok(comm))).collect(),
                Err(error) => (0..world).map(|_| Some(Err(error.clone()))).collect(),
            };
        }
        self.barrier.wait();
        let mine = made()[rank].take();
        self.barrier.wait();
        mine.unwrap_or_else(|| {
            Err(Error::new(unisono::Code::Internal, "no communicator for this thread"))
        })
    }
}

/// A rank's way to new communicators of the whole world.
#[derive(Debug)]
pub(super) struct Home<'a> {
    /// Plain calls that the cases themselves do not disturb.
    pub(super) control: &'a Communicator,
    pub(super) link: Link,
    options: &'a Options,
    meeting: Option<&'a Meeting>,
}

impl Home<'_> {
    /// A communicator with these settings; every rank must ask for it.
    ///
    /// # Errors
    /// It could not form.
    pub(super) fn fresh(&self, config: &Config) -> Result<Communicator> {
        let (rank, world) = (self.control.rank(), self.control.world_size());
        let mut config = config.clone();
        config.timeout = Some(config.timeout.map_or(TIMEOUT, |t| t.min(TIMEOUT)));
        config.init_timeout = TIMEOUT;
        // Errors that a case asks for are no news to an operator.
        config.log = Level::Off;
        self.options.apply(self.link, &mut config)?;
        if let Some(meeting) = self.meeting {
            return meeting.fresh(rank.index(), world, &config);
        }
        let mut bytes = if rank.0 == 0 { unisono::unique_id()?.encode() } else { [0; 128] };
        self.control.broadcast(&mut bytes, Rank(0))?;
        let id = UniqueId::decode(&bytes)?;
        Communicator::init_rank(&id, i64::from(rank.0), i64::from(world), &config)
    }
}

/// What a case sees.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) home: &'a Home<'a>,
    pub(super) comm: &'a Communicator,
    pub(super) config: &'a Config,
    pub(super) patterns: &'a mut Patterns,
    /// Calls made so far: no two move the same data.
    pub(super) calls: usize,
    /// On a GPU: every other call is in this stream.
    pub(super) stream: Option<DeviceStream>,
}

impl Bench<'_> {
    pub(super) fn me(&self) -> usize {
        self.comm.rank().index()
    }

    pub(super) fn world(&self) -> usize {
        self.comm.world_size() as usize
    }

    /// Where the next call's data begins in the patterns.
    pub(super) fn phase(&mut self) -> usize {
        self.calls += 1;
        self.calls * 17
    }

    /// A call of this shape, filled: with exact sums where it reduces, else with any bits.
    pub(super) fn filled(&mut self, shape: &Shape, source: Source) -> Result<Case> {
        let flavor = if shape.kind.reduces() { Flavor::Exact } else { Flavor::Bits };
        let mut case = Case::new(shape, self.comm, flavor, source)?;
        let phase = self.phase();
        case.fill(self.patterns, phase)?;
        Ok(case)
    }

    /// Fills, runs and compares one call.
    pub(super) fn call(&mut self, act: &super::suite::Call) -> Result<Verdict> {
        let phase = self.phase();
        let mut case = Case::new(&act.shape, self.comm, act.flavor, act.source)?;
        // Host memory of the communicator has no place in a stream.
        let plain = act.source == Source::Plain;
        for _ in 0..act.repeats {
            case.fill(self.patterns, phase)?;
            match &self.stream {
                Some(stream) if plain && self.calls.is_multiple_of(2) => {
                    case.run_in(self.comm, stream)?;
                }
                _ => case.run(self.comm)?,
            }
            let wrong = case.wrong(self.patterns)?;
            if wrong > 0 {
                return Ok(Verdict::Failed(describe(&act.shape, wrong)));
            }
        }
        case.free(self.comm)?;
        Ok(Verdict::Passed)
    }
}

/// Wrong elements and all there is to know of the call.
pub(super) fn describe(shape: &Shape, wrong: u64) -> String {
    format!(
        "{wrong} wrong elements in {} {} {} count {} counts {:?} gap {} root {} skew {}{}",
        shape.kind.name(),
        shape.dtype,
        shape.op,
        shape.count,
        if shape.kind.ragged() { &shape.counts[..] } else { &[] },
        shape.gap,
        shape.root,
        shape.skew,
        if shape.in_place { " in place" } else { "" }
    )
}

/// A rank that is a process of its own.
pub(super) fn process(options: &Options) -> ExitCode {
    let mut config = Config { init_timeout: TIMEOUT, timeout: Some(TIMEOUT), ..Config::default() };
    let applied = options.apply(options.link[0], &mut config);
    let comm = match applied.and_then(|()| Communicator::init_env(&config)) {
        Ok(comm) => comm,
        Err(error) => return crate::cli::fail(error),
    };
    let home = Home { control: &comm, link: options.link[0], options, meeting: None };
    run(options, &home, &mut |event| {
        let mut out = std::io::stdout().lock();
        // A collector that has given up needs no more news.
        let _ = writeln!(out, "{}", event.encode()).and_then(|()| out.flush());
    });
    ExitCode::SUCCESS
}

/// A rank that `mpirun` has started, on the MPI backend. What the cases need to meet and to recover
/// goes by the native one.
///
/// # Errors
/// The ranks could not meet.
pub(super) fn launched(options: &Options, tell: &mut dyn FnMut(Event)) -> Result<Communicator> {
    let mut config = Config { init_timeout: TIMEOUT, timeout: Some(TIMEOUT), ..Config::default() };
    (config.bootstrap_mpi, config.mpi_lib) = (true, Config::from_env()?.mpi_lib);
    let comm = Communicator::init_env(&config)?;
    run(options, &Home { control: &comm, link: Link::Mpi, options, meeting: None }, tell);
    Ok(comm)
}

/// A rank that is a thread.
#[expect(clippy::needless_pass_by_value, reason = "a thread owns its communicator")]
pub(super) fn thread(
    options: &Options,
    comm: Communicator,
    meeting: &Meeting,
    mut tell: impl FnMut(Event),
) {
    let home = Home { control: &comm, link: Link::Mem, options, meeting: Some(meeting) };
    run(options, &home, &mut tell);
}

fn run(options: &Options, home: &Home<'_>, tell: &mut dyn FnMut(Event)) {
    let world = home.control.world_size();
    let mut patterns = Patterns::new(options.seed, world as usize);
    for section in sections(world, home.link, options.depth()) {
        let chosen = section.cases.iter().any(|case| section.selects(case, &options.filter));
        if chosen {
            run_section(options, home, &section, &mut patterns, tell);
        }
    }
    tell(Event::Done);
}

fn run_section(
    options: &Options,
    home: &Home<'_>,
    section: &Section,
    patterns: &mut Patterns,
    tell: &mut dyn FnMut(Event),
) {
    let name = |case: &str| format!("{}: {case}", section.name);
    let comm = match home.fresh(&section.config) {
        Ok(comm) => comm,
        Err(error) => {
            tell(Event::Begin(name("a communicator forms")));
            tell(Event::End(Verdict::Failed(error.to_string())));
            return;
        }
    };
    // Calls in a stream need somebody who drives.
    let stream = section.config.progress_thread.then(|| comm.device_stream());
    let stream = stream.and_then(|made| made.unwrap_or_default());
    let mut bench =
        Bench { home, comm: &comm, config: &section.config, patterns, calls: 0, stream };
    for case in section.cases.iter().filter(|case| section.selects(case, &options.filter)) {
        tell(Event::Begin(name(&case.name)));
        let outcome = match (&case.act, comm.broken()) {
            (Act::Skip(reason), _) => Ok(Verdict::Skipped((*reason).to_owned())),
            // Every rank makes the special cases: they may meet on other communicators.
            (Act::Special(special), _) => special(&mut bench),
            (Act::Call(call), None) => bench.call(call),
            (Act::Call(_), Some(error)) => {
                let code = error.code;
                let reason = format!("an earlier case broke the communicator ({code})");
                Ok(Verdict::Skipped(reason))
            }
        };
        let verdict = outcome.unwrap_or_else(|error| Verdict::Failed(error.to_string()));
        tell(Event::End(verdict));
    }
    if comm.broken().is_none()
        && let Err(error) = comm.destroy()
    {
        tell(Event::Begin(name("the communicator ends")));
        tell(Event::End(Verdict::Failed(error.to_string())));
    }
}
