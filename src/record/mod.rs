//! What happens during training, as one [`Event`] enum, and the observers that record it: metrics,
//! console, samples.
//!
//! The training loop notifies an [`Observer`], which cannot change the training. Everything about a
//! step is reported before the checkpoint of that step is saved, so that a resumed run repeats no
//! line and misses none.

mod console;
mod csv;
mod event;
mod follow;
mod format;
mod json_lines;
mod line;
mod metrics;
mod samples;
mod tensorboard;
mod terminal;

pub use console::{Console, PROGRESS_TARGET, STEP_TARGET};
pub use event::{
    EndReason, Evaluation, Event, LayerRank, Observer, Observers, Ranks, Recovered, RunStarted,
    Sample, Spectra, Step,
};
pub use follow::{Follower, News};
pub use json_lines::{JsonLines, LineOf};
pub use line::{MetricsLine, StepFigures, TruncationFigures, ValidationFigures};
pub use metrics::{is_wall_clock_key, metric_values, metrics, spectra};
pub use samples::Samples;
pub use tensorboard::TensorBoard;
pub use terminal::Terminal;
