//! What a sweep declares as success before it runs, and which methods reach it.

use super::comparison::Comparison;
use super::statistics::Estimate;
use serde::{Deserialize, Serialize};

/// How far a mean must lie below a goal, in standard errors: (goal − mean) √n ≥ 3 s.
const STANDARD_ERRORS: f64 = 3.0;

/// What counts as success.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// A validation loss, in nats per token.
    Loss(f64),
    /// A loss this much below the baseline's on the same seeds.
    BelowBaseline(f64),
}

impl Goal {
    /// What is wrong with it; none if it can be reached.
    pub fn problem(self) -> Option<String> {
        match self {
            Goal::Loss(loss) if !(loss > 0.0 && loss.is_finite()) => {
                Some(format!("`loss: {loss}` is no validation loss; give a number above 0"))
            }
            Goal::BelowBaseline(distance) if !distance.is_finite() => {
                Some(format!("`below_baseline: {distance}` is no distance; give a number"))
            }
            Goal::Loss(_) | Goal::BelowBaseline(_) => None,
        }
    }

    /// One line for each method: whether it reaches the goal.
    pub(super) fn remarks(self, comparison: &Comparison) -> Vec<String> {
        let baseline = comparison.baseline.map(|index| comparison.groups[index].0.name.as_str());
        let of_group = |(group, summary): &(super::groups::Group, super::GroupSummary)| {
            let (what, limit, estimate) = match self {
                Goal::Loss(loss) => (format!("a loss of {loss}"), loss, Some(summary.loss)),
                Goal::BelowBaseline(distance) => (
                    format!("{distance} below {}", baseline.unwrap_or("the baseline")),
                    -distance,
                    summary.difference.map(|difference| difference.estimate),
                ),
            };
            let verdict = verdict(&estimate?, limit);
            Some(format!("Goal, {what}: {}: {verdict}.", group.name))
        };
        comparison.groups.iter().filter_map(of_group).collect()
    }
}

/// Whether a mean lies three standard errors below a limit, in words.
fn verdict(estimate: &Estimate, limit: f64) -> String {
    let margin = limit - estimate.mean;
    match estimate.standard_error {
        None => format!("one seed, so it does not count; mean {:+.4} from it", -margin),
        Some(error) if margin > 0.0 && margin >= STANDARD_ERRORS * error => {
            format!("reached, {margin:.4} beyond it with a standard error of {error:.4}")
        }
        Some(error) if margin > 0.0 => format!(
            "not shown: {margin:.4} beyond it, which is less than three standard errors of \
             {error:.4}"
        ),
        Some(error) => {
            format!("missed by {:.4}, with a standard error of {error:.4}", -margin)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values 1.9, 2.0, 2.1: s = 0.1, so a goal counts from 2 + 3 · 0.1 / √3 = 2.1732 on.
    #[test]
    fn a_goal_counts_at_three_standard_errors() {
        let estimate = Estimate::of(&[1.9, 2.0, 2.1]).expect("a mean");
        assert!(verdict(&estimate, 2.174).starts_with("reached"));
        assert!(verdict(&estimate, 2.172).starts_with("not shown"));
        assert!(verdict(&estimate, 1.99).starts_with("missed by 0.0100"));
        let one = Estimate::of(&[1.0]).expect("a mean");
        assert!(verdict(&one, 2.0).starts_with("one seed"));
    }
}
