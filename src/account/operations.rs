//! Floating-point operations.

use super::frozen::{passes_attention, passes_on};
use super::integrator;
use super::matrix::Matrix;
use crate::linalg::polar_newton_schulz_flops;
use crate::optim::{WeightSize, momentum_cost};
use crate::spec::{
    CyclePhase, DlraSpec, GaloreSpec, Integrator, Plan, RetractionSpec, Target, WeightForm,
};

/// Floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlopLedger {
    /// Forward, the matrices of all blocks: 2 m n, 2 (n r + r² + r m), or 2 (n r + r m) for W =
    /// B A.
    pub forward_products_per_token: u64,
    /// Forward, causal attention: a token sees (T + 1) / 2 keys on average, twice (scores and
    /// mixture): 2 C (T + 1) per block.
    pub forward_attention_per_token: u64,
    /// Forward, head: 2 V C.
    pub forward_head_per_token: u64,
    /// Forward and backward: three times the forward, except that the r × r product of a low-rank
    /// matrix has no gradient product of its own (the S-gradient comes from the K-gradient), so
    /// that it counts twice, and that a frozen matrix or head has none, and passes none on where
    /// nothing is trained below it. The recomputation of attention scores in the backward is not
    /// counted.
    pub training_per_token: u64,
    /// Forward and backward of the further evaluations of an `augmented_bug` step, with every
    /// low-rank matrix in its augmented bases.
    pub coefficient_evaluations_per_token: u64,
    /// Geometry of all low-rank matrices, once per step; see [`low_rank_optimizer_flops`]. LORO's
    /// exact steps, spread over the steps between them: 31 (m + n) r² + 2 n r² + 170 r³ each.
    pub low_rank_optimizer_per_step: u64,
    /// Polar factors of full matrices under Muon, once per step: 5 (4 a² b + 2 a³) each for a ≤ b
    /// its sides. Under GaLore the projection and its way back, 4 m n r, and the SVD, 14 a² b + 8
    /// a³ (Golub & Van Loan, §8.6), spread over the steps between two.
    pub matrix_optimizer_per_step: u64,
}

impl FlopLedger {
    /// At the ranks of the plan; for `coefficient_cycle`, whose ranks come and go, the mean over a
    /// cycle.
    pub(super) fn new(plan: &Plan, vocabulary: u64) -> Self {
        let Some(phases) = plan.optimizer.dlra().and_then(integrator::phases) else {
            return Self::count(plan, vocabulary, None, &|matrix, _, _| matrix);
        };
        let wide = |matrix: Matrix, _, _| matrix.augmented(Integrator::CoefficientCycle);
        let ledger = |phase| match phase {
            CyclePhase::Augment => {
                Self::count(plan, vocabulary, Some(phase), &|matrix, _, _| matrix)
            }
            CyclePhase::Coefficients { .. } => Self::count(plan, vocabulary, Some(phase), &wide),
        };
        integrator::mean(&phases.map(|(weight, phase)| (weight, ledger(phase))))
    }

    /// The operations of a step (from 1) when low-rank matrices have these ranks (by block and
    /// target) instead of those of the plan, as after truncations.
    pub fn at_step(
        plan: &Plan,
        vocabulary: u64,
        step: u64,
        rank: &dyn Fn(usize, Target) -> Option<usize>,
    ) -> Self {
        let phase =
            plan.optimizer.dlra().and_then(|dlra| dlra.cycle_phase(step, plan.train.max_steps.0));
        Self::count(plan, vocabulary, phase, &|matrix, layer, target| match rank(layer, target) {
            Some(rank) if matrix.is_low_rank() => {
                Matrix { form: WeightForm::LowRank { rank }, ..matrix }
            }
            _ => matrix,
        })
    }

