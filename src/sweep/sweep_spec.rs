//! What a user may write in a sweep's YAML file.

use crate::report::Goal;
use crate::spec::{decode_document, name_problem};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Many runs: a base spec, named variants of it, axes and seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SweepSpec {
    /// Name of the sweep; its folder is `runs/<name>`.
    pub name: String,
    /// The run spec that everything below changes, relative to this file.
    pub base: PathBuf,
    /// Settings of every run: `train.max_steps: 300`.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
    /// The methods compared.
    pub variants: Vec<VariantSpec>,
    /// Settings of which every variant takes every value: `model.n_layer: [2, 4]`.
    #[serde(default)]
    pub axes: BTreeMap<String, Vec<Value>>,
    /// Every run is repeated with each of these seeds.
    pub seeds: Vec<u64>,
    /// The variant that others are compared with; default: the first.
    #[serde(default)]
    pub baseline: Option<String>,
    /// What every run spends alike.
    #[serde(default)]
    pub equal: Option<Equal>,
    /// On which seeds the values under `tune` are tried.
    #[serde(default)]
    pub search: SearchSpec,
    /// What counts as success; the report says which methods reach it.
    #[serde(default)]
    pub goal: Option<Goal>,
}

/// One method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantSpec {
    /// Name in tables and folders.
    pub name: String,
    /// The method of which this variant is one size: charts join the sizes by a line, and
    /// comparisons fit a power law to three or more. Default: its own name.
    #[serde(default)]
    pub family: Option<String>,
    /// Its settings.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
    /// Settings of which the best value is looked for: `optimizer.dense.adamw.learning_rate: [1e-3,
    /// 3e-3]`.
    #[serde(default)]
    pub tune: BTreeMap<String, Vec<Value>>,
    /// What `equal` solves for; default: the steps, and for parameters the rank of low-rank weights
    /// and the width of a dense network.
    #[serde(default)]
    pub solve: Option<Unknown>,
}

/// The setting with which a budget is met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    /// `train.max_steps`, the nearest whole number.
    Steps,
    /// The rank of low-rank weights, the largest within the budget; under a budget of ranks the
    /// final one.
    Rank,
    /// `model.n_embd`, the largest multiple of the number of heads within the budget.
    Width,
    /// None: the variant stays as it is written, for a control beside the comparison.
    Nothing,
}

/// What every run spends alike: as much as the baseline, or as given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Equal {
    /// Training tokens; solved by `train.max_steps`.
    Tokens(Budget),
    /// Degrees of freedom at the end of training: r (m + n − r) for a low-rank weight, m n for a
    /// full one, and everything else as it is.
    Parameters(Budget),
    /// Counted operations.
    Flops(Budget),
    /// Seconds of training steps, from a calibration on this machine; solved by `train.max_steps`.
    Seconds(Budget),
}

/// How much of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Budget {
    /// What the baseline spends, with the same axes.
    Baseline,
    /// This share of what the baseline spends.
    ShareOfBaseline(f64),
    /// This much.
    Amount(f64),
}

/// On which seeds searched values are tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchSpec {
    /// On all.
    #[default]
    AllSeeds,
    /// On the first; the others are run with each variant's best value only.
    FirstSeed,
    /// On these, which are not reported: the seeds of the sweep are run with each variant's best
    /// value only, so that no figure of the report chose it.
    Seeds(Vec<u64>),
}

impl SearchSpec {
    /// Seeds of runs that only search; empty where the reported seeds search, too.
    pub fn apart(&self) -> &[u64] {
        match self {
            Self::AllSeeds | Self::FirstSeed => &[],
            Self::Seeds(seeds) => seeds,
        }
    }
}

/// Reads a sweep's file.
///
/// # Errors
/// [`Failure::Usage`](crate::error::Failure::Usage) with `file:line:column: key: what is wrong; the
/// remedy`.
pub fn read_sweep(path: &Path) -> anyhow::Result<SweepSpec> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| {
        crate::error::Failure::Usage(format!(
            "{name}: cannot read the sweep: {error}; give the path of a YAML file such as \
             configs/sweeps/quick.yaml"
        ))
    })?;
    decode_document(&text, &name, &|sweep: &SweepSpec| problems(sweep))
}

/// Most runs of a sweep.
const MAX_RUNS: usize = 10_000;

/// Runs that a sweep makes; saturates.
fn run_count(sweep: &SweepSpec) -> usize {
    let product = |values: &BTreeMap<String, Vec<Value>>| {
        values.values().map(Vec::len).fold(1usize, usize::saturating_mul)
    };
    let of_variant = |variant: &VariantSpec| {
        let values = product(&variant.tune);
        let searching = if values > 1 { sweep.search.apart().len() } else { 0 };
        values.saturating_mul(sweep.seeds.len().saturating_add(searching))
    };
    let variants = sweep.variants.iter().map(of_variant);
    variants.fold(0, usize::saturating_add).saturating_mul(product(&sweep.axes))
}

