//! What the engine asks of a link: traits with no clock, no system call and no waiting in them.
//!
//! A link is one direction between two ranks on one lane: a byte stream that keeps its order and
//! loses nothing. Links whose memory both ends see (rings of slots) hand out windows into that
//! memory, so that a kernel reads the peer's bytes and writes the next peer's in one pass. Streams
//! (sockets) do the same through a staging buffer of their own, and move large runs straight
//! between the caller's memory and the kernel by `write` and `read`.
//!
//! Nothing here blocks: no room and nothing to read are empty windows and zero counts. An error is
//! final for the link.
//!
//! Every trait has a twin in memory ([`crate::link::mem`]) and one in virtual time
//! ([`crate::link::sim`]).

use crate::call::Head;
use crate::error::Result;

/// A run of bytes that a link lends: valid until the next call on the same link.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// First byte.
    pub at: *mut u8,
    /// Bytes; 0 when there are none now.
    pub bytes: usize,
}

impl Window {
    /// No bytes.
    pub const EMPTY: Self = Self { at: std::ptr::null_mut(), bytes: 0 };
}

/// The sending end of a link.
///
/// # Safety
/// Windows are writable for their bytes, by their holder alone, until the next call on the link.
pub unsafe trait Tx {
    /// Free memory to write the next bytes into; follow with [`Tx::commit`].
    ///
    /// # Errors
    /// The link is broken.
    fn window(&mut self) -> Result<Window>;

    /// Sends the first `bytes` of the last window.
    ///
    /// # Errors
    /// The link is broken.
    fn commit(&mut self, bytes: usize) -> Result<()>;

    /// Takes as many of `bytes` bytes at `from`, the rest of a message, as fit now, and says how
    /// many. The link may read them later: see [`Tx::reads`].
    ///
    /// # Safety
    /// `from` must be readable for `bytes` bytes, as long as the link reads them.
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn write(&mut self, from: *const u8, bytes: usize) -> Result<usize>;

    /// As [`Tx::write`], of a message that the receiver takes by [`Rx::take`], all of it. The link
    /// may wait with it until the receiver has come to it.
    ///
    /// # Safety
    /// As [`Tx::write`].
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn place(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.write(from, bytes) }
    }

    /// As [`Tx::place`], into memory of the link's own; what has already begun to go without being
    /// copied ends so.
    ///
    /// # Safety
    /// As [`Tx::write`].
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn stage_placed(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.stage(from, bytes) }
    }

    /// Whether the link may still read some of `bytes` bytes at `at`, which it has taken. It ends
    /// by itself, whatever the receiver does.
    fn reads(&mut self, at: *const u8, bytes: usize) -> bool {
        let _ = (at, bytes);
        false
    }

    /// As [`Tx::write`], but into memory of the link's own: takes at least what
    /// [`Fabric::capacity`] leaves free, even while the peer does nothing.
    ///
    /// # Safety
    /// `from` must be readable for `bytes` bytes.
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn stage(&mut self, from: *const u8, bytes: usize) -> Result<usize> {
        let mut done = 0;
        while done < bytes {
            let window = self.window()?;
            let count = window.bytes.min(bytes - done);
            if count == 0 {
                break;
            }
            // SAFETY: the caller promises the source; the window is ours for `count` bytes.
            unsafe { std::ptr::copy_nonoverlapping(from.add(done), window.at, count) };
            self.commit(count)?;
            done += count;
        }
        Ok(done)
    }

    /// The message ends here. Rings round up to their alignment; both ends do the same.
    ///
    /// # Errors
    /// The link is broken.
    fn end(&mut self) -> Result<()>;

    /// Pushes out what the link still holds; true when it holds nothing, and reads nothing of what
    /// it has taken.
    ///
    /// # Errors
    /// The link is broken.
    fn flush(&mut self) -> Result<bool>;
}

/// The receiving end of a link.
///
/// # Safety
/// Windows are readable for their bytes until released or until the next call on the link.
pub unsafe trait Rx {
    /// Bytes that have arrived, at most `want` of them (links may look at more, for later calls).
    /// They stay until released.
    ///
    /// # Errors
    /// The link is broken.
    fn peek(&mut self, want: usize) -> Result<Window>;

    /// Gives back the first `bytes` of the last window.
    fn release(&mut self, bytes: usize);

