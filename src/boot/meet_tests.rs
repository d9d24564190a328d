use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::mpsc;
use std::thread;

use super::*;
use crate::boot::env::{Facts, Vars};
use crate::boot::rendezvous::join;

const LONG: Duration = Duration::from_secs(60);

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

/// A fresh private directory, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let tail = u64::from_le_bytes(random::bytes().expect("random"));
        let path = std::env::temp_dir().join(format!("unisono-test-{tail:016x}"));
        DirBuilder::new().mode(0o700).create(&path).expect("scratch");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn launch(pairs: &[(&str, String)], directory: &Path) -> Launch {
    let vars: Vars = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
    let facts = Facts { directory: directory.join("unisono"), launcher: (1, 1) };
    Launch::from_vars(&vars, 0, &facts).expect("launch")
}

fn mpirun(rank: u32, world: u32) -> Vec<(&'static str, String)> {
    vec![
        ("OMPI_COMM_WORLD_RANK", rank.to_string()),
        ("OMPI_COMM_WORLD_SIZE", world.to_string()),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", world.to_string()),
        ("PMIX_NAMESPACE", "job-1".to_owned()),
    ]
}

/// Starts as every rank, joins, and returns what the ranks said to each other.
fn form(world: u32, launch: impl Fn(u32) -> Launch) {
    let (send, receive) = mpsc::channel();
    for rank in 0..world {
        let (send, launch) = (send.clone(), launch(rank));
        thread::spawn(move || {
            let (id, hosted) = launch.unique_id(soon()).expect("id");
            assert_eq!(hosted.is_some(), rank == 0);
            let card = rank.to_le_bytes();
            let joined = join(&id, rank, world, &card, b"", soon()).expect("join");
            drop(hosted);
            let _ = send.send(joined.cards);
        });
    }
    for _ in 0..world {
        let cards = receive.recv_timeout(LONG).expect("a rank hangs or panicked");
        let expected: Vec<Vec<u8>> = (0..world).map(|rank| rank.to_le_bytes().to_vec()).collect();
        assert_eq!(cards, expected);
    }
}

#[test]
fn ranks_of_one_host_meet_through_a_private_file_that_goes_away() {
    let scratch = Scratch::new();
    for world in [1, 2, 4] {
        form(world, |rank| launch(&mpirun(rank, world), &scratch.0));
        let left = std::fs::read_dir(scratch.0.join("unisono")).expect("directory").count();
        assert_eq!(left, 0);
    }
}

#[test]
fn ranks_with_a_secret_meet_at_an_address() {
    // A port nobody holds just now; the listener is gone before the ranks start.
    let port = {
        let free = socket::listen("127.0.0.1:0".parse().expect("address")).expect("listen");
        free.local_addr().expect("address").port()
    };
    let scratch = Scratch::new();
    form(3, |rank| {
        let mut pairs = mpirun(rank, 3);
        pairs.push(("UNISONO_JOB_KEY", "secret".to_owned()));
        pairs.push(("UNISONO_ROOT", format!("localhost:{port}")));
        launch(&pairs, &scratch.0)
    });
}

#[test]
fn a_file_of_a_dead_process_is_not_believed_and_is_replaced() {
    let scratch = Scratch::new();
    let one = launch(&mpirun(1, 2), &scratch.0);
    let Root::File(path) = &one.rendezvous else { panic!("no file") };
    private_directory(path).expect("directory");
    let mut child = std::process::Command::new("true").spawn().expect("spawn");
    let pid = child.id();
    child.wait().expect("wait");
    let addresses = ["127.0.0.1:9".parse().expect("address")];
    let stale = UniqueId::new(&addresses, Key::random().expect("key")).expect("id").to_hex();
    let own = std::process::id();
    // Dead, of another process with our number, and cut off.
    for text in [
        format!("{FILE_MAGIC}\n{pid} 1\n{stale}\n"),
        format!("{FILE_MAGIC}\n{own} 1\n{stale}\n"),
        format!("{FILE_MAGIC}\n"),
        String::new(),
    ] {
        std::fs::write(path, text).expect("write");
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).expect("mode");
        assert_eq!(read_file(path).expect("read"), None);
    }
    form(2, |rank| launch(&mpirun(rank, 2), &scratch.0));
}

