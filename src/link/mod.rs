//! The links: what moves bytes between two ranks.
//!
//! One file each for memory shared by threads ([`mem`]), memory shared by processes ([`shm`]), TCP
//! ([`tcp`]), RDMA ([`rdma`]) and virtual time ([`sim`]). They implement the traits of
//! [`crate::engine::link`]; the engine sees nothing else of them. [`Links`] is all links of one
//! rank, of whatever kinds.

pub(crate) mod board;
pub(crate) mod doze;
pub(crate) mod ends;
mod gift;
pub(crate) mod layout;
pub(crate) mod mem;
mod pace;
#[cfg_attr(not(unisono_rdma), path = "without_rdma.rs")]
pub(crate) mod rdma;
pub(crate) mod ring;
pub(crate) mod shm;
pub mod sim;
pub(crate) mod tcp;

use std::sync::Arc;

use crate::call::Head;
use crate::engine::link::{Board, Fabric, Notice, Place, Rx, Tx, Window};
use crate::engine::wires::FABRIC_LANES;
use crate::error::Result;
use crate::link::doze::Doze;

macro_rules! any {
    ($(#[$meta:meta])* $name:ident { $($variant:ident($inner:ty),)+ }) => {
        $(#[$meta])*
        #[derive(Debug)]
        pub(crate) enum $name { $($variant($inner),)+ }
    };
}

any! {
    /// A sending end of any kind.
    AnyTx {
        Ring(ring::RingTx),
        Tcp(tcp::TcpTx),
        Rdma(rdma::RdmaTx),
        Rsocket(rdma::RsocketTx),
    }
}

any! {
    /// A receiving end of any kind.
    AnyRx {
        Ring(ring::RingRx),
        Tcp(tcp::TcpRx),
        Rdma(rdma::RdmaRx),
        Rsocket(rdma::RsocketRx),
    }
}

any! {
    /// A board of any kind.
    AnyBoard { Process(mem::ProcessBoard), Host(shm::HostBoard), }
}

/// Forwards a call to whichever kind it is.
macro_rules! each {
    ($self:ident, $kind:ident { $($variant:ident),+ }, $link:ident => $call:expr) => {
        match $self { $($kind::$variant($link) => $call,)+ }
    };
}

// SAFETY: passed on to the kind of link.
unsafe impl Tx for AnyTx {
    #[inline]
    fn window(&mut self) -> Result<Window> {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.window())
    }

    #[inline]
    fn commit(&mut self, bytes: usize) -> Result<()> {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.commit(bytes))
    }

    #[inline]
    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.write(from, bytes)) }
    }

    unsafe fn place(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.place(from, bytes)) }
    }

    unsafe fn stage(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.stage(from, bytes)) }
    }

    unsafe fn stage_placed(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.stage_placed(from, bytes))
        }
    }

    #[inline]
    fn reads(&mut self, at: *const u8, bytes: usize) -> bool {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.reads(at, bytes))
    }

    #[inline]
    fn end(&mut self) -> Result<()> {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.end())
    }

    #[inline]
    fn flush(&mut self) -> Result<bool> {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.flush())
    }
}

// SAFETY: passed on to the kind of link.
unsafe impl Rx for AnyRx {
    #[inline]
    fn peek(&mut self, want: usize) -> Result<Window> {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.peek(want))
    }

    #[inline]
    fn release(&mut self, bytes: usize) {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.release(bytes));
    }

    #[inline]
    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.read(into, bytes)) }
    }

    #[inline]
    unsafe fn take(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.take(into, bytes)) }
    }

    unsafe fn expect(&mut self, later: u32, into: *mut u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        unsafe {
            each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.expect(later, into, bytes))
        }
    }

    #[inline]
    fn end(&mut self) {
        each!(self, Self { Ring, Tcp, Rdma, Rsocket }, link => link.end());
    }
}

// SAFETY: passed on to the kind of board.
unsafe impl Board for AnyBoard {
    fn place(&mut self, at: *const u8, bytes: usize) -> Place {
        each!(self, Self { Process, Host }, board => board.place(at, bytes))
    }

    fn publish(&mut self, turn: u64, notice: Notice<'_>) {
        each!(self, Self { Process, Host }, board => board.publish(turn, notice));
    }

    #[inline]
    fn notice(&mut self, peer: usize, turn: u64) -> Result<Option<u64>> {
        each!(self, Self { Process, Host }, board => board.notice(peer, turn))
    }

    #[inline]
    fn words(&self, peer: usize, turn: u64, words: &mut [u64]) {
        each!(self, Self { Process, Host }, board => board.words(peer, turn, words));
    }

    fn expect(&self, peer: usize, turn: u64) {
        each!(self, Self { Process, Host }, board => board.expect(peer, turn));
    }

    fn head(&self, peer: usize, turn: u64) -> Head {
        each!(self, Self { Process, Host }, board => board.head(peer, turn))
    }

    fn area(&self, rank: usize) -> *mut u8 {
        each!(self, Self { Process, Host }, board => board.area(rank))
    }

    fn past(&self) -> bool {
        each!(self, Self { Process, Host }, board => board.past())
    }

    fn clock(&self) -> u64 {
        each!(self, Self { Process, Host }, board => board.clock())
    }

    fn took(&mut self, past: bool, bytes: usize, nanoseconds: u64) {
        each!(self, Self { Process, Host }, board => board.took(past, bytes, nanoseconds));
    }

    fn resolve(&mut self, peer: usize, place: Place) -> Result<*mut u8> {
        each!(self, Self { Process, Host }, board => board.resolve(peer, place))
    }

