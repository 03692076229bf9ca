//! Runs followed without a terminal: a line for each validation.

use super::LOOK_EVERY;
use super::figures::Validation;
use super::view::{Standing, View};
use crate::figures::{count, duration};
use crate::train::RunState;
use anyhow::Result;
use std::io::Write;
use std::thread::sleep;

/// Writes a line for each validation of the runs, those of before first, until none of them runs
/// any more; then a line on how each stands.
///
/// # Errors
/// If a line cannot be written.
pub fn follow(views: &mut [View], out: &mut impl Write) -> Result<()> {
    let width = views.iter().map(|view| view.name.chars().count()).max().unwrap_or(0);
    let mut written = vec![0; views.len()];
    let mut ended = vec![false; views.len()];
    loop {
        for (index, view) in views.iter_mut().enumerate() {
            if ended[index] {
                continue;
            }
            let validations = view.refresh();
            // Begun anew, or resumed before what was written: its steps come again.
            written[index] = u64::min(written[index], view.figures.progress.step);
            for validation in validations.iter().filter(|of| of.step > written[index]) {
                writeln!(out, "{:<width$}  {}", view.name, line(view, validation))?;
            }
            let last = validations.iter().map(|of| of.step).max();
            written[index] = written[index].max(last.unwrap_or(0));
            if !view.standing.is_active() {
                ended[index] = true;
                writeln!(out, "{:<width$}  {}", view.name, ending(view))?;
            }
            out.flush()?;
        }
        if ended.iter().all(|ended| *ended) {
            return Ok(());
        }
        sleep(LOOK_EVERY);
    }
}

/// A validation and what was known of the training then.
fn line(view: &View, validation: &Validation) -> String {
    let steps = view.max_steps.to_string();
    let mut parts = vec![
        format!("step {:>width$}/{steps}", validation.step, width = steps.len()),
        format!("val {:.4}", validation.loss),
    ];
    parts.extend(validation.bits_per_byte.map(|bits| format!("bits/byte {bits:.4}")));
    parts.extend(validation.training_loss.map(|loss| format!("loss {loss:.4}")));
    parts.extend(validation.rank_mean.map(|rank| format!("rank {rank:.1}")));
    parts.extend(validation.speed.map(|speed| format!("{} tokens/s", count(speed))));
    let is_newest = validation.step == view.figures.progress.step;
    let left = view.seconds_left().filter(|_| is_newest);
    parts.extend(left.map(|seconds| format!("{} left", duration(seconds))));
    parts.join("  ")
}

/// How a run stands that does not go on.
fn ending(view: &View) -> String {
    let at = format!("{} at step {}/{}", view.standing, view.figures.progress.step, view.max_steps);
    match (&view.standing, &view.trouble) {
        (Standing::Run(RunState::Failed(error)), _) => format!("{at}: {error}"),
        (_, Some(trouble)) => format!("{at}: {trouble}"),
        (Standing::Gone, None) => format!("{at}: its folder is no longer there"),
        (_, None) => at,
    }
}
