//! Adapters as PEFT has them: adapter_config.json and adapter_model.safetensors, W₀ + (α/r) B A of
//! the modules of a model of `transformers`.

use super::folder::{in_f32, read_json, write, write_json};
use super::format::format_of;
use super::fused::refuse_parted;
use super::tokenizer::{ChatTokenizer, write_tokenizer};
use super::{Exported, import, import_config};
use crate::fs::write_directory_atomic;
use crate::lowrank::Spectrum;
use crate::model::{HEAD, ModelConfig, Network, lora_scale};
use crate::params::{Factor, ParamStore, TensorReader, Weight};
use crate::spec::{Architecture, Target, WeightForm};
use crate::tensor_file::TensorFile;
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
/// What PEFT puts before the names of a model's modules.
const PREFIX: &str = "base_model.model";

/// The folder of the model that an adapter adapts: the one given, or the one that it names.
///
/// # Errors
/// If the adapter names none that is here.
pub fn peft_base(adapter: &Path, base: Option<&Path>) -> Result<PathBuf> {
    let settings = read_json(&adapter.join(CONFIG))?;
    let named = settings.get("base_model_name_or_path").and_then(Value::as_str);
    match (base, named) {
        (Some(base), _) => Ok(base.to_owned()),
        (None, Some(named)) if Path::new(named).is_dir() => Ok(PathBuf::from(named)),
        (None, named) => bail!(
            "{CONFIG}: `base_model_name_or_path` is {}, which is no folder here; name the base, \
             `init: {{peft: {{adapter: DIR, base: DIR}}}}`",
            named.unwrap_or("not set")
        ),
    }
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
            let name = format!("{PREFIX}.{module}.{leaf}.weight");
            tensors.insert(name, tensor.to_dtype(dtype)?.contiguous()?);
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

/// The configuration of [`import_peft`]'s model; no tensor is read.
///
/// # Errors
/// As for [`import_peft`].
pub fn import_peft_config(adapter: &Path, base: Option<&Path>) -> Result<ModelConfig> {
    let mut config = import_config(&peft_base(adapter, base)?)?;
    let file = TensorFile::open(&adapter.join(WEIGHTS))?;
    let of_head = format!("{PREFIX}.{HEAD}.lora_A.weight");
    if file.shapes().any(|(name, _)| name == of_head) {
        config.untie();
    }
    Ok(config)
}

/// The model that an adapter of PEFT makes of its base: the configuration and the dense parameters
/// W₀ + (α/r) B A, in f32. The base is a folder of `transformers`, by default the one that the
/// adapter names.
///
/// # Errors
/// If the base cannot be imported, the adapter has settings without counterpart here, or a tensor
/// is missing, has another shape or is left over; all by name.
pub fn import_peft(
    adapter: &Path,
    base: Option<&Path>,
) -> Result<(ModelConfig, Vec<(String, Tensor)>)> {
    let settings = read_json(&adapter.join(CONFIG))?;
    let (mut config, mut tensors) = import(&peft_base(adapter, base)?)?;
    let path = adapter.join(WEIGHTS);
    let mut file = TensorFile::open(&path)?;
    let mut add = || -> Result<()> {
        let base: usize = tensors.iter().map(|(_, tensor)| tensor.elem_count()).sum();
        let adapter = file.shapes().fold(0u64, |sum, (_, shape)| {
            let numbers = shape.iter().fold(1u64, |all, size| all.saturating_mul(*size as u64));
            sum.saturating_add(numbers)
        });
        ensure!(
            adapter <= base.saturating_mul(2) as u64,
            "{WEIGHTS} has {adapter} numbers, its base {base}; it is no adapter of this base"
        );
        let mut reader =
            TensorReader::new(path.display().to_string(), in_f32(file.read(|_| true)?)?);
        let scale = Scale::read(&settings)?;
        let mut places: HashMap<String, usize> =
            tensors.iter().enumerate().map(|(at, (name, _))| (name.clone(), at)).collect();
        let format = format_of(config.arch);
        for module in format.modules(&config) {
            let Some(factors) = Factors::take(&mut reader, &module.name)? else { continue };
            let place = |site: &String| {
                let weight = format!("{site}.weight");
                let at = places.remove(&weight);
                at.with_context(|| format!("the base has no weight `{weight}`"))
            };
            let parts = module.sites.iter().map(place).collect::<Result<Vec<usize>>>()?;
            // Before the product, which small factors can make as large as they like.
            let mut rows = 0;
            for at in &parts {
                let (m, n) = tensors[*at].1.dims2()?;
                factors.check("columns", factors.a.dim(1)?, n)?;
                rows += m;
            }
            factors.check("rows", factors.b.dim(0)?, rows)?;
            let update = factors.product(&scale)?;
            let mut above = 0;
            for at in parts {
                let w = &tensors[at].1;
                let m = w.dim(0)?;
                let sum = (w + update.narrow(0, above, m)?)?;
                above += m;
                tensors[at].1 = sum;
            }
        }
        if let Some(factors) = Factors::take(&mut reader, HEAD)? {
            // A head that is the table of tokens is no longer.
            let tied = config.ties_embeddings();
            let name = format!("{HEAD}.weight");
            let frozen = if tied { &format.shapes(&config)[0].0 } else { &name };
            let at = places.remove(frozen.as_str());
            let at = at.with_context(|| format!("the base has no weight `{frozen}`"))?;
            let (m, n) = tensors[at].1.dims2()?;
            factors.check("columns", factors.a.dim(1)?, n)?;
            factors.check("rows", factors.b.dim(0)?, m)?;
            // PEFT keeps the head itself with its adapter, and loads it over the base's.
            let kept = format!("{PREFIX}.{HEAD}.base_layer.weight");
            if reader.contains(&kept) {
                let w = reader.take(&kept)?;
                ensure!(w.dims() == [m, n], "`{kept}` is {:?}, the base's {m} × {n}", w.dims());
                tensors[at].1 = w;
            }
            let sum = (&tensors[at].1 + factors.product(&scale)?)?;
            if tied {
                tensors.push((name, sum));
                config.untie();
            } else {
                tensors[at].1 = sum;
            }
        }
        reader.finish()
    };
    add().with_context(|| format!("{} cannot be imported", adapter.display()))?;
    Ok((config, tensors))
}

/// B and A of a module.
struct Factors<'a> {
    module: &'a str,
    b: Tensor,
    a: Tensor,
}

