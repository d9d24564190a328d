//! Starts the ranks: their environments, their places, their processors.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use super::pump::Keyboard;
use crate::cli::launch::{Bind, Launch};
use crate::cli::sys::{self, Ended, Guard, Signals};

/// A rank.
pub(super) struct Member {
    pub(super) child: Child,
    /// Its stdout and stderr while they are open.
    pub(super) pipes: [Option<File>; 2],
    pub(super) ended: Option<Ended>,
}

impl Member {
    /// Makes the pipes that were made for the child ours; the way to its stdin, if there is one.
    fn take_pipes(&mut self) -> io::Result<Option<Keyboard>> {
        let out = self.child.stdout.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        let err = self.child.stderr.take().map(|pipe| File::from(OwnedFd::from(pipe)));
        self.pipes = [out, err];
        for pipe in self.pipes.iter().flatten() {
            sys::set_nonblocking(pipe.as_fd())?;
        }
        let Some(to) = self.child.stdin.take() else {
            return Ok(None);
        };
        let to = File::from(OwnedFd::from(to));
        sys::set_nonblocking(to.as_fd())?;
        let from = File::from(io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Some(Keyboard { from, to, typed: Vec::new() }))
    }
}

/// Starts every rank, or none.
pub(super) fn start(
    launch: &Launch,
    signals: &Signals,
    guard: &mut Guard,
) -> io::Result<(Vec<Member>, Option<Keyboard>)> {
    let mut members: Vec<Member> = Vec::new();
    let mut keyboard: Option<Keyboard> = None;
    let id = job_id()?;
    let cpus = sys::processors();
    for rank in 0..launch.ranks {
        let mut command = command(launch, rank, &id, &cpus, signals);
        let started = command.spawn().and_then(|child| {
            members.push(Member { child, pipes: [None, None], ended: None });
            let member = members.last_mut().expect("just pushed");
            guard.watch(member.child.id())?;
            if let Some(found) = member.take_pipes()? {
                keyboard = Some(found);
            }
            Ok(())
        });
        if let Err(error) = started {
            for member in &mut members {
                sys::signal_group(member.child.id(), sys::SIGKILL);
                let _ = member.child.wait();
            }
            return Err(error);
        }
    }
    Ok((members, keyboard))
}

/// 128 random bits in hexadecimal.
fn job_id() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

fn command(launch: &Launch, rank: u32, id: &str, cpus: &[usize], signals: &Signals) -> Command {
    let mut command = Command::new(&launch.program);
    command.args(&launch.args);
    // A meeting place from outside belongs to another job.
    for name in ["UNISONO_ID", "UNISONO_ROOT", "UNISONO_PORT", "UNISONO_JOB_KEY"] {
        command.env_remove(name);
    }
    command.envs(launch.env.iter().map(|(name, value)| (name, value)));
    let world = launch.ranks.to_string();
    for (name, value) in [
        ("UNISONO_RANK", rank.to_string().as_str()),
        ("UNISONO_WORLD", &world),
        ("UNISONO_LOCAL_RANK", &rank.to_string()),
        ("UNISONO_LOCAL_WORLD", &world),
        ("UNISONO_JOB_ID", id),
    ] {
        command.env(name, value);
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // A process group in the background may not read the terminal, so what is typed is passed on.
    command.stdin(match rank {
        0 if io::stdin().is_terminal() => Stdio::piped(),
        0 => Stdio::inherit(),
        _ => Stdio::null(),
    });
    let share: Vec<usize> = match launch.bind {
        Bind::None => Vec::new(),
        Bind::Core => share(cpus, rank as usize, launch.ranks as usize).to_vec(),
    };
    sys::tie_to_us(&mut command, signals.before(), &share);
    command
}

/// The processors of one rank of `ranks`: consecutive, equally many, at least one.
fn share(cpus: &[usize], rank: usize, ranks: usize) -> &[usize] {
    if cpus.is_empty() {
        return cpus;
    }
    if ranks > cpus.len() {
        let at = rank % cpus.len();
        return &cpus[at..=at];
    }
    &cpus[rank * cpus.len() / ranks..(rank + 1) * cpus.len() / ranks]
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn processors_are_shared_out_evenly() {
        let cpus = [0, 1, 4, 5, 6];
        let of = |ranks: usize| (0..ranks).map(|r| share(&cpus, r, ranks)).collect::<Vec<_>>();
        assert_eq!(of(1), [&cpus[..]]);
        assert_eq!(of(2), [&[0, 1][..], &[4, 5, 6]]);
        assert_eq!(of(7)[5..], [&[0][..], &[1]]);
        assert!(share(&[], 3, 4).is_empty());
    }
}
