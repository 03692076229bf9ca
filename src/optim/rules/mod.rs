//! The rules, one in a file, and which parameter belongs to which.
//!
//! To add one: a file here that implements [`Rule`](super::rule::Rule), and its line in [`groups`].

mod adamw;
mod beta1;
mod dlra;
mod galore;
mod heavy_ball;
mod loro;
mod muon;

pub use adamw::{AdamwState, AdamwStep};
pub use dlra::{
    DlraState, DlraStep, DlraUpdate, GalerkinStep, augmented_rank, augmented_values, carried_flops,
    carried_values, cut_flops,
};
pub use galore::GaloreState;
pub use heavy_ball::HeavyBallState;
pub use loro::{MomentClock, exact_step as loro_exact_step};
pub use muon::MuonState;

use super::optimizer::OptimizerSettings;
use super::rule::{Group, group};
use crate::params::{ParamId, ParamStore, Role, Weight};
use crate::spec::{DenseOptimizerSpec, LowRankOptimizerSpec, MatrixOptimizerSpec};
use anyhow::Context;

/// Scale of a polar direction, so that learning rates match Adam's: 0.2 √max(m, n) (Liu et al.
/// 2025, arXiv:2502.16982, eq. 4).
const SPECTRAL_SCALE: f64 = 0.2;

/// What a mean with decay β has gathered after t steps, 1 − βᵗ: the divisor of Adam's bias
/// correction. From 2³¹ steps on, where βᵗ has long vanished, t counts as 2³¹ − 1.
fn gathered(beta: f64, steps: u64) -> f64 {
    1.0 - beta.powi(i32::try_from(steps).unwrap_or(i32::MAX))
}

/// The groups of these parameters, decided once: by form and role, from the settings. A frozen
/// parameter belongs to none: it has no state and does not move.
///
/// # Errors
/// If there are low-rank weights and no rule for them, or the device has no memory for a state.
pub(super) fn groups(
    settings: &OptimizerSettings,
    params: &ParamStore,
) -> anyhow::Result<Vec<Box<dyn Group>>> {
    let (mut points, mut matrices, mut factors, mut dense) = (vec![], vec![], vec![], vec![]);
    for (id, parameter) in params.iter().filter(|(_, parameter)| parameter.trained) {
        match (&parameter.weight, parameter.role) {
            (Weight::LowRank(_) | Weight::Uncut(_), _) => points.push(id),
            (Weight::Dense(_), Role::Matrix(_)) => matrices.push(id),
            (Weight::Dense(_), Role::Factor(..)) => factors.push(id),
            (Weight::Dense(_), _) => dense.push(id),
        }
    }
    let mut groups: Vec<Box<dyn Group>> = Vec::new();
    if !points.is_empty() {
        let dlra =
            settings.rules.dlra().context("low-rank weights move by optimizer.low_rank.dlra")?;
        groups.push(group(dlra::DlraRule::new(dlra.clone(), settings), points, params)?);
    }
    match &settings.rules.matrices {
        None => dense.extend(matrices),
        Some(_) if matrices.is_empty() => {}
        Some(MatrixOptimizerSpec::Muon(spec)) => {
            groups.push(group(muon::MuonRule(spec.clone()), matrices, params)?);
        }
        Some(MatrixOptimizerSpec::Galore(spec)) => {
            groups.push(group(galore::GaloreRule(spec.clone()), matrices, params)?);
        }
    }
    let DenseOptimizerSpec::Adamw(everything_dense) = &settings.rules.dense;
    match &settings.rules.low_rank {
        _ if factors.is_empty() => {}
        None | Some(LowRankOptimizerSpec::Dlra(_)) => {
            groups.push(group(adamw::AdamwRule(everything_dense.clone()), factors, params)?);
        }
        Some(LowRankOptimizerSpec::Adamw(spec)) => {
            groups.push(group(adamw::AdamwRule(spec.clone()), factors, params)?);
        }
        Some(LowRankOptimizerSpec::HeavyBall(spec)) => {
            groups.push(group(heavy_ball::HeavyBallRule(spec.clone()), factors, params)?);
        }
        Some(LowRankOptimizerSpec::Loro(spec)) => {
            let is_trained = |id: &ParamId| params.get(*id).trained;
            let pairs: Vec<_> = params.factor_pairs();
            let pairs: Vec<_> =
                pairs.into_iter().filter(|(b, a)| is_trained(b) && is_trained(a)).collect();
            let is_paired = |id: &ParamId| pairs.iter().any(|(b, a)| b == id || a == id);
            dense.extend(factors.into_iter().filter(|id| !is_paired(id)));
            let rule = loro::LoroRule::new(spec.clone(), &pairs, params)?;
            let members = pairs.into_iter().flat_map(|(b, a)| [b, a]).collect();
            groups.push(group(rule, members, params)?);
        }
    }
    groups.push(group(adamw::AdamwRule(everything_dense.clone()), dense, params)?);
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::gathered;

    #[test]
    fn a_mean_gathers_more_with_every_step_and_never_overflows() {
        assert_eq!(gathered(0.9, 1), 1.0 - 0.9f64);
        assert_eq!(gathered(0.5, 3), 0.875);
        // Wrapped to 32 bits these would be a power of −2³¹, 0 and 1.
        for steps in [1 << 31, 1 << 32, (1 << 32) + 1] {
            assert_eq!(gathered(0.9, steps), 1.0, "after {steps} steps");
        }
    }
}
