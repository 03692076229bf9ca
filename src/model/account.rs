//! What a plan costs: parameters, floating-point operations, memory. Counted from shapes, before anything runs.
//!
//! Legend: m × n a matrix, r its rank, C the width, H the heads, T the block size, V the vocabulary, L the blocks; a multiply-add is
//! two operations. Counted are matrix products (and attention's, which see only the causal half); norms, activations, softmax
//! and element-wise updates are left out, as is usual for model FLOPs.

use crate::spec::{DlraSpec, ModelPlan, Momentum, OptimizerPlan, Plan, RetractionSpec, Target, WeightForm};
use std::fmt;

/// Quintic Newton–Schulz iterations that `spectral` momentum is counted with.
pub const NEWTON_SCHULZ_ITERATIONS: u64 = 5;

const BYTES_PER_VALUE: u64 = 4;

/// Logits the head computes at a time, at most ([`crate::ops::cross_entropy_head`]).
pub const LOGITS_PER_CHUNK: u64 = 1 << 21;

/// The whole account of a plan.
#[derive(Clone, Debug, PartialEq)]
pub struct Ledger {
    /// Tokens in the vocabulary, V.
    pub vocabulary_size: u64,
    /// Numbers that are trained.
    pub parameters: ParameterLedger,
    /// Floating-point operations.
    pub flops: FlopLedger,
    /// Bytes in f32.
    pub memory: MemoryLedger,
    /// Tokens a step sees.
    pub tokens_per_step: u64,
    /// Steps of the run.
    pub max_steps: u64,
}

impl Ledger {
    /// Counts everything for a vocabulary of this size, with this many matrices in the optimizer's hands at a time (its threads).
    pub fn new(plan: &Plan, vocabulary_size: usize, threads: usize) -> Self {
        let vocabulary = vocabulary_size as u64;
        Ledger {
            vocabulary_size: vocabulary,
            parameters: ParameterLedger::new(&plan.model, vocabulary),
            flops: FlopLedger::new(plan, vocabulary),
            memory: MemoryLedger::new(plan, vocabulary, threads as u64),
            tokens_per_step: plan.tokens_per_step,
            max_steps: plan.train.max_steps.0,
        }
    }

    /// Tokens the run sees.
    pub fn total_tokens(&self) -> u64 {
        self.tokens_per_step.saturating_mul(self.max_steps)
    }

    /// Operations of one step: training on its tokens, then the low-rank optimizer.
    pub fn flops_per_step(&self) -> u64 {
        self.flops.per_step(self.tokens_per_step)
    }
}

/// Parameters by group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterLedger {
    /// Token embedding, tied to the head: V C.
    pub token_embedding: u64,
    /// Learned positions: T C.
    pub positions: u64,
    /// Layer-norm gains: (2 L + 1) C.
    pub norms: u64,
    /// Biases of norms and linear layers: (2 L + 1) C + 9 L C; 0 without biases.
    pub biases: u64,
    /// The six matrices of a block.
    pub targets: Vec<TargetLedger>,
}

impl ParameterLedger {
    fn new(model: &ModelPlan, vocabulary: u64) -> Self {
        let (layers, width) = (model.n_layer as u64, model.n_embd as u64);
        let norms = (2 * layers + 1) * width;
        let linear_biases: u64 = Target::ALL.iter().map(|target| model.shape(*target).0 as u64).sum();
        ParameterLedger {
            token_embedding: vocabulary * width,
            positions: model.block_size as u64 * width,
            norms,
            biases: if model.bias { norms + layers * linear_biases } else { 0 },
            targets: Target::ALL.iter().map(|target| TargetLedger::new(model, *target)).collect(),
        }
    }

    /// Everything outside the six matrices of a block.
    fn dense_rest(&self) -> u64 {
        self.token_embedding + self.positions + self.norms + self.biases
    }

    /// All parameters.
    pub fn total(&self) -> u64 {
        self.dense_rest() + self.targets.iter().map(|target| target.parameters).sum::<u64>()
    }

