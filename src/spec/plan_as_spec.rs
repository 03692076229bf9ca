//! A plan written as the spec that it follows from: what `lrpt spec show` prints, and how a plan
//! that was read is checked by the rules of specs.

use super::adapter_spec::AdapterWeightsSpec;
use super::architecture::Target;
use super::cut_spec::CutSpec;
use super::document::usage;
use super::findings::problems;
use super::model_plan::ModelPlan;
use super::model_spec::{
    FactoredWeightsSpec, LowRankWeightsSpec, ModelSpec, StartRank, TargetRank, WeightsSpec,
};
use super::optimizer_spec::OptimizerSpec;
use super::plan::{Plan, WeightForm};
use super::problem::Problem;
use super::rank_plan::{BudgetPlan, RankCount, RankPlan, TolerancePlan};
use super::rank_spec::{
    BudgetSpec, BudgetTargetSpec, FixedRankSpec, RankSpec, ToleranceSpec, ToleranceTargetSpec,
};
use super::run_spec::RunSpec;
use super::{Count, bounds};
use std::collections::BTreeMap;

impl Plan {
    /// The spec with every setting written out, from which exactly this plan follows.
    ///
    /// # Errors
    /// [`Failure::Usage`](crate::error::Failure::Usage) if no spec leads to this plan, naming the
    /// key: it was edited.
    pub fn as_spec(&self) -> anyhow::Result<RunSpec> {
        self.written().map_err(|problem| usage(problem.to_string()))
    }

    /// Checks a plan that was read as a spec is checked: every value possible, all of them fitting
    /// together, and every figure the one that follows from the others.
    ///
    /// # Errors
    /// [`Failure::Usage`](crate::error::Failure::Usage) with one line per problem: key path, what
    /// is wrong, the remedy.
    pub fn validate(&self) -> anyhow::Result<()> {
        let spec = self.as_spec()?;
        let derived = Plan::derive(&spec);
        let mut lines: Vec<String> =
            problems(&spec, &derived).iter().map(ToString::to_string).collect();
        if lines.is_empty() && derived != *self {
            let differences = self.trajectory_differences(&derived);
            lines = differences.iter().map(|line| format!("does not follow: {line}")).collect();
            let figures = [
                ("tokens_per_step", self.tokens_per_step, derived.tokens_per_step),
                ("total_tokens", self.total_tokens, derived.total_tokens),
            ];
            for (key, is, follows) in figures.into_iter().filter(|(_, is, follows)| is != follows) {
                lines.push(format!("{key}: is {is}, but {follows} follows from the settings"));
            }
        }
        if lines.is_empty() { Ok(()) } else { Err(usage(lines.join("\n"))) }
    }

    fn written(&self) -> Result<RunSpec, Problem> {
        let model = &self.model;
        Ok(RunSpec {
            name: self.name.clone(),
            seed: self.seed,
            device: self.device,
            linalg: self.linalg,
            kernels: self.kernels,
            dtype: self.dtype,
            model: ModelSpec {
                arch: model.arch,
                n_layer: model.n_layer,
                n_head: model.n_head,
                n_kv_head: model.n_kv_head,
                fused_qkv: model.fused_qkv,
                n_embd: model.n_embd,
                block_size: model.block_size,
                dropout: model.dropout,
                bias: model.bias,
                n_inner: model.n_inner,
                tie_word_embeddings: model.tie_word_embeddings,
                rope_theta: model.rope_theta,
                layer_norm_epsilon: model.layer_norm_epsilon,
                rms_norm_eps: model.rms_norm_eps,
                zero_outputs: model.zero_outputs,
                weights: weights(model, self.cut)?,
            },
            init: self.init.clone(),
            data: self.data.clone(),
            train: self.train.clone(),
            optimizer: OptimizerSpec {
                dense: self.optimizer.dense.clone(),
                matrices: self.optimizer.matrices.clone(),
                low_rank: self.optimizer.low_rank.clone(),
            },
            rank: match &self.rank {
                RankPlan::Fixed => RankSpec::Fixed(FixedRankSpec {}),
                RankPlan::Tolerance(plan) => RankSpec::Tolerance(tolerance(plan)?),
                RankPlan::Budget(plan) => RankSpec::Budget(budget(plan, model)?),
            },
            schedule: self.schedule.clone(),
            eval: self.eval,
            checkpoint: self.checkpoint,
            sample: self.sample.clone(),
        })
    }
}

