//! Whether the rank policy of a spec makes sense for its weights and its length.

use super::architecture::Target;
use super::bounds;
use super::cut_spec::check_share;
use super::findings::Findings;
use super::plan::Plan;
use super::rank_plan::{BudgetPlan, RankCount, RankCyclePlan, RankPlan, TolerancePlan};
use super::rank_spec::{BudgetSpec, RankSpec, ToleranceSpec};
use super::run_spec::RunSpec;
use std::collections::BTreeMap;

/// What is wrong with `rank:`; `plan` is what was derived from it.
pub(super) fn check_rank(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    match (&spec.rank, &plan.rank) {
        (RankSpec::Tolerance(tolerance), RankPlan::Tolerance(resolved)) => {
            let path = "rank.tolerance";
            found.require_size(
                resolved.cycle.grow_by as u64,
                bounds::MAX_WIDTH,
                &format!("{path}.grow_by"),
            );
            check_cycle(
                found,
                &resolved.cycle,
                path,
                "grow_every",
                [tolerance.start.is_some(), tolerance.freeze.is_some()],
            );
            check_tau(found, tolerance, resolved);
            check_moments(
                found,
                resolved.batches,
                (resolved.moment_decay, resolved.moment_every),
                path,
            );
            let exceptions = tolerance
                .targets
                .iter()
                .map(|(target, own)| (*target, [own.min_rank.is_some(), own.max_rank.is_some()]));
            let bounds = |target: &Target| {
                resolved.targets.get(target).map(|target| [target.min_rank, target.max_rank])
            };
            check_rank_bounds(found, path, exceptions.collect(), &bounds, plan);
        }
        (RankSpec::Budget(budget), RankPlan::Budget(resolved)) => {
            let path = "rank.budget";
            let (grow_by, most) = (resolved.cycle.grow_by as u64, bounds::MAX_WIDTH);
            found.require(grow_by <= most, &format!("{path}.grow_by"), || {
                format!("is {grow_by}; set at most {most}")
            });
            check_cycle(
                found,
                &resolved.cycle,
                path,
                "every",
                [budget.start.is_some(), budget.freeze.is_some()],
            );
            let exceptions = budget
                .targets
                .iter()
                .map(|(target, own)| (*target, [own.min_rank.is_some(), own.max_rank.is_some()]));
            let bounds = |target: &Target| {
                resolved.targets.get(target).map(|target| [target.min_rank, target.max_rank])
            };
            check_rank_bounds(found, path, exceptions.collect(), &bounds, plan);
            check_final(found, budget, resolved, plan);
            check_moments(
                found,
                resolved.batches,
                (resolved.moment_decay, resolved.moment_every),
                path,
            );
        }
        _ => {}
    }
}

/// What the Fisher norm goes by: batches, and what is carried.
fn check_moments(
    found: &mut Findings,
    batches: usize,
    (decay, every): (f64, Option<u64>),
    path: &str,
) {
    found.require_size(batches as u64, bounds::MAX_BATCH, &format!("{path}.batches"));
    found.require_number(
        decay,
        (0.0..1.0).contains(&decay),
        "of at least 0 and less than 1 (0: nothing is carried)",
        &format!("{path}.moment_decay"),
    );
    let Some(every) = every else { return };
    let at = format!("{path}.moment_every");
    found.require_positive(every, &at);
    found.require(decay != 0.0, &at, || {
        "carries nothing without `moment_decay`; set that, for instance to 0.9, or remove this"
            .into()
    });
}

/// The budget at the end is given once, is no larger than the one at the start, and has room for
/// the smallest ranks.
fn check_final(found: &mut Findings, budget: &BudgetSpec, resolved: &BudgetPlan, plan: &Plan) {
    let path = "rank.budget";
    let grows = resolved.cycle.grow_by > 0;
    let falls = resolved.final_parameters <= resolved.initial_parameters || grows;
    let (is_within, end, raise) = match (budget.final_rank, budget.final_share) {
        (Some(rank), None) => {
            let is_within = rank >= 1 && falls;
            found.require(is_within, &format!("{path}.final_rank"), || {
                format!(
                    "is {rank}; set at least 1, and no more than the starting ranks unless \
                     `grow_by` lets them grow"
                )
            });
            (is_within, format!("rank {rank} everywhere"), "final_rank")
        }
        (None, Some(share)) => {
            let at = format!("{path}.final_share");
            check_share(found, plan, share, &at);
            let is_within = !found.has(&at);
            found.require(!is_within || falls, &at, || {
                format!(
                    "is {share}, {} numbers, and the starting ranks have {}; set less, or let \
                     ranks grow by `grow_by`",
                    resolved.final_parameters, resolved.initial_parameters
                )
            });
            (is_within && falls, format!("the share {share}"), "final_share")
        }
        _ => {
            found.require(false, path, || {
                "needs one of `final_rank` and `final_share`, the budget at the end".into()
            });
            return;
        }
    };
    let smallest = resolved.targets.iter().map(|(target, own)| (*target, own.min_rank));
    let count = RankCount::of_budget(budget.final_share);
    let least = count.of_all(&plan.model, smallest);
    let most = resolved.final_parameters;
    found.require(!is_within || least <= most, &format!("{path}.min_rank"), || {
        format!(
            "the smallest ranks store {least} numbers, more than the {most} of {end}; lower \
             `min_rank` or raise `{raise}`"
        )
    });
}

