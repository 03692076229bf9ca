//! Exact resume: 2N steps equal N + stop + resume + N, byte for byte, for every optimizer, with
//! ranks changing, and after kill -9.

mod support;

use support::{Workplace, assert_same};

const LOW_RANK: &str = "{low_rank: {rank: 6}}";
/// Ranks grow at steps 3 and 9 and are truncated at steps 6 and 12: a stop at step 4 falls between
/// growth and truncation.
const TOLERANCE: &str = "rank: {tolerance: {tau: 0.4, min_rank: 2, max_rank: 12, grow_every: 6, settle: 3, grow_by: 4, start: 3, freeze: 12}}\n";

fn dlra(momentum: &str, retraction: &str) -> String {
    format!(
        "optimizer: {{low_rank: {{dlra: {{momentum: {momentum}, retraction: {retraction}, learning_rate: 2e-2, reorthonormalize_every: 5}}}}}}\n"
    )
}

/// Trains once without and once with a break after each of `stops`, and compares.
fn check(what: &str, weights: &str, extra: &str, stops: &[u64]) {
    let place = Workplace::new();
    let spec = place.spec(weights, &format!("{extra}checkpoint: {{every: 5, keep_last: 2}}"));
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "whole"], 0);
    let expected = place.trajectory("whole", 12);
    for stop in stops {
        let run = format!("broken-{stop}");
        place.run(&["train", spec, "--run-dir", &run, "--stop-after", &stop.to_string()], 0);
        place.run(&["train", spec, "--run-dir", &run, "--resume"], 0);
        assert_same(
            &expected,
            &place.trajectory(&run, 12),
            &format!("{what}, stopped after step {stop}"),
        );
    }
}

#[test]
fn dense_adamw() {
    check("dense AdamW", "dense", "", &[1, 6]);
}

/// Another architecture: rotary positions, SwiGLU, a head of its own, keys shared; with ranks that
/// grow and are cut, and dense.
#[test]
fn llama() {
    let llama = |weights: &str| format!("{weights}, arch: llama, n_kv_head: 1, rms_norm_eps: 1e-5");
    let rule = dlra("spectral", "svd");
    check("Llama", &llama(LOW_RANK), &format!("{rule}{TOLERANCE}"), &[4, 7]);
    check("dense Llama", &llama("dense"), "", &[5]);
}

#[test]
fn factored_adamw() {
    check(
        "factored AdamW",
        "{factored: {rank: 6}}",
        "optimizer: {low_rank: {adamw: {learning_rate: 1e-3}}}\n",
        &[5],
    );
}

#[test]
fn dense_muon() {
    check("dense Muon", "dense", "optimizer: {matrices: {muon: {learning_rate: 1e-2}}}\n", &[5]);
}

#[test]
fn factored_heavy_ball() {
    check(
        "factored heavy ball",
        "{factored: {rank: 6}}",
        "optimizer: {low_rank: {heavy_ball: {learning_rate: 1e-1}}}\n",
        &[6],
    );
}

#[test]
fn three_free_factors() {
    let weights = "{factored: {rank: 6, form: usv}}";
    check(
        "adamw on U, S and V",
        weights,
        "optimizer: {low_rank: {adamw: {learning_rate: 1e-3}}}\n",
        &[5],
    );
    check(
        "heavy ball on U, S and V",
        weights,
        "optimizer: {low_rank: {heavy_ball: {learning_rate: 1e-2}}}\n",
        &[6],
    );
}

/// Exact steps at 5 and 10: one break right before, one right after, one in the middle of the
/// warm-up that follows.
#[test]
fn loro() {
    let rule = "optimizer: {low_rank: {loro: {learning_rate: 1e-2, exact_every: 5, restart_warmup_steps: 3}}}\n";
    check("LORO", "{factored: {rank: 6}}", rule, &[4, 5, 7]);
}

