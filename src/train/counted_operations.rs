//! The operations that training steps really run, beside those of the account, for every method.
//!
//! What the account leaves out or rounds by its own words is stated here exactly: attention works
//! in whole tiles of scores and computes them once more in the backward, and S goes into a basis
//! where that is cheaper than onto every token. With those two the network's count is exact. The
//! optimizer's is exact too, but for the new directions: the account has 16 (m + n) r² for them,
//! two passes of Cholesky-QR take 12 (m + n) r², three take 20, and each adds a few r³.

use super::Trainer;
use crate::account::FlopLedger;
use crate::data::TokenShard;
use crate::ops::work;
use crate::params::{Place, Role, Weight};
use crate::spec::{Plan, Target, load_plan};
use candle_core::Device;
use std::path::Path;
use std::sync::Arc;

const VOCABULARY: usize = 50;
/// Rows of scores that attention has at a time.
const TILE: usize = 64;

/// A method's spec, smaller, and as many steps as it takes for rare events to come as often as the
/// account assumes.
struct Case {
    method: &'static str,
    steps: u64,
    overrides: &'static [&'static str],
    /// Operations by r³ that a step adds for a weight beside the account's, at most.
    cubes: u64,
}

const LOW_RANK: &str = "model.weights.low_rank.rank=8";
const LLAMA: &[&str] = &["model.arch=llama", "model.n_kv_head=1"];
const DENSE_START: &[&str] = &[
    "model.weights={low_rank: {rank: full, start: dense}}",
    "rank={budget: {final_rank: 8, every: 4, start: 5, freeze: 20}}",
];
/// Queries, keys and values from one matrix.
const FUSED: &str = "model.fused_qkv=true";
const FACTORED: &str = "model.weights.factored.rank=8";

const CASES: &[Case] = &[
    Case { method: "dense-adamw", steps: 1, overrides: &[], cubes: 0 },
    Case { method: "dense-muon", steps: 1, overrides: &[], cubes: 0 },
    Case {
        method: "dense-muon",
        steps: 2,
        overrides: &["optimizer.matrices.muon.input_damping=0.2"],
        cubes: 0,
    },
    Case {
        method: "galore",
        steps: 4,
        overrides: &["optimizer.matrices.galore={rank: 8, refresh_every: 2}"],
        cubes: 0,
    },
    Case { method: "factored-adamw", steps: 1, overrides: &[FACTORED], cubes: 0 },
    Case { method: "factored-heavy-ball", steps: 1, overrides: &[FACTORED], cubes: 0 },
    Case { method: "factored-usv-adamw", steps: 1, overrides: &[FACTORED], cubes: 0 },
    Case { method: "factored-usv-heavy-ball", steps: 1, overrides: &[FACTORED], cubes: 0 },
    Case {
        method: "loro",
        steps: 4,
        overrides: &[
            FACTORED,
            "optimizer.low_rank.loro.exact_every=2",
            "optimizer.low_rank.loro.restart_warmup_steps=1",
        ],
        cubes: 12,
    },
    Case { method: "dlra-spectral", steps: 3, overrides: &[LOW_RANK], cubes: 12 },
    Case { method: "dlra-spectral-nesterov", steps: 3, overrides: &[LOW_RANK], cubes: 12 },
    Case { method: "dlra-heavy-ball", steps: 3, overrides: &[LOW_RANK], cubes: 12 },
    // Besides 12 r² for weights that are the same in every row.
    Case { method: "dlra-adam", steps: 3, overrides: &[LOW_RANK], cubes: 14 },
    Case { method: "dlra-matrix-adam", steps: 3, overrides: &[LOW_RANK], cubes: 12 },
    // Two square roots come with inverses that nobody needs, 2 r³ each.
    Case {
        method: "dlra-matrix-adam",
        steps: 3,
        overrides: &[LOW_RANK, "optimizer.low_rank.dlra.momentum=whitened_spectral"],
        cubes: 16,
    },
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[LOW_RANK, "optimizer.low_rank.dlra.momentum=input_whitened_spectral"],
        cubes: 12,
    },
    Case { method: "dlra-augmented-bug", steps: 3, overrides: &[LOW_RANK], cubes: 12 },
    // Single blocks with ranks of their own.
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[LOW_RANK, "model.weights.low_rank.layers=[{q: 12, up: 5}, {down: 10}]"],
        cubes: 12,
    },
    // Only adapters are trained: on everything, and on what leaves the first block's attention
    // without a gradient.
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &["init={run: source}", "model.weights={adapter: {rank: 8}}"],
        cubes: 12,
    },
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[
            "init={run: source}",
            "model.weights={adapter: {rank: 8, targets: [o, down]}}",
        ],
        cubes: 12,
    },
    Case {
        method: "factored-adamw",
        steps: 1,
        overrides: &[
            "init={run: source}",
            "model.weights={adapter: {rank: 8, form: lora, targets: [q, up]}}",
        ],
        cubes: 0,
    },
    // One beside the head, with others and alone, when no gradient passes through the blocks.
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &["init={run: source}", "model.weights={adapter: {rank: 8, head: 5}}"],
        cubes: 12,
    },
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[
            "init={run: source}",
            "model.weights={adapter: {rank: 8, head: 5, targets: []}}",
        ],
        cubes: 12,
    },
    Case {
        method: "factored-adamw",
        steps: 1,
        overrides: &[
            "init={run: source}",
            "model.weights={adapter: {rank: 8, head: 5, form: lora, targets: [q, up]}}",
        ],
        cubes: 0,
    },
    // In the first block o has no adapter, and in the second q has none.
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[
            "init={run: source}",
            "model.weights={adapter: {rank: 8, targets: [q, o, down], layers: [{o: 0, down: 4}, {q: 0}]}}",
        ],
        cubes: 12,
    },
    Case {
        method: "dlra-coefficient-cycle",
        steps: 4,
        overrides: &[LOW_RANK, "optimizer.low_rank.dlra.coefficient_steps=3"],
        cubes: 12,
    },
    // Dense until a cut, which these steps do not reach.
    Case { method: "dlra-budget", steps: 2, overrides: DENSE_START, cubes: 0 },
    Case {
        method: "dlra-budget",
        steps: 2,
        overrides: &[
            DENSE_START[0],
            DENSE_START[1],
            "optimizer.low_rank.dlra.momentum=input_whitened_spectral",
        ],
        cubes: 0,
    },
    Case { method: "dense-adamw", steps: 1, overrides: LLAMA, cubes: 0 },
    Case { method: "dense-muon", steps: 1, overrides: LLAMA, cubes: 0 },
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[LOW_RANK, "model.arch=llama", "model.n_kv_head=1", "model.n_inner=104"],
        cubes: 12,
    },
    Case {
        method: "dlra-augmented-bug",
        steps: 3,
        overrides: &[LOW_RANK, "model.arch=llama", "model.tie_word_embeddings=true"],
        cubes: 12,
    },
    Case { method: "dense-muon", steps: 1, overrides: &[FUSED], cubes: 0 },
    Case { method: "dlra-spectral", steps: 3, overrides: &[LOW_RANK, FUSED], cubes: 12 },
    Case {
        method: "dlra-adam",
        steps: 3,
        overrides: &[LOW_RANK, "model.arch=llama", "model.n_kv_head=1", FUSED],
        cubes: 14,
    },
    Case {
        method: "dlra-budget",
        steps: 2,
        overrides: &[DENSE_START[0], DENSE_START[1], FUSED],
        cubes: 0,
    },
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &["init={run: source}", "model.weights={adapter: {rank: 8}}", FUSED],
        cubes: 12,
    },
    // The MLP of a GPT-2 may be of another width, and its head its own.
    Case {
        method: "dlra-spectral",
        steps: 3,
        overrides: &[LOW_RANK, "model.n_inner=80", "model.tie_word_embeddings=false"],
        cubes: 12,
    },
];

