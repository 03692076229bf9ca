//! What one matrix of one block contributes. Its form is that of what is trained, never an adapter.

use super::frozen;
use crate::optim::{WeightSize, momentum_cost};
use crate::spec::{FactorForm, ModelPlan, OptimizerPlan, Target, WeightForm};

/// One matrix of one block.
pub(super) struct Matrix {
    pub form: WeightForm,
    pub rows: u64,
    pub columns: u64,
    /// Whether a frozen full matrix stands beside what is trained.
    pub is_beside_frozen: bool,
}

impl Matrix {
    pub fn new(model: &ModelPlan, target: Target) -> Self {
        let (rows, columns) = model.shape(target);
        let (form, is_beside_frozen) = frozen::trained_form(model, target);
        Matrix { form, rows: rows as u64, columns: columns as u64, is_beside_frozen }
    }

    pub fn size(&self) -> WeightSize {
        WeightSize { rows: self.rows, columns: self.columns, rank: self.rank() }
    }

    pub fn rank(&self) -> u64 {
        self.form.rank().unwrap_or(0) as u64
    }

    pub fn is_low_rank(&self) -> bool {
        matches!(self.form, WeightForm::LowRank { .. })
    }

    /// (m + n) r.
    pub fn factor_values(&self) -> u64 {
        (self.rows + self.columns) * self.rank()
    }

    /// Trained numbers.
    pub fn parameters(&self) -> u64 {
        match self.form {
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
        match self.form {
            WeightForm::Dense | WeightForm::Adapter { .. } => self.rows * self.columns,
            WeightForm::LowRank { .. } | WeightForm::Factored { .. } => {
                self.factor_values() - self.rank() * self.rank()
            }
        }
    }

    /// Rank-wide intermediates kept per token: x V, or with free factors also x V Sᵀ, or x Aᵀ.
    pub fn intermediate_values(&self) -> u64 {
        match self.form {
            WeightForm::Dense | WeightForm::Adapter { .. } => 0,
            WeightForm::Factored { form: FactorForm::Usv, .. } => 2 * self.rank(),
            WeightForm::LowRank { .. } | WeightForm::Factored { form: FactorForm::Ba, .. } => {
                self.rank()
            }
        }
    }

    pub fn forward_flops(&self) -> u64 {
        2 * (self.parameters() + self.frozen_values())
    }

    /// The product with S alone.
    pub fn coefficient_flops(&self) -> u64 {
        if self.is_low_rank() { 2 * self.rank() * self.rank() } else { 0 }
    }

    pub fn gradient_values(&self) -> u64 {
        if self.is_low_rank() { self.factor_values() } else { self.parameters() }
    }

    pub fn moment_values(&self, optimizer: &OptimizerPlan) -> u64 {
        let second =
            optimizer.dlra().map_or(0, |dlra| momentum_cost(dlra.momentum).values(self.size()));
        match self.form {
            WeightForm::LowRank { .. } => self.parameters() + second,
            WeightForm::Dense if optimizer.muon().is_some() => self.parameters(),
            WeightForm::Dense if optimizer.galore().is_some() => {
                let (short, long) = self.sides();
                optimizer.galore().map_or(0, |galore| galore.rank as u64) * (short + 2 * long)
            }
            WeightForm::Factored { .. } if optimizer.factored_heavy_ball().is_some() => {
                self.parameters()
            }
            WeightForm::Dense | WeightForm::Factored { .. } | WeightForm::Adapter { .. } => {
                2 * self.parameters()
            }
        }
    }

    /// min(m, n) and max(m, n).
    pub fn sides(&self) -> (u64, u64) {
        (self.rows.min(self.columns), self.rows.max(self.columns))
    }

    /// What a step computes beside the old numbers for every matrix before it changes any.
    pub fn step_values(&self, optimizer: &OptimizerPlan) -> u64 {
        match self.form {
            WeightForm::LowRank { .. } => 2 * self.parameters() + self.moment_values(optimizer),
            WeightForm::Factored { .. } if optimizer.loro().is_some() => 3 * self.parameters(),
            WeightForm::Dense if optimizer.galore().is_some() => {
                self.parameters() + self.moment_values(optimizer)
            }
            WeightForm::Dense | WeightForm::Factored { .. } | WeightForm::Adapter { .. } => 0,
        }
    }

    /// What a step needs while it works on this matrix.
    pub fn in_hand_values(&self, optimizer: &OptimizerPlan) -> u64 {
        let square = self.rank() * self.rank();
        let augmentation = 4 * self.factor_values() + 2 * square + 3 * 4 * square;
        match self.form {
            WeightForm::LowRank { .. } => augmentation,
            WeightForm::Factored { .. } if optimizer.loro().is_some() => augmentation,
            WeightForm::Dense if optimizer.galore().is_some() => {
                2 * (2 * self.parameters() + (self.rows + self.columns) * self.sides().0)
            }
            WeightForm::Dense | WeightForm::Factored { .. } | WeightForm::Adapter { .. } => 0,
        }
    }
}