/// Projectors at steps 1, 6 and 11.
#[test]
fn galore() {
    check(
        "GaLore",
        "dense",
        "optimizer: {matrices: {galore: {rank: 6, refresh_every: 5, learning_rate: 1e-2}}}\n",
        &[3, 5, 6],
    );
}

/// Trains an adapter once without and once with breaks, and compares; its frozen weights are those
/// of the model that it adapts, byte for byte.
fn check_adapter(what: &str, weights: &str, extra: &str, stops: &[u64]) {
    let place = Workplace::new();
    place.spec("dense", "");
    place.run(&["train", "spec.yaml", "--run-dir", "source"], 0);
    let extra = format!("init: {{run: source}}\n{extra}checkpoint: {{every: 5, keep_last: 2}}");
    place.spec(weights, &extra);
    place.run(&["train", "spec.yaml", "--run-dir", "whole"], 0);
    let expected = place.trajectory("whole", 12);
    for stop in stops {
        let run = format!("broken-{stop}");
        let stop_after = stop.to_string();
        place.run(&["train", "spec.yaml", "--run-dir", &run, "--stop-after", &stop_after], 0);
        place.run(&["resume", &run], 0);
        assert_same(
            &expected,
            &place.trajectory(&run, 12),
            &format!("{what}, stopped after step {stop}"),
        );
    }
    let tensors = |run: &str, file: &str| {
        let best = std::fs::read_dir(place.path(run).join("checkpoints"));
        let folder = best.expect("checkpoints").flatten().map(|entry| entry.path());
        let path = folder.filter(|path| path.join(file).exists()).max().expect("a checkpoint");
        std::fs::read(path.join(file)).expect("tensors")
    };
    let (before, after) =
        (tensors("source", "model.safetensors"), tensors("whole", "model.safetensors"));
    let (before, after) = (
        safetensors::SafeTensors::deserialize(&before).expect("the source's"),
        safetensors::SafeTensors::deserialize(&after).expect("the adapted"),
    );
    for (name, view) in before.tensors() {
        assert_eq!(after.tensor(&name).expect("is kept").data(), view.data(), "{what}: {name}");
    }
    let added: Vec<&str> =
        after.names().into_iter().filter(|name| before.tensor(name).is_err()).collect();
    assert!(!added.is_empty() && added.iter().all(|name| name.contains(".adapter.")), "{added:?}");
    let moments = tensors("whole", "optimizer.safetensors");
    let moments = safetensors::SafeTensors::deserialize(&moments).expect("moments");
    assert!(!moments.names().is_empty());
    for name in moments.names() {
        assert!(name.contains(".adapter"), "{name} is the moment of a frozen weight");
    }
}

#[test]
fn adapters_with_changing_ranks() {
    let rule = dlra("adam", "subspace");
    check_adapter("an adapter", "{adapter: {rank: 6}}", &format!("{rule}{TOLERANCE}"), &[4, 7]);
    let budget = "rank: {budget: {final_rank: 2, norm: fisher, every: 4, settle: 1, start: 1, freeze: 12}}\n";
    check_adapter(
        "an adapter under a budget",
        "{adapter: {rank: 6, targets: [q, v, down]}}",
        &format!("{}{budget}", dlra("spectral", "svd")),
        &[5],
    );
}

#[test]
fn lora() {
    check_adapter(
        "LoRA",
        "{adapter: {rank: 4, alpha: 8, form: lora, targets: {q: 4, v: 2}}}",
        "optimizer: {low_rank: {adamw: {learning_rate: 1e-2}}}\n",
        &[5],
    );
}

#[test]
fn matrix_adam_with_changing_ranks() {
    check(
        "matrix adam",
        LOW_RANK,
        &format!("{}{TOLERANCE}", dlra("matrix_adam", "subspace")),
        &[4, 7],
    );
}

