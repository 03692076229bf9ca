//! What a network is to everything outside this module: what parameters it has, where its weight
//! matrices are, and how it answers. Each architecture is one file that implements it.

use super::cache::KeyValueCache;
use super::config::ModelConfig;
use super::gpt2::Gpt2;
use super::head::Head;
use super::layers::Pass;
use super::llama::Llama;
use crate::ops::{Compute, PackedDocuments, Tape, Targets, Value};
use crate::params::{Declared, ParamStore};
use crate::spec::{Architecture, Target};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::fmt::Debug;

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

/// What a network reads.
#[derive(Clone, Copy, Debug)]
pub struct Sequences<'a> {
    /// Tokens (B, T), u32.
    pub tokens: &'a Tensor,
    /// The documents that share the rows; without them a row is one.
    pub documents: Option<&'a PackedDocuments>,
}

/// A sequence in every row.
impl<'a> From<&'a Tensor> for Sequences<'a> {
    fn from(tokens: &'a Tensor) -> Self {
        Self { tokens, documents: None }
    }
}

/// A weight matrix W, m × n in y = x Wᵀ, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// Name in checkpoints, without the names of its parts: `transformer.h.0.attn.q`.
    pub name: String,
    /// Block, counted from 0.
    pub layer: usize,
    /// Which matrix of the block.
    pub kind: Target,
    /// Outputs m.
    pub rows: usize,
    /// Inputs n.
    pub columns: usize,
}

/// What every network has, whatever its architecture.
#[derive(Clone, Debug)]
pub struct Structure {
    /// The configuration it was made from.
    pub config: ModelConfig,
    /// How it computes.
    pub compute: Compute,
    /// Its parameters, in their fixed order.
    pub declared: Vec<Declared>,
    /// Its weight matrices, in the order in which the blocks apply them.
    pub sites: Vec<Site>,
}

/// A network's structure: which parameters it has and how they act. The numbers live in a
/// [`ParamStore`].
///
/// An architecture says what its structure is, how a [`Pass`] turns tokens into hidden states, and
/// which matrix turns those into logits; the rest follows.
pub trait Network: Debug + Send + Sync {
    /// What it has in common with every network.
    fn structure(&self) -> &Structure;

    /// The same, to be changed.
    fn structure_mut(&mut self) -> &mut Structure;

    /// The head that turns hidden states into logits.
    fn head(&self) -> Head;

