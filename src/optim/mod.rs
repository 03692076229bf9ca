//! How parameters move: AdamW for everything dense, Muon and GaLore for full matrices, heavy ball
//! and LORO on factors, the DLRA step for low-rank weights, rank policies, schedules, clipping.
//!
//! Knows no model: it sees named parameters and asks a [`GradientOracle`] for gradients, as often
//! as its rule needs.

mod elementwise;
mod execution;
mod gradient;
mod leaves;
mod optimizer;
mod rank;
mod rule;
mod rules;
mod schedule;

pub use execution::{Execution, Placement};
pub use gradient::{Scaled, TrainedGradients, clip_factor};
pub use leaves::{LeafMap, Leaves};
pub use optimizer::{
    BatchLoss, FactorRule, GradientOracle, Optimizer, OptimizerSettings, StepReport,
};
pub use rank::{Offer, RankDecision, RankEvent, cut_ranks};
pub use rules::{
    AdamwState, AdamwStep, DlraState, DlraStep, DlraUpdate, GalerkinStep, GaloreState,
    HeavyBallState, MomentClock, MomentumCost, MuonState, WeightSize, loro_exact_step,
    momentum_cost,
};
pub use schedule::Schedule;
