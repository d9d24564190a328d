//! Whom we measure beside us: what the user names, and an MPI if there is one.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::cases::{Link, Sweep};
use super::runner::{self, Job};
use super::table::{FLOOR, OURS};

/// A command with `{op} {n} {lo} {hi} {step}` in it.
type Template = Vec<String>;

/// Somebody else who does collectives.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    /// For the report's head.
    pub(super) version: String,
    how: How,
}

#[derive(Clone, Debug)]
enum How {
    /// As the user says; each where there is one.
    Lines { shm: Option<Template>, tcp: Option<Template>, start: Option<Template> },
    /// Our benchmark, built for this MPI.
    Mpi { mpirun: String, program: String },
}

/// The sizes of a sweep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) lo: u64,
    pub(super) hi: u64,
    pub(super) step: u64,
}

impl Peer {
    /// What runs `sweep`, if this peer does that.
    pub(super) fn sweep(&self, sweep: &Sweep, range: Range) -> Option<Job> {
        let n = sweep.ranks;
        let tcp = match sweep.link {
            Link::Mem => return None,
            Link::Shm => false,
            Link::Tcp => true,
        };
        match &self.how {
            How::Lines { shm, tcp: sockets, .. } => {
                let template = if tcp { sockets } else { shm }.as_ref()?;
                Some(Job::new(&self.name, fill(template, sweep.op, n, range)))
            }
            How::Mpi { mpirun, program } => {
                let sizes = [range.lo, range.hi, range.step].map(|size| size.to_string());
                let arguments = [sweep.op.to_owned()].into_iter().chain(sizes);
                Some(self.mpi(mpirun, program, n, tcp, arguments))
            }
        }
    }

    /// What starts `n` ranks that do one collective and print when it was over.
    pub(super) fn start(&self, n: usize) -> Option<Job> {
        match &self.how {
            How::Lines { start, .. } => {
                let range = Range { lo: 8, hi: 8, step: 8 };
                Some(Job::new(&self.name, fill(start.as_ref()?, "start", n, range)))
            }
            How::Mpi { mpirun, program } => {
                Some(self.mpi(mpirun, program, n, false, ["start".to_owned()]))
            }
        }
    }

    fn mpi(
        &self,
        mpirun: &str,
        program: &str,
        n: usize,
        tcp: bool,
        arguments: impl IntoIterator<Item = String>,
    ) -> Job {
        let mut words = vec![mpirun.to_owned(), "-n".to_owned(), n.to_string()];
        let open = self.name == OPEN_MPI;
        if open {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let place: &[&str] =
                if n > cores { &["--map-by", ":OVERSUBSCRIBE"] } else { &["--bind-to", "core"] };
            words.extend(place.iter().map(|word| (*word).to_owned()));
        }
        if open && tcp {
            let only = "--mca pml ob1 --mca btl tcp,self --mca btl_tcp_if_include lo";
            words.extend(only.split(' ').map(str::to_owned));
        }
        words.push(program.to_owned());
        words.extend(arguments);
        let mut job = Job::new(&self.name, words);
        job.env = environment(tcp);
        job
    }
}

/// What the MPIs know of each other's variables is nothing: each gets all.
pub(super) fn environment(tcp: bool) -> Vec<(String, String)> {
    let mut env = vec![
        ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
        ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
        ("PRTE_ALLOW_RUN_AS_ROOT", "1"),
        ("PRTE_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
    ];
    if tcp {
        env.extend([
            ("MPIR_CVAR_NOLOCAL", "1"),
            ("UCX_TLS", "tcp,self"),
            ("FI_PROVIDER", "tcp"),
            ("I_MPI_FABRICS", "ofi"),
            ("I_MPI_COLL_INTRANODE", "pt2pt"),
        ]);
    }
    env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn fill(template: &Template, op: &str, n: usize, range: Range) -> Vec<String> {
    let number = |text: &str, mark: &str, value: u64| text.replace(mark, &value.to_string());
    let word = |word: &String| {
        let text = word.replace("{op}", op).replace("{n}", &n.to_string());
        let text = number(&text, "{lo}", range.lo);
        number(&number(&text, "{hi}", range.hi), "{step}", range.step)
    };
    template.iter().map(word).collect()
}

/// A line's words: blanks part them, quotes of either kind keep them together. No shell.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err(format!("a quote that does not end: {text}")) } else { Ok(words) }
}

/// Peers as a file names them: `name = command`, for TCP `name/tcp = command`, for the start of
/// ranks `name/start = command`, and `name/version = text`. Empty lines and those that begin with
/// `#` say nothing.
///
/// # Errors
/// The line that is not understood.
pub(super) fn parse(text: &str) -> Result<Vec<Peer>, String> {
    let mut peers: Vec<Peer> = Vec::new();
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
        let (key, command) = line.split_once('=').ok_or_else(|| format!("no `=`: {line}"))?;
        let template = words(command)?;
        if template.is_empty() {
            return Err(format!("nothing after `=`: {line}"));
        }
        let key = key.trim();
        let (name, variant) = key.rsplit_once('/').unwrap_or((key, ""));
        if ["", OURS, FLOOR].contains(&name) {
            return Err(format!("not a name for another: {line}"));
        }
        let at = peers.iter().position(|peer| peer.name == name).unwrap_or_else(|| {
            let how = How::Lines { shm: None, tcp: None, start: None };
            peers.push(Peer { name: name.to_owned(), version: String::new(), how });
            peers.len() - 1
        });
        let Peer { version, how: How::Lines { shm, tcp, start }, .. } = &mut peers[at] else {
            continue;
        };
        match variant {
            "" => *shm = Some(template),
            "tcp" => *tcp = Some(template),
            "start" => *start = Some(template),
            "version" => command.trim().clone_into(version),
            _ => return Err(format!("/tcp, /start or /version, not /{variant}: {line}")),
        }
    }
    Ok(peers)
}

