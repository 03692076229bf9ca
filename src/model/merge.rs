//! Adapters taken into the matrices that they adapt.

use super::adapter::{adapter_name, lora_scale};
use super::head::HEAD;
use super::{ModelConfig, build};
use crate::params::{Factor, ParamStore, Weight};
use crate::spec::WeightForm;
use anyhow::{Context, Result, bail};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// The network with dense matrices W₀ + U S Vᵀ or W₀ + (α/r) B A in place of frozen ones with
/// adapters; one without adapters as it is. A head that is the table of tokens becomes one of its
/// own by its adapter.
///
/// # Errors
/// If a parameter is missing or has another form than the configuration says.
pub fn merged(config: &ModelConfig, params: ParamStore) -> Result<(ModelConfig, ParamStore)> {
    if !config.is_adapted() {
        return Ok((config.clone(), params));
    }
    let adapted = build(config.clone())?;
    let mut weights = params.weights();
    // The head first, while the table of tokens that it may be is as it was.
    if let Some(WeightForm::Adapter { rank, alpha, .. }) = config.head_adapter {
        let product = product(&weights, HEAD, lora_scale(rank, alpha))?;
        let frozen = &adapted.declared()[adapted.head().weight.0].name;
        let Some(Weight::Dense(w)) = weights.get(frozen) else {
            bail!("the model has no head `{frozen}`")
        };
        let merged = Weight::Dense((w + product)?);
        weights.insert(format!("{HEAD}.weight"), merged);
    }
    for site in adapted.sites() {
        let form = config.form_in(site.layer, site.kind);
        let WeightForm::Adapter { rank, alpha, .. } = form else { continue };
        let product = product(&weights, &site.name, lora_scale(rank, alpha))?;
        let frozen = weights
            .get_mut(&format!("{}.weight", site.name))
            .with_context(|| format!("the model has no frozen weight `{}`", site.name))?;
        if let Weight::Dense(w) = frozen {
            *w = (&*w + product)?;
        }
    }
    let network = build(config.merged())?;
    let params = ParamStore::of_weights(network.declared(), weights)?;
    Ok((network.config().clone(), params))
}

/// U S Vᵀ or scale · B A of a site.
fn product(weights: &BTreeMap<String, Weight>, site: &str, scale: f64) -> Result<Tensor> {
    let adapter = adapter_name(site);
    if let Some(Weight::LowRank(point)) = weights.get(&adapter) {
        return Ok(point.to_dense()?);
    }
    let factor = |factor: Factor| match weights.get(&format!("{adapter}.{}", factor.name())) {
        Some(Weight::Dense(tensor)) => Ok(tensor),
        _ => bail!("the model has no factor {} of `{adapter}`", factor.name()),
    };
    Ok((factor(Factor::B)?.matmul(factor(Factor::A)?)? * scale)?)
}
