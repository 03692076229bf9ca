//! Adapters beside frozen matrices: gradients, first steps, and what stays as it was.

mod support;

use candle_core::{DType, Device, Tensor};
use faer::Mat;
use lrpt::lowrank::{LowRank, Tangent};
use lrpt::model::{ModelConfig, Network, build, merged};
use lrpt::ops::{Compute, Gradients};
use lrpt::optim::{DlraState, DlraStep, RankDecision, Scaled};
use lrpt::params::{ParamId, ParamStore, Weight};
use lrpt::spec::{AdapterForm, Count, DlraSpec, Momentum, RetractionSpec, WeightForm};
use support::textbook::{self, dense, tensor, truncated_svd};

/// Two blocks with adapters on q, v and down, and one on a head of its own; not all of one rank.
fn model(form: AdapterForm, kernels: bool) -> Box<dyn Network> {
    let alpha = (form == AdapterForm::Lora).then_some(6);
    let adapter = |rank| WeightForm::Adapter { rank, form, alpha };
    let config = serde_json::json!({
        "arch": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 8, "block_size": 6, "vocab_size": 11,
        "dropout": 0.0, "bias": true, "tie_word_embeddings": false,
        "weights": {"q": adapter(3), "v": adapter(2), "down": adapter(3)},
        "head_adapter": adapter(4),
    });
    let config: ModelConfig = serde_json::from_value(config).expect("a configuration");
    config.validate().expect("a sound one");
    let mut model = build(config).expect("a network");
    model.set_compute(Compute { kernels, half: None });
    model
}

/// The same without q in the first block, and with another rank of v in the second.
fn model_by_blocks(form: AdapterForm) -> Box<dyn Network> {
    let mut config = serde_json::to_value(model(form, true).config()).expect("a configuration");
    config["layers"] = serde_json::json!([{ "q": 0 }, { "v": 4 }]);
    let config: ModelConfig = serde_json::from_value(config).expect("a configuration");
    config.validate().expect("a sound one");
    build(config).expect("a network")
}

fn parameters(model: &dyn Network) -> ParamStore {
    model.initialize(5, DType::F64, &Device::Cpu).expect("parameters")
}

fn loss(model: &dyn Network, params: &ParamStore) -> (f64, Gradients) {
    let tokens = Tensor::new(&[[1u32, 4, 9, 0, 3, 3], [10, 2, 2, 7, 5, 6]], &Device::Cpu);
    let targets = Tensor::new(&[[4u32, 9, 0, 3, 3, 8], [2, 2, 7, 5, 6, 1]], &Device::Cpu);
    let (tape, mut gradients) = (model.training_tape(), Gradients::new(params.slot_count()));
    let (tokens, targets) = (tokens.expect("tokens"), targets.expect("targets"));
    let loss = model.loss(params, &tape, &tokens, &targets, None).expect("forward");
    tape.backward(&loss, &mut gradients).expect("backward");
    (loss.tensor().to_scalar().expect("a scalar"), gradients)
}

fn id(params: &ParamStore, name: &str) -> ParamId {
    params.iter().find(|(_, p)| p.name == name).unwrap_or_else(|| panic!("no `{name}`")).0
}

/// The loss with t · Z added to a dense parameter.
fn moved(model: &dyn Network, params: &ParamStore, name: &str, z: &Tensor, t: f64) -> f64 {
    let (mut params, at) = (params.clone(), id(params, name));
    let w = (params.dense(at).expect("dense") + (z * t).expect("a multiple")).expect("a sum");
    params.set(at, Weight::Dense(w));
    loss(model, &params).0
}

fn agrees(model: &dyn Network, params: &ParamStore, name: &str, z: &Tensor, analytic: f64) {
    let numeric =
        (moved(model, params, name, z, 1e-5) - moved(model, params, name, z, -1e-5)) / 2e-5;
    assert!(
        (numeric - analytic).abs() < 1e-8 * (1.0 + analytic.abs()),
        "{name}: {numeric} and {analytic}"
    );
}

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    (a * b).and_then(|x| x.sum_all()).and_then(|x| x.to_scalar()).expect("a number")
}

