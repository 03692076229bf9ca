//! What a plan costs, as printed.

use super::*;

#[test]
fn the_ledger_of_gpt_2_small() {
    let (written, _) = spec::load_plan(Path::new("configs/gpt2-124m.yaml"), &[]).unwrap();
    assert!(matches!(written.model.weights, WeightsSpec::LowRank(_)));
    let (_, dense) = spec::load_plan(
        Path::new("configs/gpt2-124m.yaml"),
        &["model.weights=dense".into(), "optimizer.low_rank=".into()],
    )
    .unwrap();
    // GPT-2 small has 124_439_808 parameters with its vocabulary of 50257 (Hugging Face `gpt2`).
    assert_eq!(Ledger::new(&dense, 50_257, 1).parameters.total(), 124_439_808);
}

#[test]
fn the_ledger_as_printed() {
    let ledger = Ledger::new(&plan_with(&["model.weights.low_rank.targets={down: dense}"]), 256, 2);
    insta::assert_snapshot!(ledger.to_string(), @r"
    parameters
      token embedding (tied head)               16_384
      positions                                  2_048
      norms                                        320
      biases                                         0
      q     64 × 64, rank 16                     4_608
      k     64 × 64, rank 16                     4_608
      v     64 × 64, rank 16                     4_608
      o     64 × 64, rank 16                     4_608
      up    256 × 64, rank 16                   10_752
      down  64 × 256, dense                     32_768
      total                                     80_704
      the same network dense                   117_056
      share of dense                             0.689
    operations (matrix products)
      forward per token                         1.65e5
        matrices of the blocks                  1.24e5
        causal attention                        8.45e3
        head                                    3.28e4
      training per token                         4.9e5
      evaluations per step                           1
      low-rank optimizer per step               2.43e7
      a step in all                             8.71e7
      the run in all                           8.71e10
    memory (f32)
      weights                                   323 kB
      gradients                                 313 kB
      optimizer moments                         529 kB
      activations for the backward              974 kB
      head gradient                            65.5 kB
      backward in flight                        328 kB
      low-rank step                             543 kB
      peak, expected                           2.53 MB
    tokens
      per step                                     128
      in all                                   128_000
    ");
}

/// Adapters: on all matrices or some, at one rank or several; a model to adapt must be named.
#[test]
fn adapters_say_what_they_adapt() {
    use lrpt::spec::AdapterForm;
    let adapter = |rank, form, alpha| WeightForm::Adapter { rank, form, alpha };
    let (low_rank, lora) = (AdapterForm::LowRank, AdapterForm::Lora);
    let with = |weights: &str| {
        let weights = format!("model.weights={weights}");
        let plan = plan_with(&[&weights, "init={run: source}", "optimizer={}", "rank=fixed"]);
        // It follows from the spec that it is written as, too.
        Plan::from_yaml(&spec::to_yaml(&plan).expect("YAML"), "plan.yaml").expect("the same plan");
        plan.model
    };
    let all = with("{adapter: {rank: 8}}");
    assert!(all.weights.values().all(|form| *form == adapter(8, low_rank, None)));
    let some = with("{adapter: {rank: 8, form: lora, targets: [q, v]}}");
    assert_eq!(some.form(Target::Q), adapter(8, lora, Some(8)));
    assert_eq!(some.form(Target::UP), WeightForm::Dense);
    let own = with("{adapter: {rank: 8, form: lora, alpha: 16, targets: {q: 4, v: 8}}}");
    assert_eq!(
        [Target::Q, Target::V, Target::K].map(|target| own.form(target)),
        [adapter(4, lora, Some(16)), adapter(8, lora, Some(16)), WeightForm::Dense]
    );
    // Beside the head, with others or alone; α is each one's rank, where none is given.
    let head = with("{adapter: {rank: 8, head: 4, form: lora}}");
    assert_eq!(
        [Target::Q, Target::HEAD].map(|target| head.form(target)),
        [adapter(8, lora, Some(8)), adapter(4, lora, Some(4))]
    );
    let alone = with("{adapter: {rank: 8, head: 4, targets: []}}");
    assert!(alone.is_adapted() && alone.weights.values().all(|form| *form == WeightForm::Dense));
    assert_eq!(alone.form(Target::HEAD), adapter(4, low_rank, None));
    let refused = |flags: &[&str]| {
        let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let error = spec::load_plan(Path::new("configs/gpt-small.yaml"), &flags);
        error.expect_err("refused").to_string()
    };
    let init = "init={run: source}";
    for (flags, said) in [
        (vec!["model.weights={adapter: {rank: 8}}"], "adapts a model that is there; name it"),
        (
            vec!["model.weights={adapter: {rank: 8, form: lora, alpha: 0}}", init],
            "model.weights.adapter.alpha: is 0",
        ),
        (vec!["model.weights={adapter: {rank: 8, targets: []}}", init], "names no matrix"),
        (vec!["model.weights={adapter: {rank: 8, targets: [q, q]}}", init], "names `q` twice"),
        (vec!["model.weights={adapter: {rank: 8, targets: [w]}}", init], "`w`"),
        (
            vec!["model.weights={adapter: {rank: 8, targets: {q: 5000}}}", init],
            "rank 5000 is not possible for `q`",
        ),
        (
            vec!["model.weights={adapter: {rank: 8, head: 0}}", init],
            "model.weights.adapter.head: rank 0 is not possible for a head 256 wide; choose 1 to 256",
        ),
        (vec!["model.weights={adapter: {rank: 8, head: 257}}", init], "choose 1 to 256"),
        (
            vec!["model.weights={adapter: {rank: 8, targets: {head: 4}}}", init],
            "the rank of an adapter beside it is `model.weights.adapter.head`",
        ),
        (
            vec![
                "model.weights={adapter: {rank: 8, head: 4}}",
                init,
                "rank={budget: {final_rank: 2, targets: {head: {min_rank: 1}}}}",
            ],
            "`head` is in no block",
        ),
        (
            vec![
                "model.weights={adapter: {rank: 8, form: lora}}",
                init,
                "optimizer.low_rank={loro: {}}",
            ],
            "those of an adapter start at zero",
        ),
    ] {
        let error = refused(&flags);
        assert!(error.contains(said), "{flags:?}: {error}");
    }
}
