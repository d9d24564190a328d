//! Ids: listeners, connections, and their queue pairs.

use std::net::{IpAddr, SocketAddr};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::abi::cma as abi;
use super::abi::verbs;
use super::channel::Channel;
use super::device::Device;
use super::library::{Library, check, check_errno};
use super::memory::Domain;
use super::queue::Completions;
use crate::error::{Code, Error, Result};
use crate::sys::socket::Raw;

/// How long a request may stay without answer before it is sent again, as the cards count: 0.27 s,
/// and seven times in all. One more is without end on software cards.
const ACK_TIMEOUT: u8 = 16;
const RETRIES: u8 = 6;
/// Without end: the protocol sees to it that there is a place.
const NOT_READY_RETRIES: u8 = 7;

/// What a queue pair stands on.
#[derive(Debug)]
struct Stands {
    _domain: Arc<Domain>,
    _completions: Arc<Completions>,
}

/// How large a queue pair is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) sends: u32,
    pub(crate) receives: u32,
    /// Bytes that a request may carry in itself.
    pub(crate) inline: u32,
}

/// One end of a connection, or a listener.
#[derive(Debug)]
pub(crate) struct Id {
    channel: Arc<Channel>,
    at: NonNull<abi::rdma_cm_id>,
    /// There is a queue pair, on these.
    stands: Option<Stands>,
}

// SAFETY: librdmacm may be called from any thread.
unsafe impl Send for Id {}

impl Id {
    /// A fresh one, whose events carry `number`.
    pub(crate) fn new(channel: &Arc<Channel>, number: usize) -> Result<Self> {
        let mut at = ptr::null_mut();
        let context = ptr::without_provenance_mut(number);
        // SAFETY: the channel is alive; the call writes a pointer.
        let done = unsafe {
            channel.library.cma.rdma_create_id(
                channel.at.as_ptr(),
                &raw mut at,
                context,
                abi::RDMA_PS_TCP,
            )
        };
        check(done, "an RDMA connection")?;
        let at =
            NonNull::new(at).ok_or_else(|| Error::new(Code::Internal, "an id at address 0"))?;
        Ok(Self { channel: channel.clone(), at, stands: None })
    }

    /// The one at `at`, which an event has brought.
    pub(super) const fn of(channel: Arc<Channel>, at: NonNull<abi::rdma_cm_id>) -> Self {
        Self { channel, at, stands: None }
    }

    fn library(&self) -> &Library {
        &self.channel.library
    }

    /// The number that later events carry.
    pub(crate) fn renumber(&mut self, number: usize) {
        // SAFETY: the id is alive, and the field is the caller's to use.
        unsafe { (*self.at.as_ptr()).context = ptr::without_provenance_mut(number) };
    }

    /// The device it is on: by an address it was bound to, or by the route to a peer.
    pub(crate) fn device(&self) -> Option<Device> {
        // SAFETY: the id is alive.
        let context = unsafe { (*self.at.as_ptr()).verbs };
        NonNull::new(context).map(|at| Device::of(self.channel.library.clone(), at))
    }

    /// Binds it to an address of this host; with port 0 to any port.
    pub(crate) fn bind(&mut self, address: SocketAddr) -> Result<()> {
        let mut raw = Raw::new(address);
        // SAFETY: the id is alive, and the address is a local that lives through the call.
        let done = unsafe { self.library().cma.rdma_bind_addr(self.at.as_ptr(), raw.at_mut()) };
        check(done, "binding an RDMA address")
    }

    /// Listens there.
    pub(crate) fn listen(&mut self, backlog: i32) -> Result<()> {
        // SAFETY: the id is alive.
        let done = unsafe { self.library().cma.rdma_listen(self.at.as_ptr(), backlog) };
        check(done, "listening for RDMA connections")
    }

    /// The port of its device that it is on.
    pub(crate) fn device_port(&self) -> u8 {
        // SAFETY: the id is alive.
        unsafe { (*self.at.as_ptr()).port_num }
    }

    /// The port it is bound to.
    pub(crate) fn port(&self) -> u16 {
        // SAFETY: the id is alive; both kinds of address have their port in one place.
        u16::from_be(unsafe { (*self.at.as_ptr()).route.addr.__bindgen_anon_1.src_sin.sin_port })
    }

    /// Looks for the way from `source` to `target`: [`super::Kind::AddressFound`] follows.
    pub(crate) fn resolve(&mut self, source: IpAddr, target: SocketAddr, ms: i32) -> Result<()> {
        let (mut from, mut to) = (Raw::new(SocketAddr::new(source, 0)), Raw::new(target));
        let at = self.at.as_ptr();
        // SAFETY: the id is alive; the addresses are locals that live through the call.
        let done =
            unsafe { self.library().cma.rdma_resolve_addr(at, from.at_mut(), to.at_mut(), ms) };
        check(done, "the way to an RDMA peer")
    }

    /// Looks for the route: [`super::Kind::RouteFound`] follows.
    pub(crate) fn route(&mut self, ms: i32) -> Result<()> {
        // SAFETY: the id is alive.
        let done = unsafe { self.library().cma.rdma_resolve_route(self.at.as_ptr(), ms) };
        check(done, "the route to an RDMA peer")
    }

