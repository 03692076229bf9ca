//! What every fuzz target feeds with bytes that anyone could have written. An error is a right
//! answer; a panic, an abort, a hang, or memory beyond what the input is worth is not.
//!
//! Shared by the targets of cargo-fuzz and by `tests/fuzz_inputs.rs`, which repeats what was found.

// Every target is a program of its own and uses one of these.
#![allow(dead_code)]

use candle_core::{DType, Device, Result, Tensor};
use lrpt::account::Ledger;
use lrpt::data::{Dataset, Tokenizer, prepare};
use lrpt::ops::{self, Gradients, Tape, Value};
use lrpt::spec::{self, Plan};
use std::path::Path;

/// Specs larger than this take longer to print than to refuse.
const LONGEST_TEXT: usize = 1 << 16;

fn text(data: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(&data[..data.len().min(LONGEST_TEXT)])
}

/// A folder with these files, for as long as it lives.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let shared_memory = Path::new("/dev/shm");
    let place = match shared_memory.is_dir() {
        true => tempfile::tempdir_in(shared_memory),
        false => tempfile::tempdir(),
    }
    .expect("a temporary folder");
    for (name, bytes) in files {
        std::fs::write(place.path().join(name), bytes).expect("a file in it");
    }
    place
}

/// A spec, and after each zero byte an override as `--set` takes it. A plan that is accepted can be
/// counted, written and read again, and is then the same.
pub fn spec(data: &[u8]) {
    let text = text(data);
    let mut parts = text.split('\0');
    let spec = parts.next().unwrap_or_default();
    let overrides: Vec<String> = parts.map(str::to_owned).collect();
    let Ok((_, plan)) = spec::parse_plan(spec, "spec.yaml", &overrides) else { return };
    let ledger = Ledger::new(&plan, 65, 2);
    let _ = (ledger.flops_per_step(), ledger.memory.peak(), ledger.parameters.total());
    let written = spec::to_yaml(&plan).expect("a plan can be written");
    let again = Plan::from_yaml(&written, "plan.yaml").expect("what was written can be read");
    assert_eq!(plan.hash(), again.hash(), "{written}");
}

/// The plan.yaml of a run.
pub fn plan(data: &[u8]) {
    if let Ok(plan) = Plan::from_yaml(&text(data), "plan.yaml") {
        let _ = (plan.hash(), Ledger::new(&plan, 65, 2).memory.peak());
    }
}

/// A sweep's spec.
pub fn sweep(data: &[u8]) {
    let place = folder(&[("sweep.yaml", text(data).as_bytes()), ("base.yaml", BASE.as_bytes())]);
    let _ = lrpt::sweep::read_sweep(&place.path().join("sweep.yaml"));
}

const BASE: &str = "\
name: base
model: {n_layer: 1, n_head: 1, n_embd: 8, block_size: 8, weights: {low_rank: {rank: 2}}}
data: {source: {text: {path: text.txt, val_fraction: 0.1}}, tokenizer: bytes}
train: {max_steps: 3, batch_size: 1}
optimizer: {dense: {adamw: {learning_rate: 1e-3}}, low_rank: {dlra: {learning_rate: 1e-2}}}
";

/// A tokenizer.json; one that is accepted encodes and decodes.
pub fn tokenizer(data: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(&text(data)) else { return };
    let size = tokenizer.vocab_size();
    if let Ok(tokens) = tokenizer.encode("The heath, \u{e9}t\u{e9} \u{1f600}\n\n") {
        assert!(tokens.iter().all(|token| (*token as usize) < size), "{tokens:?} of {size}");
        let _ = (tokenizer.decode(&tokens), tokenizer.show(&tokens));
    }
    let ids: Vec<u32> = (0..size.min(300) as u32).collect();
    let _ = (tokenizer.decode(&ids), tokenizer.show(&ids), tokenizer.token_byte_lengths());
}