    /// Parameters of the same network with full matrices.
    pub fn dense_equivalent(&self) -> u64 {
        self.dense_rest() + self.targets.iter().map(|target| target.dense_equivalent).sum::<u64>()
    }
}

/// One of the six matrices, over all blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetLedger {
    /// Which matrix.
    pub target: Target,
    /// Its form.
    pub form: WeightForm,
    /// m.
    pub rows: u64,
    /// n.
    pub columns: u64,
    /// Stored numbers in all blocks: L m n, L (m r + r² + n r), or L (m r + n r).
    pub parameters: u64,
    /// L m n.
    pub dense_equivalent: u64,
}

impl TargetLedger {
    fn new(model: &ModelPlan, target: Target) -> Self {
        let matrix = Matrix::new(model, target);
        let layers = model.n_layer as u64;
        TargetLedger {
            target,
            form: matrix.form,
            rows: matrix.rows,
            columns: matrix.columns,
            parameters: layers * matrix.parameters(),
            dense_equivalent: layers * matrix.rows * matrix.columns,
        }
    }
}

/// Floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlopLedger {
    /// Forward, the six matrices of all blocks: 2 m n, 2 (n r + r² + r m), or 2 (n r + r m) each.
    pub forward_products_per_token: u64,
    /// Forward, causal attention: a token sees (T + 1) / 2 keys on average, twice (scores and mixture): 2 C (T + 1) per block.
    pub forward_attention_per_token: u64,
    /// Forward, head: 2 V C.
    pub forward_head_per_token: u64,
    /// Forward and backward: three times the forward, except that the r × r product of a low-rank matrix has no gradient product
    /// of its own (the S-gradient comes from the K-gradient), so that it counts twice. The recomputation of attention scores in the
    /// backward is not counted.
    pub training_per_token: u64,
    /// Geometry of all low-rank matrices, once per step; see [`low_rank_optimizer_flops`].
    pub low_rank_optimizer_per_step: u64,
}

impl FlopLedger {
    fn new(plan: &Plan, vocabulary: u64) -> Self {
        Self::at_ranks(plan, vocabulary, &|_, _| None)
    }

    /// The operations when low-rank matrices have these ranks (by block and target) instead of those of the plan, as after truncations.
    pub fn at_ranks(plan: &Plan, vocabulary: u64, rank: &dyn Fn(usize, Target) -> Option<usize>) -> Self {
        let model = &plan.model;
        let (layers, width) = (model.n_layer as u64, model.n_embd as u64);
        let places = || (0..model.n_layer).flat_map(|layer| Target::ALL.map(|target| (layer, target)));
        let matrices: Vec<Matrix> = places()
            .map(|(layer, target)| match (Matrix::new(model, target), rank(layer, target)) {
                (matrix, Some(rank)) if matrix.is_low_rank() => Matrix { form: WeightForm::LowRank { rank }, ..matrix },
                (matrix, _) => matrix,
            })
            .collect();
        let products = matrices.iter().map(Matrix::forward_flops).sum::<u64>();
        let attention = layers * 2 * width * (model.block_size as u64 + 1);
        let head = 2 * vocabulary * width;
        let small_products_saved = matrices.iter().map(Matrix::coefficient_flops).sum::<u64>();
        let optimizer = plan.optimizer.dlra().map_or(0, |dlra| {
            let low_rank = matrices.iter().filter(|matrix| matrix.is_low_rank());
            low_rank.map(|matrix| low_rank_optimizer_flops(dlra, matrix.rows, matrix.columns, matrix.rank()).total()).sum::<u64>()
        });
        FlopLedger {
            forward_products_per_token: products,
            forward_attention_per_token: attention,
            forward_head_per_token: head,
            training_per_token: 3 * (products + attention + head) - small_products_saved,
            low_rank_optimizer_per_step: optimizer,
        }
    }

