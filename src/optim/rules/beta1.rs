//! β₁ over the run, and what a mean with a changing β₁ has gathered: pure functions of the step.

use super::gathered;
use crate::spec::{Beta1ScheduleSpec, DlraSpec, MuonSpec};

/// The decay of the first moment, as a function of the step (docs/method.md §5).
#[derive(Clone, Copy, Debug)]
pub(super) struct Beta1 {
    /// β₁ where nothing changes it, or from the end of the path on.
    last: f64,
    path: Option<Beta1ScheduleSpec>,
}

impl Beta1 {
    /// That of `dlra`.
    pub fn of_dlra(spec: &DlraSpec) -> Self {
        Self { last: spec.beta1, path: spec.beta1_schedule }
    }

    /// That of `muon`.
    pub fn of_muon(spec: &MuonSpec) -> Self {
        Self { last: spec.beta1, path: spec.beta1_schedule }
    }

    /// β₁ at step t: b up to step s, a from step u on, b + (a − b)(t − s)/(u − s) between.
    pub fn at(&self, step: u64) -> f64 {
        let Some(Beta1ScheduleSpec { from, start, until }) = self.path else { return self.last };
        if step >= until.0 {
            return self.last;
        }
        let progress = step.saturating_sub(start.0) as f64 / (until.0 - start.0) as f64;
        from + (self.last - from) * progress
    }

    /// The weights of a mean's gradients up to step t, 1 − Π β₁(s) over s = 1, …, t, since 1 less
    /// their sum decays as the mean does; looking ahead, β₁(t) once more.
    pub fn gathered(&self, step: u64, ahead: bool) -> f64 {
        match self.path {
            None => gathered(self.last, step + u64::from(ahead)),
            Some(_) => {
                let now = self.at(step).powi(1 + i32::from(ahead));
                1.0 - self.left(step.saturating_sub(1)) * now
            }
        }
    }

    /// The same of a mean that decays `per_step` times in each step before t and has decayed `now`
    /// times in step t.
    pub fn gathered_within(&self, step: u64, per_step: u64, now: u64) -> f64 {
        let before = step.saturating_sub(1);
        match self.path {
            None => 1.0 - self.last.powf((before * per_step + now) as f64),
            Some(_) => {
                1.0 - self.left(before).powf(per_step as f64) * self.at(step).powf(now as f64)
            }
        }
    }

    /// Π β₁(s) over s = 1, …, t; 0 where 1 less it is 1.
    fn left(&self, steps: u64) -> f64 {
        let until = self.path.map_or(0, |path| path.until.0);
        let mut left = 1.0;
        for step in 1..=steps.min(until) {
            left *= self.at(step);
            if left < 0.25 * f64::EPSILON {
                return 0.0;
            }
        }
        left * self.last.powf(steps.saturating_sub(until) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Count;

    fn path(from: f64, start: u64, until: u64) -> Beta1 {
        let path = Beta1ScheduleSpec { from, start: Count(start), until: Count(until) };
        Beta1 { last: 0.95, path: Some(path) }
    }

    #[test]
    fn a_straight_line_between_two_steps() {
        let warm_up = path(0.85, 0, 4);
        let expected = [0.85, 0.875, 0.9, 0.925, 0.95, 0.95];
        for (step, expected) in expected.into_iter().enumerate() {
            assert!((warm_up.at(step as u64) - expected).abs() < 1e-15, "step {step}");
        }
        let late = path(0.9, 10, 12);
        assert_eq!([1, 10, 12, 99].map(|step| late.at(step)), [0.9, 0.9, 0.95, 0.95]);
        assert!((late.at(11) - 0.925).abs() < 1e-15);
        assert_eq!(Beta1 { path: None, ..late }.at(1), 0.95);
    }

    /// Means of ones, taken as the moments are: what they have come to is what was gathered.
    #[test]
    fn a_mean_of_ones_is_what_was_gathered() {
        for beta1 in [path(0.5, 0, 6), path(0.7, 3, 5), Beta1 { last: 0.9, path: None }] {
            let (mut mean, mut often) = (0.0, 0.0);
            for step in 1..=40 {
                let beta = beta1.at(step);
                let decayed = |mean: f64| beta * mean + (1.0 - beta);
                mean = decayed(mean);
                assert!((beta1.gathered(step, false) - mean).abs() < 1e-14);
                assert!((beta1.gathered(step, true) - decayed(mean)).abs() < 1e-14);
                for now in 1..=3 {
                    often = decayed(often);
                    assert!((beta1.gathered_within(step, 3, now) - often).abs() < 1e-14);
                }
            }
            assert_eq!(beta1.gathered(1 << 40, true), 1.0);
        }
    }
}
