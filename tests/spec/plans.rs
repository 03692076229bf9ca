//! What a spec resolves to, and what is the same.

use super::*;

#[test]
fn settings_lie_over_the_spec() {
    assert_eq!(plan_with(&["model.n_layer=8"]).model.n_layer, 8);
    assert_eq!(plan_with(&["train.max_steps=2k", "train.max_steps=3_000"]).train.max_steps.0, 3000);
    assert_eq!(
        plan_with(&["eval.every=7"]).eval.every.0,
        7,
        "blocks that were not written are created"
    );
    assert_eq!(plan_with(&["model.weights=dense"]).model.form(Target::Q), WeightForm::Dense);
    assert_eq!(
        plan_with(&["model.weights.low_rank.rank=8"]).model.form(Target::UP),
        WeightForm::LowRank { rank: 8 }
    );
    assert_eq!(
        plan_with(&["model.weights.factored.rank=8"]).model.form(Target::UP),
        WeightForm::Factored { rank: 8, form: FactorForm::Ba }
    );
    let usv =
        plan_with(&["model.weights={factored: {rank: 8, form: usv, targets: {q: dense}}}"]).model;
    assert_eq!(
        (usv.form(Target::UP), usv.form(Target::Q)),
        (WeightForm::Factored { rank: 8, form: FactorForm::Usv }, WeightForm::Dense)
    );
    assert_eq!(
        plan_with(&["model.weights=dense", "model.weights.low_rank.rank=4"]).model.form(Target::V),
        WeightForm::LowRank { rank: 4 }
    );
    let RankPlan::Tolerance(tolerance) =
        plan_with(&["rank={fixed: {}}", "rank.tolerance.tau=0.2"]).rank
    else {
        panic!("fixed ranks")
    };
    assert_eq!(tolerance.targets[&Target::K].tau, 0.2);
    let data = plan_with(&["data={source: {text: {path: a.txt}}, tokenizer: chars}"]).data;
    assert_eq!(
        spec::to_yaml(&data).unwrap(),
        "source:\n  text:\n    path: a.txt\n    val_fraction: 0.1\ntokenizer: chars\n"
    );
    let learning_rate = "optimizer.low_rank.dlra.learning_rate=2e-2";
    assert_eq!(plan_with(&[learning_rate]).optimizer.dlra().unwrap().learning_rate, 0.02);
}

#[test]
fn plans_decide_everything() {
    let plan = plan_with(&[
        "rank={tolerance: {tau: 0.1, targets: {q: {tau: 0.3, max_rank: 20}}}}",
        "model.weights.low_rank.targets={down: dense}",
    ]);
    assert_eq!((plan.tokens_per_step, plan.total_tokens), (4 * 32, 4 * 32 * 1000));
    assert!(matches!(plan.optimizer.low_rank, Some(LowRankOptimizerSpec::Dlra(_))));
    let RankPlan::Tolerance(tolerance) = &plan.rank else { panic!("fixed ranks") };
    assert_eq!((tolerance.cycle.start, tolerance.cycle.freeze), (20, 750));
    assert_eq!(tolerance.targets.len(), 5, "the dense target has no rank");
    let q = tolerance.targets[&Target::Q];
    assert_eq!((q.tau, q.min_rank, q.max_rank), (0.3, 8, 20));
    assert_eq!(tolerance.targets[&Target::UP].max_rank, 32);

    let factored = plan_with(&[
        "model.weights={factored: {rank: 4}}",
        "optimizer.dense.adamw.learning_rate=1e-3",
    ]);
    assert_eq!(factored.optimizer.factored_adamw().unwrap().learning_rate, 1e-3, "the dense rule");
    assert_eq!(plan_with(&["model.weights=dense"]).optimizer.low_rank, None);
}

#[test]
fn a_spec_made_in_code_is_checked_too() {
    let mut written = spec::parse(GOOD, "run.yaml", &[]).unwrap();
    assert_eq!(Plan::resolve(&written).unwrap(), plan_with(&[]));
    written.train.batch_size = 0;
    let error = Plan::resolve(&written).unwrap_err();
    assert_eq!(exit_code(&error), 2);
    assert_eq!(error.to_string(), "train.batch_size: is 0; set at least 1");
}

#[test]
fn specs_and_plans_survive_being_written() {
    let settings = [
        vec![],
        vec![
            "model.weights=dense".to_owned(),
            "device=cuda:1".to_owned(),
            "sample.top_k=5".to_owned(),
        ],
        vec![
            "rank={tolerance: {tau: 0.1, min_rank: 3, targets: {q: {tau: 0.3}}}}".to_owned(),
            "model.weights.low_rank.targets={up: dense, k: 3, q: 9}".to_owned(),
        ],
        vec![
            "schedule={warmup_stable_decay: {warmup_steps: 10, decay_steps: 90, final_ratio: 0}}"
                .to_owned(),
        ],
        vec!["model.weights={factored: {rank: 4, form: usv, targets: {q: 2}}}".to_owned()],
        vec![
            "model.weights={factored: {rank: 4}}".to_owned(),
            "optimizer.low_rank={loro: {exact_every: 50}}".to_owned(),
        ],
        vec!["model.weights=dense".to_owned(), "optimizer.matrices={galore: {rank: 8}}".to_owned()],
    ];
    for settings in &settings {
        let (written, plan) = spec::parse_plan(GOOD, "run.yaml", settings).unwrap();
        let spec_text = spec::to_yaml(&written).unwrap();
        assert_eq!(
            spec::parse_plan(&spec_text, "spec.yaml", &[]).unwrap(),
            (written, plan.clone()),
            "{spec_text}"
        );
        let plan_text = spec::to_yaml(&plan).unwrap();
        let read = Plan::from_yaml(&plan_text, "plan.yaml").unwrap();
        assert_eq!(read, plan, "{plan_text}");
        assert_eq!(read.hash(), plan.hash());
    }
    let settings = ["rank={budget: {final_rank: 7, targets: {q: {min_rank: 2}, up: {max_rank: 20}}, grow_by: 2}}".to_owned()];
    let (_, plan) = spec::parse_plan(GOOD, "run.yaml", &settings).unwrap();
    let read = Plan::from_yaml(&spec::to_yaml(&plan).unwrap(), "plan.yaml").unwrap();
    assert_eq!(read, plan, "a budget's final rank is found again from its parameters");
    let error = Plan::from_yaml("name: x\nsede: 1\n", "plan.yaml").unwrap_err().to_string();
    assert!(error.contains("did you mean `seed`?") && error.contains("another version"), "{error}");
}

