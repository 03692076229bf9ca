//! What cannot be imported is refused by name: folders of transformers, adapters of PEFT, files of
//! llama.cpp, runs. Settings and sizes have more of these beside their code, in src/hub.

mod support;

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use lrpt::data::Tokenizer;
use lrpt::hub::{self, ExportOptions};
use lrpt::model::{Network, build};
use lrpt::params::ParamStore;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use support::Workplace;
use support::gguf::llama as gguf;
use tempfile::TempDir;

const CPU: Device = Device::Cpu;

fn network(arch: &str, more: Value) -> (Box<dyn Network>, ParamStore) {
    let mut config = json!({
        "arch": arch, "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 6, "vocab_size": 256,
        "dropout": 0.0, "bias": arch == "gpt2", "weights": {}
    });
    let all = config.as_object_mut().expect("a mapping");
    all.extend(more.as_object().expect("a mapping").clone());
    let model = build(serde_json::from_value(config).expect("a configuration")).expect("one");
    let params = model.initialize(7, DType::F32, &CPU).expect("parameters");
    (model, params)
}

/// A folder with an exported model in it.
struct Exported {
    place: TempDir,
}

impl Exported {
    fn new((model, params): &(Box<dyn Network>, ParamStore), factored: bool) -> Self {
        let place = tempfile::tempdir().expect("a folder");
        let options = ExportOptions { dtype: DType::F32, shard_bytes: 1 << 30, factored };
        let to = place.path().join("model");
        let tokenizer = Tokenizer::bytes();
        hub::export(model.as_ref(), params, (&tokenizer).into(), options, &to).expect("an export");
        Self { place }
    }

    fn path(&self) -> PathBuf {
        self.place.path().join("model")
    }

    /// Writes a file, and takes it back after the import has been refused with these words.
    fn refused_with(&self, file: &str, bytes: &[u8], said: &str) {
        let path = self.path().join(file);
        let before = fs::read(&path).ok();
        fs::write(&path, bytes).expect("writable");
        let error = format!("{:#}", hub::import(&self.path()).expect_err(said));
        assert!(error.contains(said) && error.contains("cannot be imported"), "{said}: {error}");
        match before {
            Some(before) => fs::write(&path, before).expect("writable"),
            None => fs::remove_file(&path).expect("there"),
        }
    }

    /// The same with a setting of config.json changed.
    fn refuses_setting(&self, pointer: &str, value: Value, said: &str) {
        let text = fs::read(self.path().join("config.json")).expect("there");
        let mut config: Value = serde_json::from_slice(&text).expect("JSON");
        let (block, key) = pointer.rsplit_once('/').expect("a pointer");
        config.pointer_mut(block).expect("a block")[key] = value;
        self.refused_with("config.json", config.to_string().as_bytes(), said);
    }

    /// The same with tensors changed.
    fn refuses_tensors(&self, change: impl Fn(&mut HashMap<String, Tensor>), said: &str) {
        let path = self.path().join("model.safetensors");
        let mut tensors = candle_core::safetensors::load(&path, &CPU).expect("tensors");
        change(&mut tensors);
        let bytes = safetensors::serialize(tensors, None).expect("bytes");
        self.refused_with("model.safetensors", &bytes, said);
    }
}

