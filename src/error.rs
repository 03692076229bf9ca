//! Failures that carry an exit code of their own; everything else is an `anyhow::Error` and exits
//! with 1.

use std::fmt;

/// Why the program ends, where it is not success and not a plain error.
#[derive(Debug)]
pub enum Failure {
    /// The command line or the spec is wrong: exit code 2.
    Usage(String),
    /// A loss, gradient, parameter or moment stopped being finite: exit code 3.
    Diverged(String),
    /// A signal ended the run after a clean checkpoint: exit code 128 + signal (130 for Ctrl-C, 143
    /// for SIGTERM).
    Interrupted(i32),
}

impl Failure {
    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage(_) => 2,
            Failure::Diverged(_) => 3,
            Failure::Interrupted(signal) => (128 + signal) as u8,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message) | Failure::Diverged(message) => f.write_str(message),
            Failure::Interrupted(_) => f.write_str(
                "interrupted; the state is in the last checkpoint, continue with --resume",
            ),
        }
    }
}

impl std::error::Error for Failure {}

/// The exit code for an error: that of the [`Failure`] in its chain, or 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(1, Failure::exit_code)
}
