//! Logits of a model at every position, for comparison with other programs.
//!
//! ```text
//! cargo run --release --example logits -- run RUN 3,77,250        a run or a checkpoint
//! cargo run --release --example logits -- hf  DIR 3,77,250        a folder of transformers
//! ```
//!
//! Prints one JSON array a position: the logits of the token after it.

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device};
use lrpt::model::{Network, build};
use lrpt::params::{ParamStore, TensorReader};
use std::path::Path;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [kind, path, tokens] = arguments.as_slice() else {
        bail!("usage: logits run|hf PATH TOKEN,TOKEN,...")
    };
    let (model, params) = open(kind, Path::new(path))?;
    let tokens: Vec<u32> = tokens
        .split(',')
        .map(|token| token.parse().context("a token id"))
        .collect::<Result<_>>()?;
    for end in 1..=tokens.len() {
        let logits = model.next_token_logits(&params, &tokens[..end])?;
        println!("{}", serde_json::to_string(&logits.to_vec1::<f32>()?)?);
    }
    Ok(())
}

fn open(kind: &str, path: &Path) -> Result<(Box<dyn Network>, ParamStore)> {
    match kind {
        "run" => {
            let run = lrpt::train::LoadedRun::open(path, &Device::Cpu)?;
            Ok((run.model, run.params))
        }
        "hf" => {
            let (config, tensors) = lrpt::hub::import(path)?;
            let model = build(config)?;
            let reader = TensorReader::new("the imported model", tensors);
            let params = ParamStore::load(model.declared(), reader, DType::F32, &Device::Cpu)?;
            Ok((model, params))
        }
        other => bail!("`{other}`: give run or hf"),
    }
}
