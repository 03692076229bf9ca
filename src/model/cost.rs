//! What the layers of a network cost: numbers that they store and keep, operations on a token.
//!
//! Legend: m × n a matrix, r its rank, C the width, H the heads, T the block size, V the vocabulary;
//! a multiply-add is two operations.

use crate::spec::{AdapterForm, FactorForm, LowRankStart, ModelPlan, Target, WeightForm};

/// One weight matrix of one block, or the adapter of the head.
#[derive(Clone, Copy, Debug)]
pub struct MatrixCost {
    /// The form of what is trained, never an adapter.
    pub form: WeightForm,
    /// m.
    pub rows: u64,
    /// n.
    pub columns: u64,
    /// Whether a frozen full matrix stands beside what is trained.
    pub is_beside_frozen: bool,
    /// Whether it is low-rank and a dense matrix until it is cut: it costs what a dense one does, and
    /// moves by the rule of low-rank ones.
    pub is_uncut: bool,
}

impl MatrixCost {
    /// The matrix of this kind in this block, of a model with this vocabulary; of the head what is
    /// beside its matrix, which is no part of this.
    pub fn new(model: &ModelPlan, vocabulary: u64, layer: usize, target: Target) -> Self {
        let (rows, columns) = model.shape_with_head(target, vocabulary as usize);
        let (form, is_beside_frozen) = trained_form(model, layer, target);
        let is_uncut =
            model.start == LowRankStart::Dense && matches!(form, WeightForm::LowRank { .. });
        MatrixCost { form, rows: rows as u64, columns: columns as u64, is_beside_frozen, is_uncut }
    }

    /// The matrices of all blocks, block by block, and what is beside the head.
    pub fn all(model: &ModelPlan, vocabulary: u64) -> Vec<Self> {
        let new = |(layer, target)| Self::new(model, vocabulary, layer, target);
        model.places_with_head().map(new).collect()
    }

    /// The matrix once it is a point of this rank on the manifold.
    pub fn of_rank(self, rank: usize) -> Self {
        MatrixCost { form: WeightForm::LowRank { rank }, is_uncut: false, ..self }
    }

    /// The form that its numbers have now.
    fn present_form(&self) -> WeightForm {
        if self.is_uncut { WeightForm::Dense } else { self.form }
    }

    /// r; 0 where it is full.
    pub fn rank(&self) -> u64 {
        self.present_form().rank().unwrap_or(0) as u64
    }

    /// Whether it is a point on the manifold.
    pub fn is_low_rank(&self) -> bool {
        matches!(self.present_form(), WeightForm::LowRank { .. })
    }

    /// (m + n) r.
    pub fn factor_values(&self) -> u64 {
        (self.rows + self.columns) * self.rank()
    }

    /// Trained numbers.
    pub fn parameters(&self) -> u64 {
        match self.present_form() {
            WeightForm::Dense | WeightForm::Adapter { .. } => self.rows * self.columns,
            WeightForm::LowRank { .. } | WeightForm::Factored { form: FactorForm::Usv, .. } => {
                self.factor_values() + self.rank() * self.rank()
            }
            WeightForm::Factored { form: FactorForm::Ba, .. } => self.factor_values(),
        }
    }

    /// Dimension of the set of matrices that the form can be: r (m + n − r) for every low-rank
    /// form, whose factors store more numbers than they have degrees of freedom, and m n for a full
    /// one.
    pub fn manifold_dimension(&self) -> u64 {
        match self.present_form() {
            WeightForm::Dense | WeightForm::Adapter { .. } => self.rows * self.columns,
            WeightForm::LowRank { .. } | WeightForm::Factored { .. } => {
                self.factor_values() - self.rank() * self.rank()
            }
        }
    }

    /// Rank-wide intermediates kept per token: x V, or with free factors also x V Sᵀ, or x Aᵀ.
    fn intermediate_values(&self) -> u64 {
        match self.present_form() {
            WeightForm::Dense | WeightForm::Adapter { .. } => 0,
            WeightForm::Factored { form: FactorForm::Usv, .. } => 2 * self.rank(),
            WeightForm::LowRank { .. } | WeightForm::Factored { form: FactorForm::Ba, .. } => {
                self.rank()
            }
        }
    }

    /// Operations of the forward pass on a token, 2 for every number.
    pub fn forward_flops(&self) -> u64 {
        2 * (self.parameters() + self.frozen_values())
    }

    /// Operations of the product with S alone.
    fn coefficient_flops(&self) -> u64 {
        if self.is_low_rank() { 2 * self.rank() * self.rank() } else { 0 }
    }

    /// Numbers of its gradient: K- and L-gradient, (m + n) r, of a point on the manifold.
    pub fn gradient_values(&self) -> u64 {
        if self.is_low_rank() { self.factor_values() } else { self.parameters() }
    }

    /// m n of the frozen matrix; 0 where there is none.
    pub fn frozen_values(&self) -> u64 {
        if self.is_beside_frozen { self.rows * self.columns } else { 0 }
    }

    /// Forward and backward of a token. Of what is trained three times the forward, except that the
    /// r × r product has no gradient product of its own; of what is frozen twice; and without the
    /// input's gradient, 2 m n, or 2 (n r + r²), less.
    pub fn training_flops(&self, passes_on: bool) -> u64 {
        let trained = 6 * self.parameters() - self.coefficient_flops();
        let frozen = 2 * self.frozen_values();
        match passes_on {
            true => trained + 2 * frozen,
            false => trained - 2 * self.columns * self.rank() - self.coefficient_flops() + frozen,
        }
    }
}

