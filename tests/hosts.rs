//! Worlds of several hosts: ranks of one host share memory, the others meet over sockets.
//!
//! A host is a network namespace, which is what ranks compare before they try to share memory. The
//! test enters a namespace of its own first (`unshare`, as root or as an ordinary user where the
//! system lets them), so that it touches nothing of the machine's network and everything it made
//! ends with it.
#![allow(missing_docs)]

mod support;

use std::io::Read;
use std::process::{Child, Command, Stdio};

use support::{Proc, hear_all, rank_program as program, skip, tell_all};

#[test]
fn rank_program() {
    program();
}

/// Set inside the test's own namespaces.
const INSIDE: &str = "UNISONO_TEST_INSIDE";

/// Whether the test runs in namespaces of its own; if not, a copy of it does, or it is skipped.
fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let probe = "ip link set lo up && ip link add lan0 type bridge \
                 && ip link add ve0 type veth peer name ve1 \
                 && ip link set ve0 master lan0 && exec unshare -n true";
    let tried = Command::new("unshare").args(["-rn", "sh", "-c", probe]).output();
    let why = match tried {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).replace('\n', "; ")),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        skip(test, &format!("no network namespaces with a bridge can be made here: {why}"));
        return false;
    }
    let mut copy = Command::new(std::env::current_exe().expect("an own name"));
    copy.args(["--exact", test, "--nocapture"]);
    let mut copy = support::within(&["unshare", "-rn"], &copy);
    assert!(copy.env(INSIDE, "1").status().expect("runs").success(), "{test}, in namespaces");
    false
}

#[track_caller]
fn shell(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().expect("sh");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A host: a process that keeps its namespace.
struct Host {
    keeper: Child,
}

impl Host {
    fn new(number: usize) -> Self {
        let mut command = Command::new("unshare");
        command.args(["-n", "sh", "-c", "echo; exec cat"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut keeper = command.spawn().expect("unshare");
        // A line says that the namespace is there.
        let mut line = [0];
        keeper.stdout.as_mut().expect("piped").read_exact(&mut line).expect("a namespace");
        let (pid, address) = (keeper.id(), number + 1);
        shell(&format!(
            "ip link add ve{number} type veth peer name eth0 netns {pid}
             ip link set ve{number} master lan0 up
             nsenter -t {pid} -n ip link set lo up
             nsenter -t {pid} -n ip address add 10.77.0.{address}/24 dev eth0
             nsenter -t {pid} -n ip link set eth0 up"
        ));
        Self { keeper }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

/// A formed job with so many ranks on each host, in a row.
fn job(hosts: &[Host], sizes: &[usize], settings: &[(&str, &str)]) -> Vec<Proc> {
    let id = unisono::unique_id().expect("an id");
    let world = sizes.iter().sum();
    let places = sizes.iter().zip(hosts).flat_map(|(&size, host)| vec![host; size]);
    let start = |(r, host): (usize, &Host)| {
        let namespace = format!("--net=/proc/{}/ns/net", host.keeper.id());
        let command = support::rank_command(&id, r, world, settings);
        let command = support::within(&["nsenter", &namespace], &command);
        Proc::start(command, &format!("rank {r} of {sizes:?}"))
    };
    let mut ranks: Vec<Proc> = places.enumerate().map(start).collect();
    hear_all(&mut ranks, "ready");
    ranks
}

fn end(mut ranks: Vec<Proc>) {
    tell_all(&mut ranks, "destroy");
    hear_all(&mut ranks, "ok");
    ranks.iter_mut().for_each(|proc| assert_eq!(proc.ended(), Some(0), "{}", proc.name));
}

/// Every rank shares memory with those of its host and has sockets to all others.
fn mixed(ranks: &mut [Proc], sizes: &[usize]) {
    let world = ranks.len();
    tell_all(ranks, "notes");
    let mine = sizes.iter().flat_map(|&size| vec![size; size]);
    for (proc, size) in ranks.iter_mut().zip(mine) {
        let said = proc.hear();
        let shared = format!("{size} of {world} ranks share memory here");
        assert!(said.contains(&shared), "{}: {said}", proc.name);
        let far = said.matches(" at 10.77.0.").count();
        assert_eq!(far, world - size, "{}: {said}", proc.name);
    }
}

/// The bits of an ordered sum, the same on all ranks.
fn bits(ranks: &mut [Proc], count: usize) -> String {
    tell_all(ranks, &format!("ordered {count}"));
    let said: Vec<String> = ranks.iter_mut().map(Proc::hear).collect();
    assert!(said[0].starts_with("bits ") && said.iter().all(|s| *s == said[0]), "{said:?}");
    said[0].clone()
}

#[test]
fn hosts_of_several_ranks_share_memory_inside_and_meet_over_sockets() {
    if !inside("hosts_of_several_ranks_share_memory_inside_and_meet_over_sockets") {
        return;
    }
    shell(
        "ip link set lo up; ip link add lan0 type bridge; ip address add 10.77.0.100/24 dev lan0
         ip link set lan0 up",
    );
    let hosts: Vec<Host> = (0..3).map(Host::new).collect();
    const COUNTS: [usize; 2] = [1001, 70_001];
    for (world, layouts) in [(4, &[&[4][..], &[2, 2], &[3, 1]][..]), (5, &[&[5], &[2, 1, 2]])] {
        let mut orders = Vec::new();
        for sizes in layouts {
            for algorithm in [None, Some(("UNISONO_ALGORITHM", "hierarchical"))] {
                let mut ranks = job(&hosts, sizes, algorithm.as_slice());
                mixed(&mut ranks, sizes);
                for count in [0, 1, 1000, 100_003] {
                    tell_all(&mut ranks, &format!("calls {count}"));
                    hear_all(&mut ranks, "ok");
                }
                end(ranks);
                let settings: Vec<_> =
                    algorithm.into_iter().chain([("UNISONO_DETERMINISTIC", "1")]).collect();
                let mut ranks = job(&hosts, sizes, &settings);
                orders.push(COUNTS.map(|count| bits(&mut ranks, count)));
                end(ranks);
            }
        }
        assert!(orders.iter().all(|o| *o == orders[0]), "{world} ranks: {orders:?}");
    }
    // The data shows an order: without the mode some layout adds otherwise.
    let mut ranks = job(&hosts, &[2, 1, 2], &[("UNISONO_ALGORITHM", "hierarchical")]);
    let other = bits(&mut ranks, COUNTS[0]);
    end(ranks);
    let mut ranks = job(&hosts, &[5], &[("UNISONO_DETERMINISTIC", "1")]);
    assert_ne!(bits(&mut ranks, COUNTS[0]), other, "the data hides the order");
    end(ranks);
}
