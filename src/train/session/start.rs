//! How a run begins or goes on: lock, then check, then prepare.

use super::identity::Identity;
use super::together::{check_same, check_world, share_snapshot};
use super::{Beginning, Outcome, Session, SessionState, TrainOptions};
use crate::checkpoint::{Checkpoints, RunLock, Snapshot};
use crate::data::{self, Dataset};
use crate::error::Failure;
use crate::parallel::agree;
use crate::record::{EndReason, Event, Observer, Observers, RunStarted};
use crate::spec::{Plan, is_of_length};
use crate::train::extend::{agreement, go_back, other_way};
use crate::train::fresh_start::{FreshStart, Untouched};
use crate::train::run_folder::RunFolder;
use anyhow::{Context, Result};
use std::time::Instant;

/// Trains to the plan's last step, or until a signal or `stop_after`.
///
/// `observers` is called once the run's folder exists, with the step the run continues from.
///
/// # Errors
/// [`Failure::Usage`] if the folder or its checkpoints are of another run; [`Failure::Diverged`] if a loss or gradient
/// is not finite;
/// [`Failure::Interrupted`] after a signal, once the checkpoint is written.
pub fn train(
    plan: &Plan,
    options: &TrainOptions,
    observers: impl FnOnce(&RunFolder, Option<u64>) -> Result<Observers>,
) -> Result<Outcome> {
    let processes = options.processes;
    check_world(plan, processes)?;
    let begun = if processes.is_root() { begin(plan, options).map(Some) } else { Ok(None) };
    let begun = agree(processes, begun)?;
    let begun = match begun {
        Some(begun) => Ok(begun),
        // What rank 0 has prepared is in the cache by now.
        None => join(plan, options),
    };
    let Begun { folder, dataset, changes, resumed, started } = agree(processes, begun)?;
    if processes.is_shared() {
        let data = format!("{} {}", dataset.summary.content_hash, dataset.summary.tokenizer_hash);
        check_same(processes, "the data", &data)?;
    }
    processes.set_patience(Some(options.patience));
    let resumed = share_snapshot(processes, resumed)?;
    let from = resumed.as_ref().map_or(0, |(snapshot, _)| snapshot.step);
    let observers = if processes.is_root() {
        observers(&folder, options.beginning.continues().then_some(from))
    } else {
        Ok(Observers::default())
    };
    let mut observers = agree(processes, observers)?;
    let mut session = Session::new(plan, options, dataset, started, resumed)?;
    session.by_root(|session| session.tell_of_start(&folder, from, &changes, &mut observers))?;
    session.run(&mut observers)
}

/// What a run begins with.
struct Begun {
    folder: RunFolder,
    dataset: Dataset,
    changes: Changes,
    resumed: Option<(Snapshot, SessionState)>,
    started: Started,
}

/// What a session takes over.
pub(super) struct Started {
    pub checkpoints: Checkpoints,
    /// Before the lock, which it needs when it is dropped.
    pub fresh: Option<FreshStart>,
    pub lock: Option<RunLock>,
    pub identity: Identity,
}

/// In what a run goes on otherwise than before.
#[derive(Default)]
struct Changes {
    /// Lines for the log.
    told: Vec<String>,
    /// Lines for whoever should know that figures may differ.
    warnings: Vec<String>,
    /// Steps between lines of the metrics before.
    log_every: u64,
}

/// Takes the folder, prepares the data and reads the newest checkpoint; by the process that writes.
fn begin(plan: &Plan, options: &TrainOptions) -> Result<Begun> {
    let folder = RunFolder::new(options.run_dir);
    folder.refuse_links()?;
    let continues = options.beginning.continues();
    if continues && !folder.holds_a_run() {
        // Before the lock, which would make the folder.
        return Err(Failure::Usage(format!(
            "{} holds no run to resume; start one by leaving out --resume",
            folder.root().display()
        ))
        .into());
    }
    if options.beginning == Beginning::Overwrite {
        folder.refuse_what_is_no_run()?;
    }
    let untouched = Untouched::look(options.run_dir);
    let lock = RunLock::acquire(options.run_dir)?;
    let overwrites = options.beginning == Beginning::Overwrite;
    let mut fresh = (!continues).then(|| FreshStart::new(untouched.clone(), overwrites));
    if !continues {
        options.stop.before_leaving(move || untouched.restore());
    }
    folder.remove_temporaries()?;
    let before = check_folder(&folder, plan, options)?;
    let dataset = prepared(&folder, plan, options)?;
    options.stop.preparation_ends();
    lock.check_held()?;
    let mut checkpoints = Checkpoints::open(options.run_dir);
    let identity = Identity::of(plan, &dataset.summary);
    let mut changes = Changes::default();
    let mut resumed = None;
    if let Some(before) = before {
        check_data(&folder, &dataset)?;
        changes = change(&folder, &before, plan, options)?;
        resumed = load_newest(&folder, &mut checkpoints, &identity, plan)?;
    }
    if let Some(fresh) = &mut fresh {
        fresh.set_history_aside()?;
        let (data, tokenizer) = (&dataset.summary, &dataset.tokenizer);
        folder.describe(options.spec_yaml, plan, data, tokenizer, options.device)?;
    }
    let started = Started { checkpoints, fresh, lock: Some(lock), identity };
    Ok(Begun { folder, dataset, changes, resumed, started })
}

