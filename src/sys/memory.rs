//! Shared memory segments: an anonymous file that another process maps through its descriptor.
//!
//! A segment's size is sealed when it is made, and checked before a foreign one is mapped: a peer
//! that could shrink the file would end us with SIGBUS. Names are for `/proc` only and no file
//! stays behind.
//!
//! The first [`HEADER_BYTES`] of a segment say whose it is:
//!
//! ```text
//! 0  magic, u64     8  layout, u32     12  owner, u32    16  token, 32 bytes    48  zero
//! 60  initialised, u32: 1, written last with release order
//! ```

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{check, own};
use crate::error::{Code, Error, Result};

/// The seals every segment carries: its size never changes and nobody adds or removes a seal.
const SEALS: libc::c_int = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;

/// The bytes at the start of a segment that its header takes.
pub(crate) const HEADER_BYTES: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"UNISEGM1");

/// The header's fields before its flag, as they stand in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Header {
    magic: u64,
    layout: u32,
    owner: u32,
    token: [u8; 32],
}

const READY_AT: usize = HEADER_BYTES - size_of::<AtomicU32>();
const _: () = assert!(size_of::<Header>() == 48 && READY_AT == 60);

/// Shared memory, mapped readable and writable as long as this lives.
#[derive(Debug)]
pub(crate) struct Segment {
    fd: OwnedFd,
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; the struct gives out a raw pointer
// only, whose users answer for their accesses.
unsafe impl Send for Segment {}
// SAFETY: as above; no method writes through the pointer.
unsafe impl Sync for Segment {}

impl Segment {
    /// A new zeroed segment of exactly `bytes` (not 0), sealed against any change of size.
    pub(crate) fn create(name: &str, bytes: usize) -> Result<Self> {
        let Ok(size) = libc::off_t::try_from(bytes) else {
            return Err(Error::new(Code::OutOfMemory, format!("a segment of {bytes} bytes")));
        };
        let name = CString::new(name)
            .map_err(|_| Error::new(Code::InvalidArgument, "a segment's name holds a NUL"))?;
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        // A hardened kernel refuses memory files that could be executed; an old one does not know
        // the flag that says ours cannot.
        // SAFETY: `name` is a NUL-terminated string that lives through the call.
        let mut fd = unsafe { libc::memfd_create(name.as_ptr(), flags | libc::MFD_NOEXEC_SEAL) };
        if fd < 0 {
            // SAFETY: as above.
            fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
        }
        let fd = own(fd, "memfd_create")?;
        // SAFETY: `fd` is open; the call reads plain integers.
        let done = unsafe { libc::ftruncate(fd.as_raw_fd(), size) };
        check(done, format!("a segment of {bytes} bytes"))?;
        // SAFETY: `fd` is open; the call reads plain integers.
        let done = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, SEALS) };
        check(done, "sealing a segment")?;
        Self::map(fd, bytes)
    }

    /// A segment another process made, which must have exactly `bytes` and a sealed size.
    pub(crate) fn open(fd: OwnedFd, bytes: usize) -> Result<Self> {
        // SAFETY: `fd` is open; the call reads plain integers.
        let seals = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GET_SEALS) };
        if seals < 0 || seals & libc::F_SEAL_SHRINK == 0 {
            return Err(Error::new(
                Code::Protocol,
                "a peer's segment is not sealed against shrinking",
            ));
        }
        let found = std::fs::File::from(fd.try_clone().map_err(|e| Error::os(&e, "dup"))?)
            .metadata()
            .map_err(|e| Error::os(&e, "the size of a peer's segment"))?
            .len();
        if usize::try_from(found) != Ok(bytes) {
            let text = format!("a peer's segment has {found} bytes, not the agreed {bytes}");
            return Err(Error::new(Code::Protocol, text));
        }
        Self::map(fd, bytes)
    }

    fn map(fd: OwnedFd, bytes: usize) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours;
        // `fd` is open and the kernel checks the rest.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), bytes, access, libc::MAP_SHARED, fd.as_raw_fd(), 0)
        };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os(format!("mapping a segment of {bytes} bytes")));
        }
        let at = NonNull::new(at.cast::<u8>())
            .ok_or_else(|| Error::new(Code::Internal, "a segment was mapped at address 0"))?;
        Ok(Self { fd, at, bytes })
    }

    /// The first byte; page aligned. Other processes read and write the memory at the same time.
    pub(crate) fn as_ptr(&self) -> *mut u8 {
        self.at.as_ptr()
    }

    /// The number of bytes mapped.
    pub(crate) const fn len(&self) -> usize {
        self.bytes
    }

    /// The descriptor to pass to a peer.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Writes the header of a segment we own, once, before its descriptor goes to anybody. `layout`
    /// stands for what lies where behind it.
    pub(crate) fn write_header(&self, owner: u32, token: [u8; 32], layout: u32) -> Result<()> {
        let ready = self.ready()?;
        let header = Header { magic: MAGIC, layout, owner, token };
        // SAFETY: `ready` checked that the header fits; a mapping is page aligned. Nobody else
        // writes here, and readers look only after the flag.
        unsafe { self.at.cast::<Header>().write_volatile(header) };
        // ORDERING: pairs with the acquire in `header`.
        ready.store(1, Ordering::Release);
        Ok(())
    }

    /// The owner and token in the header, once they are written; the layout must be this one.
    pub(crate) fn header(&self, layout: u32) -> Result<(u32, [u8; 32])> {
        // ORDERING: pairs with the release in `write_header`.
        if self.ready()?.load(Ordering::Acquire) != 1 {
            return Err(Error::new(Code::Protocol, "a peer's segment is not initialised"));
        }
        // SAFETY: `ready` checked that the header fits; a mapping is page aligned. Every bit
        // pattern is a valid header, so even an owner that writes it again only spoils its value.
        let header = unsafe { self.at.cast::<Header>().read_volatile() };
        if (header.magic, header.layout) != (MAGIC, layout) {
            return Err(Error::new(Code::Protocol, "a peer's segment has another layout"));
        }
        Ok((header.owner, header.token))
    }

    fn ready(&self) -> Result<&AtomicU32> {
        if self.bytes < HEADER_BYTES {
            return Err(Error::new(Code::Internal, "a segment without room for its header"));
        }
        // SAFETY: the flag lies inside the mapping, is aligned to 4 bytes and is only ever
        // accessed as an atomic; the reference does not outlive the mapping.
        Ok(unsafe { self.at.add(READY_AT).cast::<AtomicU32>().as_ref() })
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped by `map` and nobody else unmaps it; users of the
        // pointer must not outlive the segment.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

/// Zeroed memory of this process alone, of which the system backs the pages that are touched.
#[derive(Debug)]
pub(crate) struct Pages {
    at: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; the struct gives out a raw pointer
// only, whose users answer for their accesses.
unsafe impl Send for Pages {}
// SAFETY: as above; no method writes through the pointer.
unsafe impl Sync for Pages {}

impl Pages {
    /// At least `bytes` (not 0), page aligned.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(Error::last_os(format!("mapping {bytes} bytes")));
        }
        // A huge page would back 2 MiB for a byte. A kernel without huge pages refuses, rightly.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::madvise(at, bytes, libc::MADV_NOHUGEPAGE) };
        let at = NonNull::new(at.cast::<u8>())
            .ok_or_else(|| Error::new(Code::Internal, "memory was mapped at address 0"))?;
        Ok(Self { at, bytes })
    }

    /// The first byte.
    pub(crate) const fn at(&self) -> NonNull<u8> {
        self.at
    }

    /// Bytes that the system backs now.
    #[cfg(test)]
    pub(crate) fn resident(&self) -> usize {
        const PAGE: usize = 4096;
        let mut pages = vec![0u8; self.bytes.div_ceil(PAGE)];
        // SAFETY: the range is mapped, and there is a byte for each page of 4 KiB or more.
        let done =
            unsafe { libc::mincore(self.at.as_ptr().cast(), self.bytes, pages.as_mut_ptr()) };
        assert_eq!(done, 0);
        pages.iter().filter(|page| **page & 1 == 1).count() * PAGE
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: exactly this range was mapped by `new` and nobody else unmaps it; users of the
        // pointer must not outlive it.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::bell::Bell;

    #[test]
    fn pages_are_zero_and_backed_when_touched() {
        let pages = Pages::new(64 << 20).expect("pages");
        assert_eq!(pages.resident(), 0);
        // SAFETY: inside the mapping, which no other thread touches.
        let seen = unsafe {
            pages.at().add(12_345_678).write_volatile(7);
            pages.at().add(33 << 20).read_volatile()
        };
        assert_eq!(seen, 0);
        assert!(pages.resident() < 256 << 10);
        assert_eq!(Pages::new(usize::MAX / 2).expect_err("huge").code, Code::OutOfMemory);
    }

    #[test]
    fn two_mappings_of_one_segment_show_the_same_bytes() {
        let mine = Segment::create("test", 8192).expect("create");
        let copy = mine.fd().try_clone_to_owned().expect("dup");
        let theirs = Segment::open(copy, 8192).expect("open");
        assert_eq!(theirs.len(), 8192);
        // SAFETY: both pointers are mapped for 8192 bytes and no other thread touches them.
        unsafe {
            mine.as_ptr().add(5000).write_volatile(77);
            assert_eq!(theirs.as_ptr().add(5000).read_volatile(), 77);
        }
    }

    #[test]
    fn a_header_is_read_back_through_another_mapping_once_it_is_written() {
        let mine = Segment::create("test", 4096).expect("create");
        let theirs = Segment::open(mine.fd().try_clone_to_owned().expect("dup"), 4096);
        let theirs = theirs.expect("open");
        assert_eq!(theirs.header(5).expect_err("too early").code, Code::Protocol);
        mine.write_header(7, [3; 32], 5).expect("write");
        assert_eq!(theirs.header(5).expect("header"), (7, [3; 32]));
        assert_eq!(theirs.header(6).expect_err("another layout").code, Code::Protocol);
    }

    #[test]
    fn a_segment_cannot_be_shrunk_grown_or_unsealed() {
        let mine = Segment::create("test", 4096).expect("create");
        let file = std::fs::File::from(mine.fd().try_clone_to_owned().expect("dup"));
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(8192).is_err());
        // SAFETY: the descriptor is open; the call reads plain integers.
        let added = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(added, -1);
    }

    #[test]
    fn an_unsealed_wrong_sized_or_foreign_descriptor_is_refused() {
        // SAFETY: the name is a C string literal.
        let raw = unsafe { libc::memfd_create(c"raw".as_ptr(), libc::MFD_ALLOW_SEALING) };
        let raw = own(raw, "memfd").expect("memfd");
        std::fs::File::from(raw.try_clone().expect("dup")).set_len(4096).expect("size");
        assert_eq!(Segment::open(raw, 4096).expect_err("unsealed").code, Code::Protocol);

        let mine = Segment::create("test", 4096).expect("create");
        let copy = mine.fd().try_clone_to_owned().expect("dup");
        assert_eq!(Segment::open(copy, 8192).expect_err("size").code, Code::Protocol);

        let bell = Bell::new().expect("bell");
        let copy = bell.fd().try_clone_to_owned().expect("dup");
        assert_eq!(Segment::open(copy, 4096).expect_err("eventfd").code, Code::Protocol);
    }

    #[test]
    fn a_segment_of_no_bytes_or_too_many_is_an_error() {
        assert!(Segment::create("test", 0).is_err());
        assert!(Segment::create("test", usize::MAX).is_err());
    }
}
