//! How parameters move: AdamW for everything dense, Muon and GaLore for full matrices, heavy ball
//! and LORO on factors, the DLRA step for low-rank weights, rank policies, schedules, clipping.
//!
//! Knows no model: it sees named parameters and asks a [`GradientOracle`] for gradients, as often
//! as its rule needs.

mod adamw;
mod dlra;
mod elementwise;
mod execution;
mod galore;
mod gradient;
mod heavy_ball;
mod loro;
mod matrix_steps;
mod muon;
mod optimizer;
mod rank;
mod schedule;
mod state;

pub use adamw::{AdamwState, AdamwStep};
pub use dlra::{DlraState, DlraStep, DlraUpdate, GalerkinStep};
pub use execution::{Execution, Placement};
pub use galore::GaloreState;
pub use gradient::{Gradient, TrainedGradients, clip_factor};
pub use heavy_ball::HeavyBallState;
pub use loro::{LoroCycle, exact_step as loro_exact_step};
pub use muon::MuonState;
pub use optimizer::{
    Evaluation, FactorRule, GradientOracle, Optimizer, OptimizerSettings, StepReport,
};
pub use rank::{
    BudgetSchedule, RankBounds, RankCycle, RankDecision, RankSchedule, Tolerance, ToleranceSchedule,
};
pub use schedule::Schedule;
