//! A preparation that is killed goes on where it was, and makes the same files.

#![cfg(unix)]

mod support;

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use support::Workplace;

/// A place with a text of some megabytes and a spec that splits it.
fn workplace() -> Workplace {
    let place = Workplace::new();
    let mut state = 7u64;
    let text: String = (0..16_000_000)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            char::from(b"aabcdeefghiijklmnooprstuvw   \n"[(state >> 40) as usize % 30])
        })
        .collect();
    std::fs::write(place.path("text.txt"), text).unwrap();
    let yaml = "name: small\n\
         model: {n_layer: 1, n_head: 2, n_embd: 16, block_size: 16, weights: dense}\n\
         train: {max_steps: 2, batch_size: 2}\n\
         schedule: {constant: {warmup_steps: 0}}\n\
         data: {source: {text: {path: text.txt, val_fraction: 0.3}}, \
                tokenizer: {bpe: {vocab_size: 400, sample_bytes: 100_000}}}\n";
    std::fs::write(place.path("spec.yaml"), yaml).unwrap();
    place
}

fn prepare(data: &str) -> [&str; 5] {
    ["--data-dir", data, "data", "prepare", "spec.yaml"]
}

/// Folders of a cache whose names begin with a dot, or the others.
fn folders(cache: &Path, hidden: bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(cache).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    let is_hidden = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with('.');
    paths.filter(|path| is_hidden(path) == hidden).collect()
}

/// What the preparation that goes on in a cache has noted of its progress.
fn progress(cache: &Path) -> Option<Value> {
    let text = std::fs::read(folders(cache, true).first()?.join("progress.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Names and bytes of everything in a cache's only folder, which has its final name.
fn prepared(cache: &Path) -> BTreeMap<String, Vec<u8>> {
    let left = folders(cache, true);
    assert!(left.is_empty(), "{left:?} is left behind");
    let folders = folders(cache, false);
    assert_eq!(folders.len(), 1, "{folders:?}");
    let entries = std::fs::read_dir(&folders[0]).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    entries.map(|path| (name(&path), std::fs::read(path).unwrap())).collect()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Kills a preparation as soon as its progress is such.
fn kill_when(place: &Workplace, data: &str, when: impl Fn(&Value) -> bool) {
    let cache = place.path(data);
    let is_reached = || progress(&cache).is_some_and(|progress| when(&progress));
    assert!(place.kill_when(&prepare(data), is_reached), "{data}: it ended before");
    assert_eq!(folders(&cache, true).len(), 1, "what it did is there");
    assert!(folders(&cache, false).is_empty());
}

fn is_in(part: &str) -> impl Fn(&Value) -> bool {
    move |progress| progress["unfinished"][0] == part
}

#[test]
fn a_killed_preparation_goes_on_and_makes_the_same_files() {
    let place = workplace();
    place.run(&prepare("whole"), 0);
    let whole = prepared(&place.path("whole"));
    let names: Vec<&str> = whole.keys().map(String::as_str).collect();
    assert_eq!(names, ["dataset.json", "tokenizer.json", "train.tokens", "val.tokens"]);

    // Between tokenizer and text, in the training text, after it, and in one after the other.
    let has_train = |progress: &Value| progress["finished"]["train"].is_string();
    kill_when(&place, "a", |_| true);
    kill_when(&place, "b", is_in("train"));
    kill_when(&place, "b", has_train);
    for data in ["a", "b"] {
        let said = stderr(&place.run(&prepare(data), 0));
        assert!(said.contains("going on with a preparation of it that was stopped"), "{said}");
        assert!(!said.contains("beginning anew"), "{said}");
        assert!(prepared(&place.path(data)) == whole, "{data}: other files");
    }

    // A byte of the unfinished shard, of the finished one, and of the tokenizer.
    for (name, when) in [("train.tokens", false), ("train.tokens", true), ("tokenizer.json", true)]
    {
        kill_when(&place, name, |progress| {
            is_in("train")(progress) != when && has_train(progress) == when
        });
        let path = folders(&place.path(name), true)[0].join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[200] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let said = stderr(&place.run(&prepare(name), 0));
        assert!(said.contains("beginning anew") && said.contains(name), "{said}");
        assert!(prepared(&place.path(name)) == whole, "{name}: other files");
        std::fs::remove_dir_all(place.path(name)).unwrap();
    }
}

#[test]
fn a_preparation_whose_text_changed_begins_anew() {
    let place = workplace();
    kill_when(&place, "data", is_in("train"));
    let text = std::fs::read_to_string(place.path("text.txt")).unwrap();
    std::fs::write(place.path("text.txt"), "A".to_string() + &text[1..]).unwrap();
    let said = stderr(&place.run(&prepare("data"), 0));
    assert!(said.contains("has changed since its preparation was stopped"), "{said}");
    let after = prepared(&place.path("data"));
    place.run(&prepare("whole"), 0);
    assert!(prepared(&place.path("whole")) == after);
}

/// One of two at once goes on with what is there, the other makes its own.
#[test]
fn two_preparations_at_once_do_not_meet() {
    let place = workplace();
    kill_when(&place, "data", is_in("train"));
    let start = || {
        let mut command = place.lrpt(&prepare("data"));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the binary starts")
    };
    let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
    let said = both.each_ref().map(stderr);
    assert!(both.iter().all(|output| output.status.success()), "{said:?}");
    let went_on = said.iter().filter(|said| said.contains("going on with a preparation"));
    assert_eq!(went_on.count(), 1, "{said:?}");
    let after = prepared(&place.path("data"));
    place.run(&prepare("whole"), 0);
    assert!(prepared(&place.path("whole")) == after);
}
