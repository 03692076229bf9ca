//! Bytes at once.

use super::moved::{augmented, carried_moments, input_moment, moved};
use super::parameters::ParameterLedger;
use crate::model::cost::{MatrixCost, backward_values, kept_values};
use crate::optim::{augmented_values, rule_cost};
use crate::spec::{ComputeType, DeviceSpec, Integrator, LinalgSpec, Plan};

/// Bytes of a number in f32.
pub(super) const BYTES_PER_VALUE: u64 = 4;
/// Bytes of a number in half precision.
const BYTES_PER_HALF: u64 = 2;

/// Logits the head computes at a time, at most ([`crate::ops::cross_entropy_head`]).
pub const LOGITS_PER_CHUNK: u64 = 1 << 21;

/// Bytes in f32, under `coefficient_cycle` at the augmented ranks that the low-rank matrices have
/// for most of a cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLedger {
    /// All parameters.
    pub weights: u64,
    /// Gradients: one number per dense or factored parameter; K- and L-gradient, (m + n) r, per
    /// low-rank matrix; and where a rule goes by the second moment of a matrix's inputs, r² more, or
    /// n² of a full one.
    pub gradients: u64,
    /// Optimizer moments: two numbers per parameter under AdamW; r² + (m + n) r per low-rank
    /// matrix, twice that for `adam`, 4 r² more for `matrix_adam` and `whitened_spectral`, and 2 r²
    /// for `input_whitened_spectral`; one number per full matrix' entry under Muon, n² more where
    /// that is whitened, and per factor's entry under heavy ball; (2 max(m, n) + min(m, n)) r per full matrix under GaLore, projector
    /// included. What is carried for cuts is 4 r² per low-rank matrix, and m² + n² per matrix that
    /// is dense until it is cut.
    pub moments: u64,
    /// What a micro-batch's forward pass keeps for its backward pass. Per token and block: both
    /// norms' inputs (2 C), statistics (4) and outputs (2 C); q, k, v (3 C, or
    /// C + 2 C G/H with G heads of keys and values); attention output (C) and log-sum-exp (H); the
    /// MLP before GELU (I, with I = 4 C unless said), or the gate and what it gates (2 I), from which
    /// what `down` takes is made again; and the rank-wide intermediate of each
    /// low-rank or factored matrix (r; 2 r with free factors U, S, V). Then per token the final
    /// norm's input, statistics and output (2 C + 2) and the head's gradient (C). Logits exist only
    /// in chunks, residual sums and dropout keep nothing. With half-precision products all but the
    /// norms' inputs and statistics, the log-sum-exp and the head's gradient take half; beside them
    /// are the rounded weights.
    pub activations: u64,
    /// The head's gradient by its weight before it joins the embedding's: V C.
    pub head_gradient: u64,
    /// What the backward pass holds beside that at its widest, or the head at its: gradients of the
    /// residual stream and of the MLP's output, 2 C per token, and of both sides of GELU, 2 I, or
    /// of the three of SwiGLU, 3 I; or a chunk of logits, [`LOGITS_PER_CHUNK`].
    pub backward: u64,
    /// What the low-rank step holds: for every matrix, beside the old ones, the tangent gradient,
    /// the new weight and the new moments; and per matrix in hand the direction and the new basis
    /// directions, the new bases and the transported moment, 4 (m + n) r + 2 r², and three 2r × 2r
    /// cores, for the largest matrix times the threads. On a device all matrices of one shape and
    /// rank are in hand, and stacked: copies of weight, tangent gradient and moments. At LORO's
    /// exact steps the same is in hand, beside new factors and moments, 3 (m + n) r a pair. Under
    /// GaLore there are a new weight and new moments for every full matrix, and in hand the SVD in
    /// f64: two copies of the gradient and both bases. Of matrices that are dense until they are cut
    /// there are a new weight and new moments, a cut in the Fisher norm has m² + n² second moments of
    /// each, and in hand is the SVD as under GaLore. Where momenta of full matrices are whitened,
    /// the new second moments of inputs are there, n² each, and in hand are momentum and moment in
    /// f64.
    pub optimizer: u64,
    /// What `augmented_bug` holds while it evaluates in the augmented bases, beside the first
    /// evaluation's gradients: gradients of all parameters once more, now 2r wide; and per low-rank
    /// matrix the tangent gradient and the new first moment, the augmented bases and Ŝ, new
    /// directions, and three cores.
    pub augmented: u64,
}

