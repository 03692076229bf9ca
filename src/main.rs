//! The `lrpt` binary: parse, run, exit with the documented code.

use clap::Parser;
use lrpt::allocator::{LargePages, keep_freed_memory};
use lrpt::cli::Cli;
use lrpt::error::{exit_code, printable};
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: LargePages = LargePages;

fn main() -> ExitCode {
    keep_freed_memory();
    let cli = Cli::parse();
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever reads stderr may have gone; the exit code says it still.
            let _ = writeln!(std::io::stderr(), "error: {}", printable(&format!("{error:#}")));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Whether a reader such as `head` closed our stdout: no failure of ours.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe)
    })
}
