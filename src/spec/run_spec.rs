//! What a user may write in a run's YAML file: plain data, serde only, no candle.
//!
//! Every optional key has its default here and nowhere else, so `lrpt spec show` prints exactly what a run will use.

use super::count::Count;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

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
    /// Shape of the network and of its weights.
    pub model: ModelSpec,
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

/// Network architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// GPT-2: learned positions, pre-norm, GELU (tanh form), tied head.
    #[default]
    Gpt2,
}

/// Shape of the network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    /// Architecture.
    #[serde(default)]
    pub arch: Architecture,
    /// Number of transformer blocks.
    pub n_layer: usize,
    /// Attention heads per block; divides `n_embd`.
    pub n_head: usize,
    /// Width of the residual stream.
    pub n_embd: usize,
    /// Context length in tokens.
    pub block_size: usize,
    /// Probability of dropping an activation (embedding, attention, residual); 0 turns dropout off.
    #[serde(default)]
    pub dropout: f64,
    /// Whether linear layers and layer norms have biases.
    #[serde(default)]
    pub bias: bool,
    /// Form of the attention and MLP weights.
    pub weights: WeightsSpec,
}

/// Form of the attention and MLP weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightsSpec {
    /// Full matrices.
    Dense,
    /// W = U S Vᵀ on the manifold of rank-r matrices, trained by DLRA.
    LowRank(LowRankWeightsSpec),
    /// W = B A with free factors, the naive low-rank form.
    Factored(LowRankWeightsSpec),
}

/// Ranks of low-rank weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LowRankWeightsSpec {
    /// Rank at the start of training.
    pub rank: usize,
    /// Exceptions: `q: 32`, `down: dense`, ...
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<Target, TargetRank>,
}

/// A weight matrix of a transformer block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Attention query, n_embd × n_embd.
    Q,
    /// Attention key, n_embd × n_embd.
    K,
    /// Attention value, n_embd × n_embd.
    V,
    /// Attention output, n_embd × n_embd.
    O,
    /// MLP up, 4 n_embd × n_embd.
    Up,
    /// MLP down, n_embd × 4 n_embd.
    Down,
}

/// Rank of one target, or `dense`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetRank {
    /// A full matrix.
    Dense,
    /// A matrix of this rank.
    Rank(usize),
}

/// Text and tokenizer of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    /// Where the text comes from.
    pub source: SourceSpec,
    /// How text becomes tokens; a `bin` or `tinystories` source is tokenized already and takes `file` (or `bytes`) to decode.
    pub tokenizer: TokenizerSpec,
}

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceSpec {
    /// The Rust sources of lrpt's own locked dependencies, already on the machine: no download.
    CargoRegistry,
    /// Text files.
    Text(TextSourceSpec),
    /// JSON lines with the text under a key; each document ends with the end-of-text token.
    Jsonl(JsonlSourceSpec),
    /// nanoGPT's `train.bin` and `val.bin` of little-endian uint16 tokens.
    Bin(BinSourceSpec),
    /// Pre-tokenized shards as llama2.c writes them for TinyStories: the first `.bin` file of the folder is validation.
    Tinystories(TinystoriesSourceSpec),
}

/// Text files: either `train` and `val`, or `path` and `val_fraction`. Entries may be globs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TextSourceSpec {
    /// Training files or globs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<Vec<String>>,
    /// Validation files or globs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Vec<String>>,
    /// One file or glob to split.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Share of the text, counted in characters from its end, that is validation (default 0.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
}

/// JSON lines.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonlSourceSpec {
    /// Training files or globs.
    pub train: Vec<String>,
    /// Validation files or globs; without them `val_fraction` of the documents, from the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val: Option<Vec<String>>,
    /// Share of the documents, from the end, that is validation when `val` is absent (default 0.1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// Key that holds the text.
    #[serde(default = "default_text_key")]
    pub text_key: String,
}

fn default_text_key() -> String {
    "text".into()
}

