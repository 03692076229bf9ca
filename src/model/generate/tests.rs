use super::*;
use crate::model::build;
use crate::ops::Compute;

const BLOCK: usize = 12;
const VOCABULARY: usize = 31;

/// A network of these weights, and its parameters made large enough for logits that differ.
fn network(weights: serde_json::Value, n_kv_head: usize) -> (Box<dyn Network>, ParamStore) {
    network_of("gpt2", weights, n_kv_head)
}

fn network_of(
    arch: &str,
    weights: serde_json::Value,
    n_kv_head: usize,
) -> (Box<dyn Network>, ParamStore) {
    network_with(serde_json::json!({"arch": arch, "n_kv_head": n_kv_head, "weights": weights}))
}

/// A network with these settings beside the usual ones.
fn network_with(settings: serde_json::Value) -> (Box<dyn Network>, ParamStore) {
    let mut config = serde_json::json!({
        "n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": BLOCK, "vocab_size": VOCABULARY,
        "dropout": 0.1, "bias": true
    });
    for (key, value) in settings.as_object().expect("a mapping") {
        config[key] = value.clone();
    }
    let model = build(serde_json::from_value(config).expect("a configuration")).expect("network");
    let mut params = model.initialize(5, DType::F32, &Device::Cpu).expect("parameters");
    let ids: Vec<_> = params.iter().map(|(id, parameter)| (id, parameter.weight.clone())).collect();
    for (id, weight) in ids {
        if let crate::params::Weight::Dense(tensor) = weight {
            let larger = (tensor * 2.0).expect("a product");
            params.set(id, crate::params::Weight::Dense(larger));
        }
    }
    (model, params)
}

fn forms() -> Vec<(Box<dyn Network>, ParamStore)> {
    let all = |form: serde_json::Value| {
        let targets = ["q", "k", "v", "o", "up", "down"];
        serde_json::Value::Object(
            targets.map(|name| (name.to_owned(), form.clone())).into_iter().collect(),
        )
    };
    vec![
        network(serde_json::json!({}), 4),
        network(serde_json::json!({}), 2),
        network(all(serde_json::json!({"low_rank": {"rank": 5}})), 4),
        network(all(serde_json::json!({"factored": {"rank": 5}})), 4),
        network(all(serde_json::json!({"factored": {"rank": 5, "form": "usv"}})), 1),
        network_of("llama", serde_json::json!({}), 2),
        network_with(serde_json::json!({
            "arch": "gpt2", "n_kv_head": 2, "fused_qkv": true,
            "weights": {"qkv": {"low_rank": {"rank": 5}}}
        })),
        network_with(serde_json::json!({
            "arch": "llama", "n_kv_head": 2, "fused_qkv": true, "weights": {}
        })),
        network_of("llama", all(serde_json::json!({"low_rank": {"rank": 5}})), 4),
    ]
}

fn request(prompt: &[u32], count: usize, samples: usize, temperature: f64) -> Request<'_> {
    let sampling = Sampling { temperature, top_k: None, top_p: None, seed: 9 };
    Request { prompt, count, samples, end: None, slide: 1, sampling }
}

/// The definition: every token by a pass over the last `BLOCK` tokens before it.
fn uncached(model: &dyn Network, params: &ParamStore, request: Request) -> Vec<Vec<u32>> {
    let sample = |sample: usize| {
        let mut draws = request.sampling.draws(sample);
        let mut tokens = request.prompt.to_vec();
        for _ in 0..request.count {
            let context = &tokens[tokens.len().saturating_sub(BLOCK)..];
            let logits = model.next_token_logits(params, context).expect("logits");
            tokens.push(draws.draw(&logits).expect("a token"));
        }
        tokens.split_off(request.prompt.len())
    };
    (0..request.samples).map(sample).collect()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    let difference = (a - b).and_then(|d| d.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar());
    difference.expect("tensors of one shape")
}

