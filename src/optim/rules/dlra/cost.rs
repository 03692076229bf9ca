//! What a DLRA step costs on one weight, counted from the algorithm (docs/method.md §3 to §5): the
//! same wherever it runs.

use super::momenta::momentum_cost;
use super::uncut_cost;
use crate::optim::cost::{MovedWeight, RuleCost, WeightSize};
use crate::spec::{CyclePhase, DlraSpec, Integrator, RankNorm, RetractionSpec};

impl RuleCost for DlraSpec {
    /// The first moment, of the shape of U, S and V, and what the momentum keeps beside it.
    ///
    /// A weight that is not cut yet has no rank, as any full one.
    fn kept(&self, weight: MovedWeight) -> u64 {
        if is_uncut(weight) {
            return uncut_cost::kept(self, weight);
        }
        weight.values + momentum_cost(self.momentum).values(weight.size)
    }

    /// The tangent gradient, the new weight and the new moments; before a weight is cut there is no
    /// other gradient than the dense one.
    fn proposed(&self, weight: MovedWeight) -> u64 {
        let tangent = if is_uncut(weight) { 0 } else { weight.values };
        tangent + weight.values + self.kept(weight)
    }

    fn in_hand(&self, weight: MovedWeight) -> u64 {
        match is_uncut(weight) {
            true => uncut_cost::in_hand(self, weight),
            false => augmentation_values(weight.size),
        }
    }

    fn input_moment(&self, weight: MovedWeight) -> u64 {
        let seen = if is_uncut(weight) { weight.size.columns } else { weight.size.rank };
        if self.momentum.measures_inputs() { seen * seen } else { 0 }
    }

    fn flops(&self, weights: &[MovedWeight], phase: Option<CyclePhase>) -> u64 {
        let step = |weight: &MovedWeight| match phase {
            _ if is_uncut(*weight) => uncut_cost::step_flops(self, *weight),
            None => step_flops(self, weight.size).total(),
            Some(phase) => cycle_flops(self, weight.size, phase).total(),
        };
        weights.iter().map(step).sum()
    }
}

/// Whether a weight is dense until it is cut; one without numbers, as of a matrix beside which
/// nothing is trained, is not.
fn is_uncut(MovedWeight { size, values }: MovedWeight) -> bool {
    size.rank == 0 && values > 0
}

/// Numbers in hand while bases are augmented and cut: the direction and the new basis directions,
/// the new bases and the transported moment, 4 (m + n) r + 2 r², and three 2r × 2r cores.
pub(in crate::optim::rules) fn augmentation_values(size: WeightSize) -> u64 {
    let square = size.rank * size.rank;
    4 * (size.rows + size.columns) * size.rank + 2 * square + 3 * 4 * square
}

/// The rank at which gradients are evaluated in augmented bases: for `augmented_bug` min(2r, max(m,
/// n)), where the narrower side is filled up, and for `coefficient_cycle` min(2r, m, n).
pub fn augmented_rank(integrator: Integrator, size: WeightSize) -> u64 {
    let widest = match integrator {
        Integrator::Tangent => size.rank,
        Integrator::AugmentedBug => size.rows.max(size.columns),
        Integrator::CoefficientCycle => size.rows.min(size.columns),
    };
    (2 * size.rank).min(widest)
}

/// Numbers that `augmented_bug` holds of one weight while it evaluates in augmented bases, without
/// the gradients: the tangent gradient and the new first moment, the augmented bases and Ŝ, new
/// directions, and three cores.
pub fn augmented_values(narrow: MovedWeight, wide: MovedWeight) -> u64 {
    let directions = (narrow.size.rows + narrow.size.columns) * narrow.size.rank;
    2 * narrow.values + wide.values + directions + 3 * wide.size.rank * wide.size.rank
}

