//! (to be written)
pub mod spec;
