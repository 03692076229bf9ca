//! The tutorial keeps its word: its spec and every block of commands, in order, at a smaller size.

mod support;

use std::path::Path;
use std::process::Command;
use support::Workplace;

/// The fenced blocks of a language in a page, in order.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let rest = page.split(&fence).skip(1);
    rest.map(|rest| rest.split("```").next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn every_block_of_the_tutorial_runs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/tutorial.md")).expect("the tutorial");
    let place = Workplace::new();

    // The same text and steps, but fewer of both.
    let [spec] = &blocks(&page, "yaml")[..] else { panic!("one spec") };
    let mut small = spec.clone();
    for (from, to) in [
        (
            "n_layer: 4, n_head: 4, n_embd: 128, block_size: 128",
            "n_layer: 2, n_head: 2, n_embd: 32, block_size: 32",
        ),
        ("rank: 32", "rank: 8"),
        ("vocab_size: 1024", "vocab_size: 300"),
        ("max_steps: 300", "max_steps: 16"),
        ("warmup_steps: 20", "warmup_steps: 4"),
        ("every: 100, tokens: 8192", "every: 8, tokens: 512"),
    ] {
        assert!(small.contains(from), "the tutorial's spec has no `{from}` any more");
        small = small.replace(from, to);
    }
    std::fs::write(place.path("my-model.yaml"), small).expect("the spec");
    std::fs::create_dir(place.path("docs")).expect("a folder");
    let text = std::fs::read_to_string(root.join("docs/method.md")).expect("a page");
    let part = &text[..text.floor_char_boundary(20_000)];
    std::fs::write(place.path("docs/method.md"), part).expect("a page");

    let binary = Path::new(env!("CARGO_BIN_EXE_lrpt"));
    let tools = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{tools}", binary.parent().expect("a folder").display());
    let commands = blocks(&page, "sh");
    assert!(commands.len() >= 8, "{commands:?}");
    let mut said = String::new();
    for block in commands {
        let block = block.replace("train.max_steps=40", "train.max_steps=4");
        let output = Command::new("sh")
            .args(["-e", "-c", &block])
            .env("PATH", &path)
            .env_remove("RUST_LOG")
            .current_dir(place.path(""))
            .output()
            .expect("a shell");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{block}\n{errors}");
        said += &String::from_utf8_lossy(&output.stdout);
    }
    // What the reader is told to see.
    for expected in ["The rank ", "model.safetensors", "my-dense", "tuned", "standard_error"] {
        assert!(said.contains(expected), "no `{expected}` in\n{said}");
    }
    assert!(place.path("runs/stopped/checkpoints/step-00000016").exists());
}

#[test]
fn its_spec_is_good_as_it_stands_and_its_links_lead_somewhere() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let page = std::fs::read_to_string(docs.join("tutorial.md")).expect("the tutorial");
    lrpt::spec::parse_plan(&blocks(&page, "yaml")[0], "tutorial.md", &[]).expect("a good spec");
    for target in page.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(docs.join(target).exists(), "{target}");
    }
}
