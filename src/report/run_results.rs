//! Reads what the folder of a run says about it, whether the run is finished or not.

use super::clock::Clock;
use crate::account::Ledger;
use crate::data::DatasetSummary;
use crate::fs::{read_ordinary, read_text};
use crate::record::{MetricsLine, StepFigures, TruncationFigures};
use crate::spec::{
    AdapterForm, FactorForm, LowRankStart, ModelPlan, Plan, RankPlan, Target, WeightForm,
};
use crate::train::{Progress, RunFolder, RunState};
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One run, read from its folder.
#[derive(Clone, Debug)]
pub struct RunResults {
    /// The folder.
    pub folder: PathBuf,
    /// What was run.
    pub plan: Plan,
    /// What it was trained on.
    pub data: DatasetSummary,
    /// Computing threads and device, as recorded when the run began.
    pub machine: String,
    /// What has become of it.
    pub state: RunState,
    /// Whether its newest validation stands for its end, should it not have come there.
    pub as_it_stands: bool,
    /// The step at which the run diverged, if it did.
    pub diverged: Option<u64>,
    /// Steps that the run left out since they diverged.
    pub skipped_steps: u64,
    /// Times that the run went back to a checkpoint after a divergence.
    pub rollbacks: u64,
    /// Steps that were logged, in their order.
    pub steps: Vec<StepFigures>,
    /// Validations in the order of their steps.
    pub validations: Vec<Point>,
    /// Ranks of the low-rank weights, wherever they were recorded.
    pub ranks: Vec<RanksAt>,
    /// Singular values of the low-rank weights at each validation.
    pub spectra: Vec<SpectrumAt>,
    /// Truncations that decided a rank, in the order of their steps.
    pub truncations: Vec<TruncationFigures>,
    /// Mean seconds per step by phase, over the whole run.
    pub seconds_by_phase: BTreeMap<String, f64>,
    /// Largest memory of the process in bytes, where the system reports it.
    pub peak_memory: Option<u64>,
}

/// A validation, with what the run had spent by then.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Steps taken.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: f64,
    /// Counted operations.
    pub flops: f64,
    /// Seconds of training steps, without validation and checkpoints.
    pub seconds: f64,
    /// Trained numbers.
    pub parameters: f64,
    /// Validation loss in nats per token.
    pub loss: f64,
}

/// Ranks after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct RanksAt {
    /// Steps taken.
    pub step: u64,
    /// Name and rank of each low-rank weight, in the model's order.
    pub layers: Vec<(String, usize)>,
}

/// Singular values after a step.
#[derive(Clone, Debug, PartialEq)]
pub struct SpectrumAt {
    /// Steps taken.
    pub step: u64,
    /// Name and singular values, in decreasing order, of each low-rank weight.
    pub layers: Vec<(String, Vec<f64>)>,
}

impl RunResults {
    /// Reads a run's folder.
    ///
    /// # Errors
    /// If it holds no run, or if a line of its metrics other than the last is not a JSON object.
    pub fn read(folder: &Path) -> Result<Self> {
        let run = RunFolder::new(folder);
        let (plan, data) = (run.plan()?, run.data_summary()?);
        let machine = machine(&folder.join("env.json"));
        let mut results = Self {
            folder: folder.to_path_buf(),
            plan,
            data,
            machine,
            state: RunState::Interrupted,
            as_it_stands: false,
            diverged: None,
            skipped_steps: 0,
            rollbacks: 0,
            steps: Vec::new(),
            validations: Vec::new(),
            ranks: Vec::new(),
            spectra: Vec::new(),
            truncations: Vec::new(),
            seconds_by_phase: BTreeMap::new(),
            peak_memory: None,
        };
        let (mut clock, mut progress) = (Clock::default(), Progress::default());
        for line in lines(&run.metrics())? {
            results.take(MetricsLine::from(&line), &mut clock);
            progress.take(&line);
        }
        results.state = run.state(&progress, results.plan.train.max_steps.0);
        results.seconds_by_phase = clock.means();
        for line in lines(&run.spectra())? {
            let line = MetricsLine::from(&line);
            let layers = line.singular_values().map(|(name, values)| (name.to_owned(), values));
            let step = line.step().unwrap_or(0);
            results.spectra.push(SpectrumAt { step, layers: layers.collect() });
        }
        Ok(results)
    }

