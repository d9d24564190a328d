//! `unisono check`: the conformance suite of this build on this machine.
//!
//! One suite for every link and world. [`suite`] lists it as data: sections, each a communicator's
//! settings, of named cases. [`rank`] walks the list on every rank in lockstep and tells what
//! happens in events; [`watch`] collects them from threads or processes, ends what hangs, and
//! counts. [`special`] holds the cases that are more than one call, [`fault`] those that end in an
//! error. [`kernels`] checks the kernels of a GPU by themselves, with the cases of [`trials`].

mod event;
mod fault;
mod kernels;
mod late;
mod rank;
mod sequence;
mod special;
mod suite;
mod trials;
mod watch;

use std::process::ExitCode;

use unisono::config::{Config, Device, Family};

use super::output;
use super::ranks::{self, Link};
use watch::Tally;

/// Run the conformance suite of this build on this machine
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Options {
    /// Links to check
    #[arg(long, value_enum, value_delimiter = ',', default_value = "mem,shm,tcp")]
    link: Vec<Link>,
    /// What carries out calls: native, nccl, or mpi, for which every rank is started by `mpirun`
    #[arg(long, value_parser = parse_backend, default_value = "native")]
    backend: Family,
    /// Run the cases on memory of this GPU, by its number; local_rank: one GPU a rank
    #[arg(long, value_parser = parse_device)]
    device: Option<Device>,
    /// Check the CUDA kernels alone, each on the GPU beside the scalar code, bit for bit
    #[arg(long, requires = "device", conflicts_with_all = ["link", "backend", "ranks"])]
    kernels: bool,
    /// World sizes to check [default: 1,2,3,4,5,8]
    #[arg(short = 'n', long, value_delimiter = ',')]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: Vec<u32>,
    /// A selection that takes about a minute
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Everything: more types, counts, roots and placements
    #[arg(long)]
    full: bool,
    /// Only cases whose name ("section: case") contains this
    #[arg(long, default_value = "")]
    filter: String,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Name every case
    #[arg(short = 'v', long)]
    verbose: bool,
    /// With --kernels: a JSON object for each failure, and one with the counts
    #[arg(long, requires = "kernels", conflicts_with_all = ["verbose", "list"])]
    json: bool,
    /// List the cases and run none
    #[arg(long)]
    list: bool,
    /// A case that says nothing for this many seconds hangs
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(5..))]
    patience: u64,
}

/// A backend by its name.
pub(crate) fn parse_backend(name: &str) -> Result<Family, String> {
    Family::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Family::ALL.iter().map(|family| family.name()).collect();
        format!("there are {}", names.join(", "))
    })
}

/// A GPU, as `Device` has them; what has none is said by leaving it out.
pub(crate) fn parse_device(text: &str) -> Result<Device, String> {
    let device = Device::parse(text);
    let some = device.filter(|device| matches!(device, Device::Number(_) | Device::LocalRank));
    some.ok_or_else(|| "there are the numbers of devices, and local_rank".to_owned())
}

/// The number of the device that one process alone means.
pub(crate) const fn number_of(device: Device) -> u32 {
    match device {
        Device::Number(number) => number,
        Device::Auto | Device::None | Device::LocalRank => 0,
    }
}

/// How much of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Depth {
    Quick,
    Usual,
    Full,
}

impl Options {
    fn depth(&self) -> Depth {
        match (self.quick, self.full) {
            (true, _) => Depth::Quick,
            (_, true) => Depth::Full,
            _ => Depth::Usual,
        }
    }

    /// Lets `config` use this link, and the backend and GPU that are to be checked.
    ///
    /// # Errors
    /// `INVALID_ENVIRONMENT`.
    fn apply(&self, link: Link, config: &mut Config) -> unisono::Result<()> {
        // The suite sets everything itself, but where libraries are.
        let found = Config::from_env()?;
        (config.mpi_lib, config.mpi_count_max) = (found.mpi_lib, found.mpi_count_max);
        (config.cuda_lib, config.nccl_lib) = (found.cuda_lib, found.nccl_lib);
        (config.ibverbs_lib, config.rdmacm_lib) = (found.ibverbs_lib, found.rdmacm_lib);
        (config.rdma_device, config.rdma_cache) = (found.rdma_device, found.rdma_cache);
        config.backend = self.backend;
        config.device = self.device.unwrap_or(Device::None);
        link.apply(config);
        Ok(())
    }

