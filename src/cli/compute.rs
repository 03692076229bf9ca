//! Threads and devices.

use crate::device::{Backend, CUDA, METAL, reason};
use crate::error::Failure;
use crate::spec::DeviceSpec;
use crate::spec::bounds::MAX_THREADS;
use anyhow::{Context, Result};
use candle_core::Device;
use std::num::NonZeroUsize;

/// Fixes the number of computing threads, before any other thread starts.
pub fn set_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let Some(threads) = threads else { return check_environment() };
    if threads.get() > MAX_THREADS {
        return Err(too_many_threads("--threads", threads.get()));
    }
    // SAFETY: called first thing in `main`, while this is the only thread. candle reads this
    // variable, too.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads.to_string()) };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.get())
        .build_global()
        .context("cannot start the computing threads")
}

/// The computing threads start by this variable where no number is given.
fn check_environment() -> Result<()> {
    let given = std::env::var("RAYON_NUM_THREADS").ok().and_then(|text| text.parse().ok());
    match given {
        Some(threads) if threads > MAX_THREADS => {
            Err(too_many_threads("RAYON_NUM_THREADS", threads))
        }
        _ => Ok(()),
    }
}

fn too_many_threads(place: &str, threads: usize) -> anyhow::Error {
    Failure::Usage(format!("{place}: is {threads}; set at most {MAX_THREADS}")).into()
}

/// The device a spec asks for.
///
/// # Errors
/// If this build lacks it, or the machine does.
pub fn device(spec: DeviceSpec) -> Result<Device> {
    Ok(match spec {
        DeviceSpec::Cpu => Device::Cpu,
        DeviceSpec::Cuda(index) => opened(&CUDA, index, &format!("cuda:{index}"))?,
        DeviceSpec::Metal => opened(&METAL, 0, "metal")?,
        DeviceSpec::Auto => best_device(),
    })
}

/// A device by the name the user gave it.
fn opened(backend: &Backend, index: usize, name: &str) -> Result<Device> {
    (backend.open)(index).map_err(|error| {
        let remedy = if backend.built {
            "`lrpt doctor` says what this machine has; check the driver".to_owned()
        } else {
            format!(
                "build with `cargo build --release --features {}` on a machine that has it",
                backend.name
            )
        };
        let reason = reason(&error);
        Failure::Usage(format!(
            "device: {name} cannot be used ({reason}); {remedy}, or set `device: cpu`"
        ))
        .into()
    })
}

/// CUDA, then Metal, then the CPU; a device that this build is made for and the machine does not
/// give is not passed over silently.
fn best_device() -> Device {
    for backend in [CUDA, METAL].into_iter().filter(|backend| backend.built) {
        match (backend.open)(0) {
            Ok(device) => return device,
            Err(error) => {
                let (name, reason) = (backend.name, reason(&error));
                tracing::warn!(
                    "device: {name} is built in but cannot be used ({reason}) and is passed over; \
                     see `lrpt doctor`"
                );
            }
        }
    }
    Device::Cpu
}