/// nanoGPT token files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BinSourceSpec {
    /// Training tokens, little-endian uint16.
    pub train: PathBuf,
    /// Validation tokens, little-endian uint16.
    pub val: PathBuf,
    /// Number of tokens in the vocabulary; taken from the tokenizer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
}

/// llama2.c / TinyStories shards.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TinystoriesSourceSpec {
    /// Folder with two or more `.bin` files.
    pub dir: PathBuf,
    /// Number of tokens in the vocabulary; taken from the tokenizer when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vocab_size: Option<usize>,
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenizerSpec {
    /// One token per byte: 256 tokens.
    Bytes,
    /// One token per character of the training text.
    Chars,
    /// Byte-level BPE trained on the training text.
    Bpe(BpeSpec),
    /// A `tokenizer.json` of the Hugging Face tokenizers library.
    File(PathBuf),
}

/// Byte-level BPE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BpeSpec {
    /// Number of tokens, at least 257 (256 bytes and the end-of-text token).
    pub vocab_size: Count,
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
    /// Largest global gradient norm; 0 turns clipping off.
    #[serde(default = "default_grad_clip")]
    pub grad_clip: f64,
    /// Steps between lines of the log and of metrics.jsonl.
    #[serde(default = "default_log_every")]
    pub log_every: Count,
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

/// How weights move: one rule for everything dense, one for the low-rank weights.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerSpec {
    /// Rule for embeddings, norms, biases, and dense matrices.
    pub dense: DenseOptimizerSpec,
    /// Rule for `low_rank` and `factored` weights. Default: `dlra` for low-rank, `dense`'s rule for factored ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<LowRankOptimizerSpec>,
}

/// Rule for dense parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenseOptimizerSpec {
    /// AdamW with decoupled weight decay (Loshchilov & Hutter 2019), decay on matrices only.
    Adamw(AdamwSpec),
}

impl Default for DenseOptimizerSpec {
    fn default() -> Self {
        Self::Adamw(AdamwSpec::default())
    }
}

/// Rule for low-rank parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LowRankOptimizerSpec {
    /// Dynamical low-rank approximation, for `weights: low_rank`.
    Dlra(DlraSpec),
    /// AdamW on the factors B and A, for `weights: factored`.
    Adamw(AdamwSpec),
}

/// AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamwSpec {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay, on matrices only.
    pub weight_decay: f64,
}

impl Default for AdamwSpec {
    fn default() -> Self {
        Self { learning_rate: 3e-3, beta1: 0.9, beta2: 0.99, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

/// Dynamical low-rank optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DlraSpec {
    /// How a step is taken on the manifold.
    pub integrator: Integrator,
    /// Which momentum gives the direction.
    pub momentum: Momentum,
    /// How the step returns to the manifold while the rank does not change.
    pub retraction: RetractionSpec,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment (`adam`).
    pub beta2: f64,
    /// Added to the root of the second moment (`adam`).
    pub epsilon: f64,
    /// Decoupled weight decay on S.
    pub weight_decay: f64,
    /// Steps between re-orthonormalisations of the bases.
    pub reorthonormalize_every: Count,
}

impl Default for DlraSpec {
    fn default() -> Self {
        Self {
            integrator: Integrator::Tangent,
            momentum: Momentum::Spectral,
            retraction: RetractionSpec::Subspace,
            learning_rate: 1e-2,
            beta1: 0.9,
            beta2: 0.99,
            epsilon: 1e-10,
            weight_decay: 0.1,
            reorthonormalize_every: Count(20),
        }
    }
}

/// How a step is taken on the manifold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Integrator {
    /// One gradient; augment by the tangent direction, Galerkin step, truncate (algorithms.md §2).
    Tangent,
}

/// Momentum of the low-rank weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Momentum {
    /// The tangent first moment itself, m ← β₁ m + g (SGD-with-momentum form; the paper's λ is √learning_rate and γ = 1 − β₁).
    HeavyBall,
    /// Element-wise second moments of the tangent coordinates.
    Adam,
    /// Polar factor of the tangent first moment.
    Spectral,
}

