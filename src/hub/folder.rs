//! A folder as `AutoModelForCausalLM.from_pretrained` takes it: config.json,
//! generation_config.json, the weights in one safetensors file or in many with an index, and the
//! tokenizer.

use super::factored;
use super::format::{Format, format_of};
use super::fused::{refuse_parted, with_fused_qkv};
use super::tokenizer::{ChatTokenizer, generation_config, write_tokenizer};
use super::weights::Named;
use crate::fs::{read_text, write_directory_atomic};
use crate::model::{ModelConfig, Network, merged};
use crate::params::ParamStore;
use crate::spec::Architecture;
use crate::tensor_file::TensorFile;
use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{DType, Tensor};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// How to export.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions {
    /// Type of the numbers: f32, f16 or bf16.
    pub dtype: DType,
    /// The most bytes of tensors in one file; a larger model is sharded.
    pub shard_bytes: usize,
    /// Whether low-rank weights stay so, r (m + n − r) numbers each, in place of m n.
    pub factored: bool,
}

/// What an export wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Numbers.
    pub parameters: usize,
    /// Bytes of tensors.
    pub bytes: usize,
    /// Files of weights.
    pub files: usize,
}

/// Writes a model as a folder of `transformers`, whole or not at all.
///
/// Low-rank and factored weights become W = U S Vᵀ or B A, adapters are merged into what they
/// adapt, a joint matrix of q, k and v becomes what there is in its place; biases that a GPT-2 has
/// not are zero.
///
/// # Errors
/// If the folder exists already, something cannot be written, or low-rank weights are to stay so and
/// one is three matrices there.
pub fn export(
    model: &dyn Network,
    params: &ParamStore,
    tokenizer: ChatTokenizer,
    options: ExportOptions,
    to: &Path,
) -> Result<Exported> {
    ensure!(
        !to.exists(),
        "{} exists already; choose another folder with --to, or remove it first",
        to.display()
    );
    let dtype = match options.dtype {
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::BF16 => "bfloat16",
        other => bail!("a model is exported in f32, f16 or bf16, not in {other:?}"),
    };
    let end_of_text = tokenizer.tokenizer.end_of_text();
    let (given, given_params) = merged(model.config(), params.clone())?;
    let format = format_of(given.arch);
    if options.factored {
        let named = Named::new(&given_params);
        let low_rank = model.sites().iter().filter(|site| named.point(&site.name).is_some());
        refuse_parted(&format.modules(&given), low_rank, "leave --factored out")?;
    }
    let (dense, params) = with_fused_qkv(&given, given_params.clone(), false)?;
    let mut config = format.config(&dense, end_of_text, dtype);
    let mut tensors = format.tensors(&dense, &params)?;
    if options.factored {
        tensors = factored::with_factors(format, &given, &given_params, &mut config, tensors)?;
    }
    let tensors: Vec<(String, Tensor)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let dtype = if tensor.dtype().is_float() { options.dtype } else { tensor.dtype() };
            Ok((name, tensor.to_dtype(dtype)?.contiguous()?))
        })
        .collect::<candle_core::Result<_>>()?;
    let shards = shards(tensors, options.shard_bytes);
    let exported = Exported {
        parameters: shards
            .iter()
            .flatten()
            .filter(|(_, tensor)| tensor.dtype().is_float())
            .map(|(_, tensor)| tensor.elem_count())
            .sum(),
        bytes: shards.iter().map(|shard| bytes_of(shard)).sum(),
        files: shards.len(),
    };
    write_directory_atomic(to, |folder| {
        write_json(&folder.join("config.json"), &config)?;
        if options.factored {
            write(&folder.join(factored::CODE_FILE), factored::CODE.as_bytes())?;
        }
        write_json(&folder.join("generation_config.json"), &generation_config(tokenizer))?;
        write_weights(folder, shards)?;
        write_tokenizer(folder, tokenizer, model.config().block_size)
    })?;
    Ok(exported)
}

