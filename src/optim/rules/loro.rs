//! LORO for W = B A: Adam on the factors, and every K-th step an exact Riemannian step of their
//! product (Mo, Huang & Pan 2025, "Parameter and Memory Efficient Pretraining via Low-rank
//! Riemannian Optimization", ICLR 2025, Algorithm 1).
//!
//! As in the published code (github.com/mzf666/LORO-main), the gradients of Algorithm 1 are Adam's
//! directions of the factors; after an exact step all moments of Adam, those of embeddings and
//! norms too, start anew (`--loro_refresh all`), and the learning rate warms up again from 0
//! (scheduler `cosine_restart`). The listing of the paper's Algorithm 2 has R_B in place of R̄_B in
//! its SVD; Algorithm 1 and the code have R̄_B.

use super::adamw::{AdamwState, AdamwStep, check_shapes, step_in_place};
use super::dlra::augmentation_values;
use crate::linalg::{divide_by_upper, multiply, qr};
use crate::lowrank::{Augmentation, LowRank, Tangent, Truncation};
use crate::optim::cost::{MovedWeight, RuleCost};
use crate::optim::execution::map_all;
use crate::optim::optimizer::GradientOracle;
use crate::optim::rule::{Members, Rule, Step};
use crate::params::{ParamId, ParamStore, Weight};
use crate::spec::{AdamwSpec, CyclePhase, LoroSpec};
use anyhow::Context;
use candle_core::{Result, Tensor};
use std::time::Duration;

/// How old Adam's moments are. They start with the run, and under LORO anew after every exact step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MomentClock {
    /// Steps since the moments started, this one included: Adam's t.
    pub step: u64,
    /// Whether the step is an exact one of LORO, after which all moments start anew.
    pub restart: bool,
    /// Factor on every learning rate: k/w at the k-th step after a restart, k counted from 0, and 1
    /// from the w-th on.
    pub warmup: f64,
}

impl MomentClock {
    /// At a step, counted from 1, with LORO on factors or without; the run's own warm-up is the
    /// schedule's.
    pub fn at(loro: Option<&LoroSpec>, step: u64) -> Self {
        let Some(rule) = loro else {
            return MomentClock { step, restart: false, warmup: 1.0 };
        };
        let every = rule.exact_every.0.max(1);
        let (since, warmup_steps) = ((step - 1) % every, rule.restart_warmup_steps.0);
        let warmup = if step > every && since < warmup_steps {
            since as f64 / warmup_steps as f64
        } else {
            1.0
        };
        MomentClock { step: since + 1, restart: since + 1 == every, warmup }
    }
}

impl RuleCost for LoroSpec {
    /// Adam's two moments.
    fn kept(&self, weight: MovedWeight) -> u64 {
        2 * weight.values
    }

    /// New factors and moments at an exact step.
    fn proposed(&self, weight: MovedWeight) -> u64 {
        3 * weight.values
    }

    fn in_hand(&self, weight: MovedWeight) -> u64 {
        augmentation_values(weight.size)
    }

    /// Exact steps, spread over the steps between them. Of a pair of factors: two QRs, 4 (m + n)
    /// r²; two divisions, (m + n) r²; the coefficients, 2 n r² + 2 r³; two projections, 4 (m + n)
    /// r²; new directions, 16 (m + n) r²; the SVD, 21 (2r)³; new bases and factors, 6 (m + n) r².
    fn flops(&self, weights: &[MovedWeight], _: Option<CyclePhase>) -> u64 {
        let exact_step = |MovedWeight { size, .. }: &MovedWeight| {
            31 * size.sides() + 2 * size.columns * size.rank * size.rank + 170 * size.cube()
        };
        weights.iter().map(exact_step).sum::<u64>() / self.exact_every.0.max(1)
    }
}

/// LORO on the pairs of W = B A: among the members, B and A of one pair stand after those of the
/// other.
#[derive(Debug)]
pub struct LoroRule {
    spec: LoroSpec,
    /// r/d of every pair, with d = min(m, n): the model's width for all matrices of a GPT, as in
    /// the published code.
    shares: Vec<f64>,
}

impl LoroRule {
    /// The rule of these pairs (B, A).
    ///
    /// # Errors
    /// If a factor is low-rank.
    pub fn new(
        spec: LoroSpec,
        pairs: &[(ParamId, ParamId)],
        params: &ParamStore,
    ) -> anyhow::Result<Self> {
        let mut shares = Vec::with_capacity(pairs.len());
        for (b, a) in pairs {
            let ((rows, rank), (_, columns)) =
                (params.dense(*b)?.dims2()?, params.dense(*a)?.dims2()?);
            shares.push(rank as f64 / rows.min(columns) as f64);
        }
        Ok(Self { spec, shares })
    }