fn small(case: &Case) -> Plan {
    let path = format!("{}/configs/methods/{}.yaml", env!("CARGO_MANIFEST_DIR"), case.method);
    let common = [
        "model.n_layer=2",
        "model.n_head=2",
        "model.n_embd=64",
        "model.block_size=96",
        "train={max_steps: 30, batch_size: 2}",
        "schedule={constant: {warmup_steps: 0}}",
        "device=cpu",
    ];
    let overrides: Vec<String> =
        common.iter().chain(case.overrides).map(|text| (*text).to_owned()).collect();
    // Operations depend on no numbers: there need be no source.
    Plan { init: None, ..load_plan(Path::new(&path), &overrides).expect(case.method).1 }
}

/// Operations, and those of new directions that depend on how many passes they take.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    counted: u64,
    expected: u64,
    ledger: u64,
    /// Σ (m + n) r² and Σ r³ over weights and steps that look for new directions.
    sides: u64,
    cubes: u64,
}

#[test]
fn the_account_is_what_steps_run() {
    for case in CASES {
        let plan = small(case);
        let sums = work::on_one_thread(|| run(&plan, case.steps));
        let name = format!("{} {:?}: {sums:?}", case.method, case.overrides.last());
        let (low, high) = (
            sums.expected.saturating_sub(4 * sums.sides + 3 * sums.cubes),
            sums.expected + 4 * sums.sides + case.cubes * sums.cubes,
        );
        // The SVD of a square matrix is 21 n³ in one of the account's formulas and 22 n³ in others.
        let svd = if case.method == "galore" { sums.ledger / 100 } else { 0 };
        assert!((low.saturating_sub(svd)..=high).contains(&sums.counted), "{name}");
        // Attention's tiles are the largest part of what the account does not have.
        let ratio = sums.counted as f64 / sums.ledger as f64;
        assert!((0.9..1.35).contains(&ratio), "{ratio} {name}");
    }
}

