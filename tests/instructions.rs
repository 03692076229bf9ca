//! Training on answers only: the loss against a textbook, micro-batches, exact resume with the real
//! binary, and the shipped spec from an imported model to the end.

mod support;

use lrpt::data::{self, Dataset};
use lrpt::spec::{self, Plan};
use lrpt::train::Trainer;
use std::path::Path;
use std::sync::Arc;
use support::{Workplace, assert_same};

/// Lines of prompts and completions of many lengths, and conversations.
fn instructions(place: &Workplace) {
    let words = ["rank", "of", "a", "matrix", "grows"];
    let text = |from: usize, count: usize| -> String {
        (from..from + count).map(|i| words[i * i % 5]).collect::<Vec<_>>().join(" ")
    };
    let line = |i: usize| match i % 3 {
        0 => format!(
            "{{\"messages\": [{{\"role\": \"user\", \"content\": \"{}\"}}, {{\"role\": \"assistant\", \"content\": \"{}\"}}]}}\n",
            text(i, 1 + i % 2),
            text(i + 1, 1 + i % 4)
        ),
        _ => format!(
            "{{\"prompt\": \"{}: \", \"completion\": \"{}\"}}\n",
            text(i, 1 + i % 3),
            text(i + 2, 1 + i % 5)
        ),
    };
    let lines: String = (0..60).map(line).collect();
    std::fs::write(place.path("chat.jsonl"), lines).expect("the lines");
}

const SOURCE: &str = "data={source: {instructions: {train: [chat.jsonl]}}, tokenizer: chars}";

/// The data and the plan of the workplace's spec, with settings.
fn prepared(place: &Workplace, settings: &[&str]) -> (Dataset, Plan) {
    instructions(place);
    let path = place.path("chat.jsonl");
    let source = SOURCE.replace("chat.jsonl", path.to_str().expect("UTF-8"));
    let mut all = vec![source];
    all.extend(["model.block_size=48", "model.dropout=0.0"].map(String::from));
    all.extend(settings.iter().map(|setting| (*setting).to_owned()));
    let (_, plan) = spec::load_plan(&place.spec("dense", ""), &all).expect("a plan");
    (data::prepare(&plan.data, &place.path("data")).expect("data"), plan)
}

/// −ln softmax(logits)[target], in f64.
fn surprise(logits: &[f32], target: u32) -> f64 {
    let largest = logits.iter().fold(f64::MIN, |max, x| max.max(f64::from(*x)));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    sum.ln() + largest - f64::from(logits[target as usize])
}

/// The answers in a line, by reading it: where each begins and ends in its text.
fn answers(line: &str) -> (String, usize) {
    let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let (prompt, answer) = match value.get("prompt") {
        Some(prompt) => (text(prompt), text(&value["completion"])),
        None => {
            let content = |turn: usize| text(&value["messages"][turn]["content"]);
            (format!("<|user|>\n{}\n<|assistant|>\n", content(0)), content(1))
        }
    };
    (format!("{prompt}{answer}\n"), prompt.len())
}