    /// Final hidden states (B, T, C) after the last norm of one pass over `tokens` (B, T), showing
    /// each stage's name and output to `observe`.
    ///
    /// The pass says everything that differs between training, evaluation and generation: where its
    /// first token stands ([`Pass::first_position`]) and what its queries see
    /// ([`Pass::attention`]).
    ///
    /// # Errors
    /// As for [`Network::hidden`], or if `observe` fails.
    fn run(
        &self,
        pass: &Pass,
        tokens: &Tensor,
        observe: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Value>;

    /// The configuration this network was made from.
    fn config(&self) -> &ModelConfig {
        &self.structure().config
    }

    /// How it computes.
    fn compute(&self) -> Compute {
        self.structure().compute
    }

    /// Makes it compute in this way.
    fn set_compute(&mut self, compute: Compute) {
        self.structure_mut().compute = compute;
    }

    /// The parameters it has, in their fixed order.
    fn declared(&self) -> &[Declared] {
        &self.structure().declared
    }

    /// Its weight matrices, in the order in which the blocks apply them.
    fn sites(&self) -> &[Site] {
        &self.structure().sites
    }

    /// Fresh parameters, a pure function of the seed and each parameter's name.
    ///
    /// Matrices and tables are N(0, 0.02²), those that write to the residual stream divided by √(2
    /// n_layer); a low-rank W = U S Vᵀ, its factors trained freely or not, or W = B A gets random
    /// orthonormal bases and the Frobenius norm its dense counterpart would have, σ√(mn), the same
    /// W in each of these forms; norms are 1, biases 0.
    ///
    /// # Errors
    /// If a rank exceeds its matrix, or a tensor cannot be made.
    fn initialize(&self, seed: u64, dtype: DType, device: &Device) -> Result<ParamStore> {
        ParamStore::initialize(self.declared(), seed, dtype, device)
    }

    /// Count of numbers of the same network with dense weights.
    fn dense_parameter_count(&self) -> usize {
        self.declared().iter().map(|declared| declared.initial.dense_count()).sum()
    }

    /// A tape on which this network trains.
    fn training_tape(&self) -> Tape {
        Tape::training().computing(self.compute())
    }

    /// A tape on which it only answers.
    fn inference_tape(&self) -> Tape {
        Tape::inference().computing(self.compute())
    }

    /// [`Network::hidden`], showing each stage's name and output to `observe` (used to find where a
    /// number stopped being finite).
    ///
    /// # Errors
    /// As for [`Network::hidden`], or if `observe` fails.
    fn hidden_observed(
        &self,
        params: &ParamStore,
        tape: &Tape,
        Sequences { tokens, documents }: Sequences,
        dropout: Option<DropoutKey>,
        observe: &mut dyn FnMut(&str, &Tensor) -> Result<()>,
    ) -> Result<Value> {
        let probability = self.config().dropout;
        let pass = Pass { params, tape, probability, key: dropout, documents, cache: None };
        self.run(&pass, tokens, observe)
    }

    /// Final hidden states (B, T, C) after the last norm, for `tokens` (B, T) with T ≤
    /// `block_size`.
    ///
    /// `dropout` is only heeded when the configuration has dropout; evaluation passes `None`.
    ///
    /// # Errors
    /// If a token is outside the vocabulary, or T exceeds the block size.
    fn hidden(
        &self,
        params: &ParamStore,
        tape: &Tape,
        tokens: &Tensor,
        dropout: Option<DropoutKey>,
    ) -> Result<Value> {
        self.hidden_observed(params, tape, tokens.into(), dropout, &mut |_, _| Ok(()))
    }

    /// Mean cross-entropy in nats of `targets` (B, T) given `tokens` (B, T), as a value on the
    /// tape.
    ///
    /// # Errors
    /// As for [`Network::hidden`], or if a target is outside the vocabulary.
    fn loss(
        &self,
        params: &ParamStore,
        tape: &Tape,
        tokens: &Tensor,
        targets: &Tensor,
        dropout: Option<DropoutKey>,
    ) -> Result<Value> {
        self.loss_of(params, tape, tokens.into(), targets.into(), dropout)
    }

    /// [`Network::loss`] of the targets that count, in rows that several documents may share.
    ///
    /// # Errors
    /// As for [`Network::loss`], or if none counts.
    fn loss_of(
        &self,
        params: &ParamStore,
        tape: &Tape,
        sequences: Sequences,
        targets: Targets,
        dropout: Option<DropoutKey>,
    ) -> Result<Value> {
        let observe = &mut |_: &str, _: &Tensor| Ok(());
        let hidden = self.hidden_observed(params, tape, sequences, dropout, observe)?;
        let (probability, documents) = (self.config().dropout, sequences.documents);
        let pass = Pass { params, tape, probability, key: dropout, documents, cache: None };
        self.head().loss(&pass, &hidden, targets)
    }

    /// Sum of the cross-entropies in nats over all targets, without gradients.
    ///
    /// # Errors
    /// As for [`Network::loss`].
    fn loss_sum(&self, params: &ParamStore, tokens: &Tensor, targets: &Tensor) -> Result<f64> {
        self.loss_sum_of(params, tokens, targets.into())
    }

    /// [`Network::loss_sum`] over the targets that count.
    ///
    /// # Errors
    /// As for [`Network::loss_of`].
    fn loss_sum_of(&self, params: &ParamStore, tokens: &Tensor, targets: Targets) -> Result<f64> {
        let tape = self.inference_tape();
        let hidden = self.hidden(params, &tape, tokens, None)?;
        self.head().loss_sum(&Pass::answering(params, &tape), hidden.tensor(), targets)
    }

    /// The cross-entropy in nats of each target that counts, in order, without gradients.
    ///
    /// # Errors
    /// As for [`Network::loss_of`].
    fn losses_of(
        &self,
        params: &ParamStore,
        tokens: &Tensor,
        targets: Targets,
    ) -> Result<Vec<f64>> {
        let tape = self.inference_tape();
        let hidden = self.hidden(params, &tape, tokens, None)?;
        self.head().losses(&Pass::answering(params, &tape), hidden.tensor(), targets)
    }

    /// An empty cache for sequences of at most `tokens` tokens, which are at most `block_size`.
    fn cache(&self, tokens: usize) -> KeyValueCache {
        let config = self.config();
        KeyValueCache::new(config.n_layer, tokens.min(config.block_size))
    }

    /// Logits (B, V) of the token after the last of each sequence, which goes on by `tokens` (B, T)
    /// after those that `cache` has seen; these it has then seen, too.
    ///
    /// # Errors
    /// As for [`Network::hidden`], or if the cache has no room for T more tokens.
    fn extend(
        &self,
        params: &ParamStore,
        tokens: &Tensor,
        cache: &mut KeyValueCache,
    ) -> Result<Tensor> {
        let count = tokens.dim(1)?;
        let tape = self.inference_tape().of_few_rows();
        let pass = Pass { cache: Some(&*cache), ..Pass::answering(params, &tape) };
        let hidden = self.run(&pass, tokens, &mut |_, _| Ok(()))?;
        let logits = self.last_logits(&Pass::answering(params, &tape), &hidden);
        cache.advance(count);
        logits
    }

    /// Logits (V) of the token after the last of `tokens` (T ≤ `block_size`), by a pass over all of
    /// them.
    ///
    /// # Errors
    /// As for [`Network::hidden`].
    fn next_token_logits(&self, params: &ParamStore, tokens: &[u32]) -> Result<Tensor> {
        let device = params.dense(self.head().weight)?.device();
        let tokens = Tensor::from_slice(tokens, (1, tokens.len()), device)?;
        let tape = self.inference_tape();
        let hidden = self.hidden(params, &tape, &tokens, None)?;
        self.last_logits(&Pass::answering(params, &tape), &hidden)?.squeeze(0)
    }

    /// Logits (B, V) of the last of hidden states (B, T, C).
    ///
    /// # Errors
    /// If the widths do not fit.
    fn last_logits(&self, pass: &Pass, hidden: &Value) -> Result<Tensor> {
        let hidden = hidden.tensor();
        let last = hidden.narrow(1, hidden.dim(1)? - 1, 1)?.squeeze(1)?.contiguous()?;
        self.head().logits(pass, &last)
    }
}

/// The network of a configuration; where it has adapters, nothing else is trained.
///
/// # Errors
/// If its heads do not share out its width.
pub fn build(config: ModelConfig) -> Result<Box<dyn Network>> {
    if config.n_head == 0 || !config.n_embd.is_multiple_of(config.n_head) {
        bail!(
            "the model's n_embd {} is not divisible by its n_head {}; choose a divisor",
            config.n_embd,
            config.n_head
        )
    }
    let heads = config.heads();
    if heads.keys == 0 || !heads.queries.is_multiple_of(heads.keys) {
        bail!(
            "the model's n_head {} is not divisible by its n_kv_head {}; choose a divisor",
            heads.queries,
            heads.keys
        )
    }
    let is_adapted = config.is_adapted();
    let mut network: Box<dyn Network> = match config.arch {
        Architecture::Gpt2 => Box::new(Gpt2::new(config)),
        Architecture::Llama => Box::new(Llama::new(config)),
    };
    if is_adapted {
        let declared = network.structure_mut().declared.iter_mut();
        declared.for_each(|declared| declared.trained = declared.initial.is_adapter());
    }
    Ok(network)
}
