//! Settings: one table of knobs, each with its environment variable, default, range and text.
//!
//! A value comes from the caller's configuration, else from the environment, else from the default.
//! Settings all ranks must share (marked *agreed*) are taken from rank 0 when a communicator forms.

use std::ffi::OsString;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Code, Error, Result, quoted};
pub use crate::obs::log::Level;
use crate::plan::Algorithm;
use crate::tune::table::{TEXT_MAX, Table};

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Knob {
    /// The environment variable.
    pub variable: &'static str,
    /// What it is when nothing is said.
    pub default: &'static str,
    /// Values it takes.
    pub range: &'static str,
    /// Rank 0's value holds for all.
    pub agreed: bool,
    /// What it does.
    pub text: &'static str,
}

/// Every knob.
pub const KNOBS: &[Knob] = &[
    Knob {
        variable: "UNISONO_TIMEOUT_MS",
        default: "600000",
        range: "1 and up, -1 for none",
        agreed: false,
        text: "deadline of each call, in milliseconds",
    },
    Knob {
        variable: "UNISONO_INIT_TIMEOUT_MS",
        default: "60000",
        range: "1 and up",
        agreed: false,
        text: "deadline of start-up, in milliseconds",
    },
    Knob {
        variable: "UNISONO_DETERMINISTIC",
        default: "0",
        range: "0, 1",
        agreed: false,
        text: "result bits depend on inputs and rank numbers alone",
    },
    Knob {
        variable: "UNISONO_PROGRESS_THREAD",
        default: "1",
        range: "0, 1",
        agreed: false,
        text: "non-blocking calls progress by themselves",
    },
    Knob {
        variable: "UNISONO_LINKS",
        default: "shm,rdma,tcp",
        range: "shm, rdma, rsocket, tcp, or several with commas",
        agreed: true,
        text: "which links may be used: shared memory is preferred, then RDMA, where both ranks have \
               a card that reaches the other's, then rsocket: the same cards by sockets of \
               librdmacm, which copy what is sent, for where only those work",
    },
    Knob {
        variable: "UNISONO_RDMA_DEVICE",
        default: "those near the rank",
        range: "names of cards with commas, or local_rank",
        agreed: false,
        text: "the RDMA cards to use; several share the bytes. By default those that are up and at \
               the memory node of the rank, where it runs on one; local_rank: that with the rank's \
               number on its host, counted around",
    },
    Knob {
        variable: "UNISONO_IBVERBS_LIB",
        default: "libibverbs.so.1",
        range: "path or name of a library",
        agreed: false,
        text: "the libibverbs to open",
    },
    Knob {
        variable: "UNISONO_RDMACM_LIB",
        default: "librdmacm.so.1",
        range: "path or name of a library",
        agreed: false,
        text: "the librdmacm to open",
    },
    Knob {
        variable: "UNISONO_RDMA_CACHE_BYTES",
        default: "a sixteenth of the memory",
        range: "0 and up",
        agreed: false,
        text: "how much memory that calls use, and the program has not registered, stays registered \
               at RDMA cards; 0: none",
    },
    Knob {
        variable: "UNISONO_INTERFACE",
        default: "route to the peer",
        range: "interface name, address or CIDR; several with commas",
        agreed: false,
        text: "network interface for sockets",
    },
    Knob {
        variable: "UNISONO_ALGORITHM",
        default: "chosen by size",
        range: "ring, binomial, tree, doubling, halving, pairwise, direct, bruck, hierarchical, \
                staged",
        agreed: true,
        text: "algorithm to prefer: passed over for calls it does not fit",
    },
    Knob {
        variable: "UNISONO_TUNING",
        default: "a cost model",
        range: "path of a table that `unisono tune` wrote",
        agreed: true,
        text: "measured points to choose algorithms by; rank 0 reads them for all",
    },
    Knob {
        variable: "UNISONO_TILE_BYTES",
        default: "262144",
        range: "64 to 1048576",
        agreed: true,
        text: "the pipeline's unit, in bytes on the wire",
    },
    Knob {
        variable: "UNISONO_WINDOW",
        default: "2",
        range: "1 to 16",
        agreed: true,
        text: "tiles in flight",
    },
    Knob {
        variable: "UNISONO_BACKEND",
        default: "auto",
        range: "auto, native, nccl, mpi",
        agreed: false,
        text: "what carries out calls; every rank must have the same; auto: NCCL on memory of GPUs \
               where it can serve all ranks, else native",
    },
    Knob {
        variable: "UNISONO_DEVICE",
        default: "auto",
        range: "auto, none, local_rank, number of a device",
        agreed: false,
        text: "the GPU whose memory calls may be on; auto: the calling thread's, where the program \
               uses CUDA; local_rank: that with the rank's number on its host, counted around",
    },
    Knob {
        variable: "UNISONO_BOOTSTRAP",
        default: "env",
        range: "env, mpi",
        agreed: false,
        text: "how ranks from the environment meet: by its variables, or over MPI",
    },
    Knob {
        variable: "UNISONO_CHECK",
        default: "1",
        range: "0, 1",
        agreed: true,
        text: "foreign backends compare calls before they make them; without, a call that waits has \
               no deadline",
    },
    Knob {
        variable: "UNISONO_MPI_LIB",
        default: "the launcher's",
        range: "path or name of a library",
        agreed: false,
        text: "the MPI to open where the program has loaded none",
    },
    Knob {
        variable: "UNISONO_MPI_INIT",
        default: "1",
        range: "0, 1",
        agreed: false,
        text: "MPI may be initialised where the program has not",
    },
    Knob {
        variable: "UNISONO_MPI_COUNT_MAX",
        default: "2147483647",
        range: "1 to 2147483647",
        agreed: true,
        text: "elements that one call of MPI may have; larger ones are divided",
    },
    Knob {
        variable: "UNISONO_NCCL_LIB",
        default: "found",
        range: "path or name of a library",
        agreed: false,
        text: "the NCCL to open where the program has loaded none",
    },
    Knob {
        variable: "UNISONO_CUDA_LIB",
        default: "libcuda.so.1",
        range: "path or name of a library",
        agreed: false,
        text: "the CUDA driver to open where the program has loaded none",
    },
    Knob {
        variable: "UNISONO_SPIN_US",
        default: "200",
        range: "0 to 1000000",
        agreed: false,
        text: "how long a rank with a core of its own spins before it sleeps, in microseconds",
    },
    Knob {
        variable: "UNISONO_LOG",
        default: "warn",
        range: "off, error, warn, info",
        agreed: false,
        text: "what is written to standard error",
    },
];

