//! The only place where model, optimizer and data meet: the session, its loop, evaluation and resume.

mod diagnose;
mod evaluate;
mod memory;
mod meter;
mod oracle;
mod run_folder;
mod session;
mod settings;
mod stop;

pub use evaluate::{ValidationLoss, evaluate};
pub use run_folder::{LoadedRun, RunFolder};
pub use session::{Outcome, TrainOptions, train};
pub use settings::{model_config, optimizer_settings};
pub use stop::StopSignal;
