//! Whether the values of a spec make sense and fit together.

use super::bounds;
use super::data_spec::{DataSpec, SourceSpec, TextSourceSpec, TokenizerSpec};
use super::model_spec::{FactorForm, ModelSpec, WeightsSpec};
use super::name::name_problem;
use super::optimizer_spec::{
    AdamwSpec, DenseOptimizerSpec, DlraSpec, GaloreSpec, Integrator, LoroSpec,
    LowRankOptimizerSpec, MatrixOptimizerSpec, Momentum, OptimizerSpec, RetractionSpec,
    SecondMomentTransport,
};
use super::plan::{Plan, WeightForm, warmup_steps};
use super::problem::Problem;
use super::rank_spec::RankSpec;
use super::run_spec::{DeviceSpec, KernelsSpec, LinalgSpec, RunSpec, SampleSpec, ScheduleSpec};
use super::validate_rank::check_rank;

/// Everything that is wrong with a spec whose types are right; `plan` is what was derived from it.
pub(crate) fn problems(spec: &RunSpec, plan: &Plan) -> Vec<Problem> {
    let mut found = Findings(Vec::new());
    check_name(&mut found, &spec.name);
    check_model(&mut found, &spec.model);
    check_weights(&mut found, spec, plan);
    check_data(&mut found, &spec.data);
    check_train(&mut found, spec);
    check_optimizer(&mut found, &spec.optimizer, &spec.model.weights, plan);
    check_rank(&mut found, spec, plan);
    check_schedule(&mut found, spec);
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

fn check_name(found: &mut Findings, name: &str) {
    if let Some(message) = name_problem(name) {
        found.require(false, "name", || message);
    }
}

fn check_model(found: &mut Findings, model: &ModelSpec) {
    let sizes = [
        ("n_layer", model.n_layer, bounds::MAX_LAYERS),
        ("n_head", model.n_head, bounds::MAX_WIDTH),
        ("n_embd", model.n_embd, bounds::MAX_WIDTH),
        ("block_size", model.block_size, bounds::MAX_BLOCK_SIZE),
    ];
    for (key, size, most) in sizes {
        found.require_size(size as u64, most, &format!("model.{key}"));
    }
    if !found.has("model.n_head") && !found.has("model.n_embd") {
        found.require(model.n_embd.is_multiple_of(model.n_head), "model.n_head", || {
            format!(
                "{} does not divide `model.n_embd` {}; choose {}",
                model.n_head,
                model.n_embd,
                nearest_divisors(model.n_embd, model.n_head)
            )
        });
    }
    found.require_number(
        model.dropout,
        (0.0..1.0).contains(&model.dropout),
        "of at least 0 and less than 1",
        "model.dropout",
    );
}

/// The divisors of `number` next to `wish`, in words.
fn nearest_divisors(number: usize, wish: usize) -> String {
    let divides = |divisor: &usize| number.is_multiple_of(*divisor);
    let below = (1..wish.min(number)).rev().find(divides);
    let above = (wish..=number).find(divides);
    let names: Vec<String> =
        below.into_iter().chain(above).map(|divisor| divisor.to_string()).collect();
    names.join(" or ")
}

fn check_weights(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    let (kind, targets) = match &spec.model.weights {
        WeightsSpec::Dense => return,
        WeightsSpec::LowRank(low_rank) => ("low_rank", &low_rank.targets),
        WeightsSpec::Factored(factored) => ("factored", &factored.targets),
    };
    let everything_dense = plan.model.weights.values().all(|form| *form == WeightForm::Dense);
    found.require(!everything_dense, &format!("model.weights.{kind}.targets"), || {
        "every target is dense; write `weights: dense`".into()
    });
    let mut default_rank_refused = false;
    for (target, form) in &plan.model.weights {
        let Some(rank) = form.rank() else { continue };
        let is_exception = targets.contains_key(target);
        let (rows, columns) = plan.model.shape(*target);
        let limit = rows.min(columns);
        if (1..=limit).contains(&rank) || limit == 0 || (!is_exception && default_rank_refused) {
            continue;
        }
        default_rank_refused |= !is_exception;
        let path = if is_exception {
            format!("model.weights.{kind}.targets.{}", target.name())
        } else {
            format!("model.weights.{kind}.rank")
        };
        let name = target.name();
        found.require(false, &path, || {
            format!("rank {rank} is not possible for `{name}`, {rows} × {columns}; choose 1 to {limit}, or `dense`")
        });
    }
}

fn check_data(found: &mut Findings, data: &DataSpec) {
    match &data.source {
        SourceSpec::CargoRegistry => {}
        SourceSpec::Text(text) => check_text_source(found, text),
        SourceSpec::Jsonl(jsonl) => {
            let path = "data.source.jsonl";
            found.require(!jsonl.train.is_empty(), &format!("{path}.train"), || {
                "is empty; name at least one file or glob".into()
            });
            found.require(!jsonl.text_key.is_empty(), &format!("{path}.text_key"), || {
                "is empty; name the key that holds the text".into()
            });
            if let Some(val) = &jsonl.val {
                found.require(!val.is_empty(), &format!("{path}.val"), || {
                    "is empty; name at least one file or glob".into()
                });
                found.require(
                    jsonl.val_fraction.is_none(),
                    &format!("{path}.val_fraction"),
                    || "unused beside `val`; remove it".into(),
                );
            }
            check_fraction(found, jsonl.val_fraction, &format!("{path}.val_fraction"));
        }
        SourceSpec::Bin(bin) => check_tokenized_source(found, data, "bin", bin.vocab_size),
        SourceSpec::Tinystories(shards) => {
            check_tokenized_source(found, data, "tinystories", shards.vocab_size)
        }
    }
    if let TokenizerSpec::Bpe(bpe) = &data.tokenizer {
        let size = bpe.vocab_size;
        let most = bounds::MAX_VOCABULARY;
        found.require((257..=most).contains(&size.0), "data.tokenizer.bpe.vocab_size", || {
            format!("is {size}; set at least 257 (256 bytes and the end-of-text token) and at most {most}")
        });
    }
}

fn check_text_source(found: &mut Findings, text: &TextSourceSpec) {
    let path = "data.source.text";
    match (&text.train, &text.val, &text.path) {
        (Some(train), Some(val), None) => {
            for (key, files) in [("train", train), ("val", val)] {
                found.require(!files.is_empty(), &format!("{path}.{key}"), || "is empty; name at least one file or glob".into());
            }
            found.require(text.val_fraction.is_none(), &format!("{path}.val_fraction"), || "unused beside `val`; remove it".into());
        }
        (None, None, Some(file)) => {
            found.require(!file.is_empty(), &format!("{path}.path"), || "is empty; name a file or glob".into());
            check_fraction(found, text.val_fraction, &format!("{path}.val_fraction"));
        }
        _ => found.require(false, path, || {
            let keys = [("train", text.train.is_some()), ("val", text.val.is_some()), ("path", text.path.is_some())];
            let given: Vec<&str> = keys.iter().filter(|(_, is_given)| *is_given).map(|(key, _)| *key).collect();
            let given = if given.is_empty() { "neither".to_owned() } else { format!("`{}`", given.join("`, `")) };
            format!("has {given}; give either `train` and `val`, or `path` alone (with `val_fraction` if you like)")
        }),
    }
}

fn check_tokenized_source(
    found: &mut Findings,
    data: &DataSpec,
    kind: &str,
    vocab_size: Option<usize>,
) {
    let decodes = matches!(data.tokenizer, TokenizerSpec::File(_) | TokenizerSpec::Bytes);
    found.require(decodes, "data.tokenizer", || {
        format!("cannot be trained on a `{kind}` source, which is tokenized already; write `{{file: tokenizer.json}}` or `bytes`")
    });
    found.require(vocab_size != Some(0), &format!("data.source.{kind}.vocab_size"), || {
        "is 0; set the number of tokens or remove it to use the tokenizer's".into()
    });
    let most = bounds::MAX_VOCABULARY;
    let is_small = vocab_size.is_none_or(|size| size as u64 <= most);
    found.require(is_small, &format!("data.source.{kind}.vocab_size"), || {
        format!("is {}; set at most {most}", vocab_size.unwrap_or(0))
    });
}

fn check_fraction(found: &mut Findings, fraction: Option<f64>, path: &str) {
    let Some(fraction) = fraction else { return };
    found.require_number(
        fraction,
        fraction > 0.0 && fraction < 1.0,
        "greater than 0 and less than 1",
        path,
    );
}

fn check_train(found: &mut Findings, spec: &RunSpec) {
    let train = &spec.train;
    found.require_size(train.max_steps.0, bounds::MAX_STEPS, "train.max_steps");
    found.require_size(train.batch_size as u64, bounds::MAX_BATCH, "train.batch_size");
    found.require_size(
        train.gradient_accumulation_steps as u64,
        bounds::MAX_BATCH,
        "train.gradient_accumulation_steps",
    );
    found.require_positive(train.log_every.0, "train.log_every");
    found.require_number(
        train.grad_clip,
        train.grad_clip >= 0.0,
        "of at least 0 (0 turns clipping off)",
        "train.grad_clip",
    );
    let factors = [
        train.batch_size as u64,
        train.gradient_accumulation_steps as u64,
        spec.model.block_size as u64,
        train.max_steps.0,
    ];
    let total = factors.iter().try_fold(1u64, |product, factor| product.checked_mul(*factor));
    found.require(total.is_some(), "train.max_steps", || {
        "the run's tokens do not fit 64 bits; reduce the steps or the batch".into()
    });
}

fn check_optimizer(
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
            check_momentum(
                found,
                [muon.learning_rate, muon.beta1, muon.weight_decay],
                "optimizer.matrices.muon",
            );
        }
        Some(MatrixOptimizerSpec::Galore(galore)) => {
            check_galore(found, galore, plan, "optimizer.matrices.galore")
        }
    }
    match (&optimizer.low_rank, weights) {
        // Unused rather than wrong: see `unused_settings`.
        (None, _)
        | (Some(_), WeightsSpec::Dense)
        | (Some(LowRankOptimizerSpec::Dlra(_)), WeightsSpec::Factored(_)) => {}
        (Some(LowRankOptimizerSpec::Adamw(_)), WeightsSpec::LowRank(_)) => {
            let remedy = "needs `weights: {factored: ...}`; for low-rank weights write `{dlra: ...}` or remove it";
            found.require(false, "optimizer.low_rank.adamw", || remedy.into());
        }
        (Some(LowRankOptimizerSpec::HeavyBall(_)), WeightsSpec::LowRank(_)) => {
            let remedy = "needs `weights: {factored: ...}`; for low-rank weights write `{dlra: {momentum: heavy_ball}}`";
            found.require(false, "optimizer.low_rank.heavy_ball", || remedy.into());
        }
        (Some(LowRankOptimizerSpec::Loro(_)), WeightsSpec::LowRank(_)) => {
            let remedy = "needs `weights: {factored: ...}`; for low-rank weights write `{dlra: ...}` or remove it";
            found.require(false, "optimizer.low_rank.loro", || remedy.into());
        }
        (Some(LowRankOptimizerSpec::Loro(loro)), WeightsSpec::Factored(factored)) => {
            found.require(factored.form == FactorForm::Ba, "optimizer.low_rank.loro", || {
                "moves W = B A; write `weights: {factored: {form: ba, ...}}`, or another rule for these factors".into()
            });
            check_loro(found, loro, "optimizer.low_rank.loro");
        }
        (Some(LowRankOptimizerSpec::HeavyBall(rule)), WeightsSpec::Factored(_)) => {
            check_momentum(
                found,
                [rule.learning_rate, rule.beta1, rule.weight_decay],
                "optimizer.low_rank.heavy_ball",
            );
        }
        (Some(LowRankOptimizerSpec::Dlra(dlra)), WeightsSpec::LowRank(_)) => {
            check_dlra(found, dlra, "optimizer.low_rank.dlra")
        }
        (Some(LowRankOptimizerSpec::Adamw(adamw)), WeightsSpec::Factored(_)) => {
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

fn check_dlra(found: &mut Findings, dlra: &DlraSpec, path: &str) {
    check_moments(
        found,
        [dlra.learning_rate, dlra.beta1, dlra.beta2, dlra.epsilon, dlra.weight_decay],
        path,
    );
    let strength = dlra.spectral_regularization;
    found.require_number(
        strength,
        strength >= 0.0,
        "of at least 0 (0 turns it off)",
        &format!("{path}.spectral_regularization"),
    );
    found
        .require_positive(dlra.reorthonormalize_every.0, &format!("{path}.reorthonormalize_every"));
    found.require_positive(dlra.truncate_every.0, &format!("{path}.truncate_every"));
    if let Some(steps) = dlra.coefficient_steps {
        found.require_size(
            steps.0,
            bounds::MAX_COEFFICIENT_STEPS,
            &format!("{path}.coefficient_steps"),
        );
    }
    let has_no_moments =
        dlra.integrator == Integrator::AugmentedBug && dlra.momentum == Momentum::MatrixAdam;
    found.require(!has_no_moments, &format!("{path}.momentum"), || {
        "`matrix_adam` has gathered no second moments of the directions that `integrator: augmented_bug` steps along; choose `spectral`, `adam` \
         or `heavy_ball`, or the integrator `tangent` or `coefficient_cycle`"
            .into()
    });
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
fn check_moments(
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

/// Settings that the form of the weights or the length of the run leaves without effect, each with
/// what happens instead.
///
/// They are no errors, so that one spec serves a method and its baselines: `--set
/// model.weights=dense` is enough.
pub fn unused_settings(spec: &RunSpec) -> Vec<String> {
    let mut unused = Vec::new();
    match (&spec.optimizer.low_rank, &spec.model.weights) {
        (Some(_), WeightsSpec::Dense) => {
            unused.push("optimizer.low_rank: unused with `model.weights: dense`".into())
        }
        (Some(LowRankOptimizerSpec::Dlra(_)), WeightsSpec::Factored(_)) => {
            unused.push("optimizer.low_rank.dlra: unused with factored weights, which move by `optimizer.dense`'s rule".into());
        }
        _ => {}
    }
    if spec.kernels == KernelsSpec::Portable
        && matches!(spec.device, DeviceSpec::Cuda(_) | DeviceSpec::Metal)
    {
        unused.push("kernels: unused, only the CPU has kernels of its own".into());
    }
    let optimizer = Plan::derive(spec).optimizer;
    if spec.linalg != LinalgSpec::Auto && optimizer.dlra().is_none() && optimizer.muon().is_none() {
        unused.push("linalg: unused, nothing is low-rank or trained by Muon".into());
    }
    if spec.optimizer.matrices.is_some() && optimizer.matrices.is_none() {
        unused.push("optimizer.matrices: unused, no matrix of the blocks is dense".into());
    }
    if let (Some(LowRankOptimizerSpec::Dlra(dlra)), WeightsSpec::LowRank(_)) =
        (&spec.optimizer.low_rank, &spec.model.weights)
        && dlra.second_moment_transport == SecondMomentTransport::Linear
        && dlra.momentum != Momentum::Adam
    {
        let key = "optimizer.low_rank.dlra.second_moment_transport";
        unused
            .push(format!("{key}: unused, only `momentum: adam` has element-wise second moments"));
    }
    if let (Some(LowRankOptimizerSpec::Dlra(dlra)), WeightsSpec::LowRank(_)) =
        (&spec.optimizer.low_rank, &spec.model.weights)
    {
        unused_of_integrator(&mut unused, dlra, spec.train.max_steps.0);
    }
    let policy = match spec.rank {
        RankSpec::Fixed(_) => None,
        RankSpec::Tolerance(_) => Some("tolerance"),
        RankSpec::Budget(_) => Some("budget"),
    };
    if let (Some(policy), false) = (policy, matches!(spec.model.weights, WeightsSpec::LowRank(_))) {
        unused.push(format!(
            "rank.{policy}: unused, only `model.weights: {{low_rank: ...}}` have ranks that change"
        ));
    }
    let (warmup, steps) = (warmup_steps(&spec.schedule), spec.train.max_steps.0);
    if warmup > steps {
        unused.push(format!(
            "schedule: the warm-up of {warmup} steps is longer than the run of {steps}; it ends before the full learning rate"
        ));
    }
    unused
}

/// Settings that the integrator does not look at.
fn unused_of_integrator(unused: &mut Vec<String>, dlra: &DlraSpec, steps: u64) {
    let path = "optimizer.low_rank.dlra";
    if dlra.integrator == Integrator::Tangent && dlra.coefficient_steps.is_some() {
        unused.push(format!(
            "{path}.coefficient_steps: unused with `integrator: tangent`, whose one Galerkin step takes no gradient of its own"
        ));
    }
    if dlra.truncate_every.0 > 1 && dlra.integrator == Integrator::CoefficientCycle {
        unused.push(format!(
            "{path}.truncate_every: unused with `integrator: coefficient_cycle`, which truncates by SVD at the end of each cycle"
        ));
    } else if dlra.truncate_every.0 > 1 && dlra.retraction == RetractionSpec::Subspace {
        unused.push(format!("{path}.truncate_every: unused with `retraction: subspace`, which takes no SVD while ranks stay"));
    }
    if let Some(length) = dlra.cycle_length().filter(|length| *length > steps) {
        unused.push(format!(
            "{path}.coefficient_steps: a cycle of {length} steps is longer than the run of {steps}; it ends early, truncated"
        ));
    }
}

fn check_schedule(found: &mut Findings, spec: &RunSpec) {
    let (kind, final_ratio, decay_steps) = match &spec.schedule {
        ScheduleSpec::Constant(_) => ("constant", None, None),
        ScheduleSpec::Cosine(decay) => ("cosine", Some(decay.final_ratio), None),
        ScheduleSpec::Linear(decay) => ("linear", Some(decay.final_ratio), None),
        ScheduleSpec::WarmupStableDecay(stable) => {
            ("warmup_stable_decay", Some(stable.final_ratio), Some(stable.decay_steps.0))
        }
    };
    let (warmup, steps) = (warmup_steps(&spec.schedule), spec.train.max_steps.0);
    if let Some(ratio) = final_ratio {
        found.require_number(
            ratio,
            (0.0..=1.0).contains(&ratio),
            "from 0 to 1",
            &format!("schedule.{kind}.final_ratio"),
        );
    }
    if let Some(decay) = decay_steps {
        let room = steps.saturating_sub(warmup);
        found.require(
            (1..=room.max(1)).contains(&decay),
            &format!("schedule.{kind}.decay_steps"),
            || format!("is {decay}; set 1 to {room}, the steps after the warm-up"),
        );
    }
}

/// Tokens in the vocabulary where the spec itself tells.
fn given_vocabulary(data: &DataSpec) -> Option<u64> {
    let given = match &data.source {
        SourceSpec::Bin(bin) => bin.vocab_size,
        SourceSpec::Tinystories(shards) => shards.vocab_size,
        SourceSpec::CargoRegistry | SourceSpec::Text(_) | SourceSpec::Jsonl(_) => None,
    };
    match &data.tokenizer {
        _ if given.is_some() => given.map(|size| size as u64),
        TokenizerSpec::Bpe(bpe) => Some(bpe.vocab_size.0),
        _ => None,
    }
}

/// Sizes that are possible one by one and not together.
fn check_step(found: &mut Findings, spec: &RunSpec, plan: &Plan) {
    let model = &spec.model;
    let numbers = bounds::block_parameters(model.n_layer, model.n_embd);
    found.require(numbers <= bounds::MAX_PARAMETERS, "model.n_layer", || {
        format!(
            "{} blocks of width {} have {numbers} numbers where they are dense; set fewer or narrower ones, at most {} in all",
            model.n_layer,
            model.n_embd,
            bounds::MAX_PARAMETERS
        )
    });
    let vocabulary = given_vocabulary(&spec.data).unwrap_or(0);
    let operations = bounds::step_operations(plan, vocabulary);
    found.require(operations <= bounds::MAX_STEP_OPERATIONS, "train.batch_size", || {
        format!(
            "a step would take some {operations:.1e} operations, and at most {:.0e} are accepted; reduce the batch or the network",
            bounds::MAX_STEP_OPERATIONS
        )
    });
}

fn check_sample(found: &mut Findings, sample: &SampleSpec) {
    let (tokens, most) = (sample.tokens.0, bounds::MAX_SAMPLE);
    found.require(tokens <= most, "sample.tokens", || format!("is {tokens}; set at most {most}"));
    let temperature = sample.temperature;
    found.require_number(
        temperature,
        temperature >= 0.0,
        "of at least 0 (0 always takes the likeliest token)",
        "sample.temperature",
    );
    if let Some(top_p) = sample.top_p {
        found.require_number(
            top_p,
            top_p > 0.0 && top_p <= 1.0,
            "greater than 0 and at most 1",
            "sample.top_p",
        );
    }
    found.require(sample.top_k != Some(0), "sample.top_k", || {
        "is 0; set at least 1 or remove it".into()
    });
}
