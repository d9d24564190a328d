//! Channels of events of connections.

use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::cma as abi;
use super::connection::Id;
use super::library::Library;
use crate::error::{Code, Error, Result};
use crate::sys::socket;

/// Bytes that travel with a request for a connection, and with its answer, on every transport.
pub(crate) const PRIVATE_BYTES: usize = 56;

/// What happened to an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    AddressFound,
    RouteFound,
    /// Somebody wants to connect to a listener: the event has the new id.
    Request,
    Established,
    /// It has ended.
    Ended,
    /// The card is gone.
    Removed,
    /// It was not to be: what the library says.
    Failed(&'static str),
    /// Nothing that matters here.
    Other,
}

/// An event of a channel.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: Kind,
    /// The number given to the id, or to the listener.
    pub(crate) number: usize,
    /// The id that a request brought.
    pub(crate) new: Option<Id>,
    pub(crate) private: [u8; PRIVATE_BYTES],
    pub(crate) status: i32,
}

/// Where ids tell their events.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(super) library: Arc<Library>,
    pub(super) at: NonNull<abi::rdma_event_channel>,
}

// SAFETY: librdmacm may be called from any thread.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Channel {
    /// An empty one.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is no card.
    pub(crate) fn new(library: &Arc<Library>) -> Result<Arc<Self>> {
        // SAFETY: the call takes nothing.
        let at = unsafe { library.cma.rdma_create_event_channel() };
        let at = NonNull::new(at).ok_or_else(|| {
            let error = std::io::Error::last_os_error();
            let text = format!("no RDMA card is there: {error}");
            let native = error.raw_os_error().unwrap_or(0);
            Error { native, ..Error::new(Code::Unsupported, text) }
        })?;
        let made = Self { library: library.clone(), at };
        socket::set_nonblocking(made.fd())?;
        Ok(Arc::new(made))
    }

    /// Readable when there is an event.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel has a descriptor as long as it lives.
        unsafe { BorrowedFd::borrow_raw(self.at.as_ref().fd) }
    }

    /// The next event, if there is one.
    pub(crate) fn next(self: &Arc<Self>) -> Result<Option<Event>> {
        let mut event = ptr::null_mut();
        // SAFETY: the channel is alive; the call writes a pointer.
        let got = unsafe { self.library.cma.rdma_get_cm_event(self.at.as_ptr(), &raw mut event) };
        if got != 0 || event.is_null() {
            let error = std::io::Error::last_os_error();
            return match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
                _ => Err(Error::os(&error, "events of RDMA connections")),
            };
        }
        // SAFETY: the event lives until it is acknowledged.
        let taken = unsafe { self.take(&*event) };
        // SAFETY: it was got once. Nothing of it is used any more.
        unsafe { self.library.cma.rdma_ack_cm_event(event) };
        Ok(Some(taken))
    }

    /// # Safety
    /// The event is one of this channel's that is not acknowledged.
    unsafe fn take(self: &Arc<Self>, event: &abi::rdma_cm_event) -> Event {
        let kind = self.kind(event);
        let at = if kind == Kind::Request { event.listen_id } else { event.id };
        // SAFETY: the id is alive: destroying it waits for its events.
        let number = unsafe { (*at).context.addr() };
        let new = (kind == Kind::Request).then(|| NonNull::new(event.id)).flatten();
        let new = new.map(|at| Id::of(self.clone(), at));
        let mut private = [0; PRIVATE_BYTES];
        if matches!(kind, Kind::Request | Kind::Established) {
            // SAFETY: events of these kinds have connection parameters.
            let given = unsafe { event.param.conn };
            let bytes = usize::from(given.private_data_len).min(PRIVATE_BYTES);
            if !given.private_data.is_null() {
                // SAFETY: the data is so long, and lives as long as the event.
                let from =
                    unsafe { std::slice::from_raw_parts(given.private_data.cast::<u8>(), bytes) };
                private[..bytes].copy_from_slice(from);
            }
        }
        Event { kind, number, new, private, status: event.status }
    }

    fn kind(&self, event: &abi::rdma_cm_event) -> Kind {
        match event.event {
            abi::RDMA_CM_EVENT_ADDR_RESOLVED => Kind::AddressFound,
            abi::RDMA_CM_EVENT_ROUTE_RESOLVED => Kind::RouteFound,
            abi::RDMA_CM_EVENT_CONNECT_REQUEST => Kind::Request,
            abi::RDMA_CM_EVENT_ESTABLISHED => Kind::Established,
            abi::RDMA_CM_EVENT_DISCONNECTED => Kind::Ended,
            abi::RDMA_CM_EVENT_DEVICE_REMOVAL => Kind::Removed,
            abi::RDMA_CM_EVENT_ADDR_ERROR => Kind::Failed("the address is not found"),
            abi::RDMA_CM_EVENT_ROUTE_ERROR => Kind::Failed("there is no route"),
            abi::RDMA_CM_EVENT_CONNECT_ERROR => Kind::Failed("the connection failed"),
            abi::RDMA_CM_EVENT_UNREACHABLE => Kind::Failed("the peer is out of reach"),
            abi::RDMA_CM_EVENT_REJECTED => Kind::Failed("the peer refused"),
            _ => Kind::Other,
        }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: made once; ids keep it alive.
        unsafe { self.library.cma.rdma_destroy_event_channel(self.at.as_ptr()) };
    }
}
