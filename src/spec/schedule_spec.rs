//! `schedule:` of a spec: the learning rate over the run.

use super::count::Count;
use super::findings::Findings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Learning rate over the run, as a factor in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleSpec {
    /// Warm-up, then 1.
    Constant(ConstantScheduleSpec),
    /// Warm-up, then half a cosine down to `final_ratio` at the last step.
    Cosine(DecayScheduleSpec),
    /// Warm-up, then a straight line down to `final_ratio` at the last step.
    Linear(DecayScheduleSpec),
    /// Warm-up, stable at 1, then a straight line down to `final_ratio` over the last
    /// `decay_steps`.
    WarmupStableDecay(WarmupStableDecaySpec),
}

/// A short warm-up and a straight line to zero, which ended below a cosine with a long one for every
/// method compared (docs/results.md §2).
impl Default for ScheduleSpec {
    fn default() -> Self {
        Self::Linear(DecayScheduleSpec { warmup_steps: Count(20), final_ratio: 0.0 })
    }
}

/// Keys of `constant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantScheduleSpec {
    /// Steps of linear warm-up.
    pub warmup_steps: Count,
}

impl Default for ConstantScheduleSpec {
    fn default() -> Self {
        Self { warmup_steps: Count(100) }
    }
}

/// Keys of `cosine` and `linear`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecayScheduleSpec {
    /// Steps of linear warm-up.
    pub warmup_steps: Count,
    /// Factor at the last step.
    pub final_ratio: f64,
}

impl Default for DecayScheduleSpec {
    fn default() -> Self {
        Self { warmup_steps: Count(100), final_ratio: 0.1 }
    }
}

/// Keys of `warmup_stable_decay`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmupStableDecaySpec {
    /// Steps of linear warm-up.
    pub warmup_steps: Count,
    /// Steps of decay at the end.
    pub decay_steps: Count,
    /// Factor at the last step.
    pub final_ratio: f64,
}

/// Steps of linear warm-up of any schedule.
pub(crate) fn warmup_steps(schedule: &ScheduleSpec) -> u64 {
    match schedule {
        ScheduleSpec::Constant(schedule) => schedule.warmup_steps.0,
        ScheduleSpec::Cosine(schedule) | ScheduleSpec::Linear(schedule) => schedule.warmup_steps.0,
        ScheduleSpec::WarmupStableDecay(schedule) => schedule.warmup_steps.0,
    }
}

pub(super) fn check_schedule(found: &mut Findings, schedule: &ScheduleSpec, steps: u64) {
    let (kind, final_ratio, decay_steps) = match schedule {
        ScheduleSpec::Constant(_) => ("constant", None, None),
        ScheduleSpec::Cosine(decay) => ("cosine", Some(decay.final_ratio), None),
        ScheduleSpec::Linear(decay) => ("linear", Some(decay.final_ratio), None),
        ScheduleSpec::WarmupStableDecay(stable) => {
            ("warmup_stable_decay", Some(stable.final_ratio), Some(stable.decay_steps.0))
        }
    };
    let warmup = warmup_steps(schedule);
    if let Some(ratio) = final_ratio {
        found.require_number(
            ratio,
            (0.0..=1.0).contains(&ratio),
            "from 0 to 1",
            &format!("schedule.{kind}.final_ratio"),
        );
    }
    if let Some(decay) = decay_steps {
        let room = steps.saturating_sub(warmup);
        found.require(
            (1..=room.max(1)).contains(&decay),
            &format!("schedule.{kind}.decay_steps"),
            || format!("is {decay}; set 1 to {room}, the steps after the warm-up"),
        );
    }
}
