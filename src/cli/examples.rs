//! Examples at the end of each command's help; a test parses every one of them.

pub const TRAIN: &str = "Examples:
  lrpt train configs/gpt-small.yaml
  lrpt train configs/gpt-small.yaml --set seed=2 --run-dir runs/second
  lrpt train configs/gpt-small.yaml --resume
  lrpt train configs/gpt-small.yaml --processes 2 --set train.gradient_accumulation_steps=2
  lrpt train configs/gpt-small.yaml --overwrite --stop-within 50m";
pub const RESUME: &str = "Examples:
  lrpt resume runs/gpt-small
  lrpt resume runs/gpt-small --set eval.every=50 --set checkpoint.keep_last=5
  lrpt resume runs/gpt-small --extend 1000";
pub const SWEEP: &str = "Examples:
  lrpt sweep configs/sweeps/paper.yaml --dry-run
  lrpt sweep configs/sweeps/paper.yaml --jobs 2 --only 'spectral-*'
  lrpt sweep configs/sweeps/paper.yaml --launcher slurm --submit";
pub const WATCH: &str = "Examples:
  lrpt watch runs/gpt-small
  lrpt watch runs/gpt-small runs/gpt-small-dense
  lrpt watch runs/gpt-small --lines";
pub const RUNS: &str = "Examples:
  lrpt runs
  lrpt runs runs/paper --json";
pub const COMPARE: &str = "Examples:
  lrpt compare runs/paper
  lrpt compare configs/sweeps/paper.yaml
  lrpt compare runs/gpt-small runs/gpt-small-dense --report comparison";
pub const REPORT: &str = "Examples:
  lrpt report runs/gpt-small";
pub const EVAL: &str = "Examples:
  lrpt eval runs/gpt-small
  lrpt eval runs/gpt-small --text a.txt --text b.txt --stride 64
  lrpt eval runs/gpt-small --text - < a.txt
  lrpt eval runs/fine-tuned --validation-of runs/pretrained
  lrpt eval runs/gpt-small --choices hellaswag.jsonl --json";
pub const GENERATE: &str = "Examples:
  lrpt generate runs/gpt-small --prompt 'pub fn ' --max-new-tokens 120 --seed 7
  lrpt generate runs/gpt-small --prompt 'use std::' --greedy";
pub const EXPORT: &str = "Examples:
  lrpt export runs/gpt-small --to gpt-small-hf";
pub const INSPECT: &str = "Examples:
  lrpt inspect runs/gpt-small
  lrpt inspect runs/gpt-small --spectra
  lrpt inspect runs/budget --ranks --scale 0.9";
pub const DATA: &str = "Examples:
  lrpt data list
  lrpt data prepare configs/gpt-small.yaml
  lrpt data inspect configs/gpt-small.yaml --tokens 40";
pub const SPEC: &str = "Examples:
  lrpt spec check configs/gpt-small.yaml
  lrpt spec show configs/gpt-small.yaml --set model.n_layer=8
  lrpt spec check - < configs/gpt-small.yaml
  lrpt spec schema";
pub const BENCH: &str = "Examples:
  lrpt bench configs/gpt-small.yaml
  lrpt bench configs/gpt-small.yaml --steps 3 --operations
  lrpt bench configs/bench-s.yaml --vary model.block_size=64,128,256";
pub const DOCTOR: &str = "Examples:
  lrpt doctor";
pub const SELFTEST: &str = "Examples:
  lrpt selftest
  lrpt selftest --device cpu
  lrpt selftest --linalg 768x768x192 --linalg 3072x768x192";
pub const DEMO: &str = "Examples:
  lrpt demo momentum";
pub const COMPLETIONS: &str = "Examples:
  lrpt completions bash
  lrpt completions man
  lrpt completions --out share";

#[cfg(test)]
mod tests {
    use crate::cli::Cli;
    use clap::{CommandFactory, Parser};

    #[test]
    fn every_command_has_examples_that_parse() {
        let command = Cli::command();
        for command in command.get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> = help.lines().skip(1).map(str::trim).collect();
            assert!(!examples.is_empty(), "`lrpt {}` has no example", command.get_name());
            for example in examples {
                // Words in single quotes are one argument, and `<` is the shell's own.
                let (example, _) = example.split_once(" < ").unwrap_or((example, ""));
                let parts = example.split('\'').enumerate();
                let words = parts.flat_map(|(index, part)| match index % 2 {
                    0 => part.split_whitespace().map(str::to_owned).collect(),
                    _ => vec![part.to_owned()],
                });
                let parsed = Cli::try_parse_from(words);
                parsed.unwrap_or_else(|error| panic!("{example}: {error}"));
            }
        }
    }
}
