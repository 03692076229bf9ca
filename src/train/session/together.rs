//! What the processes of one run do together: they begin with the same state, stop at the same
//! step, and make sure now and then that they still hold the same parameters.
//!
//! Only rank 0 touches the run's folder. All others get its checkpoint from it, not from a disk, so
//! that machines need not share one. Whatever rank 0 alone can fail at is agreed on before anyone
//! goes on.

use super::{Session, SessionState};
use crate::checkpoint::Snapshot;
use crate::error::Failure;
use crate::parallel::{Communicator, agree};
use crate::spec::Plan;
use crate::train::memory;
use anyhow::{Context, Result, bail};

/// What asked for a clean stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A signal of this number.
    BySignal(i32),
    /// The time that `--stop-within` gave.
    ByDeadline,
}

/// What a step came to on all processes together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OfAllProcesses {
    /// Bytes of gradient sums and weights that they sent.
    pub wire_bytes: u64,
    /// Largest resident memory of one of them so far, in bytes; 0 where no system tells.
    pub largest_peak: u64,
}

/// Stands among the numbers of signals for the deadline.
const DEADLINE: i32 = -1;

/// Refuses more processes than there are micro-batches.
///
/// # Errors
/// [`Failure::Usage`] with the remedy.
pub fn refuse_idle_processes(plan: &Plan, world: usize) -> Result<()> {
    let micro_batches = plan.train.gradient_accumulation_steps;
    if world <= micro_batches {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "train.gradient_accumulation_steps: is {micro_batches}, but {world} processes share the \
         micro-batches of a step; set at least {world}, with a train.batch_size (now {}) smaller \
         by as much to keep the step's batch, or start at most {micro_batches} processes",
        plan.train.batch_size
    ))
    .into())
}

/// Refuses more processes than there are micro-batches, and warns where some have less to do.
pub(super) fn check_world(plan: &Plan, processes: &dyn Communicator) -> Result<()> {
    let (world, micro_batches) = (processes.world(), plan.train.gradient_accumulation_steps);
    agree(processes, refuse_idle_processes(plan, world))?;
    if micro_batches % world != 0 && processes.is_root() {
        tracing::warn!(
            "{micro_batches} micro-batches a step over {world} processes: some of them wait in \
             every step; a multiple of {world} keeps all of them busy"
        );
    }
    Ok(())
}

/// The snapshot of rank 0 on all processes.
///
/// # Errors
/// If the connection fails or the snapshot cannot be written as bytes.
pub(super) fn share_snapshot(
    processes: &dyn Communicator,
    own: Option<(Snapshot, SessionState)>,
) -> Result<Option<(Snapshot, SessionState)>> {
    if !processes.is_shared() {
        return Ok(own);
    }
    let bytes = || -> Result<Vec<u8>> {
        let Some((snapshot, state)) = &own else { return Ok(Vec::new()) };
        Snapshot { state: serde_json::to_value(state)?, ..snapshot.clone() }.to_bytes()
    };
    let bytes = agree(processes, bytes())?;
    let bytes = processes.broadcast_any(0, bytes)?;
    if processes.is_root() || bytes.is_empty() {
        return Ok(own);
    }
    let mut snapshot = Snapshot::from_bytes(&bytes)?;
    let state = serde_json::from_value(snapshot.state.take()).context("the snapshot of rank 0")?;
    Ok(Some((snapshot, state)))
}

/// Refuses to train where a process has another text or hash than rank 0.
///
/// # Errors
/// [`Failure::Usage`] with both hashes.
pub(super) fn check_same(processes: &dyn Communicator, what: &str, hash: &str) -> Result<()> {
    let all = processes.gather(hash.as_bytes())?;
    let theirs = all.first().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let theirs = theirs.unwrap_or_default();
    let check = if theirs == hash {
        Ok(())
    } else {
        Err(Failure::Usage(format!(
            "{what} of this process ({hash}) is not that of rank 0 ({theirs}); give all machines \
             the same files, the same binary and processors of one kind"
        ))
        .into())
    };
    agree(processes, check)
}

impl Session<'_> {
    /// Whether this process writes the run's files.
    pub(super) fn writes(&self) -> bool {
        self.options.processes.is_root()
    }

    /// What asked any process to stop; that of the lowest rank, if several were.
    pub(super) fn asked(&self) -> Result<Option<Asked>> {
        let is_due = self.deadline.is_due(self.state.step + 1);
        let own = match self.options.stop.requested() {
            None if is_due => DEADLINE,
            signal => signal.unwrap_or(0),
        };
        let all = match self.options.processes.is_shared() {
            true => self.options.processes.gather_f64(&[f64::from(own)])?,
            false => vec![vec![f64::from(own)]],
        };
        let first = all.iter().flatten().map(|asked| *asked as i32).find(|asked| *asked != 0);
        Ok(first.map(|asked| match asked {
            DEADLINE => Asked::ByDeadline,
            signal => Asked::BySignal(signal),
        }))
    }

    /// What a logged step came to on all processes; none for one process.
    pub(super) fn of_all_processes(&self, bytes_sent: u64) -> Result<Option<OfAllProcesses>> {
        if !self.options.processes.is_shared() {
            return Ok(None);
        }
        let own = [bytes_sent as f64, self.own_peak().unwrap_or(0) as f64];
        let all = self.options.processes.gather_f64(&own)?;
        let of = |place: usize| all.iter().filter_map(move |one| one.get(place).copied());
        Ok(Some(OfAllProcesses {
            wire_bytes: of(0).sum::<f64>() as u64,
            largest_peak: of(1).fold(0.0, f64::max) as u64,
        }))
    }

    /// Largest resident memory of each process so far, in bytes and by rank; empty where one of
    /// their systems does not tell.
    pub(super) fn peaks(&self) -> Result<Vec<u64>> {
        let own = self.own_peak();
        if !self.options.processes.is_shared() {
            return Ok(own.into_iter().collect());
        }
        let all = self.options.processes.gather_f64(&[own.unwrap_or(0) as f64])?;
        let all: Vec<u64> = all.iter().flatten().map(|peak| *peak as u64).collect();
        Ok(if all.contains(&0) { Vec::new() } else { all })
    }

    fn own_peak(&self) -> Option<u64> {
        memory::measured(self.options.device).get("peak").copied()
    }

    /// Refuses to go on where processes hold other parameters than rank 0.
    ///
    /// They compute the same from the same sums, so that this happens only where their machines or
    /// programs differ.
    pub(super) fn ensure_same_parameters(&self) -> Result<()> {
        if !self.options.processes.is_shared() {
            return Ok(());
        }
        let what = format!("the model after step {}", self.state.step);
        check_same(self.options.processes, &what, &self.trainer.hash_of_parameters()?)
    }

    /// What rank 0 does while the others wait; its failure is that of all.
    pub(super) fn by_root<T: Default>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let own = if self.writes() { work(self) } else { Ok(T::default()) };
        agree(self.options.processes, own)
    }

    /// Hands a result on, and its error as one that is known to this process alone: nothing the
    /// others could go on from.
    pub(super) fn of_this_process<T>(&self, own: Result<T>) -> Result<T> {
        match own {
            Err(error) if self.options.processes.is_shared() => {
                bail!("rank {}: {error:#}", self.options.processes.rank())
            }
            own => own,
        }
    }
}
