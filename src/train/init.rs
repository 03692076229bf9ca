//! The first weights of a run: from the seed, or from another model.

use super::init_report::{InitReport, MatrixCut};
use super::source;
use crate::error::Failure;
use crate::hub::{Named, with_fused_qkv};
use crate::lowrank::LowRank;
use crate::model::{ModelConfig, Network};
use crate::params::{Declared, Factor, Initial, ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{LowRankStart, Plan, Target, WeightForm, bounds};
use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

/// The first parameters of a plan's network, and where they came from if not from the seed.
///
/// # Errors
/// If the source cannot be read, has another shape than the network, or a rank exceeds a matrix;
/// the message names what differs.
pub fn initial_parameters(
    plan: &Plan,
    model: &dyn Network,
    device: &Device,
) -> Result<(ParamStore, Option<InitReport>)> {
    let Some(init) = &plan.init else {
        return Ok((model.initialize(plan.seed, DType::F32, device)?, None));
    };
    let place_of = || format!("init: {}", init.path());
    let (config, params) = source::read(init).with_context(place_of)?;
    check_shape(model.config(), &config).with_context(place_of)?;
    check_head(model.config())?;
    let source_hash = hash(&params)?;
    let (_, params) = with_fused_qkv(&config, params, model.config().fused_qkv)?;
    let named = Named::new(&params);
    let placed = |declared: &Declared| match declared.initial.is_adapter() {
        true => Ok(Placed { parameter: declared.draw(plan.seed, DType::F32, device)?, cut: None }),
        false => place(declared, &named, device),
    };
    let placed: Vec<Placed> = model.declared().par_iter().map(placed).collect::<Result<_>>()?;
    let cuts =
        placed.iter().enumerate().filter_map(|(id, placed)| Some((ParamId(id), placed.cut?)));
    let report = InitReport::new(init.clone(), source_hash, cuts.collect());
    let parameters = placed.into_iter().map(|placed| placed.parameter).collect();
    Ok((ParamStore::new(parameters)?, Some(report)))
}

/// Refuses a source of another shape, naming each key.
fn check_shape(model: &ModelConfig, source: &ModelConfig) -> Result<()> {
    let sizes = [
        ("model.n_layer", model.n_layer, source.n_layer),
        ("model.n_head", model.n_head, source.n_head),
        ("model.n_kv_head", model.heads().keys, source.heads().keys),
        ("model.n_embd", model.n_embd, source.n_embd),
        ("model.n_inner", model.inner_width(), source.inner_width()),
        ("the vocabulary of data.tokenizer", model.vocab_size, source.vocab_size),
    ];
    let mut differences: Vec<String> = sizes
        .into_iter()
        .filter(|(_, ours, theirs)| ours != theirs)
        .map(|(key, ours, theirs)| format!("{key} is {ours}, the source has {theirs}"))
        .collect();
    if model.block_size > source.block_size {
        differences.push(format!(
            "model.block_size is {}, the source has no positions beyond {}",
            model.block_size, source.block_size
        ));
    }
    if model.arch != source.arch {
        differences.push("model.arch is another than the source's".into());
    }
    for (key, ours, theirs) in [
        ("model.bias", model.bias, source.bias),
        ("model.tie_word_embeddings", model.ties_embeddings(), source.ties_embeddings()),
    ] {
        if ours != theirs {
            differences.push(format!("{key} is {ours}, the source has {theirs}"));
        }
    }
    let (epsilon, _) = model.arch.norm_epsilon();
    for (key, ours, theirs) in [
        ("rope_theta", model.rope_theta(), source.rope_theta()),
        (epsilon, model.norm_epsilon(), source.norm_epsilon()),
    ] {
        if ours != theirs && model.arch == source.arch {
            differences.push(format!("model.{key} is {ours}, the source has {theirs}"));
        }
    }
    if differences.is_empty() {
        return Ok(());
    }
    Err(Failure::Usage(format!("{}; set them alike", differences.join("; "))).into())
}

/// Refuses an adapter of the head that has more directions than the vocabulary has tokens.
fn check_head(model: &ModelConfig) -> Result<()> {
    let rank = model.head_adapter.and_then(WeightForm::rank);
    let shape = model.shape_with_head(Target::HEAD, model.vocab_size);
    match rank.and_then(|rank| bounds::rank_problem("head", rank, shape)) {
        None => Ok(()),
        Some(problem) => {
            Err(Failure::Usage(format!("model.weights.adapter.head: {problem}")).into())
        }
    }
}

/// A parameter with its first numbers, and what a cut came to where there was one.
struct Placed {
    parameter: Parameter,
    cut: Option<MatrixCut>,
}

/// A declared parameter with the source's numbers, in the form that it is declared in.
fn place(declared: &Declared, source: &Named, device: &Device) -> Result<Placed> {
    let name = &declared.name;
    let site = |leaf: &str| name.strip_suffix(leaf).unwrap_or(name).to_owned();
    let cut = |site: &str, rank: usize| -> Result<(LowRank, Option<MatrixCut>)> {
        let w = source.matrix(site)?;
        let point = LowRank::from_dense(&w, rank).with_context(|| format!("cutting `{site}`"))?;
        let whole = w.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        let kept = point.frobenius_norm()?.powi(2);
        let (Role::Matrix(place) | Role::Factor(place, _)) = declared.role else {
            bail!("`{name}` is low-rank outside the blocks")
        };
        let (rows, columns) = (point.rows(), point.columns());
        let cut = MatrixCut { target: place.target, rows, columns, rank, kept, whole };
        Ok((point, Some(cut)))
    };
    let (weight, found) = match declared.initial {
        Initial::LowRank { start: LowRankStart::Dense, .. } => {
            (Weight::Uncut(source.matrix(name)?.to_device(device)?), None)
        }
        Initial::LowRank { rank, .. } => {
            // A point of this rank is taken as it is, bit for bit.
            let same = source.point(name).filter(|point| point.rank() == rank);
            let (point, found) = match same {
                Some(point) => (point.clone(), None),
                None => cut(name, rank)?,
            };
            (Weight::LowRank(point.to_device(device)?), found)
        }
        Initial::Factor { factor, rank, .. } => {
            let (point, found) = cut(&site(&format!(".{}", factor.name())), rank)?;
            // Every factor makes the same cut, which counts once.
            let found = found.filter(|_| matches!(factor, Factor::B | Factor::U));
            (Weight::Dense(factor.of(&point)?.to_device(device)?), found)
        }
        Initial::Normal { .. } if source.has_matrix(&site(".weight")) => {
            (Weight::Dense(source.matrix(&site(".weight"))?.to_device(device)?), None)
        }
        _ => {
            let mut dense = source.dense(name)?;
            // Where the block is shorter than the source's, the table of positions is.
            if let Initial::Normal { rows, .. } = declared.initial
                && rows < dense.dim(0)?
            {
                dense = dense.narrow(0, 0, rows)?.contiguous()?;
            }
            (Weight::Dense(dense.to_device(device)?), None)
        }
    };
    let parameter =
        Parameter { name: name.clone(), role: declared.role, weight, trained: declared.trained };
    Ok(Placed { parameter, cut: found })
}

/// BLAKE3 over names, shapes and numbers.
fn hash(params: &ParamStore) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (name, tensor) in params.named_tensors() {
        hasher.update(format!("{name} {:?}", tensor.dims()).as_bytes());
        for number in numbers(&tensor)? {
            hasher.update(&number.to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn numbers(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}
