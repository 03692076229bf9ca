//! A plan: a spec with everything resolved. It is saved beside the spec, and its hash says whether
//! two runs are the same.

use super::adapter_spec::AdapterForm;
use super::architecture::{ROPE_THETA, Target};
use super::cut_spec::CutSpec;
use super::data_spec::{DataSpec, SourceSpec};
use super::decode::decode;
use super::document::usage;
use super::findings::problems;
use super::init_spec::InitSpec;
use super::model_plan::ModelPlan;
use super::model_spec::{
    FactorForm, InitialSpectrum, LowRankStart, ModelSpec, StartRank, TargetRank, WeightsSpec,
};
use super::optimizer_plan::{OptimizerPlan, optimizer_plan};
use super::rank_plan::{RankPlan, rank_plan};
use super::resume::{Decides, decides, differences};
use super::run_spec::{
    CheckpointSpec, DeviceSpec, DtypeSpec, EvalSpec, KernelsSpec, LinalgSpec, RunSpec, SampleSpec,
    TrainSpec,
};
use super::schedule_spec::ScheduleSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// One training experiment with every setting decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Name of the run.
    pub name: String,
    /// Seed of every random stream.
    pub seed: u64,
    /// Where to compute.
    pub device: DeviceSpec,
    /// Where the linear algebra runs.
    #[serde(default, skip_serializing_if = "is_default")]
    pub linalg: LinalgSpec,
    /// By which code the CPU and NVIDIA GPUs compute.
    #[serde(default, skip_serializing_if = "is_default")]
    pub kernels: KernelsSpec,
    /// Number types.
    #[serde(default, skip_serializing_if = "is_default")]
    pub dtype: DtypeSpec,
    /// Shape of the network and form of each of its matrices.
    pub model: ModelPlan,
    /// Where the first weights come from, if not from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<InitSpec>,
    /// How the weights of `init` are cut to their first ranks, where not each to its form's rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<CutSpec>,
    /// Text and tokenizer; `val_fraction` is filled in wherever the text is split.
    pub data: DataSpec,
    /// Length and batch of the training.
    pub train: TrainSpec,
    /// The rules that move the weights.
    pub optimizer: OptimizerPlan,
    /// How ranks change.
    pub rank: RankPlan,
    /// Learning rate over the run.
    pub schedule: ScheduleSpec,
    /// Validation during training.
    pub eval: EvalSpec,
    /// Checkpoints during training.
    pub checkpoint: CheckpointSpec,
    /// Text generated at each evaluation.
    pub sample: SampleSpec,
    /// Tokens a step sees: batch_size × gradient_accumulation_steps × block_size, however often it
    /// evaluates them.
    pub tokens_per_step: u64,
    /// Tokens the run sees: tokens_per_step × max_steps.
    pub total_tokens: u64,
}

/// Form of one matrix W, m × n.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum WeightForm {
    /// A full matrix.
    Dense,
    /// W = U S Vᵀ with U: m×r, S: r×r, V: n×r, trained on the manifold of rank-r matrices.
    LowRank {
        /// Rank r at the start of training.
        rank: usize,
    },
    /// W = B A with free factors B: m×r, A: r×n, or W = U S Vᵀ with free factors.
    Factored {
        /// Inner dimension r.
        rank: usize,
        /// Which factors.
        #[serde(default, skip_serializing_if = "FactorForm::is_default")]
        form: FactorForm,
    },
    /// W = W₀ + U S Vᵀ or W = W₀ + (α/r) B A, with W₀ frozen. Where one matrix of a network has
    /// this form, everything but its adapters is frozen.
    Adapter {
        /// Rank r at the start of training.
        rank: usize,
        /// What is added.
        #[serde(default, skip_serializing_if = "AdapterForm::is_default")]
        form: AdapterForm,
        /// α of B A.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha: Option<usize>,
    },
}

impl WeightForm {
    /// Rank at the start of training; none for a full matrix.
    pub fn rank(self) -> Option<usize> {
        match self {
            WeightForm::Dense => None,
            WeightForm::LowRank { rank }
            | WeightForm::Factored { rank, .. }
            | WeightForm::Adapter { rank, .. } => Some(rank),
        }
    }

    /// Whether it is a frozen matrix with an adapter.
    pub fn is_adapter(self) -> bool {
        matches!(self, WeightForm::Adapter { .. })
    }
}

/// Figures of a plan that follow from its settings.
const FIGURES: [&str; 2] = ["tokens_per_step", "total_tokens"];

/// Whether a setting is what it is where nothing is said, so that plans of before it existed stay
/// as they were.
fn is_default<T: Default + PartialEq>(setting: &T) -> bool {
    *setting == T::default()
}

