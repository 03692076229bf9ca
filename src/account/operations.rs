//! Floating-point operations.

use super::moved::{augmented, input_moment, moved};
use crate::model::cost::{
    MatrixCost, attention_flops, attention_training_flops, head_flops, head_training_flops,
    passes_on,
};
use crate::optim::{MovedWeight, rule_cost};
use crate::spec::{CyclePhase, DlraSpec, Integrator, Plan, Target, WeightForm};

/// Floating-point operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlopLedger {
    /// Forward, the matrices of all blocks: 2 m n, 2 (n r + r² + r m), or 2 (n r + r m) for W =
    /// B A.
    pub forward_products_per_token: u64,
    /// Forward, causal attention: a token sees (T + 1) / 2 keys on average, twice (scores and
    /// mixture): 2 C (T + 1) per block.
    pub forward_attention_per_token: u64,
    /// Forward, head: 2 V C, and 2 (C r + r² + r V) for an adapter beside it.
    pub forward_head_per_token: u64,
    /// Forward and backward: three times the forward, except that the r × r product of a low-rank
    /// matrix has no gradient product of its own (the S-gradient comes from the K-gradient), so
    /// that it counts twice, and that a frozen matrix or head has none, and passes none on where
    /// nothing is trained below it; and 2 r² for the second moment of a low-rank matrix' inputs,
    /// 2 n² for that of a full one's, where its rule goes by that. The recomputation of attention scores in the backward is
    /// not counted.
    pub training_per_token: u64,
    /// Forward and backward of the further evaluations of an `augmented_bug` step, with every
    /// low-rank matrix in its augmented bases.
    pub coefficient_evaluations_per_token: u64,
    /// The rule's own products on all low-rank and factored matrices, once per step: the geometry of
    /// DLRA, LORO's exact steps; as [`crate::optim::RuleCost`] of the rule says.
    pub low_rank_optimizer_per_step: u64,
    /// The same on full matrices: polar factors under Muon and what is whitened
    /// before, projections and SVDs under GaLore.
    pub matrix_optimizer_per_step: u64,
}

impl FlopLedger {
    /// At the ranks of the plan; for `coefficient_cycle`, whose ranks come and go, the mean over a
    /// cycle.
    pub(super) fn new(plan: &Plan, vocabulary: u64) -> Self {
        let Some(phases) = plan.optimizer.dlra().and_then(phases) else {
            return Self::count(plan, vocabulary, None, &|matrix, _, _| matrix);
        };
        let wide = |matrix, _, _| augmented(matrix, Integrator::CoefficientCycle);
        let ledger = |phase| match phase {
            CyclePhase::Augment => {
                Self::count(plan, vocabulary, Some(phase), &|matrix, _, _| matrix)
            }
            CyclePhase::Coefficients { .. } => Self::count(plan, vocabulary, Some(phase), &wide),
        };
        mean(&phases.map(|(weight, phase)| (weight, ledger(phase))))
    }

    /// The operations of a step (from 1) when low-rank matrices have these ranks (by block and
    /// target) instead of those of the plan, as after truncations; none for one that is still dense.
    pub fn at_step(
        plan: &Plan,
        vocabulary: u64,
        step: u64,
        rank: &dyn Fn(usize, Target) -> Option<usize>,
    ) -> Self {
        let phase =
            plan.optimizer.dlra().and_then(|dlra| dlra.cycle_phase(step, plan.train.max_steps.0));
        Self::count(plan, vocabulary, phase, &|matrix, layer, target| match rank(layer, target) {
            Some(rank) if matches!(matrix.form, WeightForm::LowRank { .. }) => matrix.of_rank(rank),
            _ => matrix,
        })
    }

    fn count(
        plan: &Plan,
        vocabulary: u64,
        phase: Option<CyclePhase>,
        form: &dyn Fn(MatrixCost, usize, Target) -> MatrixCost,
    ) -> Self {
        let model = &plan.model;
        let layers = model.n_layer as u64;
        let matrices: Vec<MatrixCost> = model
            .places_with_head()
            .map(|(layer, target)| {
                form(MatrixCost::new(model, vocabulary, layer, target), layer, target)
            })
            .collect();
        let (of_blocks, of_head) = matrices.split_at(model.places().count());
        let forward = |of: &[MatrixCost]| of.iter().map(MatrixCost::forward_flops).sum::<u64>();
        let of = |matrices: &[MatrixCost]| {
            let training = |(matrix, (layer, target)): (&MatrixCost, (usize, Target))| {
                matrix.training_flops(passes_on(model, layer, target))
            };
            let products = matrices.iter().zip(model.places_with_head()).map(training).sum::<u64>();
            products + attention_training_flops(model) + head_training_flops(model, vocabulary)
        };
        let coefficient_evaluations = plan.optimizer.dlra().map_or(0, |dlra| {
            let augmented: Vec<MatrixCost> =
                matrices.iter().map(|matrix| augmented(*matrix, dlra.integrator)).collect();
            (dlra.evaluations_per_step() - 1) * of(&augmented)
        });
        // All of one form move by one rule.
        let of_rule = |is_of_form: &dyn Fn(&WeightForm) -> bool| {
            let matrices: Vec<&MatrixCost> =
                matrices.iter().filter(|matrix| is_of_form(&matrix.form)).collect();
            matrices.first().map_or(0, |first| {
                let weights: Vec<MovedWeight> = matrices.iter().copied().map(moved).collect();
                rule_cost(&plan.optimizer, first.form).flops(&weights, phase)
            })
        };
        FlopLedger {
            forward_products_per_token: forward(of_blocks),
            forward_attention_per_token: layers * attention_flops(model),
            forward_head_per_token: head_flops(model, vocabulary) + forward(of_head),
            training_per_token: of(&matrices)
                + matrices.iter().map(|matrix| 2 * input_moment(plan, matrix)).sum::<u64>(),
            coefficient_evaluations_per_token: coefficient_evaluations,
            low_rank_optimizer_per_step: of_rule(&|form| {
                matches!(form, WeightForm::LowRank { .. })
            }) + of_rule(&|form| {
                matches!(form, WeightForm::Factored { .. })
            }),
            matrix_optimizer_per_step: of_rule(&|form| *form == WeightForm::Dense),
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

/// The phases of a cycle, each with how often it comes.
fn phases(dlra: &DlraSpec) -> Option<[(u64, CyclePhase); 3]> {
    let length = dlra.cycle_length()?;
    Some([
        (1, CyclePhase::Augment),
        (length.saturating_sub(2), CyclePhase::Coefficients { truncate: false }),
        (1, CyclePhase::Coefficients { truncate: true }),
    ])
}

/// The mean of ledgers with weights.
fn mean(ledgers: &[(u64, FlopLedger)]) -> FlopLedger {
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
