//! Log lines: to standard error, and to `log.txt` once the run has a folder.

use crate::error::{Failure, printable};
use crate::record::{PROGRESS_TARGET, STEP_TARGET, Terminal};
use anyhow::Context;
use clap::ValueEnum;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, layer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;

/// What is logged, on the terminal unless `RUST_LOG` says otherwise.
const DEFAULT_FILTER: &str = "warn,lrpt=info";

/// Form of the log lines on standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The log of this process.
#[derive(Clone, Debug, Default)]
pub struct Logging {
    file: LogFile,
}

impl Logging {
    /// Starts logging, once per process: to the terminal as `RUST_LOG` says, or else lrpt from level
    /// info and all else from warn, and errors only unless this is the first of the processes that
    /// a launcher started; for `log.txt` always lrpt from level info and all else from warn.
    ///
    /// # Errors
    /// [`Failure::Usage`] when `RUST_LOG` cannot be understood; an error when a log was started
    /// before.
    pub fn start(format: LogFormat, terminal: &Terminal, is_first: bool) -> anyhow::Result<Self> {
        let default = if is_first { "" } else { "error" };
        let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| default.to_owned());
        let colour = std::io::stderr().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let logging = Self::default();
        subscriber(format, terminal, logging.file.clone(), &filter, colour)?
            .try_init()
            .context("the log was started twice")?;
        Ok(logging)
    }

    /// Appends every line so far and from now on to `log.txt` in the run's folder, as text with time
    /// and level and without colours.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn write_to(&self, run_dir: &Path) -> anyhow::Result<()> {
        let path = run_dir.join("log.txt");
        let open = || -> io::Result<File> {
            std::fs::create_dir_all(run_dir)?;
            OpenOptions::new().append(true).create(true).open(&path)
        };
        let file = open().with_context(|| format!("{}: not opened", path.display()))?;
        let mut target = self.file.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Target::Waiting(lines) = &*target {
            io::Write::write_all(&mut &file, lines)
                .with_context(|| format!("{}: not written (is the disk full?)", path.display()))?;
        }
        *target = Target::File(file);
        Ok(())
    }
}

impl Logging {
    /// Writes the error the process ends with into `log.txt`; the terminal gets it as its last
    /// line anyhow.
    pub fn note_error(&self, error: &anyhow::Error) {
        let mut line = String::new();
        // The error is on the terminal, too: a log that cannot be written is no second error.
        let _ = SystemTime.format_time(&mut Writer::new(&mut line));
        let _ = io::Write::write_all(
            &mut &self.file,
            format!("{line} ERROR {}\n", printable(&format!("{error:#}"))).as_bytes(),
        );
    }
}

/// Both destinations, each behind its own filter.
fn subscriber(
    format: LogFormat,
    terminal: &Terminal,
    file: LogFile,
    filter: &str,
    colour: bool,
) -> anyhow::Result<impl Subscriber + Send + Sync + 'static> {
    let filter = if filter.trim().is_empty() { DEFAULT_FILTER } else { filter };
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::Usage(format!("RUST_LOG={filter}: {error}; write a level or targets with levels, such as `{DEFAULT_FILTER}`"))
    })?;
    let bar = terminal.is_interactive();
    let on_terminal = match format {
        LogFormat::Text => {
            layer().event_format(Terse).with_ansi(colour).with_writer(terminal.clone()).boxed()
        }
        LogFormat::Json => layer().json().flatten_event(true).with_writer(terminal.clone()).boxed(),
    };
    let on_terminal = on_terminal
        .with_filter(filter_fn(move |metadata| !(bar && metadata.target() == STEP_TARGET)))
        .with_filter(filter);
    let in_file = layer().event_format(Dated).with_ansi(false).with_writer(file);
    let in_file = in_file.with_filter(EnvFilter::new(DEFAULT_FILTER));
    Ok(tracing_subscriber::registry().with(on_terminal).with(in_file))
}

/// The text form on a terminal: information as it is, all else with its level, details with where
/// they come from.
struct Terse;

