//! Results on stdout.

use crate::error::printable;
use anyhow::Result;
use std::io::{IsTerminal, Write};

/// Prints a line to stdout, control characters shown; a closed pipe is an error the caller's
/// `main` treats as success.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", printable(&text.to_string()))?;
    Ok(())
}

/// Columns of the terminal that stdout is; none where it is no terminal, or everything is wanted.
pub fn width(wide: bool) -> Option<usize> {
    let size = console::Term::stdout().size_checked();
    size.filter(|_| !wide).map(|(_, columns)| usize::from(columns))
}

/// Prints text to stdout at once, without a line end; on a terminal, control characters are shown,
/// since a model writes what a stranger's tokenizer lets it write.
pub fn piece(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    let shown = if stdout.is_terminal() { printable(text) } else { text.into() };
    stdout.write_all(shown.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
