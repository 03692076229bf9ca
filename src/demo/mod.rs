//! Momentum on small matrix problems that show what it does: on the factors of W = B A it stalls or
//! diverges; in the tangent space of W = U S Vᵀ it does not.
//!
//! docs/momentum.md derives why. Here are the problems, the rules of the training code applied to
//! them, and the outcome.
//!
//! ```text
//! problem      a target, a start, factors of it, noise on the gradient
//! method       a rule of `optim` on the factors, or on the low-rank point
//! momentum     every method on every problem over learning rates and seeds
//! report       the outcome as text and charts
//! ```

mod method;
mod momentum;
mod problem;
mod report;

pub use method::Method;
pub use momentum::{Experiment, MethodOutcome, MomentumReport, ProblemOutcome, RateOutcome, run};
pub use problem::{Instance, Problem, TargetSpectrum};
