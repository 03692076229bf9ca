//! `beta1_schedule:` of `dlra` and `muon`: the decay of the first moment over the run.

use super::count::Count;
use super::findings::Findings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// β₁ over the run: `from` up to step `start`, then a straight line that is at the rule's `beta1`
/// from step `until` on.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Beta1ScheduleSpec {
    /// β₁ up to step `start`.
    pub from: f64,
    /// Last step that has `from`; default 0, so that the line begins with the run.
    #[serde(default = "at_once", skip_serializing_if = "is_at_once")]
    pub start: Count,
    /// First step that has the rule's `beta1`; more than `start`.
    pub until: Count,
}

fn at_once() -> Count {
    Count(0)
}

fn is_at_once(start: &Count) -> bool {
    start.0 == 0
}

pub(super) fn check_beta1_schedule(
    found: &mut Findings,
    schedule: Option<&Beta1ScheduleSpec>,
    path: &str,
) {
    let Some(Beta1ScheduleSpec { from, start, until }) = schedule else { return };
    let path = format!("{path}.beta1_schedule");
    let range = "of at least 0 and less than 1";
    found.require_number(*from, (0.0..1.0).contains(from), range, &format!("{path}.from"));
    found.require(until > start, &format!("{path}.until"), || {
        format!("is {}; set more than {}, the step of `start`", until.0, start.0)
    });
}

/// A path that a run of this many steps does not walk to its end.
pub(super) fn unused_of_beta1(
    unused: &mut Vec<String>,
    schedule: Option<&Beta1ScheduleSpec>,
    (path, steps): (&str, u64),
) {
    if let Some(schedule) = schedule.filter(|schedule| schedule.until.0 > steps) {
        unused.push(format!(
            "{path}.beta1: not reached; `beta1_schedule` comes to it at step {}, and the run has \
             {steps}",
            schedule.until.0
        ));
    }
}
