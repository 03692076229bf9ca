//! Failures that carry an exit code of their own; everything else is an `anyhow::Error` and exits
//! with 1.

use std::borrow::Cow;
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
            Failure::Interrupted(signal) => exit_code_of_signal(*signal),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage(message) | Failure::Diverged(message) => f.write_str(message),
            Failure::Interrupted(_) => {
                f.write_str("stopped by a signal, the state is in the last checkpoint")
            }
        }
    }
}

impl std::error::Error for Failure {}

/// [`Failure::Usage`] with this message.
pub fn usage(message: String) -> anyhow::Error {
    Failure::Usage(message).into()
}

/// The exit code of a process that a signal ended.
pub fn exit_code_of_signal(signal: i32) -> u8 {
    (128 + signal) as u8
}

/// The exit code for an error: that of the [`Failure`] in its chain, or 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    error.chain().find_map(|cause| cause.downcast_ref::<Failure>()).map_or(1, Failure::exit_code)
}

/// Whether a signal ended the work after a clean checkpoint.
pub fn is_interrupted(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(Failure::Interrupted(_))))
}

/// Text as it may stand on a terminal: control characters other than line ends and tabs are
/// written as Rust does, `\u{1b}`, so that names from files move no cursor and change no colour.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| !c.is_control() || c == '\n' || c == '\t';
    if text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let shown = |c: char| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(text.chars().map(shown).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        assert_eq!(printable("a\tb\nnaïve"), "a\tb\nnaïve");
        assert_eq!(printable("\u{1b}[2Jx\u{7}\r\u{9b}"), "\\u{1b}[2Jx\\u{7}\\r\\u{9b}");
    }
}