/// Nothing that is trained: a product of rank 0.
const NOTHING: WeightForm = WeightForm::Factored { rank: 0, form: FactorForm::Ba };

/// What is trained of a matrix, and whether it stands beside a frozen one.
fn trained_form(model: &ModelPlan, layer: usize, target: Target) -> (WeightForm, bool) {
    let is_of_block = target != Target::HEAD;
    match model.form_in(layer, target) {
        WeightForm::Adapter { rank, form: AdapterForm::LowRank, .. } => {
            (WeightForm::LowRank { rank }, is_of_block)
        }
        WeightForm::Adapter { rank, form: AdapterForm::Lora, .. } => {
            (WeightForm::Factored { rank, form: FactorForm::Ba }, is_of_block)
        }
        _ if model.is_adapted() => (NOTHING, true),
        form => (form, false),
    }
}

/// Whether a matrix passes a gradient on to its input: all do, except those that have no adapter
/// below them where adapters alone are trained.
pub fn passes_on(model: &ModelPlan, layer: usize, target: Target) -> bool {
    let is_below = |(block, other): (usize, Target)| {
        let is_lower = block < layer || (block == layer && stage(other) < stage(target));
        is_lower && model.is_adapted_in(block, other)
    };
    !model.is_adapted() || model.places().any(is_below)
}

/// Place of a matrix among those of its block that work on the same input.
fn stage(target: Target) -> usize {
    match target {
        Target::Q | Target::K | Target::V | Target::QKV => 0,
        Target::O => 1,
        Target::DOWN => 3,
        _ => 2,
    }
}

/// Operations of a block's causal attention on a token, forward: it sees (T + 1) / 2 keys on
/// average, twice (scores and mixture), 2 C (T + 1).
pub fn attention_flops(model: &ModelPlan) -> u64 {
    2 * model.n_embd as u64 * (model.block_size as u64 + 1)
}

/// Operations of attention on a token in all blocks, forward and backward: three times the forward,
/// except where no gradient passes.
pub fn attention_training_flops(model: &ModelPlan) -> u64 {
    let (layers, block) = (model.n_layer as u64, attention_flops(model));
    let stopped = (0..model.n_layer).filter(|layer| !passes_on(model, *layer, Target::O)).count();
    3 * layers * block - 2 * stopped as u64 * block
}

/// Operations of the head on a token, forward: 2 V C.
pub fn head_flops(model: &ModelPlan, vocabulary: u64) -> u64 {
    2 * vocabulary * model.n_embd as u64
}

/// Operations of the head's matrix on a token, forward and backward: three times the forward; twice
/// where it is frozen, and once where no gradient passes through it either.
pub fn head_training_flops(model: &ModelPlan, vocabulary: u64) -> u64 {
    let products = match (model.is_adapted(), passes_on(model, model.n_layer, Target::HEAD)) {
        (false, _) => 3,
        (true, true) => 2,
        (true, false) => 1,
    };
    products * head_flops(model, vocabulary)
}

/// Numbers that a token's forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug)]
pub struct KeptValues {
    /// Those that are always f32.
    pub in_f32: u64,
    /// Those in the type of the products.
    pub in_compute_type: u64,
}

/// Numbers kept per token, with these matrices in all blocks.
///
/// Per block: both norms' inputs (2 C), statistics (4) and outputs (2 C); q, k, v (3 C, or C + 2 C
/// G/H with G heads of keys and values); attention output (C) and log-sum-exp (H); the stages of the
/// MLP, I wide, but for the last, which is made again from those before it; and the rank-wide
/// intermediate of each low-rank or factored matrix (r; 2 r with free factors U, S, V). Then the final norm's input, statistics and output (2 C + 2) and the head's
/// gradient (C). Logits exist only in chunks, residual sums and dropout keep nothing.
pub fn kept_values(model: &ModelPlan, matrices: &[MatrixCost]) -> KeptValues {
    let (layers, width, heads) = (model.n_layer as u64, model.n_embd as u64, model.n_head as u64);
    let rank_wide: u64 = matrices.iter().map(MatrixCost::intermediate_values).sum();
    let (norm_inputs, norm_outputs) = (width + 2, width);
    let attention = 2 * (width + model.key_width() as u64);
    let mlp = mlp_values(model) - model.inner_width() as u64;
    let kept = norm_outputs * 2 + attention + mlp;
    KeptValues {
        in_f32: layers * (2 * norm_inputs + heads) + norm_inputs + width,
        in_compute_type: layers * kept + rank_wide + norm_outputs,
    }
}

/// Numbers that the backward pass holds of a token at its widest in a block: gradients of the
/// residual stream and of the MLP's output, 2 C, and of every stage of the MLP (or, before, the last
/// stage made again and its gradient).
pub fn backward_values(model: &ModelPlan) -> u64 {
    2 * model.n_embd as u64 + mlp_values(model)
}

/// Numbers per token between the matrices of an MLP.
fn mlp_values(model: &ModelPlan) -> u64 {
    model.arch.mlp_stages() * model.inner_width() as u64
}
