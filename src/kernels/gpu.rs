//! Kernels for NVIDIA GPUs: one pass over the numbers where candle's operations make many.
//!
//! They are written in CUDA (`gpu/*.cu`), compiled by `nvcc` when lrpt is built with the feature
//! `cuda`, and launched on the stream of candle's device, in order with its own. What they take is
//! tensors without gaps; what they give is new tensors. In a build without the feature no tensor is
//! on such a device, and [`Gpu::of`] finds none.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

/// Threads of a block where every thread, or every warp of 32, has its own work.
const THREADS: u32 = 256;

/// Compiled kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Module {
    /// Operations of training.
    Operations,
    /// Factorisations.
    Cholesky,
}

/// An argument of a kernel.
#[derive(Clone, Copy)]
pub enum Argument<'a> {
    /// The place of a tensor's first number.
    Of(&'a Tensor),
    /// The same, or no place.
    Maybe(Option<&'a Tensor>),
    /// `uint32_t`.
    Count(usize),
    /// `size_t`.
    Long(usize),
    /// `float`.
    Single(f64),
    /// `double`.
    Double(f64),
}

/// Blocks of a launch and their threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks, in two dimensions.
    pub blocks: (usize, usize),
    /// Threads of each, a multiple of 32.
    pub threads: u32,
}

impl Grid {
    /// A thread for each of these.
    pub fn of_threads(count: usize) -> Self {
        Self { blocks: (count.div_ceil(THREADS as usize), 1), threads: THREADS }
    }

    /// A warp of 32 threads for each of these.
    pub fn of_warps(count: usize) -> Self {
        let blocks = (count.div_ceil(THREADS as usize / 32), 1);
        Self { blocks, threads: THREADS }
    }

    /// A block of this many threads for each of these.
    pub fn of_blocks(count: usize, threads: u32) -> Self {
        Self { blocks: (count, 1), threads }
    }

    /// A thread for each column of each part.
    pub fn of_columns(columns: usize, parts: usize) -> Self {
        Self { blocks: (columns.div_ceil(THREADS as usize), parts), ..Self::of_threads(0) }
    }
}

/// The device that a tensor is on, where it has kernels for it.
#[derive(Clone, Copy, Debug)]
pub struct Gpu<'a> {
    device: &'a Device,
}

impl<'a> Gpu<'a> {
    /// The device of this tensor, if it is an NVIDIA GPU and the tensor is of f32 or bf16.
    pub fn of(x: &'a Tensor) -> Option<Self> {
        let has_kernels = matches!(x.dtype(), DType::F32 | DType::BF16);
        (x.device().is_cuda() && has_kernels).then(|| Self { device: x.device() })
    }

    /// A tensor for a kernel to fill, which must write every number.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn output(self, shape: impl Into<Shape>, dtype: DType) -> Result<Tensor> {
        // SAFETY: floating-point numbers have no invalid bits, and a kernel writes all of them
        // before anything reads them: both are in the order of one stream.
        unsafe { Tensor::empty(shape, dtype, self.device) }
    }

    /// Launches a kernel of this name. It runs after what was launched before; nothing waits for it.
    ///
    /// # Errors
    /// If a tensor has gaps, there is no such kernel, or the device fails.
    pub fn launch(
        self,
        module: Module,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument],
    ) -> Result<()> {
        for argument in arguments {
            if let Argument::Of(x) | Argument::Maybe(Some(x)) = argument
                && !x.is_contiguous()
            {
                bail!("{kernel}: a tensor of {:?} with gaps", x.dims())
            }
        }
        if grid.blocks.0 * grid.blocks.1 == 0 {
            return Ok(());
        }
        launch(self.device, module, kernel, grid, arguments)
    }
}

/// `NAME_f32` or `NAME_bf16`, by the type of a tensor; with `_4` where rows of `width` numbers of all
/// these tensors can be taken four at a time.
pub fn kernel_name(name: &str, of: &Tensor, width: usize, tensors: &[&Tensor]) -> String {
    let by_four = width.is_multiple_of(4)
        && tensors.iter().all(|x| x.layout().start_offset().is_multiple_of(4));
    format!("{name}_{}{}", of.dtype().as_str(), if by_four { "_4" } else { "" })
}

