//! The low-rank weights of a step, side by side: the integrator's passes, and what happens to
//! ranks.

use super::super::dlra::{DlraState, DlraStep, DlraUpdate, GalerkinStep, Item, step_all};
use super::super::elementwise::sums_of_squares;
use super::super::execution::{Placement, map_all};
use super::super::gradient::{Gradient, TrainedGradients};
use super::super::rank::{Offer, RankDecision};
use super::{GradientOracle, Optimizer, State};
use crate::error::Failure;
use crate::lowrank::{LowRank, Spectrum, Tangent};
use crate::ops::Gradients;
use crate::params::{ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{CyclePhase, Integrator, RankNorm, Target};
use anyhow::{Context, bail};
use candle_core::{Device, Tensor};
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// The updates of all low-rank weights, and the time that evaluations took among them.
pub(super) struct LowRankUpdates {
    pub updates: Vec<(ParamId, DlraUpdate)>,
    pub evaluation_time: Duration,
}

/// The first gradients of a step and its numbers.
#[derive(Clone, Copy)]
pub(super) struct FirstGradients<'a> {
    pub trained: &'a TrainedGradients,
    pub step: u64,
    pub gradient_scale: f64,
    pub schedule_factor: f64,
}

type LowRankWeight<'a> = (ParamId, &'a Parameter, &'a LowRank);

