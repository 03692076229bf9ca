//! `lrpt generate`: text from a trained run.

use super::{compute, output};
use crate::data::{TextStream, Tokenizer};
use crate::error::Failure;
use crate::figures::count;
use crate::model::{Request, Sampling, generate};
use crate::spec::DeviceSpec;
use crate::train::LoadedRun;
use anyhow::Result;
use clap::Args;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Arguments of `lrpt generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    run: PathBuf,
    /// Text to continue; without it a newline, or token 0 where the tokenizer has no newline.
    #[arg(long)]
    prompt: Option<String>,
    /// Most tokens to generate.
    #[arg(long, visible_alias = "tokens", default_value_t = 200)]
    max_new_tokens: usize,
    /// Continuations of the prompt, generated side by side, each with draws of its own.
    #[arg(long, default_value = "1", value_name = "N")]
    num_samples: NonZeroUsize,
    /// Softmax temperature; 0 takes the likeliest token.
    #[arg(long, default_value_t = 0.8, allow_negative_numbers = true)]
    temperature: f64,
    /// Take the likeliest token, as with temperature 0.
    #[arg(long)]
    greedy: bool,
    /// Draw only from the k likeliest tokens.
    #[arg(long)]
    top_k: Option<NonZeroUsize>,
    /// Draw only from the smallest set of tokens with this probability.
    #[arg(long)]
    top_p: Option<f64>,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1337)]
    seed: u64,
    /// Name of the token at which a text ends [default: the tokenizer's end-of-text token].
    #[arg(long, value_name = "TOKEN")]
    end_of_text: Option<String>,
    /// Go on after the end-of-text token.
    #[arg(long, conflicts_with = "end_of_text")]
    ignore_end_of_text: bool,
    /// Tokens by which the window moves on where the text is longer than the model's block size.
    /// With 1 every token sees exactly the last `block_size`, and each takes a pass over all of
    /// them; with N at least `block_size` + 1 − N, and one token in N takes such a pass.
    #[arg(long, default_value = "1", value_name = "N")]
    slide: NonZeroUsize,
    /// Print one JSON object a sample: its number, prompt, text, tokens, and whether it ended.
    #[arg(long)]
    json: bool,
    /// Where to compute: auto, cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "auto")]
    device: DeviceSpec,
}

/// Between samples, as nanoGPT has it.
const RULE: &str = "---------------";

/// Prints the prompt and its continuation to stdout, a single one as it is drawn.
pub fn run(args: GenerateArgs) -> Result<()> {
    args.check()?;
    let device = compute::device(args.device)?;
    let run = LoadedRun::open(&args.run, &device)?;
    let tokenizer = run.folder.tokenizer()?;
    let prompt = match &args.prompt {
        None => tokenizer.encode_or_first("\n"),
        Some(prompt) => tokenizer.encode(prompt)?,
    };
    let block = run.model.config().block_size;
    if args.slide.get() > block {
        return usage(format!("--slide: {} is more than the window of {block}", args.slide));
    }
    let (samples, end) = (args.num_samples.get(), args.end(&tokenizer)?);
    let sampling = Sampling {
        temperature: if args.greedy { 0.0 } else { args.temperature },
        top_k: args.top_k.map(NonZeroUsize::get),
        top_p: args.top_p,
        seed: args.seed,
    };
    let (count, slide) = (args.max_new_tokens, args.slide.get());
    let request = Request { prompt: &prompt, count, samples, end, slide, sampling };

    let mut stream = (samples == 1 && !args.json).then(|| TextStream::new(&tokenizer));
    let mut show = |tokens: &[u32]| match &mut stream {
        Some(stream) => stream.push(tokens).and_then(|text| output::piece(&text)),
        None => Ok(()),
    };
    show(&prompt)?;
    let mut failure = None;
    let (started, mut first) = (Instant::now(), None);
    let texts = generate(run.model.as_ref(), &run.params, request, &mut |_, token| {
        first.get_or_insert_with(|| started.elapsed());
        if Some(token) != end {
            failure = show(&[token]).err();
        }
        failure.is_none()
    })?;
    let elapsed = started.elapsed();
    if let Some(error) = failure {
        return Err(error);
    }
    if let Some(stream) = stream {
        output::piece(&stream.finish()?)?;
        output::line("")?;
    } else {
        args.print(&tokenizer, &prompt, &texts, end)?;
    }
    say_speed(&texts, first.unwrap_or_default(), elapsed);
    if prompt.len() + count > block && slide == 1 && texts.iter().any(|t| t.len() == count) {
        tracing::info!(
            "the text is longer than the model's window of {block} tokens, so that every further \
             token takes a pass over the whole window; `--slide {}` moves it in larger steps",
            (block / 4).max(1)
        );
    }
    Ok(())
}

/// Says on stderr how fast the texts came.
fn say_speed(texts: &[Vec<u32>], first: Duration, elapsed: Duration) {
    let tokens: usize = texts.iter().map(Vec::len).sum();
    let seconds = elapsed.as_secs_f64();
    tracing::info!(
        "{tokens} tokens in {seconds:.2} s: {} tokens/s, the first after {:.3} s",
        count(tokens as f64 / seconds.max(1e-9)),
        first.as_secs_f64()
    );
}

fn usage<T>(message: String) -> Result<T> {
    Err(Failure::Usage(message).into())
}

impl GenerateArgs {
    /// Refuses numbers without meaning.
    fn check(&self) -> Result<()> {
        let temperature = self.temperature;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return usage(format!("--temperature: {temperature} is not a number of at least 0"));
        }
        match self.top_p {
            Some(top_p) if !(top_p > 0.0 && top_p <= 1.0) => {
                usage(format!("--top-p: {top_p} is not greater than 0 and at most 1"))
            }
            _ => Ok(()),
        }
    }

    /// The token at which a text ends.
    fn end(&self, tokenizer: &Tokenizer) -> Result<Option<u32>> {
        match &self.end_of_text {
            _ if self.ignore_end_of_text => Ok(None),
            None => Ok(tokenizer.end_of_text()),
            Some(name) => match tokenizer.token_of(name) {
                Some(token) => Ok(Some(token)),
                None => usage(format!(
                    "--end-of-text: the tokenizer ({}) has no token {name:?}",
                    tokenizer.description()
                )),
            },
        }
    }

    /// Prints whole samples.
    fn print(
        &self,
        tokenizer: &Tokenizer,
        prompt: &[u32],
        texts: &[Vec<u32>],
        end: Option<u32>,
    ) -> Result<()> {
        for (sample, tokens) in texts.iter().enumerate() {
            let ended = end.is_some() && tokens.last().copied() == end;
            let text = &tokens[..tokens.len() - usize::from(ended)];
            let whole = tokenizer.show(&[prompt, text].concat())?;
            if self.json {
                let prompt = tokenizer.show(prompt)?;
                let text = whole
                    .strip_prefix(&prompt)
                    .map_or_else(|| tokenizer.show(text), |rest| Ok(rest.to_owned()))?;
                let count = tokens.len();
                let object = serde_json::json!({"sample": sample + 1, "prompt": prompt, "text": text, "tokens": count, "ended": ended});
                output::line(object)?;
            } else {
                output::piece(&whole)?;
                output::piece(&format!("\n{RULE}\n"))?;
            }
        }
        Ok(())
    }
}
