//! Steps whose micro-batches are shared out over processes are those of one process, byte for byte,
//! for every method, with ranks that change.

use super::Trainer;
use crate::data::TokenShard;
use crate::parallel::{Alone, Channels, Communicator};
use crate::spec::{Plan, load_plan};
use candle_core::Device;
use std::path::Path;
use std::sync::Arc;

const VOCABULARY: usize = 50;
const STEPS: u64 = 9;

/// A method's spec, smaller, with rare events in its first steps and ranks that change where they
/// can: they grow at step 2 and 6 and are cut at step 4 and 8.
fn small(spec: &str, portable: bool) -> Plan {
    small_with(spec, portable, &[])
}

/// The same with settings laid over it.
fn small_with(spec: &str, portable: bool, settings: &[&str]) -> Plan {
    let path = format!("{}/configs/methods/{spec}", env!("CARGO_MANIFEST_DIR"));
    let common = [
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=32",
        "model.block_size=24",
        "model.dropout=0.1",
        "model.bias=true",
        "train={max_steps: 30, batch_size: 2, gradient_accumulation_steps: 5}",
        "schedule={constant: {warmup_steps: 0}}",
        "device=cpu",
    ];
    let mut overrides: Vec<String> = common.iter().map(|text| (*text).to_owned()).collect();
    let method = std::fs::read_to_string(&path).expect("a spec");
    let more: &[&str] = match spec {
        "galore.yaml" => &["optimizer.matrices.galore={rank: 8, refresh_every: 3}"],
        "loro.yaml" => &[
            "model.weights.factored.rank=6",
            "optimizer.low_rank.loro.exact_every=4",
            "optimizer.low_rank.loro.restart_warmup_steps=1",
        ],
        _ if method.contains("factored:") => &["model.weights.factored.rank=6"],
        "dlra-tolerance.yaml" => &[
            "model.weights={low_rank: {rank: 6}}",
            "rank={tolerance: {tau: 0.4, min_rank: 2, max_rank: 12, grow_every: 4, settle: 2, grow_by: 4, start: 2, freeze: 20}}",
        ],
        _ if method.contains("dlra:") => &[
            "model.weights={low_rank: {rank: 6}}",
            "rank={budget: {final_rank: 5, norm: fisher, every: 4, settle: 2, grow_by: 2, start: 2, freeze: 20, max_rank: 10}}",
        ],
        _ => &[],
    };
    overrides.extend(more.iter().map(|text| (*text).to_owned()));
    if portable {
        overrides.extend(["linalg=device".to_owned(), "kernels=portable".to_owned()]);
    }
    overrides.extend(settings.iter().map(|text| (*text).to_owned()));
    load_plan(Path::new(&path), &overrides).expect(spec).1
}

/// What some steps came to, to the bit.
struct Trained {
    /// Losses and norms of gradients.
    figures: Vec<u64>,
    tensors: Vec<(String, Vec<u32>)>,
    /// Bytes of sums that were sent.
    sent: u64,
}

fn trained(plan: &Plan, processes: &dyn Communicator) -> Trained {
    let tokens: Vec<u32> =
        (0..5_000u64).map(|i| ((i * i / 7 + i) % VOCABULARY as u64) as u32).collect();
    let text = Arc::new(TokenShard::from_tokens(tokens));
    let trainer = Trainer::fresh(plan, &Device::Cpu, VOCABULARY, text).expect("a trainer");
    let mut trainer = trainer.shared_over(processes);
    let (mut figures, mut sent) = (Vec::new(), 0);
    for step in 1..=STEPS {
        let timed = trainer.step(step).expect("a step");
        figures.extend([timed.report.loss.to_bits(), timed.report.gradient_norm.to_bits()]);
        sent += timed.bytes_sent;
        let truncations = timed.report.truncations.into_iter();
        figures.extend(truncations.flat_map(|(id, cut)| {
            let numbers = cut.singular_values.into_iter().chain([cut.error, cut.relative_error]);
            let numbers: Vec<u64> = numbers.map(f64::to_bits).collect();
            [id.0 as u64, cut.rank as u64].into_iter().chain(numbers)
        }));
    }
    let moments = match plan.train.data_parallel.shard_optimizer {
        true => trainer.moments(),
        false => trainer.optimizer.named_tensors(&trainer.params),
    };
    let moments = moments.expect("moments");
    let snapshot = trainer.snapshot(STEPS, moments, serde_json::Value::Null).expect("a snapshot");
    let mut tensors: Vec<_> = snapshot.model.into_iter().chain(snapshot.optimizer).collect();
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    let bits = tensors.into_iter().map(|(name, tensor)| {
        let numbers = tensor.to_dtype(candle_core::DType::F32).and_then(|t| t.flatten_all());
        let numbers = numbers.and_then(|t| t.to_vec1::<f32>()).expect("numbers");
        (name, numbers.into_iter().map(f32::to_bits).collect())
    });
    Trained { figures, tensors: bits.collect(), sent }
}

fn check(spec: &str, portable: bool) {
    check_plan(spec, portable, small(spec, portable));
}

