//! When and how low-rank weights change their ranks (docs/method.md §6).

mod budget;
mod cycle;

pub use cycle::Cut;

use crate::lowrank::tolerance_rank;
use crate::spec::{
    BudgetPlan, CutBudgetSpec, CutSpec, CutToleranceSpec, RankBoundsPlan, RankCount, RankCyclePlan,
    RankNorm, RankPlan, Target, TolerancePlan,
};
use budget::{BudgetCandidate, allocate};
use cycle::{CycleEvent, ramp};

impl Cut {
    /// Whether ranks stay as this cut leaves them.
    pub fn is_last(self) -> bool {
        self.index + 1 == self.count
    }
}

/// Whether a dense weight W: m × n is brought to the rank that a cut finds for it. Where it is below
/// the full one, the last cut always does; one before only if the factors have fewer numbers than
/// W, r (m + n + r) < m n: otherwise they cost more than W, whose directions are all still there at
/// the next cut.
pub fn becomes_factors(cut: Cut, (rows, columns): (usize, usize), rank: usize) -> bool {
    let pays = rank * (rows + columns + rank) < rows * columns;
    rank < rows.min(columns) && (pays || cut.is_last())
}

/// What a step does to the rank of one weight before any cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RankDecision {
    /// The rank stays.
    Keep,
    /// Keep this many directions of the augmented bases, those of the largest singular values.
    Set {
        /// The new rank, at most twice the old one.
        rank: usize,
    },
}

/// What a weight offers at a cut.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Which matrix of a block it is.
    pub target: Target,
    /// Rows plus columns, m + n.
    pub sides: usize,
    /// Singular values in the schedule's norm, in decreasing order.
    pub singular_values: Vec<f64>,
}

impl Offer {
    /// σ² of every direction: what giving it up costs.
    fn scores(&self) -> Vec<f64> {
        self.singular_values.iter().map(|sigma| sigma * sigma).collect()
    }
}

/// The ranks after the cut of imported weights, one for each; `dense` is the sum of m n.
pub fn cut_ranks(cut: CutSpec, offers: &[Offer], dense: u64) -> Vec<usize> {
    match cut {
        CutSpec::Tolerance(CutToleranceSpec { tau, .. }) => {
            offers.iter().map(|offer| tolerance_rank(&offer.singular_values, tau)).collect()
        }
        CutSpec::Budget(CutBudgetSpec { share, .. }) => {
            let candidate = |offer: &Offer| BudgetCandidate {
                sides: offer.sides,
                count: RankCount::Exported,
                scores: offer.scores(),
                min_rank: 1,
                max_rank: offer.singular_values.len(),
            };
            let candidates: Vec<_> = offers.iter().map(candidate).collect();
            allocate((share * dense as f64).round() as u64, &candidates)
        }
    }
}

/// What happens to the ranks of all weights at a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RankEvent {
    /// Ranks stay.
    None,
    /// Augmented directions are kept.
    Grow,
    /// Ranks are decided by singular values in this norm.
    Cut {
        /// Which cut of the run.
        cut: Cut,
        /// The norm.
        norm: RankNorm,
    },
}

impl RankEvent {
    /// The norm of the cut, where this is one.
    pub fn cut_norm(self) -> Option<RankNorm> {
        match self {
            RankEvent::Cut { norm, .. } => Some(norm),
            RankEvent::None | RankEvent::Grow => None,
        }
    }
}

impl RankPlan {
    /// The event of a step, counted from 1.
    pub fn event(&self, step: u64) -> RankEvent {
        let (cycle, norm) = match self {
            RankPlan::Fixed => return RankEvent::None,
            RankPlan::Tolerance(TolerancePlan { cycle, norm, .. })
            | RankPlan::Budget(BudgetPlan { cycle, norm, .. }) => (cycle, *norm),
        };
        match cycle.event(step) {
            CycleEvent::Rest => RankEvent::None,
            CycleEvent::Grow => RankEvent::Grow,
            CycleEvent::Cut(cut) => RankEvent::Cut { cut, norm },
        }
    }

    /// The batches that a cut at a step, counted from 1, goes by: its own and, for the moments of the
    /// Fisher norm, those of the steps before it, as far as there are any.
    pub fn batches_at(&self, step: u64) -> u64 {
        (self.fisher_batches().unwrap_or(1) as u64).clamp(1, step.max(1))
    }

