//! The account of memory beside what a training really takes, measured at the allocator.

#[path = "support/allocator.rs"]
mod allocator;

use allocator::peak;
use candle_core::Device;
use lrpt::account::Ledger;
use lrpt::data::TokenShard;
use lrpt::spec;
use lrpt::train::Trainer;
use std::path::Path;
use std::sync::Arc;

const VOCABULARY: usize = 65;
const THREADS: usize = 2;
const METHODS: [&str; 17] = [
    "dense-adamw",
    "dense-muon",
    "dlra-adam",
    "dlra-augmented-bug",
    "dlra-budget",
    "dlra-coefficient-cycle",
    "dlra-heavy-ball",
    "dlra-matrix-adam",
    "dlra-spectral",
    "dlra-spectral-nesterov",
    "dlra-tolerance",
    "factored-adamw",
    "factored-heavy-ball",
    "factored-usv-adamw",
    "factored-usv-heavy-ball",
    "galore",
    "loro",
];

const USUAL: &[&str] = &[];
/// A network with rotary positions, SwiGLU and a head of its own.
const LLAMA: &[&str] = &["model.arch=llama"];
/// Queries, keys and values from one matrix.
const FUSED: &[&str] = &["model.fused_qkv=true"];

/// Bytes at the peak of a trainer's first two steps, and the account's.
fn measured_and_expected(method: &str, overrides: &[&str]) -> (usize, u64) {
    let path = format!("configs/methods/{method}.yaml");
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    let (_, plan) =
        spec::load_plan(Path::new(&path), &overrides).unwrap_or_else(|error| panic!("{error:#}"));
    let tokens = (0..40_000u64).map(|i| ((i * i / 7 + i) % VOCABULARY as u64) as u32).collect();
    let text = Arc::new(TokenShard::from_tokens(tokens));
    let (measured, ()) = peak(|| {
        let mut trainer =
            Trainer::fresh(&plan, &Device::Cpu, VOCABULARY, text).expect("a trainer of the plan");
        for step in 1..=2 {
            trainer.step(step).expect("a step on finite numbers");
        }
    });
    (measured, Ledger::new(&plan, VOCABULARY, THREADS).memory.peak())
}

/// One test, since the count is the process's.
#[test]
fn the_peak_is_what_the_account_expects() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .expect("the first use of the thread pool");
    // Every thread reserves 64 MiB for the packed operands of its products when it first needs them,
    // and fills as much as it needs; the first method pays for all, those of the last thread when
    // it first factorises.
    for method in ["dense-adamw", "dlra-spectral"] {
        measured_and_expected(method, &[]);
    }
    let (usual, llama) = (METHODS.map(|method| (method, USUAL)), METHODS.map(|m| (m, LLAMA)));
    let fused = ["dense-muon", "dlra-spectral"].map(|method| (method, FUSED));
    for (method, overrides) in usual.into_iter().chain(llama).chain(fused) {
        let (measured, expected) = measured_and_expected(method, overrides);
        let ratio = measured as f64 / expected as f64;
        assert!(
            (0.85..1.05).contains(&ratio),
            "{method} {overrides:?}: {measured} bytes where {expected} are expected, ratio {ratio:.3}"
        );
    }
}