    /// A step on this many tokens: training, then the low-rank optimizer.
    pub fn per_step(&self, tokens: u64) -> u64 {
        self.training_per_token.saturating_mul(tokens).saturating_add(self.low_rank_optimizer_per_step)
    }

    /// Forward pass on one token.
    pub fn forward_per_token(&self) -> u64 {
        self.forward_products_per_token + self.forward_attention_per_token + self.forward_head_per_token
    }
}

/// Operations of one DLRA step on one matrix while its rank stays, by part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptimizerFlops {
    /// Tangent projection of the outer gradients: 4 m r² + 2 n r²; and for `adam` the direction's return to the tangent space,
    /// 4 (m + n) r². For `matrix_adam` the r × r second moments, 2 (m + n) r² + 4 r³, and the direction, 2 (m + n) r² + 4 r³.
    pub projection: u64,
    /// New basis directions: orthogonalised twice against the basis, 8 r² per row, and Cholesky-QR twice, 8 r² per row: 16 (m + n) r².
    pub augmentation: u64,
    /// `spectral`: polar factor of the core a × b, a ≤ b ≤ 2r, by quintic Newton–Schulz: 4 a² b + 2 a³ per iteration. `matrix_adam`: four
    /// inverse roots by symmetric eigenvalues, 9 r³ + 2 r³ each (Golub & Van Loan, §8.3), and four products, 2 r³ each.
    pub polar: u64,
    /// `subspace`: two thin QRs of 2r × r (20/3 r³ each) and one product (8 r³). `svd`: 21 (2r)³ (Golub & Van Loan, §8.6).
    /// Then the new bases, 4 (m + n) r².
    pub retraction: u64,
    /// First moment into the new bases: 8 (m + n) r² + 8 r³; and for `adam` second moments, 2 (m + n) r² + 4 r³, for `matrix_adam` 16 r³.
    pub transport: u64,
}

impl OptimizerFlops {
    /// All parts together.
    pub fn total(&self) -> u64 {
        self.projection + self.augmentation + self.polar + self.retraction + self.transport
    }
}

/// Operations of one DLRA step on one m × n matrix of rank r: the algorithm's own count (algorithms.md §2 and §3).
pub fn low_rank_optimizer_flops(dlra: &DlraSpec, rows: u64, columns: u64, rank: u64) -> OptimizerFlops {
    let (square, cube) = (rank * rank, rank * rank * rank);
    let sides = (rows + columns) * square;
    let is_adam = u64::from(dlra.momentum == Momentum::Adam);
    let is_matrix_adam = u64::from(dlra.momentum == Momentum::MatrixAdam);
    let (long, short) = ((2 * rank).min(rows.max(columns)), (2 * rank).min(rows.min(columns)));
    OptimizerFlops {
        projection: 4 * rows * square + 2 * columns * square + is_adam * 4 * sides + is_matrix_adam * (4 * sides + 8 * cube),
        augmentation: 16 * sides,
        polar: match dlra.momentum {
            Momentum::Spectral => NEWTON_SCHULZ_ITERATIONS * (4 * short * short * long + 2 * short * short * short),
            Momentum::MatrixAdam => 52 * cube,
            Momentum::HeavyBall | Momentum::Adam => 0,
        },
        retraction: 4 * sides
            + match dlra.retraction {
                RetractionSpec::Subspace => (2 * 20 * cube) / 3 + 8 * cube,
                RetractionSpec::Svd => 21 * 8 * cube,
            },
        transport: 8 * sides + 8 * cube + is_adam * (2 * sides + 4 * cube) + is_matrix_adam * 16 * cube,
    }
}

