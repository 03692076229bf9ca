//! `lrpt completions`: what a shell and `man` need to know of this program.

use super::{Cli, output};
use anyhow::{Context, Result};
use clap::{Args, CommandFactory, ValueEnum};
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// Arguments of `lrpt completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// For whom: a shell, or `man`.
    #[arg(value_enum, required_unless_present = "out")]
    reader: Option<Reader>,
    /// Write the completions of every shell and a manual page for every command into this folder.
    #[arg(long, value_name = "DIR", conflicts_with = "reader")]
    out: Option<PathBuf>,
}

/// Who reads what is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Reader {
    Bash,
    Elvish,
    Fish,
    /// The manual page: `lrpt completions man > lrpt.1`.
    Man,
    Powershell,
    Zsh,
}

impl Reader {
    /// The shell; none for `man`.
    fn shell(self) -> Option<Shell> {
        match self {
            Self::Bash => Some(Shell::Bash),
            Self::Elvish => Some(Shell::Elvish),
            Self::Fish => Some(Shell::Fish),
            Self::Powershell => Some(Shell::PowerShell),
            Self::Zsh => Some(Shell::Zsh),
            Self::Man => None,
        }
    }
}

/// Prints a script or the manual page, or writes all of them.
///
/// # Errors
/// If stdout or the folder cannot be written.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    if let Some(folder) = &args.out {
        return write_all(folder).with_context(|| format!("{}: not written", folder.display()));
    }
    let mut text = Vec::new();
    match args.reader.and_then(Reader::shell) {
        Some(shell) => clap_complete::generate(shell, &mut Cli::command(), "lrpt", &mut text),
        None => clap_mangen::Man::new(Cli::command()).render(&mut text)?,
    }
    output::piece(&String::from_utf8(text)?)
}

fn write_all(folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    for shell in Reader::value_variants().iter().filter_map(|reader| reader.shell()) {
        clap_complete::generate_to(shell, &mut Cli::command(), "lrpt", folder)?;
    }
    clap_mangen::generate_to(Cli::command(), folder)
}
