//! The calls under way in their order: how they are taken on, go on side by side, and end.

use std::time::Instant;

use super::direct::{Direct, Led, Step};
use super::job::{Job, Way};
use super::moved::{self, Moved};
use super::staged::Staged;
use super::tools::OWN;
use super::{Gpu, UNATTENDED_MAX};
use crate::backend::Backend;
use crate::call::{Call, Place};
use crate::error::{Code, Error, Result};
use crate::nccl::Progress;
use crate::sync::Ordering;

/// `CUDA_ERROR_STREAM_CAPTURE_IMPLICIT`.
const CAPTURE_IMPLICIT: i32 = 906;

/// What a look at a job has found.
#[derive(Clone, Copy, Debug, Default)]
struct Looked {
    moved: bool,
    over: bool,
}

impl Gpu {
    /// Takes on a call: one on device memory, or one on host memory that others stand before.
    ///
    /// # Errors
    /// CUDA's own.
    pub(super) fn enqueue(&mut self, call: Call, ticket: u32) -> Result<()> {
        let head = self.side.head_of(&call);
        if call.place.is_host() {
            self.jobs.push_back(Job::new(call, ticket, Way::Host { sent: false }, 0));
            return Ok(());
        }
        if self.complete == self.group {
            self.group = self.group.wrapping_add(1);
        }
        let group = self.group;
        let more =
            matches!(call.place, Place::Device { more: true } | Place::Stream { more: true, .. });
        if !more {
            self.complete = group;
        }
        let way = match &self.nccl {
            Some(nccl) if nccl.makes(&call, &self.tools) => {
                let mut moved = Box::new(Moved::new(&call, head, nccl, &self.tools));
                if !moved.has_sent() {
                    moved.meet(&call, &mut self.side, &self.tools, &mut self.numbers);
                }
                Way::Moved(moved)
            }
            _ if self.direct.is_some() && Direct::takes(&call) => Way::Led(Led::new(head)),
            _ => Way::Staged(Staged::new(&call, head, &self.tools)),
        };
        let mut job = Job::new(call, ticket, way, group);
        let come = match job.call.place {
            Place::Stream { handle, .. } => self.come_to(&mut job, handle),
            Place::Host | Place::Device { .. } => Ok(()),
        };
        match come {
            // One that no rank can make is over, and the others of its group are not.
            Err(error) if error.code == Code::Unsupported => {
                self.ended.push_back((ticket, Err(error)));
                Ok(())
            }
            come => {
                self.jobs.push_back(job);
                come
            }
        }
    }

    /// Finds out when the program's stream has come to `job`, and gets what it needs before what
    /// follows in the stream waits for it.
    fn come_to(&mut self, job: &mut Job, handle: usize) -> Result<()> {
        let stream = self.tools.stream(handle);
        if matches!(job.way, Way::Moved(_)) {
            return Ok(());
        }
        let captured = match stream.is_capturing() {
            // The legacy default stream, while another that waits for it is captured.
            Err(error) if error.native == CAPTURE_IMPLICIT => true,
            captured => captured?,
        };
        if captured {
            let text = "graphs are captured with NCCL only: the native backend works on the host, \
                        too";
            return Err(Error::new(Code::Unsupported, text));
        }
        if let Way::Staged(staged) = &mut job.way {
            staged.prepare(&job.call, &mut self.side, (&self.tools, &mut self.spare))?;
        }
        // Calls of a group have one place.
        let known = self.jobs.iter().find(|other| other.group == job.group && other.mark.is_none());
        job.ready = match known.and_then(|other| other.ready) {
            Some(ready) => Some(ready),
            None => Some(self.words.flag(&stream)?),
        };
        Ok(())
    }

