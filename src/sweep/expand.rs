//! A sweep's runs: every combination of variant, axes, searched values and seed, as a complete
//! spec.

use super::equal::{Solver, Wish};
use super::sweep_spec::{Budget, SearchSpec, SweepSpec, Unknown, VariantSpec};
use crate::error::Failure;
use crate::report::last_key;
use crate::spec::{Plan, RunSpec};
use crate::train::load_plan;
use anyhow::Result;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A sweep with its runs.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// As written.
    pub spec: SweepSpec,
    /// Its runs, those that search before those that repeat.
    pub runs: Vec<PlannedRun>,
}

/// One run.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Name of its folder, unique in the sweep.
    pub id: String,
    /// Name of its variant.
    pub variant: String,
    /// The method of which it is one size.
    pub family: String,
    /// Values of the axes as written, by key path.
    pub axes: BTreeMap<String, String>,
    /// Searched values as written, by key path.
    pub tuned: BTreeMap<String, String>,
    /// Its seed.
    pub seed: u64,
    /// Whether it only searches: its seed is not among those reported.
    pub searches_only: bool,
    /// Whether its searched values must be the best of the search for it to be run.
    pub repeats_the_best: bool,
    /// The setting that meets the sweep's budget, as on the command line; none if nothing was
    /// solved for.
    pub solved: Option<String>,
    /// Its complete spec.
    pub spec: RunSpec,
    /// Its plan.
    pub plan: Plan,
}

impl PlannedRun {
    /// What a table calls it: the variant and the axes' values.
    pub fn group(&self) -> String {
        let axes = self.axes.iter().map(|(key, value)| format!("{} {value}", last_key(key)));
        std::iter::once(self.variant.clone()).chain(axes).collect::<Vec<_>>().join(", ")
    }
}

/// One choice of values: key path to value.
type Choice = BTreeMap<String, Value>;

impl Sweep {
    /// Expands a sweep; `solver` finds the steps or ranks of equal budgets.
    ///
    /// # Errors
    /// [`Failure::Usage`] if a run's settings make no good spec (naming the run), two runs have one
    /// name, or a budget cannot be met.
    pub fn expand(sweep: &SweepSpec, file: &Path, solver: &mut dyn Solver) -> Result<Self> {
        let base = file.parent().unwrap_or(Path::new(".")).join(&sweep.base);
        let baseline = sweep.baseline.as_ref().map_or(&sweep.variants[0], |name| {
            sweep
                .variants
                .iter()
                .find(|variant| variant.name == *name)
                .unwrap_or(&sweep.variants[0])
        });
        let mut runs = Vec::new();
        let apart = sweep.search.apart();
        for (position, seed) in apart.iter().chain(&sweep.seeds).enumerate() {
            let searches_only = position < apart.len();
            for variant in &sweep.variants {
                let searched = combinations(&variant.tune).len() > 1;
                if searches_only && !searched {
                    continue;
                }
                for axes in combinations(&sweep.axes) {
                    for tuned in combinations(&variant.tune) {
                        let point = GridPoint {
                            sweep,
                            base: &base,
                            variant,
                            axes: &axes,
                            tuned: &tuned,
                            seed: *seed,
                        };
                        let (spec, plan, solved) = point.solved(baseline, solver)?;
                        runs.push(PlannedRun {
                            id: spec.name.clone(),
                            variant: variant.name.clone(),
                            family: variant.family.as_ref().unwrap_or(&variant.name).clone(),
                            axes: written(&axes),
                            tuned: written(&tuned),
                            seed: *seed,
                            searches_only,
                            repeats_the_best: searched
                                && match sweep.search {
                                    SearchSpec::AllSeeds => false,
                                    SearchSpec::FirstSeed => position > 0,
                                    SearchSpec::Seeds(_) => !searches_only,
                                },
                            solved,
                            spec,
                            plan,
                        });
                    }
                }
            }
        }
        for (index, run) in runs.iter().enumerate() {
            if runs[..index].iter().any(|other| other.id == run.id) {
                let message =
                    format!("two runs are named `{}`; give the variants other names", run.id);
                return Err(Failure::Usage(format!("{}: {message}", file.display())).into());
            }
        }
        // What repeats the best waits for the search: first everything that searches.
        runs.sort_by_key(|run| run.repeats_the_best);
        Ok(Self { spec: sweep.clone(), runs })
    }
}

