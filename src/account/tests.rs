//! The account of a tiny network, counted by hand.

mod architectures;

use super::*;

/// 2 blocks, 2 heads, width 8, block 4, vocabulary 10, rank 2, except v (rank 3) and down (dense);
/// batch 3 × 2.
fn tiny(kind: &str, rule: &str, bias: bool) -> Plan {
    let text = format!(
        "name: tiny\n\
         model: {{n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, bias: {bias}, weights: {kind}}}\n\
         data: {{source: cargo_registry, tokenizer: bytes}}\n\
         train: {{max_steps: 7, batch_size: 3, gradient_accumulation_steps: 2}}\n\
         {rule}\n\
         schedule: {{constant: {{warmup_steps: 0}}}}\n"
    );
    crate::spec::parse_plan(&text, "tiny.yaml", &[]).expect("a good spec").1
}

const LOW_RANK: &str = "{low_rank: {rank: 2, targets: {v: 3, down: dense}}}";

#[test]
fn parameters_of_a_tiny_model() {
    let ledger = Ledger::new(&tiny(LOW_RANK, "", true), 10, 1);
    let parameters = &ledger.parameters;
    assert_eq!((parameters.token_embedding, parameters.norms), (80, 40));
    assert_eq!((parameters.positions, parameters.head), (Some(32), None));
    // Norm biases 5·8, and per block 4·8 (q, k, v, o) + 32 (up) + 8 (down).
    assert_eq!(parameters.biases, 40 + 2 * 72);
    // q: (8 + 8)·2 + 4 = 36, v: 16·3 + 9 = 57, up: (32 + 8)·2 + 4 = 84, down: 256; two blocks.
    let counts: Vec<u64> = parameters.targets.iter().map(|target| target.parameters).collect();
    assert_eq!(counts, [72, 72, 114, 72, 168, 512]);
    assert_eq!(parameters.total(), 80 + 32 + 40 + 184 + 1010);
    assert_eq!(parameters.dense_equivalent(), 80 + 32 + 40 + 184 + 2 * (4 * 64 + 2 * 256));
}

#[test]
fn operations_of_a_tiny_model() {
    let flops = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1).flops;
    assert_eq!(flops.forward_products_per_token, 2 * 1010);
    assert_eq!(flops.forward_attention_per_token, 2 * 2 * 8 * 5);
    assert_eq!(flops.forward_head_per_token, 160);
    // The r × r products, 2·(4 + 4 + 9 + 4 + 4) in each of two blocks, are needed twice, not three
    // times.
    assert_eq!(flops.training_per_token, 3 * (2020 + 160 + 160) - 2 * 2 * 25);
    let dense = Ledger::new(&tiny("dense", "", false), 10, 1).flops;
    assert_eq!(dense.forward_products_per_token, 2 * 2 * (4 * 64 + 2 * 256));
    assert_eq!(dense.training_per_token, 3 * dense.forward_per_token());
    assert_eq!(dense.low_rank_optimizer_per_step, 0);
}

#[test]
fn memory_of_a_tiny_model_on_a_device_in_bf16() {
    let memory =
        Ledger::new(&tiny(LOW_RANK, "dtype: {compute: bf16}\nlinalg: device", false), 10, 8).memory;
    let in_f32 = Ledger::new(&tiny(LOW_RANK, "linalg: host", false), 10, 8).memory;
    assert_eq!(
        (memory.weights, memory.gradients, memory.moments),
        (in_f32.weights, in_f32.gradients, in_f32.moments)
    );
    // Per token and block in f32 both norms' inputs and statistics and H = 22, in bf16 10 C and the
    // ranks = 91; at the end 2 C + 2 and C.
    assert_eq!(memory.activations, 12 * (4 * (2 * 22 + 18) + 2 * (2 * 91 + 8)) + 2 * (152 + 1010));
    // In all, tangent gradient, new weight and moment; in hand q, k and o of both blocks: 4 · 32 +
    // 2 · 4 + 12 · 4 each, and three of 36.
    let all = 2 * 3 * (3 * 36 + 57 + 84);
    assert_eq!(memory.optimizer, 4 * (all + 2 * 3 * (184 + 3 * 36)));
}

