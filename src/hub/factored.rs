//! The low rank kept: weights by some of their own rows, r (m + n − r) numbers each, with the code
//! that lets `transformers` load them (`trust_remote_code`).

use super::format::Format;
use super::weights::Named;
use crate::lowrank::RowInterpolation;
use crate::model::ModelConfig;
use crate::params::ParamStore;
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The code that goes beside the weights.
pub(super) const CODE: &str = include_str!("modeling_lrpt.py");
/// Its name in the folder.
pub(super) const CODE_FILE: &str = "modeling_lrpt.py";
/// What the `model_type` of such a folder begins with.
pub(super) const PREFIX: &str = "lrpt_";
const LAYERS: &str = "lrpt_layers";

/// The configuration and the tensors of a model as `transformers` has it with its low-rank weights
/// in place of the dense ones; `config` and `dense` are those of the dense model.
///
/// # Errors
/// If a weight has a number that is not finite.
pub(super) fn with_factors(
    format: &dyn Format,
    model: &ModelConfig,
    params: &ParamStore,
    config: &mut Value,
    dense: Vec<(String, Tensor)>,
) -> Result<Vec<(String, Tensor)>> {
    let named = &Named::new(params);
    let mut dense: BTreeMap<String, Tensor> = dense.into_iter().collect();
    let (mut described, mut out) = (Map::new(), Vec::new());
    for layer in format.modules(model) {
        if !layer.sites.iter().any(|site| named.point(site).is_some()) {
            continue;
        }
        dense.remove(&format!("{}.weight", layer.name));
        let bias = dense.remove(&format!("{}.bias", layer.name));
        let (mut parts, mut first) = (Vec::new(), 0);
        for site in &layer.sites {
            let part = site.rsplit('.').next().unwrap_or(site);
            let name = match layer.sites.len() {
                1 => layer.name.clone(),
                _ => format!("{}.{part}", layer.name),
            };
            let (outputs, inputs, rank) = add_part(&mut out, &name, site, named)?;
            if let Some(bias) = &bias {
                out.push((format!("{name}.bias"), bias.narrow(0, first, outputs)?.copy()?));
            }
            first += outputs;
            parts.push(json!([part, outputs, inputs, rank, bias.is_some()]));
        }
        described.insert(layer.name.clone(), json!(parts));
    }
    ensure!(
        !described.is_empty(),
        "no weight of the model is a low-rank W = U S Vᵀ (yet: those of `start: dense` are dense until \
         they are cut); leave --factored out"
    );
    let kind = model.arch.name();
    let [settings, network] = format.factored_classes();
    config[LAYERS] = Value::Object(described);
    config["model_type"] = json!(format!("{PREFIX}{kind}"));
    config["architectures"] = json!([network]);
    config["auto_map"] = json!({
        "AutoConfig": format!("modeling_lrpt.{settings}"),
        "AutoModelForCausalLM": format!("modeling_lrpt.{network}"),
    });
    Ok(dense.into_iter().chain(out).collect())
}

/// Adds the tensors of one part; returns m, n, and the rank where it is kept low.
fn add_part(
    out: &mut Vec<(String, Tensor)>,
    name: &str,
    site: &str,
    named: &Named,
) -> Result<(usize, usize, Option<usize>)> {
    let point = named.point(site).filter(|point| point.rank() < point.rows().min(point.columns()));
    // At full rank the dense matrix has as many numbers.
    let Some(point) = point else {
        let weight = named.matrix(site)?;
        let (m, n) = weight.dims2()?;
        out.push((format!("{name}.weight"), weight));
        return Ok((m, n, None));
    };
    let (m, n, rank) = (point.rows(), point.columns(), point.rank());
    let by_rows = RowInterpolation::new(point).with_context(|| format!("the rows of `{site}`"))?;
    let mut place = vec![0i64; m];
    for (from, to) in by_rows.order.iter().enumerate() {
        place[*to as usize] = from as i64;
    }
    out.push((format!("{name}.rows"), by_rows.rows));
    out.push((format!("{name}.rest"), by_rows.coefficients));
    out.push((format!("{name}.place"), Tensor::from_vec(place, m, &Device::Cpu)?));
    Ok((m, n, Some(rank)))
}