impl Plan {
    /// Decides everything a spec leaves open and checks that its values fit together.
    ///
    /// # Errors
    /// [`Failure::Usage`](crate::error::Failure::Usage) with one line per problem: key path, what
    /// is wrong, the remedy.
    /// [`load_plan`](super::load_plan) adds the places in the file.
    pub fn resolve(spec: &RunSpec) -> anyhow::Result<Plan> {
        let plan = Plan::derive(spec);
        let lines: Vec<String> = problems(spec, &plan).iter().map(ToString::to_string).collect();
        if lines.is_empty() { Ok(plan) } else { Err(usage(lines.join("\n"))) }
    }

    /// Decides everything a spec leaves open, whether or not its values make sense.
    pub(crate) fn derive(spec: &RunSpec) -> Plan {
        let model = model_plan(&spec.model);
        let sequences = (spec.train.batch_size as u64)
            .saturating_mul(spec.train.gradient_accumulation_steps as u64);
        let tokens_per_step = sequences.saturating_mul(spec.model.block_size as u64);
        Plan {
            name: spec.name.clone(),
            seed: spec.seed,
            device: spec.device,
            linalg: spec.linalg,
            kernels: spec.kernels,
            dtype: spec.dtype,
            init: spec.init.clone(),
            cut: match &spec.model.weights {
                WeightsSpec::LowRank(low_rank) => low_rank.cut,
                _ => None,
            },
            data: data_plan(&spec.data),
            train: spec.train.clone(),
            optimizer: optimizer_plan(&spec.optimizer, &spec.model.weights, &model),
            rank: rank_plan(spec, &model),
            model,
            schedule: spec.schedule.clone(),
            eval: spec.eval,
            checkpoint: spec.checkpoint,
            sample: spec.sample.clone(),
            tokens_per_step,
            total_tokens: tokens_per_step.saturating_mul(spec.train.max_steps.0),
        }
    }

    /// Reads a plan back that [`to_yaml`](super::to_yaml) wrote; `name` stands for the file in
    /// messages.
    ///
    /// # Errors
    /// The text is not such a plan, for instance because another version of lrpt wrote it, or its
    /// values are not such as a spec may have ([`Plan::validate`]).
    pub fn from_yaml(text: &str, name: &str) -> anyhow::Result<Plan> {
        let value = serde_yaml::from_str(text)
            .map_err(|error| usage(format!("{name}: not YAML: {error}")))?;
        let remedy = "the plan was edited or comes from another version of lrpt; make it anew from the spec beside it";
        let plan: Plan =
            decode(&value).map_err(|problem| usage(format!("{name}: {problem}; {remedy}")))?;
        plan.validate().map_err(|error| usage(format!("{name}: {error}; {remedy}")))?;
        Ok(plan)
    }

    /// Identity of the run's trajectory: BLAKE3 (hexadecimal) of the canonical JSON, sorted by key
    /// path, of every setting that can change a loss or a weight by more than rounding. Left out
    /// are the name, `device`, `linalg`, `kernels`, `train.log_every`, `train.data_parallel`,
    /// `checkpoint` and `sample`.
    pub fn hash(&self) -> String {
        let canonical = serde_json::to_string(&self.trajectory())
            .expect("a map of texts to JSON values is JSON");
        blake3::Hasher::new_derive_key("lrpt plan v1")
            .update(canonical.as_bytes())
            .finalize()
            .to_hex()
            .to_string()
    }

    /// The settings in which the trajectories of two plans differ, from `self` to `other`, as in
    /// `train.batch_size: 16 -> 8`; empty exactly when their hashes are equal.
    pub fn trajectory_differences(&self, other: &Plan) -> Vec<String> {
        differences(&self.trajectory(), &other.trajectory())
    }

    /// Key path and value of every setting that can change a loss or a weight.
    ///
    /// Device, linear algebra and kernels change roundings only: a run may be continued elsewhere,
    /// just not bit for bit.
    pub(crate) fn trajectory(&self) -> BTreeMap<String, Value> {
        let mut settings = self.settings();
        settings.retain(|path, _| !matches!(decides(path), Decides::Roundings | Decides::Nothing));
        settings
    }

    /// Key path and value of every setting.
    pub(super) fn settings(&self) -> BTreeMap<String, Value> {
        let mut leaves = BTreeMap::new();
        collect_leaves(&serde_json::to_value(self).expect("a plan is JSON"), "", &mut leaves);
        leaves
    }
}

