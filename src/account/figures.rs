//! Numbers as people read them.

/// Digits in groups of three: `12_345`, as counts may be written in a spec.
pub(super) fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits are ASCII"))
        .collect();
    groups.join("_")
}

/// A number with three figures or so and a decimal prefix: `1.23 GFLOP`.
pub(crate) fn scaled(value: u64, unit: &str) -> String {
    const STEPS: [(f64, &str); 6] =
        [(1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    let value = value as f64;
    match STEPS.iter().find(|(step, _)| value >= *step) {
        Some((step, prefix)) => format!("{:.2} {prefix}{unit}", value / step),
        None => format!("{value} {unit}"),
    }
}

/// A size in binary units: `12.3 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    const STEPS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match STEPS.iter().find(|(step, _)| value >= *step) {
        Some((step, unit)) => format!("{:.1} {unit}", value as f64 / *step as f64),
        None => format!("{value} B"),
    }
}
