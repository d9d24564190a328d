//! What a rank tells the others when a communicator forms, and what rank 0 decides for all.
//!
//! ```text
//! card:   hint (32) | name bytes (1) | name | addresses (1) | each: family (1) port (2) ip (4, 16)
//!         | words (1) | processors (8 each) | foreign rank (4) | text bytes (1) | text
//!         | backend (1) | 1, the GPU (16), NCCL's version (4), ranks share GPUs (1); or 0
//!         | 1, where RDMA cards listen; or 0
//!         | 1, where an rsocket listens; or 0
//! terms:  tile bytes (4) | window (4) | algorithm (1) | links and checks (1) | count (4)
//!         | rows of the tuning table
//! ```

use std::net::SocketAddr;
use std::sync::Arc;

use crate::boot::frame::Fields;
use crate::boot::offer::{Offer, addresses, put_address};
use crate::comm::nccl::Found;
use crate::config::{Config, Family, Tuning};
use crate::error::{Code, Error, Result, cut, shown};
use crate::plan::Algorithm;
use crate::tune::table::Table;
use crate::types::Rank;

/// Addresses a card may hold.
const ADDRESSES_MAX: usize = 32;
/// Words of processors a card may hold.
const WORDS_MAX: usize = 128;
const NO_ALGORITHM: u8 = u8::MAX;
const NO_RANK: u32 = u32::MAX;
/// Bytes of a foreign library's text.
const FOREIGN_MAX: usize = 255;

/// Where a rank is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Card {
    /// Equal on ranks that may share a host.
    pub(crate) hint: [u8; 32],
    /// Its door for local ranks.
    pub(crate) name: String,
    /// Where it listens.
    pub(crate) addresses: Vec<SocketAddr>,
    /// Processors it may run on, as bits.
    pub(crate) processors: Vec<u64>,
    /// Which rank of which foreign library it is: `None` on the native backend.
    pub(crate) foreign: Option<(u32, String)>,
    /// The backend it is to have.
    pub(crate) family: Family,
    /// Which GPU it has, and which NCCL.
    pub(crate) gpu: Option<GpuCard>,
    /// Where its RDMA cards listen.
    pub(crate) rdma: Option<Offer>,
    /// Where its rsocket listens.
    pub(crate) rsocket: Option<Offer>,
}

impl Card {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = self.hint.to_vec();
        bytes.push(u8::try_from(self.name.len()).unwrap_or(0));
        bytes.extend_from_slice(self.name.as_bytes());
        let addresses = &self.addresses[..self.addresses.len().min(ADDRESSES_MAX)];
        bytes.push(u8::try_from(addresses.len()).unwrap_or(0));
        addresses.iter().for_each(|address| put_address(&mut bytes, address));
        let processors = &self.processors[..self.processors.len().min(WORDS_MAX)];
        bytes.push(u8::try_from(processors.len()).unwrap_or(0));
        processors.iter().for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
        let (rank, text) = self.foreign.as_ref().map_or((NO_RANK, ""), |(r, text)| (*r, text));
        let text = cut(text, FOREIGN_MAX);
        bytes.extend_from_slice(&rank.to_le_bytes());
        bytes.push(u8::try_from(text.len()).unwrap_or(0));
        bytes.extend_from_slice(text.as_bytes());
        let family = Family::ALL.iter().position(|family| *family == self.family);
        bytes.push(family.and_then(|at| u8::try_from(at).ok()).unwrap_or(0));
        bytes.push(u8::from(self.gpu.is_some()));
        if let Some(gpu) = &self.gpu {
            gpu.encode(&mut bytes);
        }
        for offer in [&self.rdma, &self.rsocket] {
            bytes.push(u8::from(offer.is_some()));
            if let Some(offer) = offer {
                offer.encode(&mut bytes);
            }
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8], rank: usize) -> Result<Self> {
        Self::read(Fields(bytes)).map_err(|error| {
            let text = format!("the card of rank {rank} is damaged: {}", error.detail);
            Error::new(Code::Protocol, text).with_peer(Rank::at(rank))
        })
    }

    fn read(mut rest: Fields<'_>) -> Result<Self> {
        let bad = |what: &str| Error::new(Code::Protocol, what);
        let hint = rest.array()?;
        let length = usize::from(rest.u8()?);
        let name = std::str::from_utf8(rest.bytes(length)?).map_err(|_| bad("its name"))?;
        let addresses = addresses(&mut rest, ADDRESSES_MAX)?;
        let words = usize::from(rest.u8()?);
        if words > WORDS_MAX {
            return Err(bad("too many processors"));
        }
        let processors = (0..words).map(|_| rest.u64()).collect::<Result<_>>()?;
        let rank = rest.u32()?;
        let length = usize::from(rest.u8()?);
        let text = shown(rest.bytes(length)?);
        let family = Family::ALL.get(usize::from(rest.u8()?)).copied();
        let family = family.ok_or_else(|| bad("its backend"))?;
        let gpu = match rest.u8()? {
            0 => None,
            1 => Some(GpuCard::read(&mut rest)?),
            _ => return Err(bad("its GPU")),
        };
        let mut offer = || match rest.u8()? {
            0 => Ok(None),
            1 => Offer::read(&mut rest).map(Some),
            _ => Err(bad("its RDMA cards")),
        };
        let (rdma, rsocket) = (offer()?, offer()?);
        rest.end()?;
        let foreign = (rank != NO_RANK).then_some((rank, text));
        let name = name.to_owned();
        Ok(Self { hint, name, addresses, processors, foreign, family, gpu, rdma, rsocket })
    }
}