/// The layers that config.json describes.
///
/// # Errors
/// If it describes none.
pub(super) fn layers(config: &Value) -> Result<&Map<String, Value>> {
    let described = config.get(LAYERS).and_then(Value::as_object);
    described.with_context(|| format!("config.json: `{LAYERS}` is no mapping"))
}

/// Whether config.json describes the layer of this tensor of the dense model as one of parts.
pub(super) fn describes(config: &Value, name: &str) -> bool {
    let layer = name.rsplit_once('.').map_or(name, |(layer, _)| layer);
    config.get(LAYERS).is_some_and(|layers| layers.get(layer).is_some())
}

/// The tensors of the dense model, which has these shapes, from those of a folder that
/// [`with_factors`] made.
///
/// # Errors
/// If config.json does not describe the layers, or describes others than its network has, or a
/// tensor of one is missing or has another shape.
pub(super) fn without_factors(
    config: &Value,
    tensors: Vec<(String, Tensor)>,
    shapes: &[(String, Vec<usize>)],
    transposed: bool,
) -> Result<Vec<(String, Tensor)>> {
    let described = layers(config)?;
    let mut tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    for (layer, parts) in described {
        let parts: Vec<(String, usize, usize, Option<usize>, bool)> =
            serde_json::from_value(parts.clone()).with_context(|| {
                format!("config.json: `{LAYERS}.{layer}` is no list of [part, m, n, rank, bias]")
            })?;
        // Before the products, which small factors can make as large as they like.
        let outputs = parts.iter().fold(0usize, |sum, part| sum.saturating_add(part.1));
        let fits = |inputs: usize| {
            let shape = if transposed { [inputs, outputs] } else { [outputs, inputs] };
            shapes.iter().any(|(name, other)| *name == format!("{layer}.weight") && *other == shape)
        };
        ensure!(
            parts.iter().all(|part| fits(part.2)),
            "config.json: `{LAYERS}.{layer}` is of other sizes than the network has there"
        );
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for (part, m, n, rank, bias) in &parts {
            let name = if parts.len() == 1 { layer.clone() } else { format!("{layer}.{part}") };
            let mut take = |leaf: &str, shape: &[usize]| -> Result<Tensor> {
                let name = format!("{name}.{leaf}");
                let tensor =
                    tensors.remove(&name).with_context(|| format!("`{name}` is missing"))?;
                ensure!(
                    tensor.dims() == shape,
                    "`{name}` has shape {:?}, config.json says {shape:?}",
                    tensor.dims()
                );
                Ok(tensor)
            };
            weights.push(match rank {
                None => take("weight", &[*m, *n])?,
                Some(rank) => {
                    let others = m.checked_sub(*rank).with_context(|| {
                        format!("config.json: `{LAYERS}.{layer}`: rank {rank} of {m} rows")
                    })?;
                    let place = take("place", &[*m])?.to_dtype(DType::I64)?.to_vec1::<i64>()?;
                    let mut order = vec![u32::MAX; *m];
                    for (to, from) in place.iter().enumerate() {
                        let slot = usize::try_from(*from).ok().and_then(|i| order.get_mut(i));
                        *slot
                            .with_context(|| format!("`{name}.place` has {from} of {m} rows"))? =
                            to as u32;
                    }
                    let rows = take("rows", &[*rank, *n])?;
                    let coefficients = take("rest", &[others, *rank])?;
                    let by_rows = RowInterpolation { order, rows, coefficients };
                    by_rows.to_dense().with_context(|| format!("`{name}`"))?
                }
            });
            if *bias {
                biases.push(take("bias", &[*m])?);
            }
        }
        let weight = Tensor::cat(&weights, 0)?;
        let weight = if transposed { weight.t()?.contiguous()? } else { weight };
        tensors.insert(format!("{layer}.weight"), weight);
        if !biases.is_empty() {
            tensors.insert(format!("{layer}.bias"), Tensor::cat(&biases, 0)?);
        }
    }
    Ok(tensors.into_iter().collect())
}
