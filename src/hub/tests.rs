//! Out and in again: every form of weight, one file or many.

use super::*;
use crate::data::Tokenizer;
use crate::model::{ModelConfig, build};
use crate::params::{ParamStore, TensorReader};
use crate::spec::{Architecture, FactorForm, ModelPlan, WeightForm};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;

fn config(form: WeightForm, bias: bool) -> ModelConfig {
    let targets = Architecture::Gpt2.targets();
    ModelConfig {
        model: ModelPlan {
            n_layer: 2,
            n_head: 2,
            n_embd: 8,
            block_size: 6,
            dropout: 0.1,
            bias,
            weights: targets.iter().map(|target| (*target, form)).collect(),
            ..ModelPlan::of(Architecture::Gpt2)
        },
        vocab_size: 256,
    }
}

fn options(shard_bytes: usize) -> ExportOptions {
    ExportOptions { dtype: DType::F32, shard_bytes }
}

/// The imported dense model answers with the logits of the one that was exported.
#[test]
fn every_form_goes_out_and_comes_back_with_the_same_logits() {
    let forms = [
        WeightForm::Dense,
        WeightForm::LowRank { rank: 3 },
        WeightForm::Factored { rank: 3, form: FactorForm::Ba },
        WeightForm::Factored { rank: 3, form: FactorForm::Usv },
    ];
    for (index, (form, bias)) in forms.into_iter().zip([true, false, true, false]).enumerate() {
        let model = build(config(form, bias)).expect("a network");
        let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
        let place = tempfile::tempdir().expect("a folder");
        let to = place.path().join("exported");
        let most = if index % 2 == 0 { 2_000 } else { 1 << 30 };
        let exported = export(model.as_ref(), &params, &Tokenizer::bytes(), options(most), &to);
        let exported = exported.expect("an export");
        assert_eq!(exported.files > 1, index % 2 == 0, "{exported:?}");
        assert!(to.join("tokenizer_config.json").exists());

        let (config, tensors) = import(&to).expect("an import");
        assert_eq!((config.n_layer, config.n_head, config.block_size), (2, 2, 6));
        let dense = build(config).expect("a network");
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
            assert!((a - b).abs() < 1e-6, "{form:?}: {a} {b}");
        }
        let again = export(model.as_ref(), &params, &Tokenizer::bytes(), options(most), &to);
        let error = again.expect_err("it exists").to_string();
        assert!(error.contains("exists already"), "{error}");
    }
}

/// Changes one key of config.json, or one tensor, and expects the refusal to name it.
#[test]
fn what_does_not_fit_is_refused_by_name() {
    let model = build(config(WeightForm::Dense, true)).expect("a network");
    let params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
    let place = tempfile::tempdir().expect("a folder");
    let to = place.path().join("exported");
    export(model.as_ref(), &params, &Tokenizer::bytes(), options(1 << 30), &to).expect("export");
    let path = to.join("config.json");
    let text = std::fs::read_to_string(&path).expect("config.json");
    for (from, to_text, named) in [
        ("\"gpt2\"", "\"mamba\"", "`model_type` is mamba"),
        ("\"gelu_new\"", "\"relu\"", "`activation_function` is \"relu\""),
        ("\"tie_word_embeddings\": true", "\"tie_word_embeddings\": false", "no `lm_head.weight`"),
        ("\"n_inner\": null", "\"n_inner\": 24", "h.0.mlp.c_fc.weight"),
        ("\"n_inner\": null", "\"n_inner\": \"wide\"", "`n_inner` is missing or no number"),
        ("\"n_layer\": 2", "\"n_layer\": 3", "transformer.h.2"),
        ("\"n_layer\": 2", "\"n_layer\": 1", "have no place"),
        ("\"n_embd\": 8", "\"n_embd\": 16", "transformer.wte.weight"),
        ("\"n_head\": 2", "\"n_head\": 3", "n_head"),
        ("0.00001", "1.5", "layer_norm_epsilon"),
        ("\"n_positions\": 6", "\"n_position\": 6", "`n_positions` is missing"),
    ] {
        let changed = text.replace(from, to_text);
        assert_ne!(changed, text, "{from} in {text}");
        std::fs::write(&path, changed).expect("writable");
        let error = format!("{:#}", import(&to).expect_err(from));
        assert!(error.contains(named), "{from}: {error}");
    }
    std::fs::write(&path, &text).expect("writable");
    let tensors = BTreeMap::from([("stray", Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap())]);
    let bytes = safetensors::serialize(tensors, None).expect("bytes");
    std::fs::write(to.join("model.safetensors"), bytes).expect("writable");
    let error = format!("{:#}", import(&to).expect_err("nothing is there"));
    assert!(error.contains("transformer.wte.weight"), "{error}");
}
