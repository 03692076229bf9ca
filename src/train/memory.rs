//! Memory of this process, where the system tells it.

use std::collections::BTreeMap;

/// Bytes by kind: `resident` now and `peak` since the start. Empty where `/proc` does not exist.
pub fn measured() -> BTreeMap<&'static str, u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find(|line| line.starts_with(name))?;
        let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kibibytes * 1024)
    };
    [("resident", field("VmRSS:")), ("peak", field("VmHWM:"))].into_iter().filter_map(|(kind, bytes)| Some((kind, bytes?))).collect()
}
