//! Where the time of the forward and backward passes goes, operation by operation.

use super::alone::{Alone, ProductsAlone};
use super::report::SecondsPerStep;
use crate::figures::{bytes, operations};
use crate::ops::profile::{Operation, Profile, Totals};
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
    /// The products together, within the step and alone.
    pub products: ProductsAlone,
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
    /// Operations per second of the same product alone: of this shape, by the same kernels and
    /// threads, again and again with factors of its own, the median of its calls. `null` of what is
    /// no product.
    pub alone_flops_per_second: Option<f64>,
    /// The same divided by the product peak.
    pub alone_share_of_product_peak: Option<f64>,
}

impl OperationTable {
    /// The operations of this many steps of mean times `seconds`, beside the product peak and what
    /// their products take alone.
    pub(super) fn new(
        profile: &Profile,
        steps: u64,
        seconds: &SecondsPerStep,
        product_peak: f64,
        alone: &Alone,
    ) -> Self {
        let each = 1.0 / steps.max(1) as f64;
        let mut products = ProductsAlone {
            flops: 0,
            seconds: 0.0,
            alone_seconds: 0.0,
            step_seconds: seconds.mean,
            step_seconds_at_rates_alone: seconds.mean,
        };
        let mut row = |operation: &Operation, totals: &Totals| {
            let flops = totals.cost.operations / steps.max(1);
            let calls = totals.calls as f64 * each;
            let (took, moved) = (totals.seconds * each, totals.cost.bytes as f64 * each);
            let per = |value: f64, seconds: f64| value / seconds.max(f64::MIN_POSITIVE);
            let alone = alone.seconds(operation).map(|seconds| calls * seconds);
            if let Some(alone) = alone {
                products.flops += flops;
                products.seconds += took;
                products.alone_seconds += alone;
                products.step_seconds_at_rates_alone += alone - took;
            }
            let alone_rate = alone.map(|seconds| per(flops as f64, seconds));
            OperationRow {
                name: operation.name,
                pass: if operation.is_backward { "backward" } else { "forward" },
                shape: operation.shape.into_iter().filter(|size| *size > 0).collect(),
                calls,
                seconds: took,
                bytes: moved,
                flops,
                bytes_per_second: per(moved, took),
                flops_per_second: per(flops as f64, took),
                share_of_product_peak: per(flops as f64, took) / product_peak,
                alone_flops_per_second: alone_rate,
                alone_share_of_product_peak: alone_rate.map(|rate| rate / product_peak),
            }
        };
        let mut rows: Vec<OperationRow> =
            profile.iter().map(|(operation, totals)| row(operation, totals)).collect();
        rows.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let in_rows: f64 = rows.iter().map(|row| row.seconds).sum();
        let flops = rows.iter().map(|row| row.flops).sum();
        let seconds = seconds.forward + seconds.backward;
        Self { rows, rest_seconds: seconds - in_rows, seconds, flops, products }
    }
}

impl fmt::Display for OperationTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "forward and backward by operation (a product: rows x inner x columns; alone: its share of \
             the peak outside the step)"
        )?;
        writeln!(
            f,
            "  {:<16}{:<9}{:<20}{:>6}{:>10}{:>8}{:>11}{:>10}{:>12}{:>9}{:>8}",
            "operation",
            "pass",
            "shape",
            "calls",
            "seconds",
            "share",
            "bytes",
            "per s",
            "op/s",
            "of peak",
            "alone"
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
                0 => {}
                _ => write!(
                    f,
                    "{:>12}{:>9.3}",
                    operations(row.flops_per_second),
                    row.share_of_product_peak
                )?,
            }
            match row.alone_share_of_product_peak {
                None => writeln!(f)?,
                Some(share) => writeln!(f, "{share:>8.3}")?,
            }
        }
        let share = |seconds: f64| 100.0 * seconds / self.seconds;
        let mut line = |name: &str, seconds: f64| {
            writeln!(f, "  {name:<51}{seconds:>10.4}{:>7.1}%", share(seconds))
        };
        line("rest", self.rest_seconds)?;
        line("in all", self.seconds)?;
        writeln!(f, "  {} counted a step", operations(self.flops as f64))?;
        write!(f, "  {}", self.products)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::profile::Cost;

    #[test]
    fn a_step_at_the_rates_of_its_products_alone() {
        let operation = |name, is_backward| Operation { name, is_backward, shape: [10, 20, 30] };
        let totals = |calls: u64, seconds: f64, operations: u64| Totals {
            calls,
            seconds,
            cost: Cost { operations, bytes: 8 },
        };
        // Of two steps.
        let profile = Profile::from([
            (operation("a b", false), totals(4, 0.8, 4 * 12_000)),
            (operation("a b", true), totals(2, 0.6, 2 * 12_000)),
            (operation("gelu", false), totals(2, 0.4, 0)),
        ]);
        let seconds = SecondsPerStep {
            data: 0.0,
            forward: 0.7,
            backward: 0.3,
            dense_optimizer: 0.5,
            low_rank_optimizer: 0.0,
            mean: 1.5,
            median: 1.4,
            best: 1.3,
        };
        let alone = Alone::of([(("a b", [10, 20, 30]), 0.1)]);
        let table = OperationTable::new(&profile, 2, &seconds, 240_000.0, &alone);

        let near = |found: f64, expected: f64| {
            assert!((found - expected).abs() < 1e-12, "{found}, not {expected}");
        };
        let products = table.products;
        assert_eq!(products.flops, 36_000);
        near(products.seconds, 0.7);
        near(products.alone_seconds, 0.3);
        near(products.step_seconds, 1.5);
        near(products.step_seconds_at_rates_alone, 1.1);
        near(table.rest_seconds, 1.0 - 0.9);
        let forward = table.rows.iter().find(|row| row.pass == "forward" && row.flops > 0);
        let forward = forward.expect("the forward product");
        near(forward.share_of_product_peak, 0.25);
        near(forward.alone_share_of_product_peak.expect("a product"), 0.5);
        let text = table.to_string();
        let line = text.lines().last().expect("a last line");
        assert_eq!(
            line.trim(),
            "products alone: 1.1000 s of 1.5000 s a step (the products 0.3000 s of 0.7000 s)"
        );
        let gelu = text.lines().find(|line| line.contains("gelu")).expect("gelu");
        assert!(!gelu.contains("0.5"), "a pass has no rate of a product: {gelu}");
    }
}