#[test]
fn nesterov_and_linear_transport() {
    let rule = "optimizer: {low_rank: {dlra: {momentum: adam, nesterov: true, second_moment_transport: linear, learning_rate: 1e-3}}}\n";
    check(
        "adam with Nesterov and linear transport",
        LOW_RANK,
        &format!("{rule}{TOLERANCE}"),
        &[4, 8],
    );
}

#[test]
fn heavy_ball_at_fixed_rank() {
    check("heavy ball", LOW_RANK, &dlra("heavy_ball", "svd"), &[6]);
}

#[test]
fn heavy_ball_with_changing_ranks() {
    check("heavy ball", LOW_RANK, &format!("{}{TOLERANCE}", dlra("heavy_ball", "subspace")), &[5]);
}

#[test]
fn adam_with_changing_ranks() {
    check("adam", LOW_RANK, &format!("{}{TOLERANCE}", dlra("adam", "subspace")), &[4, 6]);
}

#[test]
fn spectral_with_changing_ranks() {
    check("spectral", LOW_RANK, &format!("{}{TOLERANCE}", dlra("spectral", "subspace")), &[4, 9]);
}

/// A budget that falls from rank 6 to rank 3 at the cuts of steps 5, 8 and 11, measured by second
/// moments of the step's two micro-batches; growth at steps 3, 6 and 9.
const BUDGET: &str = "rank: {budget: {final_rank: 3, schedule: linear, every: 3, settle: 2, grow_by: 2, max_rank: 10, start: 3, freeze: 12}}\n";

#[test]
fn spectral_under_a_budget() {
    check(
        "spectral under a budget",
        LOW_RANK,
        &format!("{}{BUDGET}", dlra("spectral", "subspace")),
        &[4, 5, 8],
    );
}

#[test]
fn adam_by_a_tolerance_in_the_fisher_norm() {
    let tolerance = TOLERANCE.replace("tau: 0.4", "tau: 0.4, final_tau: 0.6, norm: fisher");
    check(
        "adam by a tolerance",
        LOW_RANK,
        &format!("{}{tolerance}", dlra("adam", "subspace")),
        &[6, 7],
    );
}

/// What a GPU runs repeats as exactly: stacks, of one where ranks change, portable operations, bf16
/// products.
#[test]
fn the_path_of_a_device_in_bf16() {
    let path = "linalg: device\nkernels: portable\ndtype: {compute: bf16}\n";
    check(
        "spectral on the device path",
        LOW_RANK,
        &format!("{path}{}{TOLERANCE}", dlra("spectral", "subspace")),
        &[4],
    );
    check("adam on the device path", LOW_RANK, &format!("{path}{}", dlra("adam", "svd")), &[6]);
    check(
        "a budget on the device path",
        LOW_RANK,
        &format!("{path}{}{BUDGET}", dlra("spectral", "subspace")),
        &[5],
    );
    check(
        "Muon on the device path",
        "dense",
        &format!("{path}optimizer: {{matrices: {{muon: {{learning_rate: 1e-2}}}}}}\n"),
        &[5],
    );
}

#[test]
fn a_run_goes_on_by_another_path() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "5"], 0);
    place.run(
        &[
            "train",
            spec,
            "--run-dir",
            "run",
            "--resume",
            "--set",
            "linalg=device",
            "--set",
            "kernels=portable",
        ],
        0,
    );
    place.run(&["train", spec, "--run-dir", "whole"], 0);
    let loss = |run: &str| {
        let lines = support::metrics(&place.path(run).join("metrics.jsonl"));
        let last = lines.iter().rev().find(|line| line.contains("val/loss")).expect("a validation");
        serde_json::from_str::<serde_json::Value>(last).expect("JSON")["val/loss"]
            .as_f64()
            .expect("a loss")
    };
    assert!((loss("run") - loss("whole")).abs() < 1e-3, "{} and {}", loss("run"), loss("whole"));
}

