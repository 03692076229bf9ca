//! The processes that a launcher started: how this one joins them, and how it leaves.

use crate::error::{Failure, exit_code};
use crate::parallel::{self, Alone, Communicator, Launch, Meeting, OfRank, Tcp};
use crate::spec::{DataParallelSpec, ProcessBackend};
use anyhow::{Context, Result};
use candle_core::Device;
use std::time::Duration;

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
        (Some(launch), _) => connect(launch, spec)?,
        (None, ProcessBackend::Mpi) if !parallel::HAS_MPI => {
            return Err(not_built("asks for MPI", "mpi"));
        }
        (None, ProcessBackend::Nccl) if !parallel::HAS_NCCL => {
            return Err(not_built("asks for NCCL", "cuda,nccl"));
        }
        (None, _) => Box::new(Alone),
    };
    Ok(Processes { communicator, launch })
}

fn not_built(why: &str, features: &str) -> anyhow::Error {
    Failure::Usage(format!(
        "train.data_parallel: {why}, which this build does not know: build it with `cargo build \
         --release --features {features}` (docs/scaling.md says what that needs), or start one \
         process, or several with --processes or a launcher that sets MASTER_ADDR, MASTER_PORT, RANK \
         and WORLD_SIZE"
    ))
    .into()
}

fn connect(launch: &Launch, spec: &DataParallelSpec) -> Result<Box<dyn Communicator>> {
    let by_tcp = match spec.backend {
        ProcessBackend::Tcp => true,
        ProcessBackend::Mpi => false,
        // Under srun, an address is enough where there is no MPI.
        _ => launch.is_by_address() || (!parallel::HAS_MPI && launch.address.is_some()),
    };
    if !by_tcp {
        return connect_by_mpi(launch);
    }
    let Some(address) = launch.address.clone() else {
        return Err(Failure::Usage(format!(
            "train.data_parallel.backend: tcp needs to know where rank 0 listens, but {} does not \
             say it: set MASTER_ADDR to its machine and MASTER_PORT to a free port there",
            launch.by
        ))
        .into());
    };
    let meeting = Meeting { address, rank: launch.rank, world: launch.world };
    let joined = Tcp::connect(&meeting, Duration::from_secs(spec.timeout_seconds));
    Ok(Box::new(joined.context("train.data_parallel: the processes do not meet")?))
}

#[cfg(not(feature = "mpi"))]
fn connect_by_mpi(launch: &Launch) -> Result<Box<dyn Communicator>> {
    let why = format!(
        "{} started {} processes, each of which would train the whole run by itself; they need MPI",
        launch.by, launch.world
    );
    Err(not_built(&why, "mpi"))
}

#[cfg(feature = "mpi")]
fn connect_by_mpi(launch: &Launch) -> Result<Box<dyn Communicator>> {
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
    /// Lets them exchange tensors from GPU to GPU, where they compute on GPUs and this build can.
    ///
    /// # Errors
    /// [`Failure::Usage`] where the spec asks for it and it cannot be; or if NCCL fails.
    pub fn connect_devices(&mut self, device: &Device, backend: ProcessBackend) -> Result<()> {
        let asked = backend == ProcessBackend::Nccl;
        if asked && !device.is_cuda() {
            return Err(Failure::Usage(
                "train.data_parallel.backend: nccl connects GPUs of NVIDIA's, and this run \
                 computes elsewhere; set `device: cuda`, or another backend"
                    .to_owned(),
            )
            .into());
        }
        if asked && !parallel::HAS_NCCL {
            return Err(not_built("asks for NCCL", "cuda,nccl"));
        }
        #[cfg(feature = "nccl")]
        if self.communicator.is_shared() && device.is_cuda() {
            let messages = std::mem::replace(&mut self.communicator, Box::new(Alone));
            self.communicator = Box::new(parallel::Nccl::connect(messages, device)?);
        }
        Ok(())
    }

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
