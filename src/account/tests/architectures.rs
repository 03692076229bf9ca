//! Grouped queries, adapters and Llamas, counted by hand.

use super::*;

/// Keys and values of one head beside two of queries are half as wide.
#[test]
fn fewer_heads_of_keys_are_counted() {
    let text = |keys: &str| {
        format!(
            "name: tiny\nmodel: {{n_layer: 2, n_head: 2, {keys}n_embd: 8, block_size: 4, bias: true, weights: dense}}\n\
             data: {{source: cargo_registry, tokenizer: bytes}}\ntrain: {{max_steps: 7, batch_size: 3}}\n"
        )
    };
    let ledger = |keys: &str| {
        let plan = crate::spec::parse_plan(&text(keys), "tiny.yaml", &[]).expect("a good spec").1;
        (Ledger::new(&plan, 10, 1), plan.hash())
    };
    let ((all, hash), (same, same_hash), (half, half_hash)) =
        (ledger(""), ledger("n_kv_head: 2, "), ledger("n_kv_head: 1, "));
    assert_eq!((&all, &hash), (&same, &same_hash), "said or not, it is the same network");
    assert_ne!(hash, half_hash);
    // In each block two matrices of 8 × 8 are 4 × 8, and their biases half as long.
    assert_eq!(all.parameters.total() - half.parameters.total(), 2 * 2 * (32 + 4));
    let products = |ledger: &Ledger| ledger.flops.forward_products_per_token;
    assert_eq!(products(&all) - products(&half), 2 * 2 * 2 * 32);
    assert_eq!(
        all.flops.forward_attention_per_token, half.flops.forward_attention_per_token,
        "every head of queries still sees every key"
    );
    assert_eq!(all.memory.activations - half.memory.activations, 4 * 12 * 2 * 8);
}

/// Adapters of rank 2 on q and v, 3 on v by its own: everything else is frozen.
fn adapted(form: &str, targets: &str, integrator: &str) -> Ledger {
    let rule = format!("init: {{run: source}}\n{integrator}");
    let kind = format!("{{adapter: {{rank: 2, form: {form}, targets: {targets}}}}}");
    Ledger::new(&tiny(&kind, &rule, true), 10, 1)
}

/// Beside the head, of 10 tokens and 8 wide, an adapter of rank 3; alone, it gets no further than
/// the head.
#[test]
fn an_adapter_of_the_head_is_counted_beside_it() {
    let count = |weights: &str| {
        let kind = format!("{{adapter: {{rank: 2, {weights}}}}}");
        Ledger::new(&tiny(&kind, "init: {run: source}\n", true), 10, 1)
    };
    let (without, with) = (count("targets: [q]"), count("targets: [q], head: 3"));
    let alone = count("targets: [], head: 3");
    let numbers = 3 * (10 + 8) + 9;
    assert_eq!(with.parameters.trained() - without.parameters.trained(), numbers);
    assert_eq!(with.parameters.total() - without.parameters.total(), numbers);
    assert_eq!(alone.parameters.trained(), numbers);
    assert_eq!(with.parameters.dense_equivalent(), without.parameters.dense_equivalent());
    let head = |ledger: &Ledger| ledger.flops.forward_head_per_token;
    assert_eq!((head(&without), head(&with)), (160, 160 + 2 * numbers));
    // Forward, K and L, and back through both; S has no gradient product of its own.
    let training = |ledger: &Ledger| ledger.flops.training_per_token;
    assert_eq!(training(&with) - training(&without), 6 * numbers - 2 * 9);
    // Alone: the blocks (2 of 768) and the head forward, and the adapter without its way back, 2 (n
    // r + r²).
    let own = 6 * numbers - 2 * 9 - 2 * (8 * 3 + 9);
    assert_eq!(training(&alone), 2 * 2 * 768 + 2 * 80 + 160 + own);
    let shown = with.to_string();
    assert!(shown.contains("head  10 × 8, frozen, adapter 3"), "{shown}");
}