fn integrator(keys: &str) -> String {
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

/// Killed again and again while it trains and while it writes a checkpoint, a run still ends as if
/// nothing had happened.
#[test]
fn kill_dash_nine_at_any_moment() {
    let place = Workplace::new();
    let spec = place.spec(
        LOW_RANK,
        &format!("{}{TOLERANCE}checkpoint: {{every: 1, keep_last: 2}}", dlra("adam", "subspace")),
    );
    let arguments = |run: &'static str, more: &'static str| {
        let spec = spec.to_str().expect("UTF-8");
        ["train", spec, "--run-dir", run, "--set", "train.max_steps=60", more, "5"]
    };
    place.run(&arguments("whole", "--stop-after")[..6], 0);
    let expected = place.trajectory("whole", 60);
    place.run(&arguments("killed", "--stop-after"), 0);
    let resume = [&arguments("killed", "--resume")[..6], &["--resume"]].concat();
    let (mut in_training, mut in_saving) = (0, 0);
    for attempt in 0..12 {
        let newest = || {
            let checkpoints = lrpt::checkpoint::Checkpoints::open(&place.path("killed"));
            checkpoints.list().expect("a folder").last().expect("a checkpoint").step
        };
        let before = newest();
        // Every second time while files are written, else some steps on.
        let landed = place.kill_when(&resume, || match attempt % 2 {
            0 => newest() > before && place.is_saving("killed"),
            _ => newest() > before + attempt % 3,
        });
        assert!(landed, "attempt {attempt} from step {before}: the run had ended");
        assert!(newest() > before && newest() < 60, "killed mid-run: {before} to {}", newest());
        // The folder of a checkpoint that was being written is still there.
        if place.is_saving("killed") {
            in_saving += 1;
        } else {
            in_training += 1;
        }
    }
    assert!(in_saving >= 3, "{in_saving} kills while writing, {in_training} while training");
    place.run(&resume, 0);
    assert_same(&expected, &place.trajectory("killed", 60), "killed twelve times");
}

/// A damaged newest checkpoint is reported and passed over.
#[test]
fn falls_back_past_a_damaged_checkpoint() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "checkpoint: {every: 3, keep_last: 3}");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "whole"], 0);
    place.run(&["train", spec, "--run-dir", "broken", "--stop-after", "9"], 0);
    let damaged = place.path("broken/checkpoints/step-00000009/model.safetensors");
    let mut bytes = std::fs::read(&damaged).expect("a checkpoint at step 9");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&damaged, bytes).expect("writable");
    let output = place.run(&["train", spec, "--run-dir", "broken", "--resume"], 0);
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        log.contains("step-00000009") && log.contains("model.safetensors"),
        "the log names the damage:\n{log}"
    );
    assert_same(
        &place.trajectory("whole", 12),
        &place.trajectory("broken", 12),
        "after a damaged checkpoint",
    );
}

#[test]
fn resume_refuses_another_plan_and_names_the_keys() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "2"], 0);
    let output = place
        .run(&["train", spec, "--run-dir", "run", "--resume", "--set", "train.batch_size=8"], 2);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        error.contains("train.batch_size") && error.contains('4') && error.contains('8'),
        "{error}"
    );
    // What does not change the trajectory may change.
    place.run(
        &["train", spec, "--run-dir", "run", "--resume", "--set", "checkpoint.keep_last=5"],
        0,
    );
}

#[test]
fn a_second_process_and_a_second_start_are_refused() {
    let place = Workplace::new();
    let spec = place.spec(LOW_RANK, "");
    let spec = spec.to_str().expect("UTF-8");
    place.run(&["train", spec, "--run-dir", "run", "--stop-after", "2"], 0);
    let again = place.run(&["train", spec, "--run-dir", "run"], 2);
    assert!(String::from_utf8_lossy(&again.stderr).contains("--resume"));
    let _lock = lrpt::checkpoint::RunLock::acquire(&place.path("run")).expect("the lock is free");
    let locked = place.run(&["train", spec, "--run-dir", "run", "--resume"], 1);
    assert!(String::from_utf8_lossy(&locked.stderr).contains("pid"));
}
