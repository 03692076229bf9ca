//! A cut: the ranks of all weights decided together, from their singular values.

use super::DlraUpdate;
use crate::lowrank::Spectrum;
use crate::ops::Gradients;
use crate::optim::rank::Offer;
use crate::optim::shards::Shards;
use crate::params::{ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{DlraSpec, RankNorm, Target};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// The updates cut to the ranks that `ranks` chooses from what all these weights offer; the updates
/// are those of the weights that this process owns.
///
/// In the Fisher norm the slots hold the second moments of the step's batch.
///
/// # Errors
/// If a second moment is missing, or a factorisation does not converge, naming the weight.
pub(super) fn cut(
    weights: &[(ParamId, &Parameter)],
    updates: Vec<DlraUpdate>,
    norm: RankNorm,
    slots: &Gradients,
    (spec, shards): (&DlraSpec, Option<&Shards>),
    ranks: &dyn Fn(&[Offer]) -> Vec<usize>,
) -> Result<Vec<DlraUpdate>> {
    // A cut is rare and of small matrices: it is made in host memory, weight by weight.
    let device = updates.first().map_or(Device::Cpu, |update| update.point.u.device().clone());
    let on = |device: &Device, updates: Vec<DlraUpdate>| -> Result<Vec<DlraUpdate>> {
        updates.into_iter().map(|update| update.to_device(device)).collect()
    };
    let updates = on(&Device::Cpu, updates)?;
    let owns = |id: ParamId| shards.is_none_or(|shards| shards.owns(id));
    let own: Vec<_> = weights.iter().filter(|(id, _)| owns(*id)).copied().collect();
    let spectrum = |(weight, update)| spectrum(weight, update, norm, slots);
    let spectra = own.par_iter().zip(&updates).map(spectrum).collect::<Result<Vec<_>>>();
    let (spectra, values) = match spectra {
        Ok(spectra) => {
            let values = spectra.iter().map(|spectrum| spectrum.singular_values().to_vec());
            let values = values.collect();
            (spectra, Ok(values))
        }
        Err(error) => (Vec::new(), Err(error)),
    };
    let values = match shards {
        None => values?,
        Some(shards) => {
            let ids: Vec<ParamId> = weights.iter().map(|(id, _)| *id).collect();
            shards.joined(&ids, values)?
        }
    };
    let mut offers = Vec::with_capacity(weights.len());
    for ((_, parameter), singular_values) in weights.iter().zip(values) {
        let (Some(target), Weight::LowRank(point)) = (target_of(parameter), &parameter.weight)
        else {
            bail!("`{}` is low-rank outside the blocks", parameter.name)
        };
        offers.push(Offer { target, sides: point.rows() + point.columns(), singular_values });
    }
    let ranks = ranks(&offers).into_iter().zip(weights).filter(|(_, (id, _))| owns(*id));
    let ranks: Vec<usize> = ranks.map(|(rank, _)| rank).collect();
    let cuts = updates.into_par_iter().zip(&spectra).zip(ranks).zip(&own).map(
        |(((update, spectrum), rank), (_, parameter))| {
            update.cut(spectrum, rank, spec).with_context(|| failed(parameter))
        },
    );
    on(&device, cuts.collect::<Result<Vec<_>>>()?)
}

/// The singular values of one weight in this norm.
fn spectrum(
    (id, parameter): &(ParamId, &Parameter),
    update: &DlraUpdate,
    norm: RankNorm,
    slots: &Gradients,
) -> Result<Spectrum> {
    let moments = match norm {
        RankNorm::Frobenius => None,
        RankNorm::Fisher => {
            let moment = |slot| -> Result<Tensor> {
                let gram = slots.gram(slot);
                let gram = gram
                    .with_context(|| format!("no second moment of `{}` arrived", parameter.name))?;
                Ok(gram.to_device(&Device::Cpu)?)
            };
            Some([moment(ParamStore::slot(*id))?, moment(ParamStore::l_slot(*id))?])
        }
    };
    let moments = moments.as_ref().map(|[left, right]| [left, right]);
    update.spectrum(moments).with_context(|| failed(parameter))
}

fn failed(parameter: &Parameter) -> String {
    format!("cutting the rank of `{}` failed", parameter.name)
}

/// Which matrix of a block a parameter is; none for others.
pub(super) fn target_of(parameter: &Parameter) -> Option<Target> {
    match parameter.role {
        Role::Matrix(place) => Some(place.target),
        _ => None,
    }
}