    /// Whether a step, counted from 1, measures second moments for the cuts after it.
    pub fn measures_at(&self, step: u64) -> bool {
        self.cycle().is_some_and(|cycle| step <= cycle.freeze)
            && self.moment_every().is_some_and(|every| step.is_multiple_of(every.max(1)))
    }

    /// The event that counts among those of the steps from `first` to `last`: the last cut or,
    /// without one, a growth.
    pub fn event_within(&self, first: u64, last: u64) -> RankEvent {
        let mut found = RankEvent::None;
        for step in first..=last {
            match self.event(step) {
                RankEvent::None => {}
                cut @ RankEvent::Cut { .. } => found = cut,
                RankEvent::Grow if found == RankEvent::None => found = RankEvent::Grow,
                RankEvent::Grow => {}
            }
        }
        found
    }

    /// What a growth does to the rank of a weight of this target.
    pub fn grown(&self, target: Target, rank: usize) -> RankDecision {
        let max_rank = match self {
            RankPlan::Fixed => None,
            RankPlan::Tolerance(schedule) => {
                schedule.targets.get(&target).map(|target| target.max_rank)
            }
            RankPlan::Budget(schedule) => {
                schedule.targets.get(&target).map(|bounds| bounds.max_rank)
            }
        };
        let grown = self.cycle().zip(max_rank).and_then(|(cycle, max)| cycle.grown(rank, max));
        grown.map_or(RankDecision::Keep, |rank| RankDecision::Set { rank })
    }

    /// The ranks after a cut, one for each weight.
    pub fn cut(&self, cut: Cut, offers: &[Offer]) -> Vec<usize> {
        match self {
            RankPlan::Fixed => offers.iter().map(|offer| offer.singular_values.len()).collect(),
            RankPlan::Tolerance(schedule) => {
                offers.iter().map(|offer| schedule.rank_at(cut, offer)).collect()
            }
            RankPlan::Budget(schedule) => schedule.ranks_at(cut, offers),
        }
    }

    fn cycle(&self) -> Option<&RankCyclePlan> {
        match self {
            RankPlan::Fixed => None,
            RankPlan::Tolerance(TolerancePlan { cycle, .. })
            | RankPlan::Budget(BudgetPlan { cycle, .. }) => Some(cycle),
        }
    }
}

impl TolerancePlan {
    /// The smallest rank whose discarded tail is within τ: the first cut has the first τ, the last
    /// the last.
    fn rank_at(&self, cut: Cut, offer: &Offer) -> usize {
        let Some(target) = self.targets.get(&offer.target) else {
            return offer.singular_values.len();
        };
        let progress = cut.index as f64 / (cut.count.max(2) - 1) as f64;
        let tau = ramp(self.tau_schedule, target.tau, target.final_tau, progress);
        tolerance_rank(&offer.singular_values, tau).clamp(target.min_rank, target.max_rank)
    }
}

impl BudgetPlan {
    /// The budget of a cut, in parameters of all low-rank weights: the last has the last budget.
    fn budget_at(&self, cut: Cut) -> u64 {
        let progress = (cut.index + 1) as f64 / cut.count as f64;
        ramp(self.schedule, self.initial_parameters as f64, self.final_parameters as f64, progress)
            .round() as u64
    }

