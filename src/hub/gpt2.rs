//! GPT-2 as `transformers` has it: q, k and v fused into one matrix, matrices transposed (Conv1D),
//! a bias everywhere.

use super::format::Format;
use super::settings::Settings;
use super::weights::{HEAD_WEIGHT, Module, Named, imported_head};
use crate::model::ModelConfig;
use crate::params::{ParamStore, TensorReader};
use crate::spec::{Architecture, ModelPlan};
use anyhow::{Result, ensure};
use candle_core::{D, Tensor};
use serde_json::{Value, json};

/// The format of GPT-2.
pub(super) struct Gpt2;

impl Format for Gpt2 {
    fn factored_classes(&self) -> [&'static str; 2] {
        ["LrptGPT2Config", "LrptGPT2LMHeadModel"]
    }

    fn is_transposed(&self) -> bool {
        true
    }

    fn config(&self, model: &ModelConfig, end_of_text: Option<u32>, dtype: &str) -> Value {
        json!({
            "architectures": ["GPT2LMHeadModel"],
            "model_type": "gpt2",
            "vocab_size": model.vocab_size,
            "n_positions": model.block_size,
            "n_ctx": model.block_size,
            "n_embd": model.n_embd,
            "n_layer": model.n_layer,
            "n_head": model.n_head,
            "n_inner": model.n_inner,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": model.norm_epsilon(),
            "attn_pdrop": model.dropout,
            "embd_pdrop": model.dropout,
            "resid_pdrop": model.dropout,
            "scale_attn_weights": true,
            "tie_word_embeddings": model.ties_embeddings(),
            "use_cache": true,
            "bos_token_id": end_of_text,
            "eos_token_id": end_of_text,
            "torch_dtype": dtype,
        })
    }

    fn tensors(&self, model: &ModelConfig, params: &ParamStore) -> Result<Vec<(String, Tensor)>> {
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
        if !model.ties_embeddings() {
            out.push((HEAD_WEIGHT.to_owned(), named.dense(HEAD_WEIGHT)?));
        }
        Ok(out)
    }

    fn modules(&self, model: &ModelConfig) -> Vec<Module> {
        let of_block = |layer: usize| {
            MATRICES.iter().map(move |(fused, sites)| {
                let is_joint = model.fused_qkv && *fused == QKV;
                let sites: &[&str] = if is_joint { &["attn.qkv"] } else { sites };
                let of_block = |name: &str| format!("transformer.h.{layer}.{name}");
                let sites = sites.iter().map(|site| of_block(site)).collect();
                Module { name: of_block(fused), sites }
            })
        };
        (0..model.n_layer).flat_map(of_block).collect()
    }

    fn read_config(&self, config: &Value) -> Result<ModelConfig> {
        let settings = Settings::new(config, "gpt2");
        settings.refuse_unless(
            "activation_function",
            |value| matches!(value.as_str(), Some("gelu_new" | "gelu_pytorch_tanh")),
            "GELU in its tanh form (gelu_new)",
        )?;
        settings.refuse_unless("scale_attn_weights", |value| value == true, "scaled attention")?;
        settings.refuse_unless(
            "scale_attn_by_inverse_layer_idx",
            |value| value == false,
            "attention scaled alike in every layer",
        )?;
        settings.refuse_unless(
            "add_cross_attention",
            |value| value == false,
            "no cross-attention",
        )?;
        let (arch, n_embd) = (Architecture::Gpt2, settings.size("n_embd")?);
        let (inner, tied) =
            (settings.size_or_none("n_inner")?, settings.flag("tie_word_embeddings")?);
        let (epsilon, usual_epsilon) = arch.norm_epsilon();
        let plan = ModelPlan {
            n_layer: settings.size("n_layer")?,
            n_head: settings.size("n_head")?,
            n_embd,
            block_size: settings.size("n_positions")?,
            dropout: settings.number("resid_pdrop")?.unwrap_or(0.0),
            bias: true,
            n_inner: inner.filter(|inner| *inner != arch.inner_width(n_embd)),
            tie_word_embeddings: tied.filter(|tied| *tied != arch.ties_embeddings()),
            layer_norm_epsilon: settings.number(epsilon)?.filter(|size| *size != usual_epsilon),
            ..ModelPlan::of(arch)
        };
        let model = ModelConfig { model: plan, vocab_size: settings.size("vocab_size")? };
        model.validate()?;
        Ok(model)
    }