#[test]
fn memory_of_a_tiny_model() {
    let memory = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1).memory;
    let rest = 80 + 32 + 40;
    assert_eq!(memory.weights, 4 * (rest + 1010));
    // Without r²: q, k, o 32 each, v 48, up 80, down 256.
    assert_eq!(memory.gradients, 4 * (rest + 2 * (3 * 32 + 48 + 80 + 256)));
    // Spectral keeps one moment of the shape of (U, S, V); AdamW keeps two.
    assert_eq!(memory.moments, 4 * (2 * rest + 2 * (3 * 36 + 57 + 84) + 2 * 2 * 256));
    // Per token and block 12 C + 4 + H + (2 + 2 + 3 + 2 + 2) = 113; at the end 3 C + 2; 12 tokens
    // in a micro-batch.
    assert_eq!(memory.activations, 4 * 12 * (2 * 113 + 26));
    assert_eq!(memory.head_gradient, 4 * 80);
    // Up, 32 × 8 at rank 2, is the largest: 4·80 + 14·4.
    let low_rank = 2 * (3 * 36 + 57 + 84);
    assert_eq!(memory.optimizer, 4 * (3 * low_rank + 320 + 56));
    // 10 C for each of 12 tokens, more than their 10 logits each.
    assert_eq!(memory.backward, 4 * 12 * 80);
    let state = memory.weights + memory.gradients + memory.moments;
    assert_eq!(memory.peak(), state + memory.activations + memory.head_gradient + memory.backward);
}

#[test]
fn adam_keeps_second_moments_and_factors_have_no_core() {
    let spectral = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1);
    let adam = Ledger::new(
        &tiny(LOW_RANK, "optimizer: {low_rank: {dlra: {momentum: adam}}}", false),
        10,
        1,
    );
    assert_eq!(adam.memory.moments - spectral.memory.moments, 4 * 2 * (3 * 36 + 57 + 84));
    let factored = Ledger::new(&tiny("{factored: {rank: 2}}", "", false), 10, 1);
    assert_eq!(factored.parameters.total(), 152 + 2 * 2 * (4 * 16 + 2 * 40));
    assert_eq!(factored.memory.moments, 2 * factored.memory.weights);
    assert_eq!(factored.memory.gradients, factored.memory.weights);
    assert_eq!(factored.flops.training_per_token, 3 * factored.flops.forward_per_token());
    assert_eq!(factored.memory.optimizer, 0);
}

#[test]
fn muon_is_counted() {
    let plain = Ledger::new(&tiny("dense", "", false), 10, 1);
    let muon = Ledger::new(&tiny("dense", "optimizer: {matrices: {muon: {}}}", false), 10, 1);
    // Two blocks of four 8 × 8 and two 32 × 8 matrices, five iterations each.
    let polar = 2 * 5 * (4 * (4 * 64 * 8 + 2 * 512) + 2 * (4 * 64 * 32 + 2 * 512));
    assert_eq!(muon.flops.matrix_optimizer_per_step, polar);
    assert_eq!(muon.flops_per_step() - plain.flops_per_step(), polar);
    // One moment instead of two for the matrices.
    assert_eq!(plain.memory.moments - muon.memory.moments, 4 * 2 * (4 * 64 + 2 * 256));
}

/// Beside plain Muon's: n² of every second moment, 64 of 8 inputs and 1024 of 32; a Cholesky factor
/// and two divisions, 2 m n², of each matrix; and the same of weights that are dense until a cut.
#[test]
fn whitened_momenta_of_full_matrices_are_counted() {
    let muon = |keys: &str| {
        let rule = format!("optimizer: {{matrices: {{muon: {{{keys}}}}}}}");
        Ledger::new(&tiny("dense", &rule, false), 10, 1)
    };
    let uncut = |momentum: &str| {
        let rule = format!(
            "optimizer: {{low_rank: {{dlra: {{momentum: {momentum}}}}}}}\n\
             rank: {{budget: {{final_share: 0.5, every: 2, start: 1, freeze: 6}}}}"
        );
        Ledger::new(&tiny("{low_rank: {rank: full, start: dense}}", &rule, false), 10, 1)
    };
    let squares = 2 * (5 * 64 + 1024);
    let solves =
        2 * (4 * (512 / 3 + 2 * 8 * 64) + (512 / 3 + 2 * 32 * 64)) + 2 * (32768 / 3 + 2 * 8 * 1024);
    for [plain, whitened] in [
        [muon(""), muon("input_damping: 0.2")],
        [uncut("spectral"), uncut("input_whitened_spectral")],
    ] {
        assert_eq!(whitened.memory.gradients - plain.memory.gradients, 4 * squares);
        assert_eq!(whitened.memory.moments - plain.memory.moments, 4 * squares);
        assert_eq!(whitened.wire.sums_per_step - plain.wire.sums_per_step, squares);
        let more = |count: fn(&FlopLedger) -> u64| count(&whitened.flops) - count(&plain.flops);
        assert_eq!(more(|flops| flops.training_per_token), 2 * squares);
        let optimizer = |flops: &FlopLedger| {
            flops.low_rank_optimizer_per_step + flops.matrix_optimizer_per_step
        };
        assert_eq!(more(optimizer), solves);
    }
    // The new moments, and `down` with what it is divided by, in f64.
    let in_hand = 2 * (8 * 32 + 32 * 32);
    assert_eq!(muon("input_damping: 0.2").memory.optimizer, 4 * (squares + in_hand));
}