    /// Gives a group its place, once all of it has come and NCCL's calls are in the stream: what
    /// follows there waits for the others. Their callers go on.
    fn take_place(&mut self) -> Result<bool> {
        let Some(first) = self.jobs.iter().position(|job| job.takes_place) else {
            return Ok(false);
        };
        let (group, place) = (self.jobs[first].group, self.jobs[first].call.place);
        let mine = |job: &&mut Job| job.group == group && job.takes_place;
        let waits = self.jobs.iter_mut().filter(mine).any(|job| job.is_for_nccl());
        let Place::Stream { handle, .. } = place else { return Ok(false) };
        if self.complete != group || waits {
            return Ok(false);
        }
        let stream = self.tools.stream(handle);
        let is_marked = |job: &Job| !matches!(job.way, Way::Moved(_));
        let count = self.jobs.iter_mut().filter(mine).filter(|job| is_marked(job)).count();
        let mark = if count > 0 { Some(self.words.mark(&stream, count)?) } else { None };
        for index in first..self.jobs.len() {
            let job = &mut self.jobs[index];
            if job.group == group && std::mem::take(&mut job.takes_place) {
                job.mark = mark.filter(|_| is_marked(job));
                self.leave(index);
            }
        }
        Ok(true)
    }

    /// A job has its place in its stream: its caller goes on.
    fn leave(&mut self, index: usize) {
        let crowd = self.jobs.len();
        let job = &mut self.jobs[index];
        job.unattended = true;
        if crowd <= UNATTENDED_MAX {
            self.ended.push_back((job.ticket, Ok(())));
        } else {
            self.held.push_back(job.ticket);
        }
        // ORDERING: of this and the look of a progress thread about to sleep, one sees the other.
        self.unattended.fetch_add(1, Ordering::SeqCst);
    }

    /// Lets every job go on that may; whether any moved.
    pub(super) fn advance(&mut self) -> Result<bool> {
        let mut moved_on = self.feed_nccl()? | self.take_place()?;
        let mut line = std::mem::take(&mut self.line);
        line.clear();
        let (mut index, mut moves) = (0, false);
        while index < self.jobs.len() {
            let job = &mut self.jobs[index];
            let lane = job.lane();
            let first = !line.contains(&lane);
            if !first && !job.is_under_way() {
                index += 1;
                continue;
            }
            if let Some(ready) = job.ready {
                if !self.words.is_up(ready) {
                    line.push(lane);
                    index += 1;
                    continue;
                }
                job.ready = None;
            }
            // What can begin has its time from here on.
            let is_next = first && !(matches!(job.way, Way::Moved(_)) && moves);
            moves |= matches!(job.way, Way::Moved(_));
            let is_alone = matches!(job.call.place, Place::Stream { .. });
            if is_next && is_alone && job.deadline.is_none() {
                job.deadline = self.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
            }
            let looked = self.look_after(index, first)?;
            moved_on |= looked.moved || looked.over;
            let job = &self.jobs[index];
            // One that has no place yet stays: what follows in the stream has still to wait for it.
            if looked.over && !job.takes_place {
                if let Some(job) = self.jobs.remove(index) {
                    self.end(job, Ok(()));
                }
                continue;
            }
            if !job.has_sent() {
                line.push(lane);
            }
            index += 1;
        }
        self.line = line;
        Ok(moved_on)
    }

    /// Looks after one job, which is `first` of its lane or not.
    fn look_after(&mut self, index: usize, first: bool) -> Result<Looked> {
        let mut looked = Looked::default();
        let job = &mut self.jobs[index];
        match &mut job.way {
            Way::Moved(moved) => looked.over = moved.is_over(&mut self.events)?,
            Way::Host { sent } => {
                if first && !std::mem::replace(sent, true) {
                    // SAFETY: the promise of the call's maker is passed on.
                    unsafe { self.side.submit(job.call.clone(), job.ticket) };
                    looked.moved = true;
                }
                looked.over = *sent;
            }
            Way::Led(led) => {
                let Some(direct) = &mut self.direct else { return Ok(looked) };
                let tools = (&self.tools, direct, &mut self.numbers, &mut self.events);
                let step = led.advance(&job.call, &mut self.side, first, tools)?;
                looked.moved = step != Step::Waits;
                looked.over = led.is_over();
                if step == Step::OutOfReach {
                    let head = self.side.head_of(&job.call);
                    job.way = Way::Staged(Staged::new(&job.call, head, &self.tools));
                }
            }
            Way::Staged(staged) => {
                let tools = (&self.tools, &mut self.spare, &mut self.numbers);
                looked.moved = staged.advance(&job.call, &mut self.side, first, tools)?;
                looked.over = staged.is_over();
            }
        }
        Ok(looked)
    }