#[test]
fn only_adapters_are_trained_and_frozen_matrices_get_no_gradient() {
    let dense = Ledger::new(&tiny("dense", "", true), 10, 1);
    let low_rank = adapted("low_rank", "{q: null, v: 3}", "");
    let lora = adapted("lora", "{q: null, v: 3}", "");
    // q: (8 + 8) · 2 + 4, v: 16 · 3 + 9; LoRA without the r × r.
    assert_eq!((low_rank.parameters.trained(), lora.parameters.trained()), (2 * 93, 2 * 80));
    assert_eq!(low_rank.parameters.total(), dense.parameters.total() + 2 * 93);
    assert_eq!(low_rank.parameters.dense_equivalent(), dense.parameters.total());

    // Per block 768 numbers in full matrices, passed forward and back; in the first block q, k and
    // v (192) pass nothing on to the embedding. The head passes on and gets nothing.
    let frozen = 4 * 768 * 2 - 2 * 192;
    let attention = 3 * 160;
    // Forward, K and L or B and A, and back: three times 2 (m + n) r; in the first block without
    // the input's gradient, 2 n r.
    let factors = 2 * 3 * 2 * (32 + 48) - 2 * 8 * (2 + 3);
    assert_eq!(lora.flops.training_per_token, frozen + attention + 2 * 160 + factors);
    // S forward in both blocks and back in the second.
    let coefficients = 3 * 2 * (4 + 9);
    assert_eq!(
        low_rank.flops.training_per_token,
        frozen + attention + 2 * 160 + factors + coefficients
    );
    assert_eq!(low_rank.flops.forward_products_per_token, 2 * 2 * (768 + 93));

    // Nothing below the first block's o is trained.
    let late = adapted("lora", "[down]", "");
    let first = 2 * 768 + 2 * 80 * 3 - 2 * 32 * 2;
    let second = 4 * 768 + 2 * 80 * 3;
    assert_eq!(late.flops.training_per_token, first + second + (1 + 3) * 80 + 2 * 160);

    assert_eq!(lora.memory.weights, dense.memory.weights + 4 * 160);
    assert_eq!((lora.memory.gradients, lora.memory.moments), (4 * 160, 4 * 320));
    assert_eq!((low_rank.memory.gradients, low_rank.memory.moments), (4 * 160, 4 * 186));
    assert_eq!((lora.memory.head_gradient, low_rank.memory.head_gradient), (0, 0));
    let shown = low_rank.to_string();
    assert!(shown.contains("q     8 × 8, frozen, adapter 2"), "{shown}");
    assert!(shown.contains("k     8 × 8, dense") && shown.contains("  trained"), "{shown}");
}

/// Adapters of single blocks: each counts where it is.
#[test]
fn adapters_left_out_of_blocks_are_not_counted() {
    let layers = "model.weights={adapter: {rank: 2, targets: [q, k, v], layers: [{q: 0, k: 0, v: 1}, {k: 0}]}}";
    let text = "name: tiny\nmodel: {n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, weights: dense}\n\
        data: {source: cargo_registry, tokenizer: bytes}\ntrain: {max_steps: 7, batch_size: 3}\n";
    let settings = ["init={run: source}", layers].map(str::to_owned);
    let plan = crate::spec::parse_plan(text, "tiny", &settings).expect("a good spec").1;
    let ledger = Ledger::new(&plan, 10, 1);
    // q of rank 2 in the second block, v of rank 1 in the first and 2 in the second.
    assert_eq!(ledger.parameters.trained(), 2 * (16 + 2) + (16 + 1) + 2 * (16 + 2));
    let shown = ledger.to_string();
    for line in [
        "q     8 × 8, frozen, adapter 2 in 1 of 2",
        "k     8 × 8, dense",
        "v     8 × 8, frozen, adapter 1 to 2",
    ] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}

