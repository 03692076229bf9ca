//! `lrpt inspect`: what the weights of a run look like.

use super::{compute, output};
use crate::linalg;
use crate::params::Weight;
use crate::spec::DeviceSpec;
use crate::train::LoadedRun;
use anyhow::Result;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `lrpt inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    run: PathBuf,
    /// Print one JSON object a line instead of a table.
    #[arg(long)]
    json: bool,
    /// Leading and trailing singular values to print of each weight.
    #[arg(long, default_value_t = 3)]
    values: usize,
}

/// Prints per low-rank weight: shape, rank, leading and trailing singular values, orthonormality defect, parameters against dense.
pub fn run(args: InspectArgs) -> Result<()> {
    let run = LoadedRun::open(&args.run, &compute::device(DeviceSpec::Cpu)?)?;
    let (mut stored, mut dense) = (0, 0);
    if !args.json {
        output::line(format!(
            "{:<28} {:>11} {:>5} {:>34} {:>34} {:>9} {:>10} {:>7}",
            "weight", "shape", "rank", "leading singular values", "trailing singular values", "defect", "parameters", "dense"
        ))?;
    }
    for (_, parameter) in run.params.iter() {
        let point = match &parameter.weight {
            Weight::Dense(tensor) => {
                stored += tensor.elem_count();
                dense += tensor.elem_count();
                continue;
            }
            Weight::LowRank(point) => point,
        };
        let (m, n, r) = (point.rows(), point.columns(), point.rank());
        let sigma = linalg::svd(&point.s)?.sigma;
        let shown = args.values.min(sigma.len());
        let (leading, trailing) = (&sigma[..shown], &sigma[sigma.len() - shown..]);
        let (count, full) = (point.parameter_count(), m * n);
        let defect = point.orthonormality_defect()?;
        stored += count;
        dense += full;
        if args.json {
            output::line(serde_json::json!({
                "name": parameter.name, "shape": [m, n], "rank": r, "singular_values": sigma,
                "orthonormality_defect": defect, "parameters": count, "dense_parameters": full,
            }))?;
        } else {
            let list = |values: &[f64]| values.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(" ");
            output::line(format!(
                "{:<28} {:>11} {r:>5} {:>34} {:>34} {defect:>9.1e} {count:>10} {:>6.1}%",
                parameter.name,
                format!("{m} x {n}"),
                list(leading),
                list(trailing),
                100.0 * count as f64 / full as f64
            ))?;
        }
    }
    if !args.json {
        let share = 100.0 * stored as f64 / dense as f64;
        output::line(format!("step {}: {stored} parameters, {share:.1}% of the {dense} of the same network with dense weights", run.step))?;
    }
    Ok(())
}
