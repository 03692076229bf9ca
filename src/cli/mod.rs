//! The commands.

pub mod logging;