    fn take(&mut self, line: MetricsLine, clock: &mut Clock) {
        let step = line.step().unwrap_or(0);
        if let Some(trained) = line.training() {
            self.steps.push(trained);
            clock.advance(step, line);
            self.peak_memory = self.peak_memory.max(trained.peak_memory);
        }
        if line.is_divergence() {
            self.diverged = Some(step);
        }
        self.skipped_steps = self.skipped_steps.max(line.skipped_steps());
        self.rollbacks = self.rollbacks.max(line.rollbacks());
        self.validations.extend(line.validation().map(|validation| Point {
            step,
            tokens: validation.tokens,
            flops: validation.flops,
            seconds: clock.seconds_at(step),
            parameters: validation.parameters,
            loss: validation.loss,
        }));
        for truncation in line.truncations() {
            // A step with a validation has its ranks on two lines.
            let of_step = self.truncations.iter().rev().take_while(|known| known.step == step);
            if !of_step.map(|known| &known.name).any(|known| *known == truncation.name) {
                self.truncations.push(truncation);
            }
        }
        let layers: Vec<_> = line.ranks().map(|(name, rank)| (name.to_owned(), rank)).collect();
        if !layers.is_empty() && self.ranks.last().is_none_or(|last| last.step < step) {
            self.ranks.push(RanksAt { step, layers });
        }
    }

    /// Degrees of freedom at the end, r (m + n − r) for a low-rank weight and the rest as it is
    /// stored: what is stored less 2 r² for each U S Vᵀ and r² for each B A. None before the first
    /// validation, or if a run whose ranks are not those of its plan has not recorded them.
    pub fn manifold_dimension(&self) -> Option<f64> {
        let redundant = |form: WeightForm| match form {
            WeightForm::Dense => 0,
            WeightForm::LowRank { rank } | WeightForm::Factored { rank, form: FactorForm::Usv } => {
                2 * rank * rank
            }
            WeightForm::Adapter { rank, form: AdapterForm::LowRank, .. } => 2 * rank * rank,
            WeightForm::Factored { rank, form: FactorForm::Ba }
            | WeightForm::Adapter { rank, form: AdapterForm::Lora, .. } => rank * rank,
        };
        let redundant = match (&self.plan.rank, self.ranks.last()) {
            (RankPlan::Fixed, _) => {
                let model = self.model_as_cut()?;
                let forms =
                    model.places_with_head().map(|(layer, target)| model.form_in(layer, target));
                forms.map(redundant).sum::<usize>()
            }
            (_, Some(last)) => {
                let model = &self.plan.model;
                // A weight of full rank is dense there.
                let is_uncut = |name: &str, rank: usize| {
                    let full = place_of(name).map(|(_, target)| model.shape(target));
                    model.start == LowRankStart::Dense
                        && full.is_some_and(|(rows, columns)| rank == rows.min(columns))
                };
                let factors = last.layers.iter().filter(|(name, rank)| !is_uncut(name, *rank));
                factors.map(|(_, rank)| 2 * rank * rank).sum()
            }
            (_, None) => return None,
        };
        Some(self.validations.last()?.parameters - redundant as f64)
    }

    /// The model with the ranks that a cut before the first step left, which the first validation
    /// recorded; none before that.
    fn model_as_cut(&self) -> Option<ModelPlan> {
        let mut model = self.plan.model.clone();
        if self.plan.cut.is_some() {
            model.layers.resize_with(model.n_layer, BTreeMap::new);
            for (name, values) in &self.spectra.first()?.layers {
                let (layer, target) = place_of(name)?;
                model.layers.get_mut(layer)?.insert(target, values.len());
            }
        }
        Some(model)
    }

    /// Bytes that training needs at once at the ranks of its start, counted from shapes; of a run
    /// that began with a cut, until its first validation at those before the cut.
    pub fn training_memory(&self) -> u64 {
        let mut plan = self.plan.clone();
        plan.model = self.model_as_cut().unwrap_or(plan.model);
        Ledger::new(&plan, self.data.vocab_size, 1).memory.peak()
    }

    /// The validation at the plan's last step, or for a run that is taken as it stands the newest;
    /// none while there is no such, or if the run diverged.
    pub fn last(&self) -> Option<Point> {
        let last = self.validations.last().filter(|_| self.diverged.is_none())?;
        let counts = self.as_it_stands || last.step == self.plan.train.max_steps.0;
        (counts && last.loss.is_finite()).then_some(*last)
    }

