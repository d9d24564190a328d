//! Plans and steps as text, for people, errors and golden tests.
//!
//! A plan is a header line, one line per group, then per lane one numbered line per step. The form
//! is stable: golden files hold it.

use std::fmt;

use super::{NO_STEP, Plan, Region, Step, Verb, flag};

impl Verb {
    /// Every verb, in numeric order.
    pub const ALL: &'static [Self] = &[
        Self::Send,
        Self::Recv,
        Self::Copy,
        Self::Reduce,
        Self::RecvReduce,
        Self::RecvReduceSend,
        Self::RecvCopySend,
        Self::Fold,
        Self::Post,
        Self::Await,
    ];

    /// The name used in the text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Recv => "recv",
            Self::Copy => "copy",
            Self::Reduce => "reduce",
            Self::RecvReduce => "recv_reduce",
            Self::RecvReduceSend => "recv_reduce_send",
            Self::RecvCopySend => "recv_copy_send",
            Self::Fold => "fold",
            Self::Post => "post",
            Self::Await => "await",
        }
    }
}

impl Region {
    /// The name used in the text form.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input => "input",
            Self::Output => "output",
            Self::Work => "work",
            Self::PeerInput => "peer.input",
            Self::PeerOutput => "peer.output",
            Self::Stage => "stage",
            Self::PeerStage => "peer.stage",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// `region[chunk]`, or `region[first..end]` for a range.
struct Chunks(Region, u32, u32);

impl fmt::Display for Chunks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(region, first, chunks) = *self;
        match chunks {
            1 => write!(f, "{}[{first}]", region.name()),
            _ => write!(f, "{}[{first}..{}]", region.name(), u64::from(first) + u64::from(chunks)),
        }
    }
}

/// Whom the step talks to.
fn peers(step: &Step) -> String {
    let peer_region = step.source.is_peer() || step.target.is_peer();
    match step.verb {
        Verb::Fold => format!("group {}", step.from),
        Verb::Copy if peer_region => format!("peer {}", step.from),
        Verb::Await => format!("from {}", step.from),
        _ if step.receives() && step.sends() => format!("from {} to {}", step.from, step.to),
        _ if step.receives() => format!("from {}", step.from),
        _ if step.sends() => format!("to {}", step.to),
        _ => String::new(),
    }
}

/// What moves where, and the remarks.
fn data(step: &Step, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let form = |wide| if wide { "message(wide)" } else { "message" };
    let (incoming, outgoing) = (form(step.has(flag::WIDE)), form(step.sends_wide()));
    let source = Chunks(step.source, step.source_chunk, step.chunks);
    let target = Chunks(step.target, step.target_chunk, step.chunks);
    match step.verb {
        Verb::Send => write!(f, "{source} -> {outgoing}")?,
        Verb::Recv => write!(f, "{incoming} -> {target}")?,
        Verb::Copy => write!(f, "{source} -> {target}")?,
        Verb::Reduce => write!(f, "{source} + {target} -> {target}")?,
        Verb::RecvReduce | Verb::RecvReduceSend => {
            if step.has(flag::INCOMING_FIRST) {
                write!(f, "{incoming} + {source} -> ")?;
            } else {
                write!(f, "{source} + {incoming} -> ")?;
            }
            match (step.verb, step.target) {
                (Verb::RecvReduceSend, Region::None) => f.write_str(outgoing)?,
                (Verb::RecvReduceSend, _) => write!(f, "{target}, {outgoing}")?,
                _ => write!(f, "{target}")?,
            }
        }
        Verb::RecvCopySend => write!(f, "{incoming} -> {target}, {outgoing}")?,
        Verb::Fold if step.source == Region::PeerInput => {
            write!(f, "every {source} -> {target}")?;
            if step.has(flag::SPREAD) {
                let outputs = Chunks(Region::PeerOutput, step.target_chunk, step.chunks);
                write!(f, ", every {outputs}")?;
            }
        }
        Verb::Fold if step.source == Region::PeerStage => {
            let own = Chunks(Region::Input, step.source_chunk, step.chunks);
            write!(f, "{own} + every {source} -> {target}")?;
            if step.has(flag::SPREAD) {
                write!(f, ", {}", Chunks(Region::Stage, step.source_chunk, step.chunks))?;
            }
        }
        Verb::Fold => write!(f, "{source} + every {incoming} -> {target}")?,
        Verb::Post | Verb::Await => write!(f, "phase {}", step.source_chunk)?,
    }
    remarks(step, f)
}