#[test]
fn a_folder_that_is_no_model_is_refused_by_name() {
    let exported = Exported::new(&network("gpt2", json!({})), false);
    exported.refuses_setting("/model_type", json!(null), "`model_type` is none");
    exported.refuses_setting("/resid_pdrop", json!("no"), "`resid_pdrop` is \"no\", no number");
    exported.refuses_setting("/tie_word_embeddings", json!(1), "is 1, neither true nor false");
    exported.refuses_setting("/scale_attn_by_inverse_layer_idx", json!(true), "scaled alike");
    exported.refuses_setting("/add_cross_attention", json!(true), "no cross-attention");
    exported.refuses_tensors(
        |all| {
            drop(all.insert("lm_head.weight".into(), Tensor::zeros(3, DType::F32, &CPU).unwrap()))
        },
        "`lm_head.weight` has the shape [3], but config.json makes it [256, 16]",
    );
    let wpe = "transformer.wpe.weight";
    exported.refuses_tensors(|all| drop(all.remove(wpe)), "wpe.weight");
    let strange = Tensor::zeros(2, DType::F32, &CPU).unwrap();
    exported.refuses_tensors(
        |all| drop(all.insert("strange".into(), strange.clone())),
        "`transformer.strange`",
    );
    let bytes = b"version https://git-lfs.github.com/spec/v1\n";
    exported.refused_with("model.safetensors", bytes, "no safetensors file");
    // A type of numbers that exists, but not in candle.
    let header =
        br#"{"transformer.wpe.weight":{"dtype":"F8_E5M2","shape":[6,16],"data_offsets":[0,96]}}"#;
    let eight_bits = [&(header.len() as u64).to_le_bytes()[..], header, &[0; 96]].concat();
    exported.refused_with("model.safetensors", &eight_bits, "F8_E5M2");

    let config = exported.path().join("config.json");
    let sound = fs::read(&config).expect("there");
    let weights = exported.path().join("model.safetensors");
    let error = |said: &str| {
        let error = format!("{:#}", hub::import(&exported.path()).expect_err(said));
        assert!(error.contains(said), "{said}: {error}");
    };
    fs::write(&config, "{").expect("writable");
    error("config.json: not JSON");
    let settings = hub::import_config(&exported.path()).expect_err("not JSON");
    assert!(format!("{settings:#}").contains("config.json: not JSON"));
    fs::remove_file(&config).expect("there");
    error("config.json");
    fs::write(&config, &sound).expect("writable");
    fs::remove_file(&weights).expect("there");
    error("has neither model.safetensors nor model.safetensors.index.json");
    let index = "model.safetensors.index.json";
    exported.refused_with(index, b"{\"metadata\": {}}", "no `weight_map`");
    for name in ["../model.safetensors", ".hidden", "a\\b"] {
        let map = json!({"weight_map": {"a": name}}).to_string();
        exported.refused_with(index, map.as_bytes(), "is no name of a file in the folder");
    }
    let missing = json!({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).to_string();
    exported.refused_with(index, missing.as_bytes(), "model-00001-of-00002.safetensors");
}

#[test]
fn parts_of_a_factored_folder_are_checked() {
    let weights = json!({"weights": {"up": {"low_rank": {"rank": 3}}}});
    let exported = Exported::new(&network("llama", weights), true);
    let layer = "model.layers.1.mlp.up_proj";
    let at = format!("/lrpt_layers/{layer}");
    exported.refuses_setting(&at, json!([["up", 3]]), "no list of [part, m, n, rank, bias]");
    let part = format!("{at}/0/3").replace("/3", "");
    let config = fs::read(exported.path().join("config.json")).expect("there");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    let [m, n] = [1, 2].map(|index| config.pointer(&part).expect("a part")[index].clone());
    let with = |m: &Value, rank: i32, bias: bool| json!([["up", m, n, rank, bias]]);
    exported.refuses_setting(&at, with(&json!(7), 3, false), "of other sizes than the network");
    exported.refuses_setting(&at, with(&m, 4000, false), "rank 4000 of");
    exported.refuses_setting(&at, with(&m, 4, false), "config.json says [4, 16]");
    exported.refuses_setting(&at, with(&m, 3, true), &format!("`{layer}.bias` is missing"));
    let place = format!("{layer}.place");
    exported.refuses_tensors(|all| drop(all.remove(&place)), &format!("`{place}` is missing"));
    let rows = m.as_u64().expect("rows") as usize;
    let beyond = Tensor::full(rows as i64, rows, &CPU).expect("places");
    exported.refuses_tensors(
        |all| drop(all.insert(place.clone(), beyond.clone())),
        &format!("`{place}` has {rows} of {rows} rows"),
    );
}

/// The adapter of a GPT-2's fused attention, of its MLP and of its head, on its base.
struct Adapter {
    base: Exported,
    folder: PathBuf,
}

impl Adapter {
    fn new() -> Self {
        let base = Exported::new(&network("gpt2", json!({})), false);
        let adapter = json!({"adapter": {"rank": 2}});
        let blocks = json!({"q": adapter, "v": adapter, "up": adapter});
        let weights = json!({"weights": blocks, "head_adapter": adapter});
        let (model, params) = network("gpt2", weights);
        let folder = base.place.path().join("adapter");
        let at = base.path();
        let tokenizer = Tokenizer::bytes();
        let with_tokenizer = (&tokenizer).into();
        hub::export_peft(model.as_ref(), &params, with_tokenizer, at.to_str(), DType::F32, &folder)
            .expect("an export");
        hub::import_peft(&folder, None).expect("as it was, it is read");
        Self { base, folder }
    }

    fn refused(&self, said: &str) {
        let error = format!("{:#}", hub::import_peft(&self.folder, None).expect_err(said));
        assert!(error.contains(said), "{said}: {error}");
    }

    fn refuses_setting(&self, key: &str, value: Value, said: &str) {
        let path = self.folder.join("adapter_config.json");
        let before = fs::read(&path).expect("there");
        let mut config: Value = serde_json::from_slice(&before).expect("JSON");
        config[key] = value;
        fs::write(&path, config.to_string()).expect("writable");
        self.refused(said);
        fs::write(&path, before).expect("writable");
    }

    fn refuses_tensors(&self, change: impl Fn(&mut HashMap<String, Tensor>), said: &str) {
        let path = self.folder.join("adapter_model.safetensors");
        let before = fs::read(&path).expect("there");
        let mut tensors = candle_core::safetensors::load(&path, &CPU).expect("tensors");
        change(&mut tensors);
        fs::write(&path, safetensors::serialize(tensors, None).expect("bytes")).expect("writable");
        self.refused(said);
        fs::write(&path, before).expect("writable");
    }
}

#[test]
fn an_adapter_that_does_not_fit_is_refused_by_name() {
    let adapter = Adapter::new();
    for (key, value) in [
        ("bias", json!("all")),
        ("use_dora", json!(true)),
        ("lora_bias", json!(true)),
        ("use_qalora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("layer_replication", json!([[0, 2]])),
        ("trainable_token_indices", json!([1])),
    ] {
        let said = format!("`{key}` is {value}; lrpt imports adapters where it is");
        adapter.refuses_setting(key, value, &said);
    }
    adapter.refuses_setting("peft_type", json!("IA3"), "`peft_type` is IA3; lrpt imports LORA");
    adapter.refuses_setting("lora_alpha", json!("8"), "`lora_alpha` is no number");
    adapter.refuses_setting("alpha_pattern", json!({"c_fc": "8"}), "`alpha_pattern.c_fc`");
    let expression = json!({"h\\.[01]\\.mlp.*": 8});
    adapter.refuses_setting("alpha_pattern", expression, "has the expression `h\\.[01]");
    let base = "base_model_name_or_path";
    adapter.refuses_setting(base, json!("gpt2"), "is gpt2, which is no folder here; name the base");
    adapter.refuses_setting(base, json!(null), "`base_model_name_or_path` is not set");

    let name = |leaf: &str| format!("base_model.model.transformer.h.1.mlp.c_fc.{leaf}.weight");
    let put = |leaf: &'static str, rows: usize, columns: usize| {
        let zeros = Tensor::zeros((rows, columns), DType::F32, &CPU).expect("zeros");
        move |all: &mut HashMap<String, Tensor>| {
            all.insert(name(leaf), zeros.clone());
        }
    };
    let said = "`transformer.h.1.mlp.c_fc` has 15 columns, the base 16";
    adapter.refuses_tensors(put("lora_A", 2, 15), said);
    let said = "`transformer.h.1.mlp.c_fc` has 60 rows, the base 64";
    adapter.refuses_tensors(put("lora_B", 60, 2), said);
    adapter.refuses_tensors(put("lora_B", 64, 3), "c_fc`: lora_A has rank 2, lora_B 3");
    let flat = Tensor::zeros(32, DType::F32, &CPU).expect("zeros");
    adapter.refuses_tensors(
        |all| drop(all.insert(name("lora_A"), flat.clone())),
        "`transformer.h.1.mlp.c_fc`",
    );
    adapter.refuses_tensors(put("lora_E", 1, 1), "lora_E.weight");
    for (leaf, rows, columns, said) in [
        ("lora_A", 2, 15, "`lm_head` has 15 columns, the base 16"),
        ("lora_B", 7, 2, "`lm_head` has 7 rows, the base"),
        ("lora_B", 7, 3, "`lm_head`: lora_A has rank 2, lora_B 3"),
        ("base_layer", 7, 16, "its `lm_head.weight` is [7, 16], the base's"),
    ] {
        let zeros = Tensor::zeros((rows, columns), DType::F32, &CPU).expect("zeros");
        let name = format!("base_model.model.lm_head.{leaf}.weight");
        adapter.refuses_tensors(|all| drop(all.insert(name.clone(), zeros.clone())), said);
    }
    adapter.refuses_tensors(|all| drop(all.remove(&name("lora_B"))), "lora_B.weight");
    adapter.refuses_tensors(put("lora_A", 3000, 16), "it is no adapter of this base");
    let weights = adapter.folder.join("adapter_model.safetensors");
    let sound = fs::read(&weights).expect("there");
    fs::write(&weights, &sound[..sound.len() - 1]).expect("writable");
    adapter.refused("adapter_model.safetensors: its header speaks of");
    fs::remove_file(&weights).expect("there");
    adapter.refused("adapter_model.safetensors");
    fs::write(&weights, sound).expect("writable");
    fs::remove_file(adapter.base.path().join("model.safetensors")).expect("there");
    adapter.refused("has neither model.safetensors");
    fs::write(adapter.folder.join("adapter_config.json"), "[").expect("writable");
    adapter.refused("adapter_config.json: not JSON");
    fs::remove_file(adapter.folder.join("adapter_config.json")).expect("there");
    adapter.refused("adapter_config.json");
}

#[test]
fn a_file_of_llama_cpp_that_does_not_fit_is_refused_by_name() {
    use gguf_file::Value::U32;
    let place = tempfile::tempdir().expect("a folder");
    let path = place.path().join("model.gguf");
    let refused = |said: &str| {
        let error = format!("{:#}", hub::import_gguf(&path).expect_err(said));
        assert!(error.contains(said) && error.contains("model.gguf"), "{said}: {error}");
    };
    refused("cannot be read");
    let zeros = |rows: usize, columns: usize| {
        Tensor::zeros((rows, columns), DType::F32, &CPU).expect("zeros")
    };
    let table = ("token_embd.weight", zeros(11, 32));
    let window = [("llama.attention.sliding_window", U32(4))];
    gguf(&path, &window, std::slice::from_ref(&table));
    refused("`llama.attention.sliding_window` is 4; lrpt's llama has none");
    for key in ["llama.attention.key_length", "llama.attention.value_length"] {
        gguf(&path, &[(key, U32(16))], std::slice::from_ref(&table));
        refused(&format!("`{key}` is 16"));
    }
    gguf(&path, &[("llama.attention.head_count_kv", U32(3))], std::slice::from_ref(&table));
    refused("n_kv_head");
    let scale = ("rope_freqs.weight", Tensor::zeros(4, DType::F32, &CPU).expect("zeros"));
    gguf(&path, &[], &[table.clone(), scale]);
    refused("`rope_freqs.weight` scales the rotary positions");
    gguf(&path, &[], &[table.clone(), ("blk.0.attn_q.weight", zeros(32, 64))]);
    refused("tensor `blk.0.attn_q.weight` has the shape [32, 64], but the settings make it");
    gguf(&path, &[], &[table.clone(), ("blk.7.attn_q.weight", zeros(32, 32))]);
    refused("no place in a Llama of these settings: `blk.7.attn_q.weight`");
    gguf(&path, &[], &[table, ("output.weight", zeros(11, 32))]);
    refused("no tensor `model.layers.0.self_attn.q_proj.weight`");
}

/// A run that is none, has no checkpoint, or is damaged; sizes that differ.
#[test]
fn a_run_that_cannot_be_started_from_is_refused_by_name() {
    let place = Workplace::new();
    place.spec("dense", "");
    place.run(&["train", "spec.yaml", "--run-dir", "source", "--stop-after", "1"], 0);
    let error = |init: &str, more: &[&str], code: i32| {
        let init = format!("init={init}");
        let set = more.iter().flat_map(|setting| ["--set", *setting]);
        let arguments: Vec<&str> = ["train", "spec.yaml", "--run-dir", "no", "--set", &init]
            .into_iter()
            .chain(set)
            .collect();
        String::from_utf8_lossy(&place.run(&arguments, code).stderr).into_owned()
    };
    assert!(error("{run: nowhere}", &[], 2).contains("nowhere holds no run"));
    assert!(error("{run: ''}", &[], 2).contains("init: names no model"));
    assert!(error("{gguf: none.gguf}", &[], 1).contains("none.gguf cannot be read"));
    assert!(error("{peft: {adapter: none}}", &[], 1).contains("none/adapter_config.json"));
    let sizes = error("{run: source}", &["model.n_head=4", "data.tokenizer=bytes"], 2);
    assert!(sizes.contains("model.n_head is 4, the source has 2"), "{sizes}");
    assert!(sizes.contains("the vocabulary of data.tokenizer is 256, the source has"), "{sizes}");
    let heads = error("{run: source}", &["model.n_kv_head=1"], 2);
    assert!(heads.contains("model.n_kv_head is 1, the source has 2"), "{heads}");
    let other = error("{run: source}", &["model.arch=llama"], 2);
    assert!(other.contains("model.arch is another than the source's"), "{other}");
    let checkpoint = place.path("source/checkpoints/step-00000001");
    let model = checkpoint.join("model.safetensors");
    let mut bytes = fs::read(&model).expect("there");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&model, bytes).expect("writable");
    let damaged = error("{run: source}", &[], 1);
    assert!(damaged.contains("model.safetensors"), "{damaged}");
    for entry in fs::read_dir(place.path("source/checkpoints")).expect("a folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).expect("removable");
        } else {
            fs::remove_file(path).expect("removable");
        }
    }
    assert!(error("{run: source}", &[], 2).contains("source has no checkpoint yet"));
}