/// Bytes in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLedger {
    /// All parameters.
    pub weights: u64,
    /// Gradients: one number per dense or factored parameter; K- and L-gradient, (m + n) r, per low-rank matrix.
    pub gradients: u64,
    /// Optimizer moments: two numbers per parameter under AdamW; r² + (m + n) r per low-rank matrix, twice that for `adam`,
    /// and 4 r² more for `matrix_adam`; one number per full matrix' entry under Muon and per factor's under heavy ball.
    pub moments: u64,
    /// What a micro-batch's forward pass keeps for its backward pass. Per token and block: both norms' inputs (2 C), statistics (4)
    /// and outputs (2 C); q, k, v (3 C); attention output (C) and log-sum-exp (H); MLP before and after GELU (8 C); and the
    /// rank-wide intermediate of each low-rank or factored matrix (r). Then per token the final norm's input, statistics and
    /// output (2 C + 2) and the head's gradient (C). Logits exist only in chunks, residual sums and dropout keep nothing.
    pub activations: u64,
    /// The head's gradient by its weight before it joins the embedding's: V C.
    pub head_gradient: u64,
    /// What the backward pass holds beside that at its widest, or the head at its: gradients of the residual stream, of the MLP's output and of both
    /// sides of GELU, (2 + 8) C per token; or a chunk of logits, [`LOGITS_PER_CHUNK`].
    pub backward: u64,
    /// What the low-rank step holds: for every matrix, beside the old ones, the tangent gradient, the new weight and the new moments; and
    /// per matrix in hand the direction and the new basis directions, the new bases and the transported moment, 4 (m + n) r + 2 r², and three
    /// 2r × 2r cores, for the largest matrix times the threads.
    pub optimizer: u64,
}

impl MemoryLedger {
    fn new(plan: &Plan, vocabulary: u64, threads: u64) -> Self {
        let model = &plan.model;
        let parameters = ParameterLedger::new(model, vocabulary);
        let layers = model.n_layer as u64;
        let matrices: Vec<Matrix> = Target::ALL.iter().map(|target| Matrix::new(model, *target)).collect();
        let of_blocks = |count: &dyn Fn(&Matrix) -> u64| layers * matrices.iter().map(count).sum::<u64>();
        let moments = |matrix: &Matrix| matrix.moment_values(&plan.optimizer);
        let low_rank_in_all = layers * matrices.iter().filter(|matrix| matrix.is_low_rank()).count() as u64;
        let tokens = plan.train.batch_size as u64 * model.block_size as u64;
        let largest_augmentation = matrices.iter().map(Matrix::augmentation_values).max().unwrap_or(0);
        let values = MemoryLedger {
            weights: parameters.total(),
            gradients: parameters.dense_rest() + of_blocks(&Matrix::gradient_values),
            moments: 2 * parameters.dense_rest() + of_blocks(&moments),
            activations: activation_values(model, &matrices) * tokens,
            head_gradient: parameters.token_embedding,
            backward: (10 * model.n_embd as u64 * tokens).max(LOGITS_PER_CHUNK.min(tokens * vocabulary)),
            optimizer: of_blocks(&|matrix| {
                if matrix.is_low_rank() { 2 * matrix.parameters() + moments(matrix) } else { 0 }
            }) + largest_augmentation * threads.min(low_rank_in_all),
        };
        values.times(BYTES_PER_VALUE)
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
        }
    }

    /// What is there at once at the most: the state of the training, and either a backward pass or a low-rank step.
    pub fn peak(&self) -> u64 {
        let pass = self.activations.saturating_add(self.head_gradient).saturating_add(self.backward);
        self.weights + self.gradients + self.moments + pass.max(self.optimizer)
    }
}

/// Numbers kept per token for the backward pass.
fn activation_values(model: &ModelPlan, matrices: &[Matrix]) -> u64 {
    let (layers, width, heads) = (model.n_layer as u64, model.n_embd as u64, model.n_head as u64);
    let norms = 2 * (2 * width + 2);
    let attention = 4 * width + heads;
    let mlp = 8 * width;
    let rank_wide: u64 = matrices.iter().map(|matrix| matrix.form.rank().unwrap_or(0) as u64).sum();
    let final_norm_and_head = 3 * width + 2;
    layers * (norms + attention + mlp + rank_wide) + final_norm_and_head
}

/// One matrix of one block.
struct Matrix {
    form: WeightForm,
    rows: u64,
    columns: u64,
}

