//! `lrpt train` and `lrpt resume`.

use super::logging::Logging;
use super::starter::{self, ProcessesArgs};
use super::{compute, memory, output, processes};
use crate::data;
use crate::error::{Failure, is_interrupted};
use crate::parallel::agree;
use crate::record::{self, Console, JsonLines, LineOf, Observers, Samples, TensorBoard, Terminal};
use crate::spec::{self, Plan};
use crate::train::{Beginning, Outcome, StopSignal, TrainOptions, load_plan, train};
use anyhow::{Context, Result};
use clap::Args;
use signal_hook::consts::SIGTERM;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Arguments of `lrpt train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The spec, a YAML file.
    spec: PathBuf,
    /// Override a key: `--set model.n_layer=8`; any YAML value, also a mapping, which replaces the
    /// whole key.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// Folder of the run (default: runs/<name>).
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Continue the run in that folder from its newest sound checkpoint.
    #[arg(long)]
    resume: bool,
    /// Begin anew in a folder that holds a run; its metrics and checkpoints are kept aside.
    #[arg(long, conflicts_with = "resume")]
    restart: bool,
    /// Begin anew in a folder that holds a run, which is deleted without a question once the new
    /// one has taken its first step.
    #[arg(long, conflicts_with_all = ["resume", "restart"])]
    overwrite: bool,
    #[command(flatten)]
    processes: ProcessesArgs,
    #[command(flatten)]
    until: Until,
}

/// Arguments of `lrpt resume`.
#[derive(Debug, Args)]
pub struct ResumeArgs {
    /// The run's folder.
    run: PathBuf,
    /// Change a key that decides no weight, from now on: `--set eval.every=50`; evaluation, logging,
    /// checkpoints, samples, the name, and where the same data lies.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE", conflicts_with = "restart")]
    overrides: Vec<String>,
    /// Train this many steps more than planned, where the schedule is constant or
    /// warmup_stable_decay: as a run of that many steps from the start, going back to before the
    /// decay began.
    #[arg(long, value_name = "STEPS", conflicts_with = "restart")]
    extend: Option<std::num::NonZeroU64>,
    /// Begin the run anew; its metrics and checkpoints are kept aside.
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    processes: ProcessesArgs,
    #[command(flatten)]
    until: Until,
}

/// When to stop before the end, and whether to begin at all.
#[derive(Debug, Args)]
struct Until {
    /// Stop cleanly after this step, with a checkpoint, as if interrupted; continue later with
    /// `lrpt resume`. 0 saves the first weights and says their loss.
    #[arg(long, value_name = "STEP")]
    stop_after: Option<u64>,
    /// Stop cleanly so early that a checkpoint is on the disk within this time after the start, as
    /// in 25s, 90m or 11h50m; at least one step is taken.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    stop_within: Option<Duration>,
    /// Try even where more memory is expected to be needed than is available.
    #[arg(long)]
    force: bool,
    /// Stop cleanly when stdin closes, as it does when the process that started this one dies.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

/// A run to be trained.
struct Job<'a> {
    plan: &'a Plan,
    spec_yaml: &'a str,
    run_dir: &'a Path,
    beginning: Beginning,
    until: &'a Until,
    started: Instant,
    stop: StopSignal,
}

/// Trains as a spec says.
pub fn run(args: TrainArgs, terminal: Terminal, logging: &Logging) -> Result<()> {
    let started = Instant::now();
    let to_start = args.processes.to_start()?;
    if to_start.is_some() && args.spec == Path::new("-") {
        return Err(Failure::Usage(
            "-: several processes cannot read the spec from standard input; give a file".into(),
        )
        .into());
    }
    let (written, plan) = load_plan(&args.spec, &args.overrides)?;
    let run_dir = args.run_dir.unwrap_or_else(|| Path::new("runs").join(&plan.name));
    let stop = stop_signal(&args.until)?;
    if let Some(processes) = to_start {
        starter::refuse_unless_shared(&plan, processes)?;
        return starter::train_by(processes, &run_dir, &stop);
    }
    spec::unused_settings(&written).iter().for_each(|setting| tracing::warn!("{setting}"));
    let beginning = match (args.resume, args.restart, args.overwrite) {
        (true, ..) => Beginning::Resume { extend: false },
        (_, true, _) => Beginning::Restart,
        (.., true) => Beginning::Overwrite,
        _ => Beginning::Fresh,
    };
    let (spec_yaml, until) = (&spec::to_yaml(&written)?, &args.until);
    let job = Job { plan: &plan, spec_yaml, run_dir: &run_dir, beginning, until, started, stop };
    start(job, terminal, logging)
}

/// What asks for a clean stop: signals and, as SIGTERM does, the end of stdin where it counts.
fn stop_signal(until: &Until) -> Result<StopSignal> {
    let stop = StopSignal::install().context("cannot listen for Ctrl-C")?;
    if until.until_stdin_closes {
        let stop = stop.clone();
        std::thread::spawn(move || {
            // Nothing is expected on it; an error is an end, too.
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            stop.request(SIGTERM);
        });
    }
    Ok(stop)
}

/// Continues a run with the plan it was started with, less what may change and is asked for.
pub fn resume(args: ResumeArgs, terminal: Terminal, logging: &Logging) -> Result<()> {
    let started = Instant::now();
    let folder = crate::train::RunFolder::new(&args.run);
    let extend = args.extend.map(std::num::NonZeroU64::get);
    let (plan, spec_yaml) = if args.overrides.is_empty() && extend.is_none() {
        let plan = folder.plan().map_err(|error| Failure::Usage(format!("{error:#}")))?;
        (plan, folder.spec_yaml()?)
    } else {
        let (written, plan) = folder.changed(&args.overrides, extend)?;
        (plan, spec::to_yaml(&written)?)
    };
    let beginning = match args.restart {
        true => Beginning::Restart,
        false => Beginning::Resume { extend: extend.is_some() },
    };
    let stop = stop_signal(&args.until)?;
    if let Some(processes) = args.processes.to_start()? {
        starter::refuse_unless_shared(&plan, processes)?;
        return starter::train_by(processes, &args.run, &stop);
    }
    let (run_dir, until) = (&args.run, &args.until);
    let job = Job { plan: &plan, spec_yaml: &spec_yaml, run_dir, beginning, until, started, stop };
    start(job, terminal, logging)
}

fn start(job: Job, terminal: Terminal, logging: &Logging) -> Result<()> {
    let Job { plan, run_dir, until, .. } = job;
    let mut processes = processes::join(&plan.train.data_parallel)?;
    let ready = compute::local_device(plan.device, processes.local_rank()).and_then(|device| {
        if !until.force {
            let count = (processes.communicator().world(), processes.local_world());
            memory::refuse_unless_fits(plan, &device, count)?;
        }
        Ok(device)
    });
    let ready = agree(processes.communicator(), ready).and_then(|device| {
        processes.connect_devices(&device, plan.train.data_parallel.backend)?;
        Ok(device)
    });
    let communicator = processes.communicator();
    let outcome = ready.and_then(|device| {
        let options = TrainOptions {
            run_dir,
            data_cache: data::cache_dir(),
            spec_yaml: job.spec_yaml,
            beginning: job.beginning,
            stop_after: until.stop_after,
            deadline: until.stop_within.and_then(|time| job.started.checked_add(time)),
            device: &device,
            stop: job.stop,
            processes: communicator,
            patience: Duration::from_secs(plan.train.data_parallel.timeout_seconds),
        };
        trained(plan, &options, terminal, logging)
    });
    let is_root = communicator.is_root();
    let result = outcome.and_then(|outcome| match is_root {
        true => report(plan, run_dir, &outcome),
        false => Ok(()),
    });
    processes.leave(result)
}

/// Trains, with everything that observes it.
fn trained(
    plan: &Plan,
    options: &TrainOptions,
    terminal: Terminal,
    logging: &Logging,
) -> Result<Outcome> {
    if cfg!(debug_assertions) {
        tracing::warn!("this is a debug build, tens of times slower than `cargo run --release`");
    }
    let outcome = train(plan, options, |folder, resumed_from| {
        logging.write_to(folder.root())?;
        let lines = |path: &Path, line_of: LineOf| match resumed_from {
            Some(step) => JsonLines::resume(path, step, line_of),
            None => JsonLines::create(path, line_of),
        };
        let metrics = lines(&folder.metrics(), record::metrics)?.with_table()?;
        let spectra = lines(&folder.spectra(), record::spectra)?;
        let mut observers = Observers(vec![
            Box::new(metrics),
            Box::new(spectra),
            Box::new(Samples::new(folder.root())),
            Box::new(Console::new(terminal)),
        ]);
        if plan.train.tensorboard {
            let (settings, spec) = (plan.trajectory(), options.spec_yaml);
            let events = TensorBoard::begin(folder.root(), resumed_from, &settings, spec)?;
            observers.0.push(Box::new(events));
        }
        Ok(observers)
    });
    let outcome = outcome.inspect_err(|error| logging.note_error(error));
    outcome.map_err(|error| resumable(error, options.run_dir))
}

/// How an interrupted run goes on.
fn resumable(error: anyhow::Error, run_dir: &Path) -> anyhow::Error {
    let remedy = format!("interrupted; continue with `lrpt resume {}`", run_dir.display());
    if is_interrupted(&error) { error.context(remedy) } else { error }
}

/// The result, on stdout.
fn report(plan: &Plan, run_dir: &Path, outcome: &Outcome) -> Result<()> {
    match &outcome.validation {
        Some(loss) => output::line(serde_json::json!({
            "run": run_dir.display().to_string(),
            "name": plan.name,
            "step": outcome.step,
            "loss": loss.loss,
            "perplexity": loss.perplexity,
            "bits_per_byte": loss.bits_per_byte,
            "tokens": loss.tokens,
        })),
        None => {
            tracing::info!(
                "stopped after step {} as asked; continue with `lrpt resume {}`",
                outcome.step,
                run_dir.display()
            );
            Ok(())
        }
    }
}
