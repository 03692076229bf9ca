//! Memory of this process, where the system tells it, and of its device.

use crate::device;
use candle_core::Device;
use std::collections::BTreeMap;

/// Bytes by kind: `resident` now and `peak` since the start, absent where `/proc` does not exist;
/// `device` and `device_peak` of the tensors on a device with memory of its own.
pub fn measured(device: &Device) -> BTreeMap<&'static str, u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    let on_device = device::memory(device);
    let kinds = [
        ("resident", field("VmRSS:")),
        ("peak", field("VmHWM:")),
        ("device", on_device.map(|memory| memory.used)),
        ("device_peak", on_device.map(|memory| memory.peak)),
    ];
    kinds.into_iter().filter_map(|(kind, bytes)| Some((kind, bytes?))).collect()
}
