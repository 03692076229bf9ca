//! Out and in again: every form of weight, one file or many.

mod fused;

use super::*;
use crate::data::Tokenizer;
use crate::model::{ModelConfig, build};
use crate::params::{ParamStore, TensorReader};
use crate::spec::{AdapterForm, Architecture, FactorForm, ModelPlan, Target, WeightForm};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

fn config(form: WeightForm, bias: bool) -> ModelConfig {
    let arch = Architecture::Gpt2;
    ModelConfig {
        model: ModelPlan {
            n_layer: 2,
            n_head: 2,
            n_embd: 8,
            block_size: 6,
            dropout: 0.1,
            bias,
            weights: arch.targets(false).iter().map(|target| (*target, form)).collect(),
            ..ModelPlan::of(arch)
        },
        vocab_size: 256,
    }
}

fn options(shard_bytes: usize) -> ExportOptions {
    ExportOptions { dtype: DType::F32, shard_bytes, factored: false }
}

/// A Llama with fewer heads of keys, and every setting other than as usual where `unusual`.
fn llama(form: WeightForm, unusual: bool) -> ModelConfig {
    let arch = Architecture::Llama;
    ModelConfig {
        model: ModelPlan {
            n_kv_head: Some(1),
            bias: unusual,
            n_inner: unusual.then_some(20),
            tie_word_embeddings: unusual.then_some(true),
            rope_theta: unusual.then_some(123.0),
            rms_norm_eps: unusual.then_some(1e-3),
            weights: arch.targets(false).iter().map(|target| (*target, form)).collect(),
            ..ModelPlan { arch, ..config(form, false).model }
        },
        vocab_size: 256,
    }
}

/// A GPT-2 whose head is its own and whose MLP and norms are not as usual.
fn unusual_gpt2(form: WeightForm) -> ModelConfig {
    let mut config = config(form, true);
    (config.n_inner, config.tie_word_embeddings) = (Some(24), Some(false));
    config.layer_norm_epsilon = Some(1e-3);
    config
}

/// The imported dense model has the configuration of the one that was exported, and answers with
/// its logits.
#[test]
fn every_form_goes_out_and_comes_back_with_the_same_logits() {
    let forms = [
        WeightForm::Dense,
        WeightForm::LowRank { rank: 3 },
        WeightForm::Factored { rank: 3, form: FactorForm::Ba },
        WeightForm::Factored { rank: 3, form: FactorForm::Usv },
    ];
    for (index, form) in forms.into_iter().enumerate() {
        // A bias in a GPT-2 of transformers comes back even where there was none.
        comes_back(config(form, index % 2 == 0), index % 2 == 0);
        comes_back(llama(form, index % 2 == 0), index % 2 == 1);
    }
    comes_back(unusual_gpt2(WeightForm::Dense), true);
    comes_back(llama(WeightForm::Dense, false), false);
}

fn comes_back(config: ModelConfig, sharded: bool) {
    let model = build(config.clone()).expect("a network");
    let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
    let place = tempfile::tempdir().expect("a folder");
    let to = place.path().join("exported");
    let most = if sharded { 2_000 } else { 1 << 30 };
    let exported =
        export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), options(most), &to);
    let exported = exported.expect("an export");
    assert_eq!(exported.files > 1, sharded, "{exported:?}");
    assert!(to.join("tokenizer_config.json").exists());

    let (read, tensors) = import(&to).expect("an import");
    let expected = ModelPlan {
        bias: config.bias || config.arch == Architecture::Gpt2,
        weights: ModelPlan::of(config.arch).weights,
        ..config.model.clone()
    };
    assert_eq!(read, ModelConfig { model: expected, ..config });
    let dense = build(read).expect("a network");
    let reader = TensorReader::new("import", tensors);
    let imported = ParamStore::load(dense.declared(), reader, DType::F32, &Device::Cpu);
    let imported = imported.expect("parameters");
    let tokens = [3u32, 77, 250, 0, 9];
    let logits = |model: &dyn crate::model::Network, params: &ParamStore| -> Vec<f32> {
        let logits = model.next_token_logits(params, &tokens).expect("logits");
        logits.to_vec1().expect("f32")
    };
    let (ours, theirs) = (logits(model.as_ref(), &params), logits(dense.as_ref(), &imported));
    for (a, b) in ours.iter().zip(&theirs) {
        assert!((a - b).abs() < 1e-6, "{:?}: {a} {b}", model.config());
    }
    let again = export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), options(most), &to);
    let error = again.expect_err("it exists").to_string();
    assert!(error.contains("exists already"), "{error}");
}

