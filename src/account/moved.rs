//! A matrix of the network as the rule sees that moves it.

use crate::model::cost::MatrixCost;
use crate::optim::{MovedWeight, WeightSize, augmented_rank, carried_values, rule_cost};
use crate::spec::{Integrator, Plan};

/// What moves of a matrix.
pub(super) fn moved(matrix: &MatrixCost) -> MovedWeight {
    MovedWeight { size: size(matrix), values: matrix.parameters() }
}

/// Its sides and rank.
fn size(matrix: &MatrixCost) -> WeightSize {
    WeightSize { rows: matrix.rows, columns: matrix.columns, rank: matrix.rank() }
}

/// The matrix in the augmented bases of this integrator, where it is low-rank.
pub(super) fn augmented(matrix: MatrixCost, integrator: Integrator) -> MatrixCost {
    match matrix.is_low_rank() {
        true => matrix.of_rank(augmented_rank(integrator, size(&matrix)) as usize),
        false => matrix,
    }
}

/// Numbers of the second moment of a matrix's inputs, where its rule has it measured at every step:
/// r² of a point on the manifold, n² of a full matrix.
pub(super) fn input_moment(plan: &Plan, matrix: &MatrixCost) -> u64 {
    rule_cost(&plan.optimizer, matrix.form).input_moment(moved(matrix))
}

/// Numbers of the second moments that are carried for the cuts of a matrix, if it has a rank to
/// cut.
pub(super) fn carried_moments(plan: &Plan, matrix: &MatrixCost) -> u64 {
    let is_cut = matrix.is_low_rank() || matrix.is_uncut;
    match plan.rank.moment_decay() {
        Some(_) if is_cut => carried_values(size(matrix)),
        _ => 0,
    }
}