    fn count(
        plan: &Plan,
        vocabulary: u64,
        phase: Option<CyclePhase>,
        form: &dyn Fn(Matrix, usize, Target) -> Matrix,
    ) -> Self {
        let model = &plan.model;
        let (layers, width) = (model.n_layer as u64, model.n_embd as u64);
        let places = || {
            (0..model.n_layer)
                .flat_map(|layer| model.arch.targets().iter().map(move |target| (layer, *target)))
        };
        let matrices: Vec<Matrix> = places()
            .map(|(layer, target)| form(Matrix::new(model, target), layer, target))
            .collect();
        let products = matrices.iter().map(Matrix::forward_flops).sum::<u64>();
        let attention = layers * 2 * width * (model.block_size as u64 + 1);
        let head = 2 * vocabulary * width;
        let stopped = (0..model.n_layer).filter(|layer| !passes_attention(model, *layer)).count();
        let attention_training = 3 * attention - 2 * stopped as u64 * attention / layers.max(1);
        let head_training = if model.is_adapted() { 2 * head } else { 3 * head };
        let of = |matrices: &[Matrix]| {
            let training = |(matrix, (layer, target)): (&Matrix, (usize, Target))| {
                matrix.training_flops(passes_on(model, layer, target))
            };
            let products = matrices.iter().zip(places()).map(training).sum::<u64>();
            products + attention_training + head_training
        };
        let dlra = plan.optimizer.dlra();
        let optimizer = dlra.map_or(0, |dlra| {
            let cost = |matrix: &Matrix| match phase {
                None => low_rank_optimizer_flops(dlra, matrix.rows, matrix.columns, matrix.rank()),
                Some(phase) => {
                    integrator::cycle_flops(dlra, matrix.rows, matrix.columns, matrix.rank(), phase)
                }
            };
            matrices
                .iter()
                .filter(|matrix| matrix.is_low_rank())
                .map(|matrix| cost(matrix).total())
                .sum::<u64>()
        });
        let coefficient_evaluations = dlra.map_or(0, |dlra| {
            let augmented: Vec<Matrix> =
                matrices.iter().map(|matrix| matrix.augmented(dlra.integrator)).collect();
            (dlra.evaluations_per_step() - 1) * of(&augmented)
        });
        let exact_steps = plan.optimizer.loro().map_or(0, |loro| {
            let factored =
                matrices.iter().filter(|matrix| matches!(matrix.form, WeightForm::Factored { .. }));
            factored.map(exact_step_flops).sum::<u64>() / loro.exact_every.0.max(1)
        });
        let full = matrices.iter().filter(|matrix| matrix.form == WeightForm::Dense);
        FlopLedger {
            forward_products_per_token: products,
            forward_attention_per_token: attention,
            forward_head_per_token: head,
            training_per_token: of(&matrices),
            coefficient_evaluations_per_token: coefficient_evaluations,
            low_rank_optimizer_per_step: optimizer + exact_steps,
            matrix_optimizer_per_step: match (plan.optimizer.muon(), plan.optimizer.galore()) {
                (Some(_), _) => {
                    full.map(|matrix| polar_newton_schulz_flops(matrix.rows, matrix.columns)).sum()
                }
                (_, Some(galore)) => full.map(|matrix| projection_flops(galore, matrix)).sum(),
                (None, None) => 0,
            },
        }
    }

    /// A step on this many tokens: all its evaluations, then the optimizer's own products.
    pub fn per_step(&self, tokens: u64) -> u64 {
        let optimizer =
            self.low_rank_optimizer_per_step.saturating_add(self.matrix_optimizer_per_step);
        let evaluations =
            self.training_per_token.saturating_add(self.coefficient_evaluations_per_token);
        evaluations.saturating_mul(tokens).saturating_add(optimizer)
    }

    /// Forward pass on one token.
    pub fn forward_per_token(&self) -> u64 {
        self.forward_products_per_token
            + self.forward_attention_per_token
            + self.forward_head_per_token
    }
}

