//! Logits of a model at every position, for comparison with other programs.
//!
//! ```text
//! cargo run --release --example logits -- run RUN 3,77,250        a run or a checkpoint
//! cargo run --release --example logits -- hf  DIR 3,77,250        a folder of transformers
//! cargo run --release --example logits -- gguf FILE 3,77,250      a file of llama.cpp
//! cargo run --release --example logits -- gguf FILE 3,77,250 loss
//! cargo run --release --example logits -- tokens FILE TEXT        what a tokenizer makes of a file
//! cargo run --release --example logits -- data PLAN               what a plan is trained on
//! ```
//!
//! Prints one JSON array a position, the logits of the token after it; or the mean loss in nats of
//! all tokens but the first; or token ids.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use lrpt::model::{Network, build};
use lrpt::params::{ParamStore, TensorReader};
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (kind, path, tokens, loss) = match arguments.as_slice() {
        ["tokens", tokenizer, text] => return print_tokens(tokenizer, text),
        ["data", plan] => {
            let plan = lrpt::spec::Plan::from_yaml(&std::fs::read_to_string(plan)?, plan)?;
            return print_data(&plan.data);
        }
        [kind, path, tokens] => (*kind, *path, *tokens, false),
        [kind, path, tokens, "loss"] => (*kind, *path, *tokens, true),
        _ => bail!("usage: logits run|hf|gguf PATH TOKEN,TOKEN,... [loss]"),
    };
    let (model, params) = open(kind, Path::new(path))?;
    let tokens: Vec<u32> = tokens
        .split(',')
        .map(|token| token.parse().context("a token id"))
        .collect::<Result<_>>()?;
    if loss {
        let last = tokens.len() - 1;
        let row = |tokens: &[u32]| Tensor::from_slice(tokens, (1, last), &Device::Cpu);
        let sum = model.loss_sum(&params, &row(&tokens[..last])?, &row(&tokens[1..])?)?;
        println!("{}", sum / last as f64);
        return Ok(());
    }
    for end in 1..=tokens.len() {
        let logits = model.next_token_logits(&params, &tokens[..end])?;
        println!("{}", serde_json::to_string(&logits.to_vec1::<f32>()?)?);
    }
    Ok(())
}

/// The ids of a text file by the tokenizer in a file, as JSON.
fn print_tokens(tokenizer: &str, text: &str) -> Result<()> {
    let spec = serde_json::from_value(serde_json::json!({
        "source": {"text": {"train": [text], "val": [text]}}, "tokenizer": {"file": tokenizer}
    }))?;
    print_data(&spec)
}

fn print_data(spec: &lrpt::spec::DataSpec) -> Result<()> {
    let cache = std::env::temp_dir().join(format!("lrpt-tokens-{}", std::process::id()));
    let data = lrpt::data::prepare(spec, &cache)?;
    println!("{}", serde_json::to_string(&data.train.read(0, data.train.len()))?);
    Ok(std::fs::remove_dir_all(&cache)?)
}

fn open(kind: &str, path: &Path) -> Result<(Box<dyn Network>, ParamStore)> {
    match kind {
        "run" => {
            let run = lrpt::train::LoadedRun::open(path, &Device::Cpu)?;
            Ok((run.model, run.params))
        }
        "hf" | "gguf" => {
            let (config, tensors) = match kind {
                "hf" => lrpt::hub::import(path)?,
                _ => lrpt::hub::import_gguf(path)?,
            };
            let model = build(config)?;
            let reader = TensorReader::new("the imported model", tensors);
            let params = ParamStore::load(model.declared(), reader, DType::F32, &Device::Cpu)?;
            Ok((model, params))
        }
        other => bail!("`{other}`: give run, hf or gguf"),
    }
}