/// What MPI counts with: an `int`.
const COUNT_MAX: u32 = i32::MAX.cast_unsigned();

/// What carries out calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Family {
    /// NCCL where all ranks have a GPU and it can serve them, else the engine of this library.
    Auto,
    /// The engine of this library, over its own links.
    Native,
    /// The cluster's MPI.
    Mpi,
    /// NCCL, for calls on memory of GPUs; the engine of this library for the others.
    Nccl,
}

impl Family {
    /// Every one.
    pub const ALL: &'static [Self] = &[Self::Auto, Self::Native, Self::Nccl, Self::Mpi];

    /// The name used in settings and errors.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Mpi => "mpi",
            Self::Nccl => "nccl",
        }
    }

    /// The one with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|family| family.name() == name)
    }
}

/// Which GPU is a rank's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// That of the calling thread's context, where the program uses CUDA; else none.
    Auto,
    /// None: all buffers are in host memory.
    None,
    /// The one with the rank's number on its host, counted around: as the launcher says, or for
    /// threads of one process their rank.
    LocalRank,
    /// The one with this number, as CUDA counts them.
    Number(u32),
}

impl Device {
    /// The device that `text` means: `auto`, `none`, `local_rank` or a number.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "none" => Some(Self::None),
            "local_rank" => Some(Self::LocalRank),
            _ => text.parse().ok().filter(|number| *number <= DEVICE_MAX).map(Self::Number),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::LocalRank => f.write_str("local_rank"),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// No system numbers its devices higher.
const DEVICE_MAX: u32 = 0xffff;

/// Settings of one communicator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Deadline of each call; `None`: none.
    pub timeout: Option<Duration>,
    /// Deadline of start-up.
    pub init_timeout: Duration,
    /// Result bits depend on inputs and rank numbers alone.
    pub deterministic: bool,
    /// Non-blocking calls progress by themselves.
    pub progress_thread: bool,
    /// Ranks on one host may use shared memory.
    pub shm: bool,
    /// Ranks may use TCP for data.
    pub tcp: bool,
    /// Ranks may use RDMA for data.
    pub rdma: bool,
    /// Ranks may use RDMA by sockets of librdmacm for data.
    pub rsocket: bool,
    /// The RDMA cards to use, by name, or `local_rank`; `None`: those near the rank.
    pub rdma_device: Option<String>,
    /// The libibverbs to open; `None`: the system's.
    pub ibverbs_lib: Option<String>,
    /// Bytes that RDMA cards may hold of memory that calls use and the program has not registered;
    /// `None`: a sixteenth of the memory.
    pub rdma_cache: Option<usize>,
    /// The librdmacm to open; `None`: the system's.
    pub rdmacm_lib: Option<String>,
    /// Network interface by name, address or CIDR.
    pub interface: Option<String>,
    /// Use this algorithm wherever it exists.
    pub algorithm: Option<Algorithm>,
    /// Measured points to choose algorithms by.
    pub tuning: Option<Tuning>,
    /// The pipeline's unit, in bytes on the wire.
    pub tile_bytes: u32,
    /// Tiles in flight.
    pub window: u32,
    /// What carries out calls.
    pub backend: Family,
    /// The GPU whose memory calls may be on.
    pub device: Device,
    /// Ranks from the environment meet over MPI, whatever carries out their calls.
    pub bootstrap_mpi: bool,
    /// Foreign backends compare calls before they make them.
    pub check: bool,
    /// The MPI to open where the program has loaded none; `None`: the launcher's.
    pub mpi_lib: Option<String>,
    /// MPI may be initialised where the program has not.
    pub mpi_init: bool,
    /// Elements that one call of MPI may have.
    pub mpi_count_max: u32,
    /// The NCCL to open where the program has loaded none; `None`: the one that is found.
    pub nccl_lib: Option<String>,
    /// The CUDA driver to open where the program has loaded none; `None`: the system's.
    pub cuda_lib: Option<String>,
    /// How long to spin; `None`: by cores and ranks.
    pub spin: Option<Duration>,
    /// What is written to standard error.
    pub log: Level,
    /// In logs and errors.
    pub name: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            timeout: Some(Duration::from_millis(600_000)),
            init_timeout: Duration::from_millis(60_000),
            deterministic: false,
            progress_thread: true,
            shm: true,
            tcp: true,
            rdma: true,
            rsocket: false,
            rdma_device: None,
            ibverbs_lib: None,
            rdma_cache: None,
            rdmacm_lib: None,
            interface: None,
            algorithm: None,
            tuning: None,
            tile_bytes: 256 << 10,
            window: 2,
            backend: Family::Auto,
            device: Device::Auto,
            bootstrap_mpi: false,
            check: true,
            mpi_lib: None,
            mpi_init: true,
            mpi_count_max: COUNT_MAX,
            nccl_lib: None,
            cuda_lib: None,
            spin: None,
            log: Level::Warn,
            name: String::new(),
        }
    }
}