impl MemoryLedger {
    pub(super) fn new(plan: &Plan, vocabulary: u64, threads: u64) -> Self {
        let model = &plan.model;
        let parameters = ParameterLedger::new(model, vocabulary);
        let integrator = plan.optimizer.dlra().map(|dlra| dlra.integrator);
        let starting = MatrixCost::all(model, vocabulary);
        let augmented: Vec<MatrixCost> = starting
            .iter()
            .map(|matrix| augmented(*matrix, integrator.unwrap_or(Integrator::Tangent)))
            .collect();
        let is_cycle = integrator == Some(Integrator::CoefficientCycle);
        let is_augmented_bug = integrator == Some(Integrator::AugmentedBug);
        let matrices = if is_cycle { &augmented } else { &starting };
        let of_blocks =
            |count: &dyn Fn(&MatrixCost) -> u64| matrices.iter().map(count).sum::<u64>();
        let rule = |matrix: &MatrixCost| rule_cost(&plan.optimizer, matrix.form);
        let kept = |matrix: &MatrixCost| rule(matrix).kept(moved(matrix));
        let in_hand = |matrix: &MatrixCost| rule(matrix).in_hand(moved(matrix));
        let tokens = plan.train.batch_size as u64 * model.block_size as u64;
        let in_hand = if on_device(plan) {
            let stacked =
                |matrix: &MatrixCost| in_hand(matrix) + 2 * matrix.parameters() + kept(matrix);
            let (low_rank, others): (Vec<MatrixCost>, Vec<MatrixCost>) =
                matrices.iter().partition(|matrix| matrix.is_low_rank());
            let alike = |a: &MatrixCost, b: &MatrixCost| {
                (a.rows, a.columns, a.rank()) == (b.rows, b.columns, b.rank())
            };
            let group = |one: &MatrixCost| {
                low_rank.iter().filter(|other| alike(one, other)).map(stacked).sum::<u64>()
            };
            // Baselines take one matrix after another there.
            let stacks = low_rank.iter().map(group).max().unwrap_or(0);
            stacks.max(others.iter().map(in_hand).max().unwrap_or(0))
        } else {
            let in_hand = matrices.iter().map(in_hand).filter(|values| *values > 0);
            in_hand.clone().max().unwrap_or(0) * threads.min(in_hand.count() as u64)
        };
        let (grams, grams_put_by) = match plan.rank.fisher_batches() {
            None => (0, 0),
            Some(batches) => {
                let squares = |matrix: &MatrixCost| match matrix.is_uncut {
                    true => matrix.rows * matrix.rows + matrix.columns * matrix.columns,
                    false => 0,
                };
                let all = of_blocks(&squares);
                (all, if batches > 1 { all } else { 0 })
            }
        };
        let carried = of_blocks(&|matrix| carried_moments(plan, matrix));
        let trained_rest = if model.is_adapted() { 0 } else { parameters.dense_rest() };
        let values = MemoryLedger {
            weights: parameters.dense_rest()
                + of_blocks(&|matrix| matrix.parameters() + matrix.frozen_values()),
            gradients: trained_rest
                + of_blocks(&|matrix| matrix.gradient_values() + input_moment(plan, matrix)),
            moments: 2 * trained_rest + of_blocks(&kept) + carried,
            activations: 0,
            head_gradient: if model.is_adapted() { 0 } else { parameters.token_embedding },
            backward: (backward_values(model) * tokens)
                .max(LOGITS_PER_CHUNK.min(tokens * vocabulary))
                + grams_put_by,
            optimizer: of_blocks(&|matrix| rule(matrix).proposed(moved(matrix)))
                + carried
                + grams
                + in_hand,
            augmented: match is_augmented_bug {
                true => {
                    let low_rank = |(narrow, wide): (&MatrixCost, &MatrixCost)| match narrow
                        .is_low_rank()
                    {
                        true => {
                            wide.gradient_values() + augmented_values(moved(narrow), moved(wide))
                        }
                        false => narrow.gradient_values(),
                    };
                    trained_rest + matrices.iter().zip(&augmented).map(low_rank).sum::<u64>()
                }
                false => 0,
            },
        };
        let kept = kept_values(model, &augmented);
        let (bytes_narrow, rounded_weights) = match plan.dtype.compute {
            ComputeType::F32 => (BYTES_PER_VALUE, 0),
            ComputeType::Bf16 => (BYTES_PER_HALF, BYTES_PER_HALF * parameters.total()),
        };
        let kept_bytes = BYTES_PER_VALUE * kept.in_f32 + bytes_narrow * kept.in_compute_type;
        let activations = kept_bytes * tokens + rounded_weights;
        MemoryLedger { activations, ..values.times(BYTES_PER_VALUE) }
    }

    fn times(self, factor: u64) -> Self {
        let bytes = |values: u64| values.saturating_mul(factor);
        MemoryLedger {
            weights: bytes(self.weights),
            gradients: bytes(self.gradients),
            moments: bytes(self.moments),
            activations: bytes(self.activations),
            head_gradient: bytes(self.head_gradient),
            backward: bytes(self.backward),
            optimizer: bytes(self.optimizer),
            augmented: bytes(self.augmented),
        }
    }

    /// What is there at once at the most: the state of the training, and either a backward pass, in
    /// augmented bases where there is one, or a low-rank step.
    pub fn peak(&self) -> u64 {
        let pass = self
            .activations
            .saturating_add(self.head_gradient)
            .saturating_add(self.backward)
            .saturating_add(self.augmented);
        self.weights + self.gradients + self.moments + pass.max(self.optimizer)
    }
}

/// Whether a plan's low-rank weights step as stacks; `auto` decides by the device it names.
fn on_device(plan: &Plan) -> bool {
    match plan.linalg {
        LinalgSpec::Host => false,
        LinalgSpec::Device => true,
        LinalgSpec::Auto => matches!(plan.device, DeviceSpec::Cuda(_) | DeviceSpec::Metal),
    }
}
