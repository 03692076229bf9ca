//! The README keeps its word: its commands parse, its files exist, its spec is the shipped one.

use clap::Parser;
use lrpt::cli::Cli;
use std::path::Path;

fn readme() -> String {
    page("README.md")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).expect(name)
}

/// The words of a command line, with double quotes honoured and a trailing comment dropped.
fn words(command: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for character in command.chars() {
        match character {
            '"' => quoted = !quoted,
            '#' if !quoted && word.is_empty() => break,
            ' ' if !quoted => words.extend((!word.is_empty()).then(|| std::mem::take(&mut word))),
            other => word.push(other),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// Every indented line of the README and of the page about GPUs that runs lrpt, directly or through
/// cargo.
fn commands() -> Vec<Vec<String>> {
    let text = readme() + &page("docs/gpu.md");
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|line| line.trim_start_matches("$ "));
    let run = lines.filter_map(|line| {
        line.strip_prefix("cargo run --release -- ").or(line.strip_prefix("lrpt "))
    });
    run.map(|line| std::iter::once("lrpt".to_owned()).chain(words(line)).collect()).collect()
}

#[test]
fn every_command_parses_and_names_files_that_exist() {
    let commands = commands();
    assert!(commands.len() >= 8, "{commands:?}");
    for command in commands {
        if let Err(error) = Cli::try_parse_from(&command) {
            panic!("{command:?}: {error}");
        }
        for config in command.iter().filter(|word| word.starts_with("configs/")) {
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(config).exists(), "{config}");
        }
    }
}

#[test]
fn the_spec_shown_is_the_shipped_one() {
    let text = readme();
    let block = text
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .expect("a YAML block");
    let shown = lrpt::spec::parse(block, "README.md", &[]).expect("the README's spec");
    let shipped = lrpt::spec::load(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/gpt-small.yaml"),
        &[],
    )
    .expect("gpt-small");
    assert_eq!(shown, shipped);
}

#[test]
fn every_link_leads_somewhere() {
    for target in readme()
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
        .filter(|target| !target.starts_with("http"))
    {
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(target).exists(), "{target}");
    }
}
