//! `lrpt eval` beyond the validation set: texts of any length, standard input, questions.

mod support;

use std::io::Write;
use std::process::Stdio;
use support::Workplace;

/// A trained run of bytes in `runs/small`.
fn trained() -> Workplace {
    let place = Workplace::new();
    place.spec("dense", "");
    let quick = ["--set", "data.tokenizer=bytes", "--set", "train.max_steps=4"];
    place.run(&[&["train", "spec.yaml"], &quick[..]].concat(), 0);
    place
}

fn lines(place: &Workplace, arguments: &[&str]) -> Vec<serde_json::Value> {
    let output = place.run(&[&["eval", "runs/small"], arguments].concat(), 0);
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn number(value: &serde_json::Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("{key} in {value}"))
}

#[test]
fn texts_of_any_length_are_scored_whole() {
    let place = trained();
    std::fs::write(place.path("short.txt"), "the é").expect("a text");
    let short = lines(&place, &["--text", "short.txt"]).remove(0);
    // Six bytes, the first of which is given.
    assert_eq!((number(&short, "tokens"), number(&short, "bytes")), (5.0, 5.0));
    assert!(number(&short, "standard_error") > 0.0, "{short}");
    let bits = number(&short, "bits_per_byte") * std::f64::consts::LN_2;
    assert!((bits - number(&short, "loss")).abs() < 1e-12, "{short}");
    let protocol = short["protocol"].as_str().expect("a protocol");
    assert!(protocol.contains("windows of 16 tokens every 16"), "{protocol}");

    // The long text by itself, from standard input, and beside the short one.
    let long = lines(&place, &["--text", "text.txt", "--stride", "5"]).remove(0);
    let bytes = std::fs::read(place.path("text.txt")).expect("a text").len();
    assert_eq!(number(&long, "tokens"), bytes as f64 - 1.0);
    assert!(long["protocol"].as_str().is_some_and(|p| p.contains("from at least 12 tokens")));
    let piped = {
        let mut child = place
            .lrpt(&["eval", "runs/small", "--text", "-", "--stride", "5"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let text = std::fs::read(place.path("text.txt")).expect("a text");
        child.stdin.take().expect("a pipe").write_all(&text).expect("written");
        let output = child.wait_with_output().expect("it ends");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    assert_eq!(piped["loss"], long["loss"]);
    let both = ["--text", "text.txt", "--text", "short.txt", "--stride", "5"];
    let three = lines(&place, &[&both[..], &["--json"]].concat());
    assert_eq!((three.len(), &three[0]["loss"]), (3, &long["loss"]));
    let sum = |key: &str| number(&three[0], key) + number(&three[1], key);
    assert_eq!(number(&three[2], "tokens"), sum("tokens"));
    let nats = |score: &serde_json::Value| number(score, "loss") * number(score, "tokens");
    assert!((nats(&three[2]) - nats(&three[0]) - nats(&three[1])).abs() < 1e-6);
    let table = place.run(&[&["eval", "runs/small"], &both[..]].concat(), 0).stdout;
    let table = String::from_utf8(table).expect("UTF-8");
    assert!(table.starts_with("text ") && table.contains("\nall 2 texts "), "{table}");

    std::fs::write(place.path("one.txt"), "t").expect("a text");
    for (arguments, expected) in [
        (&["--text", "one.txt"][..], "one.txt: the text has 1 token;"),
        (&["--text", "text.txt", "--stride", "17"], "at most the block size 16"),
        (&["--text", "none.txt"], "none.txt: cannot be read"),
    ] {
        let output = place.run(&[&["eval", "runs/small"], arguments].concat(), 2);
        let message = String::from_utf8_lossy(&output.stderr);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn questions_are_answered_by_likelihood() {
    let place = trained();
    // A text that it was trained on is likelier than noise of the same length.
    let question = |gold: usize, right: &str| {
        let mut choices = [" zzqqxxjj", "Q#@!%^&*(", "0918273645"];
        choices[gold] = right;
        serde_json::json!({ "context": "the rank of a", "choices": choices, "gold": gold })
    };
    let questions: Vec<String> = (0..6).map(|i| question(i % 3, " matrix a").to_string()).collect();
    std::fs::write(place.path("q.jsonl"), questions.join("\n")).expect("questions");
    let found = lines(&place, &["--choices", "q.jsonl", "--json"]).remove(0);
    for key in ["acc", "acc_norm"] {
        assert_eq!(number(&found, key), 1.0, "{found}");
    }
    assert_eq!((number(&found, "acc_stderr"), number(&found, "cut")), (0.0, 18.0));
    let table = place.run(&["eval", "runs/small", "--choices", "q.jsonl"], 0).stdout;
    let table = String::from_utf8(table).expect("UTF-8");
    assert!(table.contains("acc        1.0000 ± 0.0000"), "{table}");
    std::fs::write(place.path("bad.jsonl"), "{\"context\": \"a\"}").expect("questions");
    let output = place.run(&["eval", "runs/small", "--choices", "bad.jsonl"], 2);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("bad.jsonl: line 1: missing field `choices`"), "{message}");
}

#[test]
fn what_is_left_of_the_old_text_is_measured_on_the_validation_set_of_the_run_before() {
    let place = trained();
    let other: String = (0..4000).map(|i| char::from(b'a' + (i * i % 23) as u8)).collect();
    std::fs::write(place.path("other.txt"), other).expect("a text");
    let settings =
        ["init={run: runs/small}", "data={source: {text: {path: other.txt}}, tokenizer: bytes}"];
    let begin = |run: &'static str, steps: &'static str| {
        let set = settings.iter().flat_map(|setting| ["--set", *setting]);
        let rest = ["--run-dir", run, "--stop-after", steps];
        place
            .run(&["train", "spec.yaml"].into_iter().chain(set).chain(rest).collect::<Vec<_>>(), 0);
    };
    begin("same", "0");
    begin("moved", "4");
    let on_the_old = |run: &str| {
        let output = place.run(&["eval", run, "--validation-of", "runs/small"], 0);
        serde_json::from_slice::<serde_json::Value>(&output.stdout).expect("JSON")
    };
    let before = lines(&place, &[]).remove(0);
    let same = on_the_old("same");
    assert_eq!((&same["loss"], &same["tokens"]), (&before["loss"], &before["tokens"]));
    let protocol = same["protocol"].as_str().expect("a protocol");
    assert!(protocol.contains("of the data of runs/small"), "{protocol}");
    assert!(number(&on_the_old("moved"), "loss") != number(&before, "loss"));

    place.run(&["train", "spec.yaml", "--run-dir", "characters", "--stop-after", "1"], 0);
    let output = place.run(&["eval", "same", "--validation-of", "characters"], 2);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("characters has another tokenizer than same"), "{message}");
}