/// A step's loss is the mean over all answers' tokens of the step, each example read by itself,
/// however the step is split into micro-batches; so are the weights after it.
#[test]
fn the_loss_is_the_mean_over_the_answers_of_a_step() {
    let place = Workplace::new();
    let mut seen: Vec<(f64, Vec<f32>)> = Vec::new();
    for (batch_size, micro) in [(54, 1), (18, 3), (6, 9)] {
        let sizes = [
            format!("train.batch_size={batch_size}"),
            format!("train.gradient_accumulation_steps={micro}"),
        ];
        let (dataset, plan) = prepared(&place, &[&sizes[0], &sizes[1]]);
        let device = candle_core::Device::Cpu;
        let tokenizer = dataset.tokenizer;
        let text = Arc::new(dataset.train);
        let vocabulary = dataset.summary.vocab_size;
        let mut trainer = Trainer::fresh(&plan, &device, vocabulary, text).expect("a trainer");
        // An epoch is the 54 training examples, so that the first step sees each once.
        let lines = std::fs::read_to_string(place.path("chat.jsonl")).expect("lines");
        let (mut sum, mut count, mut cut) = (0.0, 0, 0);
        for line in lines.lines().take(54) {
            let (text, from) = answers(line);
            let tokens = tokenizer.encode(&text).expect("tokens");
            cut += usize::from(tokens.len() > 49);
            for at in from..tokens.len().min(49) {
                let logits = trainer.model.next_token_logits(&trainer.params, &tokens[..at]);
                let logits = logits.and_then(|logits| logits.to_vec1::<f32>()).expect("logits");
                sum += surprise(&logits, tokens[at]);
                count += 1;
            }
        }
        assert!(cut > 0 && count > 500, "{cut} of the examples are cut, {count} tokens count");
        assert_eq!(trainer.tokens_of_step(1), count);
        let loss = trainer.step(1).expect("a step").report.loss;
        let expected = sum / count as f64;
        assert!((loss - expected).abs() < 1e-5, "{micro} micro-batches: {loss}, {expected} wanted");
        let weights = trainer.params.named_tensors().swap_remove(0).1;
        let weights = weights.flatten_all().and_then(|w| w.to_vec1()).expect("numbers");
        seen.push((loss, weights));
    }
    for (loss, weights) in &seen[1..] {
        assert!((loss - seen[0].0).abs() < 1e-6);
        let differences = weights.iter().zip(&seen[0].1).map(|(a, b)| (a - b).abs());
        let largest = differences.fold(0.0, f32::max);
        assert!(largest < 1e-5, "weights after the step differ by {largest}");
    }
}

#[test]
fn resume_is_exact() {
    let place = Workplace::new();
    instructions(&place);
    let extra = "checkpoint: {every: 5, keep_last: 2}";
    place.spec("{low_rank: {rank: 6}}", extra);
    let train = |run: &str, more: &[&str]| {
        let mut arguments = vec![
            "train",
            "spec.yaml",
            "--run-dir",
            run,
            "--set",
            SOURCE,
            "--set",
            "model.block_size=48",
        ];
        arguments.extend(more);
        place.run(&arguments, 0)
    };
    train("whole", &[]);
    for stop in ["3", "6"] {
        let run = format!("broken-{stop}");
        train(&run, &["--stop-after", stop]);
        train(&run, &["--resume"]);
        let what = format!("stopped after step {stop}");
        assert_same(&place.trajectory("whole", 12), &place.trajectory(&run, 12), &what);
    }
    // Tokens are those that were trained on.
    let lines = support::metrics(&place.path("whole/metrics.jsonl"));
    let lines = lines.iter().map(|line| serde_json::from_str(line).expect("JSON"));
    let lines: Vec<serde_json::Value> = lines.collect();
    let last = lines.iter().rfind(|line| line["tokens"].is_u64()).expect("a line with tokens");
    let tokens = last["tokens"].as_u64().expect("tokens");
    assert!(tokens > 12 * 8 && tokens < 12 * 8 * 48, "{last}");
}

