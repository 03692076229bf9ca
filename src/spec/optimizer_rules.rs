//! Whether the values of `optimizer:` make sense and fit the weights they are for.

use super::beta1_spec::check_beta1_schedule;
use super::dlra_spec::{check_dlra, check_input_damping};
use super::findings::Findings;
use super::model_spec::{FactorForm, TrainedForm, WeightsSpec};
use super::optimizer_spec::{
    AdamwSpec, DenseOptimizerSpec, GaloreSpec, LoroSpec, LowRankOptimizerSpec, MatrixOptimizerSpec,
    MuonSpec, OptimizerSpec,
};
use super::plan::{Plan, WeightForm};

pub(super) fn check_optimizer(
    found: &mut Findings,
    optimizer: &OptimizerSpec,
    weights: &WeightsSpec,
    plan: &Plan,
) {
    let DenseOptimizerSpec::Adamw(adamw) = &optimizer.dense;
    check_adamw(found, adamw, "optimizer.dense.adamw");
    match &optimizer.matrices {
        None => {}
        Some(MatrixOptimizerSpec::Muon(muon)) => {
            let path = "optimizer.matrices.muon";
            let MuonSpec { learning_rate, beta1, beta2, weight_decay, .. } = *muon;
            check_moments(found, [learning_rate, beta1, beta2, 1.0, weight_decay], path);
            check_beta1_schedule(found, muon.beta1_schedule.as_ref(), path);
            if let Some(damping) = muon.input_damping {
                check_input_damping(found, damping, path);
            }
        }
        Some(MatrixOptimizerSpec::Galore(galore)) => {
            check_galore(found, galore, plan, "optimizer.matrices.galore")
        }
    }
    match (&optimizer.low_rank, weights.trained_form()) {
        // Unused rather than wrong: see `unused_settings`.
        (None, _)
        | (Some(_), TrainedForm::Dense)
        | (Some(LowRankOptimizerSpec::Dlra(_)), TrainedForm::Factored(_)) => {}
        (Some(LowRankOptimizerSpec::Adamw(_)), TrainedForm::LowRank) => {
            let remedy = "needs `weights: {factored: ...}`; for low-rank weights write `{dlra: ...}` or remove it";
            found.require(false, "optimizer.low_rank.adamw", || remedy.into());
        }
        (Some(LowRankOptimizerSpec::HeavyBall(_)), TrainedForm::LowRank) => {
            let remedy = "needs `weights: {factored: ...}`; for low-rank weights write `{dlra: {momentum: heavy_ball}}`";
            found.require(false, "optimizer.low_rank.heavy_ball", || remedy.into());
        }
        (Some(LowRankOptimizerSpec::Loro(_)), TrainedForm::LowRank) => {
            let remedy = "needs `weights: {factored: ...}`; for low-rank weights write `{dlra: ...}` or remove it";
            found.require(false, "optimizer.low_rank.loro", || remedy.into());
        }
        (Some(LowRankOptimizerSpec::Loro(loro)), TrainedForm::Factored(form)) => {
            found.require(form == FactorForm::Ba, "optimizer.low_rank.loro", || {
                "moves W = B A; write `weights: {factored: {form: ba, ...}}`, or another rule for these factors".into()
            });
            let is_adapter = matches!(weights, WeightsSpec::Adapter(_));
            found.require(!is_adapter, "optimizer.low_rank.loro", || {
                "divides by factors, and those of an adapter start at zero; write `{adamw: ...}` \
                 or remove it"
                    .into()
            });
            check_loro(found, loro, "optimizer.low_rank.loro");
        }
        (Some(LowRankOptimizerSpec::HeavyBall(rule)), TrainedForm::Factored(_)) => {
            check_momentum(
                found,
                [rule.learning_rate, rule.beta1, rule.weight_decay],
                "optimizer.low_rank.heavy_ball",
            );
        }
        (Some(LowRankOptimizerSpec::Dlra(dlra)), TrainedForm::LowRank) => {
            check_dlra(found, dlra, "optimizer.low_rank.dlra")
        }
        (Some(LowRankOptimizerSpec::Adamw(adamw)), TrainedForm::Factored(_)) => {
            check_adamw(found, adamw, "optimizer.low_rank.adamw")
        }
    }
}

fn check_adamw(found: &mut Findings, adamw: &AdamwSpec, path: &str) {
    check_moments(
        found,
        [adamw.learning_rate, adamw.beta1, adamw.beta2, adamw.epsilon, adamw.weight_decay],
        path,
    );
}

fn check_loro(found: &mut Findings, loro: &LoroSpec, path: &str) {
    check_moments(
        found,
        [loro.learning_rate, loro.beta1, loro.beta2, loro.epsilon, loro.weight_decay],
        path,
    );
    found.require_positive(loro.exact_every.0, &format!("{path}.exact_every"));
    let (warmup, every) = (loro.restart_warmup_steps.0, loro.exact_every.0);
    found.require(warmup < every.max(1), &format!("{path}.restart_warmup_steps"), || {
        format!("is {warmup}; set less than `exact_every` {every}, so that the full learning rate is reached")
    });
}

fn check_galore(found: &mut Findings, galore: &GaloreSpec, plan: &Plan, path: &str) {
    check_moments(
        found,
        [galore.learning_rate, galore.beta1, galore.beta2, galore.epsilon, galore.weight_decay],
        path,
    );
    found.require_positive(galore.refresh_every.0, &format!("{path}.refresh_every"));
    found.require_number(
        galore.scale,
        galore.scale > 0.0,
        "greater than 0, such as 0.25",
        &format!("{path}.scale"),
    );
    let full = plan.model.weights.iter().filter(|(_, form)| **form == WeightForm::Dense);
    let smallest = full
        .map(|(target, _)| (plan.model.shape(*target), target))
        .min_by_key(|((rows, columns), _)| *rows.min(columns));
    if let Some(((rows, columns), target)) = smallest {
        let limit = rows.min(columns);
        found.require((1..=limit).contains(&galore.rank), &format!("{path}.rank"), || {
            format!(
                "is {}; set 1 to {limit}, since `{}` is {rows} × {columns}",
                galore.rank,
                target.name()
            )
        });
    }
}

/// What every rule with a first moment and decoupled weight decay needs.
fn check_momentum(
    found: &mut Findings,
    [learning_rate, beta1, weight_decay]: [f64; 3],
    path: &str,
) {
    check_moments(found, [learning_rate, beta1, 0.0, 1.0, weight_decay], path);
}

/// What every rule with moments and decoupled weight decay needs.
pub(super) fn check_moments(
    found: &mut Findings,
    [learning_rate, beta1, beta2, epsilon, weight_decay]: [f64; 5],
    path: &str,
) {
    found.require_number(
        learning_rate,
        learning_rate > 0.0,
        "greater than 0",
        &format!("{path}.learning_rate"),
    );
    for (key, beta) in [("beta1", beta1), ("beta2", beta2)] {
        found.require_number(
            beta,
            (0.0..1.0).contains(&beta),
            "of at least 0 and less than 1",
            &format!("{path}.{key}"),
        );
    }
    found.require_number(
        epsilon,
        epsilon > 0.0,
        "greater than 0, such as 1e-8",
        &format!("{path}.epsilon"),
    );
    let decays = weight_decay >= 0.0
        && (learning_rate * weight_decay < 1.0
            || learning_rate <= 0.0
            || !learning_rate.is_finite());
    let range = "of at least 0 whose product with the learning rate is less than 1";
    found.require_number(weight_decay, decays, range, &format!("{path}.weight_decay"));
}
