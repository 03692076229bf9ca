//! What processes that share the micro-batches of a step send each other.

use super::moved::{augmented, input_moment};
use super::parameters::ParameterLedger;
use crate::model::cost::MatrixCost;
use crate::spec::{DlraSpec, Integrator, Plan};

/// Bytes of a number on its way.
const BYTES: u64 = 4;

/// Gradient sums on the wire.
///
/// A low-rank matrix has its K- and its L-gradient there, (m + n) r numbers in place of m n; all
/// else that is trained has as many numbers as it stores; and the second moment of its inputs, r × r
/// or n × n, where its rule goes by that. A sum goes from each micro-batch to the
/// next, M − 1 times, and from the last to all P processes, P − 1 times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireLedger {
    /// Numbers of all sums of a step's evaluations: in the plan's ranks for the first, in
    /// augmented ones for those that `augmented_bug` adds, and in augmented ones for
    /// `coefficient_cycle`, whose ranks are those at most.
    pub sums_per_step: u64,
    /// The same for the network with full matrices, which has one evaluation.
    pub dense_sums_per_step: u64,
    /// Micro-batches per step, M.
    pub micro_batches: u64,
    /// Whether sums go from micro-batch to micro-batch, or around a ring of the processes.
    pub is_deterministic: bool,
}

impl WireLedger {
    pub(super) fn new(plan: &Plan, parameters: &ParameterLedger, vocabulary: u64) -> Self {
        let rest = if parameters.is_adapted { 0 } else { parameters.dense_rest() };
        let sums = |form: &dyn Fn(MatrixCost) -> MatrixCost| {
            let matrices = MatrixCost::all(&plan.model, vocabulary).into_iter();
            let sums = |matrix: MatrixCost| matrix.gradient_values() + input_moment(plan, &matrix);
            rest + matrices.map(|matrix| sums(form(matrix))).sum::<u64>()
        };
        let integrator = plan.optimizer.dlra().map_or(Integrator::Tangent, |dlra| dlra.integrator);
        let further = plan.optimizer.dlra().map_or(1, DlraSpec::evaluations_per_step) - 1;
        let in_augmented_bases = || sums(&|matrix| augmented(matrix, integrator));
        WireLedger {
            sums_per_step: match integrator {
                Integrator::Tangent => sums(&|matrix| matrix),
                Integrator::AugmentedBug => sums(&|matrix| matrix) + further * in_augmented_bases(),
                Integrator::CoefficientCycle => in_augmented_bases(),
            },
            dense_sums_per_step: parameters.dense_equivalent(),
            micro_batches: plan.train.gradient_accumulation_steps as u64,
            is_deterministic: plan.train.data_parallel.deterministic,
        }
    }

    /// Bytes that all processes together send in a step: (M − 1) + (P − 1) times the sums, or
    /// 2 (P − 1) times around a ring.
    pub fn bytes_per_step(&self, processes: u64) -> u64 {
        self.hops(processes).saturating_mul(self.sums_per_step).saturating_mul(BYTES)
    }

    /// The same for the network with full matrices.
    pub fn dense_bytes_per_step(&self, processes: u64) -> u64 {
        self.hops(processes).saturating_mul(self.dense_sums_per_step).saturating_mul(BYTES)
    }

    fn hops(&self, processes: u64) -> u64 {
        match processes {
            0 | 1 => 0,
            _ if !self.is_deterministic => 2 * (processes - 1),
            _ => self.micro_batches - 1 + processes - 1,
        }
    }
}
