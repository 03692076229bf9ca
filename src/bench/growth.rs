//! How the time of a step grows with one setting, compared with how its counted operations grow.

use super::report::SecondsPerStep;
use super::steps::{StepCounts, time_steps};
use crate::account::Ledger;
use crate::figures::operations;
use crate::plot::{Axis, Chart, Mark, PowerLaw, Series};
use crate::spec::Plan;
use anyhow::{Context, Result};
use candle_core::Device;
use serde::Serialize;
use std::fmt;

/// Times and operations of a step at several values of one setting.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    /// Key path of the setting.
    pub key: String,
    /// One point for each value, in their order.
    pub points: Vec<GrowthPoint>,
    /// Fitted to the whole step.
    pub step: Exponents,
    /// Fitted to the low-rank optimizer; absent where nothing is low-rank.
    pub low_rank_optimizer: Option<Exponents>,
}

/// A step at one value.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GrowthPoint {
    /// The setting's value.
    pub value: f64,
    /// Times of a step.
    pub seconds_per_step: SecondsPerStep,
    /// Counted operations of a step.
    pub flops_per_step: u64,
    /// Those of the low-rank optimizer.
    pub low_rank_optimizer_flops_per_step: u64,
}

/// Slopes of ln y against the logarithm of the setting's value, by least squares: y grows roughly
/// like value^slope.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Exponents {
    /// Slope of the seconds: of the best step, which other work on the machine disturbs least, or
    /// of the mean of the low-rank optimizer.
    pub seconds: f64,
    /// Slope of the counted operations.
    pub flops: f64,
}

/// Times a step at each value of the setting, with the plan that has it and the size of that plan's
/// vocabulary.
///
/// # Errors
/// With fewer than two values, with a value that is not positive, or if a step fails.
pub fn growth(
    key: &str,
    settings: &[(f64, Plan, usize)],
    counts: StepCounts,
    device: &Device,
) -> Result<Growth> {
    let mut points = Vec::with_capacity(settings.len());
    for (value, plan, vocabulary_size) in settings {
        tracing::info!("{key} = {value}");
        let timed = time_steps(plan, *vocabulary_size, counts, device)?;
        let ledger = Ledger::new(plan, *vocabulary_size, rayon::current_num_threads());
        points.push(GrowthPoint {
            value: *value,
            seconds_per_step: timed.seconds_per_step,
            flops_per_step: ledger.flops_per_step(),
            low_rank_optimizer_flops_per_step: ledger.flops.low_rank_optimizer_per_step,
        });
    }
    let step =
        exponents(&points, &|point| point.seconds_per_step.best, &|point| point.flops_per_step)?;
    let low_rank_optimizer =
        match points.iter().all(|point| point.low_rank_optimizer_flops_per_step > 0) {
            true => Some(exponents(&points, &|p| p.seconds_per_step.low_rank_optimizer, &|p| {
                p.low_rank_optimizer_flops_per_step
            })?),
            false => None,
        };
    Ok(Growth { key: key.to_owned(), points, step, low_rank_optimizer })
}

fn exponents(
    points: &[GrowthPoint],
    seconds: &dyn Fn(&GrowthPoint) -> f64,
    flops: &dyn Fn(&GrowthPoint) -> u64,
) -> Result<Exponents> {
    let exponent = |y: &dyn Fn(&GrowthPoint) -> f64| {
        let pairs: Vec<_> = points.iter().map(|point| (point.value, y(point))).collect();
        let law = PowerLaw::through(&pairs).with_context(|| {
            format!("an exponent needs at least two different values, all positive, not {pairs:?}")
        })?;
        anyhow::Ok(law.exponent)
    };
    Ok(Exponents { seconds: exponent(seconds)?, flops: exponent(&|point| flops(point) as f64)? })
}

impl Growth {
    /// A chart of seconds against the setting on logarithmic axes: the step, its low-rank
    /// optimizer, and through the middle of each a line with the slope of its counted operations.
    pub fn chart(&self) -> Chart {
        let points = |y: &dyn Fn(&GrowthPoint) -> f64| {
            self.points.iter().map(|point| (point.value, y(point))).collect::<Vec<_>>()
        };
        let step = points(&|point| point.seconds_per_step.best);
        let mut series = vec![
            Series::new(
                "slope of the counted operations",
                Mark::Dashed,
                6,
                through_the_middle(&step, self.step.flops),
            ),
            Series::new(
                format!("step, exponent {:.2}", self.step.seconds),
                Mark::LineWithDots,
                0,
                step,
            ),
        ];
        if let Some(exponents) = self.low_rank_optimizer {
            let optimizer = points(&|point| point.seconds_per_step.low_rank_optimizer);
            let slope = through_the_middle(&optimizer, exponents.flops);
            series.push(Series::new("slope of the counted operations", Mark::Dashed, 6, slope));
            series.push(Series::new(
                format!("low-rank optimizer, {:.2}", exponents.seconds),
                Mark::LineWithDots,
                1,
                optimizer,
            ));
        }
        Chart {
            title: self.key.clone(),
            x: Axis::log(self.key.clone()),
            y: Axis::log("seconds per step"),
            series,
        }
    }
}

/// The power law with this exponent through the middle of the points (the means of their
/// logarithms), over their range.
fn through_the_middle(points: &[(f64, f64)], exponent: f64) -> Vec<(f64, f64)> {
    let count = points.len() as f64;
    let mean = |pick: fn(&(f64, f64)) -> f64| {
        points.iter().map(|point| pick(point).ln()).sum::<f64>() / count
    };
    let (middle_x, middle_y) = (mean(|point| point.0), mean(|point| point.1));
    points.iter().map(|(x, _)| (*x, (middle_y + exponent * (x.ln() - middle_x)).exp())).collect()
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.key)?;
        writeln!(
            f,
            "  {:>10}{:>14}{:>14}{:>22}{:>14}",
            "value", "seconds/step", "FLOPs/step", "low-rank optimizer s", "its FLOPs"
        )?;
        for point in &self.points {
            let seconds = point.seconds_per_step;
            writeln!(
                f,
                "  {:>10}{:>14.4}{:>14}{:>22.4}{:>14}",
                point.value,
                seconds.best,
                operations(point.flops_per_step as f64),
                seconds.low_rank_optimizer,
                operations(point.low_rank_optimizer_flops_per_step as f64)
            )?;
        }
        write!(f, "  {:>10}{:>14.2}{:>14.2}", "exponent", self.step.seconds, self.step.flops)?;
        match self.low_rank_optimizer {
            Some(exponents) => write!(f, "{:>22.2}{:>14.2}", exponents.seconds, exponents.flops),
            None => Ok(()),
        }
    }
}
