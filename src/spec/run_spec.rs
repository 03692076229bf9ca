//! What a user may write in a run's YAML file: plain data, serde only, no candle.
//!
//! Every optional key has its default beside its definition and nowhere else; the files `*_spec.rs`
//! hold one block each.

use super::bounds;
use super::count::Count;
use super::data_parallel_spec::DataParallelSpec;
use super::data_spec::DataSpec;
use super::dlra_spec::Integrator;
use super::findings::Findings;
use super::init_spec::InitSpec;
use super::model_spec::ModelSpec;
use super::optimizer_spec::{LowRankOptimizerSpec, MatrixOptimizerSpec, OptimizerSpec};
use super::rank_spec::RankSpec;
use super::schedule_spec::ScheduleSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One training experiment, as written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunSpec {
    /// Name of the run; its folder defaults to `runs/<name>`.
    pub name: String,
    /// Seed of every random stream: initialisation, data order, dropout, samples.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Where to compute.
    #[serde(default)]
    pub device: DeviceSpec,
    /// Where the linear algebra of low-rank and full matrices runs.
    #[serde(default)]
    pub linalg: LinalgSpec,
    /// By which code the CPU and NVIDIA GPUs compute.
    #[serde(default)]
    pub kernels: KernelsSpec,
    /// Number types.
    #[serde(default)]
    pub dtype: DtypeSpec,
    /// Shape of the network and of its weights.
    pub model: ModelSpec,
    /// Where the first weights come from; default: from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitSpec>,
    /// Text and tokenizer.
    pub data: DataSpec,
    /// Length and batch of the training.
    pub train: TrainSpec,
    /// How the weights move.
    #[serde(default)]
    pub optimizer: OptimizerSpec,
    /// How ranks change.
    #[serde(default)]
    pub rank: RankSpec,
    /// Learning rate over the run, as a factor on every learning rate.
    #[serde(default)]
    pub schedule: ScheduleSpec,
    /// Validation during training.
    #[serde(default)]
    pub eval: EvalSpec,
    /// Checkpoints during training.
    #[serde(default)]
    pub checkpoint: CheckpointSpec,
    /// Text generated at each evaluation.
    #[serde(default)]
    pub sample: SampleSpec,
}

fn default_seed() -> u64 {
    1337
}

/// Compute device: `auto`, `cpu`, `cuda`, `cuda:1` or `metal`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceSpec {
    /// CUDA if built with it and present, then Metal, then the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA device of this index.
    Cuda(usize),
    /// Apple's Metal.
    Metal,
}

/// Where the linear algebra of low-rank and full matrices runs: QR, polar factors, SVD, transport.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LinalgSpec {
    /// `host` where the device is the CPU, else `device`.
    #[default]
    Auto,
    /// On the CPU, weight beside weight; tensors of another device travel there and back at every
    /// step.
    Host,
    /// On the device: products of all weights of one shape at once, small factorisations on the
    /// host. On the CPU this is what a GPU does, slower.
    Device,
}

/// By which code the CPU computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KernelsSpec {
    /// Kernels of its own wherever there is one.
    #[default]
    Auto,
    /// candle's operations, several times slower; to try on the CPU what other devices run, and to
    /// compare.
    Portable,
}

/// Number types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DtypeSpec {
    /// Type of the large products and of the activations between them.
    pub compute: ComputeType,
    /// Type of parameters, bases, moments, gradients, norms, softmax, loss and the residual stream.
    pub master: MasterType,
}

/// Type of the large products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ComputeType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with f32's range and 8 digits of binary precision: for GPUs; the CPU has no such
    /// product, and rounds the factors of an f32 one.
    Bf16,
}

/// Type of everything that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MasterType {
    /// 32 bits.
    #[default]
    F32,
}

/// Length and batch of the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Optimizer steps.
    pub max_steps: Count,
    /// Sequences per micro-batch.
    pub batch_size: usize,
    /// Micro-batches per step.
    #[serde(default = "one")]
    pub gradient_accumulation_steps: usize,
    /// Whether rows of `model.block_size` tokens have several examples of instruction data each.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub packing: bool,
    /// Largest global gradient norm; 0 turns clipping off.
    #[serde(default = "default_grad_clip")]
    pub grad_clip: f64,
    /// Steps between lines of the log and of metrics.jsonl.
    #[serde(default = "default_log_every")]
    pub log_every: Count,
    /// Whether TensorBoard's event files are written, too, into the folder `tensorboard` of the run.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tensorboard: bool,
    /// What to do where a loss, a gradient or a number of a step is not finite.
    #[serde(default, skip_serializing_if = "OnDivergence::is_default")]
    pub on_divergence: OnDivergence,
    /// Rollbacks, or steps left out in a row, after which the run stops all the same.
    #[serde(default = "default_max_rollbacks", skip_serializing_if = "is_default_max_rollbacks")]
    pub max_rollbacks: u64,
    /// Training by several processes.
    #[serde(default, skip_serializing_if = "DataParallelSpec::is_default")]
    pub data_parallel: DataParallelSpec,
}