    /// Gives NCCL what it takes: group by group, and of each group round by round; whether it got
    /// any.
    fn feed_nccl(&mut self) -> Result<bool> {
        let mut fed = false;
        if self.suspect.is_some() {
            return Ok(false);
        }
        // BOUND: every turn gives a round of the first group to NCCL, or ends that.
        while let Some(first) = self.jobs.iter().position(Job::is_for_nccl) {
            let group = self.jobs[first].group;
            let whole = self.complete == group || self.group != group;
            let Some(nccl) = self.nccl.as_ref().filter(|_| whole) else { break };
            match nccl.takes() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    self.suspect(error);
                    break;
                }
            }
            let tools = &self.tools;
            let mut members = Vec::new();
            for job in self.jobs.iter_mut().filter(|job| job.group == group && job.is_for_nccl()) {
                let Job { call, way, .. } = job;
                let Way::Moved(moved) = way else { continue };
                if moved.next_round(call, nccl, (tools, &mut self.events))? {
                    members.push((&*call, &mut **moved));
                }
            }
            fed = true;
            match moved::enter(nccl, &mut members) {
                Ok(Progress::Done) => {}
                Ok(Progress::Pending) => break,
                Err(error) => {
                    self.suspect(error);
                    break;
                }
            }
        }
        Ok(fed)
    }

    /// A job is over.
    fn end(&mut self, job: Job, result: Result<()>) {
        if let Some(mark) = job.mark {
            self.words.count(mark);
        }
        if job.unattended {
            self.unattended.fetch_sub(1, Ordering::Relaxed);
            self.ended.extend(self.held.pop_front().map(|ticket| (ticket, result)));
        } else if !matches!(job.way, Way::Host { sent: true }) {
            // The side tells the end of what it has.
            self.ended.push_back((job.ticket, result));
        }
        match job.way {
            Way::Host { .. } | Way::Led(_) => {}
            Way::Moved(mut moved) => moved.abandon(),
            Way::Staged(staged) => staged.leave(&mut self.spare),
        }
        self.spent.extend(job.call.into_lists());
    }

    /// Ends every job with `error`. Nothing here may wait for a stream before all marks are set: a
    /// stream waits for them.
    pub(super) fn end_all(&mut self, error: &Error) {
        self.words.set_all();
        if let Some(nccl) = &mut self.nccl {
            nccl.abort();
        }
        while let Some(job) = self.jobs.pop_front() {
            self.end(job, Err(error.clone()));
        }
        self.own_ends.clear();
    }

    /// Parts the ends of callers' calls from those of our own.
    pub(super) fn sort_ends(&mut self) {
        while let Some((number, result)) = self.side.take_ended() {
            let own = number & OWN != 0;
            let list = if own { &mut self.own_ends } else { &mut self.ended };
            list.push_back((number, result));
        }
    }

    /// Moves what can move; errors end everything.
    pub(super) fn turn(&mut self) -> Result<bool> {
        let mut moved = false;
        self.sort_ends();
        while let Some((number, result)) = self.own_ends.pop_front() {
            moved = true;
            result?;
            for job in &mut self.jobs {
                let found = match &mut job.way {
                    Way::Host { .. } => false,
                    Way::Moved(moved) => moved.ended(number, &job.call, self.tools.me)?,
                    Way::Led(led) => led.ended(number),
                    Way::Staged(staged) => staged.ended(number, &self.tools)?,
                };
                if found {
                    break;
                }
            }
        }
        Ok(self.advance()? || moved)
    }
}
