//! Adapters of PEFT, read and merged into their bases.

use super::super::folder::{in_f32, read_json};
use super::super::format::format_of;
use super::super::weights::HEAD_WEIGHT;
use super::super::{import, import_config};
use super::{CONFIG, WEIGHTS, tensor_name};
use crate::model::{HEAD, ModelConfig};
use crate::params::TensorReader;
use crate::tensor_file::TensorFile;
use anyhow::{Context, Result, bail, ensure};
use candle_core::Tensor;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

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

/// The configuration of [`import_peft`]'s model; no tensor is read.
///
/// # Errors
/// As for [`import_peft`].
pub fn import_peft_config(adapter: &Path, base: Option<&Path>) -> Result<ModelConfig> {
    let mut config = import_config(&peft_base(adapter, base)?)?;
    let file = TensorFile::open(&adapter.join(WEIGHTS))?;
    let of_head = tensor_name(HEAD, "lora_A");
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
        for module in format_of(config.arch).modules(&config) {
            if let Some(factors) = Factors::take(&mut reader, &module.name)? {
                add_to_sites(&mut tensors, &module.sites, &factors, &scale)?;
            }
        }
        if let Some(factors) = Factors::take(&mut reader, HEAD)? {
            // PEFT keeps the head itself with its adapter, and loads it over the base's.
            let kept = tensor_name(HEAD, "base_layer");
            let kept = match reader.contains(&kept) {
                true => Some(reader.take(&kept)?),
                false => None,
            };
            add_to_head(&mut config, &mut tensors, kept, &factors, &scale)?;
        }
        reader.finish()
    };
    add().with_context(|| format!("{} cannot be imported", adapter.display()))?;
    Ok((config, tensors))
}

/// The tensor of this name among the base's.
fn of_base<'a>(tensors: &'a mut [(String, Tensor)], name: &str) -> Result<&'a mut Tensor> {
    let found = tensors.iter_mut().find(|(other, _)| other == name);
    Ok(&mut found.with_context(|| format!("the base has no weight `{name}`"))?.1)
}

/// Adds a module's (α/r) B A to the matrices of these sites, one below the other.
fn add_to_sites(
    tensors: &mut [(String, Tensor)],
    sites: &[String],
    factors: &Factors,
    scale: &Scale,
) -> Result<()> {
    // Before the product, which small factors can make as large as they like.
    let mut rows = 0;
    for site in sites {
        let (m, n) = of_base(tensors, &format!("{site}.weight"))?.dims2()?;
        factors.check("columns", factors.a.dim(1)?, n)?;
        rows += m;
    }
    factors.check("rows", factors.b.dim(0)?, rows)?;
    let (update, mut above) = (factors.product(scale)?, 0);
    for site in sites {
        let w = of_base(tensors, &format!("{site}.weight"))?;
        let m = w.dim(0)?;
        *w = (&*w + update.narrow(0, above, m)?)?;
        above += m;
    }
    Ok(())
}

/// Adds (α/r) B A to the head, or to the one that was `kept` with them; where it is the table of
/// tokens, it no longer is.
fn add_to_head(
    config: &mut ModelConfig,
    tensors: &mut Vec<(String, Tensor)>,
    kept: Option<Tensor>,
    factors: &Factors,
    scale: &Scale,
) -> Result<()> {
    let tied = config.ties_embeddings();
    let table = format_of(config.arch).shapes(config).swap_remove(0).0;
    let w = of_base(tensors, if tied { &table } else { HEAD_WEIGHT })?;
    let (m, n) = w.dims2()?;
    factors.check("columns", factors.a.dim(1)?, n)?;
    factors.check("rows", factors.b.dim(0)?, m)?;
    if let Some(kept) = kept {
        let shape = kept.dims();
        ensure!(shape == [m, n], "its `{HEAD_WEIGHT}` is {shape:?}, the base's {m} × {n}");
        *w = kept;
    }
    let sum = (&*w + factors.product(scale)?)?;
    if tied {
        tensors.push((HEAD_WEIGHT.to_owned(), sum));
        config.untie();
    } else {
        *w = sum;
    }
    Ok(())
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
        let name = |leaf: &str| tensor_name(module, leaf);
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
