//! The largest sizes that are accepted, far above what any machine trains, so that no count made
//! from them overflows and nothing is begun that cannot end.

use super::plan::{Plan, WeightForm};

/// Most transformer blocks.
pub const MAX_LAYERS: u64 = 1 << 12;
/// Largest width of the residual stream, and so most heads and largest rank of a square weight.
pub const MAX_WIDTH: u64 = 1 << 16;
/// Largest width of an MLP.
pub const MAX_INNER: u64 = 4 * MAX_WIDTH;
/// Longest context in tokens.
pub const MAX_BLOCK_SIZE: u64 = 1 << 20;
/// Most tokens in a vocabulary.
pub const MAX_VOCABULARY: u64 = 1 << 22;
/// The vocabulary assumed where only the data can tell its size. The largest is sixteen times as
/// large, which the bound on a step's operations leaves room for.
pub(super) const USUAL_VOCABULARY: u64 = 1 << 18;
/// Most sequences in a micro-batch, and most micro-batches in a step.
pub const MAX_BATCH: u64 = 1 << 16;
/// Rollbacks after a divergence: at the halved rates of more nothing moves.
pub const MAX_ROLLBACKS: u64 = 30;
/// Most optimizer steps.
pub const MAX_STEPS: u64 = 1_000_000_000_000;
/// Most coefficient steps between an augmentation and its truncation.
pub const MAX_COEFFICIENT_STEPS: u64 = 10_000;
/// Most tokens of a sample.
pub const MAX_SAMPLE: u64 = 1_000_000;
/// Most numbers that a network with dense weights may have, without its embeddings.
pub const MAX_PARAMETERS: u64 = 1_000_000_000_000;
/// Most operations that a step may take, estimated to a small factor.
pub const MAX_STEP_OPERATIONS: f64 = 1e18;
/// Most threads.
pub const MAX_THREADS: usize = 1024;

/// What is wrong with a size; none if it lies between 1 and `most`.
pub fn size_problem(size: u64, most: u64) -> Option<String> {
    match size {
        0 => Some("is 0; set at least 1".into()),
        _ if size > most => Some(format!("is {size}; set at most {most}")),
        _ => None,
    }
}

/// What is wrong with the rank of a matrix of this shape; none if the matrix can have it.
pub fn rank_problem(name: &str, rank: usize, (rows, columns): (usize, usize)) -> Option<String> {
    let limit = rows.min(columns);
    (!(1..=limit).contains(&rank)).then(|| {
        format!("rank {rank} is not possible for `{name}`, {rows} × {columns}; choose 1 to {limit}")
    })
}

/// Operations of a step in f64, which cannot overflow, to a small factor and rather too many:
/// forward and backward through the blocks, attention and the head, and the linear algebra of
/// low-rank and orthogonalised matrices, once for each evaluation.
pub(super) fn step_operations(plan: &Plan, vocabulary: u64) -> f64 {
    let model = &plan.model;
    let [layers, width, context] =
        [model.n_layer, model.n_embd, model.block_size].map(|size| size as f64);
    let blocks = model.block_parameters() as f64;
    let tokens =
        context * plan.train.batch_size as f64 * plan.train.gradient_accumulation_steps as f64;
    let forward = blocks + layers * 2.0 * context * width + vocabulary as f64 * width;
    let ranks = model.weights.values().filter_map(|form| form.rank());
    let own_ranks = model.layers.iter().flat_map(|ranks| ranks.values().copied());
    let head_rank = model.head_adapter.and_then(WeightForm::rank);
    let largest_rank = ranks.chain(own_ranks).chain(head_rank).max().unwrap_or(0);
    let full = plan.optimizer.matrices.is_some()
        && model.weights.values().any(|form| *form == WeightForm::Dense);
    let rank = if full { width } else { largest_rank as f64 };
    let evaluations = plan.optimizer.dlra().map_or(1.0, |dlra| dlra.evaluations_per_step() as f64);
    evaluations * (6.0 * tokens * forward + 200.0 * layers * width * width * rank)
}
