//! What an integrator of DLRA does at a step, as a function of the step alone.

use super::count::Count;
use super::dlra_spec::{DlraSpec, Integrator, RetractionSpec};

/// What a step of `coefficient_cycle` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CyclePhase {
    /// New directions join the bases; W stays.
    Augment,
    /// S moves, the bases do not.
    Coefficients {
        /// Whether the rank is truncated after it.
        truncate: bool,
    },
}

impl DlraSpec {
    /// Coefficient steps between an augmentation and its truncation; 0 for `tangent`, whose one
    /// Galerkin step takes no gradient of its own.
    ///
    /// The default of `coefficient_cycle` is that of the authors' code: ten batches, the first of
    /// which augments.
    pub fn coefficient_steps(&self) -> u64 {
        match (self.integrator, self.coefficient_steps) {
            (Integrator::Tangent, _) => 0,
            (_, Some(steps)) => steps.0,
            (Integrator::AugmentedBug, None) => 1,
            (Integrator::CoefficientCycle, None) => 9,
        }
    }

    /// Forward and backward passes over the batch of a step.
    pub fn evaluations_per_step(&self) -> u64 {
        match self.integrator {
            Integrator::Tangent | Integrator::CoefficientCycle => 1,
            Integrator::AugmentedBug => self.coefficient_steps().saturating_add(1),
        }
    }

    /// Steps of a cycle, an augmentation and its coefficient steps; none but for
    /// `coefficient_cycle`.
    pub fn cycle_length(&self) -> Option<u64> {
        (self.integrator == Integrator::CoefficientCycle)
            .then(|| self.coefficient_steps().saturating_add(1))
    }

    /// What a step (from 1) of a run of `last` steps does under `coefficient_cycle`; none for the
    /// other integrators.
    ///
    /// A run ends truncated: its last step closes a cycle early, and does not open one.
    pub fn cycle_phase(&self, step: u64, last: u64) -> Option<CyclePhase> {
        let length = self.cycle_length()?;
        Some(match step.saturating_sub(1) % length {
            0 if step != last => CyclePhase::Augment,
            place => CyclePhase::Coefficients {
                truncate: place > 0 && (place + 1 == length || step == last),
            },
        })
    }

    /// The first of the steps whose rank events take effect at this one: itself or, where a cycle
    /// ends here, the step that opened it; none within a cycle, where ranks stay.
    pub fn rank_window(&self, step: u64, last: u64) -> Option<u64> {
        match (self.cycle_length(), self.cycle_phase(step, last)) {
            (Some(length), Some(CyclePhase::Coefficients { truncate: true })) => {
                Some(step - (step - 1) % length)
            }
            (Some(_), _) => None,
            (None, _) => Some(step),
        }
    }

    /// How a step (from 1) returns to the manifold while the rank stays: by SVD only where both
    /// `retraction` and `truncate_every` say so.
    pub fn retraction_at(&self, step: u64) -> RetractionSpec {
        match self.retraction {
            RetractionSpec::Svd if !step.is_multiple_of(self.truncate_every.0.max(1)) => {
                RetractionSpec::Subspace
            }
            retraction => retraction,
        }
    }

    /// With the number of coefficient steps decided, or left out where there are none.
    pub(super) fn resolved(&self) -> Self {
        let coefficient_steps =
            (self.integrator != Integrator::Tangent).then(|| Count(self.coefficient_steps()));
        Self { coefficient_steps, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_augment_train_truncate_and_end_truncated() {
        let dlra = DlraSpec {
            integrator: Integrator::CoefficientCycle,
            coefficient_steps: Some(Count(2)),
            ..DlraSpec::default()
        };
        let letters = |last: u64| -> String {
            (1..=last)
                .map(|step| match dlra.cycle_phase(step, last).expect("a cycle") {
                    CyclePhase::Augment => 'A',
                    CyclePhase::Coefficients { truncate: false } => 's',
                    CyclePhase::Coefficients { truncate: true } => 'T',
                })
                .collect()
        };
        assert_eq!([6, 7, 8, 1].map(letters), ["AsTAsT", "AsTAsTs", "AsTAsTAT", "s"]);
        assert_eq!(DlraSpec::default().cycle_phase(1, 9), None);
    }

    #[test]
    fn evaluations_and_retractions() {
        let of = |integrator| DlraSpec { integrator, ..DlraSpec::default() };
        let integrators =
            [Integrator::Tangent, Integrator::AugmentedBug, Integrator::CoefficientCycle];
        assert_eq!(integrators.map(|integrator| of(integrator).evaluations_per_step()), [1, 2, 1]);
        assert_eq!(
            integrators.map(|integrator| of(integrator).resolved().coefficient_steps),
            [None, Some(Count(1)), Some(Count(9))]
        );
        let svd = DlraSpec {
            retraction: RetractionSpec::Svd,
            truncate_every: Count(3),
            ..DlraSpec::default()
        };
        let exact: Vec<u64> =
            (1..=9).filter(|step| svd.retraction_at(*step) == RetractionSpec::Svd).collect();
        assert_eq!(exact, [3, 6, 9]);
        assert_eq!(DlraSpec::default().retraction_at(3), RetractionSpec::Subspace);
    }
}
