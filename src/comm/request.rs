//! Requests: what a non-blocking call returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::comm::core::Core;
use crate::comm::table::BLOCKING;
use crate::error::Result;

/// A call under way. Dropping it does not end the call.
#[derive(Debug)]
#[must_use = "a request that is never waited for tells nobody how its call ended"]
pub struct Request {
    core: Arc<Core>,
    /// `None` once the end has been reported.
    ticket: Option<u32>,
}

impl Request {
    pub(super) fn new(core: Arc<Core>, ticket: u32) -> Self {
        Self { core, ticket: Some(ticket) }
    }

    /// Whether the call has ended; its result then, once.
    ///
    /// # Errors
    /// Whatever ended the call.
    pub fn test(&mut self) -> Result<bool> {
        let Some(ticket) = self.ticket else {
            return Ok(true);
        };
        self.core.original()?;
        let table = &self.core.table;
        if table.is_pending(ticket) {
            self.core.nudge();
        }
        if table.is_pending(ticket) && table.deadline(ticket).is_some_and(|d| Instant::now() >= d) {
            self.core.expire(ticket);
        }
        if table.is_pending(ticket) {
            return Ok(false);
        }
        self.ticket = None;
        self.core.table.result(ticket).map(|()| true)
    }

    /// Waits for the end, at most `timeout` (`None`: the call's own deadline). False when that
    /// passed first; the call goes on.
    ///
    /// # Errors
    /// Whatever ended the call.
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        let Some(ticket) = self.ticket else {
            return Ok(true);
        };
        self.core.original()?;
        let limit = timeout.and_then(|t| Instant::now().checked_add(t));
        if !self.core.wait(ticket, limit)? {
            return Ok(false);
        }
        self.ticket = None;
        self.core.table.result(ticket).map(|()| true)
    }

    /// Waits for one of `requests` (those already reported are skipped), at most `timeout`; its
    /// index, or `None` when the time passed or none is outstanding.
    ///
    /// # Errors
    /// Whatever ended the call; the error's request is the one with [`Request::reported`] newly
    /// set.
    pub fn wait_any(
        requests: &mut [&mut Self],
        timeout: Option<Duration>,
    ) -> Result<Option<usize>> {
        let limit = timeout.and_then(|t| Instant::now().checked_add(t));
        let mut pause = Duration::from_micros(10);
        // BOUND: each request has a deadline of its own, and `limit` ends the wait.
        loop {
            let mut outstanding = false;
            for (index, request) in requests.iter_mut().enumerate() {
                if request.ticket.is_none() {
                    continue;
                }
                outstanding = true;
                if request.test()? {
                    return Ok(Some(index));
                }
            }
            if !outstanding || limit.is_some_and(|l| Instant::now() >= l) {
                return Ok(None);
            }
            if let Some(first) = requests.iter_mut().find(|r| r.ticket.is_some()) {
                let left = limit.map_or(pause, |l| l.saturating_duration_since(Instant::now()));
                let ticket = first.ticket.unwrap_or(BLOCKING);
                first.core.wait(ticket, Some(Instant::now() + left.min(pause)))?;
            }
            pause = (pause * 2).min(Duration::from_millis(1));
        }
    }

    /// Whether the end has been reported.
    #[must_use]
    pub fn reported(&self) -> bool {
        self.ticket.is_none()
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take()
            && !self.core.copied()
        {
            self.core.table.detach(ticket);
        }
    }
}