/// Exports a model, makes each change in its config.json, and expects the refusal to name it.
fn refuses(config: ModelConfig, changes: &[(&str, &str, &str)]) {
    let model = build(config).expect("a network");
    let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
    let place = tempfile::tempdir().expect("a folder");
    let to = place.path().join("exported");
    export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), options(1 << 30), &to)
        .expect("export");
    let path = to.join("config.json");
    let text = std::fs::read_to_string(&path).expect("config.json");
    for (from, to_text, named) in changes {
        let changed = text.replace(from, to_text);
        assert_ne!(changed, text, "{from} in {text}");
        std::fs::write(&path, changed).expect("writable");
        let error = format!("{:#}", import(&to).expect_err(to_text));
        assert!(error.contains(named), "{to_text}: {error}");
    }
    std::fs::write(&path, &text).expect("writable");
    import(&to).expect("as it was, it is read");
    let tensors = BTreeMap::from([("stray", Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap())]);
    let bytes = safetensors::serialize(tensors, None).expect("bytes");
    std::fs::write(to.join("model.safetensors"), bytes).expect("writable");
    let error = format!("{:#}", import(&to).expect_err("nothing is there"));
    let table = &model.declared()[0].name;
    assert!(error.contains(table), "{error}");
}

#[test]
fn what_does_not_fit_a_gpt2_is_refused_by_name() {
    refuses(
        config(WeightForm::Dense, true),
        &[
            ("\"gpt2\"", "\"mamba\"", "`model_type` is mamba"),
            ("\"gelu_new\"", "\"relu\"", "`activation_function` is \"relu\""),
            ("\"scale_attn_weights\": true", "\"scale_attn_weights\": false", "scaled attention"),
            (
                "\"tie_word_embeddings\": true",
                "\"tie_word_embeddings\": false",
                "no `lm_head.weight`",
            ),
            ("\"n_inner\": null", "\"n_inner\": 24", "h.0.mlp.c_fc.weight"),
            ("\"n_inner\": null", "\"n_inner\": \"wide\"", "`n_inner` is missing or no number"),
            ("\"n_layer\": 2", "\"n_layer\": 3", "transformer.h.2"),
            ("\"n_layer\": 2", "\"n_layer\": 1", "have no place"),
            ("\"n_embd\": 8", "\"n_embd\": 16", "transformer.wte.weight"),
            ("\"n_head\": 2", "\"n_head\": 3", "n_head"),
            ("0.00001", "1.5", "layer_norm_epsilon"),
            ("\"n_positions\": 6", "\"n_position\": 6", "`n_positions` is missing"),
        ],
    );
    let changed = ("\"tie_word_embeddings\": false", "\"tie_word_embeddings\": true");
    let is_another = (changed.0, changed.1, "`lm_head.weight` is not the token table");
    refuses(unusual_gpt2(WeightForm::Dense), &[is_another]);
}

