//! The figures of an event under the keys of `metrics.jsonl`.

use super::{EndReason, Evaluation, Event, Ranks, Recovered, Spectra, Step};
use serde_json::{Map, Value, json};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

/// Whether the values under this key depend on the clock or the machine, and so differ between
/// otherwise equal runs.
pub fn is_wall_clock_key(key: &str) -> bool {
    matches!(key, "time" | "train/tok_per_sec")
        || key.starts_with("time/")
        || key.starts_with("mem/")
}

/// The line of `metrics.jsonl` for an event: its figures and, after the step, the `time` (UTC, RFC
/// 3339) at which it is asked for.
pub fn metrics(event: &Event) -> Option<Map<String, Value>> {
    let mut line = metric_values(event)?;
    line.shift_insert(1, "time".to_owned(), json!(now()));
    Some(line)
}

/// This moment in UTC, as RFC 3339 writes it: `2026-11-25T21:20:46.123456Z`.
fn now() -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// The figures of an event under the keys of `metrics.jsonl`, in a fixed order; none for an event
/// without figures.
///
/// A value that is not a finite number is written as `null`, since JSON has no other way to express
/// it.
pub fn metric_values(event: &Event) -> Option<Map<String, Value>> {
    match event {
        Event::Step(step) => Some(step_metrics(step)),
        Event::Evaluation(evaluation) => Some(evaluation_metrics(evaluation)),
        Event::Ranks(ranks) => Some(ranks_metrics(ranks)),
        Event::Recovered(recovered) => Some(recovered_metrics(recovered)),
        Event::Finished { step, reason: EndReason::Diverged, .. } => Some(diverged(*step)),
        _ => None,
    }
}

/// The line of `spectra.jsonl` for an event: the singular values of each low-rank weight under its
/// name.
pub fn spectra(event: &Event) -> Option<Map<String, Value>> {
    let Event::Spectra(Spectra { step, layers }) = event else { return None };
    let mut line = Map::new();
    line.insert("step".to_owned(), json!(step));
    line.extend(layers.iter().map(|(name, values)| (name.clone(), json!(values))));
    Some(line)
}

/// Steps left out and rollbacks so far, each where there were any.
fn recovered_metrics(recovered: &Recovered) -> Map<String, Value> {
    let counts = [
        ("train/skipped_steps", recovered.skipped_steps),
        ("train/rollbacks", recovered.rollbacks),
    ];
    let counts = counts.into_iter().filter(|(_, count)| *count > 0);
    let line = [("step", recovered.step)].into_iter().chain(counts);
    line.map(|(key, value)| (key.to_owned(), json!(value))).collect()
}

