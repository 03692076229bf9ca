//! Numbers by group.

use crate::model::cost::MatrixCost;
use crate::spec::{ModelPlan, Target, WeightForm};

/// Parameters by group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterLedger {
    /// Token embedding, also the head where they are tied: V C.
    pub token_embedding: u64,
    /// A head of its own: V C; none where it is tied.
    pub head: Option<u64>,
    /// Learned positions: T C; none where positions are rotary.
    pub positions: Option<u64>,
    /// Norm gains: (2 L + 1) C.
    pub norms: u64,
    /// Biases of layer norms, (2 L + 1) C, and of linear layers, L times the sum of their outputs;
    /// 0 without biases.
    pub biases: u64,
    /// The matrices of a block, and the adapter of the head.
    pub targets: Vec<TargetLedger>,
    /// Whether only adapters are trained.
    pub is_adapted: bool,
}

impl ParameterLedger {
    pub(super) fn new(model: &ModelPlan, vocabulary: u64) -> Self {
        let (layers, width) = (model.n_layer as u64, model.n_embd as u64);
        let norms = (2 * layers + 1) * width;
        let norm_biases = if model.arch.norms_have_biases() { norms } else { 0 };
        let linear_biases: u64 =
            model.targets().iter().map(|target| model.shape(*target).0 as u64).sum();
        ParameterLedger {
            token_embedding: vocabulary * width,
            head: (!model.ties_embeddings()).then_some(vocabulary * width),
            positions: (!model.arch.is_rotary()).then_some(model.block_size as u64 * width),
            norms,
            biases: if model.bias { norm_biases + layers * linear_biases } else { 0 },
            targets: model
                .targets()
                .iter()
                .chain(model.head_adapter.as_ref().map(|_| &Target::HEAD))
                .map(|target| TargetLedger::new(model, vocabulary, *target))
                .collect(),
            is_adapted: model.is_adapted(),
        }
    }

    /// Everything outside the matrices of the blocks.
    pub(super) fn dense_rest(&self) -> u64 {
        let tables = self.token_embedding + self.head.unwrap_or(0) + self.positions.unwrap_or(0);
        tables + self.norms + self.biases
    }

    /// Trained parameters: all, or those of adapters alone.
    pub fn trained(&self) -> u64 {
        let targets = self.targets.iter();
        let rest = if self.is_adapted { 0 } else { self.dense_rest() };
        rest + targets.map(|target| target.trained).sum::<u64>()
    }

    /// All parameters.
    pub fn total(&self) -> u64 {
        self.dense_rest() + self.targets.iter().map(|target| target.parameters).sum::<u64>()
    }

    /// Degrees of freedom: L r (m + n − r) for low-rank matrices, the dimension of their manifold,
    /// and every other trained parameter as it is.
    pub fn manifold_dimension(&self) -> u64 {
        let matrices = self.targets.iter().map(|target| target.manifold_dimension);
        let rest = if self.is_adapted { 0 } else { self.dense_rest() };
        rest + matrices.sum::<u64>()
    }

    /// Parameters of the same network with full matrices.
    pub fn dense_equivalent(&self) -> u64 {
        self.dense_rest() + self.targets.iter().map(|target| target.dense_equivalent).sum::<u64>()
    }
}

/// One of the matrices, over all blocks; or what is beside the head, whose own matrix is counted
/// elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetLedger {
    /// Which matrix.
    pub target: Target,
    /// Its form, in blocks without a rank of their own.
    pub form: WeightForm,
    /// The smallest and largest rank over the blocks; none of a full matrix.
    pub ranks: Option<(usize, usize)>,
    /// Blocks in which it has that form, and all blocks; an adapter may be left out of some.
    pub blocks: (usize, usize),
    /// Whether it is low-rank and dense until it is cut; it counts as it is then.
    pub is_uncut: bool,
    /// m.
    pub rows: u64,
    /// n.
    pub columns: u64,
    /// Stored numbers in all blocks: L m n, L (m r + r² + n r), or L (m r + n r) for W = B A, each
    /// block with its own r. With a frozen matrix beside it L m n more.
    pub parameters: u64,
    /// Trained ones of them.
    pub trained: u64,
    /// Degrees of freedom in all blocks: L m n, or L r (m + n − r).
    pub manifold_dimension: u64,
    /// L m n.
    pub dense_equivalent: u64,
}

impl TargetLedger {
    fn new(model: &ModelPlan, vocabulary: u64, target: Target) -> Self {
        let layers = match target {
            Target::HEAD => model.n_layer..model.n_layer + 1,
            _ => 0..model.n_layer,
        };
        let blocks = || layers.clone().map(|at| MatrixCost::new(model, vocabulary, at, target));
        let sum = |count: &dyn Fn(&MatrixCost) -> u64| blocks().map(|m| count(&m)).sum::<u64>();
        let ranks = || layers.clone().filter_map(|layer| model.form_in(layer, target).rank());
        let is_of_block = target != Target::HEAD;
        let (trained, numbers) = (sum(&MatrixCost::parameters), sum(&|m| m.rows * m.columns));
        let first = MatrixCost::new(model, vocabulary, layers.start, target);
        TargetLedger {
            target,
            form: model.form(target),
            ranks: ranks().min().zip(ranks().max()),
            blocks: if is_of_block { (model.blocks_of(target), model.n_layer) } else { (1, 1) },
            is_uncut: blocks().any(|matrix| matrix.is_uncut),
            rows: first.rows,
            columns: first.columns,
            parameters: trained + sum(&MatrixCost::frozen_values),
            trained,
            manifold_dimension: sum(&MatrixCost::manifold_dimension),
            dense_equivalent: if is_of_block { numbers } else { 0 },
        }
    }
}