/// The configuration and the dense parameters of a folder of `transformers`, in f32.
///
/// # Errors
/// If the architecture or a setting has no counterpart here, or a tensor is missing, has another
/// shape, or is left over; all by name.
pub fn import(folder: &Path) -> Result<(ModelConfig, Vec<(String, Tensor)>)> {
    let config = read_json(&folder.join("config.json"))?;
    let read = || -> Result<(ModelConfig, Vec<(String, Tensor)>)> {
        let (format, model) = model_of(&config)?;
        let is_factored = model_type(&config).starts_with(factored::PREFIX);
        if is_factored {
            factored::layers(&config)?;
        }
        let shapes = format.shapes(&model);
        let mut files = weight_files(folder)?;
        // The parts of factored layers have shapes of their own, which are checked there.
        let (own, dense): (Vec<_>, Vec<_>) =
            shapes.iter().partition(|(name, _)| factored::describes(&config, name));
        check_sizes(&files, format, &dense, &own)?;
        let mut tensors = Vec::new();
        for file in &mut files {
            tensors.extend(in_f32(file.read(|name| !format.passes_over(name))?)?);
        }
        if is_factored {
            let transposed = format.is_transposed();
            tensors = factored::without_factors(&config, tensors, &shapes, transposed)?;
        }
        let tensors = format.read_tensors(&model, tensors)?;
        Ok((model, tensors))
    };
    read().with_context(|| format!("{} cannot be imported", folder.display()))
}

/// The configuration of a folder of `transformers`; no tensor is read.
///
/// # Errors
/// As for [`import`], as far as settings go.
pub fn import_config(folder: &Path) -> Result<ModelConfig> {
    let model = model_of(&read_json(&folder.join("config.json"))?);
    let (_, model) = model.with_context(|| format!("{} cannot be imported", folder.display()))?;
    Ok(model)
}

fn model_of(config: &Value) -> Result<(&'static dyn Format, ModelConfig)> {
    let kind = model_type(config);
    let name = kind.strip_prefix(factored::PREFIX).unwrap_or(kind);
    let arch: Architecture = serde_json::from_value(json!(name))
        .map_err(|error| anyhow!("config.json: `model_type` is {kind}: {error}"))?;
    let format = format_of(arch);
    Ok((format, format.read_config(config)?))
}

fn model_type(config: &Value) -> &str {
    config.get("model_type").and_then(Value::as_str).unwrap_or("none")
}

fn bytes_of(shard: &[(String, Tensor)]) -> usize {
    shard.iter().map(|(_, tensor)| tensor.elem_count() * tensor.dtype().size_in_bytes()).sum()
}

/// Tensors in their order, in files of at most so many bytes; a larger tensor has a file of its
/// own.
fn shards(tensors: Vec<(String, Tensor)>, most: usize) -> Vec<Vec<(String, Tensor)>> {
    let mut shards: Vec<Vec<(String, Tensor)>> = vec![Vec::new()];
    for named in tensors {
        let full = shards.last().is_some_and(|shard| {
            !shard.is_empty() && bytes_of(shard) + bytes_of(std::slice::from_ref(&named)) > most
        });
        if full {
            shards.push(Vec::new());
        }
        if let Some(shard) = shards.last_mut() {
            shard.push(named);
        }
    }
    shards
}

