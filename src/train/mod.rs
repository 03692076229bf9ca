//! The only place where model, optimizer and data meet: the session, its loop, evaluation and
//! resume.

mod choices;
mod complete;
#[cfg(test)]
mod counted_operations;
mod cut;
#[cfg(test)]
mod dense_start;
mod diagnose;
mod elsewhere;
mod evaluate;
mod extend;
mod fresh_start;
mod init;
mod init_report;
mod memory;
mod meter;
mod oracle;
mod run_folder;
mod run_history;
mod run_state;
mod run_summary;
mod score;
mod session;
mod settings;
#[cfg(test)]
mod shared_steps;
mod source;
mod stop;
mod trainer;

pub use choices::{ChoiceScore, Question, read_questions};
pub use complete::{load_plan, load_spec};
pub use evaluate::{ValidationLoss, evaluate};
pub use memory::measured as measured_memory;
pub use meter::{Means, Meter};
pub use oracle::OracleTimes;
pub use run_folder::{LoadedRun, RunFolder};
pub use run_state::{Progress, RunState};
pub use run_summary::{RunSummary, runs_in};
pub use score::TextScore;
pub use session::{Beginning, Outcome, TrainOptions, refuse_idle_processes, train};
pub use stop::StopSignal;
pub use trainer::{TimedStep, Trainer};
