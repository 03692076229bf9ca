//! Compares groups of runs with a baseline.

use super::budget::{Spending, loss_at};
use super::goal::Goal;
use super::groups::{Group, Search};
use super::missing::missing;
use super::run_results::{Point, RunResults};
use super::statistics::{Estimate, paired_difference};
use crate::error::Failure;
use anyhow::Result;

/// Groups of runs side by side.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// What was compared, for the title.
    pub name: String,
    /// The rule by which the experiment left out runs, if it had one.
    pub rule: Option<String>,
    /// The groups that have results, best loss first, each with its figures.
    pub groups: Vec<(Group, GroupSummary)>,
    /// Index of the baseline in `groups`.
    pub baseline: Option<usize>,
    /// Groups without a finished run.
    pub empty: Vec<Group>,
    /// What counts as success, if anything was declared.
    pub goal: Option<Goal>,
}

/// The figures of a group: means over the seeds of its chosen candidate.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSummary {
    /// Final validation loss in nats per token.
    pub loss: Estimate,
    /// Trained numbers at the end.
    pub parameters: f64,
    /// Degrees of freedom at the end: r (m + n − r) for a low-rank weight, and the rest.
    pub manifold_dimension: f64,
    /// Bytes that training needs at once, counted from shapes: weights, gradients, moments,
    /// activations, and what a step works with.
    pub training_memory: f64,
    /// Tokens trained on.
    pub tokens: f64,
    /// Counted operations.
    pub flops: f64,
    /// Seconds of training steps.
    pub seconds: f64,
    /// Largest memory of the process in bytes; `None` if the system did not report it.
    pub peak_memory: Option<f64>,
    /// Loss at the point where the run had spent as much as the thriftiest of all compared runs
    /// spent in total, in the order of [`Spending::ALL`]; none if no validation had been made by
    /// then.
    pub loss_at_equal: [Option<f64>; 3],
    /// Final loss minus the baseline's on the same seeds; none for the baseline itself and where no
    /// seed is shared.
    pub difference: Option<PairedDifference>,
}

/// A difference over shared seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PairedDifference {
    /// Mean of loss − baseline's loss: negative is better.
    pub estimate: Estimate,
    /// Half the width of its 95% interval (Student's t); none for one seed.
    pub half_interval: Option<f64>,
    /// Two-sided p value of the hypothesis of no difference; none for one seed.
    pub p: Option<f64>,
}

/// Compares groups. The baseline is the group of this name, or the first group if none is named.
///
/// # Errors
/// [`Failure::Usage`] if no run is finished, the baseline is not among the groups, or runs differ
/// in their data, tokenizer or evaluation, naming two that do.
pub fn compare(
    name: &str,
    groups: Vec<Group>,
    baseline: Option<&str>,
    rule: Option<String>,
) -> Result<Comparison> {
    let first = groups.first().map(|group| group.name.clone());
    let (with, empty): (Vec<_>, Vec<_>) =
        groups.into_iter().partition(|group| group.loss().is_some());
    refuse_unequal(&with)?;
    if with.is_empty() {
        let reasons = missing(empty.iter().flat_map(|group| &group.missing));
        return Err(usage(format!(
            "{name}: no run is finished yet, so there is nothing to compare\n{}",
            reasons.join("\n")
        )));
    }
    let names: Vec<&str> = with.iter().map(|group| group.name.as_str()).collect();
    let of_name = |wanted: &str| {
        with.iter()
            .position(|group| group.name == wanted || group.name.split(", ").next() == Some(wanted))
    };
    let base = match baseline {
        Some(wanted) => Some(of_name(wanted).ok_or_else(|| {
            usage(format!("no finished group is called `{wanted}`, so it cannot be the baseline; there are: {}", names.join("; ")))
        })?),
        None => first.and_then(|first| of_name(&first)),
    };
    let chosen =
        || with.iter().flat_map(|group| group.chosen().runs.values()).filter_map(RunResults::last);
    let budgets = Spending::ALL
        .map(|spending| chosen().map(|point| spending.of(&point)).fold(f64::INFINITY, f64::min));
    let base_name = base.map(|index| with[index].name.clone());
    let base_group = base.map(|index| with[index].clone());
    let mut summarised: Vec<(Group, GroupSummary)> = with
        .into_iter()
        .filter_map(|group| Some((group.clone(), summary(&group, base_group.as_ref(), &budgets)?)))
        .collect();
    summarised.sort_by(|(_, a), (_, b)| a.loss.mean.total_cmp(&b.loss.mean));
    let baseline =
        base_name.and_then(|name| summarised.iter().position(|(group, _)| group.name == name));
    Ok(Comparison { name: name.to_owned(), rule, groups: summarised, baseline, empty, goal: None })
}