/// The line that a run ends with where it diverged.
fn diverged(step: u64) -> Map<String, Value> {
    let line = [("step", json!(step)), ("diverged", json!(true))];
    line.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn step_metrics(step: &Step) -> Map<String, Value> {
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| line.insert(key.to_string(), value);
    put("step", json!(step.step));
    put("tokens", json!(step.tokens));
    put("flops", json!(step.flops));
    put("params", json!(step.parameters));
    put("train/loss", json!(step.loss));
    put("train/grad_norm", json!(step.grad_norm));
    put("train/lr", json!(step.learning_rate));
    if let Some(rate) = step.low_rank_learning_rate {
        put("train/lr_low_rank", json!(rate));
    }
    put("train/tok_per_sec", json!(step.tokens_per_second));
    if let Some(mean) = step.rank_mean {
        put("rank/mean", json!(mean));
    }
    if let Some(bytes) = step.wire_bytes {
        put("train/wire_bytes", json!(bytes));
    }
    for (phase, seconds) in &step.times {
        put(&format!("time/{phase}"), json!(seconds));
    }
    for (what, bytes) in &step.memory {
        put(&format!("mem/{what}"), json!(bytes));
    }
    line
}

fn evaluation_metrics(evaluation: &Evaluation) -> Map<String, Value> {
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| line.insert(key.to_string(), value);
    put("step", json!(evaluation.step));
    put("tokens", json!(evaluation.tokens));
    put("flops", json!(evaluation.flops));
    put("params", json!(evaluation.parameters));
    put("val/loss", json!(evaluation.loss));
    put("val/ppl", json!(evaluation.perplexity));
    if let Some(bits) = evaluation.bits_per_byte {
        put("val/bpb", json!(bits));
    }
    put("val/tokens", json!(evaluation.validation_tokens));
    put("time/eval", json!(evaluation.seconds));
    line
}

fn ranks_metrics(ranks: &Ranks) -> Map<String, Value> {
    let mut line = Map::new();
    let mut put = |key: &str, value: Value| line.insert(key.to_string(), value);
    put("step", json!(ranks.step));
    for layer in &ranks.layers {
        put(&format!("rank/{}", layer.name), json!(layer.rank));
    }
    for layer in &ranks.layers {
        if let Some(error) = layer.truncation_error {
            put(&format!("lowrank/truncation_error/{}", layer.name), json!(error));
        }
        if let Some(energy) = layer.discarded_energy {
            put(&format!("lowrank/discarded_energy/{}", layer.name), json!(energy));
        }
    }
    if let Some(defect) = ranks.defect {
        put("lowrank/defect", json!(defect));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::LayerRank;

    fn text(event: Event) -> String {
        serde_json::to_string(&metric_values(&event).unwrap()).unwrap()
    }

    #[test]
    fn keys_and_their_order() {
        let step = Step {
            step: 10,
            tokens: 40_960,
            flops: 123_000_000_000,
            parameters: 2_000_000,
            loss: 0.1 + 0.2,
            grad_norm: 1.5,
            learning_rate: 3e-3,
            low_rank_learning_rate: Some(1e-2),
            tokens_per_second: 5000.25,
            rank_mean: Some(63.5),
            wire_bytes: None,
            times: [("linalg", 0.25), ("data", 0.5)].into(),
            memory: [("resident", 1 << 30)].into(),
        };
        let shared = Step { wire_bytes: Some(21_008_384), ..step.clone() };
        let shared = text(Event::Step(shared));
        assert!(shared.contains(r#""rank/mean":63.5,"train/wire_bytes":21008384,"time/data""#));
        insta::assert_snapshot!(
            text(Event::Step(step)),
            @r#"{"step":10,"tokens":40960,"flops":123000000000,"params":2000000,"train/loss":0.30000000000000004,"train/grad_norm":1.5,"train/lr":0.003,"train/lr_low_rank":0.01,"train/tok_per_sec":5000.25,"rank/mean":63.5,"time/data":0.5,"time/linalg":0.25,"mem/resident":1073741824}"#
        );
        let evaluation = Evaluation {
            step: 10,
            tokens: 40_960,
            flops: 123_000_000_000,
            parameters: 2_000_000,
            loss: 2.0,
            perplexity: 7.38905609893065,
            bits_per_byte: Some(1.25),
            validation_tokens: 65_536,
            seconds: 2.5,
        };
        insta::assert_snapshot!(
            text(Event::Evaluation(evaluation)),
            @r#"{"step":10,"tokens":40960,"flops":123000000000,"params":2000000,"val/loss":2.0,"val/ppl":7.38905609893065,"val/bpb":1.25,"val/tokens":65536,"time/eval":2.5}"#
        );
        let truncated = LayerRank {
            name: "h.1.attn.q".into(),
            rank: 32,
            truncation_error: Some(0.01),
            discarded_energy: Some(2.5e-3),
        };
        let kept = LayerRank { name: "h.0.attn.q".into(), rank: 64, ..LayerRank::default() };
        let ranks = Ranks { step: 10, layers: vec![truncated, kept], defect: Some(1e-7) };
        insta::assert_snapshot!(
            text(Event::Ranks(ranks)),
            @r#"{"step":10,"rank/h.1.attn.q":32,"rank/h.0.attn.q":64,"lowrank/truncation_error/h.1.attn.q":0.01,"lowrank/discarded_energy/h.1.attn.q":0.0025,"lowrank/defect":1e-7}"#
        );
        assert!(metrics(&Event::Progress { step: 1 }).is_none());
    }

    #[test]
    fn a_line_says_when_it_was_written() {
        let line = metrics(&Event::Step(Step::default())).unwrap();
        let keys: Vec<&String> = line.keys().take(3).collect();
        assert_eq!(keys, ["step", "time", "tokens"]);
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
    }

    #[test]
    fn only_rates_times_and_memory_depend_on_the_clock() {
        assert!(
            ["time", "train/tok_per_sec", "time/data", "time/eval", "mem/resident"]
                .into_iter()
                .all(is_wall_clock_key)
        );
        assert!(
            ![
                "step",
                "tokens",
                "train/loss",
                "train/lr",
                "val/loss",
                "rank/mean",
                "lowrank/defect"
            ]
            .into_iter()
            .any(is_wall_clock_key)
        );
    }
}