/// Operations of one DLRA step on one weight while its rank stays, by part.
#[derive(Clone, Copy)]
struct DlraFlops {
    /// Tangent projection of the outer gradients: 4 m r² + 2 n r²; and for `adam` the direction's
    /// return to the tangent space, 4 (m + n) r². For `matrix_adam` the r × r second moments, 2 (m
    /// + n) r² + 4 r³, and the direction, 2 (m + n) r² + 4 r³.
    projection: u64,
    /// New basis directions: orthogonalised twice against the basis, 8 r² per row, and Cholesky-QR
    /// twice, 8 r² per row: 16 (m + n) r².
    augmentation: u64,
    /// `spectral`: polar factor of the core a × b, a ≤ b ≤ 2r, by quintic Newton–Schulz: 4 a² b + 2
    /// a³ per iteration; once per coefficient step. `matrix_adam`: four inverse roots by symmetric
    /// eigenvalues, 9 r³ + 2 r³ each (Golub & Van Loan, §8.3), and four products, 2 r³ each.
    polar: u64,
    /// `subspace`: two thin QRs of 2r × r (20/3 r³ each) and one product (8 r³). `svd`: 21 (2r)³
    /// (Golub & Van Loan, §8.6). Then the new bases, 4 (m + n) r².
    retraction: u64,
    /// First moment into the new bases: 8 (m + n) r² + 8 r³; and for `adam` second moments and
    /// their weights, 14 (m + n) r² + 16 r³, for `matrix_adam` 16 r³.
    transport: u64,
    /// What the coefficient steps of `augmented_bug` take beside their polar factors.
    coefficients: u64,
}

impl DlraFlops {
    /// All parts together.
    fn total(&self) -> u64 {
        self.projection
            + self.augmentation
            + self.polar
            + self.retraction
            + self.transport
            + self.coefficients
    }
}

/// Operations of one `tangent` or `augmented_bug` step on one weight. On a device a step makes 2 (m +
/// n) r² more for the R factors, and Cholesky-QR in place of Householder's for the retraction.
fn step_flops(dlra: &DlraSpec, size: WeightSize) -> DlraFlops {
    let WeightSize { rows, columns, rank } = size;
    let (sides, cube, momentum) = (size.sides(), size.cube(), momentum_cost(dlra.momentum));
    let core = ((2 * rank).min(rows), (2 * rank).min(columns));
    let (subspace, svd) = ((2 * 20 * cube) / 3 + 8 * cube, 21 * 8 * cube);
    let every = dlra.truncate_every.0.max(1);
    DlraFlops {
        projection: projection_flops(dlra, size),
        augmentation: 16 * sides,
        polar: momentum.core(size, core, dlra.coefficient_steps().max(1)),
        retraction: 4 * sides
            + match dlra.retraction {
                RetractionSpec::Subspace => subspace,
                RetractionSpec::Svd => (svd + (every - 1) * subspace) / every,
            },
        transport: 8 * sides + 8 * cube + momentum.transport(size, rank),
        coefficients: coefficient_flops(dlra, size),
    }
}

/// Operations of the `augmented_bug` step's coefficients: per coefficient step Ûᵀ(GV̂), 8 m r²; the
/// carried and the new moment in the augmented bases, 4 (m + n) r² (twice that with second moments,
/// for `adam`); what the coefficients gained, projected at the new point, 8 (m + n) r² + 16 r³ + 4
/// m r² + 2 n r².
fn coefficient_flops(dlra: &DlraSpec, size: WeightSize) -> u64 {
    if dlra.integrator != Integrator::AugmentedBug {
        return 0;
    }
    let WeightSize { rows, columns, rank } = size;
    let (square, sides, cube) = (rank * rank, size.sides(), size.cube());
    let has_second = momentum_cost(dlra.momentum).has_coefficient_moments();
    let moments = if has_second { 8 * sides } else { 4 * sides };
    dlra.coefficient_steps() * 8 * rows * square
        + moments
        + 8 * sides
        + 16 * cube
        + 4 * rows * square
        + 2 * columns * square
}

/// Operations of one `coefficient_cycle` step of this phase on one weight of the rank that it has at
/// that step.
///
/// An augmentation has no polar factor and no retraction: projection and new directions as ever,
/// the rotations into bases of k ≤ 2r columns, 2 (m + n) r k, then the moments into them. A
/// coefficient step has neither new directions nor transport, and its core is r × r. A truncation
/// adds the SVD, 21 r³, the new bases and the transport to half the rank.
fn cycle_flops(dlra: &DlraSpec, size: WeightSize, phase: CyclePhase) -> DlraFlops {
    let WeightSize { rows, columns, rank } = size;
    let projection = projection_flops(dlra, size);
    let nothing = DlraFlops {
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
            let augmentation = 16 * size.sides() + rotations;
            return DlraFlops {
                augmentation,
                transport: transport_flops(dlra, size, wide),
                ..nothing
            };
        }
        CyclePhase::Coefficients { truncate } => truncate,
    };
    let polar = momentum_cost(dlra.momentum).core(size, (rank, rank), 1);
    if !truncates {
        return DlraFlops { polar, ..nothing };
    }
    let kept = rank.div_ceil(2);
    let retraction = 21 * size.cube() + 2 * (rows + columns) * rank * kept;
    DlraFlops { polar, retraction, transport: transport_flops(dlra, size, kept), ..nothing }
}