fn write_weights(folder: &Path, shards: Vec<Vec<(String, Tensor)>>) -> Result<()> {
    let count = shards.len();
    let total: usize = shards.iter().map(|shard| bytes_of(shard)).sum();
    let mut places = Map::new();
    for (index, shard) in shards.into_iter().enumerate() {
        let file = match count {
            1 => WEIGHTS.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        places.extend(shard.iter().map(|(name, _)| (name.clone(), json!(file))));
        let tensors: BTreeMap<String, Tensor> = shard.into_iter().collect();
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write(&folder.join(file), &safetensors::serialize(tensors, Some(metadata))?)?;
    }
    if count > 1 {
        let index = json!({ "metadata": { "total_size": total }, "weight_map": places });
        write_json(&folder.join(INDEX), &index)?;
    }
    Ok(())
}

/// The files of a folder's weights, their headers read.
fn weight_files(folder: &Path) -> Result<Vec<TensorFile>> {
    let files: Vec<PathBuf> = if folder.join(WEIGHTS).exists() {
        vec![folder.join(WEIGHTS)]
    } else if folder.join(INDEX).exists() {
        let index = read_json(&folder.join(INDEX))?;
        let map = index.get("weight_map").and_then(Value::as_object);
        let map = map.with_context(|| format!("{INDEX}: no `weight_map`"))?;
        let names: std::collections::BTreeSet<&str> =
            map.values().filter_map(Value::as_str).collect();
        for name in &names {
            ensure!(
                !name.contains(['/', '\\']) && !name.starts_with('.'),
                "{INDEX}: `{name}` is no name of a file in the folder"
            );
        }
        names.into_iter().map(|name| folder.join(name)).collect()
    } else {
        bail!("{} has neither {WEIGHTS} nor {INDEX}", folder.display())
    };
    files.iter().map(|path| TensorFile::open(path)).collect()
}

/// Refuses tensors of other shapes than `config.json` says, and more numbers than its network can
/// have in any form, before any is read; what is `of_other_shapes` only counts.
fn check_sizes(
    files: &[TensorFile],
    format: &dyn Format,
    expected: &[&(String, Vec<usize>)],
    of_other_shapes: &[&(String, Vec<usize>)],
) -> Result<()> {
    let found: BTreeMap<&str, (&Path, &[usize])> = files
        .iter()
        .flat_map(|file| file.shapes().map(|(name, shape)| (name, (file.path(), shape))))
        .filter(|(name, _)| !format.passes_over(name))
        .collect();
    for (name, shape) in expected {
        // Folders of the model without its head leave out the first part of the names.
        let short = name.split_once('.').map_or(name.as_str(), |(_, rest)| rest);
        let here = found.get(name.as_str()).or_else(|| found.get(short));
        if let Some((path, other)) = here.filter(|(_, found)| found != shape) {
            bail!(
                "{}: `{name}` has the shape {other:?}, but config.json makes it {shape:?}; they \
                 are of different models, fetch both again",
                path.display()
            )
        }
    }
    let numbers = |shape: &[usize]| {
        shape.iter().fold(1u64, |product, size| product.saturating_mul(*size as u64))
    };
    let most = expected.iter().chain(of_other_shapes);
    let most: u64 = most.fold(0, |sum, (_, shape)| sum.saturating_add(numbers(shape)));
    let all: u64 = found.values().fold(0, |sum, (_, shape)| sum.saturating_add(numbers(shape)));
    // Low-rank weights with the places of their rows have fewer than dense ones and a column.
    ensure!(
        all <= most.saturating_mul(2),
        "the weights have {all} numbers, but the network of config.json has {most}; they are of \
         different models, fetch both again"
    );
    Ok(())
}

/// The same tensors in f32.
pub(super) fn in_f32(tensors: Vec<(String, Tensor)>) -> Result<Vec<(String, Tensor)>> {
    let in_f32 = |(name, tensor): (String, Tensor)| Ok((name, tensor.to_dtype(DType::F32)?));
    tensors.into_iter().map(in_f32).collect()
}

pub(super) fn read_json(path: &Path) -> Result<Value> {
    let text = read_text(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| format!("{}: not JSON", path.display()))
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write(path, &bytes)
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = std::fs::File::create_new(path).with_context(|| path.display().to_string())?;
    std::io::Write::write_all(&mut file, bytes).with_context(|| path.display().to_string())?;
    file.sync_all().with_context(|| path.display().to_string())
}
