//! Everything that is wrong with a spec whose types are right: each block finds its own faults, and
//! what concerns several blocks stands here.

use super::adapter_spec::check_adapter;
use super::bounds;
use super::cut_spec::check_cut;
use super::data_rules::{check_data, check_packing, given_vocabulary};
use super::init_spec::check_init;
use super::layer_rules::check_layers;
use super::model_spec::{check_model, check_weights};
use super::name::name_problem;
use super::optimizer_rules::check_optimizer;
use super::plan::Plan;
use super::problem::Problem;
use super::rank_rules::check_rank;
use super::run_spec::{RunSpec, check_sample, check_train};
use super::schedule_spec::check_schedule;
use super::start_rules::check_start;

/// Everything that is wrong with a spec whose types are right; `plan` is what was derived from it.
pub(crate) fn problems(spec: &RunSpec, plan: &Plan) -> Vec<Problem> {
    let mut found = Findings(Vec::new());
    if let Some(message) = name_problem(&spec.name) {
        found.require(false, "name", || message);
    }
    check_model(&mut found, &spec.model, &plan.model);
    check_weights(&mut found, spec, plan);
    check_layers(&mut found, spec, plan);
    check_adapter(&mut found, spec);
    check_init(&mut found, spec.init.as_ref());
    check_cut(&mut found, plan);
    check_data(&mut found, &spec.data);
    check_train(&mut found, spec);
    check_packing(&mut found, spec.train.packing, &spec.data.source);
    check_optimizer(&mut found, &spec.optimizer, &spec.model.weights, plan);
    check_rank(&mut found, spec, plan);
    check_start(&mut found, plan);
    check_schedule(&mut found, &spec.schedule, spec.train.max_steps.0);
    found.require(spec.eval.every.0 >= 1, "eval.every", || {
        "is 0; give the steps between two validations, at least 1".into()
    });
    found.require(spec.eval.tokens.0 >= spec.model.block_size as u64, "eval.tokens", || {
        format!(
            "is {}, less than one window of {} tokens; set it to at least `model.block_size`",
            spec.eval.tokens, spec.model.block_size
        )
    });
    found.require(spec.checkpoint.every.0 >= 1, "checkpoint.every", || {
        "is 0; give the steps between two checkpoints, at least 1".into()
    });
    found.require(spec.checkpoint.keep_last >= 1, "checkpoint.keep_last", || {
        "is 0; a run needs its newest checkpoint to resume, set at least 1".into()
    });
    check_sample(&mut found, &spec.sample);
    // Only where each size is good by itself: one mistake is told once.
    if found.0.is_empty() {
        check_step(&mut found, spec, plan);
    }
    found.0
}

/// Sizes that are possible one by one and not together.
fn check_step(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    let model = &spec.model;
    let numbers = plan.model.block_parameters();
    found.require(numbers <= bounds::MAX_PARAMETERS, "model.n_layer", || {
        format!(
            "{} blocks of width {} have {numbers} numbers where they are dense; set fewer or \
             narrower ones, at most {} in all",
            model.n_layer,
            model.n_embd,
            bounds::MAX_PARAMETERS
        )
    });
    let vocabulary = given_vocabulary(&spec.data).unwrap_or(bounds::USUAL_VOCABULARY);
    let operations = bounds::step_operations(plan, vocabulary);
    found.require(operations <= bounds::MAX_STEP_OPERATIONS, "train.batch_size", || {
        format!(
            "a step would take some {operations:.1e} operations, and at most {:.0e} are accepted; \
             reduce the batch or the network",
            bounds::MAX_STEP_OPERATIONS
        )
    });
}

/// The problems found so far.
pub(super) struct Findings(Vec<Problem>);

impl Findings {
    pub(super) fn require(&mut self, holds: bool, path: &str, message: impl FnOnce() -> String) {
        if !holds {
            self.0.push(Problem::at(path, message()));
        }
    }

    pub(super) fn require_positive(&mut self, value: u64, path: &str) {
        self.require(value >= 1, path, || "is 0; set at least 1".into());
    }

    /// `size` is at least 1 and at most this.
    pub(super) fn require_size(&mut self, size: u64, most: u64, path: &str) {
        if let Some(message) = bounds::size_problem(size, most) {
            self.0.push(Problem::at(path, message));
        }
    }

    /// Whether something is wrong at this place already.
    pub(super) fn has(&self, path: &str) -> bool {
        self.0.iter().any(|problem| problem.path.to_string() == path)
    }

    /// `value` lies where `within` says, which also refuses NaN.
    pub(super) fn require_number(&mut self, value: f64, within: bool, range: &str, path: &str) {
        self.require(within && value.is_finite(), path, || {
            format!("is {value}; set a number {range}")
        });
    }
}
