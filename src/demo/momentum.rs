//! Every method on every problem, over learning rates and seeds.

use super::method::Method;
use super::problem::{Instance, Problem};
use crate::optim::Schedule;
use crate::spec::{Count, DecayScheduleSpec, ScheduleSpec};
use candle_core::Result;
use rayon::prelude::*;
use serde::Serialize;

/// What is run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Experiment {
    /// Steps of a run, over which the learning rate falls to zero along a cosine.
    pub steps: u64,
    /// Draws of each problem: matrices and noise.
    pub seeds: u64,
    /// Learning rates tried with every method, in increasing order.
    pub rates: Vec<f64>,
}

impl Default for Experiment {
    /// 300 steps, three seeds, and eleven rates from 10⁻⁴ to 10, two per decade.
    fn default() -> Self {
        Self {
            steps: 300,
            seeds: 3,
            rates: (0..11).map(|i| 10f64.powf(-4.0 + 0.5 * f64::from(i))).collect(),
        }
    }
}

/// The outcome of the demonstration.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MomentumReport {
    /// What was run.
    pub experiment: Experiment,
    /// The problems in their order.
    pub problems: Vec<ProblemOutcome>,
}

/// All methods on one problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ProblemOutcome {
    /// The problem.
    pub problem: Problem,
    /// The methods in their order.
    pub methods: Vec<MethodOutcome>,
}

/// One method on one problem.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MethodOutcome {
    /// The method.
    pub method: Method,
    /// One outcome for each learning rate, in increasing order.
    pub rates: Vec<RateOutcome>,
    /// Index of the rate with the lowest mean error; none if every rate diverged on some seed.
    pub best: Option<usize>,
}

/// One method at one learning rate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RateOutcome {
    /// Peak learning rate.
    pub rate: f64,
    /// ‖W − W*‖_F / ‖W*‖_F after the last step, for each seed; not a finite number (null in JSON)
    /// where the run diverged.
    pub errors: Vec<f64>,
    /// The same before each step and after the last, as geometric mean over the seeds; it ends
    /// early where a run diverged.
    pub curve: Vec<f64>,
}

impl RateOutcome {
    /// Geometric mean of the final errors; infinite if any run diverged.
    pub fn mean(&self) -> f64 {
        geometric_mean(&self.errors)
    }

    /// Smallest and largest of the final errors.
    pub fn range(&self) -> (f64, f64) {
        self.errors
            .iter()
            .fold((f64::INFINITY, 0.0), |(low, high), error| (low.min(*error), high.max(*error)))
    }
}

impl MethodOutcome {
    /// The outcome at the best rate.
    pub fn chosen(&self) -> Option<&RateOutcome> {
        self.best.map(|index| &self.rates[index])
    }

    /// Final error at the best rate; infinite if there is none.
    pub fn error(&self) -> f64 {
        self.chosen().map_or(f64::INFINITY, RateOutcome::mean)
    }

    /// Whether the best rate is the lowest or the highest tried, which means that the method was
    /// not tuned.
    pub fn at_edge(&self) -> bool {
        self.best.is_some_and(|index| index == 0 || index + 1 == self.rates.len())
    }

    /// The lowest rate at which a run diverged.
    pub fn diverges_from(&self) -> Option<f64> {
        self.rates.iter().find(|rate| rate.mean() == f64::INFINITY).map(|rate| rate.rate)
    }
}

impl ProblemOutcome {
    /// The outcome of a method.
    pub fn of(&self, method: Method) -> Option<&MethodOutcome> {
        self.methods.iter().find(|outcome| outcome.method == method)
    }
}

/// A run has diverged when its error exceeds this multiple of the initial error.
const DIVERGED: f64 = 1e3;

