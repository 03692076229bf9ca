//! More steps for a run: back to where the longer run would have been the same, with everything
//! after it kept aside.

use super::run_folder::RunFolder;
use crate::checkpoint::{self, Checkpoints};
use crate::error::Failure;
use crate::fs::{read_ordinary, write_atomic};
use crate::spec::{Plan, ScheduleSpec};
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// Takes a run of the plan `before` back to its newest checkpoint that a run of the longer plan
/// `after` has, too, and says what was kept aside; the caller holds the run's lock and changes the
/// plan next.
///
/// A process that dies in between leaves the run as it was or without its last checkpoints, which
/// are in `checkpoints-<n>`.
///
/// # Errors
/// [`Failure::Usage`] if the plans differ otherwise, their schedule knows no more steps, or no
/// checkpoint is old enough; nothing has changed then.
pub fn go_back(folder: &RunFolder, before: &Plan, after: &Plan) -> Result<Vec<String>> {
    let until = agreement(folder, before, after)?;
    let mut checkpoints = Checkpoints::open(folder.root());
    let entries = checkpoints.list()?;
    let sound = entries.iter().rev().filter(|entry| entry.step <= until);
    let found = sound.map(|entry| (entry.step, checkpoint::verify(&entry.path)));
    let Some(step) = found.filter(|(_, verified)| verified.is_ok()).map(|(step, _)| step).next()
    else {
        let kept: Vec<String> = entries.iter().map(|entry| entry.step.to_string()).collect();
        if kept.is_empty() {
            // It has not come to a checkpoint: from the start on, it is the longer run.
            return Ok(Vec::new());
        }
        return Err(Failure::Usage(format!(
            "{}: its {} steps and the {} of the longer run are the same up to step {until}, and no \
             sound checkpoint of that step or one before is left (kept: {}); {}, and keep more \
             checkpoints (`checkpoint.keep_last`) in a run that may be extended",
            folder.root().display(),
            before.train.max_steps.0,
            after.train.max_steps.0,
            kept.join(", "),
            other_way(folder)
        ))
        .into());
    };
    let last = before.train.max_steps.0;
    let stays = |line: &Value| match line["step"].as_u64() {
        Some(of_line) if of_line > step => false,
        Some(of_line) if of_line == last => is_of_a_longer_run(line, before),
        _ => true,
    };
    let number = folder.free_number();
    let mut told = vec![format!(
        "{last} -> {} steps: the same run up to step {until}, going on from the checkpoint of step \
         {step}",
        after.train.max_steps.0
    )];
    for name in ["metrics.jsonl", "spectra.jsonl"] {
        if keep_lines(folder, name, number, &stays)? {
            told.push(format!(
                "{name} as it was is kept as {}",
                folder.aside(name, number).display()
            ));
        }
    }
    let later: Vec<_> = entries.into_iter().filter(|entry| entry.step > until).collect();
    if !later.is_empty() {
        let aside = folder.aside("checkpoints", number);
        let steps: Vec<u64> = later.iter().map(|entry| entry.step).collect();
        checkpoints.move_to(&aside, &steps)?;
        told.push(format!("checkpoints after step {until} are kept in {}", aside.display()));
    }
    keep_samples(folder, number, step)?;
    Ok(told)
}

/// The last step that both plans agree on.
///
/// # Errors
/// [`Failure::Usage`] if there is none.
pub(super) fn agreement(folder: &RunFolder, before: &Plan, after: &Plan) -> Result<u64> {
    if let Some(until) = before.agrees_until(after) {
        return Ok(until);
    }
    let schedule = match before.schedule {
        ScheduleSpec::Cosine(_) => Some("cosine"),
        ScheduleSpec::Linear(_) => Some("linear"),
        ScheduleSpec::Constant(_) | ScheduleSpec::WarmupStableDecay(_) => None,
    };
    let differences = before.binding_differences(after);
    let reason = match schedule {
        Some(name) => format!(
            "its schedule is {name}, which falls towards the last step from the first on; only \
             constant and warmup_stable_decay have steps that a longer run has, too"
        ),
        None => format!(
            "with more steps other settings change, too (run -> now):\n  {}\nkeep those that \
             follow from the number of steps by `--set`, as in `--set rank.tolerance.freeze=N`",
            differences.join("\n  ")
        ),
    };
    let root = folder.root().display();
    Err(Failure::Usage(format!("{root} cannot be extended: {reason}; or {}", other_way(folder)))
        .into())
}

/// What does for any run.
pub(super) fn other_way(folder: &RunFolder) -> String {
    format!(
        "begin a new run from this one's weights with `init: {{run: {}}}`",
        folder.root().display()
    )
}

/// Whether a run of more steps has this line of the last step, too: nothing in it is there because
/// that step was the last.
fn is_of_a_longer_run(line: &Value, before: &Plan) -> bool {
    let last = before.train.max_steps.0;
    let is_logged = last == 1 || last.is_multiple_of(before.train.log_every.0);
    let is_evaluated = last.is_multiple_of(before.eval.every.0);
    let has = |key: &str| line.get(key).is_some();
    // A line of spectra has lists of numbers.
    let is_spectrum = line.as_object().is_some_and(|line| line.values().any(Value::is_array));
    if has("train/loss") {
        return is_logged;
    }
    is_evaluated || !(has("val/loss") || has("lowrank/defect") || is_spectrum)
}

/// Drops lines of a file, which is kept aside as it was; false where all of them stay.
fn keep_lines(
    folder: &RunFolder,
    name: &str,
    number: u64,
    stays: &dyn Fn(&Value) -> bool,
) -> Result<bool> {
    let path = folder.root().join(name);
    let text = match read_ordinary(&path, u64::MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        read => read.with_context(|| path.display().to_string())?,
    };
    let mut kept = Vec::with_capacity(text.len());
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        // What is no line of figures is for the resumption to drop.
        if serde_json::from_slice(line).map_or(true, |line| stays(&line)) {
            kept.extend_from_slice(line);
        }
    }
    if kept == text {
        return Ok(false);
    }
    write_atomic(&folder.aside(name, number), &text)?;
    write_atomic(&path, &kept)?;
    Ok(true)
}

/// Moves the samples of later steps aside, where a later validation would write over them.
fn keep_samples(folder: &RunFolder, number: u64, step: u64) -> Result<()> {
    let samples = folder.root().join("samples");
    let entries = match std::fs::read_dir(&samples) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.with_context(|| samples.display().to_string())?,
    };
    let step_of = |path: &Path| -> Option<u64> {
        path.file_stem()?.to_str()?.strip_prefix("step-")?.parse().ok()
    };
    let aside = folder.aside("samples", number);
    for path in entries.flatten().map(|entry| entry.path()) {
        if let (Some(of_file), Some(name)) = (step_of(&path), path.file_name())
            && of_file > step
        {
            let moved = std::fs::create_dir_all(&aside)
                .and_then(|()| std::fs::rename(&path, aside.join(name)));
            moved.with_context(|| format!("{}: not kept aside", path.display()))?;
        }
    }
    Ok(())
}
