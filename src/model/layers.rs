//! The layers that architectures are made of: norms and linear layers in their forms.
//!
//! A layer declares its parameters once and keeps their ids; a forward pass looks the numbers up. A
//! weight is m × n (outputs × inputs): y = x Wᵀ.

use super::adapter::Adapter;
use super::cache::KeyValueCache;
use super::config::ModelConfig;
use super::network::{DropoutKey, Site};
use crate::lowrank::LowRank;
use crate::ops::{self, AttentionHeads, Dropout, PackedDocuments, Tape, Value};
use crate::params::{Declared, Factor, Initial, ParamId, ParamStore, Place, Role, Weight};
use crate::rng;
use crate::spec::{FactorForm, InitialSpectrum, LowRankStart, Target, WeightForm};
use candle_core::{Result, Tensor, bail};

/// Standard deviation of initial weights (Radford et al. 2019).
pub const INIT_STANDARD_DEVIATION: f64 = 0.02;

/// What the layers of a network declare, in their order.
#[derive(Debug, Default)]
pub struct Declarations {
    /// Parameters.
    pub parameters: Vec<Declared>,
    /// Weight matrices of the blocks.
    pub sites: Vec<Site>,
}

impl Declarations {
    /// A parameter.
    pub(super) fn add(&mut self, name: String, role: Role, initial: Initial) -> ParamId {
        self.parameters.push(Declared::trained(name, role, initial));
        ParamId(self.parameters.len() - 1)
    }

    /// A table of rows of this width: the vectors of tokens or of positions.
    pub fn table(&mut self, name: &str, rows: usize, columns: usize) -> ParamId {
        let standard_deviation = INIT_STANDARD_DEVIATION;
        let initial = Initial::Normal { rows, columns, standard_deviation };
        self.add(name.to_owned(), Role::Embedding, initial)
    }
}

/// Layer normalisation over the last dimension.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: ParamId,
    bias: Option<ParamId>,
    epsilon: f64,
}

impl LayerNorm {
    /// A norm of this width, ones and zeros at first.
    pub fn declare(
        declarations: &mut Declarations,
        name: &str,
        width: usize,
        bias: bool,
        epsilon: f64,
    ) -> Self {
        let mut vector = |leaf: &str, value| {
            let initial = Initial::Constant { size: width, value };
            declarations.add(format!("{name}.{leaf}"), Role::Norm, initial)
        };
        let weight = vector("weight", 1.0);
        let bias = bias.then(|| vector("bias", 0.0));
        Self { weight, bias, epsilon }
    }

    /// The normed x.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward(&self, pass: &Pass, x: &Value) -> Result<Value> {
        let bias = self.bias.map(|id| pass.dense(id)).transpose()?;
        ops::layer_norm(pass.tape, x, &pass.dense(self.weight)?, bias.as_ref(), self.epsilon)
    }
}

/// Normalisation by the root mean square over the last dimension.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: ParamId,
    epsilon: f64,
}

impl RmsNorm {
    /// A norm of this width, ones at first.
    pub fn declare(
        declarations: &mut Declarations,
        name: &str,
        width: usize,
        epsilon: f64,
    ) -> Self {
        let initial = Initial::Constant { size: width, value: 1.0 };
        Self { weight: declarations.add(format!("{name}.weight"), Role::Norm, initial), epsilon }
    }

    /// The normed x.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward(&self, pass: &Pass, x: &Value) -> Result<Value> {
        ops::rms_norm(pass.tape, x, &pass.dense(self.weight)?, self.epsilon)
    }
}

/// First numbers of a weight.
#[derive(Clone, Copy, Debug)]
struct First {
    /// σ: standard deviation of the entries of a dense matrix, whose norm the other forms have.
    standard_deviation: f64,
    /// Singular values where it is low-rank.
    spectrum: InitialSpectrum,
    /// What it is until it is cut, where it is low-rank.
    start: LowRankStart,
}

/// y = x Wᵀ + b with W in one of its forms.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: LinearWeight,
    bias: Option<ParamId>,
}

#[derive(Clone, Copy, Debug)]
enum LinearWeight {
    /// Dense, W = U S Vᵀ, or the one until it is the other: the parameter store knows which.
    Matrix(ParamId),
    /// W = B A.
    TwoFactors { b: ParamId, a: ParamId },
    /// W = U S Vᵀ, each trained freely.
    ThreeFactors { u: ParamId, s: ParamId, vt: ParamId },
    /// W = W₀ + U S Vᵀ or W = W₀ + scale · B A.
    Adapted { frozen: ParamId, adapter: Adapter },
}

