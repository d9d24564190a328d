//! The two ends of a lane over RDMA, as the engine has them.

use super::fleet::{Fleet, Launched};
use super::pair::Pair;
use super::port::Port;
use super::shared::Shared;
use super::sockets::{Opened, Sockets};
use crate::engine::link::{Rx, Tx, Window};
use crate::error::Result;

/// All connections of a rank of one kind, by the numbers of its peers.
pub(super) trait Carrier {
    /// What carries the bytes.
    type Port: Port;

    /// As [`Carrier::unseen`], after a look at what has come.
    fn on<R>(
        &mut self,
        index: usize,
        otherwise: R,
        use_it: impl FnOnce(&mut Pair<Self::Port>) -> Result<R>,
    ) -> R;

    /// What `use_it` makes of the pair of `index`; `otherwise` where the connection breaks by that.
    fn unseen<R>(
        &mut self,
        index: usize,
        otherwise: R,
        use_it: impl FnOnce(&mut Pair<Self::Port>) -> Result<R>,
    ) -> R;

    /// Nothing moves with `index`: notes it where nothing ever will.
    fn missed(&mut self, index: usize);
}

/// A lane to a peer: one of the carrier's connections.
#[derive(Debug)]
struct Lane<C> {
    carrier: Shared<C>,
    member: usize,
    lane: usize,
}

impl<C: Carrier> Lane<C> {
    /// What `use_it` makes of the pair; `otherwise` where that is broken.
    fn on<R>(&self, otherwise: R, use_it: impl FnOnce(&mut Pair<C::Port>) -> Result<R>) -> R {
        self.carrier.with(|carrier| carrier.on(self.member, otherwise, use_it))
    }

    /// What is only noted, after a look that the same message has had: none at the cards.
    fn note(&self, use_it: impl FnOnce(&mut Pair<C::Port>) -> Result<()>) {
        self.carrier.with(|carrier| carrier.unseen(self.member, (), use_it));
    }

    /// As [`Lane::on`], of bytes that come or go; where none do it may be that none ever will.
    fn move_by(&self, use_it: impl FnOnce(&mut Pair<C::Port>) -> Result<usize>) -> usize {
        self.carrier.with(|carrier| {
            let moved = carrier.on(self.member, 0, use_it);
            if moved == 0 {
                carrier.missed(self.member);
            }
            moved
        })
    }
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct PairTx<C>(Lane<C>);

/// The receiving end.
#[derive(Debug)]
pub(crate) struct PairRx<C>(Lane<C>);

/// Both ends by queue pairs.
pub(crate) type RdmaTx = PairTx<Fleet>;
pub(crate) type RdmaRx = PairRx<Fleet>;

/// Both ends by sockets.
pub(crate) type RsocketTx = PairTx<Sockets>;
pub(crate) type RsocketRx = PairRx<Sockets>;

fn both<C>(carrier: &Shared<C>, member: usize, lane: usize) -> (PairTx<C>, PairRx<C>) {
    let one = || Lane { carrier: carrier.clone(), member, lane };
    (PairTx(one()), PairRx(one()))
}

/// Both ends of `lane` with peer number `member`.
pub(crate) fn ends(launched: &Launched, member: usize, lane: usize) -> (RdmaTx, RdmaRx) {
    both(&launched.fleet, member, lane)
}

/// The same by sockets.
pub(crate) fn ends_of(opened: &Opened, member: usize, lane: usize) -> (RsocketTx, RsocketRx) {
    both(&opened.sockets, member, lane)
}

// SAFETY: windows lie in the mirror of the lane's ring.
unsafe impl<C: Carrier> Tx for PairTx<C> {
    fn window(&mut self) -> Result<Window> {
        let lane = self.0.lane;
        Ok(self.0.on(Window::EMPTY, |pair| Ok(pair.window(lane))))
    }

    fn commit(&mut self, bytes: usize) -> Result<()> {
        let lane = self.0.lane;
        self.0.note(|pair| pair.commit(lane, bytes));
        Ok(())
    }

    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        let lane = self.0.lane;
        Ok(self.0.move_by(|pair| {
            // SAFETY: the caller's promise is passed on.
            unsafe { pair.write(lane, from, bytes) }
        }))
    }

    unsafe fn place(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        let lane = self.0.lane;
        Ok(self.0.move_by(|pair| {
            // SAFETY: the caller's promise is passed on.
            unsafe { pair.place(lane, from, bytes, false) }
        }))
    }

    unsafe fn stage(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        let lane = self.0.lane;
        Ok(self.0.move_by(|pair| {
            // SAFETY: the caller's promise is passed on.
            unsafe { pair.stage(lane, from, bytes) }
        }))
    }

    unsafe fn stage_placed(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        let lane = self.0.lane;
        Ok(self.0.move_by(|pair| {
            // SAFETY: the caller's promise is passed on.
            unsafe { pair.place(lane, from, bytes, true) }
        }))
    }

    fn reads(&mut self, at: *const u8, bytes: usize) -> bool {
        let lane = self.0.lane;
        self.0.on(false, |pair| Ok(pair.reads(lane, at, bytes)))
    }

    fn end(&mut self) -> Result<()> {
        let lane = self.0.lane;
        self.0.note(|pair| pair.end_out(lane));
        Ok(())
    }

    fn flush(&mut self) -> Result<bool> {
        let lane = self.0.lane;
        let flushed = self.0.move_by(|pair| {
            pair.publish(lane)?;
            Ok(usize::from(pair.flushed(lane)))
        });
        Ok(flushed > 0)
    }
}

// SAFETY: windows lie in the lane's ring, where the peer writes again only what has been told free.
unsafe impl<C: Carrier> Rx for PairRx<C> {
    fn peek(&mut self, _: usize) -> Result<Window> {
        let lane = self.0.lane;
        let mut window = Window::EMPTY;
        self.0.move_by(|pair| {
            window = pair.peek(lane);
            Ok(window.bytes)
        });
        Ok(window)
    }

    fn release(&mut self, bytes: usize) {
        let lane = self.0.lane;
        self.0.note(|pair| {
            pair.release(lane, bytes);
            Ok(())
        });
    }

    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        let lane = self.0.lane;
        Ok(self.0.move_by(|pair| {
            // SAFETY: the caller's promise is passed on.
            Ok(unsafe { pair.read(lane, into, bytes) })
        }))
    }

    unsafe fn take(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        let lane = self.0.lane;
        Ok(self.0.move_by(|pair| {
            // SAFETY: the caller's promise is passed on.
            unsafe { pair.take(lane, into, bytes) }
        }))
    }

    unsafe fn expect(&mut self, later: u32, into: *mut u8, bytes: usize) -> Result<()> {
        let lane = self.0.lane;
        self.0.note(|pair| {
            // SAFETY: the caller's promise is passed on.
            unsafe { pair.expect(lane, later, into, bytes) }
        });
        Ok(())
    }

    fn end(&mut self) {
        let lane = self.0.lane;
        self.0.note(|pair| pair.end_in(lane));
    }
}
