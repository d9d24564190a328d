//! The last call that waits: programs make one again and again, and what was made of it stays.

use super::cells::{Cells, Says};
use super::job::{Ground, Job};
use super::script::Rules;
use crate::call::{Call, Guise, Head};
use crate::engine::Known;
use crate::error::Result;
use crate::types::{Collective, Dtype};

/// A call's script and gate.
#[derive(Debug)]
pub(super) struct Hot {
    /// In it, the script.
    job: Job,
    gate: Call,
    /// What the gate exchanges.
    cells: Cells,
    /// The call's name: that in its [`Known::memo`]. Each gets another.
    name: u64,
}

impl Hot {
    pub(super) fn new(world: usize) -> Self {
        Self {
            job: Job::new(world),
            gate: Call::new(Collective::AllReduce, Dtype::U64),
            cells: Cells::new(1),
            name: 1,
        }
    }

    /// Whether the call is that of `known`.
    #[inline]
    pub(super) fn is(&self, known: &Known) -> bool {
        known.memo == self.name
    }

    /// Takes on `call`, which shows the others `head`; its name.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`.
    pub(super) fn make(&mut self, call: &Call, head: Head, rules: Rules<'_>) -> Result<u64> {
        self.name += 1;
        self.job.begin(call, rules)?;
        if rules.gated {
            let mut gate = self.cells.gate(call, rules.me, Says::default());
            // The box is used again.
            gate.guise = match std::mem::take(&mut self.gate.guise) {
                Guise::Of(mut place) => {
                    *place = head;
                    Guise::Of(place)
                }
                _ => Guise::Of(Box::new(head)),
            };
            self.gate = gate;
        }
        Ok(self.name)
    }

    /// Says in the gate what is to be said this time.
    #[inline]
    pub(super) fn say(&mut self, says: Says) {
        self.cells.say(says);
    }

    /// What the ranks have said in the gate.
    #[inline]
    pub(super) fn said(&self) -> Says {
        self.cells.summed()
    }

    pub(super) fn gate(&self) -> &Call {
        &self.gate
    }

    pub(super) fn cells(&self) -> &Cells {
        &self.cells
    }

    /// Carries out the call in calls of MPI that wait; whether it is over.
    ///
    /// # Errors
    /// MPI's own.
    #[inline]
    pub(super) fn run(&mut self, on: Ground<'_>) -> Result<bool> {
        self.job.restart();
        self.job.advance(on, true)?;
        Ok(self.job.is_over())
    }

    /// The job, for what did not end at once; `blank` is used from then on.
    pub(super) fn take_job(&mut self, blank: Job) -> Job {
        self.name += 1;
        std::mem::replace(&mut self.job, blank)
    }
}