/// The data; of a run that goes on from wherever this process is.
fn prepared(folder: &RunFolder, plan: &Plan, options: &TrainOptions) -> Result<Dataset> {
    let goes_on = options.beginning.continues();
    match folder.plan() {
        Ok(before) if goes_on && before.data == plan.data => folder.prepare_from_here(&plan.data),
        _ => data::prepare(&plan.data, options.data_cache),
    }
}

/// Makes the plan the run's, with its checkpoints gone back to where it may have more steps.
fn change(
    folder: &RunFolder,
    before: &Plan,
    plan: &Plan,
    options: &TrainOptions,
) -> Result<Changes> {
    let log_every = before.train.log_every.0;
    let mut changes = Changes { log_every, ..Changes::default() };
    if before.train.max_steps != plan.train.max_steps {
        changes.told = go_back(folder, before, plan)?;
    }
    let differences = before.differences(plan);
    if differences.iter().any(|line| line.starts_with("eval.tokens: ")) {
        changes.warnings.push(format!(
            "eval.tokens: {} -> {}: losses from now on are of other windows than those before, and \
             the best checkpoint is the one of the lowest loss of either",
            before.eval.tokens, plan.eval.tokens
        ));
    }
    if !differences.is_empty() {
        folder.change_plan(options.spec_yaml, plan)?;
        changes.told.push(format!("goes on with (run -> now): {}", differences.join(", ")));
    }
    changes.warnings.extend(folder.other_threads()?);
    Ok(changes)
}

/// The same by a process that only computes.
fn join(plan: &Plan, options: &TrainOptions) -> Result<Begun> {
    let folder = RunFolder::new(options.run_dir);
    let dataset = prepared(&folder, plan, options)?;
    options.stop.preparation_ends();
    let started = Started {
        checkpoints: Checkpoints::open(options.run_dir),
        fresh: None,
        lock: None,
        identity: Identity::of(plan, &dataset.summary),
    };
    Ok(Begun { folder, dataset, changes: Changes::default(), resumed: None, started })
}

impl Session<'_> {
    /// Tells the observers what the run begins with, or goes on from.
    fn tell_of_start(
        &self,
        folder: &RunFolder,
        from: u64,
        changes: &Changes,
        observers: &mut Observers,
    ) -> Result<()> {
        let Session { plan, options, .. } = self;
        observers.on(&Event::RunStarted(RunStarted {
            name: plan.name.clone(),
            run_dir: options.run_dir.to_path_buf(),
            parameters: self.trainer.params.element_count() as u64,
            frozen_parameters: self.trainer.params.frozen_element_count() as u64,
            dense_parameters: self.trainer.model.dense_parameter_count() as u64,
            start_step: from,
            max_steps: plan.train.max_steps.0,
            tokens_per_step: plan.tokens_per_step,
            device: format!("{:?}", options.device.location()).to_lowercase(),
            threads: rayon::current_num_threads(),
        }))?;
        if let Some(init) = &self.trainer.init {
            folder.write_init(init)?;
            init.lines().iter().for_each(|line| tracing::info!("{line}"));
        }
        changes.told.iter().for_each(|line| tracing::info!("{line}"));
        for message in changes.warnings.iter().cloned() {
            observers.on(&Event::Warning { message })?;
        }
        if from > 0 {
            observers.on(&Event::Resumed { step: from, path: self.checkpoints.path(from) })?;
            folder.note_checkpoint(from)?;
            // Lines may have come more rarely before: only what no setting explains is a hole.
            let log_every = plan.train.log_every.0.max(changes.log_every);
            if let Some(message) = folder.hole_in_metrics(from, log_every)? {
                observers.on(&Event::Warning { message })?;
            }
        }
        Ok(())
    }
}

