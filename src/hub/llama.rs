//! Llama as `transformers` has it: matrices as here, under names that end in `_proj`.

use super::format::Format;
use super::settings::Settings;
use super::weights::{HEAD_WEIGHT, Module, Named, imported_head};
use crate::model::ModelConfig;
use crate::params::{ParamStore, TensorReader};
use crate::spec::{Architecture, ModelPlan, ROPE_THETA, Target};
use anyhow::{Result, bail, ensure};
use candle_core::Tensor;
use serde_json::{Value, json};

/// The format of Llama.
pub(super) struct Llama;

impl Format for Llama {
    fn factored_classes(&self) -> [&'static str; 2] {
        ["LrptLlamaConfig", "LrptLlamaForCausalLM"]
    }

    fn is_transposed(&self) -> bool {
        false
    }

    fn config(&self, model: &ModelConfig, end_of_text: Option<u32>, dtype: &str) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": model.vocab_size,
            "max_position_embeddings": model.block_size,
            "hidden_size": model.n_embd,
            "intermediate_size": model.inner_width(),
            "num_hidden_layers": model.n_layer,
            "num_attention_heads": model.n_head,
            "num_key_value_heads": model.key_heads(),
            "head_dim": model.n_embd / model.n_head,
            "hidden_act": "silu",
            "rms_norm_eps": model.norm_epsilon(),
            // Read by version 4 of transformers; version 5 reads the two below.
            "rope_theta": model.rope_theta(),
            "rope_parameters": { "rope_theta": model.rope_theta(), "rope_type": "default" },
            "attention_bias": model.bias,
            "mlp_bias": model.bias,
            "attention_dropout": model.dropout,
            "tie_word_embeddings": model.ties_embeddings(),
            "use_cache": true,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "torch_dtype": dtype,
        })
    }

    fn tensors(&self, model: &ModelConfig, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
        let named = Named::new(params);
        let mut out = vec![(TABLE.to_owned(), named.dense(TABLE)?)];
        for layer in 0..model.n_layer {
            let block = format!("model.layers.{layer}");
            for (ours, theirs, _) in MATRICES {
                let site = format!("{block}.{ours}");
                out.push((format!("{block}.{theirs}.weight"), named.matrix(&site)?));
                if model.bias {
                    let bias = named.dense(&format!("{site}.bias"))?;
                    out.push((format!("{block}.{theirs}.bias"), bias));
                }
            }
        }
        for norm in norms(model.n_layer) {
            let weight = named.dense(&norm)?;
            out.push((norm, weight));
        }
        if !model.ties_embeddings() {
            out.push((HEAD_WEIGHT.to_owned(), named.dense(HEAD_WEIGHT)?));
        }
        Ok(out)
    }

    fn modules(&self, model: &ModelConfig) -> Vec<Module> {
        let here = |kind: Target| model.targets().contains(&kind);
        let of_block = |layer: usize| {
            let matrices = MATRICES.iter().filter(move |(_, _, kind)| here(*kind));
            matrices.map(move |(ours, theirs, _)| Module {
                name: format!("model.layers.{layer}.{theirs}"),
                sites: vec![format!("model.layers.{layer}.{ours}")],
            })
        };
        (0..model.n_layer).flat_map(of_block).collect()
    }

    fn read_config(&self, config: &Value) -> Result<ModelConfig> {
        let settings = Settings::new(config, "llama");
        settings.refuse_unless("hidden_act", |value| value == "silu", "SwiGLU (silu)")?;
        settings.refuse_unless("rope_scaling", is_plain, "rotary positions without scaling")?;
        settings.refuse_unless("rope_parameters", is_plain, "rotary positions without scaling")?;
        settings.refuse_unless(
            "partial_rotary_factor",
            |value| *value == 1.0,
            "whole heads turned",
        )?;
        settings.refuse_unless("sliding_window", |_| false, "attention to all tokens before")?;
        settings.refuse_unless("quantization_config", |_| false, "no quantized weights")?;
        let (n_embd, n_head) =
            (settings.size("hidden_size")?, settings.size("num_attention_heads")?);
        settings.refuse_unless(
            "head_dim",
            |value| value.as_u64().map(|width| width * n_head as u64) == Some(n_embd as u64),
            "heads that share out the width (hidden_size / num_attention_heads)",
        )?;
        let [attention, mlp] = ["attention_bias", "mlp_bias"]
            .map(|key| settings.flag(key).map(|bias| bias == Some(true)));
        let (bias, mlp_bias) = (attention?, mlp?);
        ensure!(
            bias == mlp_bias,
            "config.json: `attention_bias` is {bias}, `mlp_bias` is {mlp_bias}; lrpt's llama has \
             biases in both or in neither"
        );
        let (arch, inner) = (Architecture::Llama, settings.size("intermediate_size")?);
        let thetas =
            [settings.number("rope_parameters.rope_theta")?, settings.number("rope_theta")?];
        if let [Some(a), Some(b)] = thetas
            && a != b
        {
            bail!("config.json: `rope_parameters.rope_theta` is {a}, `rope_theta` is {b}")
        }
        let (epsilon, usual_epsilon) = arch.norm_epsilon();
        let tied = settings.flag("tie_word_embeddings")?;
        let key_heads = settings.size_or_none("num_key_value_heads")?;
        let plan = ModelPlan {
            n_layer: settings.size("num_hidden_layers")?,
            n_head,
            n_kv_head: key_heads.filter(|heads| *heads != n_head),
            n_embd,
            block_size: settings.size("max_position_embeddings")?,
            dropout: settings.number("attention_dropout")?.unwrap_or(0.0),
            bias,
            n_inner: Some(inner).filter(|inner| *inner != arch.inner_width(n_embd)),
            tie_word_embeddings: tied.filter(|tied| *tied != arch.ties_embeddings()),
            rope_theta: thetas[0].or(thetas[1]).filter(|theta| *theta != ROPE_THETA),
            rms_norm_eps: settings.number(epsilon)?.filter(|size| *size != usual_epsilon),
            ..ModelPlan::of(arch)
        };
        let model = ModelConfig { model: plan, vocab_size: settings.size("vocab_size")? };
        model.validate()?;
        Ok(model)
    }

    fn shapes(&self, model: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let table = vec![model.vocab_size, model.n_embd];
        let mut shapes = vec![(TABLE.to_owned(), table.clone())];
        for layer in 0..model.n_layer {
            for (_, theirs, kind) in MATRICES {
                let (rows, columns) = model.shape(*kind);
                let name = format!("model.layers.{layer}.{theirs}");
                shapes.push((format!("{name}.weight"), vec![rows, columns]));
                if model.bias {
                    shapes.push((format!("{name}.bias"), vec![rows]));
                }
            }
        }
        shapes.extend(norms(model.n_layer).map(|norm| (norm, vec![model.n_embd])));
        shapes.push((HEAD_WEIGHT.to_owned(), table));
        shapes
    }

    fn passes_over(&self, name: &str) -> bool {
        // The rates of the angles.
        name.ends_with(".rotary_emb.inv_freq")
    }

    fn read_tensors(
        &self,
        model: &ModelConfig,
        tensors: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>> {
        let (mut head, mut given) = (None, Vec::new());
        for (name, tensor) in tensors {
            if name == HEAD_WEIGHT {
                head = Some(tensor);
            } else {
                let whole = name.starts_with("model.");
                given.push((if whole { name } else { format!("model.{name}") }, tensor));
            }
        }
        let mut reader = TensorReader::new("the imported model", given);
        let table = reader.take_shaped(TABLE, &[model.vocab_size, model.n_embd])?;
        let mut out = Vec::new();
        out.extend(imported_head(model, &table, head)?);
        out.push((TABLE.to_owned(), table));
        for layer in 0..model.n_layer {
            let block = format!("model.layers.{layer}");
            for (ours, theirs, kind) in MATRICES {
                let (rows, columns) = model.shape(*kind);
                let weight =
                    reader.take_shaped(&format!("{block}.{theirs}.weight"), &[rows, columns])?;
                out.push((format!("{block}.{ours}.weight"), weight));
                if model.bias {
                    let bias = reader.take_shaped(&format!("{block}.{theirs}.bias"), &[rows])?;
                    out.push((format!("{block}.{ours}.bias"), bias));
                }
            }
        }
        for norm in norms(model.n_layer) {
            let weight = reader.take_shaped(&norm, &[model.n_embd])?;
            out.push((norm, weight));
        }
        reader.finish()?;
        Ok(out)
    }
}