impl Linear {
    /// The layer of a block's matrix of this kind, as the configuration has it.
    ///
    /// Entries start at a standard deviation of [`INIT_STANDARD_DEVIATION`]; those of the matrices
    /// that write to the residual stream, 2 in a block, add up and are divided by √(2 n_layer), or
    /// are zero where the configuration says so.
    pub fn of_block(
        declarations: &mut Declarations,
        config: &ModelConfig,
        name: String,
        layer: usize,
        kind: Target,
    ) -> Self {
        let (rows, columns) = config.shape(kind);
        let site = Site { name, layer, kind, rows, columns };
        let standard_deviation = match matches!(kind, Target::O | Target::DOWN) {
            true if config.zero_outputs => 0.0,
            true => INIT_STANDARD_DEVIATION / (2.0 * config.n_layer as f64).sqrt(),
            false => INIT_STANDARD_DEVIATION,
        };
        let first = First { standard_deviation, spectrum: config.spectrum, start: config.start };
        Self::declare(declarations, site, config.form_in(layer, kind), config.bias, first)
    }

    /// The layer of this site, its weight in this form and with these numbers at first.
    fn declare(
        declarations: &mut Declarations,
        site: Site,
        form: WeightForm,
        bias: bool,
        First { standard_deviation, spectrum, start }: First,
    ) -> Self {
        let place = Place { layer: site.layer, target: site.kind };
        let (name, rows, columns) = (site.name.clone(), site.rows, site.columns);
        let full = |declarations: &mut Declarations| {
            let initial = Initial::Normal { rows, columns, standard_deviation };
            declarations.add(format!("{name}.weight"), Role::Matrix(place), initial)
        };
        let weight = match form {
            WeightForm::Dense => LinearWeight::Matrix(full(declarations)),
            WeightForm::Adapter { .. } => {
                let frozen = full(declarations);
                Adapter::declare(declarations, &name, place, (rows, columns), form).map_or(
                    LinearWeight::Matrix(frozen),
                    |adapter| LinearWeight::Adapted { frozen, adapter },
                )
            }
            WeightForm::LowRank { rank } => {
                let initial =
                    Initial::LowRank { rows, columns, rank, standard_deviation, spectrum, start };
                LinearWeight::Matrix(declarations.add(name.clone(), Role::Matrix(place), initial))
            }
            WeightForm::Factored { rank, form } => {
                let mut factor = |factor: Factor| {
                    let initial =
                        Initial::Factor { factor, rows, columns, rank, standard_deviation };
                    let name = format!("{name}.{}", factor.name());
                    declarations.add(name, Role::Factor(place, factor), initial)
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
        let bias = bias.then(|| declarations.add(format!("{name}.bias"), Role::Bias, zeros));
        declarations.sites.push(site);
        Self { weight, bias }
    }

    /// y = x Wᵀ + b.
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn forward(&self, pass: &Pass, x: &Value) -> Result<Value> {
        let bias = self.bias.map(|id| pass.dense(id)).transpose()?;
        match self.weight {
            LinearWeight::Matrix(id) => match &pass.params.get(id).weight {
                weight @ (Weight::Dense(w) | Weight::Uncut(w)) => {
                    let linear = match weight {
                        Weight::Uncut(_) => ops::measured_linear,
                        _ => ops::dense_matrix_linear,
                    };
                    let to_inputs = pass.value(id, ParamStore::l_slot(id), w);
                    linear(pass.tape, x, &pass.dense(id)?, &to_inputs, bias.as_ref())
                }
                Weight::LowRank(point) => {
                    let (u, s, v) = pass.point(id, point);
                    ops::low_rank_linear(pass.tape, x, &u, s, &v, bias.as_ref())
                }
            },
            LinearWeight::Adapted { frozen, adapter } => {
                let y = ops::linear(pass.tape, x, &pass.dense(frozen)?, bias.as_ref())?;
                let added = match adapter {
                    Adapter::LowRank(id) => {
                        let (u, s, v) = pass.point(id, pass.params.point(id)?);
                        ops::low_rank_linear(pass.tape, x, &u, s, &v, None)?
                    }
                    Adapter::Lora { b, a, scale } => {
                        let z = ops::linear(pass.tape, x, &pass.dense(a)?, None)?;
                        let z = match scale {
                            1.0 => z,
                            _ => ops::scaled(pass.tape, &z, scale)?,
                        };
                        ops::linear(pass.tape, &z, &pass.dense(b)?, None)?
                    }
                };
                ops::add(pass.tape, &y, &added)
            }
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

/// One forward pass: the parameters, the tape, the dropout of this step, and what tokens see.
pub struct Pass<'a> {
    /// The numbers.
    pub params: &'a ParamStore,
    /// What is recorded.
    pub tape: &'a Tape,
    /// Probability of dropping an activation.
    pub probability: f64,
    /// The step's dropout; none in evaluation.
    pub key: Option<DropoutKey>,
    /// The documents that share the rows, where they do.
    pub documents: Option<&'a PackedDocuments>,
    /// The keys and values of the tokens before those of this pass, and where these add theirs;
    /// none where the pass is over whole sequences.
    pub cache: Option<&'a KeyValueCache>,
}

impl<'a> Pass<'a> {
    /// One over whole sequences that only answers.
    pub fn answering(params: &'a ParamStore, tape: &'a Tape) -> Self {
        Self { params, tape, probability: 0.0, key: None, documents: None, cache: None }
    }

    /// A dense parameter's tensor on the tape.
    ///
    /// # Errors
    /// If it is low-rank.
    pub fn dense(&self, id: ParamId) -> Result<Value> {
        Ok(self.value(id, ParamStore::slot(id), self.params.dense(id)?))
    }

    /// Position of the first of this pass's tokens.
    pub fn first_position(&self) -> usize {
        self.cache.map_or(0, KeyValueCache::length)
    }

    /// The rows of a table of positions (at least T, C) that belong to this pass's `count` tokens,
    /// from the first on.
    ///
    /// # Errors
    /// If there are fewer positions.
    pub fn positions(&self, table: ParamId, count: usize) -> Result<Value> {
        let table = self.dense(table)?;
        match self.first_position() {
            0 => Ok(table),
            first => {
                let rows = table.tensor().dim(0)?;
                if first + count > rows {
                    bail!("{count} tokens after {first} exceed the block size of {rows}")
                }
                Ok(self.tape.constant(table.tensor().narrow(0, first, count)?))
            }
        }
    }

    /// Causal attention of a layer's queries (B, T, H d) to its keys and values (B, T, G d) and to
    /// those of the tokens before.
    ///
    /// # Errors
    /// If the shapes do not fit the heads.
    pub fn attention(
        &self,
        layer: usize,
        [q, k, v]: [&Value; 3],
        heads: AttentionHeads,
    ) -> Result<Value> {
        let dropout = self.dropout_at("attention", layer);
        match (self.cache, self.documents) {
            (Some(cache), _) => cache.attend(self, layer, [q, k, v], heads),
            (None, None) => ops::causal_attention(self.tape, q, k, v, heads, dropout),
            (None, Some(documents)) => {
                ops::document_attention(self.tape, [q, k, v], heads, documents, dropout)
            }
        }
    }

    /// U, S and V of a low-rank parameter, U and V on the tape: their gradients are the K- and the
    /// L-gradient.
    pub(super) fn point<'b>(
        &self,
        id: ParamId,
        LowRank { u, s, v }: &'b LowRank,
    ) -> (Value, &'b Tensor, Value) {
        let u = self.value(id, ParamStore::slot(id), u);
        (u, s, self.value(id, ParamStore::l_slot(id), v))
    }

    /// A tensor of a parameter, whose gradient goes to this slot; a frozen one has none.
    fn value(&self, id: ParamId, slot: usize, tensor: &Tensor) -> Value {
        if self.params.get(id).trained {
            self.tape.parameter(slot, tensor)
        } else {
            self.tape.constant(tensor.clone())
        }
    }

    /// The dropout of a place in a block, if this pass has any.
    pub fn dropout_at(&self, site: &str, layer: usize) -> Option<Dropout> {
        let key = self.key.filter(|_| self.probability > 0.0)?;
        let key =
            rng::key64(key.seed, &format!("dropout {site}"), &[layer as u64, key.step, key.micro]);
        Some(Dropout { probability: self.probability, key })
    }

    /// x with its dropout.
    ///
    /// # Errors
    /// If an operation fails.
    pub fn dropout(&self, x: &Value, site: &str, layer: usize) -> Result<Value> {
        match self.dropout_at(site, layer) {
            Some(dropout) => ops::dropout(self.tape, x, dropout),
            None => Ok(x.clone()),
        }
    }
}
