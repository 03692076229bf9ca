//! Integrators, cycles and cuts.

use super::*;

pub fn integrator(keys: &str) -> String {
    format!(
        "optimizer: {{low_rank: {{dlra: {{{keys}, learning_rate: 2e-2, reorthonormalize_every: 5}}}}}}\n"
    )
}

#[test]
fn augmented_bug_with_changing_ranks() {
    let rule = integrator("integrator: augmented_bug, coefficient_steps: 2, momentum: spectral");
    check("augmented BUG, spectral", LOW_RANK, &format!("{rule}{TOLERANCE}"), &[4, 9]);
    check(
        "augmented BUG, adam",
        LOW_RANK,
        &integrator(
            "integrator: augmented_bug, momentum: adam, retraction: svd, truncate_every: 3",
        ),
        &[5],
    );
}

/// Cycles of four steps: augmented after steps 1, 5 and 9, truncated after 4, 8 and 12.
#[test]
fn coefficient_cycle_interrupted_anywhere_in_it() {
    let rule =
        integrator("integrator: coefficient_cycle, coefficient_steps: 3, momentum: spectral");
    check("cycle, spectral", LOW_RANK, &rule, &[1, 2, 4, 11]);
    let rule = integrator("integrator: coefficient_cycle, coefficient_steps: 3, momentum: adam");
    check("cycle, adam, changing ranks", LOW_RANK, &format!("{rule}{TOLERANCE}"), &[3, 5, 10]);
    let rule =
        integrator("integrator: coefficient_cycle, coefficient_steps: 3, momentum: matrix_adam");
    check("cycle, matrix adam", LOW_RANK, &rule, &[6]);
}

/// Cuts by second moments under the integrators that evaluate more than once a step.
#[test]
fn other_integrators_under_a_budget() {
    let rule =
        integrator("integrator: coefficient_cycle, coefficient_steps: 2, momentum: spectral");
    check("cycle under a budget", LOW_RANK, &format!("{rule}{BUDGET}"), &[4, 5, 8]);
    let rule = integrator("integrator: augmented_bug, coefficient_steps: 2, momentum: spectral");
    check("augmented BUG under a budget", LOW_RANK, &format!("{rule}{BUDGET}"), &[4, 5]);
}

/// Inside a cycle the checkpoint has the augmented rank, and the metrics the parameters and
/// operations that go with it.
#[test]
fn cycles_are_seen_from_outside() {
    let place = Workplace::new();
    let spec = place.spec(
        LOW_RANK,
        &integrator("integrator: coefficient_cycle, coefficient_steps: 3, momentum: spectral"),
    );
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "2"], 0);
    let output = place.run(&["inspect", "run", "--json"], 0);
    let ranks: Vec<_> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["rank"].as_u64())
        .collect();
    assert!(!ranks.is_empty(), "a line for each low-rank weight");
    assert!(ranks.iter().all(|rank| *rank == Some(12)), "ranks inside the cycle: {ranks:?}");
    place.run(&["train", spec, "--run-dir", "run", "--resume"], 0);
    assert_eq!(
        training_steps(&place, "run", "rank/mean"),
        [12.0, 12.0, 12.0, 6.0].repeat(3),
        "ranks after each step"
    );
    let of_step: Vec<f64> =
        training_steps(&place, "run", "flops").windows(2).map(|pair| pair[1] - pair[0]).collect();
    // Steps 2, 3 and 4 are at rank 12, step 5 at 6 again.
    assert!(
        of_step[0] == of_step[1] && of_step[2] > of_step[1] && of_step[3] < of_step[0],
        "operations of steps 2 to 5: {of_step:?}"
    );
    let tokens = training_steps(&place, "run", "tokens");
    assert_eq!(tokens[11], f64::from(12 * 4 * 2 * 16), "tokens are those of the batches");
}

#[test]
fn ranks_really_change_in_these_tests() {
    for policy in [TOLERANCE, BUDGET] {
        ranks_change_under(policy);
    }
}

fn ranks_change_under(policy: &str) {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, &format!("{}{policy}", dlra("spectral", "subspace")));
    place.run(&["train", spec.to_str().expect("UTF-8"), "--run-dir", "run"], 0);
    let ranks = training_steps(&place, "run", "rank/mean");
    let distinct: std::collections::BTreeSet<_> = ranks.iter().map(|rank| rank.to_bits()).collect();
    assert!(distinct.len() >= 3, "mean ranks over the run: {ranks:?}");
}

/// A metric of every step of training, from the first on.
fn training_steps(place: &Workplace, run: &str, key: &str) -> Vec<f64> {
    support::metrics(&place.path(run).join("metrics.jsonl"))
        .iter()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter(|line| line["train/loss"].is_number())
        .filter_map(|line| line[key].as_f64())
        .collect()
}

/// A step that cuts ranks counts the cut's operations: it costs more than the step before it at the
/// same rank, and in the Fisher norm more than in the Frobenius norm.
#[test]
fn operations_of_cuts_are_counted() {
    let place = Workplace::new();
    let operations = |norm: &str| {
        let budget = format!(
            "rank: {{budget: {{final_rank: 3, norm: {norm}, every: 3, start: 3, freeze: 12}}}}\n"
        );
        let spec = place.spec(LOW_RANK, &format!("{}{budget}", dlra("spectral", "subspace")));
        place.run(&["train", spec.to_str().expect("UTF-8"), "--run-dir", norm], 0);
        let (ranks, total) =
            (training_steps(&place, norm, "rank/mean"), training_steps(&place, norm, "flops"));
        let first_cut = (1..ranks.len()).find(|&i| ranks[i] < ranks[i - 1]).expect("a cut");
        assert!(first_cut >= 2 && ranks[first_cut - 2] == ranks[first_cut - 1], "ranks {ranks:?}");
        (total[first_cut] - total[first_cut - 1], total[first_cut - 1] - total[first_cut - 2])
    };
    let (fisher, fisher_before) = operations("fisher");
    let (frobenius, frobenius_before) = operations("frobenius");
    assert_eq!(fisher_before, frobenius_before, "a step without a cut");
    assert!(
        frobenius > frobenius_before && fisher > frobenius,
        "{fisher} and {frobenius} after {frobenius_before}"
    );
}

/// Dense weights that a budget makes factors of, some at step 5 and all by step 11: breaks before
/// the first cut, right after it, and where both kinds are trained.
#[test]
fn weights_that_are_dense_until_they_are_cut() {
    let weights = "{low_rank: {rank: full, start: dense}}";
    let budget = "rank: {budget: {final_rank: 8, schedule: cubic, every: 3, settle: 2, start: 3, freeze: 12}}\n";
    for keys in ["spectral, nesterov: true", "input_whitened_spectral", "adam", "heavy_ball"] {
        let rule = integrator(&format!("momentum: {keys}"));
        check(&format!("dense start, {keys}"), weights, &format!("{rule}{budget}"), &[2, 4, 5, 9]);
    }
    let path = "linalg: device\nkernels: portable\ndtype: {compute: bf16}\n";
    let rule = integrator("momentum: adam");
    check("dense start, on the device path", weights, &format!("{path}{rule}{budget}"), &[5]);
}