fn collect_leaves(value: &Value, path: &str, leaves: &mut BTreeMap<String, Value>) {
    if FIGURES.contains(&path) {
        return;
    }
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            for (key, entry) in entries {
                let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect_leaves(entry, &below, leaves);
            }
        }
        leaf => drop(leaves.insert(path.to_owned(), leaf.clone())),
    }
}

fn model_plan(spec: &ModelSpec) -> ModelPlan {
    let form = |shape: &dyn Fn(Target) -> (usize, usize), target: Target| match &spec.weights {
        WeightsSpec::Dense => WeightForm::Dense,
        WeightsSpec::LowRank(low_rank) => {
            let rank = match low_rank.rank {
                StartRank::Rank(rank) => rank,
                StartRank::Full => shape(target).0.min(shape(target).1),
            };
            rank_of(rank, &low_rank.targets, target)
                .map_or(WeightForm::Dense, |rank| WeightForm::LowRank { rank })
        }
        WeightsSpec::Factored(factored) => rank_of(factored.rank, &factored.targets, target)
            .map_or(WeightForm::Dense, |rank| WeightForm::Factored { rank, form: factored.form }),
        WeightsSpec::Adapter(adapter) => adapter.form_of(target),
    };
    let unusual_epsilon = |key: &str, epsilon: Option<f64>| {
        epsilon.filter(|epsilon| spec.arch.norm_epsilon() != (key, *epsilon))
    };
    let mut plan = ModelPlan {
        arch: spec.arch,
        n_layer: spec.n_layer,
        n_head: spec.n_head,
        n_kv_head: spec.n_kv_head.filter(|key_heads| *key_heads != spec.n_head),
        fused_qkv: spec.fused_qkv,
        n_embd: spec.n_embd,
        block_size: spec.block_size,
        dropout: spec.dropout,
        bias: spec.bias,
        n_inner: spec.n_inner.filter(|inner| *inner != spec.arch.inner_width(spec.n_embd)),
        tie_word_embeddings: spec
            .tie_word_embeddings
            .filter(|tied| *tied != spec.arch.ties_embeddings()),
        rope_theta: spec.rope_theta.filter(|theta| !spec.arch.is_rotary() || *theta != ROPE_THETA),
        layer_norm_epsilon: unusual_epsilon("layer_norm_epsilon", spec.layer_norm_epsilon),
        rms_norm_eps: unusual_epsilon("rms_norm_eps", spec.rms_norm_eps),
        zero_outputs: spec.zero_outputs,
        spectrum: match &spec.weights {
            WeightsSpec::LowRank(low_rank) => low_rank.spectrum,
            _ => InitialSpectrum::default(),
        },
        start: match &spec.weights {
            WeightsSpec::LowRank(low_rank) => low_rank.start,
            _ => LowRankStart::default(),
        },
        weights: BTreeMap::new(),
        layers: match &spec.weights {
            WeightsSpec::LowRank(low_rank) => low_rank.layers.clone(),
            WeightsSpec::Adapter(adapter) => adapter.layers.clone(),
            _ => Vec::new(),
        },
        head_adapter: match &spec.weights {
            WeightsSpec::Adapter(adapter) => adapter.head_form(),
            _ => None,
        },
    };
    // `full` is a matter of the shapes.
    let shape = |target| plan.shape(target);
    let forms = plan.targets().iter().map(|target| (*target, form(&shape, *target)));
    plan.weights = forms.collect();
    plan
}

/// Rank of one target; none for a full matrix.
fn rank_of(rank: usize, targets: &BTreeMap<Target, TargetRank>, target: Target) -> Option<usize> {
    match targets.get(&target) {
        None => Some(rank),
        Some(TargetRank::Rank(rank)) => Some(*rank),
        Some(TargetRank::Dense) => None,
    }
}

/// Share of the text that is validation, where a spec splits it without saying how.
pub const DEFAULT_VAL_FRACTION: f64 = 0.1;

fn data_plan(spec: &DataSpec) -> DataSpec {
    let mut data = spec.clone();
    match &mut data.source {
        SourceSpec::Text(text) if text.path.is_some() => {
            text.val_fraction.get_or_insert(DEFAULT_VAL_FRACTION);
        }
        SourceSpec::Jsonl(jsonl) if jsonl.val.is_none() => {
            jsonl.val_fraction.get_or_insert(DEFAULT_VAL_FRACTION);
        }
        SourceSpec::Parquet(parquet) if parquet.val.is_none() => {
            parquet.val_fraction.get_or_insert(DEFAULT_VAL_FRACTION);
        }
        SourceSpec::Instructions(source) if source.val.is_none() => {
            source.val_fraction.get_or_insert(DEFAULT_VAL_FRACTION);
        }
        _ => {}
    }
    data
}
