//! `lrpt selftest`: does a device compute what the CPU computes?

use super::{compute, output};
use crate::device::{describe, short_name};
use crate::selftest::{self, Check, Sizes};
use crate::spec::DeviceSpec;
use anyhow::Result;
use clap::Args;

/// Arguments of `lrpt selftest`.
#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// The device: auto, cpu, cuda, cuda:1 or metal. On the CPU, the code that a GPU runs is
    /// compared with the CPU's own.
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
    /// Steps of the training that is compared.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Compare the linear algebra alone, on matrices of this size and points of this rank; may be
    /// given several times.
    #[arg(long, value_name = "ROWSxCOLUMNSxRANK", conflicts_with = "steps")]
    linalg: Vec<Sizes>,
}

/// Prints a line for every comparison; fails if one misses.
pub fn run(args: SelftestArgs) -> Result<()> {
    let device = compute::device(args.device)?;
    let name = describe(&device)?
        .map_or_else(|| short_name(&device), |info| format!("{} ({info})", short_name(&device)));
    output::line(format!("{name} against the CPU's kernels"))?;
    output::line(format!(
        "{:<6}{:<16}{:<52}{:>10}{:>10}",
        "", "group", "what", "error", "at most"
    ))?;
    let (mut missed, mut count, mut written) = (Vec::new(), 0, Ok(()));
    let mut found = |check: Check| {
        count += 1;
        if written.is_ok() {
            written = output::line(row(&check));
        }
        if !check.passes() {
            missed.push(check);
        }
    };
    match args.linalg.as_slice() {
        [] => selftest::run(&device, args.steps, &mut found),
        all => {
            for &sizes in all {
                selftest::run_linear_algebra(&device, sizes, &mut |check| {
                    found(Check { group: sizes.to_string(), ..check });
                });
            }
        }
    }
    written?;
    if missed.is_empty() {
        return output::line(format!("all {count} comparisons agree"));
    }
    let names: Vec<String> =
        missed.iter().map(|check| format!("{}: {}", check.group, check.name)).collect();
    anyhow::bail!("{} of {count} comparisons miss on {name}: {}", missed.len(), names.join("; "))
}

fn row(check: &Check) -> String {
    let word = if check.passes() { "ok" } else { "MISS" };
    match &check.error {
        Ok(error) => format!(
            "{word:<6}{:<16}{:<52}{error:>10.1e}{:>10.1e}",
            check.group, check.name, check.bound
        ),
        Err(reason) => format!("{word:<6}{:<16}{:<52} {reason}", check.group, check.name),
    }
}
