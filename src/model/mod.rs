//! Networks: structure and forward pass, and what they cost. Knows no optimizer.
//!
//! An architecture is one file that implements [`Network`] out of `layers`, and an arm of
//! [`build`].

mod adapter;
mod cache;
mod config;
pub mod cost;
mod draws;
mod generate;
mod gpt2;
mod head;
mod layers;
mod llama;
mod merge;
mod network;
mod projections;
mod restore;

pub use adapter::lora_scale;
pub use cache::KeyValueCache;
pub use config::ModelConfig;
pub use generate::{Request, Sampling, generate};
pub use head::{HEAD, Head};
pub use layers::Pass;
pub use merge::merged;
pub use network::{DropoutKey, Network, Sequences, Site, Structure, build};
pub use restore::{read_config, restore};
