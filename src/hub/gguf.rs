//! Llama models as llama.cpp stores them: one file of settings and of tensors, quantised or not.

use super::format::Format;
use super::llama::Llama;
use crate::gguf_file;
use crate::model::ModelConfig;
use anyhow::{Context, Result, bail, ensure};
use candle_core::quantized::gguf_file::{Content, Value as Entry};
use candle_core::{Device, Tensor};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;

/// The configuration of the model in a GGUF file; no tensor is read.
///
/// # Errors
/// As for [`import`], as far as settings go.
pub fn read_config(path: &Path) -> Result<ModelConfig> {
    let (_, content) = gguf_file::open(path)?;
    config(&content).with_context(|| format!("{} cannot be imported", path.display()))
}

/// The configuration and the dense parameters of a GGUF file, in f32.
///
/// # Errors
/// If it is no Llama, or a setting or a quantised type has no counterpart here, or a tensor is
/// missing, has another shape, or is left over; all by name.
pub fn import(path: &Path) -> Result<(ModelConfig, Vec<(String, Tensor)>)> {
    let (mut file, content) = gguf_file::open(path)?;
    let mut read = || -> Result<(ModelConfig, Vec<(String, Tensor)>)> {
        let model = config(&content)?;
        let mut names: Vec<&String> = content.tensor_infos.keys().collect();
        names.sort();
        check_shapes(&model, &content)?;
        let mut tensors = Vec::with_capacity(names.len());
        for name in names {
            let quantised = content
                .tensor(&mut file, name, &Device::Cpu)
                .with_context(|| format!("tensor `{name}`"))?;
            let tensor = quantised.dequantize(&Device::Cpu)?;
            tensors.push(translated(&model, name, tensor)?);
        }
        let tensors = Llama.read_tensors(&model, tensors)?;
        Ok((model, tensors))
    };
    read().with_context(|| format!("{} cannot be imported", path.display()))
}

/// Refuses tensors of other shapes than the settings make them, before any is read.
fn check_shapes(model: &ModelConfig, content: &Content) -> Result<()> {
    let expected: HashMap<String, Vec<usize>> = Llama.shapes(model).into_iter().collect();
    for (name, info) in &content.tensor_infos {
        let (_, theirs) = place_of(name)?;
        let shape = expected.get(&theirs);
        let shape = shape.with_context(|| {
            format!("tensors have no place in a Llama of these settings: `{name}`")
        })?;
        ensure!(
            info.shape.dims() == shape,
            "tensor `{name}` has the shape {:?}, but the settings make it {shape:?}; the file is \
             damaged, fetch it again",
            info.shape.dims()
        );
    }
    Ok(())
}

