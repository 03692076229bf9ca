//! What a rank cut costs beside the step that it ends.

use crate::spec::RankNorm;

/// Operations of one cut of an m × n matrix of rank r on a step of this many tokens.
///
/// In the Frobenius norm the SVD of S, 21 r³ (Golub & Van Loan, §8.6), the new bases, 2 (m + n) r²,
/// and the first moment's way there, 8 (m + n) r² + 8 r³, both as if the rank stayed. In the Fisher
/// norm besides: second moments of inputs and output gradients, 2 r² each a token; their way into
/// the bases of the step's end, 8 r³; two inverse roots by symmetric eigenvalues, 11 r³ each; the
/// roots and S between them, 8 r³; and the return to orthonormal bases, four products, 8 r³, two
/// QRs, 16/3 r³, a second SVD, 21 r³, and two products, 4 r³.
pub fn cut_flops(norm: RankNorm, rows: u64, columns: u64, rank: u64, tokens: u64) -> u64 {
    let (square, cube) = (rank * rank, rank * rank * rank);
    let frobenius =
        21 * cube + 2 * (rows + columns) * square + 8 * (rows + columns) * square + 8 * cube;
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

    #[test]
    fn counts_of_a_small_matrix() {
        // m = 5, n = 4, r = 3, 10 tokens: r² = 9, r³ = 27.
        let frobenius = 21 * 27 + 10 * 9 * 9 + 8 * 27;
        assert_eq!(cut_flops(RankNorm::Frobenius, 5, 4, 3, 10), frobenius);
        assert_eq!(
            cut_flops(RankNorm::Fisher, 5, 4, 3, 10),
            frobenius + 4 * 9 * 10 + 71 * 27 + 144
        );
    }
}
