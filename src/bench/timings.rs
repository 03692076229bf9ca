//! How long steps took on this machine, kept for those who ask how long a run will take.

use crate::fs::write_atomic;
use crate::spec::Plan;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Seconds of a step by kind of step, in the folder of prepared data.
const FILE: &str = "timings.json";

/// A step that was timed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Name of the spec.
    pub name: String,
    /// Median seconds of the steps.
    pub seconds: f64,
    /// Counted operations of a step.
    pub flops: f64,
    /// Where, and by how many threads.
    pub place: String,
}

/// How long a step is expected to take.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected<'a> {
    /// Steps of this very kind were timed.
    Timed(&'a Timing),
    /// As long as its operations take at the rate of the timed step whose number of them is nearest.
    AtTheRateOf(&'a Timing, f64),
}

impl Expected<'_> {
    /// Seconds of a step.
    pub fn seconds(&self) -> f64 {
        match self {
            Self::Timed(timing) => timing.seconds,
            Self::AtTheRateOf(_, seconds) => *seconds,
        }
    }
}

/// The steps that were timed on this machine.
#[derive(Debug)]
pub struct Timings {
    path: PathBuf,
    of_kind: BTreeMap<String, Timing>,
}

impl Timings {
    /// Those kept in this folder.
    ///
    /// # Errors
    /// If the file that is there cannot be read or is damaged.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let of_kind = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => BTreeMap::new(),
            read => {
                let bytes = read.with_context(|| format!("cannot read {}", path.display()))?;
                serde_json::from_slice(&bytes).with_context(|| {
                    format!(
                        "{} is damaged; delete it, and `lrpt bench SPEC` times anew",
                        path.display()
                    )
                })?
            }
        };
        Ok(Self { path, of_kind })
    }

    /// Keeps what was found of a plan's steps, in place of what was known of their kind.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn keep(&mut self, plan: &Plan, vocabulary: usize, timing: Timing) -> Result<()> {
        self.of_kind.insert(kind_at(plan, vocabulary, &timing.place), timing);
        if let Some(folder) = self.path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        write_atomic(&self.path, &serde_json::to_vec_pretty(&self.of_kind)?)
    }

    /// What is expected of a plan's steps with so many operations each; `None` if nothing was timed
    /// in this place.
    pub fn expected(
        &self,
        plan: &Plan,
        vocabulary: usize,
        flops: f64,
        place: &str,
    ) -> Option<Expected<'_>> {
        if let Some(timing) = self.of_kind.get(&kind_at(plan, vocabulary, place)) {
            return Some(Expected::Timed(timing));
        }
        let distance = |timing: &Timing| (timing.flops / flops).ln().abs();
        let here = self.of_kind.values().filter(|timing| timing.place == place);
        let nearest = here.min_by(|a, b| distance(a).total_cmp(&distance(b)));
        nearest.map(|timing| Expected::AtTheRateOf(timing, timing.seconds * flops / timing.flops))
    }
}

fn kind_at(plan: &Plan, vocabulary: usize, place: &str) -> String {
    format!("{place} {}", kind_of_step(plan, vocabulary))
}

/// What decides how long a step takes: everything but names, seeds, rates and lengths.
pub fn kind_of_step(plan: &Plan, vocabulary: usize) -> String {
    let mut value = serde_json::json!({
        "model": plan.model,
        "vocabulary": vocabulary,
        "batch": (plan.train.batch_size, plan.train.gradient_accumulation_steps),
        "optimizer": plan.optimizer,
    });
    forget_rates(&mut value);
    value.to_string()
}

fn forget_rates(value: &mut Value) {
    if let Value::Object(entries) = value {
        entries.retain(|key, _| key != "learning_rate" && key != "weight_decay");
        entries.values_mut().for_each(forget_rates);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_known_by_its_kind_and_else_judged_by_its_operations() {
        let folder = tempfile::tempdir().expect("a folder");
        let plan = |set: &[&str]| {
            let set: Vec<String> = set.iter().map(|set| (*set).to_owned()).collect();
            crate::spec::load_plan(Path::new("configs/gpt-small.yaml"), &set).expect("a plan").1
        };
        let (small, place) = (plan(&[]), "cpu, 2 threads");
        let timing = |name: &str, seconds: f64, flops: f64| Timing {
            name: name.to_owned(),
            seconds,
            flops,
            place: place.to_owned(),
        };
        let mut timings = Timings::read(folder.path()).expect("none yet");
        assert_eq!(timings.expected(&small, 4096, 1e9, place), None);
        timings.keep(&small, 4096, timing("small", 0.5, 1e9)).expect("kept");
        let wide = plan(&["model.n_embd=512"]);
        timings.keep(&wide, 4096, timing("wide", 8.0, 4e9)).expect("kept");

        let read = Timings::read(folder.path()).expect("two");
        let expected = |plan: &Plan, flops: f64, place: &str| {
            read.expected(plan, 4096, flops, place).map(|found| found.seconds())
        };
        let other_rate = plan(&["seed=3", "optimizer.low_rank.dlra.learning_rate=1e-3"]);
        assert_eq!(expected(&other_rate, 1e9, place), Some(0.5));
        assert_eq!(expected(&plan(&["train.batch_size=5"]), 0.6e9, place), Some(0.3));
        assert_eq!(expected(&plan(&["model.n_layer=9"]), 5e9, place), Some(10.0));
        assert_eq!(expected(&small, 1e9, "cpu, 4 threads"), None);

        std::fs::write(folder.path().join(FILE), "{").expect("written");
        let error = format!("{:#}", Timings::read(folder.path()).expect_err("damaged"));
        assert!(error.contains("timings.json is damaged; delete it"), "{error}");
    }
}