    /// Moves up to `bytes` arrived bytes to `into`, and says how many.
    ///
    /// # Safety
    /// `into` must be writable for `bytes` bytes.
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn read(&mut self, into: *mut u8, bytes: usize) -> Result<usize>;

    /// As [`Rx::read`], of the rest of a message that the sender gives by [`Tx::place`]. From the
    /// first time on, until the message has been taken, bytes of `into` may be anything.
    ///
    /// # Safety
    /// `into` must be writable for `bytes` bytes until then, or until [`Fabric::cut`].
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn take(&mut self, into: *mut u8, bytes: usize) -> Result<usize> {
        // SAFETY: the caller's promise is passed on.
        unsafe { self.read(into, bytes) }
    }

    /// The message that is the `later`-th of those taken by [`Rx::take`], counted from the one at
    /// hand or next (0) on, is wanted in the `bytes` bytes at `into`: the link may bring it there
    /// before it is asked for.
    ///
    /// # Safety
    /// As for [`Rx::take`], which must follow with the same.
    ///
    /// # Errors
    /// The link is broken.
    unsafe fn expect(&mut self, later: u32, into: *mut u8, bytes: usize) -> Result<()> {
        let _ = (later, into, bytes);
        Ok(())
    }

    /// The message ends here; see [`Tx::end`].
    fn end(&mut self);
}

/// One buffer of a call, as its owner tells peers that may map it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Number of the segment it lies in, or [`Place::PRIVATE`].
    pub segment: u32,
    /// First byte inside the segment (for threads of one process: the address).
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

impl Place {
    /// Memory that peers cannot map.
    pub const PRIVATE: u32 = u32::MAX;
    /// A buffer peers cannot map.
    pub const NOWHERE: Self = Self { segment: Self::PRIVATE, offset: 0, bytes: 0 };
    /// A buffer of no bytes: nobody needs to map it.
    pub const EMPTY: Self = Self { segment: Self::PRIVATE - 1, offset: 0, bytes: 0 };

    /// As it stands in a notice.
    #[must_use]
    pub fn words(self) -> [u64; 3] {
        [u64::from(self.segment), self.offset, self.bytes]
    }

    /// What stands in a notice; a segment number out of range is nowhere.
    #[must_use]
    pub fn of_words([segment, offset, bytes]: [u64; 3]) -> Self {
        match u32::try_from(segment) {
            Ok(segment) => Self { segment, offset, bytes },
            Err(_) => Self::NOWHERE,
        }
    }
}

/// How many calls a rank may be ahead of those it need not hear: one less with a page of the area.
pub const AHEAD: usize = 32;

/// Notices of each rank that stand on the board at a time. A rank that shows turn k has seen all of
/// turn k - [`AHEAD`], whose ranks had seen all of k - 2 [`AHEAD`]: nobody needs that any more.
pub const NOTICES: usize = 2 * AHEAD;

/// Where among them that of `turn` stands.
#[expect(clippy::cast_possible_truncation, reason = "less than NOTICES")]
#[must_use]
pub const fn notice_slot(turn: u64) -> usize {
    (turn % NOTICES as u64) as usize
}

/// The most words of a notice besides its head.
pub const NOTICE_WORDS: usize = 10;

/// How many of them tell where two buffers are.
pub const PLACE_WORDS: usize = 6;

/// Bytes of a small message that stands in a notice.
pub const INLINE_BYTES: usize = NOTICE_WORDS * 8;

/// Bytes of the largest message that a rank shows for one turn.
pub const FLAT_BYTES: usize = 32 << 10;

/// The most bytes of a rank's stages of one block of tiles.
pub const STAGE_BYTES: usize = 256 << 10;

/// Bytes of the area in which a rank puts what others load.
pub const AREA_BYTES: usize = 2 << 20;

/// How much of it `world` ranks use: more than a core's own cache holds where they are few, and 6
/// MiB in all where they are not many.
#[must_use]
pub const fn area_room(world: usize) -> usize {
    let (share, least) = ((6 << 20) / if world == 0 { 1 } else { world }, 4 * STAGE_BYTES);
    if share > AREA_BYTES {
        AREA_BYTES
    } else if share < least {
        least
    } else {
        share / 4096 * 4096
    }
}