fn draw(rows: usize, columns: usize, index: u64) -> Tensor {
    tensor(&textbook::random(rows, columns, "adapter", index))
}

/// Sets S of every adapter, or B, to something.
fn filled(params: &mut ParamStore) {
    let ids: Vec<ParamId> = params.iter().filter(|(_, p)| p.trained).map(|(id, _)| id).collect();
    for (index, id) in ids.into_iter().enumerate() {
        let weight = match &params.get(id).weight {
            Weight::LowRank(point) => {
                let s = (draw(point.rank(), point.rank(), index as u64) * 0.1).expect("S");
                Weight::LowRank(LowRank { s, ..point.clone() })
            }
            Weight::Uncut(_) => panic!("adapters are factors"),
            Weight::Dense(w) => {
                let (rows, columns) = w.dims2().expect("a factor");
                Weight::Dense((draw(rows, columns, index as u64) * 0.1).expect("a factor"))
            }
        };
        params.set(id, weight);
    }
}

const SITES: [&str; 4] =
    ["transformer.h.0.attn.q", "transformer.h.1.attn.v", "transformer.h.1.mlp.down", "lm_head"];

/// The K- and the L-gradient are G V and Gᵀ U, with G the gradient by W₀, at S = 0 and elsewhere;
/// nothing but adapters has a gradient.
#[test]
fn gradients_of_an_adapter_are_those_of_its_matrix_in_its_bases() {
    for kernels in [true, false] {
        let model = model(AdapterForm::LowRank, kernels);
        let mut params = parameters(model.as_ref());
        for at_zero in [true, false] {
            if !at_zero {
                filled(&mut params);
            }
            let (_, gradients) = loss(model.as_ref(), &params);
            for (id, parameter) in params.iter() {
                let is_adapter = parameter.name.ends_with(".adapter");
                assert_eq!(parameter.trained, is_adapter, "{}", parameter.name);
                assert_eq!(gradients.get(ParamStore::slot(id)).is_some(), is_adapter);
            }
            for site in SITES {
                let at = id(&params, &format!("{site}.adapter"));
                let LowRank { u, s, v } = params.point(at).expect("a point").clone();
                let norm = inner(&s, &s);
                assert_eq!(norm == 0.0, at_zero);
                let k = gradients.get(ParamStore::slot(at)).expect("K").clone();
                let l = gradients.get(ParamStore::l_slot(at)).expect("L").clone();
                let x = draw(u.dim(0).expect("m"), u.dim(1).expect("r"), 7);
                let y = draw(v.dim(0).expect("n"), v.dim(1).expect("r"), 8);
                let frozen = format!("{site}.weight");
                let along = x.matmul(&v.t().expect("Vᵀ")).expect("X Vᵀ");
                agrees(model.as_ref(), &params, &frozen, &along, inner(&k, &x));
                let along = u.matmul(&y.t().expect("Yᵀ")).expect("U Yᵀ");
                agrees(model.as_ref(), &params, &frozen, &along, inner(&l, &y));
            }
        }
    }
}

#[test]
fn gradients_of_lora_agree_with_central_differences() {
    for kernels in [true, false] {
        let model = model(AdapterForm::Lora, kernels);
        let mut params = parameters(model.as_ref());
        filled(&mut params);
        let (_, gradients) = loss(model.as_ref(), &params);
        for site in SITES {
            for leaf in ["b", "a"] {
                let name = format!("{site}.adapter.{leaf}");
                let at = id(&params, &name);
                let (rows, columns) = params.dense(at).and_then(|w| w.dims2()).expect("a factor");
                let z = draw(rows, columns, 9);
                let gradient = gradients.get(ParamStore::slot(at)).expect("a gradient");
                agrees(model.as_ref(), &params, &name, &z, inner(gradient, &z));
            }
        }
    }
}