const TABLE: &str = "model.embed_tokens.weight";

/// The matrices of a block, here and there, with their kinds.
const MATRICES: &[(&str, &str, Target)] = &[
    ("self_attn.q", "self_attn.q_proj", Target::Q),
    ("self_attn.k", "self_attn.k_proj", Target::K),
    ("self_attn.v", "self_attn.v_proj", Target::V),
    ("self_attn.o", "self_attn.o_proj", Target::O),
    ("mlp.gate", "mlp.gate_proj", Target::GATE),
    ("mlp.up", "mlp.up_proj", Target::UP),
    ("mlp.down", "mlp.down_proj", Target::DOWN),
];

/// The norms, by the same names here and there.
fn norms(layers: usize) -> impl Iterator<Item = String> {
    let of_block = |layer: usize| {
        ["input_layernorm", "post_attention_layernorm"]
            .map(|norm| format!("model.layers.{layer}.{norm}.weight"))
    };
    (0..layers).flat_map(of_block).chain(["model.norm.weight".to_owned()])
}

/// Whether settings of rotary positions ask for nothing but a base.
fn is_plain(rope: &Value) -> bool {
    let of_type = |key| match rope.get(key) {
        None | Some(Value::Null) => true,
        Some(kind) => kind == "default",
    };
    let whole = |factor: &Value| *factor == 1.0;
    of_type("rope_type") && of_type("type") && rope.get("partial_rotary_factor").is_none_or(whole)
}
