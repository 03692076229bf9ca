//! Runs looked at while they train, or after: `lrpt watch`.
//!
//! ```text
//! curve      a figure over the steps, in memory that does not grow with the run
//! figures    all that the lines of metrics.jsonl say of a run
//! view       a run as its folder shows it now: figures, spectra, newest sample, state
//! screen     which runs are shown, which view of them, and what a key changes
//! draw       a screen on a terminal of any size
//! live       the loop: read, draw, wait for a key
//! lines      the same without a terminal: a line for each validation
//! ```
//!
//! Everything is read from a run's files and nothing is written, so that a run can be watched from
//! another machine, by several people, and after it has ended. Names and texts from files reach a
//! terminal with their control characters shown.

mod curve;
mod draw;
mod figures;
mod lines;
mod live;
mod screen;
#[cfg(test)]
mod tests;
mod view;

pub use curve::Curve;
pub use draw::draw;
pub use figures::{Figures, Validation};
pub use lines::follow;
pub use live::watch;
pub use screen::{Screen, Tab};
pub use view::{Spectrum, Standing, View, open};

/// How often files are looked at.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(1);
