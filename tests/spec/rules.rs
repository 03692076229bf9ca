//! Settings of the rules that move weights.

use super::*;

#[test]
fn second_moments_that_cuts_carry() {
    let budget = |keys: &str| format!("rank: {{budget: {{final_rank: 8, {keys}}}}}\ntrain:");
    insta::assert_snapshot!(message("train:", &budget("moment_decay: 1")), @"run.yaml:9:46: rank.budget.moment_decay: is 1; set a number of at least 0 and less than 1 (0: nothing is carried)");
    insta::assert_snapshot!(message("train:", &budget("moment_every: 5")), @"run.yaml:9:46: rank.budget.moment_every: carries nothing without `moment_decay`; set that, for instance to 0.9, or remove this");
    insta::assert_snapshot!(message("train:", &budget("moment_decay: 0.9, moment_every: 0")), @"run.yaml:9:65: rank.budget.moment_every: is 0; set at least 1");
    let keys = "norm: frobenius, moment_decay: 0.9, moment_every: 5";
    let text = GOOD.replacen("train:", &budget(keys), 1);
    let (written, plan) = spec::parse_plan(&text, "run.yaml", &[]).expect("a good spec");
    insta::assert_snapshot!(spec::unused_settings(&written).join("\n"), @"rank.budget.moment_decay: unused, only cuts in the Fisher norm go by second moments");
    assert_eq!((plan.rank.moment_decay(), plan.rank.moment_every()), (None, None));
    let fisher = ["rank.budget.norm=fisher".to_owned()];
    let plan = spec::parse_plan(&text, "run.yaml", &fisher).expect("a good spec").1;
    assert_eq!((plan.rank.moment_decay(), plan.rank.moment_every()), (Some(0.9), Some(5)));
}

