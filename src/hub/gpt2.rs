//! GPT-2 as `transformers` has it: q, k and v fused into one matrix, matrices transposed (Conv1D),
//! a bias everywhere, the head tied to the token table.

use super::peft::Module;
use super::weights::Named;
use crate::model::ModelConfig;
use crate::params::{ParamStore, TensorReader};
use crate::spec::Architecture;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{D, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// ε of the layer norms, here and there.
const NORM_EPSILON: f64 = 1e-5;

/// `config.json`.
pub(super) fn config(model: &ModelConfig, end_of_text: Option<u32>, dtype: &str) -> Value {
    json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": model.vocab_size,
        "n_positions": model.block_size,
        "n_ctx": model.block_size,
        "n_embd": model.n_embd,
        "n_layer": model.n_layer,
        "n_head": model.n_head,
        "n_inner": null,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": NORM_EPSILON,
        "attn_pdrop": model.dropout,
        "embd_pdrop": model.dropout,
        "resid_pdrop": model.dropout,
        "scale_attn_weights": true,
        "tie_word_embeddings": true,
        "use_cache": true,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": dtype,
    })
}

/// Names and tensors of `GPT2LMHeadModel`, in f32 or wider.
///
/// # Errors
/// If the model lacks a parameter.
pub(super) fn tensors(model: &ModelConfig, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
    ensure!(
        model.n_kv_head.is_none(),
        "the model has grouped queries (n_kv_head); GPT-2 of transformers has none"
    );
    let named = Named::new(params);
    let mut out = Vec::new();
    let width = model.n_embd;
    for table in ["transformer.wte.weight", "transformer.wpe.weight"] {
        out.push((table.to_owned(), named.dense(table)?));
    }
    let norm = |name: String| -> Result<Vec<(String, Tensor)>> {
        let weight = named.dense(&format!("{name}.weight"))?;
        let bias = named.vector_or_zeros(&format!("{name}.bias"), &weight, width)?;
        Ok(vec![(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)])
    };
    for layer in 0..model.n_layer {
        let block = format!("transformer.h.{layer}");
        out.extend(norm(format!("{block}.ln_1"))?);
        out.extend(norm(format!("{block}.ln_2"))?);
        for (fused, sites) in MATRICES {
            let mut matrices = Vec::new();
            let mut biases = Vec::new();
            for site in *sites {
                let site = format!("{block}.{site}");
                let w = named.matrix(&site)?;
                biases.push(named.vector_or_zeros(&format!("{site}.bias"), &w, w.dim(0)?)?);
                matrices.push(w.t()?);
            }
            let weight = Tensor::cat(&matrices, 1)?.contiguous()?;
            out.push((format!("{block}.{fused}.weight"), weight));
            out.push((format!("{block}.{fused}.bias"), Tensor::cat(&biases, 0)?));
        }
    }
    out.extend(norm("transformer.ln_f".to_owned())?);
    Ok(out)
}

/// Matrices there, each with those it is fused of here.
const MATRICES: &[(&str, &[&str])] = &[
    ("attn.c_attn", &["attn.q", "attn.k", "attn.v"]),
    ("attn.c_proj", &["attn.o"]),
    ("mlp.c_fc", &["mlp.up"]),
    ("mlp.c_proj", &["mlp.down"]),
];

/// The modules with matrices, block by block.
pub(super) fn modules(model: &ModelConfig) -> Vec<Module> {
    let of_block = |layer: usize| {
        MATRICES.iter().map(move |(fused, sites)| Module {
            name: format!("transformer.h.{layer}.{fused}"),
            sites: sites.iter().map(|site| format!("transformer.h.{layer}.{site}")).collect(),
        })
    };
    (0..model.n_layer).flat_map(of_block).collect()
}