    fn worlds(&self) -> Vec<u32> {
        if self.ranks.is_empty() { vec![1, 2, 3, 4, 5, 8] } else { self.ranks.clone() }
    }

    /// The cases that the filter leaves, by world; links have the same.
    fn selected(&self) -> impl Iterator<Item = String> {
        self.worlds().into_iter().flat_map(move |world| {
            let sections = suite::sections(world, self.link[0], self.depth());
            sections.flat_map(move |section| {
                let cases = section.cases.iter().filter(|case| section.selects(case, &self.filter));
                let named =
                    |case: &suite::Case| format!("{world} ranks, {}: {}", section.name, case.name);
                cases.map(named).collect::<Vec<_>>()
            })
        })
    }

    /// The flag that says how much of the suite.
    fn selection(&self) -> Option<&'static str> {
        match (self.quick, self.full) {
            (true, _) => Some("--quick"),
            (_, true) => Some("--full"),
            _ => None,
        }
    }

    /// The arguments of a rank process on `link`.
    fn arguments(&self, link: Link) -> Vec<String> {
        let mut arguments = vec!["check".to_owned(), "--link".into(), link.name().into()];
        arguments.extend(["--seed".to_owned(), self.seed.to_string()]);
        arguments.extend(["--filter".to_owned(), self.filter.clone()]);
        arguments.extend(self.selection().map(str::to_owned));
        arguments.extend(self.place());
        arguments
    }

    /// The arguments that say which backend and GPU, where they are not the usual ones.
    fn place(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        if self.backend != Family::Native {
            arguments.extend(["--backend".to_owned(), self.backend.name().to_owned()]);
        }
        if let Some(device) = self.device {
            arguments.extend(["--device".to_owned(), device.to_string()]);
        }
        arguments
    }

    /// The command that runs one case again.
    fn replay(&self, link: Link, world: u32, case: &str) -> String {
        let depth = self.selection().map(|flag| format!(" {flag}")).unwrap_or_default();
        let seed = self.seed;
        if link == Link::Mpi {
            return format!(
                "mpirun -n {world} unisono check --backend mpi{depth} --seed {seed} --filter \"{case}\""
            );
        }
        let place: String = self.place().iter().map(|word| format!(" {word}")).collect();
        format!(
            "unisono check --link {} -n {world}{place}{depth} --seed {seed} --filter \"{case}\"",
            link.name()
        )
    }
}

/// A suite of nothing would pass.
fn nothing_selected(options: &Options, list: &str) -> ExitCode {
    super::usage(format_args!(
        "check: no case has \"{}\" in its name; `{list}` has the names",
        options.filter
    ))
}

/// Runs the subcommand.
pub(crate) fn main(options: &Options) -> ExitCode {
    if ranks::is_child() {
        ranks::follow_parent();
        return rank::process(options);
    }
    if let (true, Some(device)) = (options.kernels, options.device.map(number_of)) {
        return kernels::main(options, device);
    }
    if options.backend == Family::Mpi && !options.list {
        return watch::launched(options);
    }
    if options.selected().next().is_none() {
        return nothing_selected(options, "unisono check --list");
    }
    if options.list {
        return super::print(&options.selected().map(|name| name + "\n").collect::<String>());
    }
    let mut tallies: Vec<(Link, u32, Tally)> = Vec::new();
    'all: for &link in &options.link {
        for &world in &options.worlds() {
            match watch::world(options, link, world) {
                Ok(tally) => tallies.push((link, world, tally)),
                Err(error) => return super::fail(error),
            }
            if tallies.last().is_some_and(|(_, _, tally)| tally.hung && link == Link::Mem) {
                // Threads cannot be ended; what they hold is not to be relied on.
                watch::report(options, &tallies);
                return ExitCode::FAILURE;
            }
            if output::is_lost() {
                break 'all;
            }
        }
    }
    watch::report(options, &tallies)
}
