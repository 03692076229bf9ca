//! Where the low-rank optimizer's time goes: each part of its step on every low-rank weight.

use crate::linalg;
use crate::lowrank::{Augmentation, BasisChange, LowRank, Tangent};
use crate::params::ParamStore;
use crate::rng;
use crate::spec::{DlraSpec, Momentum, RetractionSpec};
use candle_core::{Device, Result, Tensor};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Seconds of each part of a step, summed over all low-rank weights. On the host the weights are
/// taken one after another; a training step works on several side by side and takes less. On a
/// device all weights of one shape and rank are taken at once, as in a training step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct LowRankParts {
    /// Tangent projection of the K- and L-gradient.
    pub projection: f64,
    /// QR: orthonormal new directions on both sides.
    pub basis_qr: f64,
    /// Polar factor of the core, for `spectral`.
    pub polar: f64,
    /// Retraction while the rank stays: subspace iteration or SVD, and the new bases.
    pub retraction: f64,
    /// Transport of the moments.
    pub transport: f64,
    /// For comparison: the truncating SVD that decides ranks, which is not part of a step with
    /// `retraction: subspace`.
    pub truncation_svd: f64,
}

impl LowRankParts {
    /// Times one step's parts on the weights as they are, along random directions.
    ///
    /// # Errors
    /// If a factorisation fails.
    pub fn measure(params: &ParamStore, dlra: &DlraSpec, on_device: bool) -> Result<Self> {
        let mut parts = Self::default();
        if !on_device {
            params.low_rank().try_for_each(|(id, _, point)| parts.add(point, dlra, id.0 as u64))?;
            return Ok(parts);
        }
        let mut shapes: BTreeMap<_, Vec<&LowRank>> = BTreeMap::new();
        for (_, _, point) in params.low_rank() {
            shapes.entry((point.rows(), point.columns(), point.rank())).or_default().push(point);
        }
        shapes.values().enumerate().try_for_each(|(draw, points)| {
            parts.add(&LowRank::stack(points)?, dlra, draw as u64)
        })?;
        Ok(parts)
    }

    fn add(&mut self, point: &LowRank, dlra: &DlraSpec, draw: u64) -> Result<()> {
        let random = |like: &Tensor, side: u64| {
            let numbers = rng::normals(
                &mut rng::stream(0, "benchmark gradients", &[draw, side]),
                like.elem_count(),
            );
            Tensor::from_vec(numbers, like.dims(), &candle_core::Device::Cpu)?
                .to_dtype(like.dtype())?
                .to_device(like.device())
        };
        let (k, l) = (random(&point.u, 0)?, random(&point.v, 1)?);
        let device = point.u.device().clone();
        // A device works asynchronously, so the clock is read only when it has finished.
        device.synchronize()?;
        let tangent =
            timed(&mut self.projection, &device, || Tangent::from_outer_gradients(point, &k, &l))?;
        let augmentation =
            timed(&mut self.basis_qr, &device, || Augmentation::new(point, &tangent))?;
        if dlra.momentum == Momentum::Spectral {
            timed(&mut self.polar, &device, || match dlra.retraction {
                RetractionSpec::Svd => linalg::polar(augmentation.core()),
                RetractionSpec::Subspace => linalg::polar_newton_schulz(augmentation.core()),
            })?;
        }
        let coefficients = augmentation.coefficients(point, augmentation.core(), 1e-3, 0.0)?;
        let truncate = || augmentation.truncate(point, &coefficients, &|_| point.rank());
        let retracted = timed(&mut self.retraction, &device, || match dlra.retraction {
            RetractionSpec::Svd => truncate(),
            RetractionSpec::Subspace => augmentation.retract_subspace(point, &coefficients),
        })?;
        timed(&mut self.truncation_svd, &device, truncate)?;
        let change = BasisChange::from_rotations(
            point,
            &retracted.point,
            retracted.rotation_u,
            retracted.rotation_v,
        );
        timed(&mut self.transport, &device, || {
            if dlra.momentum == Momentum::Adam {
                change.transport_second_moments(&tangent)?;
            }
            change.transport(&tangent)
        })?;
        Ok(())
    }
}

/// Runs `part` and adds its seconds to `sum`.
fn timed<T>(sum: &mut f64, device: &Device, part: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = part()?;
    device.synchronize()?;
    *sum += started.elapsed().as_secs_f64();
    Ok(result)
}
