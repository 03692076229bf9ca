//! What this machine and this build offer to training, and what would slow it down.

use crate::device::{self, Backend, CUDA, DeviceInfo, METAL};
use std::path::Path;
use std::thread::available_parallelism;

/// What was found.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Cargo features of this build that matter.
    pub features: Vec<&'static str>,
    /// Whether this is an unoptimised build.
    pub debug_build: bool,
    /// Cores this process may use.
    pub cores: usize,
    /// Computing threads.
    pub threads: usize,
    /// Vector instructions found at run time.
    pub simd: Simd,
    /// Bytes of memory: total, and available without swapping. Absent where the system does not
    /// report them.
    pub memory: Option<(u64, u64)>,
    /// Devices other than the CPU.
    pub devices: Vec<(&'static str, DeviceState)>,
    /// Whether the system has an NVIDIA driver, even if this build cannot use it.
    pub nvidia_driver: bool,
}

/// The vector instructions that kernels can use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Simd {
    /// x86-64 with AVX-512 (F, BW, CD, DQ, VL).
    Avx512,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 without AVX2.
    Sse2,
    /// 64-bit ARM.
    Neon,
    /// Any other processor.
    Unknown,
}

/// Whether a device can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// These devices respond.
    Available(Vec<DeviceInfo>),
    /// This build has no code for the device.
    NotBuilt,
    /// The build has code for the device, but the machine does not let it be used.
    Unusable(String),
}

impl Machine {
    /// Looks at this machine and this process.
    pub fn detect() -> Self {
        let features = [
            ("datasets", cfg!(feature = "datasets")),
            (CUDA.name, CUDA.built),
            ("cudnn", cfg!(feature = "cudnn")),
            (METAL.name, METAL.built),
            ("accelerate", cfg!(feature = "accelerate")),
            ("mkl", cfg!(feature = "mkl")),
        ];
        let threads = rayon::current_num_threads();
        Self {
            features: features
                .into_iter()
                .filter_map(|(name, built)| built.then_some(name))
                .collect(),
            debug_build: cfg!(debug_assertions),
            cores: available_parallelism().map_or(threads, usize::from),
            threads,
            simd: simd(),
            memory: system_memory(),
            devices: vec![
                (CUDA.name, state(&CUDA, device::cuda_count())),
                (METAL.name, state(&METAL, 1)),
            ],
            nvidia_driver: Path::new("/proc/driver/nvidia/version").exists(),
        }
    }

    /// What would slow training down on this machine, each with its remedy.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.debug_build {
            warnings.push(
                "this is a debug build, tens of times slower; build with `cargo build --release`"
                    .into(),
            );
        }
        if self.threads > self.cores {
            let (threads, cores) = (self.threads, self.cores);
            warnings
                .push(format!("{threads} threads on {cores} cores hinder each other; unset RAYON_NUM_THREADS or give --threads {cores}"));
        }
        if self.simd == Simd::Sse2 {
            warnings.push("this processor has no AVX2: results are right, but products run at a quarter of the usual speed".into());
        }
        for (name, state) in &self.devices {
            match state {
                DeviceState::Unusable(error) => {
                    warnings.push(format!("{name} is built in but cannot be used ({error}); check the driver, or set `device: cpu`"));
                }
                DeviceState::NotBuilt if *name == "cuda" && self.nvidia_driver => warnings.push(
                    "this machine has an NVIDIA driver and this build cannot use it; `cargo build --release --features cuda` (docs/gpu.md)"
                        .into(),
                ),
                DeviceState::Available(found) => warnings.extend(found.iter().filter_map(device_warning)),
                DeviceState::NotBuilt => {}
            }
        }
        warnings
    }
}

/// What slows training down on a device that responds.
fn device_warning(info: &DeviceInfo) -> Option<String> {
    match (info.compute_capability, info.memory) {
        (Some((major, _)), _) if major < 8 => Some(format!(
            "{info} has no bf16 products; `dtype: {{compute: bf16}}` needs compute capability 8.0 (Ampere) or newer"
        )),
        (_, Some(memory)) if memory.free < memory.total / 2 => {
            let name = &info.name;
            Some(format!(
                "more than half of the memory of {name} is taken; see `nvidia-smi` for the processes that hold it"
            ))
        }
        _ => None,
    }
}

