//! How a run begins or goes on: lock, then check, then prepare.

use super::identity::Identity;
use super::together::{check_same, check_world, share_snapshot};
use super::{Outcome, Session, SessionState, TrainOptions};
use crate::checkpoint::{Checkpoints, RunLock, Snapshot};
use crate::data::{self, Dataset};
use crate::error::Failure;
use crate::parallel::agree;
use crate::record::{Event, Observer, Observers, RunStarted};
use crate::spec::Plan;
use crate::train::run_folder::RunFolder;
use anyhow::{Context, Result};

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
    let Begun { folder, lock, dataset, checkpoints, identity, resumed } = agree(processes, begun)?;
    if processes.is_shared() {
        let data = format!("{} {}", dataset.summary.content_hash, dataset.summary.tokenizer_hash);
        check_same(processes, "the data", &data)?;
    }
    processes.set_patience(Some(options.patience));
    let resumed = share_snapshot(processes, resumed)?;
    let from = resumed.as_ref().map_or(0, |(snapshot, _)| snapshot.step);
    let continues = options.resume && !options.restart;
    let observers = if processes.is_root() {
        observers(&folder, continues.then_some(from))
    } else {
        Ok(Observers::default())
    };
    let mut observers = agree(processes, observers)?;
    let mut session = Session::new(plan, options, dataset, checkpoints, lock, identity, resumed)?;
    session.by_root(|session| session.tell_of_start(&folder, from, &mut observers))?;
    session.run(&mut observers)
}

/// What a run begins with.
struct Begun {
    folder: RunFolder,
    lock: Option<RunLock>,
    dataset: Dataset,
    checkpoints: Checkpoints,
    identity: Identity,
    resumed: Option<(Snapshot, SessionState)>,
}

/// Takes the folder, prepares the data and reads the newest checkpoint; by the process that writes.
fn begin(plan: &Plan, options: &TrainOptions) -> Result<Begun> {
    let folder = RunFolder::new(options.run_dir);
    folder.refuse_links()?;
    if options.resume && !folder.holds_a_run() {
        // Before the lock, which would make the folder.
        return Err(Failure::Usage(format!(
            "{} holds no run to resume; start one by leaving out --resume",
            folder.root().display()
        ))
        .into());
    }
    let lock = RunLock::acquire(options.run_dir)?;
    folder.remove_temporaries()?;
    check_folder(&folder, plan, options)?;
    let dataset = data::prepare(&plan.data, options.data_cache)?;
    options.stop.preparation_ends();
    lock.check_held()?;
    let continues = options.resume && !options.restart;
    let mut checkpoints = Checkpoints::open(options.run_dir);
    let identity = Identity::of(plan, &dataset.summary);
    let resumed = if continues {
        check_data(&folder, &dataset)?;
        load_newest(&folder, &mut checkpoints, &identity)?
    } else {
        folder.set_history_aside()?;
        folder.describe(
            options.spec_yaml,
            plan,
            &dataset.summary,
            &dataset.tokenizer,
            options.device,
        )?;
        None
    };
    Ok(Begun { folder, lock: Some(lock), dataset, checkpoints, identity, resumed })
}

/// The same by a process that only computes.
fn join(plan: &Plan, options: &TrainOptions) -> Result<Begun> {
    let dataset = data::prepare(&plan.data, options.data_cache)?;
    options.stop.preparation_ends();
    Ok(Begun {
        folder: RunFolder::new(options.run_dir),
        lock: None,
        checkpoints: Checkpoints::open(options.run_dir),
        identity: Identity::of(plan, &dataset.summary),
        dataset,
        resumed: None,
    })
}

impl Session<'_> {
    /// Tells the observers what the run begins with, or goes on from.
    fn tell_of_start(
        &self,
        folder: &RunFolder,
        from: u64,
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
        if from > 0 {
            observers.on(&Event::Resumed { step: from, path: self.checkpoints.path(from) })?;
            folder.note_checkpoint(from)?;
            // Lines may have come more rarely before: only what no setting explains is a hole.
            let log_every = plan.train.log_every.0.max(folder.plan()?.train.log_every.0);
            if let Some(message) = folder.hole_in_metrics(from, log_every)? {
                observers.on(&Event::Warning { message })?;
            }
        }
        Ok(())
    }
}

/// Refuses to write into a folder that holds another run, or to lose what it holds.
fn check_folder(folder: &RunFolder, plan: &Plan, options: &TrainOptions) -> Result<()> {
    let root = folder.root().display();
    if options.restart {
        return Ok(());
    }
    if !options.resume {
        if !folder.has_history()? {
            return Ok(());
        }
        return Err(Failure::Usage(format!(
            "{root} already holds a run; continue it with --resume, choose another folder with \
             --run-dir, begin anew with --restart (its metrics and checkpoints are kept aside), \
             or delete it first"
        ))
        .into());
    }
    let differences = folder.plan()?.differences_but_of_paths(plan);
    if !differences.is_empty() {
        return Err(Failure::Usage(format!(
            "{root} was started with another plan; to resume it, undo these changes (run -> \
             now), or start a new run with --run-dir:\n  {}",
            differences.join("\n  ")
        ))
        .into());
    }
    folder.check_plan_is_as_written(plan)
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
) -> Result<Option<(Snapshot, SessionState)>> {
    let had_history = folder.has_history()?;
    let (snapshot, damaged) = checkpoints.load_latest()?;
    let loaded = match snapshot {
        Some(mut snapshot) => {
            let path = checkpoints.path(snapshot.step);
            let state: SessionState = serde_json::from_value(snapshot.state.take())
                .with_context(|| format!("{}: state.json", path.display()))?;
            identity.check(state.identity.as_ref(), &path)?;
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