/// What a rank says of its GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GpuCard {
    /// Of the device.
    pub(crate) uuid: [u8; 16],
    /// The same for ranks of one process alone.
    pub(crate) process: u64,
    /// Compute capability.
    pub(crate) capability: (u32, u32),
    /// There are kernels of ours for it.
    pub(crate) folds: bool,
    pub(crate) nccl: Found,
}

impl GpuCard {
    /// Its device, and its rank's process.
    pub(crate) const fn place(&self) -> ([u8; 16], u64) {
        (self.uuid, self.process)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let Self { uuid, process, capability, folds, nccl } = self;
        bytes.extend_from_slice(uuid);
        bytes.extend_from_slice(&process.to_le_bytes());
        for number in [capability.0, capability.1, nccl.version] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend([u8::from(*folds), u8::from(nccl.shares)]);
    }

    fn read(rest: &mut Fields<'_>) -> Result<Self> {
        let (uuid, process) = (rest.array()?, rest.u64()?);
        let (capability, version) = ((rest.u32()?, rest.u32()?), rest.u32()?);
        let (folds, shares) = (rest.u8()? != 0, rest.u8()? != 0);
        Ok(Self { uuid, process, capability, folds, nccl: Found { version, shares } })
    }
}

/// The settings that rank 0 decides. A table that is still in its file does not count.
pub(crate) fn encode_terms(config: &Config) -> Vec<u8> {
    let mut bytes = config.tile_bytes.to_le_bytes().to_vec();
    bytes.extend_from_slice(&config.window.to_le_bytes());
    bytes.push(config.algorithm.map_or(NO_ALGORITHM, |a| a as u8));
    let flags = [config.shm, config.tcp, config.check, config.rdma, config.rsocket];
    bytes.push((0..).zip(flags).fold(0, |bits, (at, flag)| bits | u8::from(flag) << at));
    bytes.extend_from_slice(&config.mpi_count_max.to_le_bytes());
    if let Some(Tuning::Table(table)) = &config.tuning {
        bytes.extend(table.encode());
    }
    bytes
}

/// Puts rank 0's decisions into `config`.
pub(crate) fn apply_terms(config: &mut Config, bytes: &[u8]) -> Result<()> {
    let bad = || Error::new(Code::Protocol, "rank 0's terms are damaged").with_peer(Rank(0));
    let mut rest = Fields(bytes);
    let mut read =
        || Ok::<_, Error>((rest.u32()?, rest.u32()?, rest.u8()?, rest.u8()?, rest.u32()?));
    let (tile, window, algorithm, flags, count) = read().map_err(|_| bad())?;
    let table = Table::decode(rest.0).ok_or_else(bad)?;
    if !(64..=1 << 20).contains(&tile) || !(1..=16).contains(&window) || flags >= 32 || count == 0 {
        return Err(bad());
    }
    config.algorithm = match algorithm {
        NO_ALGORITHM => None,
        number => Some(*Algorithm::ALL.get(usize::from(number)).ok_or_else(bad)?),
    };
    config.tuning = (!table.rows().is_empty()).then(|| Tuning::Table(Arc::new(table)));
    (config.tile_bytes, config.window) = (tile, window);
    (config.shm, config.tcp, config.check) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    (config.rdma, config.rsocket) = (flags & 8 != 0, flags & 16 != 0);
    config.mpi_count_max = count;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_and_terms_round_trip_and_damage_is_found() {
        let addresses = vec!["10.1.2.3:99".parse().expect("v4"), "[::1]:7".parse().expect("v6")];
        let processors = vec![3, 1 << 63];
        let (name, foreign) = ("door".to_owned(), Some((3, "MPICH 5".to_owned())));
        let nccl = Found { version: 22_105, shares: true };
        let (process, capability) = (1 << 50, (9, 0));
        let gpu = Some(GpuCard { uuid: [9; 16], process, capability, folds: true, nccl });
        let family = Family::Nccl;
        let offered = vec!["10.9.0.1:18515".parse().expect("v4")];
        let rdma = Some(Offer { nonce: [5; 32], addresses: offered });
        let rsocket = Some(Offer { nonce: [6; 32], addresses: Vec::new() });
        let hint = [7; 32];
        let card = Card { hint, name, addresses, processors, foreign, family, gpu, rdma, rsocket };
        let bytes = card.encode();
        assert_eq!(Card::decode(&bytes, 0).expect("whole"), card);
        for cut in 0..bytes.len() {
            assert!(Card::decode(&bytes[..cut], 0).is_err(), "cut at {cut}");
        }
        let rows = "barrier ranks=2 hosts=1 reach=messages bytes=any binomial";
        let table = Table::parse(&format!("unisono-tuning 1\n{rows}")).expect("a table");
        let tuning = Some(Tuning::Table(Arc::new(table)));
        let algorithm = Some(Algorithm::Tree);
        let config = Config { tile_bytes: 4096, algorithm, tuning, ..Config::default() };
        let terms = encode_terms(&config);
        let mut other = Config::default();
        apply_terms(&mut other, &terms).expect("whole");
        assert_eq!(other, config);
        assert!(apply_terms(&mut other, &terms[1..]).is_err());
        assert!(apply_terms(&mut other, &terms[..terms.len() - 1]).is_err());
        let none = encode_terms(&Config { tuning: None, ..config });
        apply_terms(&mut other, &none).expect("whole");
        assert_eq!(other.tuning, None);
        assert!(apply_terms(&mut other, &[0; 14]).is_err());
    }
}
