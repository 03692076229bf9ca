//! `tensorboard/`: what TensorBoard shows of a run. Every figure of metrics.jsonl as a scalar, ranks
//! and spectra as histograms, samples and the spec as text, settings as hyper-parameters.
//!
//! A run that goes on begins a further file, whose first entry says from which step the earlier ones
//! no longer hold; TensorBoard leaves those out.

mod event_file;
mod histogram;
mod proto;

use super::metrics::metric_values;
use super::{EndReason, Event, Observer, Recovered};
use event_file::EventFile;
use histogram::histogram;
use proto::Message;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the event files of a run.
#[derive(Debug)]
pub struct TensorBoard {
    file: EventFile,
    start_step: u64,
}

impl TensorBoard {
    /// Begins a file in `tensorboard/` of the run's folder, for a fresh run or one that goes on from
    /// this step, with the settings that decide its trajectory and its spec.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn begin(
        run_dir: &Path,
        resumed_from: Option<u64>,
        settings: &BTreeMap<String, Value>,
        spec_yaml: &str,
    ) -> anyhow::Result<Self> {
        let mut file = EventFile::create(&run_dir.join("tensorboard"))?;
        let start_step = resumed_from.unwrap_or(0);
        if resumed_from.is_some() {
            forget_from(&mut file, start_step + 1)?;
        }
        let group = run_dir.file_name().unwrap_or(run_dir.as_os_str()).to_string_lossy();
        let entries = settings.iter().fold(Message::default(), |info, (key, value)| {
            let entry = Message::default().text(1, key.as_bytes()).message(2, setting(value));
            info.message(1, entry)
        });
        // SessionStartInfo: hparams, group_name
        let session = entries.text(4, group.as_bytes());
        let spec = format!("```yaml\n{spec_yaml}\n```");
        let values = [hyper_parameters("session_start_info", 3, session), text("spec", &spec)];
        summary(&mut file, start_step, values)?;
        Ok(Self { file, start_step })
    }
}

impl Observer for TensorBoard {
    fn on(&mut self, event: &Event) -> anyhow::Result<()> {
        if let Event::Recovered(Recovered { back_to: Some(step), .. }) = event {
            forget_from(&mut self.file, step + 1)?;
        }
        if let Some(line) = metric_values(event) {
            let step = line.get("step").and_then(Value::as_u64).unwrap_or(0);
            let scalars = line.iter().filter(|(key, _)| *key != "step").map(|(key, value)| {
                // What is not finite is null, and true is 1.
                let number = value.as_f64().unwrap_or(f64::NAN);
                let number = value.as_bool().map_or(number, |holds| f64::from(u8::from(holds)));
                // tag, simple_value
                Message::default().text(1, key.as_bytes()).float(2, number as f32)
            });
            summary(&mut self.file, step, scalars)?;
        }
        match event {
            Event::Ranks(ranks) => {
                let values: Vec<f64> = ranks.layers.iter().map(|layer| layer.rank as f64).collect();
                summary(&mut self.file, ranks.step, distribution("ranks", &values))
            }
            Event::Spectra(spectra) => {
                let layers = spectra.layers.iter();
                let values = layers
                    .flat_map(|(name, values)| distribution(&format!("spectrum/{name}"), values));
                summary(&mut self.file, spectra.step, values)
            }
            Event::Sample(sample) => {
                // Four spaces: as it is, not as Markdown.
                let lines: Vec<String> =
                    sample.text.lines().map(|line| format!("    {line}")).collect();
                summary(&mut self.file, sample.step, [text("sample", &lines.join("\n"))])
            }
            // TensorBoard keeps the first end it reads, and one that was interrupted may go on.
            Event::Finished { reason: EndReason::Interrupted, .. } => Ok(()),
            Event::Finished { step, reason, .. } => {
                // STATUS_SUCCESS, STATUS_FAILURE
                let status = if *reason == EndReason::Completed { 1 } else { 2 };
                let session = Message::default().integer(1, status);
                let end = hyper_parameters("session_end_info", 4, session);
                summary(&mut self.file, (*step).max(self.start_step), [end])
            }
            _ => Ok(()),
        }
    }
}

/// Says that what earlier entries say of this step and later ones no longer holds.
fn forget_from(file: &mut EventFile, step: u64) -> anyhow::Result<()> {
    // SessionLog: status START
    file.write(step, |event| event.message(7, Message::default().integer(1, 1)))
}

/// An event with these values, where there are any.
fn summary(
    file: &mut EventFile,
    step: u64,
    values: impl IntoIterator<Item = Message>,
) -> anyhow::Result<()> {
    let mut values = values.into_iter().peekable();
    if values.peek().is_none() {
        return Ok(());
    }
    let summary = values.fold(Message::default(), |summary, value| summary.message(1, value));
    file.write(step, |event| event.message(5, summary))
}

/// A value with a histogram, if there is something to count.
fn distribution(tag: &str, values: &[f64]) -> Option<Message> {
    let histogram = histogram(values)?;
    Some(Message::default().text(1, tag.as_bytes()).message(5, histogram))
}

/// A value with a text, which TensorBoard reads as Markdown.
fn text(tag: &str, text: &str) -> Message {
    const STRING: u64 = 7;
    // TensorProto: dtype, tensor_shape, string_val
    let shape = Message::default().message(2, Message::default().integer(1, 1));
    let tensor = Message::default().integer(1, STRING).message(2, shape).text(8, text.as_bytes());
    let metadata = of_plugin("text", &Message::default());
    Message::default().text(1, tag.as_bytes()).message(8, tensor).message(9, metadata)
}

/// A value of the plugin for hyper-parameters, whose data is its metadata.
fn hyper_parameters(name: &str, field: u32, what: Message) -> Message {
    let metadata = of_plugin("hparams", &Message::default().message(field, what));
    Message::default().text(1, format!("_hparams_/{name}").as_bytes()).message(9, metadata)
}

/// SummaryMetadata: the plugin a value is for, and what it is told beside.
fn of_plugin(name: &str, content: &Message) -> Message {
    let plugin = Message::default().text(1, name.as_bytes()).text(2, content.bytes());
    Message::default().message(1, plugin)
}

/// google.protobuf.Value
fn setting(value: &Value) -> Message {
    let message = Message::default();
    match value {
        Value::Bool(holds) => message.integer(4, u64::from(*holds)),
        Value::Number(number) => message.double(2, number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => message.text(3, text.as_bytes()),
        value => message.text(3, value.to_string().as_bytes()),
    }
}