/// Adapters that fall to a share of what they lie beside leave all that is frozen, and that share:
/// 0.4 of two matrices of 8 × 8 in both blocks.
#[test]
fn falling_adapters_leave_what_is_frozen_and_their_share() {
    let dense = Ledger::new(&tiny("dense", "", true), 10, 1);
    let budget = "rank: {budget: {final_share: 0.4, every: 2, settle: 1, start: 1, freeze: 5}}";
    let falling = adapted("low_rank", "[q, v]", budget);
    let left = grouped(dense.parameters.total() + 102);
    assert_eq!(falling.after_cuts, [("at most, exported, at the end", left)]);
}

/// Llama: no table of positions, a gate, a head of its own, norms without biases.
#[test]
fn a_llama_is_counted() {
    let text = |model: &str| {
        format!(
            "name: tiny\nmodel: {{n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, weights: dense, {model}}}\n\
             data: {{source: cargo_registry, tokenizer: bytes}}\ntrain: {{max_steps: 7, batch_size: 3}}\n"
        )
    };
    let ledger = |model: &str| {
        let plan = crate::spec::parse_plan(&text(model), "tiny.yaml", &[]).expect("a good spec").1;
        Ledger::new(&plan, 10, 1)
    };
    let llama = ledger("arch: llama, bias: true, n_inner: 20");
    let parameters = &llama.parameters;
    assert_eq!((parameters.token_embedding, parameters.head), (80, Some(80)));
    assert_eq!((parameters.positions, parameters.norms), (None, 40));
    // Per block 4 · 8 (q, k, v, o), 2 · 20 (gate, up) and 8 (down).
    assert_eq!(parameters.biases, 2 * 80);
    assert_eq!(parameters.total(), 160 + 40 + 160 + 2 * (4 * 64 + 3 * 160));
    assert_eq!(llama.flops.forward_products_per_token, 2 * 2 * (4 * 64 + 3 * 160));
    assert_eq!(llama.flops.forward_head_per_token, 160);
    // Per token and block 2 (C + 2) and H, 2 C, q, k, v and attention 4 C, MLP 2 · 20; at the end
    // 3 C + 2.
    assert_eq!(llama.memory.activations, 4 * 12 * (2 * (20 + 2 + 16 + 32 + 40) + 26));
    assert_eq!(llama.memory.backward, 4 * 12 * (16 + 60));
    let shown = llama.to_string();
    assert!(!shown.contains("positions") && !shown.contains("tied"), "{shown}");
    assert!(shown.contains("  gate  20 × 8, dense"), "{shown}");

    let (usual, untied) = (ledger("bias: false"), ledger("tie_word_embeddings: false"));
    assert_eq!(untied.parameters.total() - usual.parameters.total(), 80);
    assert_eq!(untied.flops, usual.flops);
    let (wide, said) = (ledger("n_inner: 40"), ledger("n_inner: 32, tie_word_embeddings: true"));
    assert_eq!(said, usual);
    assert_eq!(wide.parameters.total() - usual.parameters.total(), 2 * 2 * 8 * 8);
    assert_eq!(wide.memory.activations - usual.memory.activations, 4 * 12 * 2 * 8);
}

/// The sums are over the ranks that the blocks have.
#[test]
fn ranks_of_single_blocks_are_counted() {
    let of = |weights: &str| Ledger::new(&tiny(weights, "", false), 50, 1);
    let own = of("{low_rank: {rank: 3, layers: [{q: 8, up: 1}, {q: 2}]}}");
    let alike = of("{low_rank: {rank: 3}}");
    // q: 8 × 8 and up: 32 × 8; stored r (m + n + r), as exported r (m + n − r).
    let more = |numbers: &dyn Fn(i64, i64) -> i64| {
        numbers(16, 8) + numbers(16, 2) - 2 * numbers(16, 3) + numbers(40, 1) - numbers(40, 3)
    };
    let difference = |count: &dyn Fn(&Ledger) -> u64| count(&own) as i64 - count(&alike) as i64;
    assert_eq!(
        difference(&|ledger| ledger.parameters.total()),
        more(&|sides, rank| rank * (sides + rank))
    );
    assert_eq!(
        difference(&|ledger| ledger.parameters.manifold_dimension()),
        more(&|sides, rank| rank * (sides - rank))
    );
    // K- and L-gradient.
    assert_eq!(difference(&|ledger| ledger.wire.sums_per_step), more(&|sides, rank| rank * sides));
    // x V of every matrix, for 12 tokens.
    assert_eq!(difference(&|ledger| ledger.memory.activations), 4 * 12 * more(&|_, rank| rank));
    assert!(own.to_string().contains("q     8 × 8, ranks 2 to 8"), "{own}");
}