    fn post(&mut self, phase: u64) {
        each!(self, Self { Process, Host }, board => board.post(phase));
    }

    fn reached(&mut self, peer: usize) -> u64 {
        each!(self, Self { Process, Host }, board => board.reached(peer))
    }

    fn give_up(&mut self, turn: u64) {
        each!(self, Self { Process, Host }, board => board.give_up(turn));
    }

    #[inline]
    fn given_up(&self, peer: usize, turn: u64) -> bool {
        each!(self, Self { Process, Host }, board => board.given_up(peer, turn))
    }
}

/// Bytes that every link of a rank takes on while its other end does nothing, in a world whose
/// ranks are `apart`, so that there are only sockets, and in any other.
#[must_use]
pub const fn capacity(apart: bool) -> usize {
    if apart || tcp::STAGING_BYTES < mem::RING_BYTES { tcp::STAGING_BYTES } else { mem::RING_BYTES }
}

/// All links of one rank.
#[derive(Debug)]
pub(crate) struct Links {
    tx: Box<[Option<AnyTx>]>,
    rx: Box<[Option<AnyRx>]>,
    board: Option<AnyBoard>,
    doze: Arc<Doze>,
    ends: ends::Ends,
    capacity: usize,
    rdma: Option<rdma::Launched>,
    rsocket: Option<rdma::Opened>,
    places: Option<usize>,
}

impl Links {
    /// No links yet, to `world - 1` peers; `doze` is this rank's, `capacity` what every link will
    /// hold, `ends` where connections note theirs.
    pub(crate) fn new(world: usize, doze: Arc<Doze>, capacity: usize, ends: ends::Ends) -> Self {
        let ports = world * FABRIC_LANES;
        Self {
            tx: (0..ports).map(|_| None).collect(),
            rx: (0..ports).map(|_| None).collect(),
            board: None,
            doze,
            ends,
            capacity,
            rdma: None,
            rsocket: None,
            places: None,
        }
    }

    /// Puts the two directions to `peer` on `lane` in place.
    pub(crate) fn join(&mut self, peer: usize, lane: usize, tx: AnyTx, rx: AnyRx) {
        let port = peer * FABRIC_LANES + lane;
        (self.tx[port], self.rx[port]) = (Some(tx), Some(rx));
    }

    /// All ranks share memory: they meet on `board`.
    pub(crate) fn set_board(&mut self, board: AnyBoard) {
        self.board = Some(board);
    }

    /// Some two ranks of the world are connected by RDMA: messages of so many bytes are placed.
    pub(crate) fn set_places(&mut self, bytes: usize) {
        self.places = Some(bytes);
    }

    /// Some ranks are connected by `rdma`, which has a number for each of them.
    pub(crate) fn set_rdma(&mut self, rdma: rdma::Launched, members: &[Option<usize>]) {
        for (peer, member) in members.iter().enumerate() {
            let Some(member) = member else { continue };
            for lane in 0..FABRIC_LANES {
                let (tx, rx) = rdma::ends(&rdma, *member, lane);
                self.join(peer, lane, AnyTx::Rdma(tx), AnyRx::Rdma(rx));
            }
        }
        self.rdma = Some(rdma);
    }

    /// Some ranks are connected by the sockets `opened`, which has a number for each of them.
    pub(crate) fn set_rsocket(&mut self, opened: rdma::Opened, members: &[Option<usize>]) {
        for (peer, member) in members.iter().enumerate() {
            let Some(member) = member else { continue };
            for lane in 0..FABRIC_LANES {
                let (tx, rx) = rdma::ends_of(&opened, *member, lane);
                self.join(peer, lane, AnyTx::Rsocket(tx), AnyRx::Rsocket(rx));
            }
        }
        self.rsocket = Some(opened);
    }

    /// The connections by RDMA cards.
    pub(crate) fn rdma(&self) -> Option<&rdma::Launched> {
        self.rdma.as_ref()
    }

    /// Those by sockets of librdmacm.
    pub(crate) fn rsocket(&self) -> Option<&rdma::Opened> {
        self.rsocket.as_ref()
    }

    /// Where its connections note their ends.
    pub(crate) fn ends(&self) -> &ends::Ends {
        &self.ends
    }

    /// This rank's flag and bell.
    pub(crate) fn doze(&self) -> &Arc<Doze> {
        &self.doze
    }
}

impl Fabric for Links {
    type Tx = AnyTx;
    type Rx = AnyRx;
    type Board = AnyBoard;

    #[inline]
    fn tx(&mut self, to: usize, lane: usize) -> &mut AnyTx {
        self.tx[to * FABRIC_LANES + lane].as_mut().expect("no link to oneself")
    }

    #[inline]
    fn rx(&mut self, from: usize, lane: usize) -> &mut AnyRx {
        self.rx[from * FABRIC_LANES + lane].as_mut().expect("no link to oneself")
    }

    fn board(&mut self) -> Option<&mut AnyBoard> {
        self.board.as_mut()
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn places(&self) -> Option<usize> {
        self.places
    }

    fn cover(&mut self, at: *const u8, bytes: usize, written: bool) {
        if let Some(rdma) = &self.rdma {
            rdma.cover(at, bytes, written);
        }
    }

    fn cut(&mut self) {
        if let Some(rdma) = &self.rdma {
            rdma.cut();
        }
        if let Some(rsocket) = &self.rsocket {
            rsocket.cut();
        }
    }
}
