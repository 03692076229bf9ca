//! `lrpt doctor`: what this machine offers, and what would slow training down.

use super::{compute, output};
use crate::bench::{DeviceState, Machine, Simd, product_peak};
use crate::data;
use crate::model::account::{bytes, scaled};
use crate::spec::DeviceSpec;
use anyhow::Result;

/// Prints what was found and, below, what to do about it; warnings are no failure.
pub fn run() -> Result<()> {
    let machine = Machine::detect();
    let mut warnings = machine.warnings();
    let line = |name: &str, value: String| output::line(format!("{name:<14}{value}"));
    line("lrpt", format!("{} ({} build)", env!("CARGO_PKG_VERSION"), if machine.debug_build { "debug" } else { "release" }))?;
    line("system", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH))?;
    line("features", if machine.features.is_empty() { "none".into() } else { machine.features.join(", ") })?;
    line("threads", format!("{} on {} cores", machine.threads, machine.cores))?;
    line("SIMD", simd(machine.simd).into())?;
    if let Some((all, available)) = machine.memory {
        line("memory", format!("{}, {} available", bytes(all), bytes(available)))?;
    }
    for (name, state) in &machine.devices {
        line(name, device(name, state))?;
    }
    let device = compute::device(DeviceSpec::Auto)?;
    let peak = product_peak(&device)?;
    let (rows, inner, columns) = peak.shape;
    let place = format!("{:?}", device.location()).to_lowercase();
    line("product peak", format!("{} in f32 on {place} ({rows} x {inner} x {columns})", scaled(peak.flops_per_second as u64, "FLOP/s")))?;
    match data::crates_at_hand() {
        Ok(crates) => line("corpus", format!("cargo_registry: the sources of all {crates} crates are here"))?,
        Err(error) => {
            line("corpus", "cargo_registry: not available".into())?;
            warnings.push(format!("{error:#}"));
        }
    }
    warnings.iter().try_for_each(|warning| line("warning", warning.clone()))
}

fn simd(level: Simd) -> &'static str {
    match level {
        Simd::Avx512 => "AVX-512",
        Simd::Avx2 => "AVX2 and FMA",
        Simd::Sse2 => "SSE2",
        Simd::Neon => "NEON",
        Simd::Unknown => "unknown",
    }
}

fn device(feature: &str, state: &DeviceState) -> String {
    match state {
        DeviceState::Available => "available".into(),
        DeviceState::NotBuilt => format!("not in this build (`cargo build --release --features {feature}`)"),
        DeviceState::Unusable(_) => "cannot be used".into(),
    }
}
