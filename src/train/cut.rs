//! The cut of imported weights to their first ranks, once, before the first step.

use super::init_report::MatrixCut;
use super::oracle::{BatchOracle, OracleTimes};
use crate::data::Batches;
use crate::lowrank::{LowRank, Spectrum, distance_to_cut};
use crate::model::Network;
use crate::ops::Gradients;
use crate::optim::{GradientOracle, Offer, cut_ranks};
use crate::parallel::Alone;
use crate::params::{ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{CutSpec, Plan, Target};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A low-rank weight that is to be cut.
struct Uncut {
    id: ParamId,
    name: String,
    target: Target,
    point: LowRank,
    spectrum: Spectrum,
}

/// Cuts the low-rank weights as the plan says, and returns what that came to; `batches` are of the
/// training text, as many a step as the cut reads.
///
/// # Errors
/// If the text is too short or a number is not finite.
pub(super) fn cut_imported(
    plan: &Plan,
    cut: CutSpec,
    model: &dyn Network,
    params: &mut ParamStore,
    batches: &Batches,
    device: &Device,
) -> Result<BTreeMap<ParamId, MatrixCut>> {
    let moments = match cut.batches() {
        Some(count) => Some(second_moments(plan, model, params, batches, count, device)?),
        None => None,
    };
    let weights = uncut(params, moments.as_ref())?;
    let offer = |weight: &Uncut| Offer {
        target: weight.target,
        sides: weight.point.rows() + weight.point.columns(),
        singular_values: weight.spectrum.singular_values().to_vec(),
    };
    let dense = |weight: &Uncut| (weight.point.rows() * weight.point.columns()) as u64;
    let offers: Vec<Offer> = weights.iter().map(offer).collect();
    let ranks = cut_ranks(cut, &offers, weights.iter().map(dense).sum());
    let cuts = weights.par_iter().zip(ranks).map(|(weight, rank)| -> Result<(LowRank, f64)> {
        let place = || format!("cutting `{}` to rank {rank}", weight.name);
        discarding(weight, rank).with_context(place)
    });
    let cuts = cuts.collect::<Result<Vec<_>>>()?;
    let mut found = BTreeMap::new();
    for (weight, (point, discarded)) in weights.iter().zip(cuts) {
        let whole = weight.point.frobenius_norm()?.powi(2);
        let (rows, columns, rank) = (point.rows(), point.columns(), point.rank());
        let (target, kept) = (weight.target, whole - discarded);
        found.insert(weight.id, MatrixCut { target, rows, columns, rank, kept, whole });
        params.set(weight.id, Weight::LowRank(point.to_device(device)?));
    }
    Ok(found)
}

/// The weight at this rank, and ‖W − W_r‖² of what that discards.
fn discarding(weight: &Uncut, rank: usize) -> Result<(LowRank, f64)> {
    if rank >= weight.point.rank() {
        return Ok((weight.point.clone(), 0.0));
    }
    let cut = weight.spectrum.truncate(&weight.point, rank)?;
    let discarded = distance_to_cut(&weight.point, &cut)?.powi(2);
    Ok((cut.point, discarded))
}

/// The low-rank weights on the host with their singular values in the cut's norm.
fn uncut(params: &ParamStore, moments: Option<&Gradients>) -> Result<Vec<Uncut>> {
    let weights: Vec<(ParamId, &Parameter, &LowRank)> = params.low_rank().collect();
    let one = |(id, parameter, point): &(ParamId, &Parameter, &LowRank)| -> Result<Uncut> {
        let name = &parameter.name;
        let target = match parameter.role {
            Role::Matrix(place) => place.target,
            _ => bail!("`{name}` is low-rank outside the blocks"),
        };
        let point = point.to_device(&Device::Cpu)?;
        let spectrum = match moments {
            None => Spectrum::new(&point),
            Some(moments) => {
                let moment = |slot| -> Result<Tensor> {
                    let gram = moments.gram(slot);
                    let gram =
                        gram.with_context(|| format!("no second moment of `{name}` arrived"))?;
                    Ok(gram.to_device(&Device::Cpu)?)
                };
                let (left, right) = (ParamStore::slot(*id), ParamStore::l_slot(*id));
                Spectrum::weighted(&point, &moment(left)?, &moment(right)?)
            }
        };
        let spectrum = spectrum.with_context(|| format!("the singular values of `{name}`"))?;
        Ok(Uncut { id: *id, name: name.clone(), target, point, spectrum })
    };
    weights.par_iter().map(one).collect()
}

/// The second moments of inputs and output gradients of every low-rank weight, summed over the
/// first batches of the text. Every process sums them all, so that all make the same cut.
fn second_moments(
    plan: &Plan,
    model: &dyn Network,
    params: &ParamStore,
    batches: &Batches,
    count: usize,
    device: &Device,
) -> Result<Gradients> {
    let mut moments = Gradients::new(params.slot_count());
    moments.want_grams();
    let mut oracle = BatchOracle {
        model,
        batches,
        device,
        seed: plan.seed,
        step: 1,
        micro_batches: count,
        processes: &Alone,
        owners: None,
        is_deterministic: true,
        sums_sent: 0,
        times: OracleTimes::default(),
    };
    oracle.evaluate(params, &mut moments).context("the batches that the cut goes by")?;
    Ok(moments)
}
