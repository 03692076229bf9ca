//! Which build this is: version, commit and features.

use std::sync::LazyLock;

/// `0.1.0 (commit 1a2b3c4, features: datasets)`; the commit as `src/build.rs` found it.
pub static VERSION: LazyLock<String> = LazyLock::new(|| {
    let features = [
        ("datasets", cfg!(feature = "datasets")),
        ("cuda", cfg!(feature = "cuda")),
        ("cudnn", cfg!(feature = "cudnn")),
        ("metal", cfg!(feature = "metal")),
        ("accelerate", cfg!(feature = "accelerate")),
        ("mkl", cfg!(feature = "mkl")),
        ("mpi", cfg!(feature = "mpi")),
    ];
    let built: Vec<&str> =
        features.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    let commit = env!("LRPT_BUILT_FROM");
    let features = if built.is_empty() { "none".to_owned() } else { built.join(", ") };
    format!("{} (commit {commit}, features: {features})", env!("CARGO_PKG_VERSION"))
});
