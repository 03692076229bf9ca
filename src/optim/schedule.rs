//! Learning-rate schedules: pure functions of the step.

use crate::spec::ScheduleSpec;

/// A learning-rate factor over a run of `max_steps` steps, counted from 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    shape: ScheduleSpec,
    max_steps: u64,
    /// Factor beside the shape's.
    scale: f64,
}

impl Schedule {
    /// The schedule of this shape over `max_steps` steps.
    pub fn new(shape: ScheduleSpec, max_steps: u64) -> Self {
        Self { shape, max_steps, scale: 1.0 }
    }

    /// The same with every factor times this one.
    pub fn scaled(self, scale: f64) -> Self {
        Self { scale: self.scale * scale, ..self }
    }

    /// Steps of the run.
    pub fn max_steps(&self) -> u64 {
        self.max_steps
    }

    /// The factor of step t: t/w during the w warm-up steps, 1 at t = w, `final_ratio` at the last
    /// step and after it.
    ///
    /// With p = (t − w)/(T − w): cosine f + (1 − f)(1 + cos πp)/2, linear 1 − (1 − f)p;
    /// warm-up–stable–decay is linear over its last steps.
    pub fn factor(&self, step: u64) -> f64 {
        self.scale * self.shape_factor(step)
    }

    fn shape_factor(&self, step: u64) -> f64 {
        let (warmup, decay_start, final_ratio, cosine) = match &self.shape {
            ScheduleSpec::Constant(keys) => (keys.warmup_steps.0, self.max_steps, 1.0, false),
            ScheduleSpec::Cosine(keys) => {
                (keys.warmup_steps.0, keys.warmup_steps.0, keys.final_ratio, true)
            }
            ScheduleSpec::Linear(keys) => {
                (keys.warmup_steps.0, keys.warmup_steps.0, keys.final_ratio, false)
            }
            ScheduleSpec::WarmupStableDecay(keys) => (
                keys.warmup_steps.0,
                self.max_steps.saturating_sub(keys.decay_steps.0),
                keys.final_ratio,
                false,
            ),
        };
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        if step <= decay_start {
            return 1.0;
        }
        if step >= self.max_steps {
            return final_ratio;
        }
        let progress = (step - decay_start) as f64 / (self.max_steps - decay_start) as f64;
        let remaining = if cosine {
            0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
        } else {
            1.0 - progress
        };
        final_ratio + (1.0 - final_ratio) * remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{ConstantScheduleSpec, Count, DecayScheduleSpec, WarmupStableDecaySpec};

    fn decay(warmup: u64) -> DecayScheduleSpec {
        DecayScheduleSpec { warmup_steps: Count(warmup), final_ratio: 0.1 }
    }

    #[test]
    fn ends_of_every_schedule() {
        let shapes = [
            (ScheduleSpec::Constant(ConstantScheduleSpec { warmup_steps: Count(10) }), 1.0),
            (ScheduleSpec::Cosine(decay(10)), 0.1),
            (ScheduleSpec::Linear(decay(10)), 0.1),
            (
                ScheduleSpec::WarmupStableDecay(WarmupStableDecaySpec {
                    warmup_steps: Count(10),
                    decay_steps: Count(20),
                    final_ratio: 0.1,
                }),
                0.1,
            ),
        ];
        for (shape, end) in shapes {
            let schedule = Schedule::new(shape, 100);
            assert_eq!(schedule.factor(0), 0.0);
            assert_eq!(schedule.factor(1), 0.1);
            assert_eq!(schedule.factor(10), 1.0);
            assert!(schedule.factor(11) <= 1.0);
            assert!(schedule.factor(99) >= end);
            assert_eq!(schedule.factor(100), end);
            assert_eq!(schedule.factor(101), end, "past the end the factor stays");
        }
    }

    #[test]
    fn middle_values() {
        let cosine = Schedule::new(ScheduleSpec::Cosine(decay(0)), 100);
        assert!((cosine.factor(50) - 0.55).abs() < 1e-12);
        assert!(
            (cosine.factor(25) - (0.1 + 0.45 * (1.0 + (std::f64::consts::PI / 4.0).cos()))).abs()
                < 1e-12
        );
        let linear = Schedule::new(ScheduleSpec::Linear(decay(20)), 100);
        assert!((linear.factor(60) - 0.55).abs() < 1e-12);
        let wsd = ScheduleSpec::WarmupStableDecay(WarmupStableDecaySpec {
            warmup_steps: Count(5),
            decay_steps: Count(20),
            final_ratio: 0.0,
        });
        let wsd = Schedule::new(wsd, 100);
        assert_eq!(wsd.factor(80), 1.0);
        assert!((wsd.factor(90) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn no_warmup_starts_at_one() {
        assert!(Schedule::new(ScheduleSpec::Cosine(decay(0)), 10).factor(1) < 1.0);
        assert_eq!(
            Schedule::new(
                ScheduleSpec::Constant(ConstantScheduleSpec { warmup_steps: Count(0) }),
                10
            )
            .factor(1),
            1.0
        );
    }
}