fn state(backend: &Backend, count: usize) -> DeviceState {
    if !backend.built {
        return DeviceState::NotBuilt;
    }
    let answer = |index| (backend.open)(index).and_then(|opened| device::describe(&opened));
    // Also when the driver counts no device, so that it says why.
    match (0..count.max(1)).map(answer).collect::<candle_core::Result<Vec<_>>>() {
        Ok(found) => DeviceState::Available(found.into_iter().flatten().collect()),
        Err(error) => DeviceState::Unusable(device::reason(&error)),
    }
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Simd {
    use std::arch::is_x86_feature_detected as has;
    let avx512 = has!("avx512f")
        && has!("avx512bw")
        && has!("avx512cd")
        && has!("avx512dq")
        && has!("avx512vl");
    match has!("avx2") && has!("fma") {
        true if avx512 => Simd::Avx512,
        true => Simd::Avx2,
        false => Simd::Sse2,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Simd {
    if cfg!(target_arch = "aarch64") { Simd::Neon } else { Simd::Unknown }
}

/// Bytes of memory that this process can still take: what the system has available, or less where
/// a control group limits it. None where the system does not tell.
pub fn available_memory() -> Option<u64> {
    let (_, available) = system_memory()?;
    let number = |file: &str| -> Option<u64> {
        let text = std::fs::read_to_string(Path::new("/sys/fs/cgroup").join(file)).ok()?;
        text.trim().parse().ok()
    };
    let limit =
        number("memory.max").map(|most| most.saturating_sub(number("memory.current").unwrap_or(0)));
    Some(limit.map_or(available, |limit| limit.min(available)))
}

/// `MemTotal` and `MemAvailable` of Linux, in bytes.
fn system_memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    };
    Some((field("MemTotal:")?, field("MemAvailable:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Machine {
        Machine {
            features: vec![],
            debug_build: false,
            cores: 4,
            threads: 4,
            simd: Simd::Avx2,
            memory: None,
            devices: vec![("cuda", DeviceState::NotBuilt)],
            nvidia_driver: false,
        }
    }

    fn with_gpu(compute_capability: (i32, i32), free: u64) -> Machine {
        let memory = Some(crate::device::DeviceMemory { total: 10, free, used: 0, peak: 0 });
        let info =
            DeviceInfo { name: "GPU".into(), compute_capability: Some(compute_capability), memory };
        Machine { devices: vec![("cuda", DeviceState::Available(vec![info]))], ..sound() }
    }

    #[test]
    fn a_sound_gpu_gives_no_warning() {
        assert!(with_gpu((9, 0), 9).warnings().is_empty());
    }

    #[test]
    fn each_hindrance_has_its_warning() {
        assert!(sound().warnings().is_empty());
        let hindered = [
            (Machine { debug_build: true, ..sound() }, "--release"),
            (Machine { threads: 8, ..sound() }, "--threads 4"),
            (Machine { simd: Simd::Sse2, ..sound() }, "AVX2"),
            (
                Machine {
                    devices: vec![("cuda", DeviceState::Unusable("no driver".into()))],
                    ..sound()
                },
                "no driver",
            ),
            (Machine { nvidia_driver: true, ..sound() }, "--features cuda"),
            (with_gpu((7, 5), 10), "bf16"),
            (with_gpu((9, 0), 4), "nvidia-smi"),
        ];
        for (machine, remedy) in hindered {
            let warnings = machine.warnings();
            assert!(warnings.len() == 1 && warnings[0].contains(remedy), "{warnings:?}");
        }
    }

    #[test]
    fn this_machine_has_cores_and_its_build_no_unbuilt_device() {
        let machine = Machine::detect();
        assert!(machine.cores > 0 && machine.threads > 0);
        for (name, state) in &machine.devices {
            assert_eq!(*state == DeviceState::NotBuilt, !machine.features.contains(name), "{name}");
        }
        if cfg!(target_os = "linux") {
            let (all, available) = machine.memory.unwrap();
            assert!(0 < available && available <= all);
        }
    }
}
