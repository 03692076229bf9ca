//! Adapters as PEFT has them: adapter_config.json and adapter_model.safetensors, W₀ + (α/r) B A of
//! the modules of a model of `transformers`.

mod import;

use super::Exported;
use super::folder::{write, write_json};
use super::format::format_of;
use super::fused::refuse_parted;
use super::tokenizer::{ChatTokenizer, write_tokenizer};
use crate::fs::write_directory_atomic;
use crate::lowrank::Spectrum;
use crate::model::{HEAD, ModelConfig, Network, lora_scale};
use crate::params::{Factor, ParamStore, Weight};
use crate::spec::{Architecture, Target, WeightForm};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
pub use import::{import_peft, import_peft_config, peft_base};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of a model's modules.
const PREFIX: &str = "base_model.model";

/// Name of a module's tensor there.
fn tensor_name(module: &str, leaf: &str) -> String {
    format!("{PREFIX}.{module}.{leaf}.weight")
}

/// Writes the adapters of a run as a folder of PEFT, whole or not at all.
///
/// U S Vᵀ goes out balanced, B = U P √Σ and A = √Σ Qᵀ Vᵀ with S = P Σ Qᵀ; LoRA's α/r goes into B.
/// So α is r everywhere, a scale of 1. A fused module gets the adapters of its parts as one: A one
/// below the other, B block by block, the ranks added. `base` is the model that was adapted. The
/// tokenizer goes with it, as TRL has it, for the chat template.
///
/// # Errors
/// If the model has no adapters, or one of a matrix that is three there; if the folder exists
/// already, or something cannot be written.
pub fn export_peft(
    model: &dyn Network,
    params: &ParamStore,
    tokenizer: ChatTokenizer,
    base: Option<&str>,
    dtype: DType,
    to: &Path,
) -> Result<Exported> {
    let config = model.config();
    ensure!(config.is_adapted(), "the model has no adapters; export it without --peft");
    ensure!(
        !to.exists(),
        "{} exists already; choose another folder with --to, or remove it first",
        to.display()
    );
    let modules = format_of(config.arch).modules(config);
    let adapted = model.sites().iter().filter(|site| config.is_adapted_in(site.layer, site.kind));
    refuse_parted(&modules, adapted, "export the whole model with --merge")?;
    let rows: BTreeMap<&str, usize> =
        model.sites().iter().map(|site| (site.name.as_str(), site.rows)).collect();
    let weights: BTreeMap<&str, &Weight> =
        params.iter().map(|(_, p)| (p.name.as_str(), &p.weight)).collect();
    let form_of = |name: &str| -> Result<WeightForm> {
        let site = model.sites().iter().find(|site| site.name == name);
        let site = site.with_context(|| format!("the model has no site `{name}`"))?;
        Ok(config.form_in(site.layer, site.kind))
    };
    let mut tensors = BTreeMap::new();
    let mut ranks: Vec<(String, usize)> = Vec::new();
    let mut add = |module: &str, b: Tensor, a: Tensor| -> Result<()> {
        ranks.push((module.to_owned(), a.dim(0)?));
        for (leaf, tensor) in [("lora_A", a), ("lora_B", b)] {
            let tensor = tensor.to_dtype(dtype)?.contiguous()?;
            tensors.insert(tensor_name(module, leaf), tensor);
        }
        Ok(())
    };
    for module in modules {
        let parts = module
            .sites
            .iter()
            .map(|site| Ok((rows[site.as_str()], factors(&weights, site, form_of(site)?)?)))
            .collect::<Result<Vec<_>>>()?;
        if let Some((b, a)) = fused(&parts)? {
            add(&module.name, b, a)?;
        }
    }
    let of_head = config.form(Target::HEAD);
    if let Some((b, a)) = factors(&weights, HEAD, of_head)? {
        add(HEAD, b, a)?;
    }
    let exported = Exported {
        parameters: tensors.values().map(Tensor::elem_count).sum(),
        bytes: tensors.values().map(|t| t.elem_count() * t.dtype().size_in_bytes()).sum(),
        files: 1,
    };
    let settings = settings(config, &ranks, base);
    write_directory_atomic(to, |folder| {
        write_json(&folder.join(CONFIG), &settings)?;
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        write(&folder.join(WEIGHTS), &safetensors::serialize(tensors, Some(metadata))?)?;
        write_tokenizer(folder, tokenizer, config.block_size)
    })?;
    Ok(exported)
}

