//! What a weight costs that is dense until a cut: its steps, and the cut that ends them.

use super::momenta::FormMean;
use super::uncut::{is_muon, muon};
use crate::optim::cost::{MovedWeight, RuleCost, WeightSize};
use crate::spec::{DlraSpec, Momentum, RankNorm};

/// Numbers of the moments.
pub(super) fn kept(settings: &DlraSpec, weight: MovedWeight) -> u64 {
    match settings.momentum {
        Momentum::Adam => 2 * weight.values,
        _ => muon(settings).kept(weight),
    }
}

/// Numbers in hand: the SVD of a cut, or Muon's whitening.
pub(super) fn in_hand(settings: &DlraSpec, weight: MovedWeight) -> u64 {
    weight.size.dense_svd_values().max(muon(settings).in_hand(weight))
}

/// Operations of a step: Muon's, where it is that.
pub(super) fn step_flops(settings: &DlraSpec, weight: MovedWeight) -> u64 {
    if is_muon(settings) { muon(settings).flops(&[weight], None) } else { 0 }
}

/// Operations of a cut beside the step that it ends, which has this many tokens, counted as if all
/// directions stayed; k is the shorter side.
///
/// The thin SVD of W ([`WeightSize::dense_svd_flops`]) and that of its diagonal, 21 k³; the new bases,
/// 2 (m + n) k², and the projection of the first moment, 4 m n k + 4 m k² + 2 n k².
/// In the Fisher norm besides: second moments, 2 (m² + n²) a token; as seen in the bases, 2 (m² + n²)
/// k + 2 (m + n) k²; and what a cut of factors of rank k takes beyond its moments and their way, 22
/// k³ + 8 k³ + 8 k³ + 16/3 k³ + 21 k³ + 4 k³. Where every step measures inputs, the second moment of
/// these is no more than that, and V sees it, 2 n² k + 2 n k².
pub(super) fn cut_flops(settings: &DlraSpec, norm: RankNorm, size: WeightSize, tokens: u64) -> u64 {
    let WeightSize { rows, columns, .. } = size;
    let (short, _) = size.short_and_long();
    let (square, cube) = (short * short, short * short * short);
    let frobenius = size.dense_svd_flops()
        + 21 * cube
        + 2 * (rows + columns) * square
        + 4 * rows * columns * short
        + (4 * rows + 2 * columns) * square;
    let (of_outputs, of_inputs) = (rows * rows, columns * columns);
    let (measured, handed_on) = match settings.momentum.measures_inputs() {
        true => (of_outputs, FormMean::seen_flops(columns, short)),
        false => (of_outputs + of_inputs, 0),
    };
    let frobenius = frobenius + handed_on;
    let fisher = 2 * measured * tokens
        + 2 * (of_outputs + of_inputs) * short
        + 2 * (rows + columns) * square
        + (22 + 8 + 8 + 21 + 4) * cube
        + 16 * cube / 3;
    match norm {
        RankNorm::Frobenius => frobenius,
        RankNorm::Fisher => frobenius + fisher,
    }
}
