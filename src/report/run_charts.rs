//! The charts of one run.

use super::charts::{Explained, charts_of, times_of};
use super::run_results::RunResults;
use super::spectra::{effective_ranks_over_time, ranks_over_time, spectra_now, values_over_time};
use crate::plot::{Axis, Chart, Mark, Series};
use crate::record::StepFigures;

/// All charts of a run for which there are data yet.
pub(super) fn run_charts(run: &RunResults) -> Vec<Explained> {
    let mut charts = Vec::new();
    charts.extend(losses(run));
    charts.extend(course(run));
    let panels = |name, caption: &str, title, charts: Vec<Chart>| {
        Explained::of_panels(name, caption.to_owned(), title, &charts, 3)
    };
    charts.extend(ranks_over_time(run).map(|charts| {
        let caption = "Rank of every low-rank weight, by kind of weight.";
        panels("ranks", caption, "Ranks", charts_of(charts))
    }));
    charts.extend(effective_ranks_over_time(run).map(|charts| {
        let caption = "Effective rank of every low-rank weight's singular values, exp of the entropy \
                       of σ²/Σσ²: as many as the rank when all are equal, fewer as some dominate.";
        panels("effective-ranks", caption, "Effective ranks", charts_of(charts))
    }));
    if let Some(newest) = run.spectra.last().filter(|newest| !newest.layers.is_empty()) {
        let caption = format!(
            "Singular values of every low-rank weight at step {}. A flat spectrum uses all of its \
             rank; one that falls steeply could do with less.",
            newest.step
        );
        let now = charts_of(spectra_now(&newest.layers));
        charts.push(panels("spectra", &caption, "Singular values", now));
    }
    if run.spectra.len() > 1 {
        let caption = "The median singular value of every low-rank weight over the run, and the \
                       largest and smallest dashed.";
        let over_time = charts_of(values_over_time(run));
        if !over_time.is_empty() {
            charts.push(panels("values", caption, "Singular values over the run", over_time));
        }
    }
    charts.extend(times_of(&[(String::new(), vec![run])]));
    charts
}

/// Training and validation loss; none before the first step.
fn losses(run: &RunResults) -> Option<Explained> {
    let training = thinned(&run.steps).map(|at| (at.step as f64, at.loss)).collect();
    let validation = run.validations.iter().map(|point| (point.step as f64, point.loss)).collect();
    let chart = Chart {
        title: "Loss".into(),
        x: Axis::linear("step"),
        y: Axis::linear("nats per token"),
        series: vec![
            Series::new("training", Mark::Line, 5, training),
            Series::new("validation", Mark::LineWithDots, 1, validation),
        ],
    };
    let caption = "Loss of each logged step's batch, and of the validation text.";
    (!run.steps.is_empty())
        .then(|| Explained::of_panels("loss", caption.into(), "Loss", &[chart], 1))
}

/// Learning rate, norm of the gradient and speed; none before the first step.
fn course(run: &RunResults) -> Option<Explained> {
    let steps: Vec<&StepFigures> = thinned(&run.steps).collect();
    let line = |name: &str, colour: usize, of: &dyn Fn(&StepFigures) -> Option<f64>| {
        let points = steps.iter().filter_map(|at| Some((at.step as f64, of(at)?))).collect();
        Series::new(name, Mark::Line, colour, points)
    };
    let chart = |title: &str, y: Axis, series: Vec<Series>| Chart {
        title: title.into(),
        x: Axis::linear("step"),
        y,
        series: series.into_iter().filter(|series| !series.points.is_empty()).collect(),
    };
    let charts = [
        chart(
            "Learning rate",
            Axis::linear("learning rate"),
            vec![
                line("dense parameters", 0, &|at| Some(at.learning_rate)),
                line("low-rank weights", 1, &|at| at.low_rank_learning_rate),
            ],
        ),
        chart(
            "Norm of the gradient",
            Axis::log("before clipping"),
            vec![line("gradient", 2, &|at| Some(at.gradient_norm))],
        ),
        chart(
            "Speed",
            Axis::linear("tokens per second"),
            vec![line("tokens per second", 3, &|at| Some(at.tokens_per_second))],
        ),
    ];
    let caption = "Learning rates of the schedule, global norm of the gradient, and speed without \
                   validation and checkpoints.";
    (!steps.is_empty())
        .then(|| Explained::of_panels("course", caption.into(), "Course of the run", &charts, 3))
}

/// Points of a line that a page still shows apart.
const MOST_POINTS: usize = 1000;

/// Every step, or of many every so-manieth and the last.
fn thinned(steps: &[StepFigures]) -> impl Iterator<Item = &StepFigures> {
    let every = steps.len().div_ceil(MOST_POINTS).max(1);
    let last = steps.len().saturating_sub(1);
    let kept = steps.iter().enumerate();
    kept.filter(move |(index, _)| index % every == 0 || *index == last).map(|(_, at)| at)
}
