//! Threads and devices.

use crate::device::{Backend, CUDA, METAL, reason};
use crate::error::Failure;
use crate::parallel::Launch;
use crate::spec::DeviceSpec;
use crate::spec::bounds::MAX_THREADS;
use anyhow::{Context, Result};
use candle_core::Device;
use std::num::NonZeroUsize;

/// Fixes the number of computing threads, before any other thread starts; by default all cores, or
/// this process's share of them where a launcher started several.
pub fn set_threads(threads: Option<NonZeroUsize>) -> Result<()> {
    let threads = match threads {
        Some(threads) => threads,
        None if std::env::var_os("RAYON_NUM_THREADS").is_some() => return check_environment(),
        // Processes on one machine that each took all of it would be in each other's way.
        None => match (Launch::detect(), std::thread::available_parallelism()) {
            (Some(launch), Ok(cores)) => launch.share_of(cores.get()),
            _ => return check_environment(),
        },
    };
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

/// Threads of each of so many processes on this machine: as many as were asked for, else an equal
/// share of all.
pub fn threads_of_each(processes: usize) -> usize {
    match std::env::var_os("RAYON_NUM_THREADS") {
        // Set by `--threads`, too.
        Some(_) => rayon::current_num_threads(),
        None => (rayon::current_num_threads() / processes).max(1),
    }
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
    local_device(spec, 0)
}

/// The device a spec asks for, for the process of this number on its machine: the CUDA device of
/// that number on from the spec's.
///
/// # Errors
/// As [`device`].
pub fn local_device(spec: DeviceSpec, local_rank: usize) -> Result<Device> {
    Ok(match spec {
        DeviceSpec::Cpu => Device::Cpu,
        DeviceSpec::Cuda(index) => {
            let index = index + local_rank;
            opened(&CUDA, index, &format!("cuda:{index}"))?
        }
        DeviceSpec::Metal => opened(&METAL, 0, "metal")?,
        DeviceSpec::Auto => best_device(local_rank),
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
fn best_device(local_rank: usize) -> Device {
    let backends = [(CUDA, local_rank), (METAL, 0)];
    for (backend, index) in backends.into_iter().filter(|(backend, _)| backend.built) {
        match (backend.open)(index) {
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