    /// Makes its queue pair. Returns how many bytes a request may carry in itself.
    pub(crate) fn make_queues(
        &mut self,
        domain: &Arc<Domain>,
        completions: &Arc<Completions>,
        sizes: Sizes,
    ) -> Result<u32> {
        let mut wanted = sizes;
        let mut attributes = verbs::ibv_qp_init_attr {
            send_cq: completions.at(),
            recv_cq: completions.at(),
            qp_type: verbs::IBV_QPT_RC,
            ..verbs::ibv_qp_init_attr::default()
        };
        // BOUND: the second time without what not every card has.
        loop {
            attributes.cap = verbs::ibv_qp_cap {
                max_send_wr: wanted.sends,
                max_recv_wr: wanted.receives,
                max_send_sge: 1,
                max_recv_sge: 1,
                max_inline_data: wanted.inline,
            };
            // SAFETY: id, domain and queue are alive and of one device, which the library checks.
            let done = unsafe {
                self.library().cma.rdma_create_qp(
                    self.at.as_ptr(),
                    domain.at(),
                    &raw mut attributes,
                )
            };
            match check(done, "an RDMA queue pair") {
                Err(error) if wanted.inline == 0 => return Err(error),
                Err(_) => wanted.inline = 0,
                Ok(()) => break,
            }
        }
        self.stands = Some(Stands { _domain: domain.clone(), _completions: completions.clone() });
        // A kernel that does not know the option takes longer to find that a peer is gone.
        let mut timeout = ACK_TIMEOUT;
        let (level, option) =
            (abi::RDMA_OPTION_ID.cast_signed(), abi::RDMA_OPTION_ID_ACK_TIMEOUT.cast_signed());
        let at = self.at.as_ptr();
        // SAFETY: the id is alive; the value is a local of one byte.
        unsafe {
            self.library().cma.rdma_set_option(at, level, option, (&raw mut timeout).cast(), 1)
        };
        Ok(attributes.cap.max_inline_data.min(sizes.inline))
    }

    fn parameters(private: &[u8]) -> abi::rdma_conn_param {
        abi::rdma_conn_param {
            private_data: private.as_ptr().cast(),
            private_data_len: u8::try_from(private.len()).unwrap_or(u8::MAX),
            retry_count: RETRIES,
            rnr_retry_count: NOT_READY_RETRIES,
            ..abi::rdma_conn_param::default()
        }
    }

    /// Asks the peer to connect.
    pub(crate) fn connect(&mut self, private: &[u8]) -> Result<()> {
        let mut parameters = Self::parameters(private);
        // SAFETY: the id is alive; the data is copied by the call.
        let done =
            unsafe { self.library().cma.rdma_connect(self.at.as_ptr(), &raw mut parameters) };
        check(done, "connecting over RDMA")
    }

    /// Connects with who asked.
    pub(crate) fn accept(&mut self, private: &[u8]) -> Result<()> {
        let mut parameters = Self::parameters(private);
        // SAFETY: as in `connect`.
        let done = unsafe { self.library().cma.rdma_accept(self.at.as_ptr(), &raw mut parameters) };
        check(done, "accepting over RDMA")
    }

    /// Does not.
    pub(crate) fn reject(self) {
        // SAFETY: the id is alive.
        unsafe { self.library().cma.rdma_reject(self.at.as_ptr(), ptr::null(), 0) };
    }

    /// Ends the connection: what is under way on either side ends in error.
    pub(crate) fn disconnect(&mut self) {
        if self.stands.is_some() {
            // SAFETY: the id is alive. One that was never connected refuses, rightly.
            unsafe { self.library().cma.rdma_disconnect(self.at.as_ptr()) };
        }
    }

    const fn queues(&self) -> *mut verbs::ibv_qp {
        // SAFETY: the id is alive.
        unsafe { (*self.at.as_ptr()).qp }
    }

    /// From now on nothing of the peer's comes to memory here.
    pub(crate) fn stop(&mut self) {
        if self.stands.is_none() {
            return;
        }
        let mut attributes =
            verbs::ibv_qp_attr { qp_state: verbs::IBV_QPS_ERR, ..verbs::ibv_qp_attr::default() };
        let mask = verbs::IBV_QP_STATE.cast_signed();
        // SAFETY: the queue pair is alive.
        unsafe { self.library().verbs.ibv_modify_qp(self.queues(), &raw mut attributes, mask) };
    }

    /// Posts a chain of requests; on failure which of them was the first that was not taken is
    /// not told, and the connection is of no use any more.
    ///
    /// # Safety
    /// The requests, and what they name, are valid; memory stays until they have ended.
    pub(crate) unsafe fn post(&mut self, requests: &mut verbs::ibv_send_wr) -> Result<()> {
        let mut bad = ptr::null_mut();
        let queues = self.queues();
        // SAFETY: the caller's promise; the device's table has the call.
        let done = unsafe {
            let ops = &(*(*queues).context).ops;
            ops.post_send.map_or(libc::ENOSYS, |post| post(queues, requests, &raw mut bad))
        };
        check_errno(done, "a request to an RDMA card")
    }

    /// Posts a place to receive at.
    ///
    /// # Safety
    /// As [`Id::post`].
    pub(crate) unsafe fn post_receive(&mut self, request: &mut verbs::ibv_recv_wr) -> Result<()> {
        let mut bad = ptr::null_mut();
        let queues = self.queues();
        // SAFETY: the caller's promise; the device's table has the call.
        let done = unsafe {
            let ops = &(*(*queues).context).ops;
            ops.post_recv.map_or(libc::ENOSYS, |post| post(queues, request, &raw mut bad))
        };
        check_errno(done, "a place to receive at an RDMA card")
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        let at = self.at.as_ptr();
        if self.stands.is_some() {
            // SAFETY: made once, before the id goes; what it stands on goes later.
            unsafe { self.library().cma.rdma_destroy_qp(at) };
        }
        // SAFETY: made once; its events have been acknowledged as they were taken.
        unsafe { self.library().cma.rdma_destroy_id(at) };
    }
}