const OPEN_MPI: &str = "Open MPI";

/// A short name for what `MPI_Get_library_version` says.
fn mpi_name(version: &str) -> String {
    let known = [OPEN_MPI, "MPICH", "MVAPICH", "Intel"];
    let name = known.iter().find(|name| version.contains(**name)).copied();
    let first = || version.split_whitespace().next().unwrap_or("MPI").to_owned();
    name.map_or_else(first, |name| if name == "Intel" { "Intel MPI" } else { name }.to_owned())
}

/// Where `variable` says, else `name` on PATH; `None` when neither.
pub(super) fn find(variable: &str, name: &str) -> Option<String> {
    if let Some(given) = std::env::var_os(variable) {
        return Some(given.into_string().ok()?).filter(|given| !given.is_empty());
    }
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(name)).find(|at| at.is_file());
    found.and_then(|at| at.to_str().map(str::to_owned))
}

/// The MPI on this machine with our benchmark built for it into `folder`.
///
/// # Errors
/// There is one, but it does not build or run.
pub(super) fn mpi(source: &Path, folder: &Path) -> Result<Option<Peer>, String> {
    let (Some(mpicc), Some(mpirun)) = (find("MPICC", "mpicc"), find("MPIRUN", "mpirun")) else {
        return Ok(None);
    };
    let program = folder.join("bench_mpi");
    let built = Command::new(&mpicc)
        .args(["-O3", "-march=native", "-std=c99", "-Wall", "-o"])
        .args([&program, &source.to_path_buf()])
        .status()
        .map_err(|error| format!("{mpicc}: {error}"))?;
    if !built.success() {
        return Err(format!("{mpicc} does not build {}", source.display()));
    }
    let program = program.to_string_lossy().into_owned();
    let words = [mpirun.clone(), "-n".to_owned(), "1".to_owned(), program.clone()];
    let mut asking = Job::new("mpi", words.into_iter().chain(["version".to_owned()]));
    asking.env = environment(false);
    let answer = runner::run(&asking, Duration::from_secs(60));
    let version = answer.lines.iter().find_map(|line| line["version"].as_str());
    let Some(version) = version else {
        return Err(format!("{mpirun}: {}", answer.fault.unwrap_or_default()));
    };
    let how = How::Mpi { mpirun, program };
    // What follows tells of the machine it was built on.
    let first = version.split(',').next().unwrap_or(version);
    let short = first.split_whitespace().collect::<Vec<_>>().join(" ");
    Ok(Some(Peer { name: mpi_name(version), version: short, how }))
}

/// All that there are; what is wrong with one is told and leaves it out.
pub(super) fn all(root: &Path, folder: &Path, tell: &dyn Fn(&str)) -> Result<Vec<Peer>, String> {
    let mut peers = Vec::new();
    if let Some(file) = std::env::var_os("PEERS").map(PathBuf::from) {
        let text = std::fs::read_to_string(&file);
        let text = text.map_err(|error| format!("PEERS={}: {error}", file.display()))?;
        peers = parse(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    match mpi(&root.join("benches/report/mpi.c"), folder) {
        Ok(found) => {
            let named = |mpi: &Peer| peers.iter().any(|peer| peer.name == mpi.name);
            peers.extend(found.filter(|mpi| !named(mpi)));
        }
        Err(error) => tell(&format!("no MPI beside us: {error}")),
    }
    Ok(peers)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "
# what this machine has
one = env A='b c' one.sh {op} -n {n} {lo}:{hi}:{step}
one/tcp = one.sh --sockets
two/start = two.sh {n}
two/version = 2.1 (that one)
";

    fn sweep(link: Link) -> Sweep {
        Sweep { op: "all_gather", ranks: 4, link, registered: false, most: None }
    }

    #[test]
    fn a_file_names_peers_and_their_commands() {
        let peers = parse(FILE).expect("understood");
        let names: Vec<_> = peers.iter().map(|peer| peer.name.as_str()).collect();
        assert_eq!(names, ["one", "two"]);
        assert_eq!(peers[1].version, "2.1 (that one)");
        let range = Range { lo: 8, hi: 64, step: 8 };
        let job = peers[0].sweep(&sweep(Link::Shm), range).expect("a command");
        assert_eq!(job.words, ["env", "A=b c", "one.sh", "all_gather", "-n", "4", "8:64:8"]);
        let job = peers[0].sweep(&sweep(Link::Tcp), range).expect("a command");
        assert_eq!(job.words, ["one.sh", "--sockets"]);
        assert!(peers[0].start(2).is_none());
        assert!(peers[1].sweep(&sweep(Link::Shm), range).is_none());
        assert_eq!(peers[1].start(8).expect("a command").words, ["two.sh", "8"]);
    }

    #[test]
    fn lines_that_say_nothing_clear_are_refused() {
        for text in ["one", "one =", "one/udp = x", "one = 'x", "= x", "floor = x"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_mpi_goes_by_its_own_name() {
        for (version, name) in [
            ("Open MPI v5.0.11, package: Open MPI x@y Distribution", "Open MPI"),
            ("MPICH Version: 5.0.2", "MPICH"),
            ("Intel(R) MPI Library 2021.18 for Linux* OS", "Intel MPI"),
            ("Other 3", "Other"),
        ] {
            assert_eq!(mpi_name(version), name);
        }
    }
}
