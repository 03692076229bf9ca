//! Runs side by side, or one alone: read, grouped, tested, drawn.
//!
//! ```text
//! run_results   one run's folder: plan, data, validations, ranks, spectra, times
//! groups        runs that differ by their seed alone, and the search over learning rates
//! clock         the seconds that logged steps took
//! statistics    mean, standard error, paired t intervals
//! budget        the loss a run had when it had spent as much as another
//! comparison    groups compared with a baseline; refuses what cannot be compared
//! goal          what counts as success, and who reaches it
//! frontier      loss against parameters, operations and memory
//! scaling       power laws of the loss in operations
//! columns       a table as wide as the terminal
//! table         the comparison as text and Markdown
//! charts        the comparison as charts
//! allotment     the ranks of one run's weights as a spec
//! spectra       the ranks and singular values of one run's weights, now and over the run
//! page          report.html and report.md of a comparison with their charts
//! run_page      the page of one run, finished or not
//! ```

mod allotment;
mod budget;
mod charts;
mod clock;
mod columns;
mod comparison;
mod frontier;
mod goal;
mod groups;
mod missing;
mod page;
mod run_charts;
mod run_page;
mod run_results;
mod scaling;
mod spectra;
mod statistics;
mod table;

pub use allotment::allotment;
pub use budget::{Spending, loss_at};
pub use columns::{Column, fitted, wrapped};
pub use comparison::{Comparison, GroupSummary, PairedDifference, compare};
pub use goal::Goal;
pub use groups::{Candidate, Group, LabelledRun, Search, group_runs, last_key};
pub use page::write_report;
pub use run_page::write_run_report;
pub use run_results::{Point, RanksAt, RunResults, SpectrumAt};
pub use scaling::Scaling;
pub use spectra::{SpectrumSummary, spectra_figure, spectra_json, spectra_table};
pub use statistics::{Estimate, paired_difference};
pub use table::{markdown_table, text_table};