/// What a rank tells its peers on memory links when a call starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice<'a> {
    /// The call.
    pub head: Head,
    /// Where its buffers are, or a small message: at most [`NOTICE_WORDS`].
    pub words: &'a [u64],
}

/// The memory where ranks with memory links meet: of each rank [`NOTICES`], a phase counter, the
/// turn it has given up, and an area in which it puts what others load.
///
/// # Safety
/// What [`Board::resolve`] returns is valid for the place's bytes until the next
/// [`Board::publish`], as far as this process can know. [`Board::area`] has [`AREA_BYTES`], aligned
/// to 64, as long as the board lives.
pub unsafe trait Board {
    /// Where peers find `bytes` bytes at `at`, if they can.
    fn place(&mut self, at: *const u8, bytes: usize) -> Place;

    /// Shows this rank's notice of the call numbered `turn`, in the place of that of turn `turn` -
    /// [`NOTICES`]. Turns count the calls made over the board, from 1.
    fn publish(&mut self, turn: u64, notice: Notice<'_>);

    /// The digest in `peer`'s notice of call `turn`, once that is there.
    ///
    /// # Errors
    /// The notice is not one.
    fn notice(&mut self, peer: usize, turn: u64) -> Result<Option<u64>>;

    /// The first words of `peer`'s notice of call `turn`, which has been seen.
    fn words(&self, peer: usize, turn: u64, words: &mut [u64]);

    /// The head in it.
    fn head(&self, peer: usize, turn: u64) -> Head;

    /// Begins to load `peer`'s notice of call `turn`, which is likely to be there.
    fn expect(&self, peer: usize, turn: u64);

    /// Where `rank` puts what others load.
    fn area(&self, rank: usize) -> *mut u8;

    /// Whether what others load had better be stored past the caches. A matter of speed alone;
    /// ranks need not agree.
    fn past(&self) -> bool;

    /// Nanoseconds since some beginning.
    fn clock(&self) -> u64;

    /// Notes how long it took to store or load `bytes` bytes of an area that were stored `past` the
    /// caches, or not.
    fn took(&mut self, past: bool, bytes: usize, nanoseconds: u64);

    /// The address, in this process, of a peer's buffer, which is not [`Place::EMPTY`].
    ///
    /// # Errors
    /// The place is not inside memory the peer has given out.
    fn resolve(&mut self, peer: usize, place: Place) -> Result<*mut u8>;

    /// Shows that this rank has reached `phase`, a number that only grows.
    fn post(&mut self, phase: u64);

    /// The phase `peer` has reached.
    fn reached(&mut self, peer: usize) -> u64;

    /// Shows that this rank does not end `turn`, nor any later one. Its callers get their buffers
    /// back only afterwards.
    fn give_up(&mut self, turn: u64);

    /// Whether `peer` has given up `turn`: what was its buffers may be anything now. While it has
    /// not, all that this rank has loaded out of them before was theirs.
    fn given_up(&self, peer: usize, turn: u64) -> bool;
}

/// All links of one rank of one communicator.
pub trait Fabric {
    /// Sending ends.
    type Tx: Tx;
    /// Receiving ends.
    type Rx: Rx;
    /// The board.
    type Board: Board;

    /// The sending end to rank `to` on `lane`. Never asked for the own rank.
    fn tx(&mut self, to: usize, lane: usize) -> &mut Self::Tx;

    /// The receiving end from rank `from` on `lane`. Never asked for the own rank.
    fn rx(&mut self, from: usize, lane: usize) -> &mut Self::Rx;

    /// The board, when every rank of the world shares memory.
    fn board(&mut self) -> Option<&mut Self::Board>;

    /// Bytes that every link takes on while its other end does nothing.
    fn capacity(&self) -> usize;

    /// Whether some link places messages, and if so those of how many bytes or more: both ends of
    /// each link say the same. See [`Tx::place`].
    fn places(&self) -> Option<usize> {
        None
    }

    /// A call is to read the `bytes` bytes at `at`, or have them `written`: links may see to it
    /// that they reach them. A matter of speed alone.
    fn cover(&mut self, at: *const u8, bytes: usize, written: bool) {
        let _ = (at, bytes, written);
    }

    /// Ends all links: from now on no peer's bytes come to memory of callers, nor leave it.
    fn cut(&mut self) {}
}
