//! The bytes of an all_reduce over loopback sockets.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Mutex;

use super::{Made, Way};

/// Most bytes of one system call: the best of these counts.
const PIECES: [usize; 4] = [16 << 10, 64 << 10, 256 << 10, 1 << 20];

/// Every size of piece. An all_reduce on `ranks` ranks sends 2(n-1)/n of its `bytes`.
pub(super) fn ways(ranks: usize, bytes: usize) -> impl Iterator<Item = Made> {
    let each = 2 * bytes * (ranks - 1) / ranks;
    // A piece larger than all does what the one before did.
    let differs = move |index: &usize| *index == 0 || PIECES[index - 1] < each;
    (0..PIECES.len()).filter(differs).map(move |index| {
        match Ring::new(ranks, each, PIECES[index]) {
            Ok(ring) => Ok(Box::new(ring) as _),
            Err(error) => Err(format!("sockets: {error}")),
        }
    })
}

/// A rank's ends.
struct Seat {
    right: TcpStream,
    left: TcpStream,
    out: Vec<u8>,
    into: Vec<u8>,
}

/// Ranks in a ring, a connection for each direction that is used.
struct Ring {
    /// Each used by its rank alone.
    seats: Vec<Mutex<Seat>>,
    bytes: usize,
    piece: usize,
}

impl Ring {
    fn new(ranks: usize, bytes: usize, piece: usize) -> std::io::Result<Self> {
        let mut rights = Vec::new();
        let mut lefts = Vec::new();
        for _ in 0..ranks {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let right = TcpStream::connect(listener.local_addr()?)?;
            let (left, _) = listener.accept()?;
            for end in [&right, &left] {
                end.set_nodelay(true)?;
                end.set_nonblocking(true)?;
            }
            rights.push(right);
            lefts.push(left);
        }
        // The right of a rank leads to the left of the next.
        lefts.rotate_right(1);
        let buffer = || vec![1; bytes.max(1)];
        let seat = |(right, left)| Mutex::new(Seat { right, left, out: buffer(), into: buffer() });
        Ok(Self { seats: rights.into_iter().zip(lefts).map(seat).collect(), bytes, piece })
    }
}

/// What a call moved; nothing when it would have had to wait.
fn moved(outcome: std::io::Result<usize>) -> Result<usize, String> {
    match outcome {
        Ok(0) => Err("a neighbour has gone".to_owned()),
        Ok(count) => Ok(count),
        Err(e) if [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&e.kind()) => Ok(0),
        Err(error) => Err(error.to_string()),
    }
}

impl Way for Ring {
    fn call(&self, me: usize, _turn: u64) -> Result<(), String> {
        let mut seat = self.seats[me].lock().map_err(|error| error.to_string())?;
        let Seat { right, left, out, into } = &mut *seat;
        let (mut sent, mut received, mut idle) = (0, 0, 0u32);
        // BOUND: the neighbours do the same; the command's time limit ends it.
        while sent < self.bytes || received < self.bytes {
            let mut count = 0;
            if sent < self.bytes {
                let end = (sent + self.piece).min(self.bytes);
                count += moved(right.write(&out[sent..end]))?;
                sent += count;
            }
            if received < self.bytes {
                let end = (received + self.piece).min(self.bytes);
                let got = moved(left.read(&mut into[received..end]))?;
                received += got;
                count += got;
            }
            idle = if count == 0 { idle + 1 } else { 0 };
            // Never for long where each rank has its core.
            if idle.is_multiple_of(1 << 7) && idle > 0 {
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::timing;
    use super::*;

    #[test]
    fn a_ring_moves_its_bytes_in_pieces() {
        for (ranks, bytes) in [(2, 8), (3, 100_000)] {
            for way in ways(ranks, bytes) {
                timing::rounds(&*way.expect("sockets"), ranks, 128 << 20, 1).expect("moved");
            }
        }
        let some = ways(2, 100_000).count();
        assert_eq!(some, 3, "100,000 bytes have use for pieces of 16, 64 and 256 KiB");
    }
}