/// B = 0 and A uniform within 1/√n, U and V orthonormal and S = 0: the network answers as without
/// adapters, and a merged one as with them.
#[test]
fn an_adapter_starts_at_nothing_and_merges_into_its_matrix() {
    for form in [AdapterForm::LowRank, AdapterForm::Lora] {
        let model = model(form, true);
        let mut params = parameters(model.as_ref());
        let mut plain = model.config().clone();
        plain.weights.clear();
        plain.head_adapter = None;
        let plain = build(plain).expect("a network");
        let dense_params = parameters(plain.as_ref());
        let logits = |model: &dyn Network, params: &ParamStore| -> Vec<f64> {
            let logits = model.next_token_logits(params, &[3, 7, 10, 0, 9]).expect("logits");
            logits.to_vec1().expect("numbers")
        };
        assert_eq!(logits(model.as_ref(), &params), logits(plain.as_ref(), &dense_params));
        for (_, _, point) in params.low_rank() {
            assert!(point.orthonormality_defect().expect("a defect") < 1e-12);
        }
        for (_, parameter) in params.iter().filter(|(_, p)| p.name.ends_with(".adapter.a")) {
            let Weight::Dense(a) = &parameter.weight else { panic!("A is dense") };
            let (rank, columns) = a.dims2().expect("A");
            let bound = 1.0 / (columns as f64).sqrt();
            let numbers: Vec<f64> = a.flatten_all().and_then(|a| a.to_vec1()).expect("numbers");
            assert!(numbers.iter().all(|x| x.abs() <= bound));
            let mean_square = inner(a, a) / (rank * columns) as f64;
            assert!((mean_square / (bound * bound / 3.0) - 1.0).abs() < 0.5, "{mean_square}");
        }
        filled(&mut params);
        let expected = logits(model.as_ref(), &params);
        let (config, together) = merged(model.config(), params).expect("merged");
        let found = logits(build(config).expect("a network").as_ref(), &together);
        for (a, b) in expected.iter().zip(&found) {
            assert!((a - b).abs() < 1e-12, "{form:?}: {a} {b}");
        }
    }
}

/// An adapter of a head that is the table of tokens changes the head alone: merged, it is a matrix of
/// its own, and the table is as it was. Losses, each and in sum, logits of whole sequences and of
/// one token after others are those of the merged model.
#[test]
fn a_tied_head_is_adapted_apart_from_the_table() {
    for (form, kernels) in [
        (AdapterForm::LowRank, true),
        (AdapterForm::LowRank, false),
        (AdapterForm::Lora, true),
        (AdapterForm::Lora, false),
    ] {
        let mut config = model(form, kernels).config().clone();
        config.tie_word_embeddings = None;
        let mut model = build(config).expect("a network");
        model.set_compute(Compute { kernels, half: None });
        let mut params = parameters(model.as_ref());
        assert!(params.iter().all(|(_, parameter)| parameter.name != "lm_head.weight"));
        filled(&mut params);
        let (config, together) = merged(model.config(), params.clone()).expect("merged");
        assert!(!config.ties_embeddings() && config.head_adapter.is_none());
        let whole = build(config).expect("a network");
        let table = |params: &ParamStore| {
            let at = id(params, "transformer.wte.weight");
            let table = params.dense(at).and_then(|table| table.flatten_all());
            table.and_then(|table| table.to_vec1::<f64>()).expect("the table")
        };
        assert_eq!(table(&params), table(&together));
        let tokens = Tensor::new(&[[1u32, 4, 9, 0, 3, 3]], &Device::Cpu).expect("tokens");
        let targets = Tensor::new(&[[4u32, 9, 0, 3, 3, 8]], &Device::Cpu).expect("targets");
        let answers = |model: &dyn Network, params: &ParamStore| -> Vec<f64> {
            let sum = model.loss_sum(params, &tokens, &targets).expect("a sum");
            let mut answers = model.losses_of(params, &tokens, (&targets).into()).expect("losses");
            let each: f64 = answers.iter().sum();
            assert!((each - sum).abs() < 1e-12 * sum, "{each} {sum}");
            answers.extend([sum, 6.0 * loss(model, params).0]);
            let mut cache = model.cache(6);
            let first = tokens.narrow(1, 0, 4).expect("four");
            model.extend(params, &first, &mut cache).expect("logits");
            let fifth = tokens.narrow(1, 4, 1).expect("one");
            for logits in [
                model.extend(params, &fifth, &mut cache).expect("logits"),
                model.next_token_logits(params, &[1, 4, 9, 0, 3]).expect("logits"),
            ] {
                answers.extend(logits.flatten_all().and_then(|x| x.to_vec1::<f64>()).expect("x"));
            }
            answers
        };
        let (adapted, dense) =
            (answers(model.as_ref(), &params), answers(whole.as_ref(), &together));
        for (a, b) in adapted.iter().zip(&dense) {
            assert!((a - b).abs() < 1e-12, "{form:?}, kernels {kernels}: {a} {b}");
        }
    }
}

