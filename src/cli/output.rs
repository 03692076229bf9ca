//! Results on stdout.

use crate::error::printable;
use anyhow::Result;
use std::io::Write;

/// Prints a line to stdout, control characters shown; a closed pipe is an error the caller's
/// `main` treats as success.
pub fn line(text: impl std::fmt::Display) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", printable(&text.to_string()))?;
    Ok(())
}

/// Prints text to stdout at once, without a line end.
pub fn piece(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}
