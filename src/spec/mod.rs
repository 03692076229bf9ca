//! The YAML spec of a run and the plan made from it.

mod count;
mod run_spec;

pub use count::Count;
pub use run_spec::*;