impl Optimizer {
    /// The updates of all low-rank weights, computed side by side; nothing is changed yet. Cuts are
    /// still to come.
    pub(super) fn low_rank_updates<'a>(
        &'a self,
        params: &'a ParamStore,
        oracle: &mut dyn GradientOracle,
        first: FirstGradients<'a>,
        change: Option<u64>,
    ) -> anyhow::Result<LowRankUpdates> {
        let weights: Vec<LowRankWeight> = params.low_rank().collect();
        let growth =
            |(id, parameter, point): &LowRankWeight| self.growth(*id, parameter, point, change);
        if self.settings.low_rank.integrator == Integrator::AugmentedBug {
            let (steps, evaluation_time) =
                self.coefficient_steps(params, &weights, oracle, first)?;
            let updates = map_all(
                self.settings.execution.linalg,
                steps.into_iter().zip(&weights).collect(),
                |(step, weight)| {
                    let rank = growth(weight);
                    let update = step.finish(&self.dlra_step(first, rank));
                    let update = update.with_context(|| {
                        format!("the low-rank step of `{}` failed", weight.1.name)
                    })?;
                    Ok((weight.0, reported(update, rank)))
                },
            )?;
            return Ok(LowRankUpdates { updates, evaluation_time });
        }
        let mut phase =
            self.settings.low_rank.cycle_phase(first.step, self.settings.schedule.max_steps());
        if phase.is_some()
            && change.is_some_and(|step| self.settings.ranks.cut_norm(step).is_some())
        {
            // A cut at the end of a cycle chooses from all directions of the augmented bases.
            phase = Some(CyclePhase::Coefficients { truncate: false });
        }
        let item = |weight: &LowRankWeight<'a>| {
            let (id, parameter, point) = *weight;
            let (state, gradient) = self.state_and_gradient(id, parameter, first)?;
            Ok(Item {
                name: &parameter.name,
                state,
                point,
                gradient,
                hyper: self.dlra_step(first, growth(weight)),
            })
        };
        let items = weights.iter().map(item).collect::<anyhow::Result<Vec<_>>>()?;
        let updates = match phase {
            None => step_all(self.settings.execution.linalg, &items, &DlraState::step)?,
            // Ranks that double and halve within a cycle leave no stacks to make.
            Some(phase) => {
                let step =
                    |state: &DlraState, point: &LowRank, gradient: &Tangent, hyper: &DlraStep| {
                        state.cycle_step(point, gradient, hyper, phase)
                    };
                step_all(Placement::Host, &items, &step)?
            }
        };
        let updates = weights
            .iter()
            .zip(&items)
            .zip(updates)
            .map(|(((id, _, _), item), update)| (*id, reported(update, item.hyper.rank)));
        Ok(LowRankUpdates { updates: updates.collect(), evaluation_time: Duration::ZERO })
    }

    /// The step whose rank changes, by the schedule, take effect at this one: itself, or one of the
    /// cycle that ends here; none where ranks stay.
    ///
    /// In a cycle its last cut counts or, without one, its last growth.
    pub(super) fn rank_change(&self, step: u64) -> Option<u64> {
        let (ranks, dlra) = (&self.settings.ranks, &self.settings.low_rank);
        let first =
            match (dlra.cycle_length(), dlra.cycle_phase(step, self.settings.schedule.max_steps()))
            {
                (Some(length), Some(CyclePhase::Coefficients { truncate: true })) => {
                    step - (step - 1) % length
                }
                (Some(_), _) => return None,
                (None, _) => step,
            };
        let last = |is_one: &dyn Fn(u64) -> bool| (first..=step).rev().find(|step| is_one(*step));
        last(&|step| ranks.cut_norm(step).is_some())
            .or_else(|| last(&|step| ranks.changes_at(step)))
    }

    /// Whether a weight's rank grows.
    fn growth(
        &self,
        id: ParamId,
        parameter: &Parameter,
        point: &LowRank,
        change: Option<u64>,
    ) -> RankDecision {
        let (Some(step), Some(target)) = (change, target_of(parameter)) else {
            return RankDecision::Keep;
        };
        let rank = match &self.states[id.0] {
            State::Dlra(state) => state.cycle_rank().unwrap_or_else(|| point.rank()),
            _ => point.rank(),
        };
        self.settings.ranks.decide(step, target, rank)
    }

    /// The updates cut to the ranks that the schedule chooses over all weights, where there is a
    /// cut.
    pub(super) fn cut(
        &self,
        params: &ParamStore,
        updates: Vec<(ParamId, DlraUpdate)>,
        gradients: &Gradients,
        change: Option<u64>,
    ) -> anyhow::Result<Vec<(ParamId, DlraUpdate)>> {
        let Some((step, norm)) =
            change.and_then(|step| Some((step, self.settings.ranks.cut_norm(step)?)))
        else {
            return Ok(updates);
        };
        let failed = |id: ParamId| format!("cutting the rank of `{}` failed", params.get(id).name);
        let spectrum = |(id, update): &(ParamId, DlraUpdate)| -> anyhow::Result<Spectrum> {
            let moments = match norm {
                RankNorm::Frobenius => None,
                RankNorm::Fisher => {
                    let moment = |slot| {
                        gradients.gram(slot).with_context(|| {
                            format!("no second moment of `{}` arrived", params.get(*id).name)
                        })
                    };
                    let on_host = |slot| anyhow::Ok(moment(slot)?.to_device(&Device::Cpu)?);
                    Some([on_host(ParamStore::slot(*id))?, on_host(ParamStore::l_slot(*id))?])
                }
            };
            update
                .spectrum(moments.as_ref().map(|[left, right]| [left, right]))
                .with_context(|| failed(*id))
        };
        // A cut is rare and of small matrices: it is made in host memory, weight by weight.
        let device =
            updates.first().map_or(Device::Cpu, |(_, update)| update.point.u.device().clone());
        let on = |device: &Device, updates: Vec<(ParamId, DlraUpdate)>| -> anyhow::Result<Vec<_>> {
            updates.into_iter().map(|(id, update)| Ok((id, update.to_device(device)?))).collect()
        };
        let updates = on(&Device::Cpu, updates)?;
        let spectra = updates.par_iter().map(spectrum).collect::<anyhow::Result<Vec<_>>>()?;
        let offer = |((id, update), spectrum): (&(ParamId, DlraUpdate), &Spectrum)| -> anyhow::Result<Offer> {
            let target =
                target_of(params.get(*id)).with_context(|| format!("`{}` is low-rank outside the blocks", params.get(*id).name))?;
            let sides = update.point.rows() + update.point.columns();
            Ok(Offer { target, sides, singular_values: spectrum.singular_values().to_vec() })
        };
        let offers = updates.iter().zip(&spectra).map(offer).collect::<anyhow::Result<Vec<_>>>()?;
        let ranks = self.settings.ranks.cut(step, &offers);
        let cuts = updates.into_par_iter().zip(&spectra).zip(ranks).map(
            |(((id, update), spectrum), rank)| {
                Ok((
                    id,
                    update
                        .cut(spectrum, rank, &self.settings.low_rank)
                        .with_context(|| failed(id))?,
                ))
            },
        );
        on(&device, cuts.collect::<anyhow::Result<Vec<_>>>()?)
    }

    /// Augments all low-rank weights, then evaluates and steps their coefficients
    /// `coefficient_steps` times.
    ///
    /// Each evaluation is over the batch of the first gradient, at the augmented points in place of
    /// the low-rank weights and all else as it was, and scaled by the first gradient's clipping
    /// factor.
    fn coefficient_steps(
        &self,
        params: &ParamStore,
        weights: &[LowRankWeight],
        oracle: &mut dyn GradientOracle,
        first: FirstGradients,
    ) -> anyhow::Result<(Vec<GalerkinStep>, Duration)> {
        let hyper = self.dlra_step(first, RankDecision::Keep);
        let placement = self.settings.execution.linalg;
        let mut steps = map_all(placement, weights.iter().collect(), |(id, parameter, point)| {
            let (state, gradient) = self.state_and_gradient(*id, parameter, first)?;
            let begun = state.begin_galerkin(point, gradient, &hyper);
            begun.with_context(|| format!("augmenting the bases of `{}` failed", parameter.name))
        })?;
        // Buffers of its own: those of the first evaluation hold the dense gradients, which are
        // still needed.
        let mut gradients = Gradients::new(params.slot_count());
        let mut evaluation_time = Duration::ZERO;
        for _ in 0..self.settings.low_rank.coefficient_steps() {
            let mut augmented = params.clone();
            for (step, (id, _, _)) in steps.iter().zip(weights) {
                augmented.set(*id, Weight::LowRank(step.augmented_point()?));
            }
            gradients.reset();
            let started = Instant::now();
            oracle.evaluate(&augmented, &mut gradients)?;
            evaluation_time += started.elapsed();
            steps = map_all(
                placement,
                steps.into_iter().zip(weights).collect(),
                |(step, (id, parameter, _))| {
                    let gradient = self.coefficient_gradient(
                        &step,
                        &parameter.name,
                        gradients.get(ParamStore::slot(*id)),
                    )?;
                    step.advance(&gradient, &hyper).with_context(|| {
                        format!("a coefficient step of `{}` failed", parameter.name)
                    })
                },
            )?;
        }
        Ok((steps, evaluation_time))
    }

    /// The gradient by a weight's coefficients, from its K-gradient in the augmented bases.
    fn coefficient_gradient(
        &self,
        step: &GalerkinStep,
        name: &str,
        k_gradient: Option<&Tensor>,
    ) -> anyhow::Result<Tensor> {
        let Some(k_gradient) = k_gradient else {
            bail!("no gradient reached `{name}` in its augmented bases")
        };
        let gradient = step.gradient(k_gradient)?;
        if sums_of_squares(self.settings.execution.compute, &[&gradient])?
            .iter()
            .all(|sum| sum.is_finite())
        {
            return Ok(gradient);
        }
        let message = format!("the gradient of `{name}` in its augmented bases is not finite");
        Err(Failure::Diverged(message).into())
    }

    fn dlra_step(&self, first: FirstGradients, rank: RankDecision) -> DlraStep<'_> {
        let FirstGradients { step, gradient_scale, schedule_factor, .. } = first;
        let settings = &self.settings.low_rank;
        DlraStep {
            settings,
            learning_rate: settings.learning_rate * schedule_factor,
            step,
            gradient_scale,
            rank,
        }
    }

    fn state_and_gradient<'a>(
        &'a self,
        id: ParamId,
        parameter: &Parameter,
        first: FirstGradients<'a>,
    ) -> anyhow::Result<(&'a DlraState, &'a Tangent)> {
        match (&self.states[id.0], &first.trained.gradients[id.0]) {
            (State::Dlra(state), Gradient::Tangent(gradient)) => Ok((state, gradient)),
            _ => bail!("`{}` is low-rank but its optimizer state is not", parameter.name),
        }
    }
}

/// An update whose truncation is reported only where it decided a rank.
fn reported(mut update: DlraUpdate, rank: RankDecision) -> DlraUpdate {
    if rank == RankDecision::Keep {
        update.truncation = None;
    }
    update
}

/// Which matrix of a block a parameter is; none for others.
fn target_of(parameter: &Parameter) -> Option<Target> {
    match parameter.role {
        Role::Matrix(place) => Some(place.target),
        _ => None,
    }
}
