//! Processes that train one run together: what they tell each other, and by which means.
//!
//! ```text
//! communicator   messages between processes, and what is built of them: broadcast, gather, barrier
//! agreement      a result of one process that becomes the result of all
//! alone          one process: no message is ever sent
//! launcher       which launcher started this process, as which of how many
//! mpi            messages by MPI (Cargo feature `mpi`)
//! ```
//!
//! Nothing here knows what is trained. A sum over processes is never left to the library beneath:
//! its order would be the library's, and the sum another one for another number of processes.

mod agreement;
mod alone;
#[cfg(test)]
mod channels;
mod communicator;
mod launcher;
#[cfg(feature = "mpi")]
mod mpi;

pub use agreement::{OfRank, OfThisProcess, agree, gather_if_all_succeed};
pub use alone::Alone;
#[cfg(test)]
pub(crate) use channels::Channels;
pub use communicator::{Communicator, Tag, f32_bytes, f64_bytes, f64_numbers};
pub use launcher::Launch;
#[cfg(feature = "mpi")]
pub use mpi::Mpi;

/// Whether this build can train over processes.
pub const BUILT: bool = cfg!(feature = "mpi");