impl<S, N> FormatEvent<S, N> for Terse
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let (colour, prefix) = match *metadata.level() {
            Level::ERROR => ("\x1b[1;31m", "error: ".to_string()),
            Level::WARN => ("\x1b[1;33m", "warning: ".to_string()),
            Level::INFO => ("", String::new()),
            Level::DEBUG => ("\x1b[2m", format!("debug: {}: ", metadata.target())),
            Level::TRACE => ("\x1b[2m", format!("trace: {}: ", metadata.target())),
        };
        if writer.has_ansi_escapes() && !colour.is_empty() {
            write!(writer, "{colour}{prefix}\x1b[0m")?;
        } else {
            writer.write_str(&prefix)?;
        }
        write_fields(context, &mut writer, event)
    }
}

/// The text form in a file: time, level and what is said.
struct Dated;

impl<S, N> FormatEvent<S, N> for Dated
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {:>5} ", event.metadata().level().as_str())?;
        write_fields(context, &mut writer, event)
    }
}

/// The message of an event and its fields as a line. The progress of a training has its numbers in
/// its message, and again as fields for JSON alone.
fn write_fields<S, N>(
    context: &FmtContext<'_, S, N>,
    writer: &mut Writer<'_>,
    event: &Event<'_>,
) -> fmt::Result
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    if event.metadata().target().starts_with(PROGRESS_TARGET) {
        let mut message = Message(String::new());
        event.record(&mut message);
        writer.write_str(&printable(&message.0))?;
    } else {
        context.field_format().format_fields(writer.by_ref(), event)?;
    }
    writeln!(writer)
}

/// The message of an event, without its other fields.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// A file that may come later; until then, its lines wait.
#[derive(Clone, Debug, Default)]
struct LogFile(Arc<Mutex<Target>>);

#[derive(Debug)]
enum Target {
    /// Lines for a file that is not known yet.
    Waiting(Vec<u8>),
    File(File),
}

impl Default for Target {
    fn default() -> Self {
        Target::Waiting(Vec::new())
    }
}

/// Bytes that may wait: a command without a run's folder never writes them.
const MOST_WAITING: usize = 1 << 20;

