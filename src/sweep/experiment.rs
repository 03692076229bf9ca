//! A sweep, or single runs, as an experiment to compare.

use super::manifest::{ManifestRun, RunState, Stage, SweepManifest};
use super::sweep_spec::{Budget, Equal, SearchSpec};
use crate::error::Failure;
use crate::report::{LabelledRun, RunResults};
use crate::spec::Plan;
use crate::train::RunFolder;
use anyhow::Result;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn label(
    run: &ManifestRun,
    folder: &Path,
    state: &RunState,
    not_needed: bool,
) -> Result<LabelledRun> {
    let path = folder.join(&run.id);
    let results =
        RunFolder::new(&path).holds_a_run().then(|| RunResults::read(&path)).transpose()?;
    let failure = match state {
        RunState::Failed(code, message) => Some(format!(
            "failed ({}): {message}",
            code.map_or("killed".into(), |code| format!("exit code {code}"))
        )),
        _ => None,
    };
    Ok(LabelledRun {
        id: run.id.clone(),
        family: run.family.as_ref().unwrap_or(&run.variant).clone(),
        group: run.group.clone(),
        tuned: run.tuned.clone(),
        seed: run.seed,
        searches_only: run.searches_only,
        results,
        failure,
        not_needed,
    })
}

/// A sweep as an experiment to compare: its manifest, its runs, and the rule in words by which it
/// saved runs.
///
/// # Errors
/// If the folder holds no sweep, or a run cannot be read.
pub fn experiment(folder: &Path) -> Result<(SweepManifest, Vec<LabelledRun>, Option<String>)> {
    let manifest = SweepManifest::read(folder)?;
    let states = manifest.states(folder)?;
    let mut runs = Vec::with_capacity(manifest.runs.len());
    for (index, run) in manifest.runs.iter().enumerate() {
        let not_needed = manifest.stage(index, &states) == Stage::NotNeeded;
        runs.push(label(run, folder, &states[index], not_needed)?);
    }
    let rule = rule(&manifest);
    Ok((manifest, runs, rule))
}

fn rule(manifest: &SweepManifest) -> Option<String> {
    let mut rules = Vec::new();
    if let SearchSpec::Seeds(seeds) = &manifest.search {
        let list = seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
        rules.push(format!(
            "Selection: searched values were chosen on seeds apart ({list}), of which no figure \
             here is made; each method's best was then run on the reported seeds."
        ));
    }
    if manifest.search == SearchSpec::FirstSeed {
        rules.push(
            "Learning rates were searched on the first seed; the others were run with each method's best only (declared in the sweep). The first seed \
             is one of the n, so a mean is a little better than on seeds that chose nothing."
                .to_owned(),
        );
    }
    if let Some(equal) = manifest.equal {
        let what = match equal {
            Equal::Tokens(_) => "tokens",
            Equal::Parameters(_) => {
                "parameters, counted as degrees of freedom, r (m + n − r) + the rest"
            }
            Equal::Flops(_) => "FLOPs",
            Equal::Seconds(_) => "seconds of training steps, as calibrated before the sweep",
        };
        let much = match equal.budget() {
            Budget::Baseline => format!("those of {}", manifest.baseline),
            Budget::ShareOfBaseline(share) => format!("{share} of those of {}", manifest.baseline),
            Budget::Amount(amount) => format!("{amount}"),
        };
        rules.push(format!("Every run was given the same {what}: {much}. Steps are met within half a step; ranks and \
             widths are the largest within."));
    }
    (!rules.is_empty()).then(|| rules.join(" "))
}

/// Runs that belong to no sweep as an experiment: those whose plans differ by their seed alone are
/// one group, named after the first. One that runs or was interrupted stands with its newest
/// validation.
///
/// # Errors
/// If a folder holds no run, naming it.
pub fn plain_runs(folders: &[PathBuf]) -> Result<Vec<LabelledRun>> {
    let mut groups: Vec<(String, Plan)> = Vec::new();
    let mut runs = Vec::new();
    for folder in folders {
        let mut results =
            RunResults::read(folder).map_err(|error| Failure::Usage(format!("{error:#}")))?;
        results.as_it_stands = true;
        let seed = results.plan.seed;
        let without_seed = Plan { seed: 0, ..results.plan.clone() };
        let known =
            groups.iter().find(|(_, plan)| plan.trajectory_differences(&without_seed).is_empty());
        let group = match known {
            Some((name, _)) => name.clone(),
            None => {
                let taken = groups.iter().any(|(name, _)| *name == results.plan.name);
                let name =
                    if taken { folder.display().to_string() } else { results.plan.name.clone() };
                groups.push((name.clone(), without_seed));
                name
            }
        };
        let id = folder.display().to_string();
        runs.push(LabelledRun {
            id,
            family: group.clone(),
            group,
            tuned: BTreeMap::new(),
            seed,
            searches_only: false,
            failure: results.diverged.map(|step| format!("diverged at step {step}")),
            results: Some(results),
            not_needed: false,
        });
    }
    Ok(runs)
}
