//! What a computing device says about itself: its name, what it can do, and its memory.

use candle_core::Device;
use std::fmt;

/// A device's own account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Name as its driver has it.
    pub name: String,
    /// CUDA's compute capability, major and minor; none elsewhere.
    pub compute_capability: Option<(i32, i32)>,
    /// Its memory, where the driver tells.
    pub memory: Option<DeviceMemory>,
}

/// Memory of a device beside the CPU, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// All there is.
    pub total: u64,
    /// Not taken by anyone.
    pub free: u64,
    /// Taken by this process's tensors now.
    pub used: u64,
    /// The most its tensors have taken at once.
    pub peak: u64,
}

/// A kind of device beside the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// As specs call it, and the Cargo feature that builds it in.
    pub name: &'static str,
    /// Whether this build has it.
    pub built: bool,
    /// Opens its device of this index.
    pub open: fn(usize) -> candle_core::Result<Device>,
}

/// NVIDIA's GPUs.
pub const CUDA: Backend = Backend { name: "cuda", built: cfg!(feature = "cuda"), open: open_cuda };
/// Apple's GPUs.
pub const METAL: Backend =
    Backend { name: "metal", built: cfg!(feature = "metal"), open: Device::new_metal };

fn open_cuda(index: usize) -> candle_core::Result<Device> {
    let device = Device::new_cuda(index)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = &device {
        // SAFETY: everything here runs on the one stream of the device, in order, so no tensor needs
        // events that tell other streams when it is free. Two for every tensor would cost as much
        // as a launch.
        unsafe { cuda.disable_event_tracking() };
    }
    Ok(device)
}

/// What a device says about itself; the CPU says nothing.
///
/// # Errors
/// If the driver does not answer.
pub fn describe(device: &Device) -> candle_core::Result<Option<DeviceInfo>> {
    match device {
        Device::Cpu => Ok(None),
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => of_cuda::describe(cuda).map(Some),
        other => {
            Ok(Some(DeviceInfo { name: short_name(other), compute_capability: None, memory: None }))
        }
    }
}

/// Memory of a device that has its own, where the driver tells.
pub fn memory(device: &Device) -> Option<DeviceMemory> {
    describe(device).ok().flatten().and_then(|info| info.memory)
}

/// CUDA devices that the driver counts; 0 without CUDA in this build or on this machine.
pub fn cuda_count() -> usize {
    #[cfg(feature = "cuda")]
    let count = candle_core::cuda_backend::cudarc::driver::CudaContext::device_count().unwrap_or(0);
    #[cfg(not(feature = "cuda"))]
    let count = 0;
    usize::try_from(count).unwrap_or(0)
}

/// Why a device cannot be used, in one line: candle appends a backtrace where `RUST_BACKTRACE` is
/// set.
pub fn reason(error: &candle_core::Error) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// `cpu`, `cuda:0`, `metal:0`.
pub fn short_name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cpu => "cpu".into(),
        candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
        candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match self.compute_capability {
            Some((major, minor)) => write!(f, ", compute capability {major}.{minor}"),
            None => Ok(()),
        }
    }
}

#[cfg(feature = "cuda")]
mod of_cuda {
    use super::{DeviceInfo, DeviceMemory};
    use candle_core::cuda_backend::cudarc::driver::{CudaContext, result, sys};
    use candle_core::{CudaDevice, Error, Result};

    pub fn describe(device: &CudaDevice) -> Result<DeviceInfo> {
        let stream = device.cuda_stream();
        let context = stream.context();
        let told = |what: &str, error: &dyn std::fmt::Display| {
            Error::Msg(format!("the CUDA driver does not tell {what}: {error}"))
        };
        let (free, total) = context.mem_get_info().map_err(|error| told("its memory", &error))?;
        let in_pool = |attribute| in_pool(context, attribute);
        let used = in_pool(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT);
        let peak = in_pool(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
        let taken = (total - free) as u64;
        Ok(DeviceInfo {
            name: context.name().map_err(|error| told("the device's name", &error))?,
            compute_capability: Some(
                context
                    .compute_capability()
                    .map_err(|error| told("the compute capability", &error))?,
            ),
            memory: Some(DeviceMemory {
                total: total as u64,
                free: free as u64,
                used: used.unwrap_or(taken),
                peak: peak.unwrap_or(taken),
            }),
        })
    }

    /// An attribute of the pool that candle's tensors are allocated from, in bytes; none where the
    /// driver has no pools.
    fn in_pool(context: &CudaContext, attribute: sys::CUmemPool_attribute) -> Option<u64> {
        context.bind_to_thread().ok()?;
        let mut bytes = 0u64;
        // SAFETY: the device handle comes from the context, and the attribute's value is a u64, as
        // both used here are.
        unsafe {
            let pool = result::device::get_default_mem_pool(context.cu_device()).ok()?;
            result::mem_pool::get_attribute(pool, attribute, (&raw mut bytes).cast()).ok()?;
        }
        Some(bytes)
    }
}