fn integrator(keys: &str) -> String {
    format!("optimizer: {{low_rank: {{dlra: {{{keys}}}}}}}")
}

/// The augmented evaluations are those of the same network at twice the rank; tokens are counted
/// once.
#[test]
fn augmented_bug_counts_its_evaluations() {
    let plain = Ledger::new(&tiny(LOW_RANK, "", false), 10, 1);
    let doubled =
        Ledger::new(&tiny("{low_rank: {rank: 4, targets: {v: 6, down: dense}}}", "", false), 10, 1);
    let twice = Ledger::new(
        &tiny(LOW_RANK, &integrator("integrator: augmented_bug, coefficient_steps: 2"), false),
        10,
        1,
    );
    assert_eq!((plain.evaluations_per_step, twice.evaluations_per_step), (1, 3));
    assert_eq!(twice.flops.training_per_token, plain.flops.training_per_token);
    assert_eq!(twice.flops.coefficient_evaluations_per_token, 2 * doubled.flops.training_per_token);
    let optimizer = |ledger: &Ledger| ledger.flops.low_rank_optimizer_per_step;
    let tokens = plain.tokens_per_step;
    let expected =
        plain.flops_per_step() + 2 * tokens * doubled.flops.training_per_token + optimizer(&twice)
            - optimizer(&plain);
    assert_eq!((twice.flops_per_step(), twice.total_tokens()), (expected, plain.total_tokens()));
    // Rest: 152; gradients 2r wide 2·(64·3 + 96 + 160 + 256); twice (36·3 + 57 + 84), the augmented
    // (80·3 + 132 + 176), new directions (32·3 + 48 + 80), three cores of 16·3 + 36 + 16 numbers
    // each.
    let low_rank = 2 * (108 + 57 + 84) + (240 + 132 + 176) + (96 + 48 + 80) + 3 * (48 + 36 + 16);
    assert_eq!(twice.memory.augmented, 4 * (152 + 2 * (192 + 96 + 160 + 256 + low_rank)));
    assert_eq!(twice.memory.activations - plain.memory.activations, 4 * 12 * 2 * 11);
    assert!(
        twice.to_string().contains("evaluations per step                           3"),
        "{twice}"
    );
}

/// A plan's figures of a cycle are means over it; a step's own are those of its phase and rank.
#[test]
fn cycles_are_counted_at_the_ranks_in_force() {
    let plan =
        tiny(LOW_RANK, &integrator("integrator: coefficient_cycle, coefficient_steps: 3"), false);
    let (narrow, wide) = (Ledger::new(&tiny(LOW_RANK, "", false), 10, 1), {
        Ledger::new(&tiny("{low_rank: {rank: 4, targets: {v: 6, down: dense}}}", "", false), 10, 1)
    });
    let cycle = Ledger::new(&plan, 10, 1);
    assert_eq!(
        cycle.flops.training_per_token,
        (narrow.flops.training_per_token + 3 * wide.flops.training_per_token) / 4
    );
    assert_eq!(cycle.evaluations_per_step, 1);
    assert_eq!(
        (cycle.memory.weights, cycle.memory.moments),
        (wide.memory.weights, wide.memory.moments)
    );
    assert_eq!(cycle.parameters.total(), narrow.parameters.total());
    let doubled = |_: usize, target: crate::spec::Target| {
        Some(if target == crate::spec::Target::V { 6 } else { 4 })
    };
    let steps: Vec<FlopLedger> =
        (1..=7).map(|step| FlopLedger::at_step(&plan, 10, step, &doubled)).collect();
    assert_eq!(steps[1].training_per_token, wide.flops.training_per_token);
    // Steps 4 and 7 truncate, the last because the run ends.
    let optimizer: Vec<u64> =
        steps.iter().map(|ledger| ledger.low_rank_optimizer_per_step).collect();
    assert!(
        optimizer[3] > optimizer[1]
            && optimizer[6] == optimizer[3]
            && optimizer[1] == optimizer[2]
            && optimizer[4] == optimizer[0]
    );
}