/// One rank for all targets, the first one's, and exceptions.
fn weights(model: &ModelPlan, cut: Option<CutSpec>) -> Result<WeightsSpec, Problem> {
    if let Some(adapter) = AdapterWeightsSpec::of(model) {
        return Ok(WeightsSpec::Adapter(adapter));
    }
    let forms = &model.weights;
    let Some(first) = forms.values().find(|form| **form != WeightForm::Dense) else {
        return Ok(WeightsSpec::Dense);
    };
    let rank = first.rank().unwrap_or(0);
    let factors = |form: &WeightForm| match form {
        WeightForm::Factored { form, .. } => Some(*form),
        _ => None,
    };
    let alike = |form: &WeightForm| *form == WeightForm::Dense || factors(form) == factors(first);
    if let Some((target, _)) = forms.iter().find(|(_, form)| !alike(form)) {
        let path = format!("model.weights.{}", target.name());
        return Err(Problem::at(&path, "has another form than the low-rank targets before it"));
    }
    let exception = |(target, form): (&Target, &WeightForm)| match form.rank() {
        None => Some((*target, TargetRank::Dense)),
        Some(own) => (own != rank).then_some((*target, TargetRank::Rank(own))),
    };
    let targets: BTreeMap<Target, TargetRank> = forms.iter().filter_map(exception).collect();
    Ok(match factors(first) {
        None => WeightsSpec::LowRank(LowRankWeightsSpec {
            rank: StartRank::Rank(rank),
            cut,
            start: model.start,
            spectrum: model.spectrum,
            targets,
            layers: model.layers.clone(),
        }),
        Some(form) => WeightsSpec::Factored(FactoredWeightsSpec { rank, form, targets }),
    })
}

fn without_targets(policy: &str) -> Problem {
    Problem::at(&format!("rank.{policy}.targets"), "is empty; name the bounds of each target")
}

/// The first target's settings for all, and exceptions.
fn tolerance(plan: &TolerancePlan) -> Result<ToleranceSpec, Problem> {
    let first = *plan.targets.values().next().ok_or_else(|| without_targets("tolerance"))?;
    let differs = |own: f64, shared: f64| (own != shared).then_some(own);
    let exceptions = plan.targets.iter().map(|(target, own)| {
        let exception = ToleranceTargetSpec {
            tau: differs(own.tau, first.tau),
            final_tau: differs(own.final_tau, first.final_tau),
            min_rank: (own.min_rank != first.min_rank).then_some(own.min_rank),
            max_rank: (own.max_rank != first.max_rank).then_some(own.max_rank),
        };
        (*target, exception)
    });
    Ok(ToleranceSpec {
        tau: first.tau,
        norm: plan.norm,
        batches: plan.batches,
        moment_decay: plan.moment_decay,
        moment_every: plan.moment_every.map(Count),
        final_tau: Some(first.final_tau),
        tau_schedule: plan.tau_schedule,
        min_rank: first.min_rank,
        max_rank: Some(first.max_rank),
        grow_every: Count(plan.cycle.every),
        settle: Count(plan.cycle.settle),
        grow_by: plan.cycle.grow_by,
        start: Some(Count(plan.cycle.start)),
        freeze: Some(Count(plan.cycle.freeze)),
        targets: exceptions
            .filter(|(_, exception)| *exception != ToleranceTargetSpec::default())
            .collect(),
    })
}

/// The first target's bounds for all, and exceptions; the final rank is the one whose parameters
/// the plan has.
fn budget(plan: &BudgetPlan, model: &ModelPlan) -> Result<BudgetSpec, Problem> {
    let first = *plan.targets.values().next().ok_or_else(|| without_targets("budget"))?;
    let targets: Vec<Target> = plan.targets.keys().copied().collect();
    let of_rank =
        |rank: usize| RankCount::Stored.of_all(model, targets.iter().map(|target| (*target, rank)));
    let final_rank = || -> Result<usize, Problem> {
        // Parameters grow with the rank: the first rank that has as many.
        let (mut low, mut high) = (0, bounds::MAX_WIDTH as usize);
        while low < high {
            let middle = low + (high - low) / 2;
            if of_rank(middle) < plan.final_parameters { low = middle + 1 } else { high = middle }
        }
        if of_rank(low) != plan.final_parameters {
            let message = format!("is {}, which no rank everywhere stores", plan.final_parameters);
            return Err(Problem::at("rank.budget.final_parameters", message));
        }
        Ok(low)
    };
    let exceptions = plan.targets.iter().map(|(target, own)| {
        let exception = BudgetTargetSpec {
            min_rank: (own.min_rank != first.min_rank).then_some(own.min_rank),
            max_rank: (own.max_rank != first.max_rank).then_some(own.max_rank),
        };
        (*target, exception)
    });
    Ok(BudgetSpec {
        final_rank: match plan.final_share {
            Some(_) => None,
            None => Some(final_rank()?),
        },
        final_share: plan.final_share,
        norm: plan.norm,
        batches: plan.batches,
        moment_decay: plan.moment_decay,
        moment_every: plan.moment_every.map(Count),
        schedule: plan.schedule,
        min_rank: Some(first.min_rank),
        max_rank: Some(first.max_rank),
        every: Count(plan.cycle.every),
        settle: Some(Count(plan.cycle.settle)),
        grow_by: plan.cycle.grow_by,
        start: Some(Count(plan.cycle.start)),
        freeze: Some(Count(plan.cycle.freeze)),
        targets: exceptions
            .filter(|(_, exception)| *exception != BudgetTargetSpec::default())
            .collect(),
    })
}
