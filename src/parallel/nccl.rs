//! Sums and broadcasts of tensors by NCCL, from GPU to GPU without a way through host memory.
//!
//! NCCL carries tensors and nothing else: it knows no tags, and whoever waits in it cannot give up.
//! So everything else, the running sums of gradients with them, goes the way of the processes'
//! other messages, over MPI or TCP, by which they also learn the id under which they meet in NCCL.

use super::communicator::{Communicator, Tag};
use anyhow::{Context, Result, ensure};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaStorage;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::cuda_backend::cudarc::nccl::safe::{Comm, Id, ReduceOp};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Shape, Tensor, bail};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// A process among those whose GPUs NCCL connects.
pub struct Nccl {
    group: Mutex<Group>,
    messages: Box<dyn Communicator>,
    sent: AtomicU64,
}

/// NCCL's own handle.
struct Group(Comm);

// SAFETY: NCCL allows any one thread at a time to use a handle, and the mutex around it sees to that.
unsafe impl Send for Group {}

impl Nccl {
    /// Connects the GPUs of processes that reach each other by `messages`; all call this together.
    ///
    /// # Errors
    /// If the device is no GPU of NVIDIA's, or NCCL cannot connect them.
    pub fn connect(messages: Box<dyn Communicator>, device: &Device) -> Result<Self> {
        let stream = device.as_cuda_device().context("NCCL connects CUDA devices")?.cuda_stream();
        let (rank, world) = (messages.rank(), messages.world());
        let id = match messages.is_root() {
            true => {
                let id = Id::new().map_err(|error| failed("ncclGetUniqueId", &error))?;
                id.internal().iter().map(|c| *c as u8).collect()
            }
            false => Vec::new(),
        };
        let id = messages.broadcast_any(0, id)?;
        let id = id.first_chunk::<128>().context("NCCL's id has 128 bytes")?;
        let id = Id::uninit(id.map(|byte| byte as std::ffi::c_char));
        let group = Comm::from_rank(stream, rank, world, id)
            .map_err(|error| failed("ncclCommInitRank", &error))?;
        Ok(Self { group: Mutex::new(Group(group)), messages, sent: AtomicU64::new(0) })
    }

    /// What NCCL makes of a tensor.
    fn run(&self, own: &Tensor, what: Collective) -> Result<Tensor> {
        ensure!(own.device().is_cuda(), "NCCL carries tensors of CUDA devices only");
        let (world, bytes) = (self.world() as u64, 4 * own.elem_count() as u64);
        let sent = match what {
            Collective::Sum => 2 * bytes * (world - 1) / world,
            Collective::Broadcast { root } if root == self.rank() => bytes * (world - 1),
            Collective::Broadcast { .. } => 0,
        };
        self.sent.fetch_add(sent, Ordering::Relaxed);
        let group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(own.contiguous()?.apply_op1_no_bwd(&Operation { group: &group.0, what })?)
    }
}

fn failed(
    call: &str,
    error: &candle_core::cuda_backend::cudarc::nccl::result::NcclError,
) -> anyhow::Error {
    anyhow::anyhow!("{call} failed: {error:?}; NCCL_DEBUG=INFO makes it say why")
}

#[derive(Clone, Copy)]
enum Collective {
    Sum,
    Broadcast { root: usize },
}

/// A collective operation as the tensor library calls it.
struct Operation<'a> {
    group: &'a Comm,
    what: Collective,
}

// SAFETY: as for [`Group`]; the operation lives while the mutex is held, and is called by the
// thread that holds it.
unsafe impl Send for Operation<'_> {}
// SAFETY: as above.
unsafe impl Sync for Operation<'_> {}

impl CustomOp1 for Operation<'_> {
    fn name(&self) -> &'static str {
        "nccl"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        bail!("NCCL carries tensors of CUDA devices only")
    }

    fn cuda_fwd(
        &self,
        storage: &CudaStorage,
        layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let device = storage.device().clone();
        let Some((begin, end)) = layout.contiguous_offsets() else {
            bail!("NCCL carries contiguous tensors only")
        };
        let own = storage.as_cuda_slice::<f32>()?.slice(begin..end);
        // SAFETY: NCCL writes every number before anything that comes later on the stream reads it.
        let mut result: CudaSlice<f32> = unsafe { device.alloc::<f32>(end - begin) }?;
        let done = match self.what {
            Collective::Sum => self.group.all_reduce(&own, &mut result, &ReduceOp::Sum),
            Collective::Broadcast { root } => {
                let given = (root == self.group.rank()).then_some(&own);
                self.group.broadcast(given, &mut result, root as i32)
            }
        };
        match done {
            Ok(_) => Ok((CudaStorage::wrap_cuda_slice(result, device), layout.shape().clone())),
            Err(error) => bail!("NCCL failed: {error:?}; NCCL_DEBUG=INFO makes it say why"),
        }
    }
}

impl Communicator for Nccl {
    fn rank(&self) -> usize {
        self.messages.rank()
    }

    fn world(&self) -> usize {
        self.messages.world()
    }

    fn send(&self, to: usize, tag: Tag, bytes: &[u8]) -> Result<()> {
        self.messages.send(to, tag, bytes)
    }

    fn receive(&self, from: usize, tag: Tag, into: &mut [u8]) -> Result<()> {
        self.messages.receive(from, tag, into)
    }

    fn settle(&self) -> Result<()> {
        self.messages.settle()
    }

    /// Of tensors, those that a ring for sums and a star for broadcasts send: what NCCL chooses, it
    /// does not tell.
    fn bytes_sent(&self) -> u64 {
        self.messages.bytes_sent() + self.sent.load(Ordering::Relaxed)
    }

    fn set_patience(&self, patience: Option<Duration>) {
        self.messages.set_patience(patience);
    }

    fn abort(&self, exit_code: u8) -> ! {
        self.messages.abort(exit_code)
    }

    fn sum_tensor(&self, own: &Tensor) -> Result<Tensor> {
        self.run(own, Collective::Sum)
    }

    fn broadcast_tensor(&self, root: usize, own: &Tensor) -> Result<Tensor> {
        self.run(own, Collective::Broadcast { root })
    }
}
