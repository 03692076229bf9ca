//! Networks: structure and forward pass, and what they cost. Knows no optimizer.
//!
//! An architecture is one file that implements [`Network`] out of `layers`, and an arm of
//! [`build`].

mod config;
mod generate;
mod gpt2;
mod layers;
mod llama;
mod merge;
mod network;
mod restore;

pub use config::ModelConfig;
pub use generate::{Sampling, generate};
pub use layers::Head;
pub use merge::merged;
pub use network::{DropoutKey, Network, Site, Structure, build};
pub use restore::restore;