fn check_plan(spec: &str, portable: bool, mut plan: Plan) {
    let Trained { figures, tensors, sent } = trained(&plan, &Alone);
    assert_eq!(sent, 0);
    for (world, shard_optimizer) in [(2, false), (3, false), (5, false), (2, true), (5, true)] {
        plan.train.data_parallel.shard_optimizer = shard_optimizer;
        for (rank, shared) in
            Channels::run(world, |processes| trained(&plan, processes)).into_iter().enumerate()
        {
            let place = format!(
                "{spec}, rank {rank} of {world}, portable {portable}, sharded {shard_optimizer}"
            );
            assert_eq!(shared.figures, figures, "{place}: losses and norms");
            // Sharded, all moments are with the process that writes.
            let has = |name: &str| rank == 0 || !shard_optimizer || !name.contains('/');
            let expected: Vec<_> = tensors.iter().filter(|(name, _)| has(name)).collect();
            assert_eq!(expected.len(), shared.tensors.len(), "{place}");
            for ((name, ours), (other, theirs)) in expected.into_iter().zip(&shared.tensors) {
                assert!(name == other && ours == theirs, "{place}: {name}");
            }
            assert!(shared.sent > 0 || world == 5, "{place} has sent nothing");
        }
    }
}

#[test]
fn any_number_of_processes_gives_the_same_bytes() {
    let folder = format!("{}/configs/methods", env!("CARGO_MANIFEST_DIR"));
    let mut specs: Vec<String> = std::fs::read_dir(folder)
        .expect("configs/methods")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    specs.sort();
    assert!(specs.len() >= 16);
    for spec in specs {
        check(&spec, false);
    }
}

/// Sums in another order are the same up to rounding, and the same on all processes.
#[test]
fn without_the_order_of_one_process_losses_differ_by_rounding() {
    for (spec, sharded) in [("dlra-budget.yaml", false), ("dlra-budget.yaml", true)] {
        let mut plan = small(spec, false);
        let alone = trained(&plan, &Alone);
        plan.train.data_parallel.deterministic = false;
        plan.train.data_parallel.shard_optimizer = sharded;
        let all = Channels::run(3, |processes| trained(&plan, processes));
        let number = |bits: &u64| f64::from_bits(*bits);
        for (ours, theirs) in all[0].figures.iter().zip(&alone.figures).take(2) {
            let (ours, theirs) = (number(ours), number(theirs));
            assert!((ours - theirs).abs() < 1e-5 * theirs.abs(), "{ours} for {theirs}");
        }
        for shared in &all[1..] {
            assert_eq!(shared.figures, all[0].figures);
            let parameters = |trained: &Trained| -> Vec<_> {
                let tensors = trained.tensors.iter().filter(|(name, _)| !name.contains('/'));
                tensors.cloned().collect()
            };
            assert_eq!(parameters(shared), parameters(&all[0]));
        }
    }
}

#[test]
fn so_does_the_path_of_a_device() {
    ["dense-adamw.yaml", "dlra-budget.yaml", "dlra-augmented-bug.yaml"]
        .into_iter()
        .for_each(|spec| check(spec, true));
}

/// Dense gradients on the way, then second moments of whole weights at the cuts of steps 3, 6 and 9,
/// and the gradients of factors as weights become them.
#[test]
fn weights_that_are_dense_until_they_are_cut() {
    let settings = [
        "model.weights={low_rank: {rank: full, start: dense}}",
        "rank={budget: {final_rank: 4, schedule: cubic, norm: fisher, every: 3, settle: 1, start: 2, freeze: 9}}",
    ];
    for portable in [false, true] {
        let plan = small_with("dlra-budget.yaml", portable, &settings);
        let tensors = trained(&plan, &Alone).tensors;
        assert!(tensors.iter().any(|(name, _)| name.ends_with(".attn.q.u")), "factors at the end");
        check_plan("dense until cut", portable, plan);
    }
}

/// Second moments on the way: of inputs at every step, for the momentum, and of everything at every
/// second, which states carry from cut to cut; the second time from matrices that are dense until a
/// cut.
#[test]
fn second_moments_that_steps_measure() {
    let carried = "norm: fisher, moment_decay: 0.5, moment_every: 2";
    let cycle = "grow_by: 2, max_rank: 10, every: 4, settle: 2, start: 2, freeze: 20";
    let growing = [
        "optimizer.low_rank.dlra.momentum=input_whitened_spectral".to_owned(),
        format!("rank={{budget: {{final_rank: 5, {cycle}, {carried}}}}}"),
    ];
    let dense = [
        "model.weights={low_rank: {rank: full, start: dense}}".to_owned(),
        format!(
            "rank={{budget: {{final_rank: 4, every: 3, settle: 1, start: 2, freeze: 9, {carried}}}}}"
        ),
    ];
    for (settings, portable) in [(&growing, false), (&growing, true), (&dense, false)] {
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        check_plan("measured", portable, small_with("dlra-budget.yaml", portable, &settings));
    }
}
