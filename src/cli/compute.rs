//! Threads and devices.

use crate::error::Failure;
use crate::spec::DeviceSpec;
use anyhow::{Context, Result};
use candle_core::Device;
use std::num::NonZeroUsize;

/// Fixes the number of computing threads, before any other thread starts.
pub fn set_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    // SAFETY: called first thing in `main`, while this is the only thread. candle reads this variable, too.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    rayon::ThreadPoolBuilder::new().num_threads(threads.get()).build_global().context("cannot start the computing threads")
}

/// The device a spec asks for.
///
/// # Errors
/// If this build lacks it, or the machine does.
pub fn device(spec: DeviceSpec) -> Result<Device> {
    let usage = |what: &str, feature: &str, error: candle_core::Error| {
        Failure::Usage(format!(
            "device: {what} cannot be used ({error}); build with `cargo build --release --features {feature}` on a machine that has it, or set `device: cpu`"
        ))
    };
    Ok(match spec {
        DeviceSpec::Cpu => Device::Cpu,
        DeviceSpec::Cuda(index) => Device::new_cuda(index).map_err(|error| usage(&format!("cuda:{index}"), "cuda", error))?,
        DeviceSpec::Metal => Device::new_metal(0).map_err(|error| usage("metal", "metal", error))?,
        DeviceSpec::Auto => Device::new_cuda(0).or_else(|_| Device::new_metal(0)).unwrap_or(Device::Cpu),
    })
}