impl Config {
    /// The defaults, as the process's environment changes them.
    ///
    /// # Errors
    /// `InvalidEnvironment` names the variable and its value.
    pub fn from_env() -> Result<Self> {
        Self::from_values(|name| std::env::var_os(name))
    }

    /// As [`Config::from_env`], from any table of variables.
    ///
    /// # Errors
    /// `InvalidEnvironment` names the variable and its value.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        Self::from_values(|name| lookup(name).map(OsString::from))
    }

    fn from_values(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let mut made = Self::default();
        for knob in KNOBS {
            let Some(value) = lookup(knob.variable) else { continue };
            let set = value.to_str().and_then(|text| made.set(knob.variable, text.trim()));
            if set.is_none() {
                let value = quoted(&value.to_string_lossy());
                let text = format!("{}={value}: expected {}", knob.variable, knob.range);
                return Err(Error::new(Code::InvalidEnvironment, text));
            }
        }
        Ok(made)
    }

    fn set(&mut self, variable: &str, value: &str) -> Option<()> {
        let flag = || match value {
            "0" => Some(false),
            "1" => Some(true),
            _ => None,
        };
        let number =
            |low: u64, high: u64| value.parse::<u64>().ok().filter(|v| (low..=high).contains(v));
        match variable {
            "UNISONO_TIMEOUT_MS" => {
                self.timeout = match value {
                    "-1" => None,
                    _ => Some(Duration::from_millis(number(1, u64::MAX)?)),
                };
            }
            "UNISONO_INIT_TIMEOUT_MS" => {
                self.init_timeout = Duration::from_millis(number(1, u64::MAX)?);
            }
            "UNISONO_DETERMINISTIC" => self.deterministic = flag()?,
            "UNISONO_PROGRESS_THREAD" => self.progress_thread = flag()?,
            "UNISONO_LINKS" => self.set_links(value)?,
            "UNISONO_RDMA_DEVICE" => self.set_rdma_device(value)?,
            "UNISONO_IBVERBS_LIB" if value.is_empty() => return None,
            "UNISONO_IBVERBS_LIB" => self.ibverbs_lib = Some(value.to_owned()),
            "UNISONO_RDMACM_LIB" if value.is_empty() => return None,
            "UNISONO_RDMACM_LIB" => self.rdmacm_lib = Some(value.to_owned()),
            "UNISONO_RDMA_CACHE_BYTES" => {
                self.rdma_cache = Some(usize::try_from(number(0, u64::MAX)?).ok()?);
            }
            "UNISONO_INTERFACE" => self.set_interface(value)?,
            "UNISONO_ALGORITHM" => self.algorithm = Some(Algorithm::from_name(value)?),
            "UNISONO_TUNING" if value.is_empty() => return None,
            "UNISONO_TUNING" => self.tuning = Some(Tuning::File(value.to_owned())),
            "UNISONO_TILE_BYTES" => self.tile_bytes = u32::try_from(number(64, 1 << 20)?).ok()?,
            "UNISONO_WINDOW" => self.window = u32::try_from(number(1, 16)?).ok()?,
            "UNISONO_BACKEND" => self.backend = Family::from_name(value)?,
            "UNISONO_DEVICE" => self.device = Device::parse(value)?,
            "UNISONO_BOOTSTRAP" => {
                self.bootstrap_mpi = match value {
                    "env" => false,
                    "mpi" => true,
                    _ => return None,
                }
            }
            "UNISONO_CHECK" => self.check = flag()?,
            "UNISONO_MPI_LIB" if value.is_empty() => return None,
            "UNISONO_MPI_LIB" => self.mpi_lib = Some(value.to_owned()),
            "UNISONO_MPI_INIT" => self.mpi_init = flag()?,
            "UNISONO_MPI_COUNT_MAX" => {
                self.mpi_count_max = u32::try_from(number(1, u64::from(COUNT_MAX))?).ok()?;
            }
            "UNISONO_NCCL_LIB" if value.is_empty() => return None,
            "UNISONO_NCCL_LIB" => self.nccl_lib = Some(value.to_owned()),
            "UNISONO_CUDA_LIB" if value.is_empty() => return None,
            "UNISONO_CUDA_LIB" => self.cuda_lib = Some(value.to_owned()),
            "UNISONO_SPIN_US" => self.spin = Some(Duration::from_micros(number(0, 1_000_000)?)),
            "UNISONO_LOG" => self.log = Level::from_name(value)?,
            _ => return None,
        }
        Some(())
    }

    /// Listens at the interfaces in `list` ("eth0,10.0.0.0/8"); whether there are any shows when a
    /// communicator forms.
    pub fn set_interface(&mut self, list: &str) -> Option<()> {
        for item in list.split(',').map(str::trim) {
            Interface::parse(item)?;
        }
        self.interface = Some(list.to_owned());
        Some(())
    }

    /// Uses the RDMA cards named in `list` ("mlx5_0,mlx5_1"), or that of the local rank.
    pub fn set_rdma_device(&mut self, list: &str) -> Option<()> {
        let named = |name: &str| !name.trim().is_empty() && !name.contains(['/', ' ', '!']);
        list.split(',').all(named).then(|| self.rdma_device = Some(list.to_owned()))
    }

    /// Allows exactly the links named in `list` ("shm,tcp").
    pub fn set_links(&mut self, list: &str) -> Option<()> {
        (self.shm, self.rdma, self.rsocket, self.tcp) = (false, false, false, false);
        for name in list.split(',').map(str::trim) {
            match name {
                "shm" => self.shm = true,
                "rdma" => self.rdma = true,
                "rsocket" => self.rsocket = true,
                "tcp" => self.tcp = true,
                _ => return None,
            }
        }
        Some(())
    }
}

