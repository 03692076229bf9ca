//! When and how low-rank weights change their ranks (algorithms.md §4).

mod budget;
mod cycle;

pub use budget::{Candidate, allocate};
pub use cycle::{Cut, CycleEvent, RankCycle, ramp};

use crate::spec::{RampShape, RankScore, Target};
use std::collections::BTreeMap;

/// How the ranks of a network change over a run.
#[derive(Clone, Debug, PartialEq)]
pub enum RankSchedule {
    /// Ranks stay.
    Fixed,
    /// Grow, settle, truncate each weight by tolerance, over and over.
    Tolerance(ToleranceSchedule),
    /// Grow, settle, cut all weights together to a budget of parameters, over and over.
    Budget(BudgetSchedule),
}

/// Tolerance-driven ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct ToleranceSchedule {
    /// When.
    pub cycle: RankCycle,
    /// The way from τ to the last τ.
    pub shape: RampShape,
    /// Tolerances and bounds of every target that has low-rank weights.
    pub targets: BTreeMap<Target, Tolerance>,
}

/// Tolerance and bounds of one target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Relative Frobenius tolerance τ at the first cut.
    pub tau: f64,
    /// The same at the last cut.
    pub final_tau: f64,
    /// Bounds.
    pub bounds: RankBounds,
}

/// Budget-driven ranks.
#[derive(Clone, Debug, PartialEq)]
pub struct BudgetSchedule {
    /// When.
    pub cycle: RankCycle,
    /// The way from the budget at the start to the one at the end.
    pub shape: RampShape,
    /// What a direction is worth.
    pub score: RankScore,
    /// Numbers that all low-rank weights together store at the start.
    pub initial_parameters: u64,
    /// The most they may store from the last cut on.
    pub final_parameters: u64,
    /// Bounds of every target that has low-rank weights.
    pub targets: BTreeMap<Target, RankBounds>,
}

/// Smallest and largest rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankBounds {
    /// Smallest rank.
    pub min_rank: usize,
    /// Largest rank.
    pub max_rank: usize,
}

/// What a step does to the rank of one weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankDecision {
    /// The rank stays.
    Keep,
    /// Keep this many directions of the augmented bases, those of the largest singular values.
    Set {
        /// The new rank, at most twice the old one.
        rank: usize,
    },
    /// Truncate by tolerance.
    Truncate {
        /// Relative Frobenius tolerance τ.
        tau: f64,
        /// Bounds.
        bounds: RankBounds,
    },
}

impl RankSchedule {
    /// The decision at a step (counted from 1) for a weight of this target and rank.
    ///
    /// The cuts of a budget are not made here but over all weights: see [`BudgetSchedule::budget_at`].
    pub fn decide(&self, step: u64, target: Target, rank: usize) -> RankDecision {
        let (cycle, max_rank) = match self {
            RankSchedule::Fixed => return RankDecision::Keep,
            RankSchedule::Tolerance(schedule) => (&schedule.cycle, schedule.targets.get(&target).map(|target| target.bounds.max_rank)),
            RankSchedule::Budget(schedule) => (&schedule.cycle, schedule.targets.get(&target).map(|bounds| bounds.max_rank)),
        };
        match (self, cycle.event(step)) {
            (_, CycleEvent::Grow) => match max_rank.and_then(|max_rank| cycle.grown(rank, max_rank)) {
                Some(rank) => RankDecision::Set { rank },
                None => RankDecision::Keep,
            },
            (RankSchedule::Tolerance(schedule), CycleEvent::Cut(cut)) => match schedule.targets.get(&target) {
                Some(target) => RankDecision::Truncate { tau: schedule.tau_at(target, cut), bounds: target.bounds },
                None => RankDecision::Keep,
            },
            _ => RankDecision::Keep,
        }
    }
}

impl ToleranceSchedule {
    /// τ at a cut: the first has the first τ, the last the last.
    fn tau_at(&self, target: &Tolerance, cut: Cut) -> f64 {
        let progress = cut.index as f64 / (cut.count.max(2) - 1) as f64;
        ramp(self.shape, target.tau, target.final_tau, progress)
    }
}

impl BudgetSchedule {
    /// The budget that a step (counted from 1) cuts to, in parameters of all low-rank weights; none if it does not cut.
    pub fn budget_at(&self, step: u64) -> Option<u64> {
        let CycleEvent::Cut(cut) = self.cycle.event(step) else { return None };
        let progress = (cut.index + 1) as f64 / cut.count as f64;
        Some(ramp(self.shape, self.initial_parameters as f64, self.final_parameters as f64, progress).round() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CYCLE: RankCycle = RankCycle { every: 10, settle: 6, grow_by: 16, start: 20, freeze: 47 };
    const BOUNDS: RankBounds = RankBounds { min_rank: 4, max_rank: 40 };

    fn tolerance(tau: f64, final_tau: f64) -> RankSchedule {
        let targets = BTreeMap::from([(Target::Q, Tolerance { tau, final_tau, bounds: BOUNDS })]);
        RankSchedule::Tolerance(ToleranceSchedule { cycle: CYCLE, shape: RampShape::Linear, targets })
    }

    fn changes(schedule: &RankSchedule, target: Target) -> Vec<(u64, RankDecision)> {
        (1..=100).map(|step| (step, schedule.decide(step, target, 8))).filter(|(_, decision)| *decision != RankDecision::Keep).collect()
    }

    #[test]
    fn fixed_never_changes() {
        assert!(changes(&RankSchedule::Fixed, Target::Q).is_empty());
    }

    #[test]
    fn tolerance_moves_from_its_first_to_its_last_value() {
        let (grow, cut) = (RankDecision::Set { rank: 16 }, |tau| RankDecision::Truncate { tau, bounds: BOUNDS });
        let changes = changes(&tolerance(0.1, 0.3), Target::Q);
        assert_eq!(changes.iter().map(|change| change.0).collect::<Vec<_>>(), [20, 26, 30, 36, 40, 46]);
        assert_eq!(changes[0].1, grow);
        for (index, tau) in [(1, 0.1), (3, 0.2), (5, 0.3)] {
            let RankDecision::Truncate { tau: found, bounds } = changes[index].1 else { panic!("{:?} is not {:?}", changes[index], cut(tau)) };
            assert!((found - tau).abs() < 1e-12 && bounds == BOUNDS);
        }
    }

    #[test]
    fn a_dense_target_has_no_rank_to_change() {
        assert!(changes(&tolerance(0.1, 0.1), Target::Down).is_empty());
    }

    #[test]
    fn a_budget_ends_at_its_end() {
        let targets = BTreeMap::from([(Target::Q, BOUNDS)]);
        let score = RankScore::Magnitude;
        let schedule =
            BudgetSchedule { cycle: CYCLE, shape: RampShape::Linear, score, initial_parameters: 1000, final_parameters: 400, targets };
        let budgets: Vec<_> = (1..=100).filter_map(|step| Some((step, schedule.budget_at(step)?))).collect();
        assert_eq!(budgets, [(26, 800), (36, 600), (46, 400)]);
        assert_eq!(RankSchedule::Budget(schedule).decide(26, Target::Q, 8), RankDecision::Keep);
    }
}
