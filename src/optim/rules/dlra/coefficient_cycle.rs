//! `coefficient_cycle`: augment on one batch, train S alone on the next ones with the bases frozen,
//! truncate.
//!
//! The cycle of the authors' code (RobustDLRT, arXiv:2505.08022: ten batches, the first of which
//! augments and moves nothing; GeoLoRA's trainers cycle likewise), with this project's moments:
//! where that code keeps moments of S alone, padded at an augmentation and cut at a truncation, the
//! first moment here is a tangent vector throughout and takes in every batch, the augmenting one
//! too, so that the parts P and Q gather, over the cycle in which the bases stand still, the
//! directions of the next augmentation.
//!
//! ```text
//! augment        m ← βm + wT,  D = D(m);  U ← [U | Q_P], V ← [V | Q_Q], S ← [[S, 0], [0, 0]]: W stays; moments into the new bases
//! J batches      m ← βm + wT,  D = D(m);  S ← (1 − ηλ) S − η D_M,  for `spectral` D_M = 0.2 √max(m, n) polar(m_M)
//! after the last S = A Σ Bᵀ;  U ← U A[:, :r'], V ← V B[:, :r'], S ← Σ[:r', :r'];  moments into the new bases
//! ```
//!
//! The rank in between is min(2r, m, n), in the network, its checkpoints and its FLOPs; S is
//! singular right after an augmentation, which nothing minds. r' is the rank before the cycle,
//! unless ranks grow or are cut at one of its steps, which takes effect at its end: a cut then
//! chooses from all the directions of the augmented bases, as in the authors' code. The truncation
//! is always by SVD: after J steps the new directions are no longer small, which the subspace
//! retraction needs.

use super::{DlraState, DlraStep, DlraUpdate};
use crate::linalg::{self, weighted_sum};
use crate::lowrank::{Augmentation, LowRank, Retracted, Spectrum, Tangent};
use crate::optim::gradient::Scaled;
use crate::optim::rank::RankDecision;
use crate::spec::CyclePhase;
use candle_core::{Result, Tensor};

impl DlraState {
    /// Rank before the augmentation that opened the present cycle, which is the rank of the point
    /// where none is open; for `coefficient_cycle`.
    pub fn cycle_rank(&self) -> Option<usize> {
        self.cycle_rank
    }

    /// What `coefficient_cycle` does at a step of this phase, from a gradient at the point as it
    /// is, whatever its rank.
    ///
    /// # Errors
    /// If a factorisation meets a non-finite number or does not converge.
    pub fn cycle_step(
        &self,
        point: &LowRank,
        gradient: Scaled<Tangent>,
        hyper: &DlraStep,
        phase: CyclePhase,
    ) -> Result<DlraUpdate> {
        let mut state = self.clone();
        let direction = state.direction(point, gradient, hyper)?;
        match phase {
            CyclePhase::Augment => {
                let augmentation = Augmentation::new(point, &direction)?.balanced(point)?;
                let augmented =
                    augmentation.point_at(point, &augmentation.augmented_coefficients(point)?)?;
                state.cycle_rank = Some(point.rank());
                let rotation_u = linalg::multiply(&augmented.u.t()?, &point.u)?;
                let rotation_v = linalg::multiply(&point.v.t()?, &augmented.v)?;
                state.arrive(
                    point,
                    Retracted { point: augmented, rotation_u, rotation_v, truncation: None },
                    hyper,
                )
            }
            CyclePhase::Coefficients { truncate } => {
                let moved = LowRank {
                    s: moved_coefficients(&state, point, &direction, hyper)?,
                    ..point.clone()
                };
                if !truncate {
                    let identity = Tensor::eye(point.rank(), point.s.dtype(), point.s.device())?;
                    return Ok(DlraUpdate {
                        point: moved,
                        state,
                        rotations: [identity.clone(), identity],
                        truncation: None,
                    });
                }
                let rank = match (hyper.rank, self.cycle_rank) {
                    (RankDecision::Set { rank }, _) | (RankDecision::Keep, Some(rank)) => rank,
                    (RankDecision::Keep, None) => point.rank(),
                };
                let mut retracted = Spectrum::new(&moved)?.truncate(&moved, rank)?;
                let (every, length) = (
                    hyper.settings.reorthonormalize_every.0.max(1),
                    hyper.settings.cycle_length().unwrap_or(1),
                );
                if hyper.step / every > hyper.step.saturating_sub(length) / every {
                    retracted.point = retracted.point.reorthonormalized()?;
                }
                state.cycle_rank = Some(retracted.point.rank());
                state.arrive(&moved, retracted, hyper)
            }
        }
    }
}

/// (1 − ηλ) S − η D_M.
fn moved_coefficients(
    state: &DlraState,
    point: &LowRank,
    direction: &Tangent,
    hyper: &DlraStep,
) -> Result<Tensor> {
    let core = state.momentum.core(point, &direction.m, hyper)?;
    let keep = 1.0 - hyper.learning_rate * hyper.settings.weight_decay;
    weighted_sum(keep, &point.s, -hyper.learning_rate, &core)
}
