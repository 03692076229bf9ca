//! Exact resume: 2N steps equal N + stop + resume + N, byte for byte, for every optimizer, with
//! ranks changing, and after kill -9.

mod broken;
mod integrators;
#[path = "../support/mod.rs"]
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

/// Queries, keys and values from one matrix: with ranks that grow and are cut, dense under Muon, and
/// dense until it is cut.
#[test]
fn fused_qkv() {
    let fused = |weights: &str| format!("{weights}, fused_qkv: true");
    let rule = dlra("spectral", "svd");
    check("fused", &fused(LOW_RANK), &format!("{rule}{TOLERANCE}"), &[4, 7]);
    let llama = format!("{}, arch: llama, n_kv_head: 1", fused("dense"));
    let muon = "optimizer: {matrices: {muon: {learning_rate: 1e-2}}}\n";
    check("dense and fused", &llama, muon, &[5]);
    let budget = "rank: {budget: {final_rank: 8, every: 3, settle: 2, start: 3, freeze: 12}}\n";
    check(
        "fused, dense until cut",
        &fused("{low_rank: {rank: full, start: dense}}"),
        &format!("{}{budget}", dlra("adam", "subspace")),
        &[4, 8],
    );
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
    let rule = "optimizer: {matrices: {muon: {learning_rate: 1e-2, input_damping: 0.2}}}\n";
    check("whitened Muon", "dense", rule, &[5]);
    let path = "linalg: device\nkernels: portable\ndtype: {compute: bf16}\n";
    check("whitened Muon, on the device path", "dense", &format!("{path}{rule}"), &[5]);
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
    let budget = "rank: {budget: {final_rank: 2, norm: fisher, batches: 3, every: 4, settle: 1, start: 1, freeze: 12}}\n";
    check_adapter(
        "an adapter under a budget",
        "{adapter: {rank: 6, targets: [q, v, down]}}",
        &format!("{}{budget}", dlra("spectral", "svd")),
        &[5],
    );
}

/// The head's adapter keeps its rank where those of the blocks change.
#[test]
fn adapters_of_the_head() {
    let rule = dlra("spectral", "svd");
    let weights = "{adapter: {rank: 6, head: 3, targets: [q, down]}}";
    check_adapter("a head's adapter", weights, &format!("{rule}{TOLERANCE}"), &[4, 7]);
    let budget = "rank: {budget: {final_rank: 2, norm: fisher, batches: 3, every: 4, settle: 1, start: 1, freeze: 12}}\n";
    check_adapter("under a budget", weights, &format!("{rule}{budget}"), &[5]);
    check_adapter(
        "LoRA of the head alone",
        "{adapter: {rank: 4, head: 4, alpha: 8, form: lora, targets: []}}",
        "optimizer: {low_rank: {adamw: {learning_rate: 1e-2}}}\n",
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

/// Second moments of inputs are measured at every step, by all batches of a cut at one.
#[test]
fn input_whitened_spectral_with_changing_ranks() {
    let rule = dlra("input_whitened_spectral", "subspace");
    check("input-whitened", LOW_RANK, &format!("{rule}{TOLERANCE}"), &[4, 7]);
    let cycle = integrators::integrator(
        "integrator: coefficient_cycle, coefficient_steps: 3, momentum: input_whitened_spectral",
    );
    check("input-whitened, cycles", LOW_RANK, &cycle, &[3, 6]);
}

/// β₁ rises from step 2 to step 10, and the moments are corrected for all of them.
#[test]
fn a_beta1_that_changes() {
    let path = "beta1: 0.95, beta1_schedule: {from: 0.6, start: 2, until: 10}";
    let muon = format!("optimizer: {{matrices: {{muon: {{{path}}}}}}}\n");
    check("Muon", "dense", &muon, &[5]);
    let dlra = format!("optimizer: {{low_rank: {{dlra: {{momentum: adam, {path}}}}}}}\n");
    check("adam", LOW_RANK, &format!("{dlra}{TOLERANCE}"), &[1, 7]);
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
fn spectral_with_ranks_of_single_blocks() {
    let weights = "{low_rank: {rank: 6, layers: [{q: 9, down: 3}, {up: 2}]}}";
    check("ranks of single blocks", weights, &dlra("spectral", "subspace"), &[4]);
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

/// What cuts go by is carried from cut to cut, through growth, cycles and from dense matrices.
#[test]
fn second_moments_that_cuts_carry() {
    let carried = "norm: fisher, moment_decay: 0.8, moment_every: 2";
    let budget = BUDGET.replace("schedule: linear", &format!("schedule: linear, {carried}"));
    check("carried", LOW_RANK, &format!("{}{budget}", dlra("spectral", "subspace")), &[4, 5, 9]);
    let cycle = integrators::integrator("integrator: coefficient_cycle, coefficient_steps: 3");
    check("carried, cycles", LOW_RANK, &format!("{cycle}{budget}"), &[2, 6]);
    let budget = format!(
        "rank: {{budget: {{final_rank: 3, every: 3, settle: 1, start: 2, freeze: 12, {carried}}}}}\n"
    );
    let dense = "{low_rank: {rank: full, start: dense}}";
    check("carried, dense", dense, &format!("{}{budget}", dlra("spectral", "subspace")), &[2, 7]);
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