    fn shapes(&self, model: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let (width, table) = (model.n_embd, vec![model.vocab_size, model.n_embd]);
        let mut shapes = vec![
            ("transformer.wte.weight".to_owned(), table.clone()),
            ("transformer.wpe.weight".to_owned(), vec![model.block_size, width]),
        ];
        let mut norms = vec!["transformer.ln_f".to_owned()];
        for layer in 0..model.n_layer {
            let block = format!("transformer.h.{layer}");
            norms.extend([format!("{block}.ln_1"), format!("{block}.ln_2")]);
            for (fused, sites) in MATRICES {
                let rows = sites.iter().map(|site| shape_of(site, model).0).sum();
                let columns = shape_of(sites[0], model).1;
                shapes.push((format!("{block}.{fused}.weight"), vec![columns, rows]));
                shapes.push((format!("{block}.{fused}.bias"), vec![rows]));
            }
        }
        for norm in norms {
            shapes.extend(["weight", "bias"].map(|leaf| (format!("{norm}.{leaf}"), vec![width])));
        }
        shapes.push((HEAD_WEIGHT.to_owned(), table));
        shapes
    }

    fn passes_over(&self, name: &str) -> bool {
        // Causal masks.
        name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias")
    }

    fn read_tensors(
        &self,
        model: &ModelConfig,
        tensors: Vec<(String, Tensor)>,
    ) -> Result<Vec<(String, Tensor)>> {
        let mut head = None;
        let mut given = Vec::new();
        for (name, tensor) in tensors {
            let name = match name.strip_prefix("transformer.") {
                Some(_) => name,
                None if name == HEAD_WEIGHT => {
                    head = Some(tensor);
                    continue;
                }
                None => format!("transformer.{name}"),
            };
            given.push((name, tensor));
        }
        let mut reader = TensorReader::new("the imported model", given);
        let (width, mut out) = (model.n_embd, Vec::new());
        let wte = reader.take_shaped("transformer.wte.weight", &[model.vocab_size, width])?;
        out.extend(imported_head(model, &wte, head)?);
        out.push(("transformer.wte.weight".to_owned(), wte));
        let wpe = reader.take_shaped("transformer.wpe.weight", &[model.block_size, width])?;
        out.push(("transformer.wpe.weight".to_owned(), wpe));
        let mut norms: Vec<String> = vec!["transformer.ln_f".to_owned()];
        for layer in 0..model.n_layer {
            let block = format!("transformer.h.{layer}");
            norms.extend([format!("{block}.ln_1"), format!("{block}.ln_2")]);
            for (fused, sites) in MATRICES {
                let shapes = sites.iter().map(|site| shape_of(site, model)).collect::<Vec<_>>();
                let (rows, columns) = (shapes.iter().map(|(rows, _)| rows).sum(), shapes[0].1);
                let weight =
                    reader.take_shaped(&format!("{block}.{fused}.weight"), &[columns, rows])?;
                let bias = reader.take_shaped(&format!("{block}.{fused}.bias"), &[rows])?;
                let mut first = 0;
                for (site, (rows, _)) in sites.iter().zip(shapes) {
                    let w = weight.narrow(D::Minus1, first, rows)?.t()?.contiguous()?;
                    out.push((format!("{block}.{site}.weight"), w));
                    out.push((
                        format!("{block}.{site}.bias"),
                        bias.narrow(0, first, rows)?.copy()?,
                    ));
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
}

/// Queries, keys and values there, which may be one matrix here, too.
const QKV: &str = "attn.c_attn";

/// Matrices there, each with those it is fused of here where q, k and v are three.
const MATRICES: &[(&str, &[&str])] = &[
    (QKV, &["attn.q", "attn.k", "attn.v"]),
    ("attn.c_proj", &["attn.o"]),
    ("mlp.c_fc", &["mlp.up"]),
    ("mlp.c_proj", &["mlp.down"]),
];

/// Outputs and inputs of a site.
fn shape_of(site: &str, model: &ModelConfig) -> (usize, usize) {
    let (width, inner) = (model.n_embd, model.inner_width());
    match site {
        "mlp.up" => (inner, width),
        "mlp.down" => (width, inner),
        _ => (width, width),
    }
}
