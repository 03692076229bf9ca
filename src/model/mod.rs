//! The network: structure and forward pass, and what it costs. Knows no optimizer.

pub mod account;
mod config;
mod generate;
mod gpt;
mod restore;

pub use config::ModelConfig;
pub use generate::{Sampling, generate};
pub use gpt::{DropoutKey, Gpt};
pub use restore::restore;