/// What a run does where a loss, a gradient or a number of a step is not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnDivergence {
    /// It ends.
    #[default]
    Stop,
    /// It leaves the step out, parameters and moments as they were, and takes the next batch.
    SkipStep,
    /// It goes on from its last checkpoint, with other batches and half the learning rates.
    Rollback,
}

impl OnDivergence {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn one() -> usize {
    1
}
fn default_grad_clip() -> f64 {
    1.0
}
fn default_log_every() -> Count {
    Count(10)
}
fn default_max_rollbacks() -> u64 {
    3
}
fn is_default_max_rollbacks(rollbacks: &u64) -> bool {
    *rollbacks == default_max_rollbacks()
}

/// Validation during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSpec {
    /// Steps between validations; the last step is always validated.
    pub every: Count,
    /// Tokens of a validation: windows spread evenly over the validation text, the same for every
    /// run.
    pub tokens: Count,
}

impl Default for EvalSpec {
    fn default() -> Self {
        Self { every: Count(100), tokens: Count(65_536) }
    }
}

/// Checkpoints during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointSpec {
    /// Steps between checkpoints; the last step is always kept.
    pub every: Count,
    /// Newest checkpoints that stay on disk, besides the best.
    pub keep_last: usize,
}

impl Default for CheckpointSpec {
    fn default() -> Self {
        Self { every: Count(250), keep_last: 2 }
    }
}

/// Text generated at each evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SampleSpec {
    /// Tokens to generate; 0 turns samples off.
    pub tokens: Count,
    /// Text to continue; empty: a newline.
    pub prompt: String,
    /// Softmax temperature.
    pub temperature: f64,
    /// Nucleus sampling: smallest set of tokens with this probability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Only the k likeliest tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
}

impl Default for SampleSpec {
    fn default() -> Self {
        Self {
            tokens: Count(100),
            prompt: String::new(),
            temperature: 0.8,
            top_p: Some(0.95),
            top_k: None,
        }
    }
}

pub(super) fn check_train(found: &mut Findings, spec: &RunSpec) {
    let train = &spec.train;
    found.require_size(train.max_steps.0, bounds::MAX_STEPS, "train.max_steps");
    found.require_size(train.batch_size as u64, bounds::MAX_BATCH, "train.batch_size");
    found.require_size(
        train.gradient_accumulation_steps as u64,
        bounds::MAX_BATCH,
        "train.gradient_accumulation_steps",
    );
    found.require_positive(train.log_every.0, "train.log_every");
    found.require_number(
        train.grad_clip,
        train.grad_clip >= 0.0,
        "of at least 0 (0 turns clipping off)",
        "train.grad_clip",
    );
    found.require_size(train.max_rollbacks, bounds::MAX_ROLLBACKS, "train.max_rollbacks");
    let timeout = train.data_parallel.timeout_seconds;
    found.require_positive(timeout, "train.data_parallel.timeout_seconds");
    if train.on_divergence == OnDivergence::SkipStep {
        let needs_every_step = needs_every_step(&spec.optimizer);
        found.require(needs_every_step.is_none(), "train.on_divergence", || {
            format!(
                "is skip_step, but {} builds on the step before; set rollback or stop",
                needs_every_step.unwrap_or_default()
            )
        });
    }
    let factors = [
        train.batch_size as u64,
        train.gradient_accumulation_steps as u64,
        spec.model.block_size as u64,
        train.max_steps.0,
    ];
    let total = factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor));
    found.require(total.is_some(), "train.max_steps", || {
        "the run's tokens do not fit 64 bits; reduce the steps or the batch".into()
    });
}

/// The setting by which a step cannot be left out without another that counts on it.
fn needs_every_step(optimizer: &OptimizerSpec) -> Option<&'static str> {
    match (&optimizer.matrices, &optimizer.low_rank) {
        (Some(MatrixOptimizerSpec::Galore(_)), _) => Some("galore"),
        (_, Some(LowRankOptimizerSpec::Loro(_))) => Some("loro"),
        (_, Some(LowRankOptimizerSpec::Dlra(dlra)))
            if dlra.integrator == Integrator::CoefficientCycle =>
        {
            Some("integrator: coefficient_cycle")
        }
        (_, Some(LowRankOptimizerSpec::Dlra(dlra))) if dlra.truncate_every.0 > 1 => {
            Some("truncate_every")
        }
        _ => None,
    }
}

pub(super) fn check_sample(found: &mut Findings, sample: &SampleSpec) {
    let (tokens, most) = (sample.tokens.0, bounds::MAX_SAMPLE);
    found.require(tokens <= most, "sample.tokens", || format!("is {tokens}; set at most {most}"));
    let temperature = sample.temperature;
    found.require_number(
        temperature,
        temperature >= 0.0,
        "of at least 0 (0 always takes the likeliest token)",
        "sample.temperature",
    );
    if let Some(top_p) = sample.top_p {
        found.require_number(
            top_p,
            top_p > 0.0 && top_p <= 1.0,
            "greater than 0 and at most 1",
            "sample.top_p",
        );
    }
    found.require(sample.top_k != Some(0), "sample.top_k", || {
        "is 0; set at least 1 or remove it".into()
    });
}
