//! A cut: the ranks of all weights decided together, from their singular values.

use super::cut_moments::WholeMoments;
use super::rule::MemberState;
use super::{DlraUpdate, UncutState};
use crate::lowrank::{LowRank, Spectrum, Truncation};
use crate::ops::Gradients;
use crate::optim::leaves::Leaves;
use crate::optim::rank::{Cut, Offer, becomes_factors};
use crate::optim::shards::Shards;
use crate::params::{ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{DlraSpec, RankNorm, RankPlan, Target};
use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use rayon::prelude::*;

/// What a step made of a weight, before any cut.
pub(super) enum Update {
    /// Of a point on the manifold.
    Point(DlraUpdate),
    /// Of a weight that is not cut yet.
    Uncut {
        /// The new W: m × n.
        weight: Tensor,
        /// The new moments.
        state: UncutState,
        /// Steps taken.
        step: u64,
    },
}

/// What a step, and a cut where there is one, makes of a weight.
pub(super) struct Next {
    pub weight: Weight,
    pub state: MemberState,
    /// The truncation, where one decided the rank.
    pub truncation: Option<Truncation>,
}

impl Update {
    /// The update as it is, at a step without a cut.
    pub fn uncut(self) -> Next {
        match self {
            Update::Point(DlraUpdate { point, state, truncation, .. }) => Next {
                weight: Weight::LowRank(point),
                state: MemberState::Point(state),
                truncation,
            },
            Update::Uncut { weight, state, .. } => Next {
                weight: Weight::Uncut(weight),
                state: MemberState::Uncut(state),
                truncation: None,
            },
        }
    }

    fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Update::Point(update) => Update::Point(update.to_device(device)?),
            Update::Uncut { weight, state, step } => Update::Uncut {
                weight: weight.to_device(device)?,
                state: state.to_device(device)?,
                step: *step,
            },
        })
    }

    fn device(&self) -> &Device {
        match self {
            Update::Point(update) => update.point.u.device(),
            Update::Uncut { weight, .. } => weight.device(),
        }
    }

    /// Rows and columns of the weight.
    fn shape(&self) -> Result<(usize, usize)> {
        Ok(match self {
            Update::Point(DlraUpdate { point, .. }) => (point.rows(), point.columns()),
            Update::Uncut { weight, .. } => weight.dims2()?,
        })
    }

    /// The means of the second moments that are carried for cuts, if any are.
    fn carried_moments(&self) -> Result<Option<[Tensor; 2]>> {
        Ok(match self {
            Update::Point(update) => update.carried_moments()?,
            Update::Uncut { state, .. } => {
                state.cut_moments.as_ref().map(WholeMoments::means).transpose()?
            }
        })
    }

    /// The singular values in the norm of carried moments, which are in the bases of the step's
    /// end.
    fn carried_spectrum(&self, moments: [&Tensor; 2]) -> Result<(Option<LowRank>, Spectrum)> {
        let [left, right] = moments;
        match self {
            Update::Point(update) => Ok((None, Spectrum::weighted(&update.point, left, right)?)),
            Update::Uncut { .. } => self.spectrum(Some(moments)),
        }
    }

    /// The singular values in this norm, and the thin SVD of a dense matrix.
    fn spectrum(&self, moments: Option<[&Tensor; 2]>) -> Result<(Option<LowRank>, Spectrum)> {
        Ok(match self {
            Update::Point(update) => (None, update.spectrum(moments)?),
            Update::Uncut { weight, .. } => {
                let (point, spectrum) = Spectrum::of_dense(weight, moments)?;
                (Some(point), spectrum)
            }
        })
    }

    /// The weight at this rank; a dense one where it becomes factors.
    fn cut(
        self,
        (point, spectrum): (Option<LowRank>, &Spectrum),
        rank: usize,
        place: Cut,
        spec: &DlraSpec,
    ) -> Result<Next> {
        let shape = self.shape()?;
        match (self, point) {
            (Update::Point(update), _) => {
                Ok(Update::Point(update.cut(spectrum, rank, spec)?).uncut())
            }
            (Update::Uncut { state, step, .. }, Some(point))
                if becomes_factors(place, shape, rank) =>
            {
                let cut = spectrum.truncate(&point, rank)?;
                let state = MemberState::Point(state.carried_to(&cut.point, step, spec)?);
                Ok(Next { weight: Weight::LowRank(cut.point), state, truncation: cut.truncation })
            }
            (uncut, _) => Ok(uncut.uncut()),
        }
    }
}

