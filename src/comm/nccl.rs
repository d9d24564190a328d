//! Whether NCCL serves a communicator, and how its own forms.
//!
//! Every rank tells on its card which GPU it has and which NCCL it has found. Whether NCCL can
//! serve all of them follows from the cards alone, so all ranks decide alike. Then rank 0 makes an
//! id of NCCL's, and all begin; nobody waits inside NCCL, so the deadline holds and a failure of
//! one rank is heard by the others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::gpu::NcclTerms;
use crate::boot::rendezvous::Joined;
use crate::comm::card::{Card, GpuCard};
use crate::comm::device::Gpu;
use crate::config::{Config, Family};
use crate::error::{Code, Error, Result};
use crate::nccl::{Comm, Feature, Id, Library, Progress, Version, Wishes};
use crate::types::Rank;

/// NCCL's setting that lets ranks share a GPU.
const SHARE: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// How often NCCL is asked whether it has formed.
const NAP: Duration = Duration::from_micros(200);

/// Which NCCL a rank has found, and whether its ranks may share a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// NCCL's number for its version; 0: none.
    pub(crate) version: u32,
    pub(crate) shares: bool,
}

impl Found {
    pub(crate) fn of(library: Option<&Library>) -> Self {
        let version = library.map_or(0, |library| library.version.0);
        let wanted = std::env::var(SHARE).is_ok_and(|value| value.trim() == "1");
        let shares = wanted && library.is_some_and(|library| library.has(Feature::SharedGpu));
        Self { version, shares }
    }
}

/// Why NCCL cannot serve the ranks with these cards; `None` where it can.
pub(crate) fn unfit(cards: &[Card], wanted: Family) -> Option<String> {
    for (rank, card) in cards.iter().enumerate() {
        let Some(gpu) = card.gpu else {
            return Some(format!("rank {rank} has no GPU"));
        };
        if gpu.nccl.version == 0 {
            return Some(format!("rank {rank} has found no NCCL"));
        }
    }
    let all: Vec<_> = cards.iter().filter_map(|card| card.gpu).collect();
    for (rank, GpuCard { uuid, nccl: found, .. }) in all.iter().enumerate() {
        if found.version != all[0].nccl.version {
            let (ours, theirs) = (Version(all[0].nccl.version), Version(found.version));
            return Some(format!("rank 0 has NCCL {ours}, rank {rank} has {theirs}"));
        }
        let twin = all[..rank].iter().position(|other| other.uuid == *uuid);
        let shares = wanted == Family::Nccl && found.shares;
        if let Some(twin) = twin.filter(|_| !shares) {
            let how = match wanted {
                Family::Nccl => format!("which NCCL takes from 2.30 on, and where {SHARE}=1"),
                _ => "which is left to the native backend".to_owned(),
            };
            return Some(format!("ranks {twin} and {rank} share a GPU, {how}"));
        }
    }
    None
}

/// What is decided from the cards: NCCL, or why not.
///
/// # Errors
/// `UNSUPPORTED` where NCCL is asked for and cannot serve.
pub(crate) fn choose<'a>(
    cards: &[Card],
    gpu: Option<&'a Gpu>,
    config: &Config,
    notes: &mut Vec<String>,
) -> Result<Option<&'a Arc<Library>>> {
    let wanted = config.backend;
    if !matches!(wanted, Family::Nccl | Family::Auto) || wanted == Family::Auto && gpu.is_none() {
        return Ok(None);
    }
    let own = gpu.map(Gpu::nccl);
    let reason = match (unfit(cards, wanted), own) {
        (None, Some(Ok(library))) => {
            notes.push(format!("NCCL {} makes them: {}", library.version, library.place));
            return Ok(Some(library));
        }
        (Some(reason), Some(Err(error))) => format!("{reason}; here: {}", error.detail),
        (Some(reason), _) => reason,
        (None, _) => "this rank has no NCCL".to_owned(),
    };
    if wanted == Family::Nccl {
        let text = format!("NCCL cannot serve this communicator: {reason}");
        return Err(Error::new(Code::Unsupported, text));
    }
    notes.push(format!("not by NCCL: {reason}"));
    Ok(None)
}

/// What ranks with these cards, all of which have a GPU, agree on.
pub(crate) fn terms(cards: &[Card], config: &Config) -> NcclTerms {
    let gpus = || cards.iter().filter_map(|card| card.gpu);
    NcclTerms {
        deterministic: config.deterministic,
        checks: config.check,
        capability: gpus().map(|gpu| gpu.capability).min().unwrap_or_default(),
        folds: gpus().all(|gpu| gpu.folds),
    }
}