/// One run before it is made.
struct GridPoint<'a> {
    sweep: &'a SweepSpec,
    base: &'a PathBuf,
    variant: &'a VariantSpec,
    axes: &'a Choice,
    tuned: &'a Choice,
    seed: u64,
}

impl GridPoint<'_> {
    /// The run with its budget solved, and the setting that does it.
    fn solved(
        &self,
        baseline: &VariantSpec,
        solver: &mut dyn Solver,
    ) -> Result<(RunSpec, Plan, Option<String>)> {
        let (spec, plan) = self.load(&[])?;
        let equal = self.sweep.equal.filter(|_| self.variant.solve != Some(Unknown::Nothing));
        let Some(equal) = equal else { return Ok((spec, plan, None)) };
        let of_baseline = |solver: &mut dyn Solver| {
            let first: Choice = baseline
                .tune
                .iter()
                .filter_map(|(key, values)| Some((key.clone(), values.first()?.clone())))
                .collect();
            let point = GridPoint { variant: baseline, tuned: &first, ..*self };
            solver.spending(equal, &point.load(&[])?.1)
        };
        let amount = match equal.budget() {
            Budget::Amount(amount) => amount,
            // What the others are measured by stays as it is.
            _ if self.variant.name == baseline.name => return Ok((spec, plan, None)),
            Budget::Baseline => of_baseline(solver)?,
            Budget::ShareOfBaseline(share) => share * of_baseline(solver)?,
        };
        let wish = Wish { equal, amount, unknown: self.variant.solve };
        let load = |setting: &str| Ok(self.load(&[setting.to_owned()])?.1);
        let setting = solver.solve(wish, &plan, &load).map_err(|error| self.failed(&error))?;
        let (spec, plan) = self.load(std::slice::from_ref(&setting))?;
        Ok((spec, plan, Some(setting)))
    }

    fn load(&self, more: &[String]) -> Result<(RunSpec, Plan)> {
        let mut overrides = settings(&self.sweep.set);
        overrides.extend(settings(&self.variant.set));
        overrides.extend(settings(self.axes));
        overrides.extend(settings(self.tuned));
        overrides.push(format!("seed={}", self.seed));
        overrides.push(format!("name={}", self.id()));
        overrides.extend_from_slice(more);
        load_plan(self.base, &overrides).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &anyhow::Error) -> anyhow::Error {
        Failure::Usage(format!("run `{}` of sweep `{}`: {error:#}", self.id(), self.sweep.name))
            .into()
    }

    /// `spectral-rank-32-learning_rate-0.01-seed-1337`.
    fn id(&self) -> String {
        let values = self
            .axes
            .iter()
            .chain(self.tuned)
            .map(|(key, value)| format!("-{}-{}", last_key(key), text(value)));
        let id = format!("{}{}-seed-{}", self.variant.name, values.collect::<String>(), self.seed);
        id.chars()
            .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
            .collect()
    }
}

/// All combinations of one value for each key, the last key's values changing fastest; one empty
/// choice of no keys.
fn combinations(axes: &BTreeMap<String, Vec<Value>>) -> Vec<Choice> {
    axes.iter().fold(vec![Choice::new()], |choices, (key, values)| {
        let extend = |choice: Choice| {
            values.iter().map(move |value| {
                [(key.clone(), value.clone())].into_iter().chain(choice.clone()).collect()
            })
        };
        choices.into_iter().flat_map(extend).collect()
    })
}

/// As settings of the command line; JSON is YAML.
fn settings(choice: &Choice) -> Vec<String> {
    choice.iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn written(choice: &Choice) -> BTreeMap<String, String> {
    choice.iter().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// A value as a person writes it.
fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
