//! Progress for people: a bar on a terminal, log lines elsewhere.

use super::format::{
    bar_message, evaluation_line, finished_line, ranks_line, recovered_line, run_started,
    seconds_left, step_line,
};
use super::{Event, Observer, RunStarted, Step, Terminal};
use indicatif::{ProgressBar, ProgressStyle};

/// Target of the log lines about single steps, which are not shown on a terminal with a bar.
pub const STEP_TARGET: &str = "lrpt::progress::step";
/// Target of all log lines about a training, the beginning of [`STEP_TARGET`]. They have their numbers
/// in the message, and again as fields for JSON.
pub const PROGRESS_TARGET: &str = "lrpt::progress";
const TARGET: &str = PROGRESS_TARGET;

/// Shows a bar where the terminal supports one, and reports everything else as log lines, so that
/// `log.txt` has it too.
pub struct Console {
    terminal: Terminal,
    bar: ProgressBar,
    max_steps: u64,
    tokens_per_step: u64,
    validation_loss: Option<f64>,
}

impl Console {
    /// A console on this terminal, which must be the one that log lines are written to.
    pub fn new(terminal: Terminal) -> Self {
        Self {
            terminal,
            bar: ProgressBar::hidden(),
            max_steps: 0,
            tokens_per_step: 0,
            validation_loss: None,
        }
    }

    fn start(&mut self, run: &RunStarted) {
        tracing::info!(
            target: TARGET,
            run = run.run_dir.display().to_string(),
            parameters = run.parameters,
            frozen_parameters = run.frozen_parameters,
            dense_parameters = run.dense_parameters,
            start_step = run.start_step,
            max_steps = run.max_steps,
            tokens_per_step = run.tokens_per_step,
            device = run.device,
            threads = run.threads,
            "{}",
            run_started(run)
        );
        self.max_steps = run.max_steps;
        self.tokens_per_step = run.tokens_per_step;
        if self.terminal.is_interactive() {
            let style = ProgressStyle::with_template("{bar:16.cyan} {pos}/{len}  {wide_msg}")
                .expect("the template is valid");
            self.bar = self.terminal.add(
                ProgressBar::new(run.max_steps).with_style(style).with_position(run.start_step),
            );
            self.bar.tick();
        }
    }

    fn step(&mut self, step: &Step) {
        let left = seconds_left(step, self.max_steps, self.tokens_per_step);
        self.bar.set_position(step.step);
        self.bar.set_message(bar_message(step, self.validation_loss, left));
        tracing::info!(
            target: STEP_TARGET,
            step = step.step,
            tokens = step.tokens,
            loss = step.loss,
            validation_loss = self.validation_loss,
            learning_rate = step.learning_rate,
            learning_rate_low_rank = step.low_rank_learning_rate,
            tokens_per_second = step.tokens_per_second,
            rank_mean = step.rank_mean,
            seconds_left = left,
            "{}",
            step_line(step, self.max_steps, self.validation_loss, left)
        );
    }
}

impl Observer for Console {
    fn on(&mut self, event: &Event) -> anyhow::Result<()> {
        match event {
            Event::RunStarted(run) => self.start(run),
            Event::Resumed { step, path } => {
                tracing::info!(target: TARGET, step, "resumed at step {step} from {}", path.display())
            }
            Event::Progress { step } => self.bar.set_position(*step),
            Event::Step(step) => self.step(step),
            Event::Evaluation(evaluation) => {
                self.validation_loss = Some(evaluation.loss);
                tracing::info!(
                    target: TARGET,
                    step = evaluation.step,
                    loss = evaluation.loss,
                    perplexity = evaluation.perplexity,
                    bits_per_byte = evaluation.bits_per_byte,
                    tokens = evaluation.validation_tokens,
                    seconds = evaluation.seconds,
                    "{}",
                    evaluation_line(evaluation)
                );
            }
            Event::Ranks(ranks) => tracing::debug!(target: TARGET, "{}", ranks_line(ranks)),
            Event::Spectra(_) | Event::CheckpointDue { .. } => {}
            Event::Sample(sample) => {
                tracing::info!(target: TARGET, step = sample.step, "sample at step {}:\n{}", sample.step, sample.text)
            }
            Event::CheckpointSaved { step, path } => {
                tracing::info!(target: TARGET, step, "checkpoint of step {step} in {}", path.display())
            }
            Event::Recovered(recovered) => {
                self.bar.set_position(recovered.step.saturating_sub(1));
                tracing::warn!(target: TARGET, step = recovered.step, "{}", recovered_line(recovered));
            }
            Event::Warning { message } => tracing::warn!(target: TARGET, "{message}"),
            Event::Finished { step, reason, seconds, peak_memory } => {
                self.bar.finish_and_clear();
                tracing::info!(
                    target: TARGET,
                    step,
                    seconds,
                    peak_memory = (!peak_memory.is_empty()).then(|| format!("{peak_memory:?}")),
                    "{}",
                    finished_line(*step, *reason, *seconds, peak_memory)
                );
            }
        }
        Ok(())
    }
}

impl Drop for Console {
    /// Removes the bar, so that an error message stands alone.
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
