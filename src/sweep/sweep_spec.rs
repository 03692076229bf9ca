//! What a user may write in a sweep's YAML file.

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
}

/// One method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantSpec {
    /// Name in tables and folders.
    pub name: String,
    /// Its settings.
    #[serde(default)]
    pub set: BTreeMap<String, Value>,
    /// Settings of which the best value is looked for: `optimizer.dense.adamw.learning_rate: [1e-3,
    /// 3e-3]`.
    #[serde(default)]
    pub tune: BTreeMap<String, Vec<Value>>,
}

/// What every run spends alike: as much as the baseline, or as given.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Equal {
    /// Training tokens; solved by `train.max_steps`.
    Tokens(Budget),
    /// Trained numbers; solved by the rank, the largest that is within.
    Parameters(Budget),
    /// Counted operations; solved by `train.max_steps`.
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchSpec {
    /// On all.
    #[default]
    AllSeeds,
    /// On the first; the others are run with each variant's best value only.
    FirstSeed,
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
    let variants = sweep.variants.iter().map(|variant| product(&variant.tune));
    variants
        .fold(0, usize::saturating_add)
        .saturating_mul(product(&sweep.axes))
        .saturating_mul(sweep.seeds.len())
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
        let twice = sweep.variants[..index].iter().any(|other| other.name == variant.name);
        require(!twice, "variants", format!("two are named `{}`", variant.name));
        for (key, values) in &variant.tune {
            require(
                !values.is_empty(),
                "variants",
                format!("`{}`: tune: `{key}` has no value", variant.name),
            );
        }
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
