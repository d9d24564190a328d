//! The unique id of a job: where its rendezvous is and the key that opens it.
//!
//! ```text
//! byte  0  magic "UNID"     4  format   5  library major   6  library minor   7  addresses (1..=4)
//!       8  job key, 32 bytes
//!      40  4 addresses: 16 bytes IPv6 (IPv4 mapped) and 2 bytes port, big endian; unused: zero
//!     112  first 16 bytes of the BLAKE3 hash of bytes 0..112
//! ```
//!
//! The checksum finds damage, not forgery: whoever can write an id can make one. The id is a
//! secret, since it holds the key; its `Debug` leaves the key out.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::key::Key;
use crate::error::{Code, Error, Result};

/// The size of an id.
pub const ID_BYTES: usize = 128;

/// How many addresses an id holds at most.
pub const ADDRESSES_MAX: usize = 4;

const MAGIC: &[u8; 4] = b"UNID";
const FORMAT: u8 = 1;
const KEY_AT: usize = 8;
const ADDRESSES_AT: usize = KEY_AT + Key::BYTES;
const ADDRESS_BYTES: usize = 18;
const CHECKSUM_AT: usize = ADDRESSES_AT + ADDRESSES_MAX * ADDRESS_BYTES;
const _: () = assert!(CHECKSUM_AT + 16 == ID_BYTES);

/// The part of the library's version that ranks must share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Version {
    /// Major number.
    pub major: u8,
    /// Minor number.
    pub minor: u8,
}

impl Version {
    /// This library's version.
    pub(crate) const OURS: Self = Self {
        major: number(env!("CARGO_PKG_VERSION_MAJOR")),
        minor: number(env!("CARGO_PKG_VERSION_MINOR")),
    };

    /// An error that names both versions unless they agree.
    pub(crate) fn check(self, whose: &str) -> Result<()> {
        if self == Self::OURS {
            return Ok(());
        }
        let text = format!("{whose} is from unisono {self}, this is unisono {}", Self::OURS);
        Err(Error::new(Code::VersionMismatch, text))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A decimal number below 256, at compile time.
const fn number(text: &str) -> u8 {
    let mut value = 0u8;
    let mut index = 0;
    while index < text.len() {
        value = value * 10 + (text.as_bytes()[index] - b'0');
        index += 1;
    }
    value
}

/// The 128 bytes that every rank of a job must be given.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId {
    addresses: Vec<SocketAddr>,
    key: Key,
}

impl UniqueId {
    /// An id for a rendezvous at these addresses, of which the first [`ADDRESSES_MAX`] are kept.
    pub(crate) fn new(addresses: &[SocketAddr], key: Key) -> Result<Self> {
        if addresses.is_empty() {
            return Err(Error::new(Code::NoAddress, "a unique id needs an address"));
        }
        let addresses = addresses.iter().take(ADDRESSES_MAX).copied().collect();
        Ok(Self { addresses, key })
    }

    /// The id's bytes. They hold the job's key: pass them over channels you trust.
    #[must_use]
    pub fn encode(&self) -> [u8; ID_BYTES] {
        let mut bytes = [0; ID_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = FORMAT;
        bytes[5] = Version::OURS.major;
        bytes[6] = Version::OURS.minor;
        bytes[7] = u8::try_from(self.addresses.len()).expect("at most four");
        bytes[KEY_AT..ADDRESSES_AT].copy_from_slice(self.key.bytes());
        let places = bytes[ADDRESSES_AT..CHECKSUM_AT].chunks_exact_mut(ADDRESS_BYTES);
        for (place, address) in places.zip(&self.addresses) {
            let ip = match address.ip() {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            place[..16].copy_from_slice(&ip.octets());
            place[16..].copy_from_slice(&address.port().to_be_bytes());
        }
        let sum = checksum(&bytes);
        bytes[CHECKSUM_AT..].copy_from_slice(&sum);
        bytes
    }

    /// The id with these bytes.
    ///
    /// # Errors
    /// `InvalidId` when they are damaged or no id; `VersionMismatch` when another version of the
    /// library made them.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let bytes: &[u8; ID_BYTES] = bytes
            .try_into()
            .map_err(|_| invalid(&format!("it has {} bytes instead of {ID_BYTES}", bytes.len())))?;
        if &bytes[..4] != MAGIC {
            return Err(invalid("it does not begin like one"));
        }
        if checksum(bytes) != bytes[CHECKSUM_AT..] {
            return Err(invalid("its checksum is wrong"));
        }
        Version { major: bytes[5], minor: bytes[6] }.check("the unique id")?;
        let count = usize::from(bytes[7]);
        if bytes[4] != FORMAT || count == 0 || count > ADDRESSES_MAX {
            return Err(invalid("its format is unknown"));
        }
        let mut key = [0; Key::BYTES];
        key.copy_from_slice(&bytes[KEY_AT..ADDRESSES_AT]);
        let places = bytes[ADDRESSES_AT..CHECKSUM_AT].chunks_exact(ADDRESS_BYTES);
        let addresses: Vec<_> = places.take(count).map(address).collect();
        if addresses.iter().any(|address| address.port() == 0) {
            return Err(invalid("an address has port 0"));
        }
        Ok(Self { addresses, key: Key::new(key) })
    }

    /// The id as 256 hexadecimal digits, for an environment variable.
    #[must_use]
    pub fn to_hex(&self) -> String {
        use fmt::Write;
        let mut text = String::with_capacity(2 * ID_BYTES);
        for byte in self.encode() {
            write!(text, "{byte:02x}").expect("writing to a string");
        }
        text
    }

    /// Where the rendezvous listens, best first.
    pub(crate) fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The job's key.
    pub(crate) const fn key(&self) -> &Key {
        &self.key
    }
}

impl FromStr for UniqueId {
    type Err = Error;