const ROWS: usize = 14;
const COLUMNS: usize = 11;
const RANK: usize = 3;

/// The first step from S = 0 is the best rank-r approximation of −η D, with D the textbook's
/// direction at W = 0 with these bases: P(G) for heavy ball, its scaled polar factor for spectral.
#[test]
fn the_first_step_from_zero_agrees_with_the_dense_textbook() {
    for (momentum, of_head) in
        [(Momentum::HeavyBall, false), (Momentum::Spectral, false), (Momentum::Spectral, true)]
    {
        let settings = DlraSpec {
            momentum,
            retraction: RetractionSpec::Svd,
            reorthonormalize_every: Count(1_000_000),
            ..DlraSpec::default()
        };
        let mut stream = lrpt::rng::stream(3, "start", &[]);
        let start =
            LowRank::random(ROWS, COLUMNS, RANK, 0.0, &mut stream, DType::F64, &Device::Cpu)
                .expect("a point");
        let gradient = textbook::random(ROWS, COLUMNS, "gradient", 1);
        let (u, v) = (dense(&start.u), dense(&start.v));
        let left = &u * (u.transpose() * &gradient);
        let right = (&gradient * &v) * v.transpose();
        let both = (&left * &v) * v.transpose();
        let projected: Mat<f64> = left + right - both;
        let direction = match momentum {
            Momentum::HeavyBall => projected,
            _ => {
                let (a, _, b) = truncated_svd(&projected, 2 * RANK);
                // Of the head by the width alone.
                let side = if of_head { COLUMNS } else { ROWS };
                0.2 * (side as f64).sqrt() * (a * b.transpose())
            }
        };
        let tangent = Tangent::project(&start, &tensor(&gradient)).expect("projection");
        let state = DlraState::new(&start, &settings).expect("a state");
        let rate = 0.05;
        let hyper = DlraStep {
            settings: &settings,
            learning_rate: rate,
            step: 1,
            rank: RankDecision::Keep,
            of_head,
        };
        let update = state.step(&start, Scaled::new(&tangent, 1.0), &hyper).expect("a step");
        let found = dense(&update.point.to_dense().expect("dense"));
        // The singular values of a polar factor are all alike: there any rank-r part of −ηD is
        // best, and only what it leaves can be compared.
        let (_, sigma, _) = truncated_svd(&direction, 2 * RANK);
        let rest = (&found + rate * &direction).norm_l2();
        let tail = rate * sigma[RANK..].iter().map(|s| s * s).sum::<f64>().sqrt();
        assert!((rest - tail).abs() < 1e-10, "{momentum:?}: {rest} and {tail}");
        if momentum == Momentum::HeavyBall {
            let (a, sigma, b) = truncated_svd(&direction, RANK);
            let s = Mat::from_fn(RANK, RANK, |i, j| if i == j { -rate * sigma[i] } else { 0.0 });
            assert!((found - a * s * b.transpose()).norm_l2() < 1e-10);
        }
    }
}