/// A shard of prepared data, with the header's checks of sums passed by none but chance: what is
/// before them must hold.
pub fn shard(data: &[u8]) {
    let tokenizer = Tokenizer::bytes().to_json().expect("a tokenizer");
    let hash = blake3::hash(tokenizer.as_bytes()).to_hex().to_string();
    let count = data.first().copied().unwrap_or(0) as u64;
    let summary = serde_json::json!({
        "source": "fuzz", "tokenizer": "bytes", "content_hash": "", "tokenizer_hash": hash,
        "vocab_size": 256, "train_tokens": count, "val_tokens": count, "train_bytes": count,
        "val_bytes": count,
    });
    let body = data.get(1..).unwrap_or_default();
    let place = folder(&[
        ("tokenizer.json", tokenizer.as_bytes()),
        ("dataset.json", summary.to_string().as_bytes()),
        ("train.tokens", body),
        ("val.tokens", body),
    ]);
    if let Ok(dataset) = Dataset::open(place.path()) {
        let all = dataset.train.len();
        assert_eq!(dataset.train.read(0, all).len(), all);
        let _ = dataset.train.text_bytes(0, all, &dataset.token_byte_lengths());
    }
}

/// The files of a checkpoint, with a manifest that fits them whatever they are: a u16 says how long
/// config.json is, the rest is model.safetensors.
pub fn checkpoint(data: &[u8]) {
    let (config, model) = two_parts(data);
    let state = br#"{"step": 1, "state": {}}"#;
    let files: [(&str, &[u8]); 4] = [
        ("config.json", config),
        ("model.safetensors", model),
        ("optimizer.safetensors", model),
        ("state.json", state),
    ];
    let entries: Vec<serde_json::Value> = files
        .iter()
        .map(|(name, bytes)| {
            let hash = blake3::hash(bytes).to_hex().to_string();
            serde_json::json!({ "name": name, "bytes": bytes.len(), "blake3": hash })
        })
        .collect();
    let manifest = serde_json::json!({ "format_version": 1, "step": 1, "files": entries });
    let mut manifest = serde_json::to_vec_pretty(&manifest).expect("JSON");
    manifest.push(b'\n');
    let place = folder(&files);
    std::fs::write(place.path().join("manifest.json"), manifest).expect("a file");
    if let Ok(snapshot) = lrpt::checkpoint::load(place.path()) {
        let _ = lrpt::model::restore(&snapshot.config, snapshot.model, DType::F32, &Device::Cpu);
    }
}

/// A folder of transformers, its config.json and its model.safetensors as in [`checkpoint`].
pub fn import(data: &[u8]) {
    let (config, model) = two_parts(data);
    let place = folder(&[("config.json", config), ("model.safetensors", model)]);
    let _ = lrpt::hub::import(place.path());
}

/// A GGUF file, as a model and as a tokenizer.
pub fn gguf(data: &[u8]) {
    let place = folder(&[("model.gguf", data)]);
    let path = place.path().join("model.gguf");
    let _ = (lrpt::hub::import_gguf_config(&path), lrpt::hub::import_gguf(&path));
    if let Ok(read) = Tokenizer::from_file(&path) {
        let _ = read.to_json().map(|json| tokenizer(json.as_bytes()));
    }
}

/// A chat template and, after a zero byte, JSON Lines that it makes text of.
pub fn chat(data: &[u8]) {
    let text = text(data);
    let (template, lines) = text.split_once('\0').unwrap_or((&text, CONVERSATION));
    let place =
        folder(&[("template.jinja", template.as_bytes()), ("chat.jsonl", lines.as_bytes())]);
    let (template, lines) = (place.path().join("template.jinja"), place.path().join("chat.jsonl"));
    let spec = serde_json::json!({
        "source": {"instructions": {"train": [&lines], "val": [&lines], "chat_template": template}},
        "tokenizer": "bytes"
    });
    let spec = serde_json::from_value(spec).expect("a data spec");
    let _ = prepare(&spec, &place.path().join("data"));
}

const CONVERSATION: &str = "\
{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}
{\"prompt\": \"c\", \"completion\": \"d\"}
";

fn two_parts(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return (data, &[]) };
    rest.split_at((u16::from_le_bytes(*length) as usize).min(rest.len()))
}