    /// Reads the form [`UniqueId::to_hex`] writes, in either case.
    fn from_str(text: &str) -> Result<Self> {
        if text.len() != 2 * ID_BYTES {
            let text = format!("its text has {} digits instead of {}", text.len(), 2 * ID_BYTES);
            return Err(invalid(&text));
        }
        let mut bytes = [0; ID_BYTES];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else {
                return Err(invalid("its text is not hexadecimal"));
            };
            *byte = high << 4 | low;
        }
        Self::decode(&bytes)
    }
}

impl fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UniqueId").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

fn digit(letter: u8) -> Option<u8> {
    let value = char::from(letter).to_digit(16)?;
    u8::try_from(value).ok()
}

fn address(place: &[u8]) -> SocketAddr {
    let mut ip = [0; 16];
    ip.copy_from_slice(&place[..16]);
    let port = u16::from_be_bytes([place[16], place[17]]);
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port)
}

fn checksum(bytes: &[u8; ID_BYTES]) -> [u8; 16] {
    let mut sum = [0; 16];
    sum.copy_from_slice(&blake3::hash(&bytes[..CHECKSUM_AT]).as_bytes()[..16]);
    sum
}

#[track_caller]
fn invalid(why: &str) -> Error {
    Error::new(Code::InvalidId, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> UniqueId {
        let addresses = ["10.1.2.3:4567", "[2001:db8::7]:4568", "127.0.0.1:1"]
            .map(|text| text.parse().expect("address"));
        UniqueId::new(&addresses, Key::new([0xab; 32])).expect("id")
    }

    #[test]
    fn an_id_survives_bytes_and_text() {
        let id = sample();
        assert_eq!(UniqueId::decode(&id.encode()).expect("decode"), id);
        assert_eq!(id.to_hex().len(), 256);
        assert_eq!(id.to_hex().parse::<UniqueId>().expect("parse"), id);
        assert_eq!(id.to_hex().to_uppercase().parse::<UniqueId>().expect("parse"), id);
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = sample().encode();
        for bit in 0..ID_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(UniqueId::decode(&bad).expect_err("damage").code, Code::InvalidId);
        }
    }

    #[test]
    fn another_version_is_named() {
        let mut bytes = sample().encode();
        bytes[6] = 200;
        let sum = checksum(&bytes);
        bytes[CHECKSUM_AT..].copy_from_slice(&sum);
        let error = UniqueId::decode(&bytes).expect_err("version");
        assert_eq!(error.code, Code::VersionMismatch);
        let theirs = format!("{}.200", Version::OURS.major);
        assert!(error.detail.contains(&theirs), "{error}");
        assert!(error.detail.contains(&Version::OURS.to_string()), "{error}");
    }

    #[test]
    fn wrong_sizes_counts_and_texts_are_no_ids() {
        for bytes in [&[][..], &[0; 127], &[0; 128], &[0xff; 128], &[0; 129]] {
            assert_eq!(UniqueId::decode(bytes).expect_err("size").code, Code::InvalidId);
        }
        for count in [0, 5, 255] {
            let mut bytes = sample().encode();
            bytes[7] = count;
            let sum = checksum(&bytes);
            bytes[CHECKSUM_AT..].copy_from_slice(&sum);
            assert_eq!(UniqueId::decode(&bytes).expect_err("count").code, Code::InvalidId);
        }
        for text in [String::new(), "x".repeat(256), "é".repeat(128), "0".repeat(256)] {
            assert_eq!(text.parse::<UniqueId>().expect_err("text").code, Code::InvalidId);
        }
        let none = UniqueId::new(&[], Key::new([0; 32])).expect_err("none");
        assert_eq!(none.code, Code::NoAddress);
    }

    #[test]
    fn debug_shows_the_addresses_and_not_the_key() {
        let text = format!("{:?} {:?}", sample(), sample().key());
        assert!(text.contains("10.1.2.3:4567"));
        assert!(!text.contains("ab, ab") && !text.contains("171") && !text.contains("abab"));
    }
}
