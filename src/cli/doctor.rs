//! `lrpt doctor`: what this machine offers, and what would slow training down.

use super::{compute, output};
use crate::bench::{DeviceState, Machine, ProductPeak, Simd, product_peak};
use crate::data;
use crate::device::{DeviceInfo, short_name};
use crate::figures::{bytes, operations};
use crate::spec::DeviceSpec;
use anyhow::Result;
use candle_core::DType;

/// Prints what was found and, below, what to do about it; warnings are no failure.
pub fn run() -> Result<()> {
    let machine = Machine::detect();
    let mut warnings = machine.warnings();
    let line = |name: &str, value: String| output::line(format!("{name:<14}{value}"));
    line(
        "lrpt",
        format!(
            "{} ({} build)",
            env!("CARGO_PKG_VERSION"),
            if machine.debug_build { "debug" } else { "release" }
        ),
    )?;
    line("system", format!("{} on {}", std::env::consts::OS, std::env::consts::ARCH))?;
    line(
        "features",
        if machine.features.is_empty() { "none".into() } else { machine.features.join(", ") },
    )?;
    line("threads", format!("{} on {} cores", machine.threads, machine.cores))?;
    line("SIMD", simd(machine.simd).into())?;
    if let Some((all, available)) = machine.memory {
        line("memory", format!("{}, {} available", bytes(all), bytes(available)))?;
    }
    for (name, state) in &machine.devices {
        devices(name, state).into_iter().try_for_each(|text| line(name, text))?;
    }
    let device = compute::device(DeviceSpec::Auto)?;
    let dtypes: &[DType] = if device.is_cpu() { &[DType::F32] } else { &[DType::F32, DType::BF16] };
    for &dtype in dtypes {
        match product_peak(&device, dtype) {
            Ok(ProductPeak { flops_per_second, shape: (rows, inner, columns), dtype }) => {
                let rate = format!("{} FLOP/s", operations(flops_per_second));
                line(
                    "product peak",
                    format!(
                        "{rate} in {dtype} on {} ({rows} x {inner} x {columns})",
                        short_name(&device)
                    ),
                )?;
            }
            Err(error) => warnings.push(format!(
                "no product in {} on {}: {error}",
                dtype.as_str(),
                short_name(&device)
            )),
        }
    }
    match data::crates_at_hand() {
        Ok(crates) => {
            line("corpus", format!("cargo_registry: the sources of all {crates} crates are here"))?
        }
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

fn devices(feature: &str, state: &DeviceState) -> Vec<String> {
    match state {
        DeviceState::Available(found) => {
            let memory = |info: &DeviceInfo| {
                info.memory
                    .map(|m| format!(", {}, {} free", bytes(m.total), bytes(m.free)))
                    .unwrap_or_default()
            };
            found
                .iter()
                .enumerate()
                .map(|(index, info)| format!("{index}: {info}{}", memory(info)))
                .collect()
        }
        DeviceState::NotBuilt => {
            vec![format!("not in this build (`cargo build --release --features {feature}`)")]
        }
        DeviceState::Unusable(_) => vec!["cannot be used".into()],
    }
}