/// Rank 0 of another job was killed before its ranks had come: its file stays until somebody of the
/// same user starts.
#[test]
fn what_killed_processes_left_is_removed_and_what_others_hold_is_not() {
    let scratch = Scratch::new();
    let directory = scratch.0.join("unisono");
    let other = directory.join("job-0");
    private_directory(&other).expect("directory");
    let (id, other) = host_file(&other).expect("another job");
    let own = std::process::id();
    // A start time of 1: a process that is gone.
    let dead = format!("{FILE_MAGIC}\n{own} 1\n{}\n", id.to_hex());
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("write");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).expect("mode");
        File::open(path).expect("open")
    };
    for (name, text) in [("job-1", &*dead), ("job-1.0123", ""), ("job-2.4567", FILE_MAGIC)] {
        drop(write(name, text));
    }
    // Not one of ours; and of a process that only its lock tells of, as from another container.
    drop(write("notes", &dead));
    let held = write("job-3", &dead);
    held.try_lock().expect("nobody else has it");
    let names = || {
        let entries = std::fs::read_dir(&directory).expect("directory");
        let name = |entry: io::Result<std::fs::DirEntry>| entry.expect("entry").file_name();
        let mut names: Vec<String> =
            entries.map(|e| name(e).into_string().expect("text")).collect();
        names.sort();
        names
    };
    form(2, |rank| launch(&mpirun(rank, 2), &scratch.0));
    assert_eq!(names(), ["job-0", "job-3", "notes"]);
    // Whoever does not get the directory's lock starts all the same.
    drop(held);
    let lock = lock_directory(&directory).expect("free");
    form(2, |rank| launch(&mpirun(rank, 2), &scratch.0));
    assert_eq!(names(), ["job-0", "job-3", "notes"]);
    drop((lock, other));
    form(2, |rank| launch(&mpirun(rank, 2), &scratch.0));
    assert_eq!(names(), ["notes"]);
}

#[test]
fn an_absent_rank_0_is_named() {
    let scratch = Scratch::new();
    let one = launch(&mpirun(1, 2), &scratch.0);
    let error = one.unique_id(Instant::now() + Duration::from_millis(50)).expect_err("absent");
    assert_eq!((error.code, error.peer), (Code::MissingRanks, Some(Rank(0))));
}

#[test]
fn a_directory_or_file_others_could_have_made_is_refused() {
    let scratch = Scratch::new();
    let zero = launch(&mpirun(0, 2), &scratch.0);
    let directory = scratch.0.join("unisono");
    std::fs::create_dir(&directory).expect("directory");
    std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o755)).expect("mode");
    assert_eq!(zero.unique_id(soon()).expect_err("open to others").code, Code::System);
    std::fs::remove_dir(&directory).expect("remove");
    let other = scratch.0.join("other");
    DirBuilder::new().mode(0o700).create(&other).expect("directory");
    symlink(&other, &directory).expect("link");
    assert_eq!(zero.unique_id(soon()).expect_err("a link").code, Code::System);
    std::fs::remove_file(&directory).expect("remove");

    let Root::File(path) = &zero.rendezvous else { panic!("no file") };
    private_directory(path).expect("directory");
    symlink(other.join("x"), path).expect("link");
    assert!(read_file(path).is_err());
    std::fs::remove_file(path).expect("remove");
    std::fs::write(path, "x").expect("write");
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).expect("mode");
    assert_eq!(read_file(path).expect_err("open to others").code, Code::System);
}