impl Matrix {
    fn new(model: &ModelPlan, target: Target) -> Self {
        let (rows, columns) = model.shape(target);
        Matrix { form: model.form(target), rows: rows as u64, columns: columns as u64 }
    }

    fn rank(&self) -> u64 {
        self.form.rank().unwrap_or(0) as u64
    }

    fn is_low_rank(&self) -> bool {
        matches!(self.form, WeightForm::LowRank { .. })
    }

    /// (m + n) r.
    fn factor_values(&self) -> u64 {
        (self.rows + self.columns) * self.rank()
    }

    fn parameters(&self) -> u64 {
        match self.form {
            WeightForm::Dense => self.rows * self.columns,
            WeightForm::LowRank { .. } => self.factor_values() + self.rank() * self.rank(),
            WeightForm::Factored { .. } => self.factor_values(),
        }
    }

    fn forward_flops(&self) -> u64 {
        2 * self.parameters()
    }

    /// The product with S alone.
    fn coefficient_flops(&self) -> u64 {
        if self.is_low_rank() { 2 * self.rank() * self.rank() } else { 0 }
    }

    fn gradient_values(&self) -> u64 {
        if self.is_low_rank() { self.factor_values() } else { self.parameters() }
    }

    fn moment_values(&self, optimizer: &OptimizerPlan) -> u64 {
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

    fn augmentation_values(&self) -> u64 {
        let square = self.rank() * self.rank();
        if self.is_low_rank() { 4 * self.factor_values() + 2 * square + 3 * 4 * square } else { 0 }
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: String| writeln!(f, "  {name:<34}{value:>14}");
        let parameters = &self.parameters;
        writeln!(f, "parameters")?;
        line(f, "token embedding (tied head)", grouped(parameters.token_embedding))?;
        line(f, "positions", grouped(parameters.positions))?;
        line(f, "norms", grouped(parameters.norms))?;
        line(f, "biases", grouped(parameters.biases))?;
        for target in &parameters.targets {
            let form = match target.form {
                WeightForm::Dense => "dense".to_owned(),
                WeightForm::LowRank { rank } => format!("rank {rank}"),
                WeightForm::Factored { rank } => format!("factored, {rank}"),
            };
            let name = format!("{:<5} {} × {}, {form}", target.target.name(), target.rows, target.columns);
            line(f, &name, grouped(target.parameters))?;
        }
        let (total, dense) = (parameters.total(), parameters.dense_equivalent());
        line(f, "total", grouped(total))?;
        line(f, "the same network dense", grouped(dense))?;
        line(f, "share of dense", format!("{:.3}", total as f64 / dense as f64))?;

        let flops = &self.flops;
        writeln!(f, "operations (matrix products)")?;
        line(f, "forward per token", scaled(flops.forward_per_token(), "FLOP"))?;
        line(f, "  matrices of the blocks", scaled(flops.forward_products_per_token, "FLOP"))?;
        line(f, "  causal attention", scaled(flops.forward_attention_per_token, "FLOP"))?;
        line(f, "  head", scaled(flops.forward_head_per_token, "FLOP"))?;
        line(f, "training per token", scaled(flops.training_per_token, "FLOP"))?;
        line(f, "low-rank optimizer per step", scaled(flops.low_rank_optimizer_per_step, "FLOP"))?;
        line(f, "a step in all", scaled(self.flops_per_step(), "FLOP"))?;
        line(f, "the run in all", scaled(self.flops_per_step().saturating_mul(self.max_steps), "FLOP"))?;

        let memory = &self.memory;
        writeln!(f, "memory (f32)")?;
        line(f, "weights", bytes(memory.weights))?;
        line(f, "gradients", bytes(memory.gradients))?;
        line(f, "optimizer moments", bytes(memory.moments))?;
        line(f, "activations for the backward", bytes(memory.activations))?;
        line(f, "head gradient", bytes(memory.head_gradient))?;
        line(f, "backward in flight", bytes(memory.backward))?;
        line(f, "low-rank step", bytes(memory.optimizer))?;
        line(f, "peak, expected", bytes(memory.peak()))?;

        writeln!(f, "tokens")?;
        line(f, "per step", grouped(self.tokens_per_step))?;
        line(f, "in all", grouped(self.total_tokens()))
    }
}

/// Digits in groups of three: `12_345`, as counts may be written in a spec.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits are ASCII")).collect();
    groups.join("_")
}