/// Where measured points come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tuning {
    /// A file, which rank 0 reads when a communicator forms.
    File(String),
    /// This table; in a communicator, rank 0's.
    Table(Arc<Table>),
}

impl Tuning {
    /// The table, read from its file if it is in one.
    ///
    /// # Errors
    /// `INVALID_ENVIRONMENT` names the file, and the line that is wrong.
    pub fn table(&self) -> Result<Arc<Table>> {
        let path = match self {
            Self::Table(table) => return Ok(table.clone()),
            Self::File(path) => path,
        };
        let bad = |why: String| {
            let text = format!("UNISONO_TUNING={}: {why}", quoted(path));
            Error::new(Code::InvalidEnvironment, text)
        };
        let text = read(path).map_err(|error| bad(error.to_string()))?;
        let read = Table::parse(&text).map_err(|(line, why)| bad(format!("line {line}: {why}")));
        Ok(Arc::new(read?))
    }
}

/// A file's text, and no more of it than is refused for its length.
fn read(path: &str) -> io::Result<String> {
    // A pipe would block.
    if !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("not a file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(TEXT_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One item of the list of interfaces.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interface<'a> {
    /// By name.
    Name(&'a str),
    /// Every one with an address that begins with these bits.
    Network(IpAddr, u8),
}

impl<'a> Interface<'a> {
    /// What `item` means; `None` where it is a network that makes no sense.
    pub(crate) fn parse(item: &'a str) -> Option<Self> {
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let Some((head, length)) = item.split_once('/') else {
            let address = item.parse::<IpAddr>();
            return Some(address.map_or(Self::Name(item), |ip| Self::Network(ip, bits(ip))));
        };
        let (address, length) = (head.parse::<IpAddr>().ok()?, length.parse::<u8>().ok()?);
        (length <= bits(address)).then_some(Self::Network(address, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the documentation says is the default is what it is.
    #[test]
    fn the_defaults_in_words_change_nothing() {
        for knob in KNOBS {
            // Words, and what depends on the machine.
            let said = [
                "UNISONO_INTERFACE",
                "UNISONO_ALGORITHM",
                "UNISONO_TUNING",
                "UNISONO_MPI_LIB",
                "UNISONO_NCCL_LIB",
                "UNISONO_CUDA_LIB",
                "UNISONO_IBVERBS_LIB",
                "UNISONO_RDMACM_LIB",
                "UNISONO_RDMA_DEVICE",
                "UNISONO_RDMA_CACHE_BYTES",
                "UNISONO_SPIN_US",
            ];
            if said.contains(&knob.variable) {
                continue;
            }
            let value = knob.default.split(' ').next().map(str::to_owned);
            let lookup = |name: &str| value.clone().filter(|_| name == knob.variable);
            let set = Config::from_lookup(lookup).expect(knob.variable);
            let usual = format!("{:?}", Config::default());
            assert_eq!(format!("{set:?}"), usual, "{} = {}", knob.variable, knob.default);
        }
    }

    #[test]
    fn every_knob_is_read_and_a_bad_value_is_named() {
        for knob in KNOBS {
            let bad = |name: &str| (name == knob.variable).then(|| "no such value!".to_owned());
            match Config::from_lookup(bad) {
                Err(error) => {
                    assert_eq!(error.code, Code::InvalidEnvironment);
                    assert!(error.detail.contains(knob.variable), "{error}");
                }
                // Any word may name an interface or a file; they are looked for when ranks meet.
                Ok(_) => {
                    let words = ["UNISONO_INTERFACE", "UNISONO_TUNING"];
                    let library = knob.variable.ends_with("_LIB");
                    assert!(library || words.contains(&knob.variable));
                }
            }
        }
        for knob in KNOBS {
            use std::os::unix::ffi::OsStringExt;
            let bad = |name: &str| (name == knob.variable).then(|| OsString::from_vec(vec![0xff]));
            let error = Config::from_values(bad).expect_err("not text");
            assert_eq!(error.code, Code::InvalidEnvironment);
            assert!(error.detail.contains(knob.variable), "{error}");
        }
        let network =
            |name: &str| (name == "UNISONO_INTERFACE").then(|| "eth0,../../etc".to_owned());
        let error = Config::from_lookup(network).expect_err("no network");
        assert_eq!(error.code, Code::InvalidEnvironment);
        let said = "UNISONO_INTERFACE=\"eth0,../../etc\": expected interface name, address";
        assert!(error.detail.contains(said), "{error}");
        let set = |name: &str| match name {
            "UNISONO_TIMEOUT_MS" => Some("-1".to_owned()),
            "UNISONO_LINKS" => Some("tcp".to_owned()),
            "UNISONO_ALGORITHM" => Some("ring".to_owned()),
            _ => None,
        };
        let config = Config::from_lookup(set).expect("valid");
        assert_eq!((config.timeout, config.shm, config.tcp), (None, false, true));
        assert_eq!(config.algorithm, Some(Algorithm::Ring));
    }

    #[test]
    fn a_table_that_cannot_be_read_is_named_with_its_line() {
        let name = format!("unisono-config-{}.tuning", std::process::id());
        let path = std::env::temp_dir().join(name);
        let path = path.to_str().expect("text");
        let file = Tuning::File(path.to_owned());
        let said = |file: &Tuning| {
            let error = file.table().expect_err("no table");
            assert_eq!(error.code, Code::InvalidEnvironment);
            error.detail.into_string()
        };
        assert!(said(&file).contains(&format!("UNISONO_TUNING=\"{path}\": No such file")));
        let folder = std::env::temp_dir().to_str().expect("text").to_owned();
        assert!(said(&Tuning::File(folder)).contains("not a file"));
        for (text, wanted) in [
            (&b"unisono-tuning 1\n\nall_reduce\n"[..], "line 3: no ranks=N"),
            (b"\xff\xfe", "line 1: a table begins"),
        ] {
            std::fs::write(path, text).expect("a file");
            assert!(said(&file).contains(&format!("\": {wanted}")), "{}", said(&file));
        }
        std::fs::write(path, "unisono-tuning 1\n").expect("a file");
        assert_eq!(*file.table().expect("a table"), Table::default());
        std::fs::remove_file(path).expect("it was there");
    }
}
