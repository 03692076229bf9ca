//! (to be written)
pub mod account;
