//! Jobs over chosen addresses: IPv6, `UNISONO_INTERFACE` as name, address and network; and what
//! `UNISONO_LOG` writes of them. Loopback alone.
#![allow(missing_docs)]

mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{Proc, hear_all, rank_program as program, skip, tell_all};
use unisono::comm::Communicator;
use unisono::config::Config;

#[test]
fn rank_program() {
    program();
}

/// Two ranks over sockets that meet at `root`.
fn commands(root: &str, settings: &[(&str, &str)]) -> Vec<Command> {
    let command = |rank: usize| {
        let mut command = support::myself("obey");
        let rank = rank.to_string();
        command.env("UNISONO_RANK", &rank).env("UNISONO_LOCAL_RANK", &rank);
        command.env("UNISONO_WORLD", "2").env("UNISONO_LOCAL_WORLD", "2");
        command.env("UNISONO_ROOT", root).env("UNISONO_JOB_KEY", "a key for this test");
        command.env("UNISONO_LINKS", "tcp").env_remove("UNISONO_INTERFACE");
        command.env_remove("UNISONO_LOG").envs(settings.iter().copied());
        command
    };
    (0..2).map(command).collect()
}

fn start(commands: Vec<Command>) -> Vec<Proc> {
    let numbered = commands.into_iter().enumerate();
    numbered.map(|(r, command)| Proc::start(command, &format!("rank {r}"))).collect()
}

fn end(mut ranks: Vec<Proc>) {
    tell_all(&mut ranks, "destroy");
    hear_all(&mut ranks, "ok");
    ranks.iter_mut().for_each(|proc| assert_eq!(proc.ended(), Some(0), "{}", proc.name));
}

/// A port of this address that was free a moment ago.
fn free(address: &str) -> std::io::Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

/// `127.0.0.1:PORT`, free a moment ago.
fn root() -> String {
    format!("127.0.0.1:{}", free("127.0.0.1").expect("a port"))
}

/// Has the ranks make all kinds of calls; their notes.
fn work(ranks: &mut [Proc]) -> Vec<String> {
    hear_all(ranks, "ready");
    for count in [1, 1000, 200_003] {
        tell_all(ranks, &format!("calls {count}"));
        hear_all(ranks, "ok");
    }
    tell_all(ranks, "notes");
    ranks.iter_mut().map(Proc::hear).collect()
}

#[test]
fn a_job_meets_and_works_over_ipv6() {
    let port = match free("::1") {
        Ok(port) => port,
        Err(error) => return skip("a_job_meets_and_works_over_ipv6", &format!("::1: {error}")),
    };
    let mut ranks = start(commands(&format!("[::1]:{port}"), &[("UNISONO_INTERFACE", "::1")]));
    let notes = work(&mut ranks);
    for (rank, notes) in notes.iter().enumerate() {
        let peer = format!("rank {} at [::1]:", 1 - rank);
        assert!(notes.contains(&peer) && notes.contains("asked for by \"::1\": "), "{notes}");
    }
    end(ranks);
}

#[test]
fn the_interface_is_chosen_by_name_address_and_network() {
    for (asked, four) in
        [("lo", false), ("127.0.0.1", true), ("127.0.0.0/8", true), ("nothing0,127.0.0.0/8", true)]
    {
        let mut ranks = start(commands(&root(), &[("UNISONO_INTERFACE", asked)]));
        for (rank, notes) in work(&mut ranks).iter().enumerate() {
            let reason = format!("asked for by \"{asked}\": ");
            assert!(notes.contains(&reason), "{asked}: {notes}");
            let at = |host: &str| notes.contains(&format!("rank {} at {host}:", 1 - rank));
            assert!(at("127.0.0.1") || (!four && at("[::1]")), "{asked}: {notes}");
            assert_eq!(notes.contains("nothing fits nothing0"), asked.starts_with("nothing0"));
        }
        end(ranks);
    }
}

#[test]
fn an_interface_that_is_not_there_is_named() {
    for (asked, code) in [
        ("nothing0", "NO_ADDRESS"),
        ("203.0.113.77", "NO_ADDRESS"),
        ("127.0.0.0/33", "INVALID_ENVIRONMENT"),
    ] {
        let mut ranks = start(commands(&root(), &[("UNISONO_INTERFACE", asked)]));
        for proc in &mut ranks {
            let said = proc.hear();
            assert!(said.starts_with(&format!("error {code} ")) && said.contains(asked), "{said}");
            assert!(said.contains("UNISONO_INTERFACE"), "{said}");
            assert_eq!(proc.ended(), Some(3));
        }
    }
}

