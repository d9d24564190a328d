//! Strangers on this machine, while a job forms and while it runs: port scans, noise, half-open
//! connections, bytes that begin well and end badly, bytes that trickle. The job neither notices
//! nor grows.
#![allow(missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use support::{Proc, hear_all, rank_program as program, tell_all};

#[test]
fn rank_program() {
    program();
}

/// An address in the kernel's tables: words of 32 bits in the machine's order, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.rsplit_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let bytes: Vec<u8> = (0..ip.len() / 8)
        .filter_map(|i| u32::from_str_radix(&ip[8 * i..8 * i + 8], 16).ok())
        .flat_map(u32::to_ne_bytes)
        .collect();
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    let local = match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other,
    };
    Some(SocketAddr::new(local, port))
}

/// Addresses at which `pid` listens, IPv4 and IPv6.
fn listening(pid: u32) -> BTreeSet<SocketAddr> {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return BTreeSet::new();
    };
    let sockets: BTreeSet<String> = entries
        .filter_map(|e| std::fs::read_link(e.ok()?.path()).ok())
        .filter_map(|l| {
            let text = l.to_string_lossy().into_owned();
            Some(text.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
        })
        .collect();
    let mut doors = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A: listening), inode.
            if fields.len() > 9 && fields[3] == "0A" && sockets.contains(fields[9]) {
                doors.extend(address(fields[1]));
            }
        }
    }
    doors
}

/// Noise that follows from its number.
fn noise(number: usize, length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes());
    let mut bytes = vec![0; length];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn knock(door: SocketAddr) -> Option<TcpStream> {
    TcpStream::connect_timeout(&door, Duration::from_millis(200)).ok()
}

/// What the other side says first, as far as it says anything: a prefix that is surely valid.
fn greeting(door: SocketAddr) -> Vec<u8> {
    let mut bytes = vec![0; 256];
    let Some(mut stream) = knock(door) else { return Vec::new() };
    stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a timeout");
    let count = stream.read(&mut bytes).unwrap_or(0);
    bytes.truncate(count);
    bytes
}

/// Pesters the ports of `pids` until told to stop; how many connections it made.
struct Pest {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pest {
    fn start(pids: Vec<u32>) -> Self {
        let (stop, made) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (stopped, count) = (stop.clone(), made.clone());
        let thread = std::thread::spawn(move || pester(&pids, &stopped, &count));
        Self { stop, made, thread: Some(thread) }
    }

    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("once").join().expect("a pest does not panic");
        self.made.load(Ordering::Relaxed)
    }
}

fn pester(pids: &[u32], stop: &AtomicBool, made: &AtomicUsize) {
    let mut open: Vec<TcpStream> = Vec::new();
    let mut dripping: Vec<(TcpStream, usize)> = Vec::new();
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        for door in pids.iter().flat_map(|&p| listening(p)) {
            let Some(mut stream) = knock(door) else { continue };
            made.fetch_add(1, Ordering::Relaxed);
            turn += 1;
            // Writes may fail at any point: being thrown out is what a stranger expects.
            match turn % 6 {
                0 => drop(stream),
                1 => drop(stream.write_all(&noise(turn, 1 + turn * 37 % 5000))),
                2 => {
                    let mut bytes = greeting(door);
                    bytes.extend(noise(turn, 300));
                    drop(stream.write_all(&bytes));
                }
                3 => open.push(stream),
                4 => dripping.push((stream, 0)),
                _ => {
                    // Says what the ranks' own greetings begin with, then claims a huge length.
                    let mut bytes = b"UNISONO\0".to_vec();
                    bytes.extend([0xff; 64]);
                    drop(stream.write_all(&bytes));
                    open.push(stream);
                }
            }
        }
        dripping.retain_mut(|(stream, at)| {
            *at += 1;
            stream.write_all(&noise(*at, 1)).is_ok()
        });
        // A stranger has descriptors of its own to mind.
        let excess = open.len().saturating_sub(200);
        open.drain(..excess);
        let excess = dripping.len().saturating_sub(50);
        dripping.drain(..excess);
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn resident(ranks: &mut [Proc]) -> Vec<u64> {
    let mut sizes = Vec::new();
    for proc in ranks {
        proc.tell("rss");
        let said = proc.hear();
        sizes.push(said.strip_prefix("rss ").and_then(|n| n.parse().ok()).expect("a size"));
    }
    sizes
}

fn disturbed_job(links: &str) {
    let id = unisono::unique_id().expect("an id");
    let settings = [("UNISONO_LINKS", links)];
    // Three of four ranks wait for the last while strangers are at the door.
    let mut ranks: Vec<Proc> = (0..3).map(|r| support::rank(&id, r, 4, &settings)).collect();
    let mut pids: Vec<u32> = ranks.iter().map(Proc::pid).collect();
    // The rendezvous is served by this process.
    pids.push(std::process::id());
    let pest = Pest::start(pids.clone());
    let until = std::time::Instant::now() + support::WATCHDOG;
    while pest.made.load(Ordering::Relaxed) < 100 {
        assert!(std::time::Instant::now() < until, "no doors found");
        std::thread::sleep(Duration::from_millis(5));
    }
    ranks.push(support::rank(&id, 3, 4, &settings));
    hear_all(&mut ranks, "ready");
    println!("{links}: {} strangers while forming", pest.end());

    tell_all(&mut ranks, "rounds 100000 3");
    hear_all(&mut ranks, "ok");
    let before = resident(&mut ranks);
    pids = ranks.iter().map(Proc::pid).collect();
    let doors: usize = pids.iter().map(|&p| listening(p).len()).sum();
    let pest = Pest::start(pids);
    for _ in 0..3 {
        tell_all(&mut ranks, "rounds 100000 20");
        hear_all(&mut ranks, "ok");
    }
    println!("{links}: {doors} open doors and {} strangers while running", pest.end());
    let after = resident(&mut ranks);
    for (rank, (before, after)) in before.iter().zip(&after).enumerate() {
        assert!(after < &(before + 8192), "rank {rank} grew from {before} to {after} KiB");
    }
    tell_all(&mut ranks, "destroy");
    hear_all(&mut ranks, "ok");
}

#[test]
fn strangers_disturb_no_shm_job() {
    disturbed_job("shm");
}

#[test]
fn strangers_disturb_no_tcp_job() {
    disturbed_job("tcp");
}