/// Operations of one DLRA step on one matrix while its rank stays, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptimizerFlops {
    /// Tangent projection of the outer gradients: 4 m r² + 2 n r²; and for `adam` the direction's
    /// return to the tangent space, 4 (m + n) r². For `matrix_adam` the r × r second moments, 2 (m
    /// + n) r² + 4 r³, and the direction, 2 (m + n) r² + 4 r³.
    pub projection: u64,
    /// New basis directions: orthogonalised twice against the basis, 8 r² per row, and Cholesky-QR
    /// twice, 8 r² per row: 16 (m + n) r².
    pub augmentation: u64,
    /// `spectral`: polar factor of the core a × b, a ≤ b ≤ 2r, by quintic Newton–Schulz: 4 a² b + 2
    /// a³ per iteration; once per coefficient step. `matrix_adam`: four inverse roots by symmetric
    /// eigenvalues, 9 r³ + 2 r³ each (Golub & Van Loan, §8.3), and four products, 2 r³ each.
    pub polar: u64,
    /// `subspace`: two thin QRs of 2r × r (20/3 r³ each) and one product (8 r³). `svd`: 21 (2r)³
    /// (Golub & Van Loan, §8.6). Then the new bases, 4 (m + n) r².
    pub retraction: u64,
    /// First moment into the new bases: 8 (m + n) r² + 8 r³; and for `adam` second moments and
    /// their weights, 14 (m + n) r² + 16 r³, for `matrix_adam` 16 r³.
    pub transport: u64,
    /// What the coefficient steps of `augmented_bug` take beside their polar factors.
    pub coefficients: u64,
}

impl OptimizerFlops {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.projection
            + self.augmentation
            + self.polar
            + self.retraction
            + self.transport
            + self.coefficients
    }
}

/// Operations of one `tangent` or `augmented_bug` step on one m × n matrix of rank r: the
/// algorithm's own count (docs/method.md §3 to §5), the same wherever it runs. On a device a step
/// makes 2 (m + n) r² more for the R factors, and Cholesky-QR in place of Householder's for the
/// retraction.
pub fn low_rank_optimizer_flops(
    dlra: &DlraSpec,
    rows: u64,
    columns: u64,
    rank: u64,
) -> OptimizerFlops {
    let (square, cube) = (rank * rank, rank * rank * rank);
    let sides = (rows + columns) * square;
    let (momentum, size) = (momentum_cost(dlra.momentum), WeightSize { rows, columns, rank });
    let core = ((2 * rank).min(rows), (2 * rank).min(columns));
    let (subspace, svd) = ((2 * 20 * cube) / 3 + 8 * cube, 21 * 8 * cube);
    let every = dlra.truncate_every.0.max(1);
    OptimizerFlops {
        projection: cost_of_projection(dlra, rows, columns, rank),
        augmentation: 16 * sides,
        polar: momentum.core(size, core, dlra.coefficient_steps().max(1)),
        retraction: 4 * sides
            + match dlra.retraction {
                RetractionSpec::Subspace => subspace,
                RetractionSpec::Svd => (svd + (every - 1) * subspace) / every,
            },
        transport: 8 * sides + 8 * cube + momentum.transport(size, rank),
        coefficients: integrator::coefficient_flops(dlra, rows, columns, rank),
    }
}

/// Operations of LORO's exact step on a pair of factors: two QRs, 4 (m + n) r²; two divisions, (m +
/// n) r²; the coefficients, 2 n r² + 2 r³; two projections, 4 (m + n) r²; new directions, 16 (m +
/// n) r²; the SVD, 21 (2r)³; new bases and factors, 6 (m + n) r².
fn exact_step_flops(matrix: &Matrix) -> u64 {
    let square = matrix.rank() * matrix.rank();
    31 * (matrix.rows + matrix.columns) * square
        + 2 * matrix.columns * square
        + 170 * square * matrix.rank()
}

/// Operations of GaLore's step on a full matrix, the SVD spread over the steps until the next.
fn projection_flops(galore: &GaloreSpec, matrix: &Matrix) -> u64 {
    let (short, long) = matrix.sides();
    let decomposition = 14 * short * short * long + 8 * short * short * short;
    4 * matrix.rows * matrix.columns * galore.rank as u64
        + decomposition / galore.refresh_every.0.max(1)
}

/// Tangent projection and the direction; see [`OptimizerFlops::projection`].
pub(super) fn cost_of_projection(dlra: &DlraSpec, rows: u64, columns: u64, rank: u64) -> u64 {
    let square = rank * rank;
    let size = WeightSize { rows, columns, rank };
    let direction = momentum_cost(dlra.momentum).direction(size);
    4 * rows * square + 2 * columns * square + direction
}
