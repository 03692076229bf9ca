//! Processes that train one run together: what they tell each other, and by which means.
//!
//! ```text
//! communicator   messages between processes, and what is built of them: broadcast, gather, barrier
//! agreement      a result of one process that becomes the result of all
//! alone          one process: no message is ever sent
//! launcher       which launcher started this process, as which of how many
//! starter        processes started and watched here, as `torchrun` does it
//! meeting, tcp   messages by TCP, between processes that know the address of rank 0
//! mpi            messages by MPI (Cargo feature `mpi`)
//! nccl           sums and broadcasts of tensors by NCCL, from GPU to GPU (Cargo feature `nccl`)
//! ```
//!
//! Nothing here knows what is trained. A sum that has to be the same for any number of processes is
//! never left to the library beneath, whose order of summands depends on that number.

mod agreement;
mod alone;
#[cfg(test)]
mod channels;
mod communicator;
mod launcher;
mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod starter;
mod tcp;

pub use agreement::{OfRank, OfThisProcess, agree, gather_if_all_succeed};
pub use alone::Alone;
#[cfg(test)]
pub(crate) use channels::Channels;
pub use communicator::{Communicator, Tag, f32_bytes, f64_bytes, f64_numbers};
pub use launcher::Launch;
pub use meeting::Meeting;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;
#[cfg(feature = "nccl")]
pub use nccl::Nccl;
pub use starter::{Ended, Group};
pub use tcp::Tcp;

/// Whether this build knows MPI.
pub const HAS_MPI: bool = cfg!(feature = "mpi");

/// Whether this build knows NCCL.
pub const HAS_NCCL: bool = cfg!(feature = "nccl");
