//! LORO for W = B A: Adam on the factors, and every K-th step an exact Riemannian step of their
//! product (Mo, Huang & Pan 2025, "Parameter and Memory Efficient Pretraining via Low-rank
//! Riemannian Optimization", ICLR 2025, Algorithm 1).
//!
//! As in the published code (github.com/mzf666/LORO-main), the gradients of Algorithm 1 are Adam's
//! directions of the factors; after an exact step all moments of Adam, those of embeddings and
//! norms too, start anew (`--loro_refresh all`), and the learning rate warms up again from 0
//! (scheduler `cosine_restart`). The listing of the paper's Algorithm 2 has R_B in place of R̄_B in
//! its SVD; Algorithm 1 and the code have R̄_B.

use crate::linalg::{divide_by_upper, multiply, qr};
use crate::lowrank::{Augmentation, LowRank, Tangent};
use crate::params::{ParamId, ParamStore};
use crate::spec::{AdamwSpec, LoroSpec};
use candle_core::{Result, Tensor};
use std::collections::BTreeMap;

/// Where a step lies between two exact ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoroCycle {
    /// Whether the step is exact; then all moments start anew after it.
    pub exact: bool,
    /// Steps since the moments started, this one included: Adam's t.
    pub moment_step: u64,
    /// Factor on every learning rate: k/w at the k-th step after an exact one, k counted from 0,
    /// and 1 from the w-th on.
    pub warmup: f64,
}

impl LoroCycle {
    /// At a step, counted from 1; the run's own warm-up is the schedule's.
    pub fn at(rule: &LoroSpec, step: u64) -> Self {
        let every = rule.exact_every.0.max(1);
        let (since, warmup_steps) = ((step - 1) % every, rule.restart_warmup_steps.0);
        let warmup = if step > every && since < warmup_steps {
            since as f64 / warmup_steps as f64
        } else {
            1.0
        };
        LoroCycle { exact: since + 1 == every, moment_step: since + 1, warmup }
    }
}

impl LoroSpec {
    /// Adam's settings on the factors of an m × n matrix of rank r between exact steps, whose
    /// learning rate is η r/d: `share` is r/d.
    pub fn between_exact_steps(&self, share: f64) -> AdamwSpec {
        let LoroSpec { learning_rate, beta1, beta2, epsilon, weight_decay, .. } = *self;
        AdamwSpec { learning_rate: learning_rate * share, beta1, beta2, epsilon, weight_decay }
    }
}

/// r/d of every factor of W = B A, with d = min(m, n): the model's width for all matrices of a GPT,
/// as in the published code.
pub fn rank_shares(params: &ParamStore) -> Result<BTreeMap<ParamId, f64>> {
    let mut shares = BTreeMap::new();
    for (b, a) in params.factor_pairs() {
        let ((rows, rank), (_, columns)) = (params.dense(b)?.dims2()?, params.dense(a)?.dims2()?);
        let share = rank as f64 / rows.min(columns) as f64;
        shares.extend([(b, share), (a, share)]);
    }
    Ok(shares)
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
            let LoroCycle { exact, moment_step, warmup } = LoroCycle::at(&rule, step);
            (exact, moment_step, warmup)
        };
        assert_eq!([1, 5, 6].map(at), [(false, 1, 1.0), (false, 5, 1.0), (true, 6, 1.0)]);
        assert_eq!(
            [7, 8, 9].map(at),
            [(false, 1, 0.0), (false, 2, 1.0 / 3.0), (false, 3, 2.0 / 3.0)]
        );
        assert_eq!([10, 12, 13].map(at), [(false, 4, 1.0), (true, 6, 1.0), (false, 1, 0.0)]);
    }
}
