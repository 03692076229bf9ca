//! The processes that a launcher started: how this one joins them, and how it leaves.

use crate::error::{Failure, exit_code};
use crate::parallel::{self, Alone, Communicator, Launch, OfRank};
use crate::spec::{DataParallelSpec, ProcessBackend};
use anyhow::Result;

/// The processes of this run.
pub struct Processes {
    communicator: Box<dyn Communicator>,
    launch: Option<Launch>,
}

/// Joins the processes that a launcher started with this one, as a spec says.
///
/// # Errors
/// [`Failure::Usage`] where there are several and this build, or the library it was built with,
/// cannot reach them.
pub fn join(spec: &DataParallelSpec) -> Result<Processes> {
    let launch = Launch::detect().filter(|_| spec.backend != ProcessBackend::None);
    let communicator: Box<dyn Communicator> = match (&launch, spec.backend) {
        (Some(launch), _) => connect(launch)?,
        (None, ProcessBackend::Mpi) if !parallel::BUILT => return Err(not_built("asks for MPI")),
        (None, _) => Box::new(Alone),
    };
    Ok(Processes { communicator, launch })
}

fn not_built(why: &str) -> anyhow::Error {
    Failure::Usage(format!(
        "train.data_parallel: {why}, but this build knows no MPI: build it with `cargo build \
         --release --features mpi` (docs/scaling.md says what that needs), or start one process"
    ))
    .into()
}

#[cfg(not(feature = "mpi"))]
fn connect(launch: &Launch) -> Result<Box<dyn Communicator>> {
    Err(not_built(&format!(
        "{} started {} processes, each of which would train the whole run by itself",
        launch.by, launch.world
    )))
}

#[cfg(feature = "mpi")]
fn connect(launch: &Launch) -> Result<Box<dyn Communicator>> {
    let joined = parallel::Mpi::start()?;
    if joined.world() == launch.world {
        return Ok(Box::new(joined));
    }
    Err(Failure::Usage(format!(
        "train.data_parallel: {} started {} processes, but MPI knows of {}: the launcher is not \
         that of the library this program was built with; use its own mpirun, or `srun \
         --mpi=pmix`, or `train: {{data_parallel: {{backend: none}}}}` for processes that have \
         nothing to do with each other",
        launch.by,
        launch.world,
        joined.world()
    ))
    .into())
}

impl Processes {
    /// What they say to each other.
    pub fn communicator(&self) -> &dyn Communicator {
        self.communicator.as_ref()
    }

    /// Number of this process among those on its machine.
    pub fn local_rank(&self) -> usize {
        self.launch.as_ref().map_or(0, |launch| launch.local_rank)
    }

    /// Processes on this machine.
    pub fn local_world(&self) -> usize {
        self.launch.as_ref().map_or(1, |launch| launch.local_world)
    }

    /// Leaves the others with this result, which is the same for all, or ends all of them.
    ///
    /// Where all know of a failure, rank 0 reports it and the others end in silence.
    ///
    /// # Errors
    /// The error it is given, on rank 0.
    pub fn leave(self, result: Result<()>) -> Result<()> {
        let communicator = self.communicator;
        let error = match result {
            Err(error) if communicator.is_shared() => error,
            result => return result,
        };
        let known = error.downcast_ref::<OfRank>().is_some();
        let of_all = error.chain().any(|cause| {
            matches!(cause.downcast_ref(), Some(Failure::Diverged(_) | Failure::Interrupted(_)))
        });
        if !known && !of_all {
            tracing::error!("rank {} ends all processes: {error:#}", communicator.rank());
            communicator.abort(exit_code(&error));
        }
        if communicator.is_root() { Err(error) } else { Ok(()) }
    }
}