    /// The state of a run that has not come to its end, and how far it came: `running, step 120 of
    /// 800`; none for one that has.
    pub fn unfinished(&self) -> Option<String> {
        let step = self.steps.last().map(|at| at.step).max(self.validations.last().map(|v| v.step));
        let step = step.max(self.diverged);
        let all = self.plan.train.max_steps;
        (self.state != RunState::Finished)
            .then(|| format!("{}, step {} of {all}", self.state, step.unwrap_or(0)))
    }
}

/// Block and target of a weight or its adapter, by its name: `transformer.h.3.attn.q`,
/// `model.layers.3.mlp.up.adapter`; none for what is in no block.
pub(super) fn place_of(name: &str) -> Option<(usize, Target)> {
    let site = name.strip_suffix(".adapter").unwrap_or(name);
    let layer = site.split('.').find_map(|part| part.parse().ok())?;
    Some((layer, Target::named(site.rsplit('.').next()?)?))
}

/// The JSON objects of a file, one per line; a last line that a killed process cut short is left
/// out. Empty if there is no file.
fn lines(path: &Path) -> Result<Vec<Map<String, Value>>> {
    let text = match read_ordinary(path, u64::MAX) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let text = String::from_utf8(text).with_context(|| format!("{}: not UTF-8", path.display()))?;
    let count = text.lines().count();
    let mut objects = Vec::with_capacity(count);
    for (index, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(object) => objects.push(object),
            Err(_) if index + 1 == count => {}
            Err(error) => {
                return Err(error).with_context(|| {
                    format!("{}:{}: not a JSON object", path.display(), index + 1)
                });
            }
        }
    }
    Ok(objects)
}

fn machine(env: &Path) -> String {
    let value: Value =
        read_text(env).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or("?").to_lowercase();
    let threads = value.get("threads").and_then(Value::as_u64).unwrap_or(0);
    format!(
        "{}, {threads} thread{} a run, {}",
        text("device"),
        if threads == 1 { "" } else { "s" },
        text("arch")
    )
}

#[cfg(test)]
pub(super) mod tests_support {
    use super::*;

    /// A finished run of a tiny plan with this seed and final loss, with validations at steps 50
    /// and 100.
    pub(in crate::report) fn finished(seed: u64, loss: f64) -> RunResults {
        let yaml = format!(
            "name: tiny\nseed: {seed}\n\
             model: {{n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, weights: {{low_rank: {{rank: 2}}}}}}\n\
             data: {{source: cargo_registry, tokenizer: bytes}}\n\
             train: {{max_steps: 100, batch_size: 3}}\n\
             schedule: {{constant: {{warmup_steps: 0}}}}\n"
        );
        let plan = crate::spec::parse_plan(&yaml, "tiny.yaml", &[]).expect("a good spec").1;
        let data = DatasetSummary {
            source: "a text".into(),
            tokenizer: "bytes".into(),
            content_hash: "c0ffee".into(),
            tokenizer_hash: "beef".into(),
            vocab_size: 256,
            train_tokens: 9000,
            val_tokens: 1000,
            train_bytes: Some(9000),
            val_bytes: Some(1000),
            train_trained: None,
            val_trained: None,
        };
        let point = |step: u64, loss: f64| {
            let spent = step as f64;
            Point {
                step,
                tokens: 12.0 * spent,
                flops: 1e6 * spent,
                seconds: 0.1 * spent,
                parameters: 5000.0,
                loss,
            }
        };
        RunResults {
            folder: PathBuf::from(format!("runs/tiny-{seed}")),
            plan,
            data,
            machine: "cpu, 2 threads, x86_64".into(),
            state: RunState::Finished,
            as_it_stands: false,
            diverged: None,
            skipped_steps: 0,
            rollbacks: 0,
            steps: [50, 100]
                .map(|step| StepFigures {
                    step,
                    loss,
                    learning_rate: 1e-3,
                    low_rank_learning_rate: Some(1e-2),
                    gradient_norm: 1.0,
                    tokens_per_second: 120.0,
                    ..StepFigures::default()
                })
                .into(),
            validations: vec![point(50, loss + 0.5), point(100, loss)],
            ranks: vec![RanksAt { step: 100, layers: vec![("transformer.h.0.attn.q".into(), 2)] }],
            spectra: [50, 100]
                .map(|step| SpectrumAt {
                    step,
                    layers: vec![("transformer.h.0.attn.q".into(), vec![1.0, 0.5])],
                })
                .into(),
            truncations: Vec::new(),
            seconds_by_phase: BTreeMap::from([
                ("forward".into(), 0.04),
                ("backward".into(), 0.06),
                ("step".into(), 0.1),
            ]),
            peak_memory: Some(1 << 28),
        }
    }
}