/// A file of JSON Lines as training text.
pub fn json_lines(data: &[u8]) {
    let place = folder(&[("train.jsonl", data)]);
    let path = place.path().join("train.jsonl");
    let spec = serde_json::json!({
        "source": {"jsonl": {"train": [path], "val_fraction": 0.5}}, "tokenizer": "bytes"
    });
    let spec = serde_json::from_value(spec).expect("a data spec");
    if let Ok(dataset) = prepare(&spec, &place.path().join("data")) {
        let bytes =
            dataset.summary.train_bytes.unwrap_or(0) + dataset.summary.val_bytes.unwrap_or(0);
        assert!(bytes <= data.len() as u64 * 3 + 16, "{bytes} bytes of text from {}", data.len());
    }
}

/// The kernels on shapes that the bytes say, forward and backward, beside the portable path.
pub fn operations(data: &[u8]) {
    let mut sizes = data.iter().map(|byte| *byte as usize);
    let mut size = |most: usize| 1 + sizes.next().unwrap_or(0) % most;
    let (which, rows, length) = (size(6), size(3), size(70));
    let (width, other, rank) = (size(40), size(40), size(12));
    let half = Device::Cpu;
    let normal = |draw: u64, shape: &[usize]| -> Result<Tensor> {
        let count = shape.iter().product();
        let numbers = lrpt::rng::normals(&mut lrpt::rng::stream(5, "fuzz", &[draw]), count);
        Tensor::from_vec(numbers, shape, &half)?.to_dtype(DType::F32)
    };
    let x = [rows, length, width];
    let shapes: Vec<Vec<usize>> = match which {
        1 => vec![x.to_vec(), vec![other, width], vec![other]],
        2 => vec![x.to_vec(), vec![other, rank], vec![width, rank], vec![rank, rank]],
        3 => vec![x.to_vec(), vec![width], vec![width]],
        4 => {
            let (queries, keys) = (rank.div_ceil(2) * 2 * other.min(8), 2 * other.min(8));
            vec![vec![rows, length, queries], vec![rows, length, keys], vec![rows, length, keys]]
        }
        5 => vec![vec![other, width], vec![length, width]],
        _ => vec![x.to_vec(), vec![other, width]],
    };
    let ids = Tensor::from_vec(
        (0..rows * length).map(|i| (i * 7 % other) as u32).collect::<Vec<_>>(),
        (rows, length),
        &Device::Cpu,
    );
    let ids = ids.expect("ids");
    let heads = ops::AttentionHeads { queries: rank.div_ceil(2) * 2, keys: 2 };
    let forward = |tape: &Tape, v: &[Value]| match which {
        1 => ops::linear(tape, &v[0], &v[1], Some(&v[2])),
        2 => ops::low_rank_linear(tape, &v[0], &v[1], v[3].tensor(), &v[2], None),
        3 => ops::layer_norm(tape, &v[0], &v[1], Some(&v[2]), 1e-5),
        4 => ops::causal_attention(tape, &v[0], &v[1], &v[2], heads, None),
        5 => ops::embedding(tape, &ids, &v[0], &v[1]),
        _ => ops::cross_entropy_head(tape, &v[0], &v[1], &ids),
    };
    let run = |tape: Tape| -> Result<Vec<Vec<f32>>> {
        let inputs: Vec<Tensor> = shapes
            .iter()
            .enumerate()
            .map(|(draw, shape)| normal(draw as u64, shape))
            .collect::<Result<_>>()?;
        let values: Vec<Value> =
            inputs.iter().enumerate().map(|(slot, x)| tape.parameter(slot, x)).collect();
        let y = forward(&tape, &values)?;
        let (to_y, weights) = (y.source(), normal(99, y.tensor().dims())?);
        let numbers = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let mut results = vec![numbers(y.tensor())?];
        let loss = tape.record(&[to_y], Tensor::zeros((), DType::F32, &half)?, move |_, flow| {
            flow.add(to_y, weights)
        });
        let mut gradients = Gradients::new(inputs.len());
        tape.backward(&loss, &mut gradients)?;
        for slot in 0..inputs.len() {
            results.extend(gradients.get(slot).map(numbers).transpose()?);
        }
        Ok(results)
    };
    let kernels = run(Tape::training()).expect("shapes that fit");
    let portable = run(Tape::training().portable()).expect("shapes that fit");
    for (result, (a, b)) in kernels.iter().zip(&portable).enumerate() {
        let scale = b.iter().fold(1e-3f32, |most, x| most.max(x.abs()));
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 1e-4 * scale, "operation {which}, result {result}: {a} {b}");
        }
    }
}