#[test]
fn free_factors_of_three() {
    let two = Ledger::new(&tiny("{factored: {rank: 2}}", "", false), 10, 1);
    let three = Ledger::new(&tiny("{factored: {rank: 2, form: usv}}", "", false), 10, 1);
    // Twelve matrices with an S of 2 × 2 more.
    assert_eq!(three.parameters.total() - two.parameters.total(), 12 * 4);
    assert_eq!(three.memory.moments, 2 * three.memory.weights);
    assert_eq!(three.memory.gradients, three.memory.weights);
    // Unlike on the manifold, S has its own gradient product.
    assert_eq!(three.flops.training_per_token, 3 * three.flops.forward_per_token());
    assert_eq!(
        three.flops.forward_products_per_token - two.flops.forward_products_per_token,
        12 * 2 * 4
    );
    // x V Sᵀ of rank 2 is kept beside x V by each matrix, for 12 tokens.
    assert_eq!(three.memory.activations - two.memory.activations, 4 * 12 * 12 * 2);
}

#[test]
fn loro_is_counted() {
    let rule = "optimizer: {low_rank: {loro: {exact_every: 4, restart_warmup_steps: 2}}}";
    let plain = Ledger::new(&tiny("{factored: {rank: 2}}", "", false), 10, 1);
    let loro = Ledger::new(&tiny("{factored: {rank: 2}}", rule, false), 10, 1);
    // q, k, v, o are 8 × 8, up 32 × 8, down 8 × 32: 31 (m + n) 4 + 2 n 4 + 170 · 8.
    let square = 31 * 16 * 4 + 2 * 8 * 4 + 1360;
    let (up, down) = (31 * 40 * 4 + 2 * 8 * 4 + 1360, 31 * 40 * 4 + 2 * 32 * 4 + 1360);
    assert_eq!(loro.flops.low_rank_optimizer_per_step, 2 * (4 * square + up + down) / 4);
    assert_eq!(
        loro.flops_per_step() - plain.flops_per_step(),
        loro.flops.low_rank_optimizer_per_step
    );
    assert_eq!(loro.memory.moments, plain.memory.moments, "Adam's two");
    // New factors and moments of all pairs; in hand an 8 × 32 one: 4·80 + 14·4.
    assert_eq!(loro.memory.optimizer, 4 * (3 * 2 * (4 * 32 + 2 * 80) + 320 + 56));
}

#[test]
fn galore_is_counted() {
    let plain = Ledger::new(&tiny("dense", "", false), 10, 1);
    let galore = Ledger::new(
        &tiny("dense", "optimizer: {matrices: {galore: {rank: 3, refresh_every: 2}}}", false),
        10,
        1,
    );
    // 4 m n r and half an SVD of 14 a² b + 8 a³.
    let per_block = 4 * (4 * 64 * 3 + (14 * 64 * 8 + 8 * 512) / 2)
        + 2 * (4 * 256 * 3 + (14 * 64 * 32 + 8 * 512) / 2);
    assert_eq!(galore.flops.matrix_optimizer_per_step, 2 * per_block);
    assert_eq!(galore.flops_per_step() - plain.flops_per_step(), 2 * per_block);
    // Two moments of 3 × max(m, n) and a projector of min(m, n) × 3 instead of two of m × n.
    let (moments, full) = (2 * (4 * 3 * 24 + 2 * 3 * 72), 2 * 2 * (4 * 64 + 2 * 256));
    assert_eq!(plain.memory.moments - galore.memory.moments, 4 * (full - moments));
    // New weights and moments; in hand the SVD of 32 × 8 in f64: 2 · 256 for the gradient, 40 · 8
    // for the bases.
    assert_eq!(galore.memory.optimizer, 4 * (2 * (4 * 64 + 2 * 256) + moments + 2 * (512 + 320)));
    assert_eq!(plain.memory.optimizer, 0);
}

