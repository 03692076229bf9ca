//! `lrpt`: low-rank pre-training of language models.

pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod error;
pub mod fs;
pub mod linalg;
pub mod lowrank;
pub mod model;
pub mod ops;
pub mod optim;
pub mod params;
pub mod record;
pub mod rng;
pub mod spec;
pub mod train;