/// The rhythm of rank changes; `every` is what the spec calls it.
fn check_cycle(
    found: &mut Findings,
    cycle: &RankCyclePlan,
    path: &str,
    every: &str,
    [start_is_given, freeze_is_given]: [bool; 2],
) {
    found.require_positive(cycle.every, &format!("{path}.{every}"));
    // New directions need a step of their own; a cycle without growth may cut at every step.
    let least = u64::from(cycle.grow_by > 0);
    found.require(
        (least..cycle.every.max(least + 1)).contains(&cycle.settle),
        &format!("{path}.settle"),
        || {
            format!(
                "is {}; set at least {least} and less than `{every}`, {}",
                cycle.settle, cycle.every
            )
        },
    );
    let bound = if freeze_is_given || !start_is_given { "freeze" } else { "start" };
    found.require(cycle.start < cycle.freeze, &format!("{path}.{bound}"), || {
        let (start, freeze) = (cycle.start, cycle.freeze);
        format!("ranks would change from step {start} (`start`, by default the warm-up's end) to {freeze} (`freeze`); set `start` below `freeze`")
    });
}

/// Every tolerance lies in (0, 1). A shared setting is refused once.
fn check_tau(found: &mut Findings, tolerance: &ToleranceSpec, resolved: &TolerancePlan) {
    for (target, bounds) in &resolved.targets {
        let own = tolerance.targets.get(target).copied().unwrap_or_default();
        for (key, is_own, tau) in [
            ("tau", own.tau.is_some(), bounds.tau),
            ("final_tau", own.final_tau.is_some(), bounds.final_tau),
        ] {
            let follows_tau = key == "final_tau" && !is_own && tolerance.final_tau.is_none();
            let at = exception_path("rank.tolerance", is_own, *target, key);
            if !follows_tau && !found.has(&at) {
                found.require_number(
                    tau,
                    tau > 0.0 && tau < 1.0,
                    "greater than 0 and less than 1",
                    &at,
                );
            }
        }
    }
}

fn exception_path(path: &str, is_own: bool, target: Target, key: &str) -> String {
    if is_own { format!("{path}.targets.{}.{key}", target.name()) } else { format!("{path}.{key}") }
}

/// Per target: 1 ≤ min_rank ≤ starting rank ≤ max_rank ≤ min(m, n). A shared setting is refused
/// once. `exceptions` says which of the two bounds a target sets itself.
fn check_rank_bounds(
    found: &mut Findings,
    path: &str,
    exceptions: BTreeMap<Target, [bool; 2]>,
    bounds: &dyn Fn(&Target) -> Option<[usize; 2]>,
    plan: &Plan,
) {
    for target in exceptions.keys().filter(|target| bounds(target).is_none()) {
        found.require(false, &format!("{path}.targets.{}", target.name()), || {
            let dense = || "unused: this target is dense; remove it".into();
            plan.model.objection(*target).unwrap_or_else(dense)
        });
    }
    for (target, form) in &plan.model.weights {
        let Some([min_rank, max_rank]) = bounds(target) else { continue };
        let rank = form.rank().unwrap_or(0);
        let (rows, columns) = plan.model.shape(*target);
        let ([own_min, own_max], name) =
            (exceptions.get(target).copied().unwrap_or_default(), target.name());
        let at = exception_path(path, own_min, *target, "min_rank");
        if !found.has(&at) {
            found.require((1..=rank.max(1)).contains(&min_rank), &at, || {
                format!("is {min_rank}, but `{name}` starts at rank {rank}; set 1 to {rank}")
            });
        }
        let at = exception_path(path, own_max, *target, "max_rank");
        let limit = rows.min(columns);
        if rank <= limit && !found.has(&at) {
            found.require((rank..=limit).contains(&max_rank), &at, || {
                format!("is {max_rank}, but `{name}`, {rows} × {columns}, starts at rank {rank}; set {rank} to {limit}")
            });
        }
    }
}
