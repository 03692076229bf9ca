//! `lrpt inspect`: what the weights of a run look like.

use super::{compute, output};
use crate::error::Failure;
use crate::figures;
use crate::fs::write_atomic;
use crate::params::{Role, Weight};
use crate::report::{
    Column, RunResults, allotment, fitted, spectra_figure, spectra_json, spectra_table, wrapped,
};
use crate::spec::DeviceSpec;
use crate::train::LoadedRun;
use anyhow::Result;
use clap::Args;
use std::collections::BTreeMap;
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
    /// Print what the singular values of each weight come to: quantiles, energy, effective rank,
    /// what truncations discarded.
    #[arg(long)]
    spectra: bool,
    /// Draw the singular values, now and over the run, and the ranks into this SVG file.
    #[arg(long, value_name = "FILE.svg", requires = "spectra")]
    plot: Option<PathBuf>,
    /// Print the ranks as `model.weights` of the spec of a run that has them from its first step.
    #[arg(long, conflicts_with_all = ["json", "spectra"])]
    ranks: bool,
    /// Multiply the ranks by this number.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, requires = "ranks")]
    scale: f64,
    /// Print every column, whatever the width of the terminal.
    #[arg(long)]
    wide: bool,
}

/// Prints the spectra or the weights of a run.
pub fn run(args: InspectArgs) -> Result<()> {
    let run = LoadedRun::open(&args.run, &compute::device(DeviceSpec::Cpu)?)?;
    match (args.spectra, args.ranks) {
        (true, _) => spectra(&args, &run),
        (_, true) => ranks(&args, &run),
        _ => weights(&args, &run),
    }
}

/// Prints the ranks of all low-rank weights as a part of a spec.
fn ranks(args: &InspectArgs, run: &LoadedRun) -> Result<()> {
    if !(args.scale > 0.0 && args.scale <= 1e3) {
        let message = format!("--scale is {}; give a number above 0 and at most 1000", args.scale);
        return Err(Failure::Usage(message).into());
    }
    let of_place = |role: Role, rank: usize| match role {
        Role::Matrix(place) => Some(((place.layer, place.target), rank)),
        _ => None,
    };
    let ranks: BTreeMap<_, _> = run
        .params
        .ranks()
        .filter_map(|(_, parameter, rank)| of_place(parameter.role, rank))
        .collect();
    if ranks.is_empty() {
        let message = format!(
            "{}: has neither low-rank weights nor adapters by DLRA, so no ranks",
            args.run.display()
        );
        return Err(Failure::Usage(message).into());
    }
    output::line(allotment(run.model.config(), &ranks, args.scale))
}

/// Prints the singular values of every low-rank weight, and draws them with the run's own record.
fn spectra(args: &InspectArgs, run: &LoadedRun) -> Result<()> {
    let now = run
        .params
        .ranks()
        .map(|(_, parameter, _)| Ok((parameter.name.clone(), parameter.weight.singular_values()?)));
    let now = now.collect::<Result<Vec<_>>>()?;
    if now.is_empty() {
        return Err(Failure::Usage(format!(
            "{}: no weight of this run is low-rank, so there are no spectra",
            args.run.display()
        ))
        .into());
    }
    let history =
        if run.folder.holds_a_run() { Some(RunResults::read(run.folder.root())?) } else { None };
    if let Some(path) = &args.plot {
        let title =
            format!("Singular values of {} at step {}", run.folder.root().display(), run.step);
        write_atomic(path, spectra_figure(&title, &now, history.as_ref()).as_bytes())?;
    }
    if args.json {
        return spectra_json(&now, history.as_ref()).iter().try_for_each(output::line);
    }
    output::line(spectra_table(&now, history.as_ref(), output::width(args.wide)))?;
    output::line(format!("step {}", run.step))
}

/// Prints per low-rank weight: shape, rank, leading and trailing singular values, orthonormality
/// defect (of bases; one that is dense until it is cut has none), parameters against dense.
fn weights(args: &InspectArgs, run: &LoadedRun) -> Result<()> {
    let (mut stored, mut dense) = (0, 0);
    let is_adapted = run.model.config().is_adapted();
    let mut rows = Vec::new();
    for (_, parameter) in run.params.iter() {
        let ((m, n), r, defect) = match &parameter.weight {
            Weight::Dense(tensor) => {
                stored += tensor.elem_count();
                dense += tensor.elem_count();
                continue;
            }
            Weight::LowRank(point) => {
                let defect = point.orthonormality_defect()?;
                ((point.rows(), point.columns()), point.rank(), Some(defect))
            }
            Weight::Uncut(tensor) => {
                let (m, n) = tensor.dims2()?;
                ((m, n), m.min(n), None)
            }
        };
        let sigma = parameter.weight.singular_values()?;
        let shown = args.values.min(sigma.len());
        let (leading, trailing) = (&sigma[..shown], &sigma[sigma.len() - shown..]);
        let (count, full) = (parameter.element_count(), m * n);
        stored += count;
        // An adapter stands beside its matrix, which has been counted.
        dense += if is_adapted { 0 } else { full };
        if args.json {
            output::line(serde_json::json!({
                "name": parameter.name, "shape": [m, n], "rank": r, "singular_values": sigma,
                "orthonormality_defect": defect, "parameters": count, "dense_parameters": full,
            }))?;
        } else {
            let list = |values: &[f64]| {
                values.iter().map(|x| format!("{x:.4}")).collect::<Vec<_>>().join(" ")
            };
            rows.push([
                parameter.name.clone(),
                format!("{m} x {n}"),
                if defect.is_some() { r.to_string() } else { format!("{r}, dense") },
                list(leading),
                list(trailing),
                defect.map_or("-".to_owned(), |defect| format!("{defect:.1e}")),
                figures::count(count as f64),
                format!("{:.1}%", 100.0 * count as f64 / full as f64),
            ]);
        }
    }
    if !args.json {
        let column = |index: usize| rows.iter().map(|row| row[index].clone()).collect();
        let columns = [
            Column::text("weight", 0, column(0)),
            Column::numbers("shape", 2, column(1)),
            Column::numbers("rank", 0, column(2)),
            Column::numbers("leading singular values", 3, column(3)),
            Column::numbers("trailing singular values", 4, column(4)),
            Column::numbers("defect", 1, column(5)),
            Column::numbers("parameters", 1, column(6)),
            Column::numbers("of dense", 1, column(7)),
        ];
        fitted(&columns, output::width(args.wide)).iter().try_for_each(output::line)?;
    }
    if is_adapted && !args.json {
        output::line(format!(
            "step {}: {} parameters, {} of them trained",
            run.step,
            figures::count(run.params.total_element_count() as f64),
            figures::count(run.params.element_count() as f64)
        ))?;
    } else if !args.json {
        let share = 100.0 * stored as f64 / dense as f64;
        let said = format!(
            "step {}: {} parameters, {share:.1}% of the {} of the same network with dense weights",
            run.step,
            figures::count(stored as f64),
            figures::count(dense as f64)
        );
        output::line(wrapped(&said, output::width(args.wide)))?;
    }
    Ok(())
}
