//! Threads and devices.

use crate::device::reason;
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
    let usage = |what: &str, feature: &str, built: bool, error: candle_core::Error| {
        let reason = reason(&error);
        let remedy = if built {
            "`lrpt doctor` says what this machine has; check the driver".to_owned()
        } else {
            format!("build with `cargo build --release --features {feature}` on a machine that has it")
        };
        Failure::Usage(format!("device: {what} cannot be used ({reason}); {remedy}, or set `device: cpu`"))
    };
    Ok(match spec {
        DeviceSpec::Cpu => Device::Cpu,
        DeviceSpec::Cuda(index) => {
            Device::new_cuda(index).map_err(|error| usage(&format!("cuda:{index}"), "cuda", cfg!(feature = "cuda"), error))?
        }
        DeviceSpec::Metal => Device::new_metal(0).map_err(|error| usage("metal", "metal", cfg!(feature = "metal"), error))?,
        DeviceSpec::Auto => best_device(),
    })
}

/// CUDA, then Metal, then the CPU; a device that this build is made for and the machine does not give is not passed over silently.
fn best_device() -> Device {
    type Open = fn(usize) -> candle_core::Result<Device>;
    let candidates: [(&str, bool, Open); 2] =
        [("cuda", cfg!(feature = "cuda"), Device::new_cuda), ("metal", cfg!(feature = "metal"), Device::new_metal)];
    for (name, built, open) in candidates {
        match open(0) {
            Ok(device) => return device,
            Err(error) if built => {
                let reason = reason(&error);
                tracing::warn!("device: {name} is built in but cannot be used ({reason}), so this runs on the CPU; see `lrpt doctor`");
            }
            Err(_) => {}
        }
    }
    Device::Cpu
}