    /// Adam's settings on the factors of one pair between exact steps, whose learning rate is
    /// η r/d.
    fn between_exact_steps(&self, share: f64) -> AdamwSpec {
        let LoroSpec { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = self.spec;
        AdamwSpec { learning_rate: learning_rate * share, beta1, beta2, epsilon, weight_decay }
    }

    /// The exact step of every pair, after which the moments start anew.
    fn exact_steps(
        &self,
        members: &Members<AdamwState>,
        params: &ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<(Weight, AdamwState)>> {
        let LoroSpec { learning_rate, beta1, beta2, epsilon, .. } = self.spec;
        let learning_rate = learning_rate * step.schedule_factor;
        let hyper = AdamwStep {
            learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay: 0.0,
            step: step.moments.step,
            compute: step.execution.compute,
        };
        let Members { ids, states, .. } = members;
        let pairs = ids.chunks_exact(2).zip(states.chunks_exact(2)).collect();
        let next = map_all(step.execution.linalg, pairs, |(ids, states)| {
            let (b, a) = (params.dense(ids[0])?, params.dense(ids[1])?);
            let (direction_b, _) = states[0].direction(step.gradients.dense(ids[0])?, &hyper)?;
            let (direction_a, _) = states[1].direction(step.gradients.dense(ids[1])?, &hyper)?;
            let (b, a) =
                exact_step(b, a, &direction_b, &direction_a, learning_rate).with_context(|| {
                    format!("LORO's exact step of `{}` failed", params.get(ids[0]).name)
                })?;
            let fresh = [AdamwState::new(&b)?, AdamwState::new(&a)?];
            Ok([b, a].map(Weight::Dense).into_iter().zip(fresh))
        })?;
        Ok(next.into_iter().flatten().collect())
    }
}

impl Rule for LoroRule {
    type State = AdamwState;

    fn fresh(&self, params: &ParamStore, id: ParamId) -> anyhow::Result<AdamwState> {
        Ok(AdamwState::new(params.dense(id)?)?)
    }

    /// Between exact steps the step is taken in place when all rules commit.
    fn propose(
        &mut self,
        members: &mut Members<Self::State>,
        params: &ParamStore,
        _: &mut dyn GradientOracle,
        step: &Step,
    ) -> anyhow::Result<Duration> {
        check_shapes(&members.ids, params, step)?;
        members.proposed = if step.moments.restart {
            self.exact_steps(members, params, step)?
        } else {
            Vec::new()
        };
        Ok(Duration::ZERO)
    }

    fn commit(
        &mut self,
        members: &mut Members<Self::State>,
        params: &mut ParamStore,
        step: &Step,
    ) -> anyhow::Result<Vec<(ParamId, Truncation)>> {
        if step.moments.restart {
            members.commit(params);
            return Ok(Vec::new());
        }
        for (pair, &share) in self.shares.iter().enumerate() {
            let spec = self.between_exact_steps(share);
            let Members { ids, states, .. } = &mut *members;
            for index in [2 * pair, 2 * pair + 1] {
                step_in_place(ids[index], &mut states[index], &spec, params, step)?;
            }
        }
        Ok(Vec::new())
    }

    /// Both factors of a pair belong to one process.
    fn retain(&mut self, ids: &[ParamId], owns: &dyn Fn(ParamId) -> bool) {
        let shares = self.shares.iter().zip(ids.chunks_exact(2));
        self.shares = shares.filter(|(_, pair)| owns(pair[0])).map(|(share, _)| *share).collect();
    }
}

/// The exact step of W = B A (Algorithm 1, the branch t mod K = 0; equation 10): W − η P_W(G)
/// truncated to rank r, split into balanced factors.
///
/// B = Q_B R_B, Aᵀ = Q_A R_A; Z_B = D_B R_A⁻¹ stands for G Q_A and Z_A = D_Aᵀ R_B⁻¹ for Gᵀ Q_B,
/// where D_B: m × r and D_A: r × n are the factors' directions; then with Q̄_B R̄_B = qr((I − Q_B
/// Q_Bᵀ) Z_B), Q̄_A R̄_A = qr((I − Q_A Q_Aᵀ) Z_A)
///
/// U Σ Vᵀ = SVD_r [[R_B R_Aᵀ − η Z_Aᵀ Q_A, −η R̄_Aᵀ], [−η R̄_B, 0]],   B ← [Q_B | Q̄_B] U √Σ,   A ←
/// √Σ Vᵀ [Q_A | Q̄_A]ᵀ.
///
/// Where D_B = G Aᵀ and D_A = Bᵀ G are gradients it moves W along the tangent projection of G,
/// however B and A share W between them. It has no weight decay.
///
/// # Errors
/// If a factor does not have full rank, or the SVD does not converge.
pub fn exact_step(
    b: &Tensor,
    a: &Tensor,
    direction_b: &Tensor,
    direction_a: &Tensor,
    learning_rate: f64,
) -> Result<(Tensor, Tensor)> {
    let ((q_b, r_b), (q_a, r_a)) = (qr(b)?, qr(&a.t()?)?);
    let (z_b, z_a) =
        (divide_by_upper(direction_b, &r_a)?, divide_by_upper(&direction_a.t()?, &r_b)?);
    let point = LowRank::from_parts(q_b, multiply(&r_b, &r_a.t()?)?, q_a)?;
    let tangent =
        Tangent { m: multiply(&z_a.t()?, &point.v)?, p: z_b, q: z_a }.project_complement(&point)?;
    let augmentation = Augmentation::new(&point, &tangent)?;
    let coefficients =
        augmentation.coefficients(&point, augmentation.core(), learning_rate, 0.0)?;
    let LowRank { u, s, v } =
        augmentation.truncate(&point, &coefficients, &|_| point.rank())?.point;
    let root = s.sqrt()?;
    Ok((multiply(&u, &root)?, multiply(&root, &v.t()?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Count;

    #[test]
    fn cycles_of_exact_steps_and_warm_ups() {
        let rule = LoroSpec {
            exact_every: Count(6),
            restart_warmup_steps: Count(3),
            ..LoroSpec::default()
        };
        let at = |step| {
            let MomentClock { step, restart, warmup } = MomentClock::at(Some(&rule), step);
            (restart, step, warmup)
        };
        assert_eq!([1, 5, 6].map(at), [(false, 1, 1.0), (false, 5, 1.0), (true, 6, 1.0)]);
        assert_eq!(
            [7, 8, 9].map(at),
            [(false, 1, 0.0), (false, 2, 1.0 / 3.0), (false, 3, 2.0 / 3.0)]
        );
        assert_eq!([10, 12, 13].map(at), [(false, 4, 1.0), (true, 6, 1.0), (false, 1, 0.0)]);
    }
}
