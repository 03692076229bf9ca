//! How a run goes on after a step that diverged, where its spec wants it to.
//!
//! Both ways are functions of the plan and of what checkpoints hold, so that a run that is killed
//! and resumed in between meets the same divergence and goes on in the same way.

use super::together::share_snapshot;
use super::{Session, SessionState};
use crate::record::{Event, Observer, Observers, Recovered};
use crate::spec::OnDivergence;
use crate::train::trainer::Trainer;
use anyhow::{Context, Result};

impl Session<'_> {
    /// Leaves out a step that failed and has changed nothing, where the plan says so; else, or
    /// after too many of them in a row, hands the error back.
    pub(super) fn leave_out(
        &mut self,
        step: u64,
        error: anyhow::Error,
        observers: &mut Observers,
    ) -> Result<()> {
        let train = &self.plan.train;
        let Some(reason) = self.reason_of_divergence(&error) else { return Err(error) };
        if train.on_divergence != OnDivergence::SkipStep {
            return Err(error);
        }
        if self.state.skipped_in_a_row >= train.max_rollbacks {
            return Err(error.context(format!(
                "steps left out in a row before this one: {}, which is train.max_rollbacks",
                self.state.skipped_in_a_row
            )));
        }
        self.state.skipped_in_a_row += 1;
        self.state.skipped_steps += 1;
        observers.on(&Event::Recovered(self.recovered(step, None, reason)))
    }

    /// Goes back to the last good checkpoint, or to the start where there is none yet, with other
    /// batches and lower rates, where the plan says so; else, or after too many times, hands the
    /// error back.
    pub(super) fn roll_back(
        &mut self,
        error: anyhow::Error,
        observers: &mut Observers,
    ) -> Result<()> {
        let train = &self.plan.train;
        let Some(reason) = self.reason_of_divergence(&error) else { return Err(error) };
        if train.on_divergence != OnDivergence::Rollback {
            return Err(error);
        }
        let rollbacks = self.state.rollbacks + 1;
        if rollbacks > train.max_rollbacks {
            return Err(error.context(format!(
                "rollbacks before this: {}, which is train.max_rollbacks",
                self.state.rollbacks
            )));
        }
        let text = self.trainer.text();
        let found = self.by_root(|session| {
            let (snapshot, damaged) = session.checkpoints.load_latest()?;
            for skipped in &damaged {
                session.checkpoints.set_aside(skipped)?;
            }
            let Some(mut snapshot) = snapshot else { return Ok(None) };
            let state: SessionState = serde_json::from_value(snapshot.state.take())
                .context("state.json of the checkpoint to go back to")?;
            Ok(Some((snapshot, state)))
        })?;
        let (trainer, state) = match share_snapshot(self.options.processes, found)? {
            Some((snapshot, state)) => {
                let trainer = Trainer::restored(self.plan, self.options.device, snapshot, text)?;
                (trainer, state)
            }
            None => {
                let vocabulary = self.trainer.model.config().vocab_size;
                let trainer = Trainer::fresh(self.plan, self.options.device, vocabulary, text)?;
                let identity = self.state.identity.clone();
                (trainer, SessionState { identity, ..SessionState::default() })
            }
        };
        self.trainer = trainer.after_rollbacks(rollbacks).shared_over(self.options.processes);
        self.state = SessionState { rollbacks, ..state };
        self.last_loss = None;
        let from = self.state.step;
        // At the next step, since what is of the checkpoint's own step is known before it.
        observers.on(&Event::Recovered(self.recovered(from + 1, Some(from), reason)))
    }

    fn recovered(&self, step: u64, back_to: Option<u64>, reason: String) -> Recovered {
        let SessionState { skipped_steps, rollbacks, .. } = self.state;
        Recovered { step, back_to, skipped_steps, rollbacks, reason }
    }
}
