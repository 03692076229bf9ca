//! The frontier: final loss against what a model and its training take.

use super::charts::Explained;
use super::comparison::{Comparison, GroupSummary};
use crate::plot::{Axis, Chart, Mark, Series};

/// What a model or its training takes, with its name on an axis.
type Cost = (&'static str, &'static str, fn(&GroupSummary) -> f64);

/// The panels, in their order.
const COSTS: [Cost; 4] = [
    ("degrees of freedom", "r (m + n − r) and the rest, at the end", |s| s.manifold_dimension),
    ("stored parameters", "numbers that training stores, at the end", |s| s.parameters),
    ("operations", "training FLOPs, counted", |s| s.flops),
    ("memory", "bytes of training, counted, at the ranks of the start", |s| s.training_memory),
];

/// Final loss against degrees of freedom, stored parameters, operations and training memory.
pub(super) fn frontier(comparison: &Comparison) -> Explained {
    let panels: Vec<Chart> = COSTS.iter().map(|cost| panel(comparison, *cost)).collect();
    let caption = "Final validation loss against what each model and its training take. Every dot is one setting of a method at the best of \
                   its searched values; bars are 95% intervals of the mean over the reported seeds (none for one seed). No dot lies lower at \
                   the same cost or less than those on the dashed line, the Pareto front of the means: a difference within the bars is none.";
    let title = "Loss against parameters, operations and memory";
    Explained::of_panels("frontier", caption.into(), title, &panels, 2)
}

fn panel(comparison: &Comparison, (title, label, cost): Cost) -> Chart {
    let point = |summary: &GroupSummary| {
        let at = (cost(summary), summary.loss.mean);
        (at.0.is_finite() && at.1.is_finite()).then_some(at)
    };
    let mut series = Vec::new();
    let points = comparison.groups.iter().filter_map(|(_, summary)| point(summary)).collect();
    let front = pareto_front(points);
    if front.len() > 1 {
        series.push(Series::new("Pareto front", Mark::Dashed, 6, front));
    }
    for (look, family) in comparison.families().into_iter().enumerate() {
        let of_family = comparison.groups.iter().filter(|(group, _)| group.family == family);
        let mut found: Vec<((f64, f64), f64)> = of_family
            .filter_map(|(_, s)| Some((point(s)?, s.loss.half_interval().unwrap_or(0.0))))
            .collect();
        found.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
        let mark = if found.len() > 1 { Mark::LineWithDots } else { Mark::Dots };
        let (points, errors) = found.into_iter().unzip();
        series.push(Series::new(family, mark, look, points).with_errors(errors));
    }
    Chart {
        title: format!("Final loss against {title}"),
        x: Axis::log(label),
        y: Axis::linear("validation loss (nats per token)"),
        series,
    }
}

/// The points that no other is below at the same cost or less, by increasing cost.
fn pareto_front(mut points: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
    points.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
    let mut front: Vec<(f64, f64)> = Vec::new();
    for point in points {
        if front.last().is_none_or(|last| point.1 < last.1) {
            front.push(point);
        }
    }
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_leaves_out_what_another_beats_at_its_cost() {
        let points = vec![(3.0, 1.5), (1.0, 2.0), (2.0, 2.1), (2.0, 1.8), (3.0, 1.4), (4.0, 1.4)];
        assert_eq!(pareto_front(points), [(1.0, 2.0), (2.0, 1.8), (3.0, 1.4)]);
    }
}