/// A rank 0 that fails before it joins leaves nothing behind: its next attempt gets the port.
#[test]
fn a_port_is_free_again_when_rank_0_never_joined() {
    let held = socket::listen("0.0.0.0:0".parse().expect("address")).expect("listen");
    let port = held.local_addr().expect("address").port();
    drop(held);
    for _ in 0..3 {
        let key = Key::random().expect("key");
        let (_, hosted) = host_port("localhost", port, key, soon()).expect("free");
        drop(hosted);
    }
    let (id, hosted) =
        host_port("localhost", port, Key::random().expect("key"), soon()).expect("free");
    let mut joined = join(&id, 0, 1, b"", b"", soon()).expect("join");
    // A server whose rank 0 has joined goes on until that leaves.
    drop(hosted);
    joined.exchange(b"", soon()).expect("exchange");
}

/// Whoever names one address of rank 0's host has nobody else at the port.
#[test]
fn rank_0_listens_only_at_an_address_of_its_own_and_everywhere_for_a_name() {
    let own = ["10.1.0.5", "2001:db8::5"].map(|ip| ip.parse::<IpAddr>().expect("address"));
    for host in ["10.1.0.5", "2001:db8::5", "127.0.0.2", "::1"] {
        assert_eq!(doors(host, &own), [host.parse::<IpAddr>().expect("address")]);
    }
    for host in ["localhost", "node1", "10.9.9.9", "0.0.0.0"] {
        assert!(doors(host, &own).iter().all(IpAddr::is_unspecified), "{host}");
    }
    let held = socket::listen("127.0.0.1:0".parse().expect("address")).expect("listen");
    let at = held.local_addr().expect("address");
    drop(held);
    let key = Key::random().expect("key");
    let (id, hosted) = host_port("127.0.0.1", at.port(), key, soon()).expect("free");
    assert_eq!(hosted.expect("rank 0 serves").server.addresses(), [at]);
    assert_eq!(id.addresses(), [at]);
}

#[test]
fn a_name_without_an_address_blames_rank_0_and_an_address_needs_no_look_up() {
    let soon = Instant::now() + Duration::from_millis(100);
    let error = resolve("host.invalid", 1, soon).expect_err("no such host");
    assert_eq!((error.code, error.peer), (Code::NoAddress, Some(Rank(0))));
    let found = resolve("::1", 7, Instant::now()).expect("an address");
    assert_eq!(found, ["[::1]:7".parse().expect("address")]);
}

#[test]
fn a_port_in_use_is_an_error_at_the_deadline() {
    let held = socket::listen("0.0.0.0:0".parse().expect("address")).expect("listen");
    let port = held.local_addr().expect("address").port();
    let key = Key::random().expect("key");
    let error = host_port("localhost", port, key, Instant::now() + Duration::from_millis(50));
    assert_eq!(error.expect_err("in use").native, libc::EADDRINUSE);
}

/// Run alone in a process of its own by the test below: descriptors are counted.
#[test]
#[ignore = "counts descriptors; run by nothing_is_left_open in a process of its own"]
fn nothing_is_left_open_child() {
    let scratch = Scratch::new();
    let open = || std::fs::read_dir("/proc/self/fd").expect("fds").count();
    let before = open();
    for _ in 0..10 {
        form(3, |rank| launch(&mpirun(rank, 3), &scratch.0));
    }
    let end = soon();
    // The servers' threads end once their ranks have left.
    while open() > before && Instant::now() < end {
        thread::yield_now();
    }
    assert!(open() <= before, "{} open, {before} before", open());
}

#[test]
fn nothing_is_left_open() {
    let own = std::env::current_exe().expect("program");
    let name = "boot::meet::tests::nothing_is_left_open_child";
    let status = std::process::Command::new(own)
        .args([name, "--exact", "--ignored", "--test-threads=1"])
        .stdout(std::process::Stdio::null())
        .status()
        .expect("run");
    assert!(status.success());
}
