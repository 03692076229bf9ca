//! What one matrix of one block contributes.

use crate::spec::{ModelPlan, Momentum, OptimizerPlan, Target, WeightForm};

/// One matrix of one block.
pub(super) struct Matrix {
    pub form: WeightForm,
    pub rows: u64,
    pub columns: u64,
}

impl Matrix {
    pub fn new(model: &ModelPlan, target: Target) -> Self {
        let (rows, columns) = model.shape(target);
        Matrix { form: model.form(target), rows: rows as u64, columns: columns as u64 }
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

    pub fn parameters(&self) -> u64 {
        match self.form {
            WeightForm::Dense => self.rows * self.columns,
            WeightForm::LowRank { .. } => self.factor_values() + self.rank() * self.rank(),
            WeightForm::Factored { .. } => self.factor_values(),
        }
    }

    pub fn forward_flops(&self) -> u64 {
        2 * self.parameters()
    }

    /// The product with S alone.
    pub fn coefficient_flops(&self) -> u64 {
        if self.is_low_rank() { 2 * self.rank() * self.rank() } else { 0 }
    }

    pub fn gradient_values(&self) -> u64 {
        if self.is_low_rank() { self.factor_values() } else { self.parameters() }
    }

    pub fn moment_values(&self, optimizer: &OptimizerPlan) -> u64 {
        let second = match optimizer.dlra().map(|dlra| dlra.momentum) {
            Some(Momentum::Adam) => self.parameters(),
            Some(Momentum::MatrixAdam) => 4 * self.rank() * self.rank(),
            _ => 0,
        };
        match self.form {
            WeightForm::LowRank { .. } => self.parameters() + second,
            WeightForm::Dense if optimizer.muon().is_some() => self.parameters(),
            WeightForm::Factored { .. } if optimizer.factored_heavy_ball().is_some() => self.parameters(),
            WeightForm::Dense | WeightForm::Factored { .. } => 2 * self.parameters(),
        }
    }

    pub fn augmentation_values(&self) -> u64 {
        let square = self.rank() * self.rank();
        if self.is_low_rank() { 4 * self.factor_values() + 2 * square + 3 * 4 * square } else { 0 }
    }
}
