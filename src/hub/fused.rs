//! Queries, keys and values from one matrix or from three: a model of one layout as a model of the
//! other.

use super::weights::{Module, Named};
use crate::model::{ModelConfig, Network, Site, build};
use crate::params::{ParamStore, Weight};
use crate::spec::{Target, WeightForm};
use anyhow::{Result, bail};
use candle_core::Tensor;

/// The same network with the query, key and value matrices of each block as one, [W_q; W_k; W_v] of
/// (C + 2 C G/H) × C, or as three; they are dense then, and all else is as it was, as is all where
/// they are laid out so already. Adapters must be merged first ([`crate::model::merged`]).
///
/// # Errors
/// If a parameter is missing or has another shape than the configuration says.
pub fn with_fused_qkv(
    config: &ModelConfig,
    params: ParamStore,
    fused_qkv: bool,
) -> Result<(ModelConfig, ParamStore)> {
    if config.fused_qkv == fused_qkv {
        return Ok((config.clone(), params));
    }
    let mut other = config.clone();
    other.fused_qkv = fused_qkv;
    let (before, after) = (config.targets(), other.model.targets());
    other.weights.retain(|target, _| after.contains(target));
    for target in after.iter().filter(|target| !before.contains(target)) {
        other.weights.insert(*target, WeightForm::Dense);
    }
    other.layers.iter_mut().for_each(|ranks| ranks.retain(|target, _| after.contains(target)));
    let (given, made) = (build(config.clone())?, build(other)?);
    let (joint, parts) = if fused_qkv { (&made, &given) } else { (&given, &made) };
    let named = Named::new(&params);
    let mut weights = params.weights();
    for site in joint.sites().iter().filter(|site| site.kind == Target::QKV) {
        let parts = parts_of(parts.as_ref(), site.layer);
        let mut convert = |leaf: &str, read: &dyn Fn(&Site) -> Result<Tensor>| -> Result<()> {
            if fused_qkv {
                let tensors = parts.iter().map(|part| read(part)).collect::<Result<Vec<_>>>()?;
                let whole = Weight::Dense(Tensor::cat(&tensors, 0)?);
                weights.insert(format!("{}.{leaf}", site.name), whole);
                return Ok(());
            }
            let (whole, mut first) = (read(site)?, 0);
            for part in &parts {
                let rows = whole.narrow(0, first, part.rows)?.copy()?;
                weights.insert(format!("{}.{leaf}", part.name), Weight::Dense(rows));
                first += part.rows;
            }
            Ok(())
        };
        convert("weight", &|site| named.matrix(&site.name))?;
        if config.bias {
            convert("bias", &|site| named.dense(&format!("{}.bias", site.name)))?;
        }
    }
    let params = ParamStore::of_weights(made.declared(), weights)?;
    Ok((made.config().clone(), params))
}

/// The query, key and value matrices of a block, in this order.
fn parts_of(separate: &dyn Network, layer: usize) -> Vec<&Site> {
    let is_part = |site: &&Site| {
        site.layer == layer && matches!(site.kind, Target::Q | Target::K | Target::V)
    };
    separate.sites().iter().filter(is_part).collect()
}

/// Refuses to keep something of a matrix that is three there, where each of these sites is to keep
/// what it has.
///
/// # Errors
/// Names the site, and this remedy.
pub(super) fn refuse_parted<'a>(
    modules: &[Module],
    mut kept: impl Iterator<Item = &'a Site>,
    remedy: &str,
) -> Result<()> {
    let has_module = |site: &Site| modules.iter().any(|module| module.sites.contains(&site.name));
    match kept.find(|site| !has_module(site)) {
        None => Ok(()),
        Some(site) => bail!(
            "`{}` (`model.fused_qkv: true`) is three matrices in transformers, which have no common \
             factors there; {remedy}",
            site.name
        ),
    }
}