/// Moments from rank r to rank k: (m + n)(6 r k + 2 k²) + 4 r² k + 4 r k² for the first, which is 8
/// (m + n) r² + 8 r³ for k = r.
fn transport_flops(dlra: &DlraSpec, size: WeightSize, new: u64) -> u64 {
    let WeightSize { rows, columns, rank } = size;
    let small = rank * rank * new + rank * new * new;
    let second = momentum_cost(dlra.momentum).transport(size, new);
    (rows + columns) * (6 * rank * new + 2 * new * new) + 4 * small + second
}

/// Tangent projection and the direction; see [`DlraFlops::projection`].
fn projection_flops(dlra: &DlraSpec, size: WeightSize) -> u64 {
    let WeightSize { rows, columns, rank } = size;
    let square = rank * rank;
    let direction = momentum_cost(dlra.momentum).direction(size);
    4 * rows * square + 2 * columns * square + direction
}

/// Numbers of the second moments that are carried for the cuts of a weight, with the weights that
/// they have gathered: 4 r²; of one that is not cut yet, whose rank is 0 here, m² + n² + 1.
pub fn carried_values(size: WeightSize) -> u64 {
    match size.rank {
        0 => size.rows * size.rows + size.columns * size.columns + 1,
        rank => 4 * rank * rank,
    }
}

/// Operations of a step on what is carried for cuts, beside a cut's own: into the new bases, 16 r³,
/// and where a step that is no cut measures, on this many tokens, 4 r² a token; of a weight that is
/// not cut yet, 2 (m² + n²) a token.
pub fn carried_flops(size: WeightSize, measured: u64) -> u64 {
    match size.rank {
        0 => 2 * (size.rows * size.rows + size.columns * size.columns) * measured,
        rank => 4 * rank * rank * measured + 16 * size.cube(),
    }
}

