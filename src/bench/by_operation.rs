//! Where the time of the forward and backward passes goes, operation by operation.

use crate::figures::{bytes, operations};
use crate::ops::profile::Profile;
use serde::Serialize;
use std::fmt;

/// The operations of the forward and backward passes of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationTable {
    /// One row for each kind of operation, shape and pass; the longest first.
    pub rows: Vec<OperationRow>,
    /// Seconds of forward and backward passes that lie in none of them.
    pub rest_seconds: f64,
    /// Seconds of both passes.
    pub seconds: f64,
    /// Counted operations of both passes.
    pub flops: u64,
}

/// One kind of operation, in a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationRow {
    /// Its name; of a product how its factors lie: `a b`, `a bᵀ`, `aᵀ b`.
    pub name: &'static str,
    /// `forward` or `backward`. The head computes its gradients in the forward pass.
    pub pass: &'static str,
    /// Its sizes: rows, inner dimension and columns of a product; sequences times heads, tokens and
    /// width of attention; rows and width of the others.
    pub shape: Vec<usize>,
    /// How often it runs.
    pub calls: f64,
    /// Seconds, without those of products within.
    pub seconds: f64,
    /// Bytes of its inputs and outputs, each once.
    pub bytes: f64,
    /// Floating-point operations of its products, a multiply-add counted as two; of attention
    /// without what is masked or computed again. 0 for passes over numbers.
    pub flops: u64,
    /// Bytes per second.
    pub bytes_per_second: f64,
    /// Operations per second.
    pub flops_per_second: f64,
    /// The same divided by the product peak.
    pub share_of_product_peak: f64,
}

impl OperationTable {
    /// The operations of this many steps, whose forward and backward passes took this many seconds
    /// each.
    pub fn new(profile: &Profile, steps: u64, seconds: f64, flops_per_second: f64) -> Self {
        let each = 1.0 / steps.max(1) as f64;
        let mut rows: Vec<OperationRow> = profile
            .iter()
            .map(|(operation, totals)| {
                let flops = totals.cost.operations / steps.max(1);
                let (took, moved) = (totals.seconds * each, totals.cost.bytes as f64 * each);
                let rate = |value: f64| value / took.max(f64::MIN_POSITIVE);
                OperationRow {
                    name: operation.name,
                    pass: if operation.is_backward { "backward" } else { "forward" },
                    shape: operation.shape.into_iter().filter(|size| *size > 0).collect(),
                    calls: totals.calls as f64 * each,
                    seconds: took,
                    bytes: moved,
                    flops,
                    bytes_per_second: rate(moved),
                    flops_per_second: rate(flops as f64),
                    share_of_product_peak: rate(flops as f64) / flops_per_second,
                }
            })
            .collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let in_rows: f64 = rows.iter().map(|row| row.seconds).sum();
        let flops = rows.iter().map(|row| row.flops).sum();
        Self { rows, rest_seconds: seconds - in_rows, seconds, flops }
    }
}

impl fmt::Display for OperationTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "forward and backward by operation (a product: rows x inner x columns)")?;
        writeln!(
            f,
            "  {:<16}{:<9}{:<20}{:>6}{:>10}{:>8}{:>11}{:>10}{:>12}{:>9}",
            "operation",
            "pass",
            "shape",
            "calls",
            "seconds",
            "share",
            "bytes",
            "per s",
            "op/s",
            "of peak"
        )?;
        for row in &self.rows {
            let shape: Vec<String> = row.shape.iter().map(usize::to_string).collect();
            write!(
                f,
                "  {:<16}{:<9}{:<20}{:>6}{:>10.4}{:>7.1}%{:>11}{:>10}",
                row.name,
                row.pass,
                shape.join(" x "),
                row.calls,
                row.seconds,
                100.0 * row.seconds / self.seconds,
                bytes(row.bytes as u64),
                bytes(row.bytes_per_second as u64),
            )?;
            match row.flops {
                0 => writeln!(f)?,
                _ => writeln!(
                    f,
                    "{:>12}{:>9.3}",
                    operations(row.flops_per_second),
                    row.share_of_product_peak
                )?,
            }
        }
        let share = |seconds: f64| 100.0 * seconds / self.seconds;
        let mut line = |name: &str, seconds: f64| {
            writeln!(f, "  {name:<51}{seconds:>10.4}{:>7.1}%", share(seconds))
        };
        line("rest", self.rest_seconds)?;
        line("in all", self.seconds)?;
        write!(f, "  {} counted a step", operations(self.flops as f64))
    }
}
