//! The GPT-2 decoder: learned positions, pre-norm blocks, GELU (tanh form), tied head. Forward
//! only.
//!
//! Shapes: B sequences, T tokens, C = `n_embd`, V vocabulary. A weight is m × n (outputs × inputs):
//! y = x Wᵀ.

use super::config::ModelConfig;
use crate::lowrank::LowRank;
use crate::ops::{self, Compute, Dropout, Tape, Value};
use crate::params::{Declared, Factor, Initial, ParamId, ParamStore, Place, Role, Weight};
use crate::rng;
use crate::spec::{FactorForm, Target, WeightForm};
use candle_core::{DType, Device, Result, Tensor};

/// Added to the variance in layer norms, as GPT-2 has it.
const NORM_EPSILON: f64 = 1e-5;
/// Standard deviation of initial weights (Radford et al. 2019).
const INIT_STANDARD_DEVIATION: f64 = 0.02;

/// The network's structure: which parameters it has and how they act. The numbers live in a
/// [`ParamStore`].
#[derive(Clone, Debug)]
pub struct Gpt {
    config: ModelConfig,
    compute: Compute,
    token_table: ParamId,
    position_table: ParamId,
    blocks: Vec<Block>,
    final_norm: Norm,
    declared: Vec<Declared>,
}

#[derive(Clone, Debug)]
struct Block {
    norm_1: Norm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    norm_2: Norm,
    up: Linear,
    down: Linear,
}

#[derive(Clone, Debug)]
struct Norm {
    weight: ParamId,
    bias: Option<ParamId>,
}

#[derive(Clone, Debug)]
struct Linear {
    weight: LinearWeight,
    bias: Option<ParamId>,
}

#[derive(Clone, Copy, Debug)]
enum LinearWeight {
    /// Dense or W = U S Vᵀ: the parameter store knows which.
    Matrix(ParamId),
    /// W = B A.
    TwoFactors { b: ParamId, a: ParamId },
    /// W = U S Vᵀ, each trained freely.
    ThreeFactors { u: ParamId, s: ParamId, vt: ParamId },
}

/// What dropout needs to be the same function of the step on every run.
#[derive(Clone, Copy, Debug)]
pub struct DropoutKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Micro-batch of the step.
    pub micro: u64,
}

impl Gpt {
    /// The structure for this configuration.
    pub fn new(config: ModelConfig) -> Self {
        let mut declared = Vec::new();
        let mut declare = |name: String, role: Role, initial: Initial| {
            declared.push(Declared::trained(name, role, initial));
            ParamId(declared.len() - 1)
        };
        let width = config.n_embd;
        let table = |rows| Initial::Normal {
            rows,
            columns: width,
            standard_deviation: INIT_STANDARD_DEVIATION,
        };
        let token_table =
            declare("transformer.wte.weight".into(), Role::Embedding, table(config.vocab_size));
        let position_table =
            declare("transformer.wpe.weight".into(), Role::Embedding, table(config.block_size));
        let blocks =
            (0..config.n_layer).map(|layer| Block::declare(&config, layer, &mut declare)).collect();
        let final_norm = Norm::declare(&config, "transformer.ln_f", &mut declare);
        Self {
            config,
            compute: Compute::default(),
            token_table,
            position_table,
            blocks,
            final_norm,
            declared,
        }
    }