/// Operations of one rank cut of a weight, beside the step that it ends, which has this many tokens.
///
/// In the Frobenius norm the SVD of S, 21 r³ (Golub & Van Loan, §8.6), the new bases, 2 (m + n) r²,
/// and the first moment's way there, 8 (m + n) r² + 8 r³, both as if the rank stayed. In the Fisher
/// norm besides: second moments of inputs and output gradients, 2 r² each a token; their way into
/// the bases of the step's end, 8 r³; two inverse roots by symmetric eigenvalues, 11 r³ each; the
/// roots and S between them, 8 r³; and the return to orthonormal bases, four products, 8 r³, two
/// QRs, 16/3 r³, a second SVD, 21 r³, and two products, 4 r³.
///
/// Of a weight that is not cut yet, whose rank is 0 here as that of any full one, see
/// `uncut_cost::cut_flops`.
pub fn cut_flops(dlra: &DlraSpec, norm: RankNorm, size: WeightSize, tokens: u64) -> u64 {
    if size.rank == 0 {
        return uncut_cost::cut_flops(dlra, norm, size, tokens);
    }
    let (square, cube) = (size.rank * size.rank, size.cube());
    let frobenius = 21 * cube + 2 * size.sides() + 8 * size.sides() + 8 * cube;
    match norm {
        RankNorm::Frobenius => frobenius,
        RankNorm::Fisher => {
            frobenius + 4 * square * tokens + (8 + 22 + 8 + 8 + 21 + 4) * cube + 16 * cube / 3
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Count, Momentum};

    fn size(rows: u64, columns: u64, rank: u64) -> WeightSize {
        WeightSize { rows, columns, rank }
    }

    #[test]
    fn one_spectral_step_by_hand() {
        let count = step_flops(&DlraSpec::default(), size(10, 6, 2));
        assert_eq!(count.projection, 4 * 10 * 4 + 2 * 6 * 4);
        assert_eq!(count.augmentation, 16 * 16 * 4);
        assert_eq!(count.polar, 5 * (2 * 4 * 4 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 4));
        assert_eq!(count.retraction, 4 * 64 + 106 + 64);
        assert_eq!(count.transport, 8 * 64 + 64);
        let svd = DlraSpec {
            retraction: RetractionSpec::Svd,
            momentum: Momentum::HeavyBall,
            ..DlraSpec::default()
        };
        let count = step_flops(&svd, size(10, 6, 2));
        assert_eq!((count.polar, count.retraction), (0, 4 * 64 + 21 * 64));
        // The core has at most min(2r, n) columns.
        let wide = step_flops(&DlraSpec::default(), size(10, 3, 2));
        assert_eq!(wide.polar, 5 * (4 * 3 * 3 * 4 + 2 * 27));
    }

    /// 10 × 6 at rank 2: two polar factors, 2 · 8 · 10 · 4, 4 · 64, 8 · 64, 16 · 8, 4 · 40 and 2 ·
    /// 24.
    #[test]
    fn coefficient_steps_by_hand() {
        let bug = DlraSpec {
            coefficient_steps: Some(Count(2)),
            integrator: Integrator::AugmentedBug,
            ..DlraSpec::default()
        };
        let one = step_flops(&DlraSpec::default(), size(10, 6, 2));
        let two = step_flops(&bug, size(10, 6, 2));
        assert_eq!((two.polar, one.coefficients), (2 * one.polar, 0));
        assert_eq!(two.coefficients, 640 + 256 + 512 + 128 + 160 + 48);
    }

    /// 10 × 6 at rank 4: projection, then polar factors of 4 × 4; SVD 21 · 64, bases 2 · 16 · 4 · 2,
    /// transport 16 (6 · 8 + 2 · 4) + 4 (32 + 16).
    #[test]
    fn phases_of_a_cycle_by_hand() {
        let cost = |phase| cycle_flops(&DlraSpec::default(), size(10, 6, 4), phase);
        let truncating = cost(CyclePhase::Coefficients { truncate: true });
        assert_eq!(
            (truncating.projection, truncating.polar),
            (4 * 160 + 2 * 96, 5 * (4 * 64 + 2 * 64))
        );
        assert_eq!(
            (truncating.retraction, truncating.transport, truncating.augmentation),
            (21 * 64 + 256, 16 * 56 + 192, 0)
        );
        assert_eq!(
            cost(CyclePhase::Coefficients { truncate: false }).total(),
            truncating.projection + truncating.polar
        );
        // To min(2r, m, n) = 6 columns.
        let augmenting = cost(CyclePhase::Augment);
        assert_eq!(augmenting.transport, 16 * (6 * 24 + 2 * 36) + 4 * (96 + 144));
        assert_eq!(augmenting.augmentation, 16 * 16 * 16 + 2 * 16 * 24);
    }

    #[test]
    fn retractions_between_svds_are_cheaper() {
        let retraction = |every| {
            let svd = DlraSpec {
                retraction: RetractionSpec::Svd,
                truncate_every: Count(every),
                ..DlraSpec::default()
            };
            step_flops(&svd, size(10, 6, 2)).retraction
        };
        let subspace = step_flops(&DlraSpec::default(), size(10, 6, 2)).retraction;
        assert_eq!(
            (retraction(1), retraction(4)),
            (256 + 1344, 256 + (1344 + 3 * (subspace - 256)) / 4)
        );
    }

    /// m = 5, n = 4: of rank 3, and before a cut.
    #[test]
    fn what_is_carried_by_hand() {
        assert_eq!(carried_values(size(5, 4, 3)), 36);
        assert_eq!(carried_flops(size(5, 4, 3), 10), 360 + 16 * 27);
        assert_eq!(carried_values(size(5, 4, 0)), 42);
        assert_eq!(carried_flops(size(5, 4, 0), 10), 820);
    }

    #[test]
    fn a_cut_by_hand() {
        // m = 5, n = 4, r = 3, 10 tokens: r² = 9, r³ = 27.
        let dlra = DlraSpec::default();
        let frobenius = 21 * 27 + 10 * 9 * 9 + 8 * 27;
        assert_eq!(cut_flops(&dlra, RankNorm::Frobenius, size(5, 4, 3), 10), frobenius);
        let fisher = frobenius + 4 * 9 * 10 + 71 * 27 + 144;
        assert_eq!(cut_flops(&dlra, RankNorm::Fisher, size(5, 4, 3), 10), fisher);
        // Before a first cut k = 4, and xᵀx, 2 · 16 · 10, is the step's own; 2 · 64 + 2 · 64 for
        // what V sees of it.
        let whitened =
            DlraSpec { momentum: Momentum::InputWhitenedSpectral, ..DlraSpec::default() };
        let cut = |dlra, norm| cut_flops(dlra, norm, size(5, 4, 0), 10);
        let more = |norm| cut(&whitened, norm) as i64 - cut(&dlra, norm) as i64;
        assert_eq!((more(RankNorm::Frobenius), more(RankNorm::Fisher)), (256, 256 - 320));
    }
}
