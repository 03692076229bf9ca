//! GaLore for full matrices: Adam in a low-rank projection of the gradient (Zhao et al. 2024,
//! "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", ICML 2024,
//! arXiv:2403.03507, Algorithm 2).

use super::adamw::{AdamwState, AdamwStep};
use crate::linalg::{add_product, multiply, svd};
use crate::optim::cost::{MovedWeight, RuleCost};
use crate::optim::execution::map_all;
use crate::optim::gradient::Scaled;
use crate::optim::leaves::{LeafMap, Leaves};
use crate::optim::optimizer::GradientOracle;
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Weight};
use crate::spec::{CyclePhase, GaloreSpec};
use anyhow::Context;
use candle_core::{Result, Tensor};
use std::time::Duration;

impl RuleCost for GaloreSpec {
    /// Both moments of the projected gradient and the projector, (2 max(m, n) + min(m, n)) r.
    fn kept(&self, weight: MovedWeight) -> u64 {
        let (short, long) = weight.size.short_and_long();
        self.rank as u64 * (short + 2 * long)
    }

    /// The new weight, moments and projector.
    fn proposed(&self, weight: MovedWeight) -> u64 {
        weight.values + self.kept(weight)
    }

    /// The SVD of the gradient.
    fn in_hand(&self, weight: MovedWeight) -> u64 {
        weight.size.dense_svd_values()
    }

    /// The projection and its way back, 4 m n r, and the SVD, spread over the steps until the next.
    fn flops(&self, weights: &[MovedWeight], _: Option<CyclePhase>) -> u64 {
        let step = |MovedWeight { size, .. }: &MovedWeight| {
            let products = 4 * size.rows * size.columns * self.rank as u64;
            products + size.dense_svd_flops() / self.refresh_every.0.max(1)
        };
        weights.iter().map(step).sum()
    }
}

/// Projector and moments of one full matrix W: m × n at rank r.
#[derive(Clone, Debug)]
pub struct GaloreState {
    /// P with orthonormal columns, on the shorter side: min(m, n) × r.
    pub projector: Tensor,
    /// Adam's moments of the projected gradient: m × r where m ≥ n, else r × n.
    pub moments: AdamwState,
}

impl GaloreState {
    /// Zero moments for this matrix; the first step computes the projector.
    pub fn new(weight: &Tensor, rank: usize) -> Result<Self> {
        let (rows, columns) = weight.dims2()?;
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, weight.dtype(), weight.device());
        let (projector, projected) = if rows >= columns {
            (zeros((columns, rank))?, zeros((rows, rank))?)
        } else {
            (zeros((rows, rank))?, zeros((rank, columns))?)
        };
        Ok(Self { projector, moments: AdamwState::new(&projected)? })
    }

    /// Step t = `hyper.step`, counted from 1. Every T-th step from the first on, P is the first r
    /// right (m ≥ n) or left singular vectors of the gradient G.
    ///
    /// R = G P or PᵀG; N = Adam's m̂/(√v̂ + ε) of R, whose moments stay as they are when P changes;
    /// W ← (1 − ηλ) W − η α N Pᵀ or P N. The side is that of the published code
    /// (galore_torch/galore_projector.py, `proj_type` `std`); Algorithm 2 is written for m ≤ n with
    /// P on the left.
    ///
    /// Nothing is changed in place.
    ///
    /// # Errors
    /// If the SVD does not converge.
    pub fn step(
        &self,
        weight: &Tensor,
        gradient: Scaled<Tensor>,
        rule: &GaloreSpec,
        hyper: &AdamwStep,
    ) -> Result<(Tensor, Self)> {
        let (rows, columns) = weight.dims2()?;
        let on_the_right = rows >= columns;
        let projector = if (hyper.step - 1).is_multiple_of(rule.refresh_every.0.max(1)) {
            let factors = svd(gradient.sum())?;
            (if on_the_right { factors.v } else { factors.u })
                .narrow(1, 0, rule.rank)?
                .contiguous()?
        } else {
            self.projector.clone()
        };
        let projected = if on_the_right {
            multiply(gradient.sum(), &projector)?
        } else {
            multiply(&projector.t()?, gradient.sum())?
        };
        let (direction, moments) = self.moments.direction(gradient.with(&projected), hyper)?;
        let (keep, rate) =
            (1.0 - hyper.learning_rate * hyper.weight_decay, -hyper.learning_rate * rule.scale);
        let weight = if on_the_right {
            add_product(keep, weight, rate, &direction, &projector.t()?)?
        } else {
            add_product(keep, weight, rate, &projector, &direction)?
        };
        Ok((weight, Self { projector, moments }))
    }
}

impl Leaves for GaloreState {
    fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let projector = map.tensor("projector", &self.projector)?;
        Ok(Self { projector, moments: self.moments.map_leaves(map)? })
    }
}

/// GaLore on the blocks' full matrices.
#[derive(Debug)]
pub struct GaloreRule(pub GaloreSpec);

impl Rule for GaloreRule {
    type State = GaloreState;

    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<GaloreState> {
        Ok(GaloreState::new(params.dense(id)?, self.0.rank)?)
    }

    fn propose(
        &mut self,
        members: &mut Members<Self::State>,
        params: &ParamStore,
        _: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration> {
        let hyper = AdamwStep {
            learning_rate: self.0.learning_rate * step.schedule_factor,
            beta1: self.0.beta1,
            beta2: self.0.beta2,
            epsilon: self.0.epsilon,
            weight_decay: self.0.weight_decay,
            step: step.number,
            compute: step.execution.compute,
        };
        let all = members.iter().collect();
        members.proposed = map_all(step.execution.linalg, all, |(id, state)| {
            let gradient = step.gradients.dense(id)?;
            let next = state.step(params.dense(id)?, gradient, &self.0, &hyper);
            let (weight, state) = next
                .with_context(|| format!("the GaLore step of `{}` failed", params.get(id).name))?;
            Ok((Weight::Dense(weight), state))
        })?;
        Ok(Duration::ZERO)
    }
}
