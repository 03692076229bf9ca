//! The rhythm of rank changes: grow, settle, cut.
//!
//! A direction of size η never survives a cut right after its birth, so ranks change in cycles: at
//! a growth the augmented directions are kept, trained for `settle` steps, and only then does one
//! cut decide what stays.

use crate::spec::{RampShape, RankCyclePlan};
use std::f64::consts::PI;

/// What a step is in a cycle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CycleEvent {
    /// Ranks stay.
    Rest,
    /// Augmented directions are kept.
    Grow,
    /// Ranks are decided.
    Cut(Cut),
}

/// The place of a cut among the cuts of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Cuts before this one.
    pub index: u64,
    /// Cuts of the whole run.
    pub count: u64,
}

impl RankCyclePlan {
    /// What a step (counted from 1) is.
    ///
    /// A growth happens only if its cut still falls before `freeze`, so no run ends with untested
    /// directions.
    pub(super) fn event(&self, step: u64) -> CycleEvent {
        if step < self.start || step > self.freeze {
            return CycleEvent::Rest;
        }
        let (cycle, phase) = ((step - self.start) / self.every, (step - self.start) % self.every);
        if phase == 0 && self.grow_by > 0 && step + self.settle <= self.freeze {
            CycleEvent::Grow
        } else if phase == self.settle {
            CycleEvent::Cut(Cut {
                index: cycle,
                count: (self.freeze - self.start - self.settle) / self.every + 1,
            })
        } else {
            CycleEvent::Rest
        }
    }

    /// The rank after a growth from this one: at most doubled, at most `max_rank`; `None` if
    /// that is no growth.
    pub(super) fn grown(&self, rank: usize, max_rank: usize) -> Option<usize> {
        let grown = (rank + self.grow_by).min(2 * rank).min(max_rank);
        (grown > rank).then_some(grown)
    }
}

/// A value on its way from `from` to `to`, at progress p from 0 to 1.
///
/// linear: from + (to − from) p; cosine: to + (from − to) (1 + cos πp) / 2; cubic: to + (from − to)
/// (1 − p)³, fast at first (AdaLoRA's budget, Zhang et al. 2023, arXiv:2303.10512, eq. 16).
pub fn ramp(shape: RampShape, from: f64, to: f64, progress: f64) -> f64 {
    let remaining = match shape {
        RampShape::Linear => 1.0 - progress,
        RampShape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        RampShape::Cubic => (1.0 - progress).powi(3),
    };
    to + (from - to) * remaining
}

#[cfg(test)]
mod tests {
    use super::*;

    const CYCLE: RankCyclePlan =
        RankCyclePlan { every: 10, settle: 6, grow_by: 16, start: 20, freeze: 47 };

    fn events(cycle: RankCyclePlan) -> Vec<(u64, CycleEvent)> {
        (1..=100)
            .map(|step| (step, cycle.event(step)))
            .filter(|(_, event)| *event != CycleEvent::Rest)
            .collect()
    }

    #[test]
    fn cycles_grow_settle_cut_and_freeze() {
        let cut = |index| CycleEvent::Cut(Cut { index, count: 3 });
        let grow = CycleEvent::Grow;
        assert_eq!(
            events(CYCLE),
            [(20, grow), (26, cut(0)), (30, grow), (36, cut(1)), (40, grow), (46, cut(2))]
        );
    }

    #[test]
    fn no_growth_without_its_cut() {
        let last = CycleEvent::Cut(Cut { index: 1, count: 2 });
        assert_eq!(events(RankCyclePlan { freeze: 45, ..CYCLE }).last(), Some(&(36, last)));
    }

    #[test]
    fn cycles_that_do_not_grow_only_cut() {
        let events = events(RankCyclePlan { grow_by: 0, ..CYCLE });
        assert_eq!(events.iter().map(|event| event.0).collect::<Vec<_>>(), [26, 36, 46]);
    }

    #[test]
    fn growth_is_at_most_doubling_and_at_most_the_maximum() {
        assert_eq!(CYCLE.grown(5, 40), Some(10));
        assert_eq!(CYCLE.grown(20, 40), Some(36));
        assert_eq!(CYCLE.grown(30, 40), Some(40));
        assert_eq!(CYCLE.grown(40, 40), None);
    }

    #[test]
    fn ramps_run_from_one_end_to_the_other() {
        for shape in [RampShape::Linear, RampShape::Cosine, RampShape::Cubic] {
            assert_eq!(ramp(shape, 5.0, 2.0, 0.0), 5.0);
            assert!((ramp(shape, 5.0, 2.0, 1.0) - 2.0).abs() < 1e-12);
            let values: Vec<f64> =
                (0..=10).map(|i| ramp(shape, 5.0, 2.0, f64::from(i) / 10.0)).collect();
            assert!(
                values.windows(2).all(|pair| pair[1] < pair[0]),
                "{shape:?} does not fall: {values:?}"
            );
        }
        assert!((ramp(RampShape::Cubic, 1.0, 0.0, 0.5) - 0.125).abs() < 1e-12);
    }
}
