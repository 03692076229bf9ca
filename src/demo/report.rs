//! The outcome of the demonstration as text and charts.

use super::method::Method;
use super::momentum::{MethodOutcome, MomentumReport, ProblemOutcome};
use crate::plot::{Axis, Chart, Mark, Series, figure};
use std::fmt;

impl MomentumReport {
    /// One SVG image with two charts per problem: the error over the steps at the best learning
    /// rate of each method, and the final error over the learning rates.
    pub fn figure(&self) -> String {
        let charts: Vec<Chart> = self
            .problems
            .iter()
            .flat_map(|outcome| [over_steps(outcome), over_rates(outcome)])
            .collect();
        figure("Momentum on factors and in the tangent space", &charts, 2)
    }
}

const ERROR: &str = "‖W − W*‖ / ‖W*‖";

fn over_steps(outcome: &ProblemOutcome) -> Chart {
    let series = outcome.methods.iter().filter_map(|method| {
        let curve = &method.chosen()?.curve;
        let points = curve.iter().enumerate().map(|(step, error)| (step as f64, *error)).collect();
        Some(Series::new(
            method.method.name(),
            mark(method.method, false),
            colour(method.method),
            points,
        ))
    });
    Chart {
        title: outcome.problem.name.to_owned(),
        x: Axis::linear("step, at each method's best learning rate"),
        y: Axis::log(ERROR),
        series: series.collect(),
    }
}

fn over_rates(outcome: &ProblemOutcome) -> Chart {
    let series = outcome.methods.iter().map(|method| {
        let points = method.rates.iter().map(|rate| (rate.rate, rate.mean())).collect();
        Series::new(method.method.name(), mark(method.method, true), colour(method.method), points)
    });
    Chart {
        title: outcome.problem.name.to_owned(),
        x: Axis::log("peak learning rate (lines stop at divergence)"),
        y: Axis::log(ERROR),
        series: series.collect(),
    }
}

/// The colour of a rule, the same on factors and in the tangent space.
fn colour(method: Method) -> usize {
    match method {
        Method::FactoredHeavyBall | Method::HeavyBall => 0,
        Method::FactoredAdam | Method::Adam => 1,
        Method::MatrixAdam => 2,
        Method::Spectral => 3,
    }
}

/// Dashed for the methods on factors.
fn mark(method: Method, dots: bool) -> Mark {
    match (method.is_factored(), dots) {
        (true, _) => Mark::Dashed,
        (false, true) => Mark::LineWithDots,
        (false, false) => Mark::Line,
    }
}

impl fmt::Display for MomentumReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let experiment = &self.experiment;
        let (first, last) = (
            experiment.rates.first().copied().unwrap_or(0.0),
            experiment.rates.last().copied().unwrap_or(0.0),
        );
        writeln!(
            f,
            "f(W) = ½ ‖W − W*‖², W 24 x 16 of rank 4; {} steps, {} seeds, each method at the best of {} learning rates from {first:.0e} to {last:.0e}, cosine to zero",
            experiment.steps,
            experiment.seeds,
            experiment.rates.len()
        )?;
        writeln!(
            f,
            "error: ‖W − W*‖ / ‖W*‖ after the last step, geometric mean over the seeds and the range"
        )?;
        for outcome in &self.problems {
            writeln!(f, "\n{}\n  {}", outcome.problem.name, outcome.problem.lesson)?;
            writeln!(
                f,
                "  {:<20}{:>10}{:>22}{:>12}{:>17}",
                "method", "error", "range", "best rate", "diverges from"
            )?;
            for method in &outcome.methods {
                writeln!(f, "  {:<20}{}", method.method.name(), row(method))?;
            }
        }
        let edges = self
            .problems
            .iter()
            .flat_map(|problem| problem.methods.iter().map(move |method| (problem, method)));
        for (problem, method) in edges.filter(|(_, method)| method.at_edge()) {
            writeln!(
                f,
                "\n{}, {}: the best rate is at the edge of the list",
                problem.problem.name,
                method.method.name()
            )?;
        }
        Ok(())
    }
}

fn row(method: &MethodOutcome) -> String {
    let diverges = method.diverges_from().map_or("–".to_owned(), |rate| format!("{rate:.1e}"));
    match method.chosen() {
        Some(chosen) => {
            let (low, high) = chosen.range();
            format!(
                "{:>10.1e}{:>22}{:>12.1e}{diverges:>17}",
                chosen.mean(),
                format!("{low:.1e} – {high:.1e}"),
                chosen.rate
            )
        }
        None => format!("{:>10}{:>22}{:>12}{diverges:>17}", "diverges", "–", "–"),
    }
}
