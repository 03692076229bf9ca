//! The head: the matrix (V, C) that turns hidden states into logits, with or without an adapter.

use super::adapter::Adapter;
use super::config::ModelConfig;
use super::layers::{Declarations, INIT_STANDARD_DEVIATION, Pass};
use crate::ops::{self, Compute, HeadAdapter, HeadMatrix, Targets, Value};
use crate::params::{Initial, ParamId, Place, Role};
use crate::spec::Target;
use candle_core::{Result, Tensor};

/// Name of the head in checkpoints, without the names of its parts; `transformers` has the same.
pub const HEAD: &str = "lm_head";

/// The matrix (V, C) that turns hidden states into logits.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    /// Its parameter, which may be the table of tokens.
    pub weight: ParamId,
    /// What is trained beside it.
    adapter: Option<Adapter>,
}

impl Head {
    /// The head of this configuration: the table of tokens or a matrix of its own, and its adapter.
    pub fn declare(
        declarations: &mut Declarations,
        config: &ModelConfig,
        token_table: ParamId,
    ) -> Self {
        let (rows, columns) = (config.vocab_size, config.n_embd);
        let standard_deviation = INIT_STANDARD_DEVIATION;
        let weight = match config.ties_embeddings() {
            true => token_table,
            false => {
                let initial = Initial::Normal { rows, columns, standard_deviation };
                declarations.add(format!("{HEAD}.weight"), Role::Head, initial)
            }
        };
        let place = Place { layer: config.n_layer, target: Target::HEAD };
        let adapter = config
            .head_adapter
            .and_then(|form| Adapter::declare(declarations, HEAD, place, (rows, columns), form));
        Self { weight, adapter }
    }

    /// Mean cross-entropy in nats of the targets that count, given hidden states (B, T, C), as a
    /// value on the pass's tape.
    ///
    /// # Errors
    /// If a target is outside the vocabulary, or none counts.
    pub fn loss(&self, pass: &Pass, hidden: &Value, targets: Targets) -> Result<Value> {
        let (weight, adapter) = (pass.dense(self.weight)?, self.adapter_of(pass)?);
        ops::adapted_cross_entropy_head(pass.tape, hidden, &weight, adapter.as_ref(), targets)
    }

    /// The sum of those cross-entropies, without gradients.
    ///
    /// # Errors
    /// As for [`Head::loss`].
    pub fn loss_sum(&self, pass: &Pass, hidden: &Tensor, targets: Targets) -> Result<f64> {
        self.with_matrix(pass, |compute, head| {
            ops::cross_entropy_sum(compute, hidden, head, targets)
        })
    }

    /// Each of those cross-entropies, in order, without gradients.
    ///
    /// # Errors
    /// As for [`Head::loss`].
    pub fn losses(&self, pass: &Pass, hidden: &Tensor, targets: Targets) -> Result<Vec<f64>> {
        self.with_matrix(pass, |compute, head| ops::cross_entropies(compute, hidden, head, targets))
    }

    /// Logits (N, V) of hidden states (N, C).
    ///
    /// # Errors
    /// If the widths do not fit.
    pub fn logits(&self, pass: &Pass, hidden: &Tensor) -> Result<Tensor> {
        self.with_matrix(pass, |compute, head| ops::logits(compute, hidden, head))
    }

    fn with_matrix<T>(
        &self,
        pass: &Pass,
        apply: impl FnOnce(Compute, HeadMatrix) -> Result<T>,
    ) -> Result<T> {
        let adapter = self.adapter_of(pass)?;
        let w = pass.params.dense(self.weight)?;
        apply(pass.tape.compute(), HeadMatrix { w, adapter: adapter.as_ref() })
    }

    fn adapter_of(&self, pass: &Pass) -> Result<Option<HeadAdapter>> {
        Ok(match self.adapter {
            None => None,
            Some(Adapter::LowRank(id)) => {
                let (u, s, v) = pass.point(id, pass.params.point(id)?);
                Some(HeadAdapter::LowRank { u, s: s.clone(), v })
            }
            Some(Adapter::Lora { b, a, scale }) => {
                Some(HeadAdapter::Lora { b: pass.dense(b)?, a: pass.dense(a)?, scale })
            }
        })
    }
}
