//! What a network costs of which only adapters are trained: frozen matrices pass gradients on but
//! get none.

use super::matrix::Matrix;
use crate::spec::{AdapterForm, FactorForm, ModelPlan, Target, WeightForm};

/// Nothing that is trained: a product of rank 0.
const NOTHING: WeightForm = WeightForm::Factored { rank: 0, form: FactorForm::Ba };

/// What is trained of a matrix, and whether it stands beside a frozen one.
pub(super) fn trained_form(model: &ModelPlan, target: Target) -> (WeightForm, bool) {
    match model.form(target) {
        WeightForm::Adapter { rank, form: AdapterForm::LowRank, .. } => {
            (WeightForm::LowRank { rank }, true)
        }
        WeightForm::Adapter { rank, form: AdapterForm::Lora, .. } => {
            (WeightForm::Factored { rank, form: FactorForm::Ba }, true)
        }
        _ if model.is_adapted() => (NOTHING, true),
        form => (form, false),
    }
}

/// Whether a matrix passes a gradient on to its input: all do, except those of the first block
/// that have no adapter below them.
pub(super) fn passes_on(model: &ModelPlan, layer: usize, target: Target) -> bool {
    let is_adapted_below =
        |(other, form): (&Target, &WeightForm)| form.is_adapter() && stage(*other) < stage(target);
    !model.is_adapted() || layer > 0 || model.weights.iter().any(is_adapted_below)
}

/// Whether gradients pass through the attention of a block.
pub(super) fn passes_attention(model: &ModelPlan, layer: usize) -> bool {
    passes_on(model, layer, Target::O)
}

/// Place of a matrix among those of its block that work on the same input.
fn stage(target: Target) -> usize {
    match target {
        Target::Q | Target::K | Target::V => 0,
        Target::O => 1,
        Target::DOWN => 3,
        _ => 2,
    }
}

impl Matrix {
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