/// Takes a plan's first steps on tokens of no meaning.
fn run(plan: &Plan, steps: u64) -> Sums {
    let tokens: Vec<u32> =
        (0..20_000u64).map(|i| ((i * i / 7 + i) % VOCABULARY as u64) as u32).collect();
    let text = Arc::new(TokenShard::from_tokens(tokens));
    let mut trainer =
        Trainer::fresh(plan, &Device::Cpu, VOCABULARY, text).expect("a trainer of a small plan");
    let mut sums = Sums::default();
    for step in 1..=steps {
        let (ledger, left_out) = (trainer.flops_of_step(step), left_out(&trainer, plan, step));
        let before = work::so_far();
        trainer.step(step).expect("a step on finite numbers");
        let counted = work::so_far() - before;
        sums.counted += counted;
        sums.ledger += ledger;
        sums.expected += ledger.checked_add_signed(left_out).expect("more than nothing");
        for (sides, cubes) in looking_for_directions(&trainer, plan, step) {
            sums.sides += sides;
            sums.cubes += cubes;
        }
        eprintln!("{} step {step}: counted {counted}, {sums:?}", plan.name);
    }
    sums
}

/// What a step's evaluations run more (or less) than the account says.
fn left_out(trainer: &Trainer, plan: &Plan, step: u64) -> i64 {
    let (tokens, block, width) =
        (plan.tokens_per_step, plan.model.block_size as u64, plan.model.n_embd as u64);
    let evaluations = plan.optimizer.dlra().map_or(1, |dlra| dlra.evaluations_per_step());
    // Two products forward and five backward, in whole tiles.
    let scores: u64 = (0..block)
        .step_by(TILE)
        .map(|first| {
            let rows = (TILE as u64).min(block - first);
            rows * (first + rows)
        })
        .sum();
    let (layers, lowest) = (plan.model.n_layer as u64, lowest_trained(plan));
    // No gradient passes through the first block's attention where nothing is trained below it, and
    // through none where the head alone is.
    let stopped = match lowest.first().copied() {
        Some(Target::HEAD) => layers,
        Some(target) => u64::from(target != plan.model.targets()[0]),
        None => 0,
    };
    let passed = 7 * layers - 5 * stopped;
    let attention = passed * 2 * width * scores * plan.train.batch_size as u64;
    let ledger = FlopLedger::at_step(plan, VOCABULARY as u64, step, &|_, _| None);
    let of_ledger = (3 * layers - 2 * stopped) * ledger.forward_attention_per_token / layers;
    let more = evaluations * (attention - of_ledger * tokens);
    // S goes into U or V where they have fewer rows than there are tokens.
    let less: u64 = trainer
        .params
        .low_rank()
        .map(|(_, parameter, point)| {
            let saved = |rows: usize| tokens.saturating_sub(rows as u64);
            let is_lowest = match parameter.role {
                // There S always goes onto the rows of h V.
                Role::Matrix(Place { target: Target::HEAD, .. }) => return 0,
                Role::Matrix(place) => place.layer == 0 && lowest.contains(&place.target),
                _ => false,
            };
            // The lowest pass no gradient on to their input.
            let back = if is_lowest { 0 } else { saved(point.columns()) };
            let saved = saved(point.rows()) + back;
            let first = 2 * (point.rank() as u64).pow(2) * saved;
            // In augmented bases S is 2r × 2r.
            first + (evaluations - 1) * 4 * first
        })
        .sum();
    more as i64 - less as i64
}

/// Where only adapters are trained, the first matrices of the first block with adapters: those that
/// work on the same input; the head where it alone is. None where everything is trained.
fn lowest_trained(plan: &Plan) -> Vec<Target> {
    let is_adapted = |target: &Target| plan.model.form(*target).is_adapter();
    let first = plan.model.targets().iter().copied().find(|target| is_adapted(target));
    match first {
        Some(Target::Q | Target::K | Target::V) => vec![Target::Q, Target::K, Target::V],
        None if plan.model.is_adapted() => vec![Target::HEAD],
        other => other.into_iter().collect(),
    }
}

/// (m + n) r² and r³ of the weights that look for new directions at this step, after it.
fn looking_for_directions(trainer: &Trainer, plan: &Plan, step: u64) -> Vec<(u64, u64)> {
    let exact = plan.optimizer.loro().is_some_and(|loro| step.is_multiple_of(loro.exact_every.0));
    let sizes = |rows: usize, columns: usize, rank: usize| {
        let [rows, columns, rank] = [rows, columns, rank].map(|size| size as u64);
        ((rows + columns) * rank * rank, rank * rank * rank)
    };
    let size = |weight: &Weight, role: Role| match (weight, role) {
        (Weight::LowRank(point), _) => Some(sizes(point.rows(), point.columns(), point.rank())),
        // Each of a pair's factors stands for its own side.
        (Weight::Dense(w), Role::Factor(..)) if exact => {
            let (rows, columns) = w.dims2().ok()?;
            Some(sizes(rows.max(columns), 0, rows.min(columns)))
        }
        _ => None,
    };
    trainer.params.iter().filter_map(|(_, p)| size(&p.weight, p.role)).collect()
}
