//! The two ends of a lane over RDMA, as the engine has them.

use super::fleet::{Fleet, Launched};
use super::pair::Pair;
use super::queue::Queue;
use super::shared::Shared;
use crate::engine::link::{Rx, Tx, Window};
use crate::error::Result;

/// A lane to a peer: one of the fleet's connections.
#[derive(Clone, Debug)]
struct Lane {
    fleet: Shared<Fleet>,
    member: usize,
    lane: usize,
}

impl Lane {
    /// What `use_it` makes of the pair; `otherwise` where that is broken.
    fn on<R>(&self, otherwise: R, use_it: impl FnOnce(&mut Pair<Queue>) -> Result<R>) -> R {
        self.fleet.with(|fleet| fleet.on(self.member, otherwise, use_it))
    }

    /// What is only noted, after a look that the same message has had: none at the cards.
    fn note(&self, use_it: impl FnOnce(&mut Pair<Queue>) -> Result<()>) {
        self.fleet.with(|fleet| fleet.unseen(self.member, (), use_it));
    }

    /// As [`Lane::on`], of bytes that come or go; where none do it may be that none ever will.
    fn move_by(&self, use_it: impl FnOnce(&mut Pair<Queue>) -> Result<usize>) -> usize {
        self.fleet.with(|fleet| {
            let moved = fleet.on(self.member, 0, use_it);
            if moved == 0 {
                fleet.missed(self.member);
            }
            moved
        })
    }
}

/// The sending end.
#[derive(Debug)]
pub(crate) struct RdmaTx(Lane);

/// The receiving end.
#[derive(Debug)]
pub(crate) struct RdmaRx(Lane);

/// Both ends of `lane` with peer number `member`.
pub(crate) fn ends(launched: &Launched, member: usize, lane: usize) -> (RdmaTx, RdmaRx) {
    let one = Lane { fleet: launched.fleet.clone(), member, lane };
    (RdmaTx(one.clone()), RdmaRx(one))
}

// SAFETY: windows lie in the mirror of the lane's ring.
unsafe impl Tx for RdmaTx {
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
unsafe impl Rx for RdmaRx {
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
