//! From what the launcher says to an id in every rank's hands.
//!
//! Ranks of one host meet through a private file: rank 0 serves a rendezvous on loopback with a
//! fresh random key and writes its id where only its user can read. The file names its writer's
//! process, so that a file an earlier job left behind is not believed. Its writer also holds a lock
//! on it: whoever writes a file next removes those that nobody holds any more. Ranks of several
//! hosts meet at an address, with a key that every rank derives from its environment.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::env::{Launch, Root};
use super::id::{ADDRESSES_MAX, UniqueId};
use super::key::Key;
use super::rendezvous::Rendezvous;
use crate::error::{Code, Error, Result, quoted};
use crate::sys::{interface, process, random, socket};
use crate::types::Rank;

/// A rendezvous file is shorter than this; more is not read.
const FILE_MAX: u64 = 1024;
const FILE_MAGIC: &str = "unisono-rendezvous-1";
/// How the names of rendezvous files begin; see `Job::file_name`.
pub(super) const FILE_NAME: &str = "job-";
/// How long another process may hold the directory's lock; it takes well under a millisecond.
const LOCK_LIMIT: Duration = Duration::from_millis(500);
/// How often an absent file, name or port is looked for again, at first and at last.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));

/// What rank 0 serves for its job. Keep it until every rank has joined: then the file is of no
/// more use and goes with it. The server ends on its own; at once if the job has failed
/// or rank 0 never joined.
#[derive(Debug)]
pub(crate) struct Hosted {
    server: Rendezvous,
    _file: Option<Written>,
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.server.call_off();
    }
}

/// A rendezvous file of ours, removed when dropped. The open file holds its lock, which ends with
/// this process however that ends.
#[derive(Debug)]
struct Written {
    path: PathBuf,
    locked: File,
}