#[test]
fn what_does_not_fit_a_llama_is_refused_by_name() {
    let plain = "\"rope_type\": \"default\"";
    refuses(
        llama(WeightForm::Dense, false),
        &[
            ("\"llama\"", "\"mistral\"", "`model_type` is mistral"),
            ("\"silu\"", "\"gelu\"", "`hidden_act` is \"gelu\""),
            (plain, "\"rope_type\": \"llama3\"", "`rope_parameters` is {"),
            (plain, "\"type\": \"linear\"", "without scaling"),
            (plain, "\"partial_rotary_factor\": 0.5", "`rope_parameters` is {"),
            (
                "\"hidden_act\"",
                "\"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2.0}, \"hidden_act\"",
                "`rope_scaling` is {",
            ),
            ("\"hidden_act\"", "\"sliding_window\": 4, \"hidden_act\"", "`sliding_window` is 4"),
            (
                "\"hidden_act\"",
                "\"partial_rotary_factor\": 0.5, \"hidden_act\"",
                "`partial_rotary_factor` is 0.5",
            ),
            (
                "\"hidden_act\"",
                "\"quantization_config\": {\"bits\": 4}, \"hidden_act\"",
                "`quantization_config` is {",
            ),
            ("\"head_dim\": 4", "\"head_dim\": 6", "`head_dim` is 6"),
            ("\"mlp_bias\": false", "\"mlp_bias\": true", "`mlp_bias` is true"),
            ("\"attention_bias\": false", "\"attention_bias\": true", "`attention_bias` is true"),
            ("\"rope_theta\": 10000.0,\n  \"rope", "\"rope_theta\": 5.0,\n  \"rope", "is 5"),
            ("\"rms_norm_eps\": ", "\"rms_norm_eps\": -", "rms_norm_eps"),
            ("\"intermediate_size\": 24", "\"intermediate_size\": 32", "mlp.gate_proj.weight"),
            ("\"intermediate_size\": 24", "\"intermediate\": 24", "`intermediate_size` is missing"),
            ("\"num_key_value_heads\": 1", "\"num_key_value_heads\": 2", "self_attn.k_proj.weight"),
            ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2"),
            ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "have no place"),
            (
                "\"tie_word_embeddings\": false",
                "\"tie_word_embeddings\": true",
                "`lm_head.weight` is not the token table",
            ),
        ],
    );
    let (from, to) = ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false");
    refuses(llama(WeightForm::Dense, true), &[(from, to, "no `lm_head.weight`")]);
    let biased = [
        ("\"attention_bias\": true,\n  \"mlp_bias\": true", "\"mlp_bias\": false", "have no place"),
        ("\"hidden_size\": 8", "\"hidden_size\": \"8\"", "`hidden_size` is missing or no number"),
    ];
    refuses(llama(WeightForm::Dense, true), &biased);
}