/// Stages and what the step waits for.
fn remarks(step: &Step, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (bit, remark) in [
        (flag::PREPARE, ", prepared"),
        (flag::FINISH, ", finished"),
        (flag::SETTLE, ", once posts of it have left"),
    ] {
        if step.has(bit) {
            f.write_str(remark)?;
        }
    }
    if step.wait_step != NO_STEP {
        write!(f, ", after lane {} step {}", step.wait_lane, step.wait_step)?;
    }
    Ok(())
}

/// The verb padded to `verb` columns, the peers padded to `peer`, then the data.
fn line(step: &Step, verb: usize, peer: usize, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let peers = peers(step);
    write!(f, "{:<verb$}  ", step.verb)?;
    if peer.max(peers.len()) > 0 {
        write!(f, "{peers:<peer$}  ")?;
    }
    data(step, f)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        line(self, 0, 0, f)
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        write!(
            f,
            "{} {}, rank {} of {}",
            key.collective,
            key.algorithm.name(),
            key.rank,
            key.world
        )?;
        if key.collective.rooted() {
            write!(f, ", root {}", key.root)?;
        } else if key.collective.point_to_point() {
            write!(f, ", peer {}", key.root)?;
        }
        if key.prepared {
            f.write_str(", prepared")?;
        }
        write!(
            f,
            ": {}, {} of scratch, {}, {}",
            count(self.chunks as usize, "chunk"),
            self.work_chunks,
            count(self.lanes(), "lane"),
            count(self.steps.len(), "step")
        )?;
        if self.direct {
            f.write_str(", direct")?;
        }
        if self.stage_chunks > 0 {
            write!(f, ", {} staged", self.stage_chunks)?;
        }
        writeln!(f)?;
        for (number, group) in self.groups.iter().enumerate() {
            write!(f, "group {number}:")?;
            for rank in group {
                write!(f, " {rank}")?;
            }
            writeln!(f)?;
        }
        let verb = self.steps.iter().map(|s| s.verb.name().len()).max().unwrap_or(0);
        let peer = self.steps.iter().map(|s| peers(s).len()).max().unwrap_or(0);
        for lane in 0..self.lanes() {
            if self.lanes() > 1 {
                writeln!(f, "lane {lane}:")?;
            }
            let steps = self.lane(lane);
            let digits = steps.len().saturating_sub(1).to_string().len();
            for (index, step) in steps.iter().enumerate() {
                write!(f, "{index:>digits$}  ")?;
                line(step, verb, peer, f)?;
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use crate::plan::samples;

    /// Every sample world as text is what its golden file says. After a wanted change of the text,
    /// run the tests once with `UNISONO_UPDATE_GOLDEN=1` and read the difference.
    #[test]
    fn plans_read_as_their_goldens() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/plan/testdata");
        for (name, plans, _) in samples::all() {
            let text: Vec<String> = plans.iter().map(ToString::to_string).collect();
            let text = text.join("\n");
            let file = folder.join(format!("{}.txt", name.replace(' ', "_")));
            if std::env::var_os("UNISONO_UPDATE_GOLDEN").is_some() {
                fs::write(&file, &text).unwrap();
            }
            let golden = fs::read_to_string(&file).unwrap_or_default();
            assert_eq!(text, golden, "{}", file.display());
        }
    }
}
