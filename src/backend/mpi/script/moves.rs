//! Scripts of calls that only move data.

use std::ptr;

use super::{Step, Writer, divides, fill, int, number, pieces, places};
use crate::error::{Code, Error, Result};
use crate::mpi::Kind;
use crate::types::{Collective, Rank};

impl Writer<'_> {
    pub(super) fn broadcast(&mut self) {
        let call = self.call;
        let root = call.root.index() == self.rules.me;
        let buffer = if root { call.send.cast_mut() } else { call.recv };
        self.broadcast_block(buffer, call.root.index(), call.count);
        if root {
            self.copy(call.send, call.recv, call.count);
        }
    }

    /// `root`'s elements to everyone's place `at`, in as many calls as MPI needs.
    fn broadcast_block(&mut self, at: *mut u8, root: usize, count: u64) {
        for (done, some) in pieces(count, self.most(count)) {
            let place = at.wrapping_add(number(done) * self.bytes());
            let mut one = self.primitive(Kind::Broadcast, (place, place), some);
            one.root = int(root);
            self.push(Step::Mpi { call: one, lists: 0 });
        }
    }

    pub(super) fn all_gather(&mut self) {
        let call = self.call;
        let own = call.recv.wrapping_add(number(call.count) * self.bytes() * self.rules.me);
        if self.fits(call.count) {
            let mut one = self.primitive(Kind::AllGather, (call.send, call.recv), call.count);
            if ptr::eq(call.send, own) {
                one.send = self.in_place();
            }
            return self.push(Step::Mpi { call: one, lists: 0 });
        }
        self.copy(call.send, own, call.count);
        for root in 0..self.rules.world {
            let at = call.recv.wrapping_add(number(call.count) * self.bytes() * root);
            self.broadcast_block(at, root, call.count);
        }
    }

    /// gather and scatter.
    pub(super) fn rooted(&mut self) {
        let call = self.call;
        let root = call.root.index() == self.rules.me;
        let gathers = call.collective == Collective::Gather;
        let block = number(call.count) * self.bytes();
        if !self.fits(call.count) {
            let all = if gathers { call.recv } else { call.send.cast_mut() };
            let own = if gathers { call.send.cast_mut() } else { call.recv };
            let blocks = (0..self.rules.world).map(|r| (all.wrapping_add(block * r), call.count));
            return self.by_messages(own, call.count, blocks.collect());
        }
        let kind = if gathers { Kind::Gather } else { Kind::Scatter };
        let mut one = self.primitive(kind, (call.send, call.recv), call.count);
        let own = if gathers { call.recv.cast_const() } else { call.send }
            .wrapping_add(block * self.rules.me);
        if root && gathers && ptr::eq(call.send, own) {
            one.send = self.in_place();
        }
        if root && !gathers && ptr::eq(call.recv, own) {
            one.recv = self.in_place().cast_mut();
        }
        self.push(Step::Mpi { call: one, lists: 0 });
    }

    /// gather_v and scatter_v.
    pub(super) fn rooted_v(&mut self) -> Result<()> {
        let call = self.call;
        let (root, me) = (call.root.index() == self.rules.me, self.rules.me);
        let gathers = call.collective == Collective::GatherV;
        let blocks = if gathers { &call.recv_blocks } else { &call.send_blocks };
        // Only the root knows them, so how they travel must not depend on them alone.
        if self.rules.divided {
            let all = if gathers { call.recv } else { call.send.cast_mut() };
            let own = if gathers { call.send.cast_mut() } else { call.recv };
            let places =
                places(blocks).map(|(d, c)| (all.wrapping_add(number(d) * self.bytes()), c));
            self.by_messages(own, call.count, places.collect());
            return Ok(());
        }
        self.countable()?;
        let kind = if gathers { Kind::GatherV } else { Kind::ScatterV };
        let mut one = self.primitive(kind, (call.send, call.recv), call.count);
        let (index, lists) = self.script.list();
        let list = &mut lists[usize::from(gathers)];
        let most = fill(list, places(blocks)).max(call.count);
        if root {
            let start = number(blocks.displacements[me]) * self.bytes();
            if gathers && ptr::eq(call.send, call.recv.wrapping_add(start)) {
                one.send = self.in_place();
            }
            if !gathers && ptr::eq(call.recv, call.send.wrapping_add(start)) {
                one.recv = self.in_place().cast_mut();
            }
        }
        one.wide = self.wide(most);
        self.push(Step::Mpi { call: one, lists: index });
        Ok(())
    }

    /// Refuses counts that this MPI cannot take, where the other ranks have not been told.
    fn countable(&self) -> Result<()> {
        if !divides(self.call, self.rules) {
            return Ok(());
        }
        let (kind, limit) = (self.call.collective, self.rules.limit);
        let text = format!(
            "{kind}: this MPI counts up to {limit} elements, and more take UNISONO_CHECK=1, for \
             only some ranks know of them"
        );
        Err(Error::new(Code::Limit, text))
    }

    /// gather and scatter, with messages: `blocks` is where each rank's lies at the root.
    fn by_messages(&mut self, own: *mut u8, count: u64, blocks: Vec<(*mut u8, u64)>) {
        let gathers = matches!(self.call.collective, Collective::Gather | Collective::GatherV);
        let (root, me) = (self.call.root, self.rules.me);
        if root.index() != me {
            let kind = if gathers { Kind::Send } else { Kind::Recv };
            return self.message(kind, own, root, count);
        }
        for (rank, (at, count)) in blocks.into_iter().enumerate() {
            if rank == me {
                let (from, to) = if gathers { (own, at) } else { (at, own) };
                self.copy(from, to, count);
            } else {
                self.message(
                    if gathers { Kind::Recv } else { Kind::Send },
                    at,
                    Rank::at(rank),
                    count,
                );
            }
        }
    }

    pub(super) fn all_to_all(&mut self) -> Result<()> {
        let call = self.call;
        if self.fits(call.count) {
            let mut one = self.primitive(Kind::AllToAll, (call.send, call.recv), call.count);
            if ptr::eq(call.send, call.recv) {
                one.send = self.in_place();
            }
            self.push(Step::Mpi { call: one, lists: 0 });
            return Ok(());
        }
        let places: Vec<_> =
            (0..self.rules.world as u64).map(|r| (r * call.count, call.count)).collect();
        self.all_by_messages(&places, &places)
    }

    pub(super) fn all_gather_v(&mut self) -> Result<()> {
        let call = self.call;
        let blocks = &call.recv_blocks;
        let place =
            |r: usize| call.recv.wrapping_add(number(blocks.displacements[r]) * call.dtype.bytes());
        let own = place(self.rules.me);
        // Counts are the same on all ranks; displacements need not be.
        if self.rules.divided || !self.fits(blocks.counts.iter().sum()) {
            self.copy(call.send, own, call.count);
            for root in 0..self.rules.world {
                self.broadcast_block(place(root), root, blocks.counts[root]);
            }
            return Ok(());
        }
        self.countable()?;
        let mut one = self.primitive(Kind::AllGatherV, (call.send, call.recv), call.count);
        if ptr::eq(call.send, own) {
            one.send = self.in_place();
        }
        let (index, lists) = self.script.list();
        let most = fill(&mut lists[1], places(blocks));
        one.wide = self.wide(most);
        self.push(Step::Mpi { call: one, lists: index });
        Ok(())
    }

    pub(super) fn all_to_all_v(&mut self) -> Result<()> {
        let call = self.call;
        let (sends, recvs) = (&call.send_blocks, &call.recv_blocks);
        // Each rank knows its own counts only; the form must not depend on them alone.
        if self.rules.divided {
            let lists = |blocks| places(blocks).collect::<Vec<_>>();
            return self.all_by_messages(&lists(sends), &lists(recvs));
        }
        self.countable()?;
        let mut one = self.primitive(Kind::AllToAllV, (call.send, call.recv), 0);
        let moves = sends.counts.iter().any(|c| *c > 0);
        if moves && ptr::eq(call.send, call.recv) {
            one.send = self.in_place();
        }
        let (index, lists) = self.script.list();
        let most = fill(&mut lists[0], places(sends));
        let most = fill(&mut lists[1], places(recvs)).max(most);
        one.wide = self.wide(most);
        self.push(Step::Mpi { call: one, lists: index });
        Ok(())
    }

    /// all_to_all with messages.
    fn all_by_messages(&mut self, sends: &[(u64, u64)], recvs: &[(u64, u64)]) -> Result<()> {
        let (call, me) = (self.call, self.rules.me);
        let mut send = call.send;
        if ptr::eq(call.send, call.recv) {
            // In place: what arrives must not overwrite what is still to leave.
            let all = sends.iter().map(|(at, count)| at + count).max().unwrap_or(0);
            let scratch = self.script.scratch(number(all) * self.bytes())?;
            self.copy(send, scratch, all);
            send = scratch.cast_const();
        }
        let bytes = self.bytes();
        let at = |base: *mut u8, place: u64| base.wrapping_add(number(place) * bytes);
        self.copy(at(send.cast_mut(), sends[me].0), at(call.recv, recvs[me].0), sends[me].1);
        for (rank, (from, to)) in sends.iter().zip(recvs).enumerate().filter(|(r, _)| *r != me) {
            self.message(Kind::Recv, at(call.recv, to.0), Rank::at(rank), to.1);
            self.message(Kind::Send, at(send.cast_mut(), from.0), Rank::at(rank), from.1);
        }
        Ok(())
    }
}
