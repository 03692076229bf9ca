//! Standard error, shared by a progress bar and the lines that scroll above it.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget};
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::fmt::MakeWriter;

/// Standard error, shared by log lines and a progress bar that makes room for every line. Clones
/// refer to the same terminal.
#[derive(Clone)]
pub struct Terminal {
    bars: MultiProgress,
    interactive: bool,
    lines: Arc<Mutex<Box<dyn Write + Send>>>,
}

impl Terminal {
    /// Standard error, with a progress bar if it is a terminal that can move its cursor.
    pub fn stderr() -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let interactive = std::io::stderr().is_terminal() && !dumb;
        let target =
            if interactive { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self::new(interactive, target, Box::new(std::io::stderr()))
    }

    fn new(interactive: bool, target: ProgressDrawTarget, lines: Box<dyn Write + Send>) -> Self {
        Self {
            bars: MultiProgress::with_draw_target(target),
            interactive,
            lines: Arc::new(Mutex::new(lines)),
        }
    }

    /// Whether a progress bar is shown here, which makes lines about single steps unnecessary.
    pub fn is_interactive(&self) -> bool {
        self.interactive
    }

    /// Adds a progress bar.
    pub fn add(&self, bar: ProgressBar) -> ProgressBar {
        self.bars.add(bar)
    }

    /// A terminal whose bar is not drawn and whose lines can be read back.
    #[cfg(test)]
    pub(crate) fn captured(interactive: bool) -> (Self, Captured) {
        let captured = Captured::default();
        (Self::new(interactive, ProgressDrawTarget::hidden(), Box::new(captured.clone())), captured)
    }
}

impl Write for &Terminal {
    /// Writes lines above the bar. Every call must contain whole lines, as those of log layers do.
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        match self.bars.suspend(|| lines.write_all(bytes)) {
            // Nobody reads any more: no reason to stop a run, or to say so on the same stream.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written.map(|()| bytes.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = &'a Terminal;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

/// Bytes written, for tests.
#[cfg(test)]
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

#[cfg(test)]
impl Captured {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

#[cfg(test)]
impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