impl Drop for Written {
    fn drop(&mut self) {
        // It may be gone with its directory already.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Launch {
    /// The job's id; at rank 0 also the server behind it, unless somebody else runs one.
    pub(crate) fn unique_id(&self, deadline: Instant) -> Result<(UniqueId, Option<Hosted>)> {
        match &self.rendezvous {
            Root::Id(id) => Ok((id.clone(), None)),
            Root::File(path) if self.rank == 0 => host_file(path),
            Root::File(path) => await_file(path, deadline).map(|id| (id, None)),
            Root::Address { host, port } => {
                let key = self.key.clone().ok_or_else(|| {
                    Error::new(Code::Internal, "a rendezvous at an address without a key")
                })?;
                if self.rank == 0 {
                    return host_port(host, *port, key, deadline);
                }
                let addresses = resolve(host, *port, deadline)?;
                Ok((UniqueId::new(&addresses, key)?, None))
            }
        }
    }
}

/// Calls `step` until it gives something, with growing pauses; `None` once the deadline is near.
fn retry<T>(deadline: Instant, mut step: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
    let mut pause = PAUSE.0;
    // BOUND: the deadline.
    loop {
        if let Some(found) = step()? {
            return Ok(Some(found));
        }
        if Instant::now() + pause >= deadline {
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn host_file(path: &Path) -> Result<(UniqueId, Option<Hosted>)> {
    private_directory(path)?;
    let key = Key::random()?;
    let at = |ip: IpAddr| Rendezvous::listen(&[SocketAddr::new(ip, 0)], key.clone());
    // A host without IPv4 has IPv6.
    let server = at(Ipv4Addr::LOCALHOST.into()).or_else(|_| at(Ipv6Addr::LOCALHOST.into()))?;
    let id = server.unique_id()?;
    let written = write_file(path, &id)?;
    Ok((id, Some(Hosted { server, _file: Some(written) })))
}

/// Creates the file's directory, or checks that the one there is ours and closed to others.
fn private_directory(path: &Path) -> Result<()> {
    let Some(directory) = path.parent() else {
        return Err(Error::new(Code::Internal, "a rendezvous file without a directory"));
    };
    match DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => {
            return Err(Error::os(&error, format!("creating {}", directory.display())));
        }
    }
    // Not following a link: in a shared directory such as /tmp anybody could have placed one.
    let found = std::fs::symlink_metadata(directory)
        .map_err(|error| Error::os(&error, format!("looking at {}", directory.display())))?;
    if found.is_dir() && found.uid() == process::user_id() && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let text = format!(
        "{} is not a directory of this user that is closed to others; remove it, or set \
         XDG_RUNTIME_DIR to a private directory",
        directory.display()
    );
    Err(Error::new(Code::System, text))
}

/// Writes the id under a name of its own first, so that no reader sees half of it.
fn write_file(path: &Path, id: &UniqueId) -> Result<Written> {
    let what = || format!("writing {}", path.display());
    let directory = path.parent().unwrap_or(path);
    // Held until the file is in its place. Who does not get it removes nothing.
    let lock = lock_directory(directory);
    if lock.is_some() {
        sweep(directory);
    }
    let own = std::process::id();
    let start = process::start_ticks(own).unwrap_or(0);
    let text = format!("{FILE_MAGIC}\n{own} {start}\n{}\n", id.to_hex());
    let tail: [u8; 8] = random::bytes()?;
    let draft = path.with_extension(format!("{:016x}", u64::from_le_bytes(tail)));
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(&draft).map_err(|error| Error::os(&error, what()))?;
    let mut written = Written { path: draft, locked: file };
    // A file system without locks only means that the file is not told from an old one by them.
    let _ = written.locked.try_lock();
    written.locked.write_all(text.as_bytes()).map_err(|error| Error::os(&error, what()))?;
    std::fs::rename(&written.path, path).map_err(|error| Error::os(&error, what()))?;
    path.clone_into(&mut written.path);
    Ok(written)
}

/// One process at a time puts files into the directory and removes those of others.
fn lock_directory(directory: &Path) -> Option<File> {
    let opened = File::open(directory).ok()?;
    // Whoever holds it for longer has been stopped: nobody needs to wait for that.
    let locked = retry(Instant::now() + LOCK_LIMIT, || match opened.try_lock() {
        Ok(()) => Ok(Some(true)),
        Err(TryLockError::WouldBlock) => Ok(None),
        // A file system without locks.
        Err(TryLockError::Error(_)) => Ok(Some(false)),
    });
    matches!(locked, Ok(Some(true))).then_some(opened)
}

/// Removes what killed processes have left: files whose lock nobody holds and whose writer is not
/// alive. The caller holds the directory's lock, so none of them is being written.
fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    // BOUND: files of this user, each looked at once.
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let ours = |name: &str| name.starts_with(FILE_NAME);
        if path.file_name().and_then(|name| name.to_str()).is_some_and(ours) && is_stale(&path) {
            // Whoever else wants it gone may have been faster.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Whether a file was left behind. What cannot be read or locked stays.
fn is_stale(path: &Path) -> bool {
    let Ok(Some(file)) = open_file(path) else {
        return false;
    };
    file.try_lock().is_ok() && living_id(file).is_none()
}

fn await_file(path: &Path, deadline: Instant) -> Result<UniqueId> {
    retry(deadline, || read_file(path))?.ok_or_else(|| {
        let text = format!(
            "rank 0 did not arrive: no rendezvous of a living process at {}",
            path.display()
        );
        Error::new(Code::MissingRanks, text).with_peer(Rank(0))
    })
}

/// The id in the file; `None` when there is none yet or its writer is dead.
fn read_file(path: &Path) -> Result<Option<UniqueId>> {
    let Some(file) = open_file(path)? else {
        return Ok(None);
    };
    private_directory(path)?;
    living_id(file).map(|id| id.parse()).transpose()
}

/// The file, if it is there: a private one of this user.
fn open_file(path: &Path) -> Result<Option<File>> {
    let mut options = OpenOptions::new();
    // Not waiting either: a pipe in its place would block the open.
    options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::os(&error, format!("reading {}", path.display()))),
    };
    check_file(&file, path)?;
    Ok(Some(file))
}

/// The id in a file whose writer is alive.
fn living_id(file: File) -> Option<String> {
    let mut text = String::new();
    // What is not text was not written by us.
    file.take(FILE_MAX).read_to_string(&mut text).ok()?;
    let mut lines = text.lines();
    let (magic, writer, id) = (lines.next()?, lines.next()?, lines.next()?);
    let (pid, start) = writer.split_once(' ')?;
    let (pid, start) = (pid.parse().ok()?, start.parse::<u64>().ok()?);
    let alive = magic == FILE_MAGIC && process::start_ticks(pid) == Some(start);
    alive.then(|| id.to_owned())
}

fn check_file(file: &File, path: &Path) -> Result<()> {
    let found = file
        .metadata()
        .map_err(|error| Error::os(&error, format!("looking at {}", path.display())))?;
    if found.is_file() && found.uid() == process::user_id() && found.mode() & 0o077 == 0 {
        return Ok(());
    }
    let text = format!("{} is not a private file of this user", path.display());
    Err(Error::new(Code::System, text))
}

/// Where rank 0 listens: at the address that `host` is, if that is one of this host's (`own`).
/// Which address the others' name for this host leads to is not known here, and an address may be
/// a router's that leads here: then everywhere.
fn doors(host: &str, own: &[IpAddr]) -> Vec<IpAddr> {
    match host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() || own.contains(&ip) => vec![ip],
        _ => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

/// Serves at a port of this host.
fn host_port(
    host: &str,
    port: u16,
    key: Key,
    deadline: Instant,
) -> Result<(UniqueId, Option<Hosted>)> {
    let here: Vec<IpAddr> = interface::list()?.iter().map(|one| one.address).collect();
    let doors = doors(host, &here);
    let mut last = None;
    // The port may still be held by the job before this one.
    let listeners = retry(deadline, || {
        let mut listeners = Vec::new();
        for &ip in &doors {
            match socket::listen(SocketAddr::new(ip, port)) {
                Ok(listener) => listeners.push(listener),
                Err(error) => {
                    let busy = error.native == libc::EADDRINUSE;
                    last = Some(error);
                    if busy {
                        return Ok(None);
                    }
                }
            }
        }
        Ok((!listeners.is_empty()).then_some(listeners))
    })?;
    let Some(listeners) = listeners else {
        return Err(last.unwrap_or_else(|| Error::new(Code::NoAddress, "no address to listen at")));
    };
    let server = Rendezvous::serve(listeners, key.clone(), super::rendezvous::IDLE)?;
    // Where it listens everywhere, rank 0 goes to itself by loopback.
    let own = server.addresses().iter().map(|address| {
        let ip: IpAddr = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, port)
    });
    let id = UniqueId::new(&own.collect::<Vec<_>>(), key)?;
    Ok((id, Some(Hosted { server, _file: None })))
}

/// The addresses of rank 0's host, whose name a cluster may publish only once the host is up.
fn resolve(host: &str, port: u16, deadline: Instant) -> Result<Vec<SocketAddr>> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let mut last = String::new();
    let found = retry(deadline, || match look_up(host, port, deadline)? {
        Ok(addresses) => Ok((!addresses.is_empty()).then_some(addresses)),
        Err(error) => {
            last = error.to_string();
            Ok(None)
        }
    })?;
    found.ok_or_else(|| {
        let text = format!("rank 0's host {} has no address: {last}", quoted(host));
        Error::new(Code::NoAddress, text).with_peer(Rank(0))
    })
}

/// One look-up, in a thread of its own: it is the system's, which knows no deadline of ours.
fn look_up(host: &str, port: u16, deadline: Instant) -> Result<io::Result<Vec<SocketAddr>>> {
    let (send, receive) = mpsc::channel();
    let name = host.to_owned();
    let found = move || {
        process::block_signals();
        let found = (name.as_str(), port).to_socket_addrs();
        // Nobody waits for it any more when the deadline has passed.
        let _ = send.send(found.map(|addresses| addresses.take(ADDRESSES_MAX).collect()));
    };
    let thread = std::thread::Builder::new().name("unisono-name".to_owned());
    thread.spawn(found).map_err(|error| Error::os(&error, "starting a thread for a look-up"))?;
    let left = deadline.saturating_duration_since(Instant::now());
    Ok(receive.recv_timeout(left).unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())))
}

#[cfg(test)]
#[path = "meet_tests.rs"]
mod tests;