impl<'a> Factors<'a> {
    /// Those of this module; none where it has none.
    fn take(reader: &mut TensorReader, module: &'a str) -> Result<Option<Self>> {
        let name = |leaf: &str| format!("{PREFIX}.{module}.{leaf}.weight");
        if !reader.contains(&name("lora_A")) {
            return Ok(None);
        }
        let (a, b) = (reader.take(&name("lora_A"))?, reader.take(&name("lora_B"))?);
        let sizes = || format!("`{module}`");
        let (rank, _) = a.dims2().with_context(sizes)?;
        let (_, inner) = b.dims2().with_context(sizes)?;
        ensure!(inner == rank, "`{module}`: lora_A has rank {rank}, lora_B {inner}");
        Ok(Some(Self { module, b, a }))
    }

    fn check(&self, what: &str, own: usize, of_base: usize) -> Result<()> {
        let module = self.module;
        ensure!(own == of_base, "`{module}` has {own} {what}, the base {of_base}");
        Ok(())
    }

    /// (α/r) B A.
    fn product(&self, scale: &Scale) -> Result<Tensor> {
        Ok((self.b.matmul(&self.a)? * scale.of(self.module, self.a.dim(0)?)?)?)
    }
}

/// α/r, or α/√r, by module.
struct Scale {
    alpha: f64,
    patterns: Vec<(String, f64)>,
    of_root: bool,
}

impl Scale {
    /// # Errors
    /// If a setting has no counterpart here.
    fn read(settings: &Value) -> Result<Self> {
        let kind = settings.get("peft_type").and_then(Value::as_str).unwrap_or("none");
        ensure!(kind == "LORA", "{CONFIG}: `peft_type` is {kind}; lrpt imports LORA");
        for (key, usual) in [
            ("bias", json!("none")),
            ("use_dora", json!(false)),
            ("lora_bias", json!(false)),
            ("use_qalora", json!(false)),
            ("modules_to_save", Value::Null),
            ("layer_replication", Value::Null),
            ("trainable_token_indices", Value::Null),
        ] {
            let value = settings.get(key).unwrap_or(&usual);
            ensure!(
                *value == usual || value.is_null(),
                "{CONFIG}: `{key}` is {value}; lrpt imports adapters where it is {usual}"
            );
        }
        let alpha = settings.get("lora_alpha").and_then(Value::as_f64);
        let patterns = settings.get("alpha_pattern").and_then(Value::as_object);
        let pattern = |(key, value): (&String, &Value)| {
            let alpha = value.as_f64();
            let alpha = alpha.with_context(|| format!("{CONFIG}: `alpha_pattern.{key}`"))?;
            Ok((key.clone(), alpha))
        };
        Ok(Self {
            alpha: alpha.with_context(|| format!("{CONFIG}: `lora_alpha` is no number"))?,
            patterns: patterns.into_iter().flatten().map(pattern).collect::<Result<_>>()?,
            of_root: settings.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        })
    }

    /// The scale of a module's B A; a pattern is the name or the end of one.
    fn of(&self, module: &str, rank: usize) -> Result<f64> {
        let fits = |key: &str| module == key || module.ends_with(&format!(".{key}"));
        let unclear =
            |key: &str| key.contains(|c: char| !(c.is_alphanumeric() || "._".contains(c)));
        if let Some((key, _)) = self.patterns.iter().find(|(key, _)| unclear(key)) {
            bail!("{CONFIG}: `alpha_pattern` has the expression `{key}`; write names of modules")
        }
        let own = self.patterns.iter().find(|(key, _)| fits(key)).map(|(_, alpha)| *alpha);
        let rank = if self.of_root { (rank as f64).sqrt() } else { rank as f64 };
        Ok(own.unwrap_or(self.alpha) / rank)
    }
}