/// Logits to 1e-5, whether the tokens come one by one, in parts or all at once, for several
/// sequences, by kernels and by candle's operations.
#[test]
fn logits_with_a_cache_are_those_without() {
    let texts = [[3u32, 1, 4, 1, 5, 9, 2, 6, 5, 3], [8, 9, 7, 9, 3, 2, 3, 8, 4, 6]];
    for (mut model, params) in forms() {
        for kernels in [true, false] {
            model.set_compute(Compute { kernels, half: None });
            for parts in [vec![1; 10], vec![4, 1, 3, 2], vec![10]] {
                let mut cache = model.cache(10);
                let mut seen = 0;
                for part in parts {
                    let new = texts.map(|text| text[seen..seen + part].to_vec()).concat();
                    let new = Tensor::from_vec(new, (2, part), &Device::Cpu).expect("ids");
                    seen += part;
                    let logits = model.extend(&params, &new, &mut cache).expect("logits");
                    assert_eq!((logits.dims(), cache.length()), (&[2, VOCABULARY][..], seen));
                    for (row, text) in texts.iter().enumerate() {
                        let whole =
                            model.next_token_logits(&params, &text[..seen]).expect("logits");
                        let spread =
                            largest_difference(&whole, &whole.zeros_like().expect("zeros"));
                        assert!(spread > 0.1, "logits that differ: {spread}");
                        let error = largest_difference(&logits.get(row).expect("a row"), &whole);
                        assert!(error < 1e-5, "{:?} at {seen}: {error}", model.config().weights);
                    }
                }
                let more = Tensor::zeros((2, 1), DType::U32, &Device::Cpu).expect("ids");
                assert!(cache.is_full() && model.extend(&params, &more, &mut cache).is_err());
            }
        }
    }
}

/// Token for token, greedily and drawn, past the block size, with a prompt longer than it, several
/// samples.
#[test]
fn generated_tokens_are_those_of_the_definition() {
    let long: Vec<u32> = (0..BLOCK as u32 + 3).collect();
    for (model, params) in forms() {
        for prompt in [&[7u32][..], &[1, 2, 3], &long] {
            for (temperature, samples) in [(0.0, 1), (1.0, 1), (1.0, 3)] {
                let request = request(prompt, 2 * BLOCK, samples, temperature);
                let ours = generate(&*model, &params, request, &mut |_, _| true).expect("tokens");
                assert_eq!(ours, uncached(&*model, &params, request));
            }
        }
    }
}

/// A sample's own stream of draws, and its own end: the others go on as if it had never been.
#[test]
fn samples_end_by_themselves() {
    let (model, params) = network(serde_json::json!({}), 4);
    let whole = request(&[1, 2], 20, 4, 1.0);
    let free = generate(&*model, &params, whole, &mut |_, _| true).expect("tokens");
    assert!((1..4).all(|sample| free[sample] != free[0]), "every sample has its own draws");
    // A token that ends some samples early and not all.
    let end = free[1][3];
    let cut: Vec<Vec<u32>> = free
        .iter()
        .map(|text| {
            let ends = text.iter().position(|token| *token == end);
            text[..ends.map_or(text.len(), |at| at + 1)].to_vec()
        })
        .collect();
    assert!(cut[1].len() <= 4 && cut.iter().any(|text| text.len() > cut[1].len()));
    let mut shown = vec![Vec::new(); 4];
    let request = Request { end: Some(end), ..whole };
    let ended = generate(&*model, &params, request, &mut |sample, token| {
        shown[sample].push(token);
        true
    });
    assert_eq!(ended.expect("tokens"), cut);
    assert_eq!(shown, cut);
    let mut count = 0;
    let stopped = generate(&*model, &params, whole, &mut |_, _| {
        count += 1;
        false
    });
    assert_eq!((count, stopped.expect("tokens").concat().len()), (4, 4));
}

/// A window that moves in steps: the tokens are those of the window as it stands.
#[test]
fn a_window_can_move_in_steps() {
    let (model, params) = network(serde_json::json!({}), 4);
    let (slide, count) = (5, 3 * BLOCK);
    let request = Request { slide, ..request(&[4, 5], count, 1, 0.0) };
    let ours = generate(&*model, &params, request, &mut |_, _| true).expect("tokens").concat();
    let mut tokens = vec![4, 5];
    let mut start = 0;
    for _ in 0..count {
        if tokens.len() - start > BLOCK {
            start = tokens.len() - (BLOCK + 1 - slide);
        }
        let logits = model.next_token_logits(&params, &tokens[start..]).expect("logits");
        tokens.push(logits.argmax(0).and_then(|token| token.to_scalar()).expect("a token"));
    }
    assert_eq!(ours, tokens[2..]);
    for slide in [0, BLOCK + 1] {
        let request = Request { slide, ..request };
        let error = generate(&*model, &params, request, &mut |_, _| true).expect_err("no window");
        assert!(error.to_string().contains("cannot move by"), "{error}");
    }
}
