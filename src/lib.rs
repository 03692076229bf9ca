//! `lrpt` pre-trains low-rank language models: GPTs whose attention and MLP weights W = U S Vᵀ live
//! on the manifold of low-rank matrices and move by a dynamical low-rank (DLRA) optimizer with
//! momentum in the tangent space (Schotthöfer, Klein & Kusch, arXiv:2506.17475).
//!
//! # Map
//!
//! ```text
//! cli          one file per command: parse, call, print; no logic
//!  ├ sweep     many runs from one file: expansion, equal budgets, child processes, Slurm
//!  │  └ report    runs read back: groups, statistics, tables, charts, the page
//!  ├ watch     runs looked at while they train, on a terminal or as lines
//!  ├ bench     how fast and how large: timed steps on random tokens, the product peak, the machine
//!  ├ selftest  does a device compute what the CPU computes, from one operation to a training
//!  ├ demo      momentum on small matrix problems: on factors and in the tangent space
//!  └ train     where model, optimizer and data meet: session, step, validation, resume, signals
//!     ├ hub         models out and in, as `transformers`, PEFT and llama.cpp have them
//!     ├ account     what a plan costs before it runs: parameters, operations, memory, messages
//!     ├ model       networks: layers, GPT-2, Llama, adapters, generation with a cache
//!     ├ optim       how parameters move: rules by group, DLRA, rank policies, schedules, clipping
//!     ├ data        documents -> tokenizer -> shards as a stream; batches by (seed, step, micro)
//!     ├ checkpoint  atomic folders of named tensors with a manifest; knows no model
//!     └ record      what happens, as one `Event`, and its observers: metrics, console, samples
//!        ├ params   the named parameters in one order: declared, drawn from a seed, read by name
//!        ├ ops      differentiable operations on a tape, with kernels of CPU and GPU and a portable path
//!        ├ lowrank  geometry of fixed-rank matrices: point, tangent, retraction, transport
//!        │  └ linalg    QR, SVD, polar factor, orthonormality; no words of machine learning
//!        │     └ kernels   numbers in host memory, SIMD loops, products, sums in a fixed order; GPU launches
//!        └ spec     what a user may write in YAML (`RunSpec`) and what it resolves to (`Plan`)
//! error   exit codes          fs    durable files            rng     random streams, pure functions
//! plot    charts as SVG       device  what a GPU says of itself
//! figures numbers as people read them          tensor_file  a safetensors file, its header first
//! gguf_file  a GGUF file, its settings first
//! allocator  freed memory kept, large pages
//! parallel  processes that train one run together: messages, agreement, launchers
//! ```
//!
//! Arrows point down only; `tests/architecture.rs` reads the imports and says so. `model` and
//! `optim` never import each other.
//!
//! # Invariants
//!
//! 1. A run is a pure function of its plan, its data and the number of threads: 2N steps equal N,
//!    stop, resume, N, byte for byte, on one process or several.
//! 2. A weight is looked up in the [`params::ParamStore`] at every use, so a rank change cannot
//!    leave an old one behind.
//! 3. A step that fails (a missing or non-finite gradient, a factorisation that does not converge)
//!    has changed nothing.
//! 4. A checkpoint exists whole or not at all, and loading uses every tensor in it or fails.
//! 5. Observers cannot change training; only `time`, `train/tok_per_sec`, `time/*` and `mem/*` in
//!    metrics.jsonl depend on the clock, and `train/wire_bytes` on the number of processes.
//! 6. Results go to stdout, everything else to stderr.
//!
//! # Words
//!
//! m, n: rows (outputs) and columns (inputs) of a weight, y = x Wᵀ; r: rank; U, V: bases with
//! orthonormal columns; S: coefficients; K-gradient G V, L-gradient Gᵀ U, with G the Euclidean
//! gradient; tangent vector Z = U M Vᵀ + P Vᵀ + U Qᵀ with UᵀP = 0, VᵀQ = 0. B, T, C, H, V:
//! sequences, tokens, width, heads, vocabulary.

pub mod account;
pub mod allocator;
pub mod bench;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod demo;
pub mod device;
pub mod error;
pub mod figures;
pub mod fs;
pub mod gguf_file;
pub mod hub;
pub mod kernels;
pub mod linalg;
pub mod lowrank;
pub mod model;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod plot;
pub mod record;
pub mod report;
pub mod rng;
pub mod selftest;
pub mod spec;
pub mod sweep;
pub mod tensor_file;
pub mod train;
pub mod watch;
