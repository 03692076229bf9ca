//! `lrpt bench`: how fast and how large a spec's training is.

use super::{compute, output, spec::vocabulary_size};
use crate::bench::{Growth, StepCounts, Timing, Timings, growth, measure};
use crate::data;
use crate::device;
use crate::error::Failure;
use crate::fs::write_atomic;
use crate::plot::figure;
use crate::spec::{self, Plan};
use anyhow::Result;
use candle_core::Device;
use clap::Args;
use std::path::PathBuf;

/// Arguments of `lrpt bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// The spec, a YAML file; its data are not read.
    spec: PathBuf,
    /// Override a key: `--set model.weights=dense`.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Time a step at each of these values of a setting and fit exponents, instead of the usual
    /// report; may be given several times.
    #[arg(long, value_name = "KEY.PATH=VALUE,VALUE,...")]
    vary: Vec<String>,
    /// Draw what --vary found into this SVG file.
    #[arg(long, value_name = "FILE.svg", requires = "vary")]
    plot: Option<PathBuf>,
    /// Timed steps.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Steps before the clock runs.
    #[arg(long, value_name = "N", default_value_t = 2)]
    warm_up: u64,
    /// Tokens in the vocabulary (default: what the spec's tokenizer asks for).
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab_size: Option<u32>,
    /// Time every operation of forward and backward: seconds, bytes, rate and share of the product
    /// peak, by kind and shape; and every product alone, which says how fast its shape can be.
    #[arg(long, conflicts_with = "vary")]
    operations: bool,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

/// Prints the figures of a benchmark on random tokens.
pub fn run(args: BenchArgs) -> Result<()> {
    let (_, plan) = spec::load_plan(&args.spec, &args.overrides)?;
    let device = compute::device(plan.device)?;
    if cfg!(debug_assertions) {
        tracing::warn!("this is a debug build: its times say nothing; use `cargo run --release`");
    }
    if args.operations && !device.is_cpu() {
        let problem = "--operations reads the clock around kernels of the CPU, and a device works \
                       on by itself; add --set device=cpu";
        return Err(Failure::Usage(problem.to_owned()).into());
    }
    if !args.vary.is_empty() {
        let found = args
            .vary
            .iter()
            .map(|vary| vary_one(&args, vary, &device))
            .collect::<Result<Vec<Growth>>>()?;
        if let Some(path) = &args.plot {
            let charts: Vec<_> = found.iter().map(Growth::chart).collect();
            write_atomic(path, figure("Seconds of a training step", &charts, 2).as_bytes())?;
        }
        return match args.json {
            true => output::line(serde_json::to_string(&found)?),
            false => found.iter().try_for_each(|growth| output::line(format!("{growth}\n"))),
        };
    }
    let vocabulary = vocabulary(&args, &plan)?;
    let report = measure(&plan, vocabulary, args.counts(), &device)?;
    if !report.debug_build {
        let timing = Timing {
            name: plan.name.clone(),
            seconds: report.seconds_per_step.median,
            flops: report.operations.flops_per_step as f64,
            place: place_of_steps(&device),
        };
        let kept = Timings::read(data::cache_dir())
            .and_then(|mut timings| timings.keep(&plan, vocabulary, timing));
        if let Err(error) = kept {
            tracing::warn!("the time of a step is not kept for `lrpt spec check`: {error:#}");
        }
    }
    if args.json { output::line(serde_json::to_string(&report)?) } else { output::line(report) }
}

/// Where steps are taken, as far as their time goes.
pub(super) fn place_of_steps(device: &Device) -> String {
    let threads = rayon::current_num_threads();
    format!(
        "{} with {threads} thread{}",
        device::short_name(device),
        if threads == 1 { "" } else { "s" }
    )
}

impl BenchArgs {
    fn counts(&self) -> StepCounts {
        StepCounts { warm_up: self.warm_up, timed: self.steps, by_operation: self.operations }
    }
}

/// Tokens in the vocabulary, as given or as the spec's tokenizer asks for.
fn vocabulary(args: &BenchArgs, plan: &Plan) -> Result<usize> {
    match args.vocab_size {
        Some(size) => Ok(size as usize),
        None => vocabulary_size(plan)?.ok_or_else(|| {
            let remedy = "the vocabulary is known only once the data are prepared; give its size with --vocab-size";
            Failure::Usage(format!("{}: {remedy}", plan.name)).into()
        }),
    }
}

/// Growth with one setting, the others as in the spec.
fn vary_one(args: &BenchArgs, vary: &str, device: &Device) -> Result<Growth> {
    let usage = |problem: &str| {
        Failure::Usage(format!("--vary {vary}: {problem}; write --vary model.n_layer=2,4,8"))
    };
    let (key, values) = vary.split_once('=').ok_or_else(|| usage("no `=`"))?;
    let point = |text: &str| -> Result<(f64, Plan, usize)> {
        let value = text.parse().ok().filter(|value: &f64| *value > 0.0 && value.is_finite());
        let value = value.ok_or_else(|| usage(&format!("`{text}` is no positive number")))?;
        let overrides: Vec<String> =
            args.overrides.iter().cloned().chain([format!("{key}={text}")]).collect();
        let (_, plan) = spec::load_plan(&args.spec, &overrides)?;
        let vocabulary = vocabulary(args, &plan)?;
        Ok((value, plan, vocabulary))
    };
    let settings = values.split(',').map(str::trim).map(point).collect::<Result<Vec<_>>>()?;
    if settings.iter().all(|(value, ..)| *value == settings[0].0) {
        return Err(usage("an exponent needs at least two different values").into());
    }
    growth(key, &settings, args.counts(), device)
}