#[test]
fn a_program_chooses_the_interface_too() {
    let id = unisono::unique_id().expect("an id");
    let mut config = Config { interface: Some("127.0.0.0/8".to_owned()), ..Config::default() };
    config.set_links("tcp").expect("links");
    std::thread::scope(|scope| {
        for rank in 0..2 {
            let (id, config) = (&id, &config);
            scope.spawn(move || {
                let comm = Communicator::init_rank(id, rank, 2, config).expect("init");
                support::checked_all_reduce(&comm, 1000).expect("all_reduce");
                let peer = format!("rank {} at 127.0.0.1:", 1 - rank);
                let found = comm.notes().iter().any(|note| note.starts_with(&peer));
                assert!(found, "{:?}", comm.notes());
                comm.destroy().expect("destroy");
            });
        }
    });
}

/// What the ranks of a job write to standard error of the library's.
struct Written(PathBuf);

impl Written {
    /// The same commands, with their standard error in files.
    fn keep(name: &str, commands: Vec<Command>) -> (Self, Vec<Command>) {
        let folder = format!("unisono-log-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let kept = Self(folder);
        let to_file = |(rank, command): (usize, Command)| {
            let file = kept.file(rank);
            let file = file.to_str().expect("text");
            support::within(&["sh", "-c", "exec \"$@\" 2>\"$0\"", file], &command)
        };
        let commands = commands.into_iter().enumerate().map(to_file).collect();
        (kept, commands)
    }

    fn file(&self, rank: usize) -> PathBuf {
        self.0.join(rank.to_string())
    }

    /// The lines of a rank, as levels and texts.
    fn lines(&self, rank: usize) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(Path::new(&self.file(rank))).expect("its output");
        let mine = text.lines().filter_map(|line| line.strip_prefix("unisono "));
        let split = |line: &str| {
            let (level, text) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
            let who = format!("rank {rank} of 2: ");
            assert!(text.starts_with(&who), "{line}");
            (level.to_owned(), text[who.len()..].to_owned())
        };
        mine.map(split).collect()
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A job with a warning (its key is weak) whose rank 1 exits; the levels that rank 0 wrote.
fn levels(level: Option<&str>) -> Vec<(String, String)> {
    let settings: Vec<_> = level.map(|level| ("UNISONO_LOG", level)).into_iter().collect();
    let mut commands = commands(&root(), &settings);
    for command in &mut commands {
        command.env_remove("UNISONO_JOB_KEY").env("UNISONO_INTERFACE", "127.0.0.1");
    }
    let (written, commands) = Written::keep(level.unwrap_or("default"), commands);
    let mut ranks = start(commands);
    hear_all(&mut ranks, "ready");
    let mut left = ranks.remove(1);
    left.tell("exit");
    assert_eq!(left.ended(), Some(0));
    ranks[0].tell("barrier");
    let said = ranks[0].hear();
    assert!(said.starts_with("error PEER_LOST peer=1 "), "{said}");
    ranks[0].tell("destroy");
    ranks[0].hear();
    assert_eq!(ranks[0].ended(), Some(0));
    written.lines(0)
}

#[test]
fn the_log_says_as_much_as_is_asked_for() {
    let of = |lines: &[(String, String)], level: &str| -> Vec<String> {
        lines.iter().filter(|(l, _)| l == level).map(|(_, text)| text.clone()).collect()
    };
    assert_eq!(levels(Some("off")), []);
    for (level, warns, informs) in [
        (Some("error"), false, false),
        (Some("warn"), true, false),
        (None, true, false),
        (Some("info"), true, true),
    ] {
        let lines = levels(level);
        let errors = of(&lines, "error");
        assert!(errors.len() == 1 && errors[0].contains("PEER_LOST"), "{level:?}: {lines:?}");
        let warnings = of(&lines, "warn");
        assert_eq!(warnings.len(), usize::from(warns), "{level:?}: {lines:?}");
        assert!(warnings.iter().all(|w| w.contains("UNISONO_JOB_KEY")), "{warnings:?}");
        let infos = of(&lines, "info");
        assert_eq!(!infos.is_empty(), informs, "{level:?}: {lines:?}");
        if informs {
            for words in ["rank and world from ", "rank 1 at 127.0.0.1:"] {
                assert!(infos.iter().any(|i| i.contains(words)), "{words}: {infos:?}");
            }
        }
    }
}
