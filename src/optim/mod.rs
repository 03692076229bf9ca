//! How parameters move: AdamW for everything dense, Muon and GaLore for full matrices, heavy ball
//! and LORO on factors, the DLRA step for low-rank weights, rank policies, schedules, clipping.
//!
//! Knows no model: it sees named parameters and asks a [`GradientOracle`] for gradients, as often
//! as its rule needs.

mod cost;
mod elementwise;
mod execution;
mod gradient;
mod leaves;
mod optimizer;
mod owners;
mod rank;
mod rule;
mod rules;
mod schedule;
mod shards;

pub use cost::{MovedWeight, RuleCost, WeightSize, rule_cost};
pub use execution::{Execution, Placement};
pub use gradient::{Scaled, TrainedGradients, clip_factor};
pub use leaves::{LeafMap, Leaves};
pub use optimizer::{BatchLoss, GradientOracle, Optimizer, OptimizerSettings, StepReport};
pub use owners::{Movable, Owners, share_out};
pub use rank::{Offer, RankDecision, RankEvent, cut_ranks};
pub use rules::{
    AdamwState, AdamwStep, DlraState, DlraStep, DlraUpdate, GalerkinStep, GaloreState,
    HeavyBallState, MomentClock, MuonState, augmented_rank, augmented_values, carried_flops,
    carried_values, cut_flops, loro_exact_step,
};
pub use schedule::Schedule;