impl io::Write for &LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Target::File(file) => io::Write::write_all(file, bytes)?,
            Target::Waiting(lines) if lines.len() + bytes.len() <= MOST_WAITING => {
                lines.extend_from_slice(bytes);
            }
            Target::Waiting(_) => {}
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = &'a LogFile;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{
        Console, EndReason, Evaluation, Event as Happening, Observer, RunStarted, Step,
    };

    /// A short training as the console sees it.
    fn events() -> Vec<Happening> {
        let run = RunStarted {
            name: "tiny".into(),
            run_dir: "runs/tiny".into(),
            parameters: 1000,
            frozen_parameters: 0,
            dense_parameters: 2000,
            start_step: 0,
            max_steps: 20,
            tokens_per_step: 64,
            device: "cpu".into(),
            threads: 1,
        };
        let figures = || Step { loss: 3.0, tokens_per_second: 128.0, ..Step::default() };
        let step = |step| Happening::Step(Step { step, learning_rate: 1e-3, ..figures() });
        vec![
            Happening::RunStarted(run),
            Happening::Progress { step: 1 },
            step(10),
            Happening::Evaluation(Evaluation {
                step: 10,
                loss: 2.5,
                perplexity: 12.18,
                validation_tokens: 640,
                ..Evaluation::default()
            }),
            step(20),
            Happening::CheckpointSaved {
                step: 20,
                path: "runs/tiny/checkpoints/step-00000020".into(),
            },
            Happening::Warning { message: "mind the gap".into() },
            Happening::Finished {
                step: 20,
                reason: EndReason::Completed,
                seconds: 61.0,
                peak_memory: Vec::new(),
            },
        ]
    }

    /// What a terminal and a log file hold after that training and a debug line.
    fn logged(
        format: LogFormat,
        interactive: bool,
        filter: &str,
        colour: bool,
    ) -> (String, String) {
        let run = tempfile::tempdir().unwrap();
        let (terminal, captured) = Terminal::captured(interactive);
        let logging = Logging::default();
        let subscriber =
            subscriber(format, &terminal, logging.file.clone(), filter, colour).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let mut console = Console::new(terminal.clone());
            for (index, event) in events().iter().enumerate() {
                // The first lines wait for the folder.
                if index == 3 {
                    logging.write_to(run.path()).unwrap();
                }
                console.on(event).unwrap();
            }
            tracing::debug!(target: "lrpt::checkpoint", size = 3, "details");
        });
        (captured.text(), std::fs::read_to_string(run.path().join("log.txt")).unwrap())
    }

    #[test]
    fn plain_lines_without_a_terminal() {
        let (shown, file) = logged(LogFormat::Text, false, "", false);
        insta::assert_snapshot!(shown, @r"
        tiny: 1k parameters (dense: 2k), 20 steps of 64 tokens, on cpu with 1 thread, in runs/tiny
        step 10/20  loss 3.0000  lr 1.00e-3  128 tokens/s  5s left
        validation at step 10: loss 2.5000  perplexity 12.18  (640 tokens, 0s)
        step 20/20  loss 3.0000  val 2.5000  lr 1.00e-3  128 tokens/s  0s left
        checkpoint of step 20 in runs/tiny/checkpoints/step-00000020
        warning: mind the gap
        completed at step 20 after 1m01s
        ");
        // The file has the same lines, each after time and level.
        for (shown, filed) in shown.lines().zip(file.lines()) {
            let (time, rest) = filed.split_once(' ').unwrap();
            let (level, message) = rest.trim_start().split_once(' ').unwrap();
            assert!(time.ends_with('Z') && time.len() >= 20, "{filed}");
            assert_eq!(level, if message == "mind the gap" { "WARN" } else { "INFO" }, "{filed}");
            assert_eq!(message, shown.trim_start_matches("warning: "));
        }
        assert_eq!(shown.lines().count(), file.lines().count());
    }

    #[test]
    fn a_bar_stands_for_the_steps_on_a_terminal_but_not_in_the_file() {
        let (shown, file) = logged(LogFormat::Text, true, "", true);
        assert!(!shown.contains("step 10/20"), "{shown}");
        assert!(shown.contains("validation at step 10"), "{shown}");
        assert!(shown.contains("\x1b[1;33mwarning: \x1b[0mmind the gap"), "{shown}");
        assert!(file.contains("step 10/20") && !file.contains('\x1b'), "{file}");
    }

    #[test]
    fn the_filter_decides_and_a_wrong_one_is_a_usage_error() {
        let (shown, file) = logged(LogFormat::Text, false, "warn,lrpt::checkpoint=debug", false);
        assert_eq!(shown, "warning: mind the gap\ndebug: lrpt::checkpoint: details size=3\n");
        assert!(file.contains("step 10/20") && !file.contains("details"), "the file is whole");

        let (terminal, _) = Terminal::captured(false);
        let error = subscriber(LogFormat::Text, &terminal, LogFile::default(), "lrpt=loud", false)
            .map(drop)
            .unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().starts_with("RUST_LOG=lrpt=loud: "), "{error}");
    }

    #[test]
    fn json_lines_are_objects() {
        let (shown, _) = logged(LogFormat::Json, false, "", false);
        let lines: Vec<serde_json::Value> =
            shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 7);
        assert_eq!(lines[5]["message"], "mind the gap");
        assert_eq!(lines[5]["level"], "WARN");
        let numbers =
            |line: &serde_json::Value, keys: [&str; 4]| keys.map(|key| line[key].as_f64());
        assert_eq!(
            numbers(&lines[1], ["step", "loss", "learning_rate", "tokens_per_second"]),
            [Some(10.0), Some(3.0), Some(1e-3), Some(128.0)]
        );
        assert_eq!(lines[1].get("rank_mean"), None);
        assert_eq!(
            numbers(&lines[2], ["step", "loss", "perplexity", "tokens"]),
            [Some(10.0), Some(2.5), Some(12.18), Some(640.0)]
        );
        assert_eq!(
            numbers(&lines[0], ["parameters", "max_steps", "tokens_per_step", "start_step"]),
            [Some(1000.0), Some(20.0), Some(64.0), Some(0.0)]
        );
    }
}