#[test]
fn a_beta1_that_changes() {
    let dlra = |keys: &str| {
        let keys = format!("beta1_schedule: {{{keys}}}");
        format!("optimizer: {{low_rank: {{dlra: {{{keys}}}}}}}\ntrain:")
    };
    insta::assert_snapshot!(message("train:", &dlra("from: 1, until: 0")), @r"
    run.yaml:9:54: optimizer.low_rank.dlra.beta1_schedule.from: is 1; set a number of at least 0 and less than 1
    run.yaml:9:64: optimizer.low_rank.dlra.beta1_schedule.until: is 0; set more than 0, the step of `start`
    ");
    insta::assert_snapshot!(message("train:", &dlra("from: 0.8, start: 30, until: 30")), @"run.yaml:9:77: optimizer.low_rank.dlra.beta1_schedule.until: is 30; set more than 30, the step of `start`");
    insta::assert_snapshot!(message("train:", &dlra("from: 0.8")), @"run.yaml:9:31: optimizer.low_rank.dlra.beta1_schedule: missing key `until`; add `until: ...` under `optimizer.low_rank.dlra.beta1_schedule`");
    let muon = "optimizer: {matrices: {muon: {beta1_schedule: {from: -0.5, until: 2k}}}}\n";
    let text = GOOD.replacen("{low_rank: {rank: 16}}", "dense", 1) + muon;
    insta::assert_snapshot!(message_of(&text, &[]), @"run.yaml:10:54: optimizer.matrices.muon.beta1_schedule.from: is -0.5; set a number of at least 0 and less than 1");
    let setting = ["optimizer.matrices.muon.beta1_schedule.from=0.85".to_owned()];
    let (written, plan) = spec::parse_plan(&text, "run.yaml", &setting).expect("a good spec");
    insta::assert_snapshot!(spec::unused_settings(&written).join("\n"), @"optimizer.matrices.muon.beta1: not reached; `beta1_schedule` comes to it at step 2000, and the run has 1000");
    let kept = plan.optimizer.muon().and_then(|muon| muon.beta1_schedule).expect("a schedule");
    assert_eq!((kept.from, kept.start, kept.until), (0.85, Count(0), Count(2000)));
}

#[test]
fn damping_and_what_it_is_for() {
    let dlra = |keys: &str| format!("optimizer: {{low_rank: {{dlra: {{{keys}}}}}}}\ntrain:");
    let whitened = "momentum: input_whitened_spectral";
    insta::assert_snapshot!(message("train:", &dlra(&format!("{whitened}, input_damping: 0"))), @"run.yaml:9:81: optimizer.low_rank.dlra.input_damping: is 0; set a number greater than 0, such as 0.2");
    insta::assert_snapshot!(message("train:", &dlra(&format!("{whitened}, integrator: augmented_bug"))), @"run.yaml:9:41: optimizer.low_rank.dlra.momentum: `input_whitened_spectral` has gathered no second moments of the directions that `integrator: augmented_bug` steps along; choose `spectral`, `adam` or `heavy_ball`, or the integrator `tangent` or `coefficient_cycle`");
    let dense_start = "rank: full, start: dense";
    let text = GOOD.replacen("rank: 16", dense_start, 1)
        + &format!(
            "rank: {{budget: {{final_rank: 8}}}}\noptimizer: {{low_rank: {{dlra: {{{whitened}}}}}}}\n"
        );
    let plan = spec::parse_plan(&text, "run.yaml", &[]).expect("a momentum with a dense form").1;
    assert_eq!(plan.optimizer.dlra().map(|dlra| dlra.momentum.measures_inputs()), Some(true));
    let whitened_by_gradients = ["optimizer.low_rank.dlra.momentum=whitened_spectral"];
    insta::assert_snapshot!(message_of(&text, &whitened_by_gradients), @"run.yaml:7:43: model.weights.low_rank.start: needs `momentum: spectral`, `input_whitened_spectral`, `adam` or `heavy_ball`; second moments of r × r of gradients have no counterpart where a matrix is dense");
    let unused = |keys: &str| {
        let text = GOOD.replacen("train:", &dlra(keys), 1);
        let (written, _) = spec::parse_plan(&text, "run.yaml", &[]).expect("a good spec");
        spec::unused_settings(&written).join("\n")
    };
    assert_eq!(unused(&format!("{whitened}, input_damping: 0.5")), "");
    insta::assert_snapshot!(unused("input_damping: 0.5"), @"optimizer.low_rank.dlra.input_damping: unused, only `momentum: input_whitened_spectral` has it");
}

/// What is not written leaves a plan, and its hash, as before the keys were there.
#[test]
fn muon_whitened_by_inputs() {
    let text = |keys: &str| {
        let muon = format!("optimizer: {{matrices: {{muon: {{{keys}}}}}}}\n");
        GOOD.replacen("{low_rank: {rank: 16}}", "dense", 1) + &muon
    };
    let parsed = |keys: &str| spec::parse_plan(&text(keys), "run.yaml", &[]).expect("a good spec");
    let (_, plain) = parsed("");
    let written = serde_json::to_string(&plain.optimizer.muon()).expect("JSON");
    assert!(!written.contains("input_damping") && !written.contains("beta2"), "{written}");
    let (spec_of, whitened) = parsed("input_damping: 0.2");
    assert_eq!(spec::unused_settings(&spec_of), [""; 0]);
    assert_ne!(plain.hash(), whitened.hash());
    let muon = whitened.optimizer.muon().expect("Muon");
    assert_eq!((muon.input_damping, muon.beta2), (Some(0.2), 0.99));
    assert_eq!(
        spec::Plan::resolve(&whitened.as_spec().expect("a spec")).expect("a plan"),
        whitened
    );
    insta::assert_snapshot!(message_of(&text("input_damping: 0"), &[]), @"run.yaml:10:46: optimizer.matrices.muon.input_damping: is 0; set a number greater than 0, such as 0.2");
    insta::assert_snapshot!(message_of(&text("input_damping: 0.2, beta2: 1"), &[]), @"run.yaml:10:58: optimizer.matrices.muon.beta2: is 1; set a number of at least 0 and less than 1");
    insta::assert_snapshot!(spec::unused_settings(&parsed("beta2: 0.9").0).join("\n"), @"optimizer.matrices.muon.beta2: unused without `input_damping`");
}