    /// The same network, computing in this way.
    pub fn computing(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// How it computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// A tape on which this network trains.
    pub fn training_tape(&self) -> Tape {
        Tape::training().computing(self.compute)
    }

    /// A tape on which it only answers.
    pub fn inference_tape(&self) -> Tape {
        Tape::inference().computing(self.compute)
    }

    /// The configuration this network was made from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Fresh parameters, a pure function of the seed and each parameter's name.
    ///
    /// Matrices and tables are N(0, 0.02²), those that write to the residual stream divided by √(2
    /// n_layer); a low-rank W = U S Vᵀ, its factors trained freely or not, or W = B A gets random
    /// orthonormal bases and the Frobenius norm its dense counterpart would have, σ√(mn), the same
    /// W in each of these forms; norms are 1, biases 0.
    pub fn initialize(&self, seed: u64, dtype: DType, device: &Device) -> Result<ParamStore> {
        ParamStore::initialize(&self.declared, seed, dtype, device)
    }

    /// The parameters it has, in their fixed order.
    pub fn declared(&self) -> &[Declared] {
        &self.declared
    }

    /// Count of trained numbers of the same network with dense weights.
    pub fn dense_parameter_count(&self) -> usize {
        self.declared.iter().map(|declared| declared.initial.dense_count()).sum()
    }

    /// Final hidden states (B, T, C) after the last norm, for `tokens` (B, T) with T ≤
    /// `block_size`.
    ///
    /// `dropout` is only heeded when the configuration has dropout; evaluation passes `None`.
    pub fn hidden(
        &self,
        params: &ParamStore,
        tape: &Tape,
        tokens: &Tensor,
        dropout: Option<DropoutKey>,
    ) -> Result<Value> {
        self.hidden_observed(params, tape, tokens, dropout, &mut |_, _| Ok(()))
    }

    /// [`Self::hidden`], showing each stage's name and output to `observe` (used to find where a
    /// number stopped being finite).
    pub fn hidden_observed(
        &self,
        params: &ParamStore,
        tape: &Tape,
        tokens: &Tensor,
        dropout: Option<DropoutKey>,
        observe: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Value> {
        let pass = Pass { params, tape, probability: self.config.dropout, key: dropout };
        let embedded = ops::embedding(
            tape,
            tokens,
            &pass.dense(self.token_table)?,
            &pass.dense(self.position_table)?,
        )?;
        let mut x = pass.dropout(&embedded, "embedding", 0)?;
        observe("transformer.wte", x.tensor())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.attention(&pass, layer, &x, self.config.n_head)?;
            observe(&format!("transformer.h.{layer}.attn"), x.tensor())?;
            x = block.mlp(&pass, layer, &x)?;
            observe(&format!("transformer.h.{layer}.mlp"), x.tensor())?;
        }
        let hidden = self.final_norm.forward(&pass, &x)?;
        observe("transformer.ln_f", hidden.tensor())?;
        Ok(hidden)
    }

    /// Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T), as a value on the
    /// tape.
    pub fn loss(
        &self,
        params: &ParamStore,
        tape: &Tape,
        tokens: &Tensor,
        targets: &Tensor,
        dropout: Option<DropoutKey>,
    ) -> Result<Value> {
        let hidden = self.hidden(params, tape, tokens, dropout)?;
        let pass = Pass { params, tape, probability: self.config.dropout, key: dropout };
        ops::cross_entropy_head(tape, &hidden, &pass.dense(self.token_table)?, targets)
    }

    /// Sum of the cross-entropies in nats over all targets, without gradients.
    pub fn loss_sum(&self, params: &ParamStore, tokens: &Tensor, targets: &Tensor) -> Result<f64> {
        let hidden = self.hidden(params, &self.inference_tape(), tokens, None)?;
        ops::cross_entropy_sum(
            self.compute,
            hidden.tensor(),
            params.dense(self.token_table)?,
            targets,
        )
    }

    /// Logits (V) of the token after the last of `tokens` (T ≤ `block_size`).
    pub fn next_token_logits(&self, params: &ParamStore, tokens: &[u32]) -> Result<Tensor> {
        let table = params.dense(self.token_table)?;
        let tokens = Tensor::from_slice(tokens, (1, tokens.len()), table.device())?;
        let hidden = self.hidden(params, &self.inference_tape(), &tokens, None)?;
        let last = hidden.tensor().narrow(1, tokens.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        ops::logits(self.compute, &last, table)?.squeeze(0)
    }
}

impl Block {
    fn declare(
        config: &ModelConfig,
        layer: usize,
        declare: &mut impl FnMut(String, Role, Initial) -> ParamId,
    ) -> Self {
        let prefix = format!("transformer.h.{layer}");
        let norm_1 = Norm::declare(config, &format!("{prefix}.ln_1"), declare);
        let mut linear = |name: &str, target| {
            Linear::declare(config, format!("{prefix}.{name}"), Place { layer, target }, declare)
        };
        let query = linear("attn.q", Target::Q);
        let key = linear("attn.k", Target::K);
        let value = linear("attn.v", Target::V);
        let output = linear("attn.o", Target::O);
        let norm_2 = Norm::declare(config, &format!("{prefix}.ln_2"), declare);
        let mut linear = |name: &str, target| {
            Linear::declare(config, format!("{prefix}.{name}"), Place { layer, target }, declare)
        };
        let up = linear("mlp.up", Target::Up);
        let down = linear("mlp.down", Target::Down);
        Self { norm_1, query, key, value, output, norm_2, up, down }
    }

    /// x + O(attention(Q, K, V)) of the normed x.
    fn attention(&self, pass: &Pass, layer: usize, x: &Value, n_head: usize) -> Result<Value> {
        let h = self.norm_1.forward(pass, x)?;
        let (q, k, v) = (
            self.query.forward(pass, &h)?,
            self.key.forward(pass, &h)?,
            self.value.forward(pass, &h)?,
        );
        drop(h);
        let mixed = ops::causal_attention(
            pass.tape,
            &q,
            &k,
            &v,
            n_head,
            pass.dropout_at("attention", layer),
        )?;
        drop((q, k, v));
        let out = self.output.forward(pass, &mixed)?;
        ops::add(pass.tape, x, &pass.dropout(&out, "attention output", layer)?)
    }

    /// x + Down(GELU(Up(norm x))).
    fn mlp(&self, pass: &Pass, layer: usize, x: &Value) -> Result<Value> {
        let up = self.up.forward(pass, &self.norm_2.forward(pass, x)?)?;
        let active = ops::gelu(pass.tape, &up)?;
        drop(up);
        let out = self.down.forward(pass, &active)?;
        ops::add(pass.tape, x, &pass.dropout(&out, "mlp output", layer)?)
    }
}

impl Norm {
    fn declare(
        config: &ModelConfig,
        name: &str,
        declare: &mut impl FnMut(String, Role, Initial) -> ParamId,
    ) -> Self {
        let ones = Initial::Constant { size: config.n_embd, value: 1.0 };
        let zeros = Initial::Constant { size: config.n_embd, value: 0.0 };
        let weight = declare(format!("{name}.weight"), Role::Norm, ones);
        let bias = config.bias.then(|| declare(format!("{name}.bias"), Role::Norm, zeros));
        Self { weight, bias }
    }

    fn forward(&self, pass: &Pass, x: &Value) -> Result<Value> {
        let bias = self.bias.map(|id| pass.dense(id)).transpose()?;
        ops::layer_norm(pass.tape, x, &pass.dense(self.weight)?, bias.as_ref(), NORM_EPSILON)
    }
}

impl Linear {
    fn declare(
        config: &ModelConfig,
        name: String,
        place: Place,
        declare: &mut impl FnMut(String, Role, Initial) -> ParamId,
    ) -> Self {
        let (rows, columns) = config.shape(place.target);
        let residual = matches!(place.target, Target::O | Target::Down);
        let standard_deviation = INIT_STANDARD_DEVIATION
            / if residual { (2.0 * config.n_layer as f64).sqrt() } else { 1.0 };
        let weight = match config.form(place.target) {
            WeightForm::Dense => {
                let initial = Initial::Normal { rows, columns, standard_deviation };
                LinearWeight::Matrix(declare(
                    format!("{name}.weight"),
                    Role::Matrix(place),
                    initial,
                ))
            }
            WeightForm::LowRank { rank } => {
                let initial = Initial::LowRank { rows, columns, rank, standard_deviation };
                LinearWeight::Matrix(declare(name.clone(), Role::Matrix(place), initial))
            }
            WeightForm::Factored { rank, form } => {
                let mut factor = |factor: Factor| {
                    let initial =
                        Initial::Factor { factor, rows, columns, rank, standard_deviation };
                    declare(
                        format!("{name}.{}", factor.name()),
                        Role::Factor(place, factor),
                        initial,
                    )
                };
                match form {
                    FactorForm::Ba => {
                        LinearWeight::TwoFactors { b: factor(Factor::B), a: factor(Factor::A) }
                    }
                    FactorForm::Usv => LinearWeight::ThreeFactors {
                        u: factor(Factor::U),
                        s: factor(Factor::S),
                        vt: factor(Factor::VTransposed),
                    },
                }
            }
        };
        let zeros = Initial::Constant { size: rows, value: 0.0 };
        let bias = config.bias.then(|| declare(format!("{name}.bias"), Role::Bias, zeros));
        Self { weight, bias }
    }

    fn forward(&self, pass: &Pass, x: &Value) -> Result<Value> {
        let bias = self.bias.map(|id| pass.dense(id)).transpose()?;
        match self.weight {
            LinearWeight::Matrix(id) => match &pass.params.get(id).weight {
                Weight::Dense(_) => ops::linear(pass.tape, x, &pass.dense(id)?, bias.as_ref()),
                Weight::LowRank(LowRank { u, s, v }) => {
                    let u = pass.value(id, ParamStore::slot(id), u);
                    let v = pass.value(id, ParamStore::l_slot(id), v);
                    ops::low_rank_linear(pass.tape, x, &u, s, &v, bias.as_ref())
                }
            },
            LinearWeight::TwoFactors { b, a } => {
                let z = ops::linear(pass.tape, x, &pass.dense(a)?, None)?;
                ops::linear(pass.tape, &z, &pass.dense(b)?, bias.as_ref())
            }
            // Plain products, so that every factor gets its partial derivative: G V Sᵀ, Uᵀ G V and
            // (Gᵀ U S)ᵀ, with G the gradient by W.
            LinearWeight::ThreeFactors { u, s, vt } => {
                let z = ops::linear(pass.tape, x, &pass.dense(vt)?, None)?;
                let z = ops::linear(pass.tape, &z, &pass.dense(s)?, None)?;
                ops::linear(pass.tape, &z, &pass.dense(u)?, bias.as_ref())
            }
        }
    }
}

/// One forward pass: the parameters, the tape, and the dropout of this step.
struct Pass<'a> {
    params: &'a ParamStore,
    tape: &'a Tape,
    probability: f64,
    key: Option<DropoutKey>,
}

impl Pass<'_> {
    fn dense(&self, id: ParamId) -> Result<Value> {
        Ok(self.value(id, ParamStore::slot(id), self.params.dense(id)?))
    }

    /// A tensor of a parameter, whose gradient goes to this slot; a frozen one has none.
    fn value(&self, id: ParamId, slot: usize, tensor: &Tensor) -> Value {
        if self.params.get(id).trained {
            self.tape.parameter(slot, tensor)
        } else {
            self.tape.constant(tensor.clone())
        }
    }

    fn dropout_at(&self, site: &str, layer: usize) -> Option<Dropout> {
        let key = self.key.filter(|_| self.probability > 0.0)?;
        let key =
            rng::key64(key.seed, &format!("dropout {site}"), &[layer as u64, key.step, key.micro]);
        Some(Dropout { probability: self.probability, key })
    }

    fn dropout(&self, x: &Value, site: &str, layer: usize) -> Result<Value> {
        match self.dropout_at(site, layer) {
            Some(dropout) => ops::dropout(self.tape, x, dropout),
            None => Ok(x.clone()),
        }
    }
}