/// Low-rank weights go out with r (m + n − r) numbers each, dense ones beside them as they are, and
/// come in again as the same model.
#[test]
fn a_factored_export_comes_back_with_the_same_logits() {
    for arch in [Architecture::Gpt2, Architecture::Llama] {
        let mut config = ModelConfig {
            model: ModelPlan {
                n_layer: 2,
                n_head: 2,
                n_embd: 16,
                block_size: 6,
                bias: true,
                ..ModelPlan::of(arch)
            },
            vocab_size: 256,
        };
        for (target, form) in &mut config.model.weights {
            *form = match target.name() {
                "k" => WeightForm::Dense,
                "down" => WeightForm::LowRank { rank: 16 },
                _ => WeightForm::LowRank { rank: 3 },
            };
        }
        let model = build(config).expect("a network");
        let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
        let place = tempfile::tempdir().expect("a folder");
        let to = place.path().join("factored");
        let keep = ExportOptions { factored: true, ..options(1 << 30) };
        let exported = export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), keep, &to);
        let whole = place.path().join("whole");
        let dense =
            export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), options(1 << 30), &whole);
        let saved: usize = model
            .sites()
            .iter()
            .filter(|site| !matches!(site.kind.name(), "k" | "down"))
            .map(|site| site.rows * site.columns - 3 * (site.rows + site.columns - 3))
            .sum();
        let (exported, dense) = (exported.expect("an export"), dense.expect("an export"));
        assert_eq!(exported.parameters + saved, dense.parameters, "{arch:?}");
        assert!(to.join("modeling_lrpt.py").exists());

        let (config, tensors) = import(&to).expect("an import");
        let imported = build(config).expect("a network");
        let reader = TensorReader::new("import", tensors);
        let theirs = ParamStore::load(imported.declared(), reader, DType::F32, &Device::Cpu);
        let theirs = theirs.expect("parameters");
        let tokens = [3u32, 77, 250, 0, 9];
        let ours = model.next_token_logits(&params, &tokens).expect("logits");
        let theirs = imported.next_token_logits(&theirs, &tokens).expect("logits");
        let error = (ours - theirs).and_then(|d| d.abs()?.max_all()?.to_scalar::<f32>());
        assert!(error.expect("a number") < 1e-6, "{arch:?}");

        let path = to.join("config.json");
        let text = std::fs::read_to_string(&path).expect("config.json");
        for (from, by, named) in [
            ("\"lrpt_layers\"", "\"lrpt_layer\"", "`lrpt_layers` is no mapping"),
            ("        3,\n", "        4,\n", "config.json says"),
        ] {
            let changed = text.replacen(from, by, 1);
            assert_ne!(changed, text, "{from} in {text}");
            std::fs::write(&path, changed).expect("writable");
            let error = format!("{:#}", import(&to).expect_err(from));
            assert!(error.contains(named), "{from}: {error}");
        }
    }
    let config = config(WeightForm::Dense, true);
    let model = build(config).expect("a network");
    let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
    let place = tempfile::tempdir().expect("a folder");
    let keep = ExportOptions { factored: true, ..options(1 << 30) };
    let to = place.path().join("factored");
    let refused = export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), keep, &to);
    let error = refused.expect_err("nothing is low-rank").to_string();
    assert!(error.contains("leave --factored out"), "{error}");
}

/// Sizes that files claim, refused before anything is read: other shapes than config.json makes,
/// more numbers than its network has, and small factors of a matrix of terabytes.
#[test]
fn sizes_are_checked_before_anything_is_read() {
    let exported = |factored: bool| {
        let mut config = llama(WeightForm::LowRank { rank: 2 }, false);
        config.n_embd = 16;
        let model = build(config).expect("a network");
        let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
        let place = tempfile::tempdir().expect("a folder");
        let to = place.path().join("exported");
        let options = ExportOptions { factored, ..options(1 << 30) };
        export(model.as_ref(), &params, (&Tokenizer::bytes()).into(), options, &to)
            .expect("an export");
        (place, to)
    };
    let sparse = |to: &std::path::Path, name: &str, shape: [usize; 2]| {
        let bytes = 4 * shape[0] * shape[1];
        let header = serde_json::json!({
            name: {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]}
        });
        let header = header.to_string();
        let path = to.join("model.safetensors");
        let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        std::fs::write(&path, &start).expect("writable");
        let file = std::fs::File::options().write(true).open(&path).expect("there");
        file.set_len((start.len() + bytes) as u64).expect("a sparse file");
    };
    for (name, said) in [
        ("model.embed_tokens.weight", "config.json makes it [256, 16]"),
        ("embed_tokens.weight", "config.json makes it [256, 16]"),
        ("stray", "the weights have 1099511627776 numbers"),
    ] {
        let (_place, to) = exported(false);
        sparse(&to, name, [1 << 20, 1 << 20]);
        let error = format!("{:#}", import(&to).expect_err(name));
        assert!(error.contains(said) && error.contains("fetch both again"), "{error}");
    }
    let (_place, to) = exported(true);
    let path = to.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).expect("there")).expect("JSON");
    config["lrpt_layers"]["model.layers.0.mlp.down_proj"][0][1] = serde_json::json!(1u64 << 40);
    std::fs::write(&path, config.to_string()).expect("writable");
    let error = format!("{:#}", import(&to).expect_err("terabytes"));
    assert!(error.contains("of other sizes than the network has there"), "{error}");
}