fn summary(group: &Group, baseline: Option<&Group>, budgets: &[f64; 3]) -> Option<GroupSummary> {
    let runs: Vec<&RunResults> = group.chosen().runs.values().collect();
    let mean = |of: &dyn Fn(&Point) -> f64| {
        mean(runs.iter().filter_map(|run| run.last()).map(|point| of(&point)))
    };
    let at_equal = |(spending, budget): (Spending, &f64)| {
        let losses: Option<Vec<f64>> =
            runs.iter().map(|run| loss_at(&run.validations, spending, *budget)).collect();
        self::mean(losses?.into_iter())
    };
    let mut loss_at_equal = [None; 3];
    loss_at_equal
        .iter_mut()
        .zip(Spending::ALL.into_iter().zip(budgets))
        .for_each(|(loss, at)| *loss = at_equal(at));
    Some(GroupSummary {
        loss: group.loss()?,
        parameters: mean(&|point| point.parameters)?,
        manifold_dimension: self::mean(runs.iter().filter_map(|run| run.manifold_dimension()))?,
        training_memory: self::mean(runs.iter().map(|run| run.training_memory() as f64))?,
        tokens: mean(&|point| point.tokens)?,
        flops: mean(&|point| point.flops)?,
        seconds: mean(&|point| point.seconds)?,
        peak_memory: self::mean(
            runs.iter().filter_map(|run| run.peak_memory).map(|bytes| bytes as f64),
        ),
        loss_at_equal,
        difference: baseline
            .filter(|baseline| baseline.name != group.name)
            .and_then(|baseline| difference(group, baseline)),
    })
}

fn difference(group: &Group, baseline: &Group) -> Option<PairedDifference> {
    let (ours, theirs) = (group.chosen().losses(), baseline.chosen().losses());
    let pairs: Vec<(f64, f64)> =
        ours.iter().filter_map(|(seed, loss)| Some((*theirs.get(seed)?, *loss))).collect();
    let estimate = paired_difference(&pairs)?;
    Some(PairedDifference {
        estimate,
        half_interval: estimate.half_interval(),
        p: estimate.p_of_zero(),
    })
}

/// The mean; none if there are no values or one of them is unknown.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.collect();
    Estimate::of(&values).map(|estimate| estimate.mean)
}

/// Something two runs must have in common.
type Fact = fn(&RunResults) -> String;

/// Losses can be compared only if they are for the same text, in the same tokens, validated on the
/// same windows.
fn refuse_unequal(groups: &[Group]) -> Result<()> {
    let mut runs = groups
        .iter()
        .flat_map(|group| &group.candidates)
        .flat_map(|candidate| candidate.runs.values().chain(candidate.search_runs.values()));
    let Some(first) = runs.next() else { return Ok(()) };
    for other in runs {
        let facts: [(&str, Fact); 4] = [
            ("data", |run| short(&run.data.content_hash)),
            ("tokenizer", |run| short(&run.data.tokenizer_hash)),
            ("eval.tokens", |run| run.plan.eval.tokens.to_string()),
            ("model.block_size", |run| run.plan.model.block_size.to_string()),
        ];
        let differences: Vec<String> = facts
            .iter()
            .filter(|(_, fact)| fact(first) != fact(other))
            .map(|(what, fact)| format!("{what} {} and {}", fact(first), fact(other)))
            .collect();
        if !differences.is_empty() {
            return Err(usage(format!(
                "{} and {} cannot be compared, their losses are not of the same thing: {}; compare \
                 runs of one text, tokenizer and evaluation",
                first.folder.display(),
                other.folder.display(),
                differences.join(", ")
            )));
        }
    }
    Ok(())
}

fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

fn usage(message: String) -> anyhow::Error {
    Failure::Usage(message).into()
}

impl Group {
    /// The states of its runs that are not finished, each once: `running, step 120 of 800`; none
    /// where all are.
    pub fn unfinished(&self) -> Option<String> {
        let mut states: Vec<String> =
            self.chosen().runs.values().filter_map(RunResults::unfinished).collect();
        states.dedup();
        (!states.is_empty()).then(|| states.join("; "))
    }

    /// How far the choice of the searched settings can be trusted, in words.
    pub fn tuning(&self) -> String {
        match &self.search {
            Search::None => "not tuned: one value".to_owned(),
            Search::Inside(count) if !self.chosen().search_runs.is_empty() => {
                format!("chosen of {count} on seeds apart")
            }
            Search::Inside(count) => format!("best of {count}"),
            Search::Edge(_) => "not tuned: best at the edge of its list".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::groups::{LabelledRun, group_runs};
    use super::super::run_results::tests_support::finished;
    use super::*;
    use std::collections::BTreeMap;

    fn run(group: &str, seed: u64, loss: f64) -> LabelledRun {
        LabelledRun {
            id: format!("{group}-{seed}"),
            family: group.into(),
            group: group.into(),
            tuned: BTreeMap::new(),
            seed,
            searches_only: false,
            results: Some(finished(seed, loss)),
            failure: None,
            not_needed: false,
        }
    }

    /// Differences -0.1, -0.3, -0.2: mean -0.2, s = 0.1, standard error 0.0577350; t at 97.5% with
    /// two degrees of freedom 4.302653.
    #[test]
    fn differences_are_paired_by_seed() {
        let runs = [("dense", [2.0, 2.4, 2.2]), ("spectral", [1.9, 2.1, 2.0])];
        let runs = runs.iter().flat_map(|(name, losses)| {
            (1..).zip(losses).map(|(seed, loss)| run(name, seed, *loss))
        });
        let comparison =
            compare("t", group_runs(runs.collect()), Some("dense"), None).expect("comparable");
        assert_eq!(
            comparison.groups.iter().map(|(group, _)| group.name.as_str()).collect::<Vec<_>>(),
            ["spectral", "dense"]
        );
        assert_eq!(comparison.baseline, Some(1));
        assert_eq!(comparison.groups[1].1.difference, None);
        let difference = comparison.groups[0].1.difference.expect("three shared seeds");
        assert!((difference.estimate.mean + 0.2).abs() < 1e-12);
        assert!(
            (difference.half_interval.expect("an interval") - 4.302653 * 0.05773503).abs() < 1e-6
        );
        let summary = &comparison.groups[0].1;
        assert_eq!((summary.tokens, summary.flops, summary.parameters), (1200.0, 1e8, 5000.0));
        assert!((summary.loss_at_equal[0].expect("the same tokens") - 2.0).abs() < 1e-12);
    }

    #[test]
    fn other_data_are_refused_by_name() {
        let mut other = run("spectral", 1, 1.9);
        let results = other.results.as_mut().expect("results");
        results.data.content_hash = "0ther0ther0ther".into();
        results.plan.eval.tokens = crate::spec::Count(999);
        let error = compare("t", group_runs(vec![run("dense", 1, 2.0), other]), None, None)
            .unwrap_err()
            .to_string();
        insta::assert_snapshot!(error, @"runs/tiny-1 and runs/tiny-1 cannot be compared, their losses are not of the same thing: data c0ffee and 0ther0ther0t, eval.tokens 65536 and 999; compare runs of one text, tokenizer and evaluation");
    }

    #[test]
    fn an_unknown_baseline_and_nothing_finished_are_refused() {
        let error = compare("t", group_runs(vec![run("dense", 1, 2.0)]), Some("muon"), None)
            .unwrap_err()
            .to_string();
        assert!(error.contains("`muon`") && error.contains("dense"), "{error}");
        let pending = LabelledRun { results: None, ..run("dense", 1, 2.0) };
        let error = compare("t", group_runs(vec![pending]), None, None).unwrap_err().to_string();
        assert!(error.contains("dense-1: not begun"), "{error}");
    }
}
