//! Events as lines for people. Pure functions.

use super::{EndReason, Evaluation, Ranks, Recovered, RunStarted, Step};
use crate::figures::{bytes, count, duration};

/// Most processes whose memory is listed one by one.
const LISTED: usize = 8;

/// A line that describes a run.
pub(super) fn run_started(run: &RunStarted) -> String {
    let parameters = match run.dense_parameters {
        _ if run.frozen_parameters > 0 => format!(
            "trains {} of {} parameters",
            count(run.parameters as f64),
            count((run.parameters + run.frozen_parameters) as f64)
        ),
        dense if dense == run.parameters => format!("{} parameters", count(run.parameters as f64)),
        dense => {
            format!("{} parameters (dense: {})", count(run.parameters as f64), count(dense as f64))
        }
    };
    let from =
        if run.start_step == 0 { String::new() } else { format!(", from step {}", run.start_step) };
    let threads =
        if run.threads == 1 { "1 thread".into() } else { format!("{} threads", run.threads) };
    format!(
        "{}: {parameters}, {} steps of {} tokens{from}, on {} with {threads}, in {}",
        run.name,
        run.max_steps,
        count(run.tokens_per_step as f64),
        run.device,
        run.run_dir.display()
    )
}

/// The figures of a step.
fn figures(step: &Step, validation_loss: Option<f64>) -> String {
    let mut parts = vec![format!("loss {:.4}", step.loss)];
    parts.extend(validation_loss.map(|loss| format!("val {loss:.4}")));
    parts.push(format!("lr {:.2e}", step.learning_rate));
    parts.push(format!("{} tokens/s", count(step.tokens_per_second)));
    parts.extend(step.rank_mean.map(|mean| format!("rank {mean:.1}")));
    parts.join("  ")
}

/// The text beside the bar. The time left comes first, since a narrow terminal cuts off the end.
pub(super) fn bar_message(step: &Step, validation_loss: Option<f64>, seconds_left: f64) -> String {
    format!("{} left  {}", duration(seconds_left), figures(step, validation_loss))
}

/// The figures of a step as a separate line.
pub(super) fn step_line(
    step: &Step,
    max_steps: u64,
    validation_loss: Option<f64>,
    seconds_left: f64,
) -> String {
    let width = max_steps.to_string().len();
    format!(
        "step {:>width$}/{max_steps}  {}  {} left",
        step.step,
        figures(step, validation_loss),
        duration(seconds_left)
    )
}

/// Seconds until the last step at the present rate; NaN if the rate is unknown.
pub(super) fn seconds_left(step: &Step, max_steps: u64, tokens_per_step: u64) -> f64 {
    if step.tokens_per_second > 0.0 {
        max_steps.saturating_sub(step.step) as f64 * tokens_per_step as f64 / step.tokens_per_second
    } else {
        f64::NAN
    }
}

/// A line about a validation.
pub(super) fn evaluation_line(evaluation: &Evaluation) -> String {
    let bits =
        evaluation.bits_per_byte.map(|bits| format!("  bits/byte {bits:.4}")).unwrap_or_default();
    format!(
        "validation at step {}: loss {:.4}  perplexity {:.2}{bits}  ({} tokens, {})",
        evaluation.step,
        evaluation.loss,
        evaluation.perplexity,
        count(evaluation.validation_tokens as f64),
        duration(evaluation.seconds)
    )
}

/// A line about the ranks of a model.
pub(super) fn ranks_line(ranks: &Ranks) -> String {
    let layers = ranks
        .layers
        .iter()
        .map(|layer| format!("{} {}", layer.name, layer.rank))
        .collect::<Vec<_>>()
        .join(", ");
    format!("ranks at step {}: {layers}", ranks.step)
}

/// What diverged and how the run goes on.
pub(super) fn recovered_line(recovered: &Recovered) -> String {
    let Recovered { step, back_to, skipped_steps, rollbacks, reason } = recovered;
    match back_to {
        Some(from) => format!(
            "{reason}; back to step {from} with other batches and half the learning rates \
             (rollback {rollbacks})"
        ),
        None => format!("{reason}; step {step} is left out ({skipped_steps} so far)"),
    }
}

