//! `train.data_parallel`: training by several processes.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Training by several processes, which share the micro-batches of each step; how many there are
/// is the launcher's to say (`mpirun -np 4`, `srun`, `torchrun`), and changes no result unless
/// `deterministic` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataParallelSpec {
    /// How they reach each other.
    pub backend: ProcessBackend,
    /// Whether each process keeps the moments of its own share of the weights only, takes the
    /// optimizer's step of these, and sends their new numbers to the others (ZeRO stage 1). Changes
    /// no result.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub shard_optimizer: bool,
    /// Whether gradients are summed over the micro-batches in the order of one process, so that
    /// the run is the same for any number of processes. Otherwise each sums its own and one
    /// all-reduce sums these: faster with many processes, and equal up to rounding.
    #[serde(skip_serializing_if = "is_true")]
    pub deterministic: bool,
    /// Seconds that one waits for another before the job ends.
    pub timeout_seconds: u64,
}

impl Default for DataParallelSpec {
    fn default() -> Self {
        Self {
            backend: ProcessBackend::Auto,
            shard_optimizer: false,
            deterministic: true,
            timeout_seconds: 600,
        }
    }
}

impl DataParallelSpec {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

fn is_true(value: &bool) -> bool {
    *value
}

/// How processes reach each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProcessBackend {
    /// As the launcher of several processes implies: by MPI, or by TCP where it says where rank 0
    /// listens, as `torchrun` does; tensors on GPUs by NCCL in builds that have it.
    #[default]
    Auto,
    /// Not at all: every process trains by itself, whoever started it.
    None,
    /// By MPI.
    Mpi,
    /// By TCP; rank 0 listens at MASTER_ADDR:MASTER_PORT.
    Tcp,
    /// As `auto`, and tensors by NCCL, which needs GPUs.
    Nccl,
}