/// Case 4: an edited plan is held to the rules of specs, and to the figures that follow from it.
#[test]
fn a_plan_that_is_read_is_checked_like_a_spec() {
    let rank = "rank={tolerance: {tau: 0.1, targets: {q: {tau: 0.3}}}}";
    let yaml = spec::to_yaml(&plan_with(&[rank])).unwrap();
    for (from, to, said) in [
        ("n_head: 2", "n_head: 3", "model.n_head: 3 does not divide"),
        ("dropout: 0.0", "dropout: 2.0", "model.dropout: is 2"),
        ("    every: 100\n", "    every: 0\n", "grow_every: is 0"),
        ("name: example", "name: ../../x", "is no name for a folder"),
        ("batch_size: 4", "batch_size: 0", "train.batch_size: is 0"),
        ("batch_size: 4", "batch_size: 8", "tokens_per_step: is 128, but 256 follows"),
        ("beta1: 0.9", "beta1: 1.5", "beta1: is 1.5"),
        ("keep_last: 2", "keep_last: 0", "checkpoint.keep_last: is 0"),
        ("tau: 0.3", "tau: 3.0", "tau: is 3"),
        ("n_layer: 2", "n_layer: 18446744073709551615", "model.n_layer"),
    ] {
        assert!(yaml.contains(from), "{from} in {yaml}");
        let error = Plan::from_yaml(&yaml.replacen(from, to, 1), "plan.yaml").expect_err(to);
        assert_eq!(exit_code(&error), 2);
        assert!(error.to_string().contains(said), "{to}: {error}");
    }
}

/// Issue 18: what `spec show` prints is a spec, and leads to the same plan; a choice whose settings
/// all have defaults is written as one word.
#[test]
fn a_shown_spec_is_a_spec_and_a_bare_word_is_a_choice() {
    for path in shipped_configs() {
        let (_, plan) = spec::load_plan(&path, &[]).unwrap();
        let shown = spec::to_yaml(&plan.as_spec().unwrap()).unwrap();
        assert_eq!(spec::parse_plan(&shown, "shown.yaml", &[]).unwrap().1, plan, "{shown}");
    }
    assert_eq!(plan_with(&["schedule=constant"]), plan_with(&["schedule={constant: {}}"]));
    let word = GOOD.to_owned() + "schedule: constant\n";
    assert_eq!(
        spec::parse_plan(&word, "run.yaml", &[]).unwrap().1,
        plan_with(&["schedule={constant: {}}"])
    );
}

#[test]
fn the_hash_is_of_what_changes_the_trajectory() {
    let plan = plan_with(&[]);
    let reordered = "train: {batch_size: 4, max_steps: 1000}\ndata: {tokenizer: bytes, source: cargo_registry}\nname: example\n\
                     model: {weights: {low_rank: {rank: 16}}, block_size: 32, n_embd: 64, n_head: 2, n_layer: 2, dropout: 0}\n";
    assert_eq!(spec::parse_plan(reordered, "other.yaml", &[]).unwrap().1.hash(), plan.hash());
    for same in [
        "name=other",
        "device=cpu",
        "train.log_every=1",
        "checkpoint={every: 1, keep_last: 9}",
        "sample.tokens=0",
    ] {
        assert_eq!(plan_with(&[same]).hash(), plan.hash(), "{same}");
        assert!(plan_with(&[same]).trajectory_differences(&plan).is_empty(), "{same}");
    }
    let changes = [
        "seed=1",
        "train.max_steps=999",
        "eval.tokens=64",
        "schedule={constant: {}}",
        "model.bias=true",
        "model.weights=dense",
    ];
    for change in changes {
        assert_ne!(plan_with(&[change]).hash(), plan.hash(), "{change}");
        assert!(!plan_with(&[change]).trajectory_differences(&plan).is_empty(), "{change}");
    }
    // A plan's hash is stored in runs: a change of this constant means that no older run can be
    // resumed.
    let cosine = plan_with(&["schedule={cosine: {}}"]);
    insta::assert_snapshot!(cosine.hash(), @"26c92cda07bac28aed0dfaea20241342c08999b3e21538dfe0eec45edca2dd79");
}

#[test]
fn differences_name_key_and_values() {
    let changed = plan_with(&[
        "train.batch_size=8",
        "schedule={linear: {final_ratio: 0.2}}",
        "model.weights.low_rank.targets={q: dense}",
        "name=x",
    ]);
    insta::assert_snapshot!(plan_with(&[]).trajectory_differences(&changed).join("\n"), @r"
    model.weights.q: not set -> dense
    model.weights.q.low_rank.rank: 16 -> not set
    schedule.linear.final_ratio: 0.0 -> 0.2
    schedule.linear.warmup_steps: 20 -> 100
    train.batch_size: 4 -> 8
    ");
}