/// What is wrong with the wish to meet a budget by this setting; none if it can be met so.
fn unsolvable(equal: Option<Equal>, unknown: Unknown) -> Option<String> {
    let message = match (equal, unknown) {
        (None, _) => "solves for nothing without `equal`; add `equal`, or remove `solve`",
        (Some(Equal::Parameters(_)), Unknown::Steps) => {
            "steps do not change parameters; choose `rank` or `width`"
        }
        (Some(Equal::Tokens(_)), Unknown::Rank | Unknown::Width) => {
            "neither rank nor width changes tokens; choose `steps`"
        }
        (Some(Equal::Seconds(_)), Unknown::Rank | Unknown::Width) => {
            "seconds are met by steps alone, as every other shape would have to be timed; choose \
             `steps`, or `equal: {flops: …}`"
        }
        (Some(_), Unknown::Nothing)
        | (Some(Equal::Parameters(_) | Equal::Flops(_)), Unknown::Rank | Unknown::Width)
        | (Some(Equal::Tokens(_) | Equal::Flops(_) | Equal::Seconds(_)), Unknown::Steps) => {
            return None;
        }
    };
    Some(message.to_owned())
}

/// Key path and what is wrong with the value there.
fn problems(sweep: &SweepSpec) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut require = |holds: bool, path: &str, message: String| {
        if !holds {
            found.push((path.to_owned(), message));
        }
    };
    let named = name_problem(&sweep.name);
    require(named.is_none(), "name", named.unwrap_or_default());
    require(!sweep.variants.is_empty(), "variants", "is empty; name at least one method".into());
    require(!sweep.seeds.is_empty(), "seeds", "is empty; give at least one seed".into());
    for (index, seed) in sweep.seeds.iter().enumerate() {
        require(!sweep.seeds[..index].contains(seed), "seeds", format!("has {seed} twice"));
    }
    for (index, variant) in sweep.variants.iter().enumerate() {
        let named = name_problem(&variant.name);
        require(named.is_none(), "variants", named.unwrap_or_default());
        require(
            variant.family.as_deref() != Some(""),
            "variants",
            format!("`{}`: family is empty; name the method, or remove the key", variant.name),
        );
        let twice = sweep.variants[..index].iter().any(|other| other.name == variant.name);
        require(!twice, "variants", format!("two are named `{}`", variant.name));
        for (key, values) in &variant.tune {
            require(
                !values.is_empty(),
                "variants",
                format!("`{}`: tune: `{key}` has no value", variant.name),
            );
        }
        if let Some(problem) = variant.solve.and_then(|solve| unsolvable(sweep.equal, solve)) {
            require(false, "variants", format!("`{}`: solve: {problem}", variant.name));
        }
    }
    if let SearchSpec::Seeds(seeds) = &sweep.search {
        require(!seeds.is_empty(), "search", "`seeds` is empty; give at least one seed".into());
        for (index, seed) in seeds.iter().enumerate() {
            require(!seeds[..index].contains(seed), "search", format!("`seeds` has {seed} twice"));
            let message = format!(
                "seed {seed} is also among the reported `seeds`; search on seeds of its own"
            );
            require(!sweep.seeds.contains(seed), "search", message);
        }
    }
    if let Some(problem) = sweep.goal.and_then(Goal::problem) {
        require(false, "goal", problem);
    }
    for (key, values) in &sweep.axes {
        require(!values.is_empty(), "axes", format!("`{key}` has no value"));
    }
    let runs = run_count(sweep);
    require(
        runs <= MAX_RUNS,
        if sweep.axes.is_empty() { "variants" } else { "axes" },
        format!("these make {runs} runs, and a sweep has at most {MAX_RUNS}; give fewer values"),
    );
    if let Some(baseline) = &sweep.baseline {
        let names: Vec<&str> = sweep.variants.iter().map(|variant| variant.name.as_str()).collect();
        require(
            names.contains(&baseline.as_str()),
            "baseline",
            format!("`{baseline}` is no variant; there are: {}", names.join(", ")),
        );
    }
    let (Some(Equal::Tokens(budget))
    | Some(Equal::Parameters(budget))
    | Some(Equal::Flops(budget))
    | Some(Equal::Seconds(budget))) = sweep.equal
    else {
        return found;
    };
    if let Budget::Amount(amount) | Budget::ShareOfBaseline(amount) = budget {
        require(
            amount > 0.0 && amount.is_finite(),
            "equal",
            format!("{amount} is no budget; give a number above 0"),
        );
    }
    found
}