/// The configuration of a dense model here, from a `config.json`.
///
/// # Errors
/// Naming what does not fit: another architecture or activation, an untied head, another ε, another
/// MLP width.
pub(super) fn read_config(config: &Value) -> Result<ModelConfig> {
    let size = |key: &str| -> Result<usize> {
        let size = config.get(key).and_then(Value::as_u64);
        let size = size.with_context(|| format!("config.json: `{key}` is missing or no number"))?;
        Ok(usize::try_from(size)?)
    };
    let n_embd = size("n_embd")?;
    let refuse_unless = |key: &str, fits: fn(&Value) -> bool, wanted: &str| -> Result<()> {
        match config.get(key) {
            Some(value) if !value.is_null() && !fits(value) => {
                bail!("config.json: `{key}` is {value}; lrpt's gpt2 has {wanted}")
            }
            _ => Ok(()),
        }
    };
    refuse_unless(
        "activation_function",
        |value| matches!(value.as_str(), Some("gelu_new" | "gelu_pytorch_tanh")),
        "GELU in its tanh form (gelu_new)",
    )?;
    refuse_unless("tie_word_embeddings", |value| value == true, "a tied head")?;
    refuse_unless("scale_attn_weights", |value| value == true, "scaled attention")?;
    refuse_unless(
        "scale_attn_by_inverse_layer_idx",
        |value| value == false,
        "attention scaled alike in every layer",
    )?;
    refuse_unless("add_cross_attention", |value| value == false, "no cross-attention")?;
    refuse_unless(
        "layer_norm_epsilon",
        |value| value.as_f64().is_some_and(|epsilon| (epsilon - NORM_EPSILON).abs() < 1e-12),
        "1e-5",
    )?;
    if let Some(inner) = config.get("n_inner").and_then(Value::as_u64) {
        ensure!(
            inner == 4 * n_embd as u64,
            "config.json: `n_inner` is {inner}; lrpt's gpt2 has an MLP of 4 n_embd = {}",
            4 * n_embd
        );
    }
    let model = ModelConfig {
        arch: Architecture::Gpt2,
        n_layer: size("n_layer")?,
        n_head: size("n_head")?,
        n_kv_head: None,
        n_embd,
        block_size: size("n_positions")?,
        vocab_size: size("vocab_size")?,
        dropout: config.get("resid_pdrop").and_then(Value::as_f64).unwrap_or(0.0),
        bias: true,
        weights: BTreeMap::new(),
    };
    model.validate()?;
    Ok(model)
}

/// Names and tensors here, from those of `GPT2LMHeadModel` or `GPT2Model`.
///
/// # Errors
/// If a tensor is missing, has another shape, or is left over.
pub(super) fn read_tensors(
    model: &ModelConfig,
    tensors: Vec<(String, Tensor)>,
) -> Result<Vec<(String, Tensor)>> {
    let mut tied = None;
    let mut given = Vec::new();
    for (name, tensor) in tensors {
        let name = match name.strip_prefix("transformer.") {
            Some(_) => name,
            None if name == "lm_head.weight" => {
                tied = Some(tensor);
                continue;
            }
            None => format!("transformer.{name}"),
        };
        // Causal masks that old checkpoints hold are no parameters.
        if !name.ends_with(".attn.bias") && !name.ends_with(".attn.masked_bias") {
            given.push((name, tensor));
        }
    }
    let mut reader = TensorReader::new("the imported model", given);
    let (width, mut out) = (model.n_embd, Vec::new());
    let wte = reader.take_shaped("transformer.wte.weight", &[model.vocab_size, width])?;
    if let Some(head) = tied {
        ensure!(
            head.dims() == wte.dims() && scalar_distance(&head, &wte)? == 0.0,
            "the imported model: `lm_head.weight` is not the token table; lrpt's gpt2 has a tied \
             head"
        );
    }
    out.push(("transformer.wte.weight".to_owned(), wte));
    let wpe = reader.take_shaped("transformer.wpe.weight", &[model.block_size, width])?;
    out.push(("transformer.wpe.weight".to_owned(), wpe));
    let mut norms: Vec<String> = vec!["transformer.ln_f".to_owned()];
    for layer in 0..model.n_layer {
        let block = format!("transformer.h.{layer}");
        norms.extend([format!("{block}.ln_1"), format!("{block}.ln_2")]);
        for (fused, sites) in MATRICES {
            let shapes = sites.iter().map(|site| shape_of(site, width)).collect::<Vec<_>>();
            let (rows, columns) = (shapes.iter().map(|(rows, _)| rows).sum(), shapes[0].1);
            let weight =
                reader.take_shaped(&format!("{block}.{fused}.weight"), &[columns, rows])?;
            let bias = reader.take_shaped(&format!("{block}.{fused}.bias"), &[rows])?;
            let mut first = 0;
            for (site, (rows, _)) in sites.iter().zip(shapes) {
                let w = weight.narrow(D::Minus1, first, rows)?.t()?.contiguous()?;
                out.push((format!("{block}.{site}.weight"), w));
                out.push((format!("{block}.{site}.bias"), bias.narrow(0, first, rows)?.copy()?));
                first += rows;
            }
        }
    }
    for name in norms {
        for leaf in ["weight", "bias"] {
            let name = format!("{name}.{leaf}");
            let vector = reader.take_shaped(&name, &[width])?;
            out.push((name, vector));
        }
    }
    reader.finish()?;
    Ok(out)
}

/// Outputs and inputs of a site.
fn shape_of(site: &str, width: usize) -> (usize, usize) {
    match site {
        "mlp.up" => (4 * width, width),
        "mlp.down" => (width, 4 * width),
        _ => (width, width),
    }
}

fn scalar_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    let difference = (a - b)?.abs()?.flatten_all()?.max(0)?;
    Ok(difference.to_dtype(candle_core::DType::F64)?.to_scalar()?)
}
