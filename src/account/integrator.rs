//! What the integrators of DLRA add: evaluations in augmented bases, and steps that are not alike.

use super::matrix::Matrix;
use super::operations::{FlopLedger, OptimizerFlops, cost_of_projection};
use crate::optim::{WeightSize, momentum_cost};
use crate::spec::{CyclePhase, DlraSpec, Integrator, WeightForm};

impl Matrix {
    /// The matrix in the augmented bases of `augmented_bug`, min(2r, max(m, n)) wide (the narrower
    /// side is filled up), or of `coefficient_cycle`, min(2r, m, n).
    pub fn augmented(&self, integrator: Integrator) -> Matrix {
        let widest = match integrator {
            Integrator::Tangent => self.rank(),
            Integrator::AugmentedBug => self.rows.max(self.columns),
            Integrator::CoefficientCycle => self.rows.min(self.columns),
        };
        let form = match self.form {
            WeightForm::LowRank { rank } => {
                WeightForm::LowRank { rank: (2 * rank).min(widest as usize) }
            }
            other => other,
        };
        Matrix { form, ..*self }
    }
}

/// Operations of the `augmented_bug` step's coefficients: per coefficient step Ûᵀ(GV̂), 8 m r²; the
/// carried and the new moment in the augmented bases, 4 (m + n) r² (twice that with second moments,
/// for `adam`); what the coefficients gained, projected at the new point, 8 (m + n) r² + 16 r³ + 4
/// m r² + 2 n r².
pub(super) fn coefficient_flops(dlra: &DlraSpec, rows: u64, columns: u64, rank: u64) -> u64 {
    if dlra.integrator != Integrator::AugmentedBug {
        return 0;
    }
    let (square, cube) = (rank * rank, rank * rank * rank);
    let sides = (rows + columns) * square;
    let has_second = momentum_cost(dlra.momentum).has_coefficient_moments();
    let moments = if has_second { 8 * sides } else { 4 * sides };
    dlra.coefficient_steps() * 8 * rows * square
        + moments
        + 8 * sides
        + 16 * cube
        + 4 * rows * square
        + 2 * columns * square
}

/// Operations of one `coefficient_cycle` step of this phase on one m × n matrix of the rank that it
/// has at that step.
///
/// An augmentation has no polar factor and no retraction: projection and new directions as ever,
/// the rotations into bases of k ≤ 2r columns, 2 (m + n) r k, then the moments into them. A
/// coefficient step has neither new directions nor transport, and its core is r × r. A truncation
/// adds the SVD, 21 r³, the new bases and the transport to half the rank.
pub(super) fn cycle_flops(
    dlra: &DlraSpec,
    rows: u64,
    columns: u64,
    rank: u64,
    phase: CyclePhase,
) -> OptimizerFlops {
    let projection = cost_of_projection(dlra, rows, columns, rank);
    let nothing = OptimizerFlops {
        projection,
        augmentation: 0,
        polar: 0,
        retraction: 0,
        transport: 0,
        coefficients: 0,
    };
    let truncates = match phase {
        CyclePhase::Augment => {
            let wide = (2 * rank).min(rows).min(columns);
            let rotations = 2 * (rows + columns) * rank * wide;
            let augmentation = 16 * (rows + columns) * rank * rank + rotations;
            return OptimizerFlops {
                augmentation,
                transport: transport_flops(dlra, rows, columns, rank, wide),
                ..nothing
            };
        }
        CyclePhase::Coefficients { truncate } => truncate,
    };
    let size = WeightSize { rows, columns, rank };
    let polar = momentum_cost(dlra.momentum).core(size, (rank, rank), 1);
    if !truncates {
        return OptimizerFlops { polar, ..nothing };
    }
    let kept = rank.div_ceil(2);
    let retraction = 21 * rank * rank * rank + 2 * (rows + columns) * rank * kept;
    OptimizerFlops {
        polar,
        retraction,
        transport: transport_flops(dlra, rows, columns, rank, kept),
        ..nothing
    }
}

/// Moments from rank r to rank k: (m + n)(6 r k + 2 k²) + 4 r² k + 4 r k² for the first, which is 8
/// (m + n) r² + 8 r³ for k = r.
fn transport_flops(dlra: &DlraSpec, rows: u64, columns: u64, rank: u64, new: u64) -> u64 {
    let sides = rows + columns;
    let small = rank * rank * new + rank * new * new;
    let second = momentum_cost(dlra.momentum).transport(WeightSize { rows, columns, rank }, new);
    sides * (6 * rank * new + 2 * new * new) + 4 * small + second
}

/// The phases of a cycle, each with how often it comes.
pub(super) fn phases(dlra: &DlraSpec) -> Option<[(u64, CyclePhase); 3]> {
    let length = dlra.cycle_length()?;
    Some([
        (1, CyclePhase::Augment),
        (length.saturating_sub(2), CyclePhase::Coefficients { truncate: false }),
        (1, CyclePhase::Coefficients { truncate: true }),
    ])
}

/// The mean of ledgers with weights.
pub(super) fn mean(ledgers: &[(u64, FlopLedger)]) -> FlopLedger {
    let count = ledgers.iter().map(|(weight, _)| weight).sum::<u64>().max(1);
    let mean = |field: &dyn Fn(&FlopLedger) -> u64| {
        ledgers.iter().map(|(weight, ledger)| weight * field(ledger)).sum::<u64>() / count
    };
    FlopLedger {
        forward_products_per_token: mean(&|ledger| ledger.forward_products_per_token),
        forward_attention_per_token: mean(&|ledger| ledger.forward_attention_per_token),
        forward_head_per_token: mean(&|ledger| ledger.forward_head_per_token),
        training_per_token: mean(&|ledger| ledger.training_per_token),
        coefficient_evaluations_per_token: mean(&|ledger| ledger.coefficient_evaluations_per_token),
        low_rank_optimizer_per_step: mean(&|ledger| ledger.low_rank_optimizer_per_step),
        matrix_optimizer_per_step: mean(&|ledger| ledger.matrix_optimizer_per_step),
    }
}
