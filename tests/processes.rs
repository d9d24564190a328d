//! Ranks as processes that die, stop, leave, disagree, come late or not at all: every survivor gets
//! the error that names the culprit, and nobody hangs. Time is bounded by a watchdog alone.
#![allow(missing_docs)]

#[path = "processes/large.rs"]
mod large;
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::{begun, hear_all, job, rank, rank_program as program, tell_all};
use unisono::Code;
use unisono::boot::id::UniqueId;
use unisono::comm::Communicator;
use unisono::config::Config;

#[test]
fn rank_program() {
    program();
}

/// One test a link for each scenario.
macro_rules! on_both_links {
    ($($(#[$meta:meta])* $name:ident)+) => { $(
        mod $name {
            $(#[$meta])*
            #[test]
            fn shm() {
                super::scenario::$name("shm");
            }

            $(#[$meta])*
            #[test]
            fn tcp() {
                super::scenario::$name("tcp");
            }
        }
    )+ };
}

on_both_links! {
    killed_while_others_wait
    killed_during_a_large_all_reduce
    killed_and_survivors_end_at_once
    killed_while_another_only_tests
    killed_during_start_up
    too_few_descriptors_at_start_up
    killed_while_others_are_idle
    stopped_and_continued
    exits_without_destroying
    leaves_while_another_waits
    aborted_from_another_thread
    a_rank_that_never_calls
    different_calls
    different_roots
    calls_that_no_message_compares
    sizes_that_differ_though_the_root_is_through
    idle_ranks_burn_no_cores
    eight_ranks_on_few_cores
}

/// The error every survivor must report.
fn expect_error(ranks: &mut [support::Proc], code: &str, words: &[&str]) {
    for proc in ranks {
        let said = proc.hear();
        let fits = said.starts_with(&format!("error {code} "));
        assert!(fits && words.iter().all(|w| said.contains(w)), "{}: {said}", proc.name);
    }
}

/// Survivors end by themselves, cleanly.
fn all_end(mut ranks: Vec<support::Proc>) {
    tell_all(&mut ranks, "destroy");
    for proc in &mut ranks {
        proc.hear();
        assert_eq!(proc.ended(), Some(0), "{}", proc.name);
    }
}

mod scenario {
    use super::*;

    pub(super) fn killed_while_others_wait(links: &str) {
        for (world, victim) in [(2, 1), (4, 0), (4, 2)] {
            let mut ranks = job(world, &[("UNISONO_LINKS", links)]);
            tell_all(&mut ranks, "all_reduce 1000");
            hear_all(&mut ranks, "ok");
            let dead = ranks.remove(victim);
            tell_all(&mut ranks, "barrier");
            begun(&mut ranks, "barrier");
            dead.signal(libc::SIGKILL);
            let (peer, name) = (format!("peer={victim} "), format!("rank {victim}"));
            expect_error(&mut ranks, "PEER_LOST", &[&peer, &name]);
            // The communicator stays broken, with the same reason.
            tell_all(&mut ranks, "barrier");
            expect_error(&mut ranks, "PEER_LOST", &[&peer]);
            all_end(ranks);
        }
    }

    pub(super) fn killed_during_a_large_all_reduce(links: &str) {
        for (world, victim) in [(2, 0), (4, 3)] {
            let mut ranks = job(world, &[("UNISONO_LINKS", links)]);
            tell_all(&mut ranks, "loop 4000000");
            begun(&mut ranks, "loop 4000000");
            std::thread::sleep(Duration::from_millis(150));
            let dead = ranks.remove(victim);
            dead.signal(libc::SIGKILL);
            expect_error(&mut ranks, "PEER_LOST", &[&format!("peer={victim} ")]);
            all_end(ranks);
        }
    }

    /// Nothing but the caller's tests looks after the peers.
    pub(super) fn killed_while_another_only_tests(links: &str) {
        let settings = [("UNISONO_LINKS", links), ("UNISONO_PROGRESS_THREAD", "0")];
        let mut ranks = job(2, &settings);
        tell_all(&mut ranks, "barrier");
        hear_all(&mut ranks, "ok");
        let dead = ranks.remove(1);
        tell_all(&mut ranks, "test_recv 1000 1");
        begun(&mut ranks, "test_recv 1000 1");
        dead.signal(libc::SIGKILL);
        expect_error(&mut ranks, "PEER_LOST", &["peer=1 ", "rank 1"]);
        all_end(ranks);
    }

    /// Whoever hears of the death first ends as well, and its connections with it: the others must
    /// still name the first to die.
    pub(super) fn killed_and_survivors_end_at_once(links: &str) {
        for (round, count) in [1, 1_000_000, 1, 1_000_000].into_iter().enumerate() {
            let victim = round % 4;
            let mut ranks = job(4, &[("UNISONO_LINKS", links)]);
            let command = format!("loop_exit {count}");
            tell_all(&mut ranks, &command);
            begun(&mut ranks, &command);
            std::thread::sleep(Duration::from_millis(50));
            let dead = ranks.remove(victim);
            dead.signal(libc::SIGKILL);
            expect_error(&mut ranks, "PEER_LOST", &[&format!("peer={victim} ")]);
        }
    }

    /// However far the victim has come when it dies: survivors either never form (and name it), or
    /// form and lose it.
    pub(super) fn killed_during_start_up(links: &str) {
        for (world, victim, delay) in [(2, 1, 5), (4, 2, 12), (4, 0, 20), (4, 3, 40)] {
            let id = unisono::unique_id().expect("an id");
            let settings = [("UNISONO_LINKS", links), ("UNISONO_INIT_TIMEOUT_MS", "6000")];
            let mut ranks: Vec<_> = (0..world).map(|r| rank(&id, r, world, &settings)).collect();
            std::thread::sleep(Duration::from_millis(delay));
            let dead = ranks.remove(victim);
            dead.signal(libc::SIGKILL);
            drop(dead);
            for proc in &mut ranks {
                let mut said = proc.hear();
                if said == "ready" {
                    proc.tell("barrier");
                    said = proc.hear();
                }
                let code = ["MISSING_RANKS", "PEER_LOST", "TIMED_OUT"];
                let named = code.iter().any(|c| said.starts_with(&format!("error {c} ")));
                let culprit = said.contains(&format!("peer={victim} "))
                    || said.contains(&format!("rank {victim}"));
                assert!(named && culprit, "{} of {delay} ms: {said}", proc.name);
            }
        }
    }

    /// However far a rank comes before it has no descriptor left, all end with its error, at once
    /// and not when their time is over. Where it has just enough, all are ready: what a rank
    /// inherits and how its connections overlap decide how many that is.
    pub(super) fn too_few_descriptors_at_start_up(links: &str) {
        for files in 14..=32 {
            let poor = files % 4;
            let id = unisono::unique_id().expect("an id");
            let settings = [("UNISONO_LINKS", links)];
            let start = |r: usize| {
                let command = support::rank_command(&id, r, 4, &settings);
                let limit = files.to_string();
                let limited = ["sh", "-c", "ulimit -n $0 && exec \"$@\"", &limit];
                let command = if r == poor { support::within(&limited, &command) } else { command };
                support::Proc::start(command, &format!("rank {r} of 4"))
            };
            let began = Instant::now();
            let mut ranks: Vec<_> = (0..4).map(start).collect();
            let said: Vec<String> = ranks.iter_mut().map(support::Proc::hear).collect();
            assert!(began.elapsed() < Duration::from_secs(8), "{files} files: {said:#?}");
            let told = format!("error SYSTEM peer={poor} ");
            let short = said.iter().enumerate().all(|(r, said)| {
                r == poor && said.starts_with("error SYSTEM peer=- ") || said.starts_with(&told)
            });
            let enough = files > 20 && said.iter().all(|said| said == "ready");
            assert!(short || enough, "{files} files: {said:#?}");
        }
    }

    pub(super) fn killed_while_others_are_idle(links: &str) {
        for (world, victim) in [(2, 0), (4, 1)] {
            let mut ranks = job(world, &[("UNISONO_LINKS", links)]);
            tell_all(&mut ranks, "barrier");
            hear_all(&mut ranks, "ok");
            let mut dead = ranks.remove(victim);
            dead.signal(libc::SIGKILL);
            assert_eq!(dead.ended(), None);
            tell_all(&mut ranks, "all_reduce 100000");
            expect_error(&mut ranks, "PEER_LOST", &[&format!("peer={victim} ")]);
            all_end(ranks);
        }
    }

    pub(super) fn stopped_and_continued(links: &str) {
        let mut ranks = job(4, &[("UNISONO_LINKS", links)]);
        tell_all(&mut ranks, "rounds 100000 60");
        begun(&mut ranks, "rounds 100000 60");
        for _ in 0..3 {
            ranks[1].signal(libc::SIGSTOP);
            std::thread::sleep(Duration::from_millis(300));
            ranks[1].signal(libc::SIGCONT);
        }
        hear_all(&mut ranks, "ok");
        all_end(ranks);
    }

    pub(super) fn exits_without_destroying(links: &str) {
        let mut ranks = job(4, &[("UNISONO_LINKS", links)]);
        let mut left = ranks.remove(2);
        tell_all(&mut ranks, "barrier");
        begun(&mut ranks, "barrier");
        left.tell("exit");
        assert_eq!(left.ended(), Some(0));
        expect_error(&mut ranks, "PEER_LOST", &["peer=2 "]);
        all_end(ranks);
    }

    pub(super) fn leaves_while_another_waits(links: &str) {
        let mut ranks = job(2, &[("UNISONO_LINKS", links)]);
        tell_all(&mut ranks, "barrier");
        hear_all(&mut ranks, "ok");
        let mut left = ranks.remove(1);
        tell_all(&mut ranks, "barrier");
        begun(&mut ranks, "barrier");
        left.tell("destroy");
        assert_eq!(left.hear(), "ok");
        expect_error(&mut ranks, "PEER_LOST", &["peer=1 ", "rank 1"]);
        all_end(ranks);
    }

    pub(super) fn aborted_from_another_thread(links: &str) {
        let mut ranks = job(4, &[("UNISONO_LINKS", links)]);
        // Rank 3 calls nothing: only the abort ends the others' barrier, and reaches rank 3.
        let mut idle = ranks.pop().expect("rank 3");
        ranks[1].tell("abort_behind");
        assert_eq!(ranks[1].hear(), "ok");
        tell_all(&mut ranks, "barrier");
        expect_error(&mut ranks, "ABORTED", &["rank"]);
        // Rank 3 may find all of the first barrier's messages there; it will not find the second's.
        idle.tell("barrier");
        let mut said = idle.hear();
        if said == "ok" {
            idle.tell("barrier");
            said = idle.hear();
        }
        assert!(said.starts_with("error ABORTED peer=1 aborted on rank 1"), "{said}");
        ranks.push(idle);
        all_end(ranks);
    }

    pub(super) fn a_rank_that_never_calls(links: &str) {
        for world in [2, 4] {
            let settings = [("UNISONO_LINKS", links), ("UNISONO_TIMEOUT_MS", "1500")];
            let mut ranks = job(world, &settings);
            let late = world - 1;
            let mut idle = ranks.pop().expect("the last");
            tell_all(&mut ranks, "all_reduce 4000000");
            expect_error(
                &mut ranks,
                "TIMED_OUT",
                &[&format!("peer={late} waited for rank {late} (")],
            );
            // It hears of it when it calls.
            idle.tell("all_reduce 4000000");
            expect_error(std::slice::from_mut(&mut idle), "TIMED_OUT", &[]);
            ranks.push(idle);
            all_end(ranks);
        }
    }

    pub(super) fn different_calls(links: &str) {
        for (odd, words) in [
            ("all_reduce 1001", ["count 1000", "count 1001"]),
            ("all_reduce_f64 1000", ["all_reduce f32", "all_reduce f64"]),
            ("broadcast 1000 0", ["all_reduce", "broadcast"]),
            ("barrier", ["all_reduce", "barrier"]),
            // A size that meets on the board where the other does not.
            ("all_reduce 2000000", ["count 1000", "count 2000000"]),
        ] {
            for world in [2, 4] {
                println!("{odd}, {world} ranks");
                let mut ranks = job(world, &[("UNISONO_LINKS", links)]);
                for (r, proc) in ranks.iter_mut().enumerate() {
                    proc.tell(if r == 1 { odd } else { "all_reduce 1000" });
                }
                expect_error(&mut ranks, "MISMATCH", &[words[0], words[1], "rank 1 made"]);
                all_end(ranks);
            }
        }
    }

    /// Roots that differ: each rank waits for the other, and no message tells.
    pub(super) fn different_roots(links: &str) {
        for count in [10, 3_000_000] {
            let mut ranks = job(2, &[("UNISONO_LINKS", links)]);
            for (r, proc) in ranks.iter_mut().enumerate() {
                proc.tell(&format!("broadcast {count} {}", 1 - r));
            }
            let words = ["rank 0 made", "root 1", "rank 1 made", "root 0"];
            expect_error(&mut ranks, "MISMATCH", &words);
            all_end(ranks);
        }
    }

    /// Two roots that only send hear nothing of each other: who leaves last finds out.
    /// The root has given what it had and is through: that it was another call is still found.
    pub(super) fn sizes_that_differ_though_the_root_is_through(links: &str) {
        for counts in [[10, 1000], [2000, 3_000_000], [2000, 20], [20, 100_000]] {
            let mut ranks = job(2, &[("UNISONO_LINKS", links)]);
            ranks[0].tell(&format!("broadcast {} 0", counts[0]));
            assert_eq!(ranks[0].hear(), "ok");
            ranks[1].tell(&format!("broadcast {} 0", counts[1]));
            let said = ranks[1].hear();
            let both = counts.iter().all(|count| said.contains(&count.to_string()));
            assert!(said.starts_with("error MISMATCH ") && both, "{counts:?}: {said}");
        }
    }

    pub(super) fn calls_that_no_message_compares(links: &str) {
        // Whether rank 1 makes a call as well, and what it hears when it leaves.
        let cases = [
            (true, "among 2 collective calls, rank 0 made others"),
            (false, "rank 0 made 2 collective calls"),
        ];
        for (both, words) in cases {
            let mut ranks = job(2, &[("UNISONO_LINKS", links)]);
            tell_all(&mut ranks, "barrier");
            hear_all(&mut ranks, "ok");
            for (rank, proc) in ranks.iter_mut().take(1 + usize::from(both)).enumerate() {
                proc.tell(&format!("broadcast 10 {rank}"));
                assert_eq!(proc.hear(), "ok");
            }
            ranks[0].tell("destroy");
            assert_eq!(ranks[0].hear(), "ok");
            assert_eq!(ranks[0].ended(), Some(0));
            ranks[1].tell("destroy");
            let said = ranks[1].hear();
            assert!(said.starts_with("error MISMATCH peer=0 ") && said.contains(words), "{said}");
            assert_eq!(ranks[1].ended(), Some(0));
        }
    }

    pub(super) fn idle_ranks_burn_no_cores(links: &str) {
        let mut ranks = job(8, &[("UNISONO_LINKS", links)]);
        let mut sleeper = ranks.pop().expect("rank 7");
        tell_all(&mut ranks, "barrier");
        begun(&mut ranks, "barrier");
        std::thread::sleep(Duration::from_millis(500));
        let burnt = |ranks: &[support::Proc]| -> u64 {
            let ticks = |pid: u32| {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
                let after = stat.rsplit_once(") ").expect("name").1.to_owned();
                let field = |i: usize| {
                    after.split(' ').nth(i).and_then(|f| f.parse::<u64>().ok()).expect("ticks")
                };
                field(11) + field(12)
            };
            ranks.iter().map(|r| ticks(r.pid())).sum()
        };
        let before = burnt(&ranks);
        let started = Instant::now();
        std::thread::sleep(Duration::from_secs(2));
        let spent_ms = (burnt(&ranks) - before) * 10;
        let passed_ms = u64::try_from(started.elapsed().as_millis()).expect("short");
        let bound = ranks.len() as u64 * passed_ms / 10;
        println!("{links}: 7 waiting ranks used {spent_ms} ms of CPU in {passed_ms} ms");
        assert!(spent_ms < bound, "{spent_ms} ms of CPU in {passed_ms} ms, bound {bound}");
        sleeper.tell("barrier");
        ranks.push(sleeper);
        hear_all(&mut ranks, "ok");
        all_end(ranks);
    }

    pub(super) fn eight_ranks_on_few_cores(links: &str) {
        let mut ranks = job(8, &[("UNISONO_LINKS", links)]);
        for work in ["rounds 2 200", "rounds 1000 100", "rounds 200000 10"] {
            tell_all(&mut ranks, work);
            hear_all(&mut ranks, "ok");
        }
        all_end(ranks);
    }
}

#[test]
fn a_missing_rank_is_named() {
    let id = unisono::unique_id().expect("an id");
    let settings = [("UNISONO_INIT_TIMEOUT_MS", "1500")];
    let mut ranks: Vec<_> = [0, 1, 3].map(|r| rank(&id, r, 4, &settings)).into();
    for proc in &mut ranks {
        let said = proc.hear();
        let fits = said.starts_with("error MISSING_RANKS peer=2 ") && said.contains("rank 2");
        assert!(fits, "{}: {said}", proc.name);
        assert_eq!(proc.ended(), Some(3));
    }
}

/// Who cannot take part in a split says so over the parent: nobody waits for it, other colors form,
/// and the parent goes on.
#[test]
fn a_rank_that_cannot_split_fails_its_color_alone() {
    let mut ranks = job(4, &[]);
    for (rank, command) in ["split 0", "split 1", "split 0 full", "split 1"].iter().enumerate() {
        ranks[rank].tell(command);
    }
    for (rank, proc) in ranks.iter_mut().enumerate() {
        let said = proc.hear();
        let start = ["error SYSTEM peer=2 rank 2 ", "ok", "error SYSTEM peer=- ", "ok"][rank];
        assert!(said.starts_with(start), "{}: {said}", proc.name);
    }
    tell_all(&mut ranks, "all_reduce 1000");
    hear_all(&mut ranks, "ok");
    all_end(ranks);
}

/// An id with one byte changed and the checksum made right again.
fn forged(id: &UniqueId, at: usize, value: u8) -> UniqueId {
    let mut bytes = id.encode();
    bytes[at] = value;
    let sum = blake3::hash(&bytes[..112]);
    bytes[112..].copy_from_slice(&sum.as_bytes()[..16]);
    UniqueId::decode(&bytes).expect("a whole id")
}

#[test]
fn a_wrong_key_stays_outside() {
    let id = unisono::unique_id().expect("an id");
    let key = id.encode()[20];
    let thief = forged(&id, 20, key ^ 1);
    let settings = [("UNISONO_INIT_TIMEOUT_MS", "4000")];
    let mut outsider = rank(&thief, 1, 2, &settings);
    let said = outsider.hear();
    assert!(said.starts_with("error UNAUTHENTICATED "), "{said}");
    // The job does not mind.
    let mut ranks = vec![rank(&id, 0, 2, &settings), rank(&id, 1, 2, &settings)];
    hear_all(&mut ranks, "ready");
    all_end(ranks);
}

#[test]
fn an_id_of_another_version_is_refused() {
    let bytes = {
        let mut bytes = unisono::unique_id().expect("an id").encode();
        bytes[6] = 200;
        let sum = blake3::hash(&bytes[..112]);
        bytes[112..].copy_from_slice(&sum.as_bytes()[..16]);
        bytes
    };
    let error = UniqueId::decode(&bytes).expect_err("another version");
    assert_eq!(error.code, Code::VersionMismatch);
    assert!(error.detail.contains(".200"), "{error}");
}

/// Descriptors and shared mappings of this process.
fn belongings() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").expect("fd").count();
    let maps = std::fs::read_to_string("/proc/self/maps").expect("maps");
    (fds, maps.lines().filter(|l| l.contains("memfd:")).count())
}

fn cycle(links: &str) {
    let id = unisono::unique_id().expect("an id");
    let mut config = Config::default();
    config.set_links(links).expect("links");
    std::thread::scope(|scope| {
        for r in 0..2 {
            let (id, config) = (&id, &config);
            scope.spawn(move || {
                let comm = Communicator::init_rank(id, r, 2, config).expect("init");
                let memory = comm.alloc(10_000).expect("memory");
                support::checked_all_reduce(&comm, 1000).expect("all_reduce");
                // SAFETY: nothing uses it.
                unsafe { comm.free(memory) }.expect("free");
                comm.alloc(5000).expect("memory that destroy gives back");
                comm.destroy().expect("destroy");
            });
        }
    });
}

/// In a process of its own, so that no other test opens anything beside it.
#[test]
fn nothing_is_left_behind() {
    if std::env::var("UNISONO_TEST_ALONE").is_err() {
        let mut command = std::process::Command::new(std::env::current_exe().expect("a name"));
        command.args(["--exact", "nothing_is_left_behind", "--nocapture"]);
        let status = command.env("UNISONO_TEST_ALONE", "1").status().expect("runs");
        assert!(status.success());
        return;
    }
    for links in ["shm", "tcp"] {
        // Rendezvous threads end a while after their job: wait for them to have gone.
        let settled = || {
            let until = Instant::now() + support::WATCHDOG;
            let tasks = || std::fs::read_dir("/proc/self/task").expect("task").count();
            while tasks() > 2 {
                assert!(Instant::now() < until, "{} threads stay", tasks());
                std::thread::sleep(Duration::from_millis(20));
            }
            belongings()
        };
        cycle(links);
        let before = settled();
        for _ in 0..50 {
            cycle(links);
        }
        assert_eq!(settled(), before, "{links}: descriptors and segments after 50 cycles");
    }
}

#[test]
fn the_rendezvous_file_goes_with_its_job() {
    let directory = std::env::temp_dir().join(format!("unisono-test-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a directory");
    let start = |rank: usize| {
        let mut command = support::myself("obey");
        command
            .env("XDG_RUNTIME_DIR", &directory)
            .env("UNISONO_RANK", rank.to_string())
            .env("UNISONO_WORLD", "2")
            .env("UNISONO_LOCAL_RANK", rank.to_string())
            .env("UNISONO_LOCAL_WORLD", "2")
            .env("UNISONO_JOB_ID", "file-test");
        support::Proc::start(command, &format!("rank {rank}"))
    };
    let mut ranks = vec![start(0), start(1)];
    hear_all(&mut ranks, "ready");
    let left = |at: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(at.join("unisono")).expect("its directory");
        entries.map(|e| e.expect("an entry").file_name()).collect()
    };
    tell_all(&mut ranks, "all_reduce 10");
    hear_all(&mut ranks, "ok");
    assert_eq!(left(&directory), Vec::<std::ffi::OsString>::new());
    all_end(ranks);
    std::fs::remove_dir_all(&directory).expect("cleaned up");
}

/// Two communicators of one process, used at once from two threads.
#[test]
fn two_communicators_at_once() {
    let id = [unisono::unique_id().expect("an id"), unisono::unique_id().expect("an id")];
    std::thread::scope(|scope| {
        for id in &id {
            for r in 0..2 {
                scope.spawn(move || {
                    let comm = Communicator::init_rank(id, r, 2, &Config::default()).expect("init");
                    for count in [1, 1000, 300_000] {
                        for _ in 0..20 {
                            support::checked_all_reduce(&comm, count).expect("all_reduce");
                        }
                    }
                    comm.destroy().expect("destroy");
                });
            }
        }
    });
}