/// NCCL's communicator of these ranks. All of them call this.
///
/// # Errors
/// `MISSING_RANKS` when the deadline passes; NCCL's own, here or on another rank.
pub(crate) fn form(
    library: &Arc<Library>,
    (rank, world): (u32, u32),
    gpu: &Gpu,
    joined: &mut Joined,
    deadline: Instant,
) -> Result<Comm> {
    let _context = gpu.context().enter()?;
    let made = if rank == 0 { Id::new(library)?.0.to_vec() } else { Vec::new() };
    let items = joined.exchange(&made, deadline)?;
    let bytes = items.first().and_then(|item| <[u8; 128]>::try_from(&item[..]).ok());
    let bad = || Error::new(Code::Protocol, "rank 0 gave no id of NCCL's").with_peer(Rank(0));
    let id = Id(bytes.ok_or_else(bad)?);
    let comm = Comm::begin(library, &id, Rank(rank), world, &Wishes::default())?;
    // BOUND: the deadline.
    while comm.poll()? == Progress::Pending {
        joined.heed()?;
        late(library, deadline)?;
        std::thread::sleep(NAP);
    }
    Ok(comm)
}

/// NCCL's communicators for ranks of this process, each with one of `gpus`.
///
/// # Errors
/// As [`form`].
pub(crate) fn form_threads(
    library: &Arc<Library>,
    gpus: &[Gpu],
    deadline: Instant,
) -> Result<Vec<Comm>> {
    let id = Id::new(library)?;
    let world = Rank::at(gpus.len()).0;
    let begin = |(rank, gpu): (u32, &Gpu)| {
        let _context = gpu.context().enter()?;
        Comm::begin(library, &id, Rank(rank), world, &Wishes::default())
    };
    // None is dropped before the group has ended, whatever happens: NCCL still knows of them.
    let mut comms = Vec::with_capacity(gpus.len());
    let _ = library.group(|| {
        for part in (0..).zip(gpus) {
            comms.push(begin(part)?);
        }
        Ok(())
    })?;
    for comm in &comms {
        // BOUND: the deadline.
        while comm.poll()? == Progress::Pending {
            late(library, deadline)?;
            std::thread::sleep(NAP);
        }
    }
    Ok(comms)
}

fn late(library: &Library, deadline: Instant) -> Result<()> {
    if Instant::now() < deadline {
        return Ok(());
    }
    let text = format!(
        "NCCL {} has formed no communicator in time, though all ranks have come: NCCL_DEBUG=INFO \
         says where it is",
        library.version
    );
    Err(Error::new(Code::MissingRanks, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(gpu: Option<(u8, u32, bool)>) -> Card {
        Card {
            hint: [0; 32],
            name: String::new(),
            addresses: Vec::new(),
            processors: Vec::new(),
            foreign: None,
            family: Family::Auto,
            gpu: gpu.map(|(uuid, version, shares)| GpuCard {
                uuid: [uuid; 16],
                process: 0,
                capability: (8, 0),
                folds: true,
                nccl: Found { version, shares },
            }),
            rdma: None,
            rsocket: None,
        }
    }

    fn why(gpus: &[Option<(u8, u32, bool)>], wanted: Family) -> Option<String> {
        unfit(&gpus.iter().map(|gpu| card(*gpu)).collect::<Vec<_>>(), wanted)
    }

    #[test]
    fn nccl_serves_ranks_with_a_gpu_each_and_one_version() {
        let (one, two) = (Some((1, 22_105, false)), Some((2, 22_105, false)));
        assert_eq!(why(&[one], Family::Auto), None);
        assert_eq!(why(&[one, two], Family::Nccl), None);
        assert_eq!(why(&[one, None], Family::Auto).as_deref(), Some("rank 1 has no GPU"));
        let said = why(&[one, Some((2, 0, false))], Family::Auto);
        assert_eq!(said.as_deref(), Some("rank 1 has found no NCCL"));
        let said = why(&[one, Some((2, 23_007, false))], Family::Auto);
        assert_eq!(said.as_deref(), Some("rank 0 has NCCL 2.21.5, rank 1 has 2.30.7"));
    }

    #[test]
    fn a_shared_gpu_is_nccls_only_where_it_is_asked_for_and_allowed() {
        let (not, may) = (Some((1, 23_007, false)), Some((1, 23_007, true)));
        for (gpus, wanted) in
            [([not, not], Family::Auto), ([not, not], Family::Nccl), ([may, may], Family::Auto)]
        {
            let said = why(&gpus, wanted).expect("no");
            assert!(said.starts_with("ranks 0 and 1 share a GPU"), "{said}");
        }
        assert_eq!(why(&[may, may], Family::Nccl), None);
    }
}