/// Runs all methods on these problems, in parallel on the available threads. The numbers are the
/// same for any number of threads.
///
/// # Errors
/// If a tensor cannot be made. A factorisation that fails on numbers that are not finite is a
/// divergence, not an error.
pub fn run(problems: &[Problem], experiment: &Experiment) -> Result<MomentumReport> {
    let seeds: Vec<u64> = (0..experiment.seeds).collect();
    let outcome = |problem: &Problem| -> Result<ProblemOutcome> {
        let instances = seeds.iter().map(|seed| problem.draw(*seed)).collect::<Result<Vec<_>>>()?;
        let cells: Vec<(Method, f64)> = Method::ALL
            .iter()
            .flat_map(|method| experiment.rates.iter().map(move |rate| (*method, *rate)))
            .collect();
        let outcomes = cells
            .par_iter()
            .map(|(method, rate)| {
                let curves = instances
                    .iter()
                    .map(|instance| descend(*method, instance, *rate, experiment.steps))
                    .collect::<Result<Vec<_>>>()?;
                Ok(rate_outcome(*rate, &curves, experiment.steps))
            })
            .collect::<Result<Vec<_>>>()?;
        let by_method = outcomes.chunks(experiment.rates.len());
        let methods = Method::ALL.iter().zip(by_method).map(|(method, rates)| MethodOutcome {
            method: *method,
            best: best(rates),
            rates: rates.to_vec(),
        });
        Ok(ProblemOutcome { problem: *problem, methods: methods.collect() })
    };
    Ok(MomentumReport {
        experiment: experiment.clone(),
        problems: problems.iter().map(outcome).collect::<Result<_>>()?,
    })
}

/// The errors of one run before each step and after the last; it ends early where the run diverges.
fn descend(
    method: Method,
    instance: &Instance,
    learning_rate: f64,
    steps: u64,
) -> Result<Vec<f64>> {
    let schedule = Schedule::new(
        ScheduleSpec::Cosine(DecayScheduleSpec { warmup_steps: Count(0), final_ratio: 0.0 }),
        steps,
    );
    let (mut weights, mut noise) = (method.start(instance)?, instance.noise());
    let mut errors = Vec::with_capacity(steps as usize + 1);
    for step in 1..=steps + 1 {
        let exact = instance.gradient(&weights.product()?)?;
        let error = instance.error(&exact)?;
        if !error.is_finite() || errors.first().is_some_and(|first| error > DIVERGED * first) {
            break;
        }
        errors.push(error);
        let gradient = (exact + noise()?)?;
        // A step that meets a number that is not finite returns an error and changes nothing.
        if step <= steps
            && weights.step(&gradient, learning_rate * schedule.factor(step), step).is_err()
        {
            break;
        }
    }
    Ok(errors)
}

fn rate_outcome(rate: f64, curves: &[Vec<f64>], steps: u64) -> RateOutcome {
    let whole = steps as usize + 1;
    let length = curves.iter().map(Vec::len).min().unwrap_or(0);
    let at =
        |index: usize| geometric_mean(&curves.iter().map(|curve| curve[index]).collect::<Vec<_>>());
    let last =
        |curve: &Vec<f64>| if curve.len() == whole { curve[whole - 1] } else { f64::INFINITY };
    RateOutcome {
        rate,
        errors: curves.iter().map(last).collect(),
        curve: (0..length).map(at).collect(),
    }
}

fn best(rates: &[RateOutcome]) -> Option<usize> {
    let finite = rates.iter().enumerate().filter(|(_, rate)| rate.mean().is_finite());
    finite.min_by(|(_, a), (_, b)| a.mean().total_cmp(&b.mean())).map(|(index, _)| index)
}

fn geometric_mean(values: &[f64]) -> f64 {
    (values.iter().map(|value| value.ln()).sum::<f64>() / values.len() as f64).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_diverged_counts_as_infinite() {
        let outcome = rate_outcome(0.1, &[vec![1.0, 0.5, 0.25], vec![1.0, 2.0]], 2);
        assert_eq!(
            (outcome.errors.as_slice(), outcome.curve.len()),
            ([0.25, f64::INFINITY].as_slice(), 2)
        );
        assert_eq!(outcome.mean(), f64::INFINITY);
        let sound = rate_outcome(0.01, &[vec![1.0, 1.0, 0.5], vec![1.0, 1.0, 0.125]], 2);
        assert!((sound.mean() - 0.25).abs() < 1e-15);
        assert_eq!(sound.range(), (0.125, 0.5));
        let both = MethodOutcome {
            method: Method::Adam,
            best: best(&[sound.clone(), outcome.clone()]),
            rates: vec![sound, outcome],
        };
        assert_eq!((both.best, both.at_edge(), both.diverges_from()), (Some(0), true, Some(0.1)));
    }
}
