//! `lrpt compare`: runs side by side, with statistics.

use super::output;
use crate::error::Failure;
use crate::report::{Comparison, Spending, compare, group_runs, text_table, write_report};
use crate::sweep::{experiment, plain_runs, read_sweep};
use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Arguments of `lrpt compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// A sweep's folder or its YAML file, or the folders of several runs, which may still run.
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// What others are compared with (default: the sweep's baseline, or the first run).
    #[arg(long, value_name = "METHOD")]
    baseline: Option<String>,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Print every column, whatever the width of the terminal.
    #[arg(long)]
    wide: bool,
    /// Write report.html, report.md and their charts into this folder (default for a sweep: its own
    /// `report/`).
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Compares runs and writes the report.
pub fn run(mut args: CompareArgs) -> Result<()> {
    if let [file] = &mut args.runs[..]
        && file.is_file()
    {
        let folder = Path::new("runs").join(read_sweep(file)?.name);
        if !folder.join("manifest.json").exists() {
            return Err(Failure::Usage(format!(
                "{} has not begun here (no {}); begin it with `lrpt sweep {}`",
                file.display(),
                folder.join("manifest.json").display(),
                file.display()
            ))
            .into());
        }
        *file = folder;
    }
    let sweep = args
        .runs
        .first()
        .filter(|folder| args.runs.len() == 1 && folder.join("manifest.json").exists());
    let (name, runs, baseline, rule, goal, own_report) = match sweep {
        Some(folder) => {
            let (manifest, runs, rule) = experiment(folder)?;
            (
                manifest.name,
                runs,
                args.baseline.or(Some(manifest.baseline)),
                rule,
                manifest.goal,
                Some(folder.join("report")),
            )
        }
        None => {
            if let Some(folder) =
                args.runs.iter().find(|folder| folder.join("manifest.json").exists())
            {
                let message = format!(
                    "{} is a sweep; compare it alone, or name single runs",
                    folder.display()
                );
                return Err(Failure::Usage(message).into());
            }
            ("comparison".to_owned(), plain_runs(&args.runs)?, args.baseline, None, None, None)
        }
    };
    let groups = group_runs(runs);
    // A sweep's baseline that has no result yet is no reason to refuse; one that was asked for is.
    let mut comparison = match compare(&name, groups.clone(), baseline.as_deref(), rule.clone()) {
        Err(_)
            if own_report.is_some()
                && baseline.as_ref().is_some_and(|name| unfinished(&groups, name)) =>
        {
            compare(&name, groups, None, rule)?
        }
        compared => compared?,
    };
    comparison.goal = goal;
    if args.json {
        output::line(to_json(&comparison))?
    } else {
        output::line(text_table(&comparison, output::width(args.wide)))?
    }
    if let Some(folder) = args.report.or(own_report) {
        let page = write_report(&comparison, &folder)?;
        tracing::info!("report: {}", page.display());
    }
    Ok(())
}

fn unfinished(groups: &[crate::report::Group], baseline: &str) -> bool {
    groups
        .iter()
        .any(|group| group.name.split(", ").next() == Some(baseline) && group.loss().is_none())
}

fn to_json(comparison: &Comparison) -> Value {
    let groups = comparison.groups.iter().map(|(group, summary)| {
        let difference = summary.difference.map(|difference| {
            json!({"mean": difference.estimate.mean, "half_interval_95": difference.half_interval, "p": difference.p, "n": difference.estimate.count})
        });
        let at_equal: serde_json::Map<String, Value> =
            Spending::ALL.iter().zip(summary.loss_at_equal).map(|(spending, loss)| (spending.name().to_lowercase(), json!(loss))).collect();
        json!({
            "method": group.name, "family": group.family, "n": summary.loss.count, "loss": summary.loss.mean, "standard_error": summary.loss.standard_error,
            "best": group.chosen().tuned, "tuning": group.tuning(), "unfinished": group.unfinished(), "parameters": summary.parameters,
            "manifold_dimension": summary.manifold_dimension, "training_memory": summary.training_memory, "tokens": summary.tokens,
            "flops": summary.flops, "seconds": summary.seconds, "peak_memory": summary.peak_memory, "difference": difference,
            "loss_at_equal": at_equal, "losses": group.chosen().losses(),
            "candidates": group.candidates.iter().map(|c| json!({"tuned": c.tuned, "losses": c.losses()})).collect::<Vec<_>>(),
            "missing": group.missing,
        })
    });
    let baseline = comparison.baseline.map(|index| comparison.groups[index].0.name.clone());
    let scaling = comparison.scaling().into_iter().map(|scaling| {
        json!({"family": scaling.family, "sizes": scaling.sizes, "coefficient": scaling.law.coefficient, "exponent": scaling.law.exponent})
    });
    let scaling: Vec<Value> = scaling.collect();
    json!({"name": comparison.name, "baseline": baseline, "rule": comparison.rule, "scaling": scaling, "groups": groups.collect::<Vec<_>>()})
}