/// The shipped spec on a small model of transformers' form: its chat template makes the text.
#[test]
fn the_shipped_spec_adapts_an_imported_model_by_its_chat_template() {
    let place = Workplace::new();
    instructions(&place);
    place.spec("dense, arch: llama, n_kv_head: 1", "");
    // Its tokenizer knows no characters but these.
    let text = "<|user|> <|assistant|> rank of a matrix grows: {}[]()';,.\n\"";
    std::fs::write(place.path("text.txt"), text.repeat(40)).expect("a text");
    place.run(
        &[
            "train",
            "spec.yaml",
            "--run-dir",
            "source",
            "--set",
            "model.bias=false",
            "--set",
            "model.dropout=0.0",
        ],
        0,
    );
    place.run(&["export", "source", "--to", "exported"], 0);
    let template = "{% for message in messages %}{{ message['role'][0] + ': ' }}{{ message['content'] | trim }}\n{% endfor %}{% if add_generation_prompt %}a: {% endif %}";
    std::fs::write(place.path("exported/chat_template.jinja"), template).expect("a template");
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/finetune-instructions.yaml");
    let config = config.to_str().expect("UTF-8");
    let model = "model={arch: llama, n_layer: 2, n_head: 2, n_kv_head: 1, n_embd: 32, block_size: 16, weights: {adapter: {rank: 2}}}";
    let settings = [
        "init={hf: exported}",
        model,
        "data.tokenizer={file: exported/tokenizer.json}",
        "data.source.instructions.train=[chat.jsonl]",
        "train={max_steps: 4, batch_size: 4, gradient_accumulation_steps: 2}",
        "eval={every: 2, tokens: 64}",
        "schedule={constant: {warmup_steps: 0}}",
        "device=cpu",
    ];
    let set: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let stdout = |output: std::process::Output| String::from_utf8(output.stdout).expect("UTF-8");
    let check = |code| stdout(place.run(&[&["spec", "check", config], &set[..]].concat(), code));
    assert!(check(0).contains("known once the data is prepared"), "{}", check(0));
    let prepared = stdout(place.run(&[&["data", "prepare", config], &set[..]].concat(), 0));
    let line = prepared.lines().find(|line| line.ends_with("%)")).expect("trained tokens");
    assert!(line.starts_with("train ") && check(0).contains(line), "{prepared}");
    let inspected =
        stdout(place.run(&[&["data", "inspect", config, "--tokens", "40"], &set[..]].concat(), 0));
    assert!(inspected.contains("the tokenizer's chat template"), "{inspected}");
    let trained = place.run(&[&["train", config, "--run-dir", "adapted"], &set[..]].concat(), 0);
    let stderr = String::from_utf8_lossy(&trained.stderr);
    assert!(stderr.contains("cut to model.block_size 16"), "{stderr}");
    let result: serde_json::Value = serde_json::from_slice(&trained.stdout).expect("one object");
    assert!(result["loss"].as_f64().is_some_and(|loss| loss > 0.0 && loss < 6.0), "{result}");

    // It goes out with the model, and a run that starts from this one has it.
    for (to, more) in [("merged", &["--merge"][..]), ("adapter", &[])] {
        place.run(&[&["export", "adapted", "--to", to][..], more].concat(), 0);
        let written = std::fs::read_to_string(place.path(&format!("{to}/chat_template.jinja")));
        let written = written.expect("a template");
        // The tokenizer, of characters, has no special tokens to name.
        assert!(written.ends_with(template) && !written.contains("eos_token"), "{to}: {written}");
        let config = std::fs::read_to_string(place.path(&format!("{to}/tokenizer_config.json")));
        let config: serde_json::Value = serde_json::from_str(&config.expect("it")).expect("JSON");
        assert_eq!(config["chat_template"].as_str(), Some(written.as_str()), "{to}");
    }
    let own = ["--set", "data.tokenizer={file: adapted/tokenizer.json}"];
    let again = place.run(&[&["data", "prepare", config], &set[..], &own].concat(), 0);
    let again = String::from_utf8(again.stdout).expect("UTF-8");
    assert!(again.contains("the tokenizer's chat template"), "{again}");

    // A template that writes earlier turns in another way is refused, with the line.
    std::fs::write(
        place.path("exported/chat_template.jinja"),
        "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}",
    )
    .expect("a template");
    let refused = place.run(&[&["data", "prepare", config], &set[..]].concat(), 1);
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(stderr.contains("chat.jsonl:1") && stderr.contains("{% generation %}"), "{stderr}");
}

#[test]
fn wrong_lines_and_settings_are_named() {
    let place = Workplace::new();
    place.spec("dense", "");
    std::fs::write(place.path("chat.jsonl"), "{\"prompt\": \"a\"}\n".repeat(4)).expect("lines");
    let error = |source: &str, code: i32| {
        let set = format!("data.source={{instructions: {{{source}}}}}");
        let output = place.run(&["data", "prepare", "spec.yaml", "--set", &set], code);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let message = error("train: [chat.jsonl]", 1);
    assert!(message.contains("chat.jsonl:1") && message.contains("has `prompt`"), "{message}");
    let message = error("train: []", 2);
    assert!(message.contains("the list of files is empty"), "{message}");
    let message = error("train: [chat.jsonl], chat_template: none.jinja", 2);
    assert!(message.contains("chat_template: none.jinja"), "{message}");
    std::fs::write(place.path("bad.jinja"), "{% if %}").expect("a template");
    let message = error("train: [chat.jsonl], chat_template: bad.jinja", 2);
    assert!(message.contains("chat template bad.jinja"), "{message}");
}