impl Session<'_> {
    /// Saves and validates the first weights, where no step is asked for: a model that was cut and
    /// not trained.
    pub(super) fn stop_before_the_first_step(
        &mut self,
        observers: &mut Observers,
        started: Instant,
    ) -> Result<Outcome> {
        let validation = self.validation_loss()?;
        if let Some(fresh) = self.fresh.take() {
            fresh.has_begun();
        }
        let moments = self.of_this_process(self.trainer.moments())?;
        self.by_root(|session| {
            let path = session.save(moments)?;
            observers.on(&Event::CheckpointSaved { step: 0, path })
        })?;
        observers.on(&Event::Finished {
            step: 0,
            reason: EndReason::Interrupted,
            seconds: started.elapsed().as_secs_f64(),
            peak_memory: self.peaks()?,
        })?;
        Ok(Outcome { step: 0, validation: Some(validation) })
    }
}

/// Refuses to write into a folder that holds another run, or to lose what it holds; the plan of a
/// run that goes on.
fn check_folder(folder: &RunFolder, plan: &Plan, options: &TrainOptions) -> Result<Option<Plan>> {
    let root = folder.root().display();
    let extend = match options.beginning {
        Beginning::Restart | Beginning::Overwrite => return Ok(None),
        Beginning::Fresh if !folder.has_history()? => return Ok(None),
        Beginning::Fresh => {
            return Err(Failure::Usage(format!(
                "{root} already holds a run; continue it with --resume, choose another folder with \
                 --run-dir, begin anew with --restart (its metrics and checkpoints are kept aside) \
                 or --overwrite (they are deleted)"
            ))
            .into());
        }
        Beginning::Resume { extend } => extend,
    };
    let before = folder.plan()?;
    let differences = before.binding_differences(plan);
    let is_longer = differences.iter().any(|line| is_of_length(line));
    if !(differences.is_empty() || extend && is_longer) {
        let (steps, now) = (before.train.max_steps.0, plan.train.max_steps.0);
        let extended = match before.agrees_until(plan) {
            Some(_) => {
                format!("train it longer with `lrpt resume {root} --extend {}`, ", now - steps)
            }
            None => String::new(),
        };
        return Err(Failure::Usage(format!(
            "{root} was started with another plan; to resume it, undo these changes (run -> now), \
             {extended}start a new run with --run-dir, or {}:\n  {}",
            other_way(folder),
            differences.join("\n  ")
        ))
        .into());
    }
    if is_longer {
        // Before the data is prepared: what cannot be extended is refused at once.
        agreement(folder, &before, plan)?;
    }
    folder.check_plan_is_as_written(&before)?;
    Ok(Some(before))
}

/// Refuses to continue on other data than the run began with.
fn check_data(folder: &RunFolder, dataset: &Dataset) -> Result<()> {
    folder.tokenizer()?;
    let before = folder.data_summary()?;
    if before.content_hash == dataset.summary.content_hash
        && before.tokenizer_hash == dataset.summary.tokenizer_hash
    {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "the data of {} has changed since the run began (content {} -> {}, tokenizer {} -> {}); restore it, or start a new run with --run-dir",
        folder.root().display(),
        before.content_hash,
        dataset.summary.content_hash,
        before.tokenizer_hash,
        dataset.summary.tokenizer_hash
    ))
    .into())
}

/// The newest sound checkpoint, if it is of this run; damaged ones are reported and passed over.
fn load_newest(
    folder: &RunFolder,
    checkpoints: &mut Checkpoints,
    identity: &Identity,
    plan: &Plan,
) -> Result<Option<(Snapshot, SessionState)>> {
    let had_history = folder.has_history()?;
    let (snapshot, damaged) = checkpoints.load_latest()?;
    let loaded = match snapshot {
        Some(mut snapshot) => {
            let path = checkpoints.path(snapshot.step);
            let state: SessionState = serde_json::from_value(snapshot.state.take())
                .with_context(|| format!("{}: state.json", path.display()))?;
            identity.check(state.identity.as_ref(), state.step, plan, &path)?;
            Some((snapshot, state))
        }
        None if had_history => {
            let reasons: Vec<String> = damaged
                .iter()
                .map(|damaged| format!("\n  {}: {}", damaged.path.display(), damaged.reason))
                .collect();
            return Err(Failure::Usage(format!(
                "{} has trained before, but has no sound checkpoint to continue from; put its \
                 checkpoints back, or begin anew with --restart (its metrics and checkpoints are \
                 kept aside){}",
                folder.root().display(),
                reasons.concat()
            ))
            .into());
        }
        None => {
            tracing::info!("the run has no checkpoint yet; starting from step 0");
            None
        }
    };
    for skipped in damaged {
        let aside = checkpoints.set_aside(&skipped)?;
        tracing::warn!(
            "skipped the damaged checkpoint {} ({}); it is now {}",
            skipped.path.display(),
            skipped.reason,
            aside.display()
        );
    }
    Ok(loaded)
}
