//! The page of one run: where it stands, its curves, ranks and spectra, what it wrote, its spec.

use super::page::{document, figures};
use super::run_charts::run_charts;
use super::run_results::RunResults;
use crate::error::Failure;
use crate::figures::{bytes, count, duration, operations};
use crate::fs::{LONGEST_TEXT, read_ordinary, refuse_link, write_atomic};
use crate::plot::escape;
use crate::train::{RunFolder, RunState};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};

/// Reads a run, whether it has ended or not, and writes its page; returns the page's path, by
/// default `report.html` in the run's folder.
///
/// # Errors
/// If the folder holds no run, a file of it cannot be read, or the page is a link or cannot be
/// written.
pub fn write_run_report(folder: &Path, page: Option<PathBuf>) -> Result<PathBuf> {
    let run = RunResults::read(folder).map_err(|error| Failure::Usage(format!("{error:#}")))?;
    let samples = samples(folder)?;
    let spec = RunFolder::new(folder).spec_yaml()?;
    let page = page.unwrap_or_else(|| folder.join("report.html"));
    refuse_link(&page).map_err(|error| Failure::Usage(error.to_string()))?;
    let body = format!(
        "<p class=\"headline\">{}</p>\n{}{}{}<h2>Spec</h2>\n<pre>{}</pre>\n",
        escape(&headline(&run)),
        facts(&run),
        figures(&run_charts(&run)),
        texts(&samples),
        escape(&spec)
    );
    write_atomic(&page, document(&run.plan.name, &body).as_bytes())?;
    Ok(page)
}

/// Step and text of each sample, in the order of their steps.
fn samples(folder: &Path) -> Result<Vec<(u64, String)>> {
    let mut samples = Vec::new();
    let folder = folder.join("samples");
    let entries = match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(samples),
        entries => entries.with_context(|| folder.display().to_string())?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let step = name.and_then(|name| name.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step.filter(|_| path.is_file()) {
            let text =
                read_ordinary(&path, LONGEST_TEXT).with_context(|| path.display().to_string())?;
            samples.push((step, String::from_utf8_lossy(&text).into_owned()));
        }
    }
    samples.sort();
    Ok(samples)
}

/// Where the run stands, in a sentence or two.
fn headline(run: &RunResults) -> String {
    let state = match run.unfinished() {
        None => format!("Finished, {} steps", run.plan.train.max_steps),
        Some(state) => {
            let mut letters = state.chars();
            let first = letters.next().map(|letter| letter.to_uppercase().to_string());
            first.unwrap_or_default() + letters.as_str()
        }
    };
    match run.validations.last() {
        Some(newest) => format!(
            "{state}. Validation loss {:.4} at step {}, a perplexity of {:.2}.",
            newest.loss,
            newest.step,
            newest.loss.exp()
        ),
        None if run.state == RunState::Running => format!("{state}. Not validated yet."),
        None => format!("{state}. Never validated."),
    }
}

/// What there is to know of the run in single figures, as a table.
fn facts(run: &RunResults) -> String {
    let (plan, data) = (&run.plan, &run.data);
    let mut rows: Vec<(&str, String)> = Vec::new();
    if let RunState::Failed(error) = &run.state {
        rows.push(("Ended with", error.clone()));
    }
    let best = run.validations.iter().filter(|point| point.loss.is_finite());
    if let Some(best) = best.min_by(|a, b| a.loss.total_cmp(&b.loss)) {
        rows.push(("Best validation", format!("{:.4} at step {}", best.loss, best.step)));
    }
    if let Some(newest) = run.validations.last() {
        let degrees = run.manifold_dimension().map(|dimension| {
            format!("; degrees of freedom, r (m + n − r) and the rest: {}", count(dimension))
        });
        rows.push((
            "Parameters",
            format!("{} trained{}", count(newest.parameters), degrees.unwrap_or_default()),
        ));
        rows.push((
            "Spent",
            format!(
                "{} tokens, {} operations, {} of training steps",
                count(newest.tokens),
                operations(newest.flops),
                duration(newest.seconds)
            ),
        ));
    }
    if let (RunState::Running, Some(at)) = (&run.state, run.steps.last()) {
        let left = plan.train.max_steps.0.saturating_sub(at.step);
        let seconds = left as f64 * plan.tokens_per_step as f64 / at.tokens_per_second;
        rows.push(("Left", format!("{left} steps, about {}", duration(seconds))));
    }
    if run.rollbacks + run.skipped_steps > 0 {
        rows.push((
            "Diverged steps",
            format!("{} left out, {} times gone back", run.skipped_steps, run.rollbacks),
        ));
    }
    let model = &plan.model;
    rows.push((
        "Network",
        format!(
            "{} blocks, {} heads, width {}, block size {}",
            model.n_layer, model.n_head, model.n_embd, model.block_size
        ),
    ));
    rows.push((
        "Text",
        format!(
            "{}: {} training and {} validation tokens, {}",
            data.source,
            count(data.train_tokens as f64),
            count(data.val_tokens as f64),
            data.tokenizer
        ),
    ));
    rows.push(("Step", format!("{} tokens", count(plan.tokens_per_step as f64))));
    let memory = run.peak_memory.map(|peak| format!("; {} of memory at most", bytes(peak)));
    rows.push(("Machine", format!("{}{}", run.machine, memory.unwrap_or_default())));
    rows.push(("Folder", run.folder.display().to_string()));
    let rows: String = rows
        .iter()
        .map(|(name, value)| format!("<tr><th>{name}</th><td>{}</td></tr>\n", escape(value)))
        .collect();
    format!("<table class=\"facts\">\n{rows}</table>\n")
}

/// The newest sample, and the others behind it.
fn texts(samples: &[(u64, String)]) -> String {
    let Some(((step, newest), earlier)) = samples.split_last() else { return String::new() };
    let earlier: String = earlier
        .iter()
        .rev()
        .map(|(step, text)| {
            format!("<p>Step {step}</p>\n<pre class=\"text\">{}</pre>\n", escape(text))
        })
        .collect();
    let earlier = match earlier.is_empty() {
        true => earlier,
        false => format!("<details><summary>Earlier samples</summary>\n{earlier}</details>\n"),
    };
    format!(
        "<h2>Sample at step {step}</h2>\n<pre class=\"text\">{}</pre>\n{earlier}",
        escape(newest)
    )
}

#[cfg(test)]
mod tests {
    use super::super::run_results::tests_support::finished;
    use super::*;

    #[test]
    fn the_headline_says_what_has_become_of_a_run() {
        let mut run = finished(1, 2.0);
        assert!(headline(&run).starts_with("Finished, 100 steps. Validation loss 2.0000"));
        (run.state, run.diverged) = (RunState::Diverged, Some(60));
        run.steps.pop();
        run.validations.pop();
        assert_eq!(
            headline(&run),
            "Diverged, step 60 of 100. Validation loss 2.5000 at step 50, a perplexity of 12.18."
        );
        run.validations.clear();
        assert!(headline(&run).ends_with(". Never validated."), "{}", headline(&run));
        run.state = RunState::Running;
        assert!(headline(&run).ends_with(". Not validated yet."), "{}", headline(&run));
    }
}