impl Next {
    fn to_device(&self, device: &Device) -> Result<Self> {
        let weight = match &self.weight {
            Weight::LowRank(point) => Weight::LowRank(point.to_device(device)?),
            Weight::Uncut(tensor) => Weight::Uncut(tensor.to_device(device)?),
            Weight::Dense(tensor) => Weight::Dense(tensor.to_device(device)?),
        };
        let state = self.state.to_device(device)?;
        Ok(Self { weight, state, truncation: self.truncation.clone() })
    }
}

/// The updates cut to the ranks that the policy chooses from what all these weights offer; the
/// updates are those of the weights that this process owns.
///
/// In the Fisher norm the slots hold the second moments of the step's batch; where the states carry
/// moments, they have taken these in, and the cut goes by what they carry.
///
/// # Errors
/// If a second moment is missing, or a factorisation does not converge, naming the weight.
pub(super) fn cut(
    weights: &[(ParamId, &Parameter)],
    updates: Vec<Update>,
    norm: RankNorm,
    slots: &Gradients,
    (spec, shards): (&DlraSpec, Option<&Shards>),
    policy: &RankPlan,
    place: Cut,
) -> Result<Vec<Next>> {
    // A cut is rare: it is made in host memory, weight by weight.
    let device = updates.first().map_or(Device::Cpu, |update| update.device().clone());
    let owns = |id: ParamId| shards.is_none_or(|shards| shards.owns(id));
    let own: Vec<_> = weights.iter().filter(|(id, _)| owns(*id)).copied().collect();
    // What fails here fails on this process alone, and the others are waiting to be told.
    let found = || -> Result<(Vec<Update>, Vec<_>)> {
        let on_host = updates.iter().map(|update| update.to_device(&Device::Cpu));
        let updates = on_host.collect::<Result<Vec<_>>>()?;
        let spectrum = |(weight, update)| spectrum(weight, update, norm, slots);
        let spectra = own.par_iter().zip(&updates).map(spectrum).collect::<Result<_>>()?;
        Ok((updates, spectra))
    };
    let (updates, spectra, values) = match found() {
        Ok((updates, spectra)) => {
            let values = spectra.iter().map(|(_, found)| found.singular_values().to_vec());
            let values = values.collect();
            (updates, spectra, Ok(values))
        }
        Err(error) => (Vec::new(), Vec::new(), Err(error)),
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
        let shape = match &parameter.weight {
            Weight::LowRank(point) => Some((point.rows(), point.columns())),
            Weight::Uncut(tensor) => Some(tensor.dims2()?),
            Weight::Dense(_) => None,
        };
        let Some((rows, columns)) = shape else { bail!("`{}` has no rank to cut", parameter.name) };
        if let Some(target) = target_of(parameter) {
            offers.push(Offer { target, sides: rows + columns, singular_values });
        }
    }
    let mut chosen = policy.cut(place, &offers).into_iter();
    // What stands outside the blocks keeps its rank.
    let rank_of = |(id, parameter): &(ParamId, &Parameter)| {
        let rank = target_of(parameter).map_or_else(|| parameter.weight.rank(), |_| chosen.next());
        rank.filter(|_| owns(*id))
    };
    let ranks: Vec<usize> = weights.iter().filter_map(rank_of).collect();
    let cuts = updates.into_par_iter().zip(&spectra).zip(ranks).zip(&own).map(
        |(((update, (point, spectrum)), rank), (_, parameter))| {
            let cut = update.cut((point.clone(), spectrum), rank, place, spec);
            cut.with_context(|| failed(parameter))
        },
    );
    let cuts = cuts.collect::<Result<Vec<Next>>>()?;
    cuts.iter().map(|next| next.to_device(&device)).collect()
}

/// The singular values of one weight in this norm.
fn spectrum(
    (id, parameter): &(ParamId, &Parameter),
    update: &Update,
    norm: RankNorm,
    slots: &Gradients,
) -> Result<(Option<LowRank>, Spectrum)> {
    let carried = match norm {
        RankNorm::Frobenius => None,
        RankNorm::Fisher => update.carried_moments().with_context(|| failed(parameter))?,
    };
    if let Some([left, right]) = &carried {
        return update.carried_spectrum([left, right]).with_context(|| failed(parameter));
    }
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

/// Which matrix of a block a parameter is; none for others, the head's adapter among them.
pub(super) fn target_of(parameter: &Parameter) -> Option<Target> {
    match parameter.role {
        Role::Matrix(place) if place.target != Target::HEAD => Some(place.target),
        _ => None,
    }
}