/// How the step returns to the manifold while the rank does not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetractionSpec {
    /// Truncated SVD of the augmented coefficients.
    Svd,
    /// One warm-started subspace iteration: right to first order, no SVD.
    Subspace,
}

/// How ranks change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RankSpec {
    /// Ranks stay as they start.
    Fixed(FixedRankSpec),
    /// Cycles: grow, let the new directions settle, truncate by tolerance (algorithms.md §4).
    Tolerance(ToleranceSpec),
}

impl Default for RankSpec {
    fn default() -> Self {
        Self::Fixed(FixedRankSpec {})
    }
}

/// Fixed ranks: no keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FixedRankSpec {}

/// Tolerance-driven ranks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToleranceSpec {
    /// Relative Frobenius tolerance τ: the discarded tail is at most τ‖W‖_F.
    pub tau: f64,
    /// Smallest rank.
    #[serde(default = "default_min_rank")]
    pub min_rank: usize,
    /// Largest rank; default: twice the starting rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
    /// Steps between two growths.
    #[serde(default = "default_grow_every")]
    pub grow_every: Count,
    /// Steps the new directions are trained before the truncation; less than `grow_every`.
    #[serde(default = "default_settle")]
    pub settle: Count,
    /// Ranks added by a growth, at most the current rank.
    #[serde(default = "default_grow_by")]
    pub grow_by: usize,
    /// First step at which ranks may change; default: the end of the warm-up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<Count>,
    /// Step after which ranks no longer change; default: three quarters of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<Count>,
    /// Exceptions per target.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<Target, ToleranceTargetSpec>,
}

fn default_min_rank() -> usize {
    8
}
fn default_grow_every() -> Count {
    Count(100)
}
fn default_settle() -> Count {
    Count(50)
}
fn default_grow_by() -> usize {
    16
}

/// Exceptions of one target from the tolerance policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ToleranceTargetSpec {
    /// Tolerance τ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tau: Option<f64>,
    /// Smallest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rank: Option<usize>,
    /// Largest rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rank: Option<usize>,
}

/// Learning rate over the run, as a factor in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleSpec {
    /// Warm-up, then 1.
    Constant(ConstantScheduleSpec),
    /// Warm-up, then half a cosine down to `final_ratio` at the last step.
    Cosine(DecayScheduleSpec),
    /// Warm-up, then a straight line down to `final_ratio` at the last step.
    Linear(DecayScheduleSpec),
    /// Warm-up, stable at 1, then a straight line down to `final_ratio` over the last `decay_steps`.
    WarmupStableDecay(WarmupStableDecaySpec),
}

impl Default for ScheduleSpec {
    fn default() -> Self {
        Self::Cosine(DecayScheduleSpec::default())
    }
}

/// Keys of `constant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConstantScheduleSpec {
    /// Steps of linear warm-up.
    pub warmup_steps: Count,
}

impl Default for ConstantScheduleSpec {
    fn default() -> Self {
        Self { warmup_steps: Count(100) }
    }
}

/// Keys of `cosine` and `linear`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecayScheduleSpec {
    /// Steps of linear warm-up.
    pub warmup_steps: Count,
    /// Factor at the last step.
    pub final_ratio: f64,
}

impl Default for DecayScheduleSpec {
    fn default() -> Self {
        Self { warmup_steps: Count(100), final_ratio: 0.1 }
    }
}

/// Keys of `warmup_stable_decay`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WarmupStableDecaySpec {
    /// Steps of linear warm-up.
    pub warmup_steps: Count,
    /// Steps of decay at the end.
    pub decay_steps: Count,
    /// Factor at the last step.
    pub final_ratio: f64,
}

/// Validation during training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalSpec {
    /// Steps between validations; the last step is always validated.
    pub every: Count,
    /// Tokens of a validation: the first windows of the validation text, the same for every run.
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
        Self { tokens: Count(100), prompt: String::new(), temperature: 0.8, top_p: Some(0.95), top_k: None }
    }
}