/// Every integrator, momentum and retraction takes finite steps that go downhill from S = 0, and
/// cuts in both norms work while W = 0.
#[test]
fn every_rule_starts_from_zero() {
    use lrpt::lowrank::{Spectrum, tolerance_rank};
    let mut stream = lrpt::rng::stream(3, "start", &[]);
    let start = LowRank::random(ROWS, COLUMNS, RANK, 0.0, &mut stream, DType::F64, &Device::Cpu)
        .expect("a point");
    let target = textbook::random(ROWS, COLUMNS, "target", 1);
    let distance = |point: &LowRank| (dense(&point.to_dense().expect("dense")) - &target).norm_l2();
    for momentum in [
        Momentum::HeavyBall,
        Momentum::Adam,
        Momentum::MatrixAdam,
        Momentum::Spectral,
        Momentum::WhitenedSpectral,
        Momentum::InputWhitenedSpectral,
    ] {
        for retraction in [RetractionSpec::Svd, RetractionSpec::Subspace] {
            let settings = DlraSpec {
                momentum,
                retraction,
                spectral_regularization: 1e-6,
                ..DlraSpec::default()
            };
            let (mut point, mut state) =
                (start.clone(), DlraState::new(&start, &settings).expect("a state"));
            let before = distance(&point);
            for step in 1..=20 {
                let g = tensor(&(dense(&point.to_dense().expect("dense")) - &target));
                let tangent = Tangent::project(&point, &g).expect("projection");
                let hyper = DlraStep {
                    settings: &settings,
                    learning_rate: 0.02,
                    step,
                    rank: RankDecision::Keep,
                    of_head: false,
                };
                // ½‖W − T‖² is the loss of inputs without a preferred direction.
                let inputs = Tensor::eye(RANK, DType::F64, &Device::Cpu).expect("I");
                let measured = state.with_inputs(&inputs, &settings).expect("a state");
                let update =
                    measured.step(&point, Scaled::new(&tangent, 1.0), &hyper).expect("a step");
                (point, state) = (update.point, update.state);
            }
            let after = distance(&point);
            assert!(after < 0.99 * before, "{momentum:?} {retraction:?}: {before} to {after}");
            assert!(point.orthonormality_defect().expect("a defect") < 1e-8);
        }
    }
    let gram = |index| {
        let a = textbook::random(RANK, RANK, "gram", index);
        tensor(&(&a * a.transpose()))
    };
    for spectrum in [
        Spectrum::new(&start).expect("a spectrum"),
        Spectrum::weighted(&start, &gram(1), &gram(2)).expect("a spectrum"),
    ] {
        assert_eq!(spectrum.singular_values(), [0.0; RANK]);
        assert_eq!(tolerance_rank(spectrum.singular_values(), 0.1), 1);
        let cut = spectrum.truncate(&start, 2).expect("a cut").point;
        assert_eq!((cut.rank(), cut.frobenius_norm().expect("a norm")), (2, 0.0));
        assert!(cut.orthonormality_defect().expect("a defect") < 1e-12);
    }
}

/// Of rank 0 an adapter is none: its matrix is frozen as all others are, and the merged model has
/// what the other adapters add.
#[test]
fn single_blocks_have_adapters_of_their_own_ranks_or_none() {
    for form in [AdapterForm::LowRank, AdapterForm::Lora] {
        let model = model_by_blocks(form);
        let mut params = parameters(model.as_ref());
        let named = |name: &str| params.iter().find(|(_, p)| p.name.starts_with(name));
        assert!(named("transformer.h.0.attn.q.adapter").is_none());
        let (_, frozen) = named("transformer.h.0.attn.q.weight").expect("the frozen matrix");
        assert!(!frozen.trained);
        for (site, rank) in [("0.attn.v", 2), ("1.attn.v", 4), ("1.attn.q", 3)] {
            let (_, adapter) =
                named(&format!("transformer.h.{site}.adapter")).unwrap_or_else(|| panic!("{site}"));
            let found = match &adapter.weight {
                Weight::LowRank(point) => point.rank(),
                Weight::Dense(b) => b.dim(1).expect("B"),
                Weight::Uncut(_) => panic!("adapters are factors"),
            };
            assert_eq!(found, rank, "{site}");
        }
        filled(&mut params);
        let (expected, gradients) = loss(model.as_ref(), &params);
        for (id, parameter) in params.iter() {
            assert_eq!(gradients.get(ParamStore::slot(id)).is_some(), parameter.trained);
        }
        let (config, dense) = merged(model.config(), params).expect("a merged model");
        let (found, _) = loss(build(config).expect("a network").as_ref(), &dense);
        assert!((found - expected).abs() < 1e-12, "{found} and {expected}");
    }
}