/// Until they are cut, weights count and cost what dense ones under the counterpart of their rule do.
#[test]
fn a_dense_start_is_counted_as_dense() {
    let rule = |momentum: &str| {
        format!(
            "optimizer: {{low_rank: {{dlra: {{momentum: {momentum}}}}}}}\n\
             rank: {{budget: {{final_rank: 2, norm: frobenius, every: 1, settle: 0, start: 1, freeze: 6}}}}"
        )
    };
    let uncut = |momentum: &str| {
        Ledger::new(&tiny("{low_rank: {rank: full, start: dense}}", &rule(momentum), false), 10, 1)
    };
    let dense = |rule: &str| Ledger::new(&tiny("dense", rule, false), 10, 1);
    let (spectral, muon) = (uncut("spectral"), dense("optimizer: {matrices: {muon: {}}}"));
    assert_eq!(spectral.parameters.total(), muon.parameters.total());
    assert_eq!(spectral.parameters.manifold_dimension(), muon.parameters.total());
    assert_eq!(spectral.flops_per_step(), muon.flops_per_step());
    let state = |memory: &MemoryLedger| {
        (memory.weights, memory.gradients, memory.moments, memory.activations)
    };
    assert_eq!(state(&spectral.memory), state(&muon.memory));
    assert_eq!(spectral.wire.sums_per_step, spectral.wire.dense_sums_per_step);
    // A new weight and moment of 2 (4 · 64 + 2 · 256) numbers each; in hand two copies of a matrix
    // of 256 in f64 and bases of 40 · 8.
    assert_eq!(spectral.memory.optimizer, 4 * (2 * 1536 + 2 * (2 * 256 + 320)));
    let (adam, adamw) = (uncut("adam"), dense(""));
    assert_eq!(state(&adam.memory), state(&adamw.memory));
    assert_eq!(adam.flops_per_step(), adamw.flops_per_step());
    assert!(spectral.to_string().contains("8 × 8, dense until cut"), "{spectral}");
    // Once all are of rank 2, they cost what factors do that start so.
    let plan = tiny("{low_rank: {rank: full, start: dense}}", &rule("spectral"), false);
    let after = FlopLedger::at_step(&plan, 10, 7, &|_, _| Some(2));
    let factors = tiny("{low_rank: {rank: 2}}", "", false);
    assert_eq!(after, FlopLedger::at_step(&factors, 10, 7, &|_, _| None));
}

/// The parts of all processes are the whole, for every rule, and two processes hold less.
#[test]
fn shards_hold_what_one_process_does() {
    let plans = [
        tiny(LOW_RANK, "", true),
        tiny("{factored: {rank: 2}}", "optimizer: {low_rank: {loro: {}}}", false),
        tiny("dense", "optimizer: {matrices: {galore: {rank: 2}}}", false),
        tiny("dense", "optimizer: {matrices: {muon: {}}}", false),
        tiny(LOW_RANK, "optimizer: {low_rank: {dlra: {integrator: augmented_bug}}}", false),
    ];
    for mut plan in plans {
        let whole = Ledger::new(&plan, 10, 1);
        plan.train.data_parallel.shard_optimizer = true;
        let sharded = Ledger::new(&plan, 10, 1);
        assert_eq!(whole.memory, sharded.memory);
        let shards = sharded.shards.as_ref().expect("shards");
        assert_eq!(shards.peak(&sharded.memory, 1), whole.memory.peak(), "{:?}", plan.optimizer);
        let state = |peak: u64| peak - whole.memory.weights - whole.memory.gradients;
        let [one, two] = [1, 2].map(|processes| state(sharded.peak_of_process(processes)));
        assert!(two < one, "{:?}: {two} of {one}", plan.optimizer);
        assert_eq!(whole.peak_of_process(2), whole.memory.peak());
    }
}

/// Two processes, two micro-batches: the sums go to the second, half of them back to the first, and
/// every owner sends its weights to the other.
#[test]
fn shards_of_a_tiny_model_on_the_wire() {
    let mut plan = tiny(LOW_RANK, "", false);
    plan.train.data_parallel.shard_optimizer = true;
    let ledger = Ledger::new(&plan, 10, 1);
    let (sums, weights) = (ledger.wire.sums_per_step, ledger.parameters.trained());
    let sent = ledger.wire_bytes_per_step(2);
    assert!((4 * (sums + weights)..4 * (2 * sums + weights)).contains(&sent), "{sent}");
    assert_eq!(ledger.wire_bytes_per_step(1), 0);
}
