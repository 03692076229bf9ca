//! Equal budgets: how many steps, or which rank, make a run spend what another spends.

use super::sweep_spec::{Budget, Equal};
use crate::account::Ledger;
use crate::spec::{Plan, Target, WeightForm};
use anyhow::{Result, bail, ensure};
use std::collections::BTreeMap;

/// What a budget needs to know about plans that only the data or the machine can tell.
pub trait Solver {
    /// Tokens in the vocabulary of a plan.
    ///
    /// # Errors
    /// If the data cannot be prepared.
    fn vocabulary_size(&mut self, plan: &Plan) -> Result<usize>;

    /// Seconds of a training step of a plan, here.
    ///
    /// # Errors
    /// If a step fails.
    fn seconds_per_step(&mut self, plan: &Plan) -> Result<f64>;

    /// How much a plan spends.
    ///
    /// # Errors
    /// As for the questions above.
    fn spending(&mut self, equal: Equal, plan: &Plan) -> Result<f64> {
        let steps = plan.train.max_steps.0 as f64;
        Ok(match equal {
            Equal::Tokens(_) => plan.total_tokens as f64,
            Equal::Parameters(_) => {
                Ledger::new(plan, self.vocabulary_size(plan)?, 1).parameters.trained() as f64
            }
            Equal::Flops(_) => {
                steps * Ledger::new(plan, self.vocabulary_size(plan)?, 1).flops_per_step() as f64
            }
            Equal::Seconds(_) => steps * self.seconds_per_step(plan)?,
        })
    }

    /// The setting that makes a plan spend this much; `None` if it has nothing to set (a dense
    /// network has no rank).
    ///
    /// Steps are the nearest whole number, so that tokens, FLOPs and seconds are met within half a
    /// step; the rank, one for all targets, is the largest whose parameters are within the budget.
    ///
    /// # Errors
    /// If even one step, or rank 1, is above the budget.
    fn solve(&mut self, equal: Equal, amount: f64, plan: &Plan) -> Result<Option<String>> {
        if let Equal::Parameters(_) = equal {
            let vocabulary = self.vocabulary_size(plan)?;
            return rank_within(amount, plan, vocabulary);
        }
        let per_step = self.spending(equal, plan)? / plan.train.max_steps.0 as f64;
        let steps = (amount / per_step).round();
        ensure!(
            steps >= 1.0,
            "a step spends {per_step:.3e}, more than the budget of {amount:.3e}; raise the budget \
             or shrink the run"
        );
        Ok(Some(format!("train.max_steps={steps:.0}")))
    }
}

impl Equal {
    /// How much of it.
    pub fn budget(self) -> Budget {
        let (Equal::Tokens(budget)
        | Equal::Parameters(budget)
        | Equal::Flops(budget)
        | Equal::Seconds(budget)) = self;
        budget
    }
}

fn rank_within(amount: f64, plan: &Plan, vocabulary: usize) -> Result<Option<String>> {
    let form = plan.model.weights.values().find(|form| form.rank().is_some());
    let key = match form {
        None | Some(WeightForm::Dense) => return Ok(None),
        Some(WeightForm::LowRank { .. }) => "model.weights.low_rank",
        Some(WeightForm::Factored { .. }) => "model.weights.factored",
        Some(WeightForm::Adapter { .. }) => "model.weights.adapter",
    };
    let parameters = |rank: usize| {
        let mut plan = plan.clone();
        plan.model.weights = with_rank(&plan.model.weights, rank);
        Ledger::new(&plan, vocabulary, 1).parameters.trained() as f64
    };
    let largest =
        plan.model.weights.keys().map(|target| smaller_side(plan, *target)).min().unwrap_or(1);
    match (1..=largest).rev().find(|rank| parameters(*rank) <= amount) {
        Some(rank) => Ok(Some(format!("{key}.rank={rank}"))),
        None => bail!(
            "rank 1 has {:.0} parameters, more than the budget of {amount:.0}; raise the budget",
            parameters(1)
        ),
    }
}

fn smaller_side(plan: &Plan, target: Target) -> usize {
    let (rows, columns) = plan.model.shape(target);
    rows.min(columns)
}

fn with_rank(weights: &BTreeMap<Target, WeightForm>, rank: usize) -> BTreeMap<Target, WeightForm> {
    let change = |form: &WeightForm| match form {
        WeightForm::Dense => WeightForm::Dense,
        WeightForm::LowRank { .. } => WeightForm::LowRank { rank },
        WeightForm::Factored { form, .. } => WeightForm::Factored { rank, form: *form },
        WeightForm::Adapter { form, alpha, .. } => {
            WeightForm::Adapter { rank, form: *form, alpha: *alpha }
        }
    };
    weights.iter().map(|(target, form)| (*target, change(form))).collect()
}
