//! Models with queries, keys and values from one matrix: out, in again, and refused.

use super::*;
use crate::model::Network;

/// The same with q, k and v as one matrix, in this form as the others.
fn fused(config: ModelConfig, form: WeightForm) -> ModelConfig {
    let targets = config.arch.targets(true);
    let weights = targets.iter().map(|target| (*target, form)).collect();
    ModelConfig {
        model: ModelPlan { fused_qkv: true, weights, ..config.model },
        vocab_size: config.vocab_size,
    }
}

/// A network of this configuration and its parameters, with biases other than 0.
fn made(config: ModelConfig) -> (Box<dyn Network>, ParamStore) {
    let model = build(config).expect("a network");
    let mut params = model.initialize(7, DType::F32, &Device::Cpu).expect("parameters");
    let biases: Vec<_> = params
        .iter()
        .filter(|(_, parameter)| parameter.name.ends_with(".bias"))
        .map(|(id, parameter)| (id, parameter.element_count()))
        .collect();
    for (id, size) in biases {
        let numbers = Tensor::arange(0f32, size as f32, &Device::Cpu).and_then(|x| x * 0.01);
        params.set(id, crate::params::Weight::Dense(numbers.expect("a bias")));
    }
    (model, params)
}

fn logits(model: &dyn Network, params: &ParamStore) -> Vec<f32> {
    let logits = model.next_token_logits(params, &[3u32, 77, 250, 0, 9]).expect("logits");
    logits.to_vec1().expect("f32")
}

fn assert_near(a: &[f32], b: &[f32], what: &str) {
    assert!(a.iter().any(|x| x.abs() > 1e-3), "{what}: logits that say something");
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() < 1e-6, "{what}: {a} {b}");
    }
}

#[test]
fn one_matrix_and_three_are_the_same_model() {
    let low_rank = WeightForm::LowRank { rank: 3 };
    let grouped = ModelConfig {
        model: ModelPlan { n_kv_head: Some(1), ..config(low_rank, true).model },
        vocab_size: 256,
    };
    for separate in [config(low_rank, true), grouped, llama(low_rank, false), llama(low_rank, true)]
    {
        let name = format!("{separate:?}");
        let (joint, params) = made(fused(separate.clone(), low_rank));
        let (config, parted) =
            with_fused_qkv(joint.config(), params.clone(), false).expect("three matrices");
        assert_eq!(config.shape(Target::K), separate.shape(Target::K));
        assert_eq!(config.form(Target::Q), WeightForm::Dense);
        assert_eq!(config.form(Target::O), low_rank, "all else is as it was");
        let three = build(config.clone()).expect("a network");
        assert_near(&logits(joint.as_ref(), &params), &logits(three.as_ref(), &parted), &name);
        let (config, again) = with_fused_qkv(&config, parted, true).expect("one matrix");
        let one = build(config).expect("a network");
        assert_near(&logits(joint.as_ref(), &params), &logits(one.as_ref(), &again), &name);
    }
}

#[test]
fn a_joint_matrix_goes_out_as_what_transformers_has() {
    for form in [WeightForm::Dense, WeightForm::LowRank { rank: 3 }] {
        for config in [config(form, true), llama(form, true)] {
            let (model, params) = made(fused(config, form));
            let place = tempfile::tempdir().expect("a folder");
            let to = place.path().join("exported");
            let exported = export(
                model.as_ref(),
                &params,
                (&Tokenizer::bytes()).into(),
                options(1 << 30),
                &to,
            );
            exported.expect("an export");
            let (read, tensors) = import(&to).expect("an import");
            assert!(!read.fused_qkv);
            let dense = build(read).expect("a network");
            let reader = TensorReader::new("import", tensors);
            let theirs = ParamStore::load(dense.declared(), reader, DType::F32, &Device::Cpu);
            let theirs = logits(dense.as_ref(), &theirs.expect("parameters"));
            assert_near(&logits(model.as_ref(), &params), &theirs, &format!("{form:?}"));
        }
    }
}

/// A joint U S Vᵀ stays one where transformers has one matrix, `c_attn`; where it has three, keeping
/// it is refused.
#[test]
fn common_factors_stay_where_there_is_one_matrix() {
    let form = WeightForm::LowRank { rank: 2 };
    let keep = ExportOptions { factored: true, ..options(1 << 30) };
    let place = tempfile::tempdir().expect("a folder");
    let (model, params) = made(fused(config(form, true), form));
    let [factored, whole] = ["factored", "whole"].map(|name| place.path().join(name));
    let tokenizer = Tokenizer::bytes();
    let write = |options, to| export(model.as_ref(), &params, (&tokenizer).into(), options, to);
    let kept = write(keep, &factored).expect("an export");
    let dense = write(options(1 << 30), &whole).expect("an export");
    let saved =
        |site: &crate::model::Site| site.rows * site.columns - 2 * (site.rows + site.columns - 2);
    let saved: usize = model.sites().iter().map(saved).sum();
    assert_eq!(kept.parameters + saved, dense.parameters);
    let (read, tensors) = import(&factored).expect("an import");
    let network = build(read).expect("a network");
    let reader = TensorReader::new("import", tensors);
    let theirs = ParamStore::load(network.declared(), reader, DType::F32, &Device::Cpu);
    let theirs = logits(network.as_ref(), &theirs.expect("parameters"));
    assert_near(&logits(model.as_ref(), &params), &theirs, "factored");

    let (model, params) = made(fused(llama(form, false), form));
    let to = place.path().join("none");
    let refused = export(model.as_ref(), &params, (&tokenizer).into(), keep, &to);
    let error = refused.expect_err("three matrices").to_string();
    let said = ["`model.layers.0.self_attn.qkv`", "model.fused_qkv", "leave --factored out"];
    assert!(said.iter().all(|said| error.contains(said)), "{error}");
    assert!(!to.exists());
}

#[test]
fn adapters_of_a_joint_matrix_go_to_one_matrix_only() {
    let form = WeightForm::Adapter { rank: 2, form: AdapterForm::Lora, alpha: Some(4) };
    let place = tempfile::tempdir().expect("a folder");
    let tokenizer = Tokenizer::bytes();
    for (config, is_refused) in [(config(form, true), false), (llama(form, false), true)] {
        let (model, params) = made(fused(config, form));
        let to = place.path().join(model.config().arch.name());
        let exported =
            export_peft(model.as_ref(), &params, (&tokenizer).into(), None, DType::F32, &to);
        if is_refused {
            let error = exported.expect_err("three matrices").to_string();
            assert!(error.contains("self_attn.qkv") && error.contains("--merge"), "{error}");
            continue;
        }
        // Of each block c_attn (8 and 24), c_proj (8 and 8), c_fc and the other c_proj (8 and 32).
        assert_eq!(exported.expect("an export").parameters, 2 * 2 * (32 + 16 + 40 + 40));
    }
}