/// `adapter_config.json`: the commonest rank for all, exceptions by name.
fn settings(config: &ModelConfig, ranks: &[(String, usize)], base: Option<&str>) -> Value {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    ranks.iter().for_each(|(_, rank)| *counts.entry(*rank).or_default() += 1);
    let common = counts.iter().max_by_key(|(_, count)| **count).map_or(1, |(rank, _)| *rank);
    let pattern: Map<String, Value> = ranks
        .iter()
        .filter(|(_, rank)| *rank != common)
        .map(|(name, rank)| (name.clone(), json!(rank)))
        .collect();
    // The last two parts of a name, `attn.c_attn`, are the same in every block, and stand for those
    // of all; names in full where a block has none.
    let mut in_blocks: BTreeMap<&str, usize> = BTreeMap::new();
    let end_of = |name: &str| name.rmatch_indices('.').nth(1).map_or(0, |(at, _)| at + 1);
    for (name, _) in ranks {
        *in_blocks.entry(&name[end_of(name)..]).or_default() += 1;
    }
    let mut targets: Vec<&str> = Vec::new();
    for (name, _) in ranks {
        let end = &name[end_of(name)..];
        let is_everywhere = in_blocks.get(end) == Some(&config.n_layer);
        let target = if is_everywhere { end } else { name.as_str() };
        if !targets.contains(&target) {
            targets.push(target);
        }
    }
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": targets,
        // Conv1D holds matrices transposed.
        "fan_in_fan_out": config.arch == Architecture::Gpt2,
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": true,
        "inference_mode": true,
        "use_dora": false,
        "use_rslora": false,
        "modules_to_save": null,
    })
}

/// B: m × r and A: r × n of a site's adapter, or the head's, its scale in B; none where it has none.
fn factors(
    weights: &BTreeMap<&str, &Weight>,
    site: &str,
    form: WeightForm,
) -> Result<Option<(Tensor, Tensor)>> {
    let WeightForm::Adapter { rank, alpha, .. } = form else { return Ok(None) };
    if let Some(Weight::LowRank(point)) = weights.get(format!("{site}.adapter").as_str()) {
        let point = point.to_device(&Device::Cpu)?;
        let diagonal = Spectrum::new(&point)?.truncate(&point, point.rank())?.point;
        return Ok(Some((Factor::B.of(&diagonal)?, Factor::A.of(&diagonal)?)));
    }
    let factor = |leaf: &str| match weights.get(format!("{site}.adapter.{leaf}").as_str()) {
        Some(Weight::Dense(tensor)) => Ok(tensor.to_device(&Device::Cpu)?),
        _ => bail!("the model has no adapter of `{site}`"),
    };
    Ok(Some(((factor("b")? * lora_scale(rank, alpha))?, factor("a")?)))
}

/// The adapters of parts with these numbers of rows, one below the other: B block by block, A one
/// below the other.
fn fused(parts: &[(usize, Option<(Tensor, Tensor)>)]) -> Result<Option<(Tensor, Tensor)>> {
    let total: usize = parts.iter().map(|(rows, _)| rows).sum();
    let (mut above, mut blocks, mut a) = (0, Vec::new(), Vec::new());
    for (rows, factors) in parts {
        if let Some((b, a_part)) = factors {
            blocks.push(b.pad_with_zeros(0, above, total - above - rows)?);
            a.push(a_part.clone());
        }
        above += rows;
    }
    if a.is_empty() {
        return Ok(None);
    }
    Ok(Some((Tensor::cat(&blocks, 1)?, Tensor::cat(&a, 0)?)))
}
