//! Captures as a program makes them, for tests of what happens in one.

use std::ptr;
use std::sync::Arc;

use super::abi::{self, CUgraph, CUgraphExec};
use super::{Driver, StreamRef, cu};
use crate::error::Result;

/// Who must not disturb a capture.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    Global,
    ThreadLocal,
    Relaxed,
}

/// Work that can be launched as often as one likes.
#[derive(Debug)]
pub(crate) struct Graph {
    driver: Arc<Driver>,
    handle: CUgraphExec,
}

impl Graph {
    /// What `work` submits to `stream`, and to streams that join it. Where `work` fails the capture
    /// is ended all the same.
    pub(crate) fn capture(
        stream: &StreamRef,
        mode: Mode,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<Self> {
        let driver = stream.driver().clone();
        let mode = match mode {
            Mode::Global => abi::CU_STREAM_CAPTURE_MODE_GLOBAL,
            Mode::ThreadLocal => abi::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            Mode::Relaxed => abi::CU_STREAM_CAPTURE_MODE_RELAXED,
        };
        // SAFETY: the stream is alive.
        unsafe { cu!(driver, cuStreamBeginCapture_v2(stream.handle(), mode)) }?;
        let outcome = work();
        let mut graph: CUgraph = ptr::null_mut();
        // SAFETY: the place is valid.
        let ended = unsafe { cu!(driver, cuStreamEndCapture(stream.handle(), &raw mut graph)) };
        let mut handle: CUgraphExec = ptr::null_mut();
        let made = outcome.and(ended).and_then(|()| {
            // SAFETY: the place is valid, the graph ours.
            unsafe { cu!(driver, cuGraphInstantiateWithFlags(&raw mut handle, graph, 0)) }
        });
        if !graph.is_null() {
            // SAFETY: ours, and needed no longer.
            unsafe { cu!(driver, cuGraphDestroy(graph)) }?;
        }
        made.map(|()| Self { driver, handle })
    }

    /// Submits it.
    pub(crate) fn launch(&self, stream: &StreamRef) -> Result<()> {
        // SAFETY: both are alive.
        unsafe { cu!(self.driver, cuGraphLaunch(self.handle, stream.handle())) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made once, destroyed once.
        let _ = unsafe { cu!(self.driver, cuGraphExecDestroy(self.handle)) };
    }
}
