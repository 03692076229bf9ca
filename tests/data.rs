//! Data through the binary; the numbers are those of the cases that once went wrong.

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Output, Stdio};
use support::Workplace;

/// A spec of one step on this data.
fn spec(place: &Workplace, data: &str) {
    let yaml = format!(
        "name: small\nseed: 5\ndevice: cpu\n\
         model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, weights: dense}}\n\
         data: {data}\n\
         train: {{max_steps: 2, batch_size: 2, log_every: 1}}\n\
         schedule: {{constant: {{warmup_steps: 0}}}}\n\
         eval: {{every: 2, tokens: 256}}\n\
         sample: {{tokens: 12}}\n"
    );
    std::fs::write(place.path("spec.yaml"), yaml).expect("the spec");
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("UTF-8")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn write_numbers(place: &Workplace, name: &str, numbers: impl Iterator<Item = u32>, width: usize) {
    let bytes: Vec<u8> = numbers.flat_map(|n| n.to_le_bytes()[..width].to_vec()).collect();
    std::fs::write(place.path(name), bytes).expect("the tokens");
}

/// Case 21: a character whose bytes are tokens of their own is shown when it is whole.
#[test]
fn a_tokenizer_of_bytes_generates_whole_characters() {
    let place = Workplace::new();
    let tokenizer = include_str!("support/byte-fallback-tokenizer.json");
    std::fs::write(place.path("tokenizer.json"), tokenizer).unwrap();
    spec(&place, "{source: {text: {path: text.txt}}, tokenizer: {file: tokenizer.json}}");
    place.run(&["train", "spec.yaml", "--run-dir", "run"], 0);
    let output =
        place.run(&["generate", "run", "--prompt", "é", "--tokens", "50", "--device", "cpu"], 0);
    assert!(stdout(&output).contains('é'), "{}", stdout(&output));
    let output = place.run(&["generate", "run", "--tokens", "50", "--device", "cpu"], 0);
    assert!(stdout(&output).chars().count() > 10, "{}", stdout(&output));
}

/// Case 32: a tokenizer without a newline, and no prompt.
#[test]
fn generation_without_a_prompt_begins_as_samples_do() {
    let place = Workplace::new();
    let text = std::fs::read_to_string(place.path("text.txt")).unwrap();
    std::fs::write(place.path("text.txt"), text.replace('\n', " ")).unwrap();
    spec(&place, "{source: {text: {path: text.txt}}, tokenizer: chars}");
    place.run(&["train", "spec.yaml", "--run-dir", "run"], 0);
    let output = place.run(&["generate", "run", "--tokens", "8", "--device", "cpu"], 0);
    // Token 0 is the space; 8 more and the end of the line follow.
    assert_eq!(stdout(&output).len(), 10);
    assert!(stdout(&output).starts_with(' '));
    let output = place.run(&["generate", "run", "--prompt", "\n", "--device", "cpu"], 2);
    assert!(stderr(&output).contains("'\\n'"), "{}", stderr(&output));
}

/// Case 16: tokens that are not the tokenizer's have no known bytes, and samples show numbers.
#[test]
fn tokens_of_another_tokenizer_have_no_bits_per_byte() {
    let place = Workplace::new();
    for name in ["train.bin", "val.bin"] {
        write_numbers(&place, name, (0..2000).map(|n| n * 37 % 5000), 2);
    }
    spec(
        &place,
        "{source: {bin: {train: train.bin, val: val.bin, vocab_size: 5000}}, tokenizer: bytes}",
    );
    let output = place.run(&["train", "spec.yaml", "--run-dir", "run"], 0);
    let result: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(result["bits_per_byte"].is_null() && result["loss"].is_f64(), "{result}");
    let sample = std::fs::read_to_string(place.path("run/samples/step-00000002.txt")).unwrap();
    assert!(sample.contains('⟨'), "{sample}");
    let output = place.run(&["data", "inspect", "spec.yaml"], 0);
    assert!(stdout(&output).contains("unknown"), "{}", stdout(&output));
    place.run(&["generate", "run", "--tokens", "8", "--device", "cpu"], 0);
}

/// Case 12: tokens of four bytes are read as such or refused.
#[test]
fn tokens_of_four_bytes_are_not_read_as_halves() {
    let place = Workplace::new();
    write_numbers(&place, "t.bin", 70_000..90_000, 4);
    let data = |key: &str| {
        format!(
            "{{source: {{bin: {{train: t.bin, val: t.bin, vocab_size: 151936{key}}}}}, tokenizer: bytes}}"
        )
    };
    spec(&place, &data(""));
    let output = place.run(&["data", "prepare", "spec.yaml"], 2);
    assert!(stderr(&output).contains("data.source.bin.dtype: u32"), "{}", stderr(&output));
    spec(&place, &data(", dtype: u32"));
    let output = place.run(&["data", "inspect", "spec.yaml", "--tokens", "2"], 0);
    let shown = stdout(&output);
    assert!(shown.contains(" 20000 ") && shown.contains(" 70001 "), "{shown}");
}

/// Case 17: what stands between documents is said where the tokenizer has no end of text.
#[test]
fn a_tokenizer_without_an_end_of_text_is_warned_of() {
    let place = Workplace::new();
    let tokenizer = include_str!("support/byte-fallback-tokenizer.json");
    std::fs::write(place.path("with.json"), tokenizer.replace("<unk>", "</s>")).unwrap();
    std::fs::write(place.path("without.json"), tokenizer).unwrap();
    let lines: String = (0..40).map(|n| format!("{{\"text\": \"document {n}\"}}\n")).collect();
    std::fs::write(place.path("d.jsonl"), lines).unwrap();
    let prepare = |tokenizer: &str, key: &str| {
        let source = "source: {jsonl: {train: [d.jsonl]}}";
        spec(&place, &format!("{{{source}, tokenizer: {{file: {tokenizer}}}{key}}}"));
        stderr(&place.run(&["data", "prepare", "spec.yaml"], 0))
    };
    assert!(prepare("without.json", "").contains("end-of-text"));
    assert!(!prepare("without.json", ", end_of_text: <unk>").contains("end-of-text"));
    assert!(!prepare("with.json", "").contains("end-of-text"));
}

/// Case 37: the same text at another path is the same data; another text is not.
#[test]
fn a_run_goes_on_with_its_text_at_another_path() {
    let place = Workplace::new();
    spec(&place, "{source: {text: {path: text.txt}}, tokenizer: bytes}");
    place.run(&["train", "spec.yaml", "--run-dir", "run", "--stop-after", "1"], 0);
    std::fs::rename(place.path("text.txt"), place.path("moved.txt")).unwrap();
    spec(&place, "{source: {text: {path: moved.txt}}, tokenizer: bytes}");
    let resume = ["train", "spec.yaml", "--run-dir", "run", "--resume"];
    let text = std::fs::read_to_string(place.path("moved.txt")).unwrap();
    std::fs::write(place.path("moved.txt"), text.replacen('a', "e", 1)).unwrap();
    let output = place.run(&resume, 2);
    assert!(stderr(&output).contains("has changed since the run began"), "{}", stderr(&output));
    std::fs::write(place.path("moved.txt"), text).unwrap();
    place.run(&resume, 0);
    assert!(place.path("run/checkpoints/step-00000002").exists());
}

/// Issue 13, hostile folders: what a model writes may be what a stranger's text or tokenizer has in
/// it; on terminals and in logs it moves no cursor and changes no colour.
#[test]
fn control_characters_of_a_sample_are_shown() {
    let place = Workplace::new();
    std::fs::write(place.path("text.txt"), "\u{1b}[31m\r\u{9b}2J\n".repeat(800)).unwrap();
    spec(&place, "{source: {text: {path: text.txt}}, tokenizer: chars}");
    let said = stderr(&place.run(&["train", "spec.yaml", "--run-dir", "run"], 0));
    let sample = std::fs::read_to_string(place.path("run/samples/step-00000002.txt")).unwrap();
    assert!(sample.contains(['\u{1b}', '\r', '\u{9b}']), "the sample has none: {sample:?}");
    let log = std::fs::read_to_string(place.path("run/log.txt")).unwrap();
    for (place, text) in [("stderr", said), ("log.txt", log)] {
        assert!(text.contains("sample at step 2"), "{text}");
        assert!(text.contains("\\u{1b}") || text.contains("\\r"), "{text}");
        assert!(!text.contains(['\u{1b}', '\r', '\u{9b}']), "{place}: {text:?}");
    }
}

/// Case 23: nothing is there to be saved while data is prepared, so a signal ends it at once.
#[cfg(unix)]
#[test]
fn a_signal_during_preparation_leaves_at_once() {
    let place = Workplace::new();
    let mut state = 7u64;
    let text: String = (0..4_000_000)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            char::from(b"abcdefghijklmnopqrstuvwxyz   "[(state >> 40) as usize % 29])
        })
        .collect();
    std::fs::write(place.path("text.txt"), text).unwrap();
    spec(&place, "{source: {text: {path: text.txt}}, tokenizer: {bpe: {vocab_size: 20000}}}");
    let mut child = place
        .lrpt(&["train", "spec.yaml", "--run-dir", "run"])
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let said = lines.map_while(Result::ok).find(|line| line.contains("training a byte-level BPE"));
    assert!(said.is_some(), "preparation says when it trains the tokenizer");
    let kill = ["-INT", &child.id().to_string()];
    assert!(std::process::Command::new("kill").args(kill).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!place.path("run/plan.yaml").exists(), "the run has not begun");
    let prepared = std::fs::read_dir(place.path("data")).unwrap();
    let whole = prepared
        .filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(whole.count(), 0, "the cache holds nothing half prepared");
}