/// How a run ended, and the most memory that each of its processes had, by rank.
pub(super) fn finished_line(
    step: u64,
    reason: EndReason,
    seconds: f64,
    peak_memory: &[u64],
) -> String {
    let list = |peaks: &[u64]| peaks.iter().map(|peak| bytes(*peak)).collect::<Vec<_>>().join(", ");
    let memory = match peak_memory {
        [] => String::new(),
        [peak] => format!("; peak memory {}", bytes(*peak)),
        peaks if peaks.len() <= LISTED => format!("; peak memory by rank {}", list(peaks)),
        peaks => {
            let (least, most) = (peaks.iter().min(), peaks.iter().max());
            let range = least.zip(most).map(|(least, most)| [*least, *most]).unwrap_or_default();
            format!("; peak memory of {} processes {}", peaks.len(), range.map(bytes).join(" to "))
        }
    };
    format!("{reason} at step {step} after {}{memory}", duration(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let step = Step {
            step: 10,
            loss: 4.123_44,
            learning_rate: 3e-3,
            tokens_per_second: 12_345.0,
            rank_mean: Some(64.0),
            ..Step::default()
        };
        assert_eq!(seconds_left(&step, 500, 4096), 490.0 * 4096.0 / 12_345.0);
        let left = seconds_left(&step, 500, 4096);
        insta::assert_snapshot!(
            step_line(&step, 500, Some(4.2), left),
            @"step  10/500  loss 4.1234  val 4.2000  lr 3.00e-3  12.3k tokens/s  rank 64.0  2m43s left"
        );
        let dense = Step { rank_mean: None, tokens_per_second: 0.0, ..step };
        insta::assert_snapshot!(bar_message(&dense, None, seconds_left(&dense, 500, 4096)), @"? left  loss 4.1234  lr 3.00e-3  0 tokens/s");

        let evaluation = Evaluation {
            step: 100,
            loss: 2.0,
            perplexity: 7.389,
            bits_per_byte: Some(0.9),
            validation_tokens: 65_536,
            seconds: 3.2,
            ..Default::default()
        };
        insta::assert_snapshot!(
            evaluation_line(&evaluation),
            @"validation at step 100: loss 2.0000  perplexity 7.39  bits/byte 0.9000  (65.5k tokens, 3s)"
        );

        let finished = |peaks: &[u64]| finished_line(12, EndReason::Completed, 3.0, peaks);
        assert_eq!(finished(&[]), "completed at step 12 after 3s");
        assert_eq!(finished(&[41_000_000]), "completed at step 12 after 3s; peak memory 41 MB");
        assert_eq!(
            finished(&[41_000_000, 39_500_000]),
            "completed at step 12 after 3s; peak memory by rank 41 MB, 39.5 MB"
        );
        let many: Vec<u64> = (1..=9).map(|index| index * 1_000_000).collect();
        assert_eq!(
            finished(&many),
            "completed at step 12 after 3s; peak memory of 9 processes 1 MB to 9 MB"
        );

        let run = RunStarted {
            name: "gpt-small".into(),
            run_dir: "runs/gpt-small".into(),
            parameters: 2_345_678,
            frozen_parameters: 0,
            dense_parameters: 4_200_000,
            start_step: 0,
            max_steps: 500,
            tokens_per_step: 4096,
            device: "cpu".into(),
            threads: 2,
        };
        insta::assert_snapshot!(
            run_started(&run),
            @"gpt-small: 2.35M parameters (dense: 4.2M), 500 steps of 4.1k tokens, on cpu with 2 threads, in runs/gpt-small"
        );
        let resumed_dense =
            RunStarted { dense_parameters: run.parameters, start_step: 250, threads: 1, ..run };
        insta::assert_snapshot!(
            run_started(&resumed_dense),
            @"gpt-small: 2.35M parameters, 500 steps of 4.1k tokens, from step 250, on cpu with 1 thread, in runs/gpt-small"
        );
        let adapted =
            RunStarted { parameters: 20_000, frozen_parameters: 4_200_000, ..resumed_dense };
        insta::assert_snapshot!(
            run_started(&adapted),
            @"gpt-small: trains 20k of 4.22M parameters, 500 steps of 4.1k tokens, from step 250, on cpu with 1 thread, in runs/gpt-small"
        );
    }
}