#[cfg(feature = "cuda")]
mod compiled {
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

#[cfg(feature = "cuda")]
fn launch(
    device: &Device,
    module: Module,
    kernel: &str,
    grid: Grid,
    arguments: &[Argument],
) -> Result<()> {
    use candle_core::Storage;
    use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
    use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};

    enum Word {
        Place(u64),
        Count(u32),
        Long(usize),
        Single(f32),
        Double(f64),
    }

    let cuda = device.as_cuda_device()?;
    let stream = cuda.cuda_stream();
    let tensors: Vec<_> = arguments
        .iter()
        .filter_map(|argument| match argument {
            Argument::Of(x) | Argument::Maybe(Some(x)) => Some(x.storage_and_layout()),
            _ => None,
        })
        .collect();
    // The guards say to other streams when these tensors are free.
    let mut guards = Vec::with_capacity(tensors.len());
    let mut places = Vec::with_capacity(tensors.len());
    for (storage, layout) in &tensors {
        let Storage::Cuda(storage) = &**storage else {
            bail!("{kernel}: a tensor that is not on {:?}", device.location())
        };
        let ((place, guard), bytes) = match &storage.slice {
            CudaStorageSlice::U32(slice) => (slice.device_ptr(&stream), 4),
            CudaStorageSlice::BF16(slice) => (slice.device_ptr(&stream), 2),
            CudaStorageSlice::F32(slice) => (slice.device_ptr(&stream), 4),
            CudaStorageSlice::F64(slice) => (slice.device_ptr(&stream), 8),
            _ => bail!("{kernel}: no kernel takes numbers of this type"),
        };
        guards.push(guard);
        places.push(place + (layout.start_offset() * bytes) as u64);
    }
    let mut places = places.into_iter();
    let mut next = || places.next().unwrap_or(0);
    let count = |number: usize| match u32::try_from(number) {
        Ok(number) => Ok(Word::Count(number)),
        Err(_) => bail!("{kernel}: {number} is more than a kernel counts"),
    };
    let words: Vec<Word> = arguments
        .iter()
        .map(|argument| {
            Ok(match *argument {
                Argument::Of(_) | Argument::Maybe(Some(_)) => Word::Place(next()),
                Argument::Maybe(None) => Word::Place(0),
                Argument::Count(number) => count(number)?,
                Argument::Long(number) => Word::Long(number),
                Argument::Single(number) => Word::Single(number as f32),
                Argument::Double(number) => Word::Double(number),
            })
        })
        .collect::<Result<_>>()?;
    let (name, code) = match module {
        Module::Operations => ("lrpt operations", compiled::OPERATIONS),
        Module::Cholesky => ("lrpt cholesky", compiled::CHOLESKY),
    };
    let function = cuda.get_or_load_custom_func(kernel, name, code)?;
    let mut builder = function.builder();
    for word in &words {
        match word {
            Word::Place(x) => builder.arg(x),
            Word::Count(x) => builder.arg(x),
            Word::Long(x) => builder.arg(x),
            Word::Single(x) => builder.arg(x),
            Word::Double(x) => builder.arg(x),
        };
    }
    let (Ok(x), Ok(y)) = (u32::try_from(grid.blocks.0), u32::try_from(grid.blocks.1)) else {
        bail!("{kernel}: {:?} blocks are more than a launch has", grid.blocks)
    };
    let config =
        LaunchConfig { grid_dim: (x, y, 1), block_dim: (grid.threads, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the callers' arguments are those of the kernel, and each kernel stays within the
    // numbers that its sizes say.
    unsafe { builder.launch(config) }.w()?;
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn launch(_: &Device, _: Module, kernel: &str, _: Grid, _: &[Argument]) -> Result<()> {
    bail!("{kernel}: this build has no kernels for GPUs")
}
