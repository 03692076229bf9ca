//! `lrpt spec`: look at a spec without training.

use super::bench::place_of_steps;
use super::compute;
use crate::account::Ledger;
use crate::bench::{Expected, Timings};
use crate::data::{self, Tokenizer};
use crate::figures::duration;
use crate::spec::{self, Plan, SourceSpec, TokenizerSpec};
use crate::train::load_plan;
use anyhow::Context;
use clap::{Args, Subcommand};
use std::io::Write;
use std::path::PathBuf;

/// Check a spec, show the plan made from it, or print the JSON Schema of specs.
#[derive(Args, Debug)]
pub struct SpecArgs {
    #[command(subcommand)]
    command: SpecCommand,
}

#[derive(Subcommand, Debug)]
enum SpecCommand {
    /// Check a spec and print its parameters, operations, memory and tokens.
    Check(SpecFileArgs),
    /// Print a spec with every setting decided, as YAML that is a spec again.
    Show(SpecFileArgs),
    /// Print the JSON Schema of specs; `configs/lrpt.schema.json` is this output.
    Schema,
}

/// A spec with settings laid over it.
#[derive(Args, Debug)]
struct SpecFileArgs {
    /// The spec, a YAML file; `-` is standard input.
    spec: PathBuf,
    /// Set one key, as in `--set model.n_layer=8`; the value is any YAML. May be given several
    /// times; later ones win.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    set: Vec<String>,
}

impl SpecFileArgs {
    fn plan(&self) -> anyhow::Result<Plan> {
        let (written, plan) = load_plan(&self.spec, &self.set)?;
        spec::unused_settings(&written).iter().for_each(|setting| tracing::warn!("{setting}"));
        Ok(plan)
    }
}

/// Runs `lrpt spec ...`; results go to stdout.
///
/// # Errors
/// The spec is wrong (exit code 2), or stdout cannot be written.
pub fn run(args: SpecArgs) -> anyhow::Result<()> {
    let output = match args.command {
        SpecCommand::Check(file) => check(&file.plan()?)?,
        SpecCommand::Show(file) => spec::to_yaml(&file.plan()?.as_spec()?)?,
        SpecCommand::Schema => format!("{:#}\n", spec::schema()),
    };
    std::io::stdout().write_all(output.as_bytes()).context("cannot write to stdout")
}

fn check(plan: &Plan) -> anyhow::Result<String> {
    let size = vocabulary_size(plan)?;
    let vocabulary = match size {
        Some(size) => format!("vocabulary of {size}"),
        None => "vocabulary unknown until the data is prepared: embedding and head are not counted below".to_owned(),
    };
    let ledger = Ledger::new(plan, size.unwrap_or(0), rayon::current_num_threads());
    let examples = match &plan.data.source {
        SourceSpec::Instructions(_) => instructions(plan),
        _ => String::new(),
    };
    let time = size.map_or_else(String::new, |size| time(plan, size, &ledger));
    Ok(format!(
        "{}: {vocabulary}; plan {}\n{ledger}{examples}{time}",
        plan.name,
        &plan.hash()[..16]
    ))
}

/// How long the run is expected to take, from steps that `lrpt bench` has timed here.
fn time(plan: &Plan, vocabulary: usize, ledger: &Ledger) -> String {
    // Whether there is a device of this kind is a matter for those who train on it.
    let Ok(device) = compute::device(plan.device) else { return String::new() };
    let (place, flops) = (place_of_steps(&device), ledger.flops_per_step() as f64);
    let line = |name: &str, value: &str| format!("  {name:<34}{value:>14}\n");
    let timings = match Timings::read(data::cache_dir()) {
        Ok(timings) => timings,
        Err(error) => return format!("time\n  unknown: {error:#}\n"),
    };
    let whose = |expected: &Expected| match expected {
        Expected::Timed(_) => "timed by `lrpt bench`".to_owned(),
        Expected::AtTheRateOf(timing, _) => {
            format!("at the rate of {}, timed by `lrpt bench`", timing.name)
        }
    };
    match timings.expected(plan, vocabulary, flops, &place) {
        Some(expected) => {
            let seconds = expected.seconds();
            let run = seconds * plan.train.max_steps.0 as f64;
            format!("time ({place}; {})\n", whose(&expected))
                + &line("a step, seconds", &format!("{seconds:.3}"))
                + &line("the run's steps", &duration(run))
        }
        None => format!("time ({place})\n  unknown: `lrpt bench` has timed no steps here yet\n"),
    }
}

/// Trained and all tokens of instructions, if they have been prepared.
fn instructions(plan: &Plan) -> String {
    match data::prepared(&plan.data, data::cache_dir()) {
        Ok(Some(summary)) => {
            let parts = [
                ("train", summary.train_trained, summary.train_tokens),
                ("val", summary.val_trained, summary.val_tokens),
            ];
            let lines = parts.map(|(part, trained, tokens)| {
                super::data::trained_tokens(part, trained.unwrap_or(tokens), tokens) + "\n"
            });
            lines.concat()
        }
        Ok(None) => "the tokens that are trained on are known once the data is prepared \
                     (lrpt data prepare)\n"
            .to_owned(),
        Err(error) => format!("the data cannot be prepared yet: {error:#}\n"),
    }
}

/// Tokens in the vocabulary as far as the plan tells; `None` if only the prepared data can say.
pub(super) fn vocabulary_size(plan: &Plan) -> anyhow::Result<Option<usize>> {
    let given = match &plan.data.source {
        SourceSpec::Bin(bin) => bin.vocab_size,
        SourceSpec::Tinystories(shards) => shards.vocab_size,
        SourceSpec::CargoRegistry
        | SourceSpec::Text(_)
        | SourceSpec::Jsonl(_)
        | SourceSpec::Parquet(_)
        | SourceSpec::Instructions(_) => None,
    };
    Ok(match &plan.data.tokenizer {
        _ if given.is_some() => given,
        TokenizerSpec::Bytes => Some(256),
        TokenizerSpec::Chars => None,
        TokenizerSpec::Bpe(bpe) => Some(usize::try_from(bpe.vocab_size.0)?),
        TokenizerSpec::File(path) if path.exists() => {
            Some(Tokenizer::from_file(path)?.vocab_size())
        }
        TokenizerSpec::File(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};
    use std::path::Path;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: SpecArgs,
    }

    #[test]
    fn settings_may_be_given_several_times() {
        Program::command().debug_assert();
        let program = Program::parse_from([
            "spec",
            "check",
            "a.yaml",
            "--set",
            "seed=1",
            "--set",
            "rank={fixed: {}}",
        ]);
        let SpecCommand::Check(file) = program.args.command else { panic!("not check") };
        assert_eq!((file.spec.as_path(), file.set.len()), (Path::new("a.yaml"), 2));
    }

    #[test]
    fn the_vocabulary_is_counted_where_it_is_known() {
        let plan =
            |config: &str| spec::load_plan(&Path::new("configs").join(config), &[]).unwrap().1;
        let small = check(&plan("gpt-small.yaml")).unwrap();
        assert!(small.starts_with("gpt-small: vocabulary of 4096; plan "), "{small}");
        assert!(small.contains("1_048_576"), "4096 × 256 in the embedding: {small}");
        let chars = plan("shakespeare-char.yaml");
        assert_eq!(vocabulary_size(&chars).unwrap(), None);
        assert!(check(&chars).unwrap().contains("unknown until the data is prepared"));
    }
}