    fn ranks_at(&self, cut: Cut, offers: &[Offer]) -> Vec<usize> {
        let candidate = |offer: &Offer| {
            let available = offer.singular_values.len();
            let bounds = self
                .targets
                .get(&offer.target)
                .copied()
                .unwrap_or(RankBoundsPlan { min_rank: available, max_rank: available });
            BudgetCandidate {
                sides: offer.sides,
                count: RankCount::of_budget(self.final_share),
                scores: offer.scores(),
                min_rank: bounds.min_rank.min(available),
                max_rank: bounds.max_rank,
            }
        };
        allocate(self.budget_at(cut), &offers.iter().map(candidate).collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{RampShape, ToleranceTargetPlan};
    use std::collections::BTreeMap;

    const CYCLE: RankCyclePlan =
        RankCyclePlan { every: 10, settle: 6, grow_by: 16, start: 20, freeze: 47 };

    fn tolerance(tau: f64, final_tau: f64) -> RankPlan {
        let targets = BTreeMap::from([(
            Target::Q,
            ToleranceTargetPlan { tau, final_tau, min_rank: 4, max_rank: 40 },
        )]);
        RankPlan::Tolerance(TolerancePlan {
            cycle: CYCLE,
            norm: RankNorm::Frobenius,
            batches: 1,
            moment_decay: 0.0,
            moment_every: None,
            tau_schedule: RampShape::Linear,
            targets,
        })
    }

    fn offer(target: Target, singular_values: &[f64]) -> Offer {
        Offer { target, sides: 100, singular_values: singular_values.to_vec() }
    }

    /// The ranks after the cut of a step.
    fn cut(schedule: &RankPlan, step: u64, offers: &[Offer]) -> Vec<usize> {
        match schedule.event(step) {
            RankEvent::Cut { cut, .. } => schedule.cut(cut, offers),
            other => panic!("step {step} is {other:?}"),
        }
    }

    /// The steps with an event of this kind.
    fn steps(schedule: &RankPlan, is_one: impl Fn(RankEvent) -> bool) -> Vec<u64> {
        (1..=100).filter(|&step| is_one(schedule.event(step))).collect()
    }

    #[test]
    fn fixed_never_changes() {
        assert_eq!(steps(&RankPlan::Fixed, |event| event != RankEvent::None), [0u64; 0]);
        assert_eq!(RankPlan::Fixed.grown(Target::Q, 8), RankDecision::Keep);
    }

    #[test]
    fn tolerance_grows_and_cuts_by_a_tolerance_that_moves() {
        let schedule = tolerance(0.1, 0.3);
        assert_eq!(steps(&schedule, |event| event == RankEvent::Grow), [20, 30, 40]);
        assert_eq!(schedule.grown(Target::Q, 8), RankDecision::Set { rank: 16 });
        assert_eq!(schedule.grown(Target::Q, 40), RankDecision::Keep, "at its largest");
        assert_eq!(steps(&schedule, |event| event.cut_norm().is_some()), [26, 36, 46]);
        // ‖σ‖ = 1 within 10⁻³; tails after rank 6, 5, 4: 0.08, 0.17, 0.26.
        let sigma = [0.5, 0.5, 0.45, 0.45, 0.2, 0.15, 0.08];
        let offers = [offer(Target::Q, &sigma)];
        assert_eq!([26, 36, 46].map(|step| cut(&schedule, step, &offers)[0]), [6, 5, 4]);
    }

    #[test]
    fn of_many_steps_the_last_cut_counts_and_otherwise_a_growth() {
        let schedule = tolerance(0.1, 0.3);
        assert_eq!(schedule.event_within(1, 19), RankEvent::None);
        assert_eq!(schedule.event_within(15, 25), RankEvent::Grow);
        assert_eq!(schedule.event_within(20, 30), schedule.event(26), "the cut, not the growth");
        assert_eq!(schedule.event_within(20, 39), schedule.event(36), "the last of two cuts");
    }

    #[test]
    fn a_target_without_bounds_keeps_its_rank() {
        let schedule = tolerance(0.9, 0.9);
        assert_eq!(schedule.grown(Target::DOWN, 8), RankDecision::Keep);
        assert_eq!(cut(&schedule, 26, &[offer(Target::DOWN, &[1.0, 0.1])]), [2]);
    }

    #[test]
    fn a_budget_ends_at_its_end() {
        let targets = BTreeMap::from([(Target::Q, RankBoundsPlan { min_rank: 1, max_rank: 4 })]);
        // A weight with m + n = 100 stores 101, 204, 309, 416 numbers at ranks 1 to 4, so that
        // ranks 3 and 1 are 2 more than the last budget.
        let schedule = RankPlan::Budget(BudgetPlan {
            cycle: RankCyclePlan { grow_by: 0, ..CYCLE },
            schedule: RampShape::Linear,
            norm: RankNorm::Fisher,
            batches: 4,
            moment_decay: 0.5,
            moment_every: Some(8),
            initial_parameters: 832,
            final_parameters: 408,
            final_share: None,
            targets,
        });
        let offers =
            [offer(Target::Q, &[4.0, 3.0, 2.0, 1.0]), offer(Target::Q, &[4.0, 0.5, 0.4, 0.3])];
        assert_eq!(
            [26, 36, 46].map(|step| cut(&schedule, step, &offers)),
            [vec![4, 2], vec![4, 1], vec![2, 1]]
        );
        assert_eq!(schedule.event(46).cut_norm(), Some(RankNorm::Fisher));
        // Up to `freeze`, 47, whatever happens to ranks.
        let measuring: Vec<u64> = (1..=100).filter(|&step| schedule.measures_at(step)).collect();
        assert_eq!(measuring, [8, 16, 24, 32, 40]);
        assert!(!tolerance(0.1, 0.3).measures_at(40));
    }
}