/// [W_q; W_k; W_v] of 24 × 8 shares one V and one S, and its inputs' gradient is formed once.
#[test]
fn one_matrix_of_queries_keys_and_values_is_counted() {
    let of = |setting: &str, kind: &str, rule: &str| {
        let text = format!(
            "name: tiny\nmodel: {{n_layer: 2, n_head: 2, n_embd: 8, block_size: 4, bias: true, {setting}weights: {kind}}}\n\
             data: {{source: cargo_registry, tokenizer: bytes}}\n\
             train: {{max_steps: 7, batch_size: 3}}\n{rule}\n"
        );
        let plan = crate::spec::parse_plan(&text, "tiny.yaml", &[]).expect("a good spec").1;
        (Ledger::new(&plan, 10, 1), plan.hash())
    };
    let low_rank = "{low_rank: {rank: 2}}";
    let (three, hash) = of("", low_rank, "");
    let (said, said_hash) = of("fused_qkv: false, ", low_rank, "");
    let (one, fused_hash) = of("fused_qkv: true, ", low_rank, "");
    assert_eq!((&three, &hash), (&said, &said_hash), "said or not, it is the same network");
    assert_ne!(hash, fused_hash);
    assert_eq!(one.parameters.biases, three.parameters.biases);
    let targets: Vec<&str> =
        one.parameters.targets.iter().map(|target| target.target.name()).collect();
    assert_eq!(targets, ["qkv", "o", "up", "down"]);
    // (24 + 8) · 2 + 4 in the place of 3 (16 · 2 + 4) in each of two blocks.
    assert_eq!(one.parameters.targets[0].parameters, 2 * 68);
    assert_eq!(three.parameters.total() - one.parameters.total(), 2 * (108 - 68));
    assert_eq!(one.parameters.dense_equivalent(), three.parameters.dense_equivalent());
    let products = |ledger: &Ledger| ledger.flops.forward_products_per_token;
    assert_eq!(products(&three) - products(&one), 2 * 2 * (108 - 68));
    // Three times the products, of which those with S count twice.
    let training = |ledger: &Ledger| ledger.flops.training_per_token;
    assert_eq!(training(&three) - training(&one), 2 * (6 * (108 - 68) - 2 * (12 - 4)));
    assert_eq!(three.memory.gradients - one.memory.gradients, 4 * 2 * (96 - 64));
    // One x V of rank 2 in the place of three, for 12 tokens.
    assert_eq!(three.memory.activations - one.memory.activations, 4 * 12 * 2 * 4);

    // Dense, it has the same numbers, and under Muon one polar factor in the place of three.
    let rule = "optimizer: {matrices: {muon: {}}}";
    let ((three, _), (one, _)) = (of("", "dense", rule), of("fused_qkv: true, ", "dense", rule));
    assert_eq!(three.parameters.total(), one.parameters.total());
    assert_eq!(training(&three), training(&one));
    assert_eq!(three.memory, one.memory);
    let polar = |ledger: &Ledger| ledger.flops.matrix_optimizer_per_step;
    let [of_three, of_one] = [3 * (4 * 64 * 8 + 2 * 512), 4 * 64 * 24 + 2 * 512];
    assert_eq!(polar(&three) - polar(&one), 2 * 5 * (of_three - of_one));
}