/// A number with three figures or so and a decimal prefix: `1.23 GFLOP`.
pub(crate) fn scaled(value: u64, unit: &str) -> String {
    const STEPS: [(f64, &str); 6] = [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let value = value as f64;
    match STEPS.iter().find(|(step, _)| value >= *step) {
        Some((step, prefix)) => format!("{:.2} {prefix}{unit}", value / step),
        None => format!("{value} {unit}"),
    }
}

/// A size in binary units: `12.3 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    const STEPS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match STEPS.iter().find(|(step, _)| value >= *step) {
        Some((step, unit)) => format!("{:.1} {unit}", value as f64 / *step as f64),
        None => format!("{value} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2 blocks, 2 heads, width 8, block 4, vocabulary 10, rank 2, except v (rank 3) and down (dense); batch 3 × 2.
    fn tiny(kind: &str, rule: &str, bias: bool) -> Plan {
        let text = format!(
            "name: tiny\n\
             model: {{n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, bias: {bias}, weights: {kind}}}\n\
             data: {{source: cargo_registry, tokenizer: bytes}}\n\
             train: {{max_steps: 7, batch_size: 3, gradient_accumulation_steps: 2}}\n\
             {rule}\n\
             schedule: {{constant: {{warmup_steps: 0}}}}\n"
        );
        crate::spec::parse_plan(&text, "tiny.yaml", &[]).expect("a good spec").1
    }

    const LOW_RANK: &str = "{low_rank: {rank: 2, targets: {v: 3, down: dense}}}";

    #[test]
    fn parameters_of_a_tiny_model() {
        let ledger = Ledger::new(&tiny(LOW_RANK, "", true), 10, 1);
        let parameters = &ledger.parameters;
        assert_eq!((parameters.token_embedding, parameters.positions, parameters.norms), (80, 32, 40));
        // Norm biases 5·8, and per block 4·8 (q, k, v, o) + 32 (up) + 8 (down).
        assert_eq!(parameters.biases, 40 + 2 * 72);
        // q: (8 + 8)·2 + 4 = 36, v: 16·3 + 9 = 57, up: (32 + 8)·2 + 4 = 84, down: 256; two blocks.
        let counts: Vec<u64> = parameters.targets.iter().map(|target| target.parameters).collect();
        assert_eq!(counts, [72, 72, 114, 72, 168, 512]);
        assert_eq!(parameters.total(), 80 + 32 + 40 + 184 + 1010);
        assert_eq!(parameters.dense_equivalent(), 80 + 32 + 40 + 184 + 2 * (4 * 64 + 2 * 256));
    }

    #[test]
    fn operations_of_a_tiny_model() {
        let flops = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1).flops;
        assert_eq!(flops.forward_products_per_token, 2 * 1010);
        assert_eq!(flops.forward_attention_per_token, 2 * 2 * 8 * 5);
        assert_eq!(flops.forward_head_per_token, 160);
        // The r × r products, 2·(4 + 4 + 9 + 4 + 4) in each of two blocks, are needed twice, not three times.
        assert_eq!(flops.training_per_token, 3 * (2020 + 160 + 160) - 2 * 2 * 25);
        let dense = Ledger::new(&tiny("dense", "", false), 10, 1).flops;
        assert_eq!(dense.forward_products_per_token, 2 * 2 * (4 * 64 + 2 * 256));
        assert_eq!(dense.training_per_token, 3 * dense.forward_per_token());
        assert_eq!(dense.low_rank_optimizer_per_step, 0);
    }

    #[test]
    fn memory_of_a_tiny_model() {
        let memory = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1).memory;
        let rest = 80 + 32 + 40;
        assert_eq!(memory.weights, 4 * (rest + 1010));
        // Without r²: q, k, o 32 each, v 48, up 80, down 256.
        assert_eq!(memory.gradients, 4 * (rest + 2 * (3 * 32 + 48 + 80 + 256)));
        // Spectral keeps one moment of the shape of (U, S, V); AdamW keeps two.
        assert_eq!(memory.moments, 4 * (2 * rest + 2 * (3 * 36 + 57 + 84) + 2 * 2 * 256));
        // Per token and block 16 C + 4 + H + (2 + 2 + 3 + 2 + 2) = 145; at the end 3 C + 2; 12 tokens in a micro-batch.
        assert_eq!(memory.activations, 4 * 12 * (2 * 145 + 26));
        assert_eq!(memory.head_gradient, 4 * 80);
        // Up, 32 × 8 at rank 2, is the largest: 4·80 + 14·4.
        let low_rank = 2 * (3 * 36 + 57 + 84);
        assert_eq!(memory.optimizer, 4 * (3 * low_rank + 320 + 56));
        // 10 C for each of 12 tokens, more than their 10 logits each.
        assert_eq!(memory.backward, 4 * 12 * 80);
        let state = memory.weights + memory.gradients + memory.moments;
        assert_eq!(memory.peak(), state + memory.activations + memory.head_gradient + memory.backward);
    }

    #[test]
    fn adam_keeps_second_moments_and_factors_have_no_core() {
        let spectral = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1);
        let adam = Ledger::new(&tiny(LOW_RANK, "optimizer: {low_rank: {dlra: {momentum: adam}}}", false), 10, 1);
        assert_eq!(adam.memory.moments - spectral.memory.moments, 4 * 2 * (3 * 36 + 57 + 84));
        let factored = Ledger::new(&tiny("{factored: {rank: 2}}", "", false), 10, 1);
        assert_eq!(factored.parameters.total(), 152 + 2 * 2 * (4 * 16 + 2 * 40));
        assert_eq!(factored.memory.moments, 2 * factored.memory.weights);
        assert_eq!(factored.memory.gradients, factored.memory.weights);
        assert_eq!(factored.flops.training_per_token, 3 * factored.flops.forward_per_token());
        assert_eq!(factored.memory.optimizer, 0);
    }

    #[test]
    fn one_spectral_step_by_hand() {
        let count = low_rank_optimizer_flops(&DlraSpec::default(), 10, 6, 2);
        assert_eq!(count.projection, 4 * 10 * 4 + 2 * 6 * 4);
        assert_eq!(count.augmentation, 16 * 16 * 4);
        assert_eq!(count.polar, 5 * (2 * 4 * 4 * 4 + 2 * 4 * 4 * 4 + 2 * 4 * 4 * 4));
        assert_eq!(count.retraction, 4 * 64 + 106 + 64);
        assert_eq!(count.transport, 8 * 64 + 64);
        let svd = DlraSpec { retraction: RetractionSpec::Svd, momentum: Momentum::HeavyBall, ..DlraSpec::default() };
        let count = low_rank_optimizer_flops(&svd, 10, 6, 2);
        assert_eq!((count.polar, count.retraction), (0, 4 * 64 + 21 * 64));
        // The core has at most min(2r, n) columns.
        let wide = low_rank_optimizer_flops(&DlraSpec::default(), 10, 3, 2);
        assert_eq!(wide.polar, 5 * (4 * 3 * 3 * 4 + 2 * 27));
    }

    #[test]
    fn figures_are_readable() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1_000", "1_234_567"]);
        assert_eq!(scaled(1_500, "FLOP"), "1.50 kFLOP");
        assert_eq!(scaled(12, "FLOP"), "12 FLOP");
        assert_eq!(bytes(1_572_864), "1.5 MiB");
    }
}