/// The settings of the file in the words of a `config.json`, which says what fits.
fn config(content: &Content) -> Result<ModelConfig> {
    let entry = |key: &str| content.metadata.get(key);
    let text = |key: &str| entry(key).and_then(|entry| entry.to_string().ok());
    match text("general.architecture").map(String::as_str) {
        Some("llama") => {}
        other => bail!(
            "`general.architecture` is {}; lrpt imports llama from GGUF files",
            other.unwrap_or("missing")
        ),
    }
    let size = |key: &str| -> Result<u64> {
        entry(key).and_then(whole).with_context(|| format!("`{key}` is missing or no whole number"))
    };
    let number = |key: &str| entry(key).and_then(decimal);
    for (key, harmless) in [("llama.expert_count", 0), ("llama.attention.sliding_window", 0)] {
        let value = entry(key).and_then(whole).unwrap_or(harmless);
        ensure!(value == harmless, "`{key}` is {value}; lrpt's llama has none");
    }
    if let Some(kind) = text("llama.rope.scaling.type") {
        ensure!(
            kind == "none",
            "`llama.rope.scaling.type` is {kind:?}; lrpt's llama has no scaling"
        );
    }
    ensure!(
        !content.tensor_infos.contains_key("rope_freqs.weight"),
        "`rope_freqs.weight` scales the rotary positions; lrpt's llama has no scaling"
    );
    let (width, heads) = (size("llama.embedding_length")?, size("llama.attention.head_count")?);
    let head_width = width.checked_div(heads).unwrap_or(0);
    for key in
        ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"]
    {
        let value = entry(key).and_then(whole).unwrap_or(head_width);
        ensure!(
            value == head_width,
            "`{key}` is {value}; lrpt's llama has heads that share out the width and are turned \
             whole, here {head_width}"
        );
    }
    let key_heads = match entry("llama.attention.head_count_kv") {
        Some(_) => size("llama.attention.head_count_kv")?,
        None => heads,
    };
    let table = content
        .tensor_infos
        .get("token_embd.weight")
        .context("there is no tensor `token_embd.weight`")?;
    let vocabulary = table.shape.dims().first().copied().unwrap_or(0);
    let has = |name: &str| content.tensor_infos.contains_key(name);
    let written: Value = json!({
        "vocab_size": vocabulary,
        "max_position_embeddings": size("llama.context_length")?,
        "hidden_size": width,
        "intermediate_size": size("llama.feed_forward_length")?,
        "num_hidden_layers": size("llama.block_count")?,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "rms_norm_eps": number("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": number("llama.rope.freq_base"),
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_up.bias"),
        "tie_word_embeddings": !has("output.weight"),
    });
    Llama.read_config(&written)
}

fn whole(entry: &Entry) -> Option<u64> {
    let signed = || entry.to_i32().map(i64::from).or_else(|_| entry.to_i64()).ok();
    let unsigned = entry.to_u64().ok();
    unsigned.or_else(|| signed().and_then(|number| u64::try_from(number).ok()))
}

/// The number as it was meant: an f32 is the shortest decimal that it stands for.
fn decimal(entry: &Entry) -> Option<f64> {
    let single = entry.to_f32().ok().and_then(|number| number.to_string().parse().ok());
    single.or_else(|| entry.to_f64().ok())
}

/// The names of a block's parts, there and in `transformers`.
const PARTS: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The part of a block that a tensor belongs to, if it is of one, and its name in `transformers`.
fn place_of(name: &str) -> Result<(Option<&str>, String)> {
    let outside = match name {
        "token_embd.weight" => Some("model.embed_tokens.weight"),
        "output_norm.weight" => Some("model.norm.weight"),
        "output.weight" => Some("lm_head.weight"),
        _ => None,
    };
    if let Some(theirs) = outside {
        return Ok((None, theirs.to_owned()));
    }
    let inside = || {
        let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
        let (part, leaf) = rest.split_once('.')?;
        let (_, theirs) = PARTS.iter().find(|(ours, _)| *ours == part)?;
        Some((Some(part), format!("model.layers.{layer}.{theirs}.{leaf}")))
    };
    inside().with_context(|| format!("tensor `{name}` has no place in a Llama"))
}

/// A tensor by its name and with its rows in the order of `transformers`.
fn translated(model: &ModelConfig, name: &str, tensor: Tensor) -> Result<(String, Tensor)> {
    let (part, theirs) = place_of(name)?;
    let heads = match part {
        Some("attn_q") => model.n_head,
        Some("attn_k") => model.key_heads(),
        _ => return Ok((theirs, tensor)),
    };
    let rows = halves_together(&tensor, heads).with_context(|| format!("tensor `{name}`"))?;
    Ok((theirs, rows))
}

/// The rows of every head with its first halves of pairs before its second halves.
///
/// llama.cpp turns numbers 2i and 2i + 1 of a head as a pair, `transformers` i and i + d/2; the
/// rows of queries and keys are stored in the order that suits the one who reads them.
fn halves_together(tensor: &Tensor, heads: usize) -> Result<Tensor> {
    let rows = tensor.dim(0)?;
    let half = rows / (2 * heads.max(1));
    ensure!(half * 2 * heads == rows, "{rows} rows are not {heads} heads of pairs");
    let rest: Vec<usize> = tensor.dims()[1..].to_vec();
    let split = [vec![heads, half, 2], rest].concat();
    Ok(tensor.reshape(split)?.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Network, build};
    use crate::params::{ParamStore, TensorReader};
    use candle_core::DType;
    use candle_core::quantized::{GgmlDType, QTensor, gguf_file::write as write_gguf};
    use std::fs::File;

    /// The file of a small model whose numbers are of this type, and what is written of its
    /// settings.
    fn write(
        path: &Path,
        model: &dyn Network,
        params: &ParamStore,
        dtype: GgmlDType,
        change: impl Fn(&mut Vec<(&'static str, Entry)>, &mut Vec<(String, QTensor)>),
    ) {
        let config = model.config();
        let mut settings = vec![
            ("general.architecture", Entry::String("llama".to_owned())),
            ("llama.context_length", Entry::U32(config.block_size as u32)),
            ("llama.embedding_length", Entry::U32(config.n_embd as u32)),
            ("llama.feed_forward_length", Entry::U32(config.inner_width() as u32)),
            ("llama.block_count", Entry::U32(config.n_layer as u32)),
            ("llama.attention.head_count", Entry::U32(config.n_head as u32)),
            ("llama.attention.head_count_kv", Entry::U32(config.key_heads() as u32)),
            ("llama.attention.layer_norm_rms_epsilon", Entry::F32(1e-5)),
            ("llama.rope.freq_base", Entry::F32(500.0)),
        ];
        let mut tensors = Vec::new();
        for (name, tensor) in Llama.tensors(config, params).expect("tensors") {
            let name = match name.as_str() {
                "model.embed_tokens.weight" => "token_embd.weight".to_owned(),
                "model.norm.weight" => "output_norm.weight".to_owned(),
                "lm_head.weight" => "output.weight".to_owned(),
                _ => {
                    let rest = name.strip_prefix("model.layers.").expect("a block's");
                    let (ours, theirs) =
                        PARTS.iter().find(|(_, theirs)| rest.contains(theirs)).expect("a part");
                    format!("blk.{}", rest.replace(theirs, ours))
                }
            };
            let heads = match () {
                _ if name.contains("attn_q.") => Some(config.n_head),
                _ if name.contains("attn_k.") => Some(config.key_heads()),
                _ => None,
            };
            let stored = match heads {
                Some(heads) => {
                    let (rows, columns) = tensor.dims2().expect("a matrix");
                    let halves = tensor.reshape((heads, 2, rows / (2 * heads), columns));
                    let pairs = halves.and_then(|x| x.transpose(1, 2)?.contiguous());
                    pairs.and_then(|x| x.reshape((rows, columns))).expect("pairs")
                }
                None => tensor,
            };
            let dtype = if stored.rank() == 1 { GgmlDType::F32 } else { dtype };
            tensors.push((name, QTensor::quantize(&stored, dtype).expect("numbers")));
        }
        change(&mut settings, &mut tensors);
        let settings: Vec<(&str, &Entry)> = settings.iter().map(|(k, v)| (*k, v)).collect();
        let tensors: Vec<(&str, &QTensor)> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = File::create(path).expect("a file");
        write_gguf(&mut file, &settings, &tensors).expect("written");
    }

    fn small(tied: bool) -> (Box<dyn Network>, ParamStore) {
        let config = json!({
            "arch": "llama", "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32,
            "n_inner": 64, "block_size": 6, "vocab_size": 11, "dropout": 0.0, "bias": false,
            "tie_word_embeddings": tied.then_some(true), "rope_theta": 500.0, "rms_norm_eps": 1e-5, "weights": {}
        });
        let config = serde_json::from_value(config).expect("a configuration");
        let model = build(config).expect("a network");
        let params = model.initialize(3, DType::F32, &Device::Cpu).expect("parameters");
        (model, params)
    }

    fn logits(model: &dyn Network, params: &ParamStore) -> Vec<f32> {
        let logits = model.next_token_logits(params, &[1, 4, 9, 0, 3]).expect("logits");
        logits.to_vec1().expect("f32")
    }

    /// Unquantised numbers come in as they went out; quantised ones near them.
    #[test]
    fn a_file_comes_in_with_its_logits() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("model.gguf");
        for tied in [true, false] {
            let (model, params) = small(tied);
            for (dtype, most) in [(GgmlDType::F32, 1e-6), (GgmlDType::Q8_0, 0.01)] {
                write(&path, &*model, &params, dtype, |_, _| {});
                assert_eq!(read_config(&path).expect("settings"), import(&path).expect("all").0);
                let (config, tensors) = import(&path).expect("an import");
                let mut shape = config.model.clone();
                shape.weights.clear();
                assert_eq!(&shape, &model.config().model);
                let imported = build(config).expect("a network");
                let reader = TensorReader::new("import", tensors);
                let theirs =
                    ParamStore::load(imported.declared(), reader, DType::F32, &Device::Cpu);
                let (ours, theirs) =
                    (logits(&*model, &params), logits(&*imported, &theirs.expect("parameters")));
                let error = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs());
                let error = error.fold(0.0, f32::max);
                assert!(error < most, "tied {tied}, {dtype:?}: {error}");
            }
        }
    }

    /// Shapes are held against the settings before, so that no file comes this far.
    #[test]
    fn rows_that_are_no_heads_of_pairs_are_refused() {
        let rows = |count: usize| Tensor::arange(0f32, count as f32, &Device::Cpu).expect("rows");
        let error = halves_together(&rows(6), 2).expect_err("three rows a head");
        assert_eq!(error.to_string(), "6 rows are not 2 heads of pairs");
        let sorted = halves_together(&rows(8), 2).expect("two pairs a head");
        assert_eq!(sorted.to_vec1::<f32>().expect("rows"), [0., 2., 1., 3., 4., 6., 5., 7.]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let place = tempfile::tempdir().expect("a folder");
        let path = place.path().join("model.gguf");
        let (model, params) = small(true);
        let refused = |key: &'static str, entry: Option<Entry>, said: &str| {
            write(&path, &*model, &params, GgmlDType::F32, |settings, _| {
                settings.retain(|(name, _)| *name != key);
                settings.extend(entry.clone().map(|entry| (key, entry)));
            });
            let error = format!("{:#}", import(&path).expect_err(key));
            assert!(error.contains(said) && error.contains("model.gguf"), "{key}: {error}");
        };
        let text = |text: &str| Some(Entry::String(text.to_owned()));
        refused("general.architecture", text("mamba"), "`general.architecture` is mamba");
        refused("llama.block_count", None, "`llama.block_count` is missing");
        refused("llama.block_count", Some(Entry::U32(3)), "model.layers.2");
        refused("llama.block_count", Some(Entry::U32(1)), "have no place");
        refused("llama.expert_count", Some(Entry::U32(8)), "`llama.expert_count` is 8");
        refused("llama.rope.scaling.type", text("yarn"), "`llama.rope.scaling.type` is \"yarn\"");
        refused("llama.rope.dimension_count", Some(Entry::U32(4)), "`llama.rope.dimension_count`");
        refused("llama.attention.head_count", Some(Entry::U32(5)), "n_head");
        let tensors = |change: fn(&mut Vec<(String, QTensor)>), said: &str| {
            write(&path, &*model, &params, GgmlDType::F32, |_, tensors| change(tensors));
            let error = format!("{:#}", import(&path).expect_err(said));
            assert!(error.contains(said), "{error}");
        };
        tensors(
            |all| all.retain(|(name, _)| name != "blk.1.ffn_up.weight"),
            "layers.1.mlp.up_proj",
        );
        tensors(|all| all[0].0 = "token.weight".to_owned(), "`token_embd.weight`");
        tensors(|all| all[1].0 = "blk.0.strange.weight".to_owned(), "`blk.0.strange.weight`");
        write(&path, &*model, &params, GgmlDType::F32, |_, _| {});
        let whole = std::fs::read(&path).expect("a file");
        std::fs::write(&path, &whole[..whole.len() - 100]).expect("a file");
        let error = format!("{:#}", import(&path).expect_err("cut short"));
        assert!(error.contains("remaining in file"), "{error}");
        std::fs::write(&path, "GGUF").expect("a file");
        let error = format!("{:#}", import(&path).expect_err("no header"));
        assert!(error.contains("not a sound GGUF file"), "{error}");
    }

    #[test]
    fn pairs_of_rows_come_apart_into_halves() -> Result<()> {
        // Two heads, six rows each, stored as pairs (0, 3), (1, 4), (2, 5) of what they are here.
        let stored =
            Tensor::new(&[0f32, 3., 1., 4., 2., 5., 6., 9., 7., 10., 8., 11.], &Device::Cpu)?;
        let here = halves_together(&stored, 2)?.to_vec1::<f32>()?;
        assert_eq!(here, (0..12).map(|row| row as f32).collect::<Vec<_>>());
        let matrix =
            stored.reshape((12, 1))?.broadcast_mul(&Tensor::new(&[1f32, -1.], &Device::Cpu)?)?;
        assert_eq!(halves_together(&matrix, 2)?.to_vec2::<f32>()?[4], [4.0, -4.0]);
        assert!(halves_together(&stored, 5).is_err());
        Ok(())
    }
}
