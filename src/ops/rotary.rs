//! Rotary positions (Su et al. 2021), in the convention of `transformers`: within a head of width
//! d, numbers i and i + d/2 are a pair, which position p turns by the angle p θ^(−2i/d).

use super::compute::{Compute, wide, widened};
use super::documents::PackedDocuments;
use super::gpu;
use super::tape::{Tape, Value};
use crate::kernels::profile::{Work, span};
use crate::kernels::{Host, Real, build, vectorized, with_real};
use candle_core::{D, DType, Device, Result, Tensor, bail};
use rayon::prelude::*;

/// Cosines and sines of the angles of some positions in a row, (T, d/2) each, or of those of every
/// token of a batch, (B T, d/2).
#[derive(Clone, Debug)]
pub struct Rotation {
    cosines: Tensor,
    sines: Tensor,
}

impl Rotation {
    /// Those of positions `first..first + count` for heads of width d and the base θ, for tensors
    /// of this type; angles are computed in f64.
    ///
    /// # Errors
    /// If d is odd.
    pub fn new(
        head_width: usize,
        theta: f64,
        first: usize,
        count: usize,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        if !head_width.is_multiple_of(2) {
            bail!("rotary positions: heads {head_width} wide cannot be turned in pairs")
        }
        let half = head_width / 2;
        let rates: Vec<f64> =
            (0..half).map(|i| theta.powf(-2.0 * i as f64 / head_width as f64)).collect();
        let table = |of: fn(f64) -> f64| {
            let positions = first..first + count;
            let angles = positions.flat_map(|p| rates.iter().map(move |rate| p as f64 * rate));
            Tensor::from_vec(angles.map(of).collect::<Vec<f64>>(), (count, half), &Device::Cpu)?
                .to_dtype(wide(dtype))?
                .to_device(device)
        };
        Ok(Self { cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }

    /// Those of every token of documents, by its position in its own, from the angles of positions
    /// that begin at 0.
    ///
    /// # Errors
    /// If a document has more tokens than there are positions.
    pub fn of_documents(&self, documents: &PackedDocuments) -> Result<Self> {
        let positions = self.cosines.dim(0)?;
        if documents.longest() > positions {
            bail!("rotary: {positions} positions for a document of {}", documents.longest())
        }
        let places = documents.positions().flatten_all()?.to_device(self.cosines.device())?;
        let table = |angles: &Tensor| angles.index_select(&places, 0);
        Ok(Self { cosines: table(&self.cosines)?, sines: table(&self.sines)? })
    }

    /// The turns back.
    fn reversed(&self) -> Result<Self> {
        Ok(Self { cosines: self.cosines.clone(), sines: self.sines.neg()? })
    }

    fn turn(&self, x: &Tensor, compute: Compute) -> Result<Tensor> {
        if let Some(gpu) = compute.gpu(x) {
            return gpu::rotary(gpu, &x.contiguous()?, &self.cosines, &self.sines);
        }
        let x = widened(x)?.contiguous()?;
        if compute.kernels && x.device().is_cpu() {
            with_real!(x.dtype(), T => self.forward::<T>(&x))
        } else {
            self.portable(&x)
        }
    }

    fn portable(&self, x: &Tensor) -> Result<Tensor> {
        let ((b, t, width), (rows, half)) = (x.dims3()?, self.cosines.dims2()?);
        let heads = x.reshape((b, t, width / (2 * half), 2, half))?;
        let (low, high) = (heads.narrow(3, 0, 1)?, heads.narrow(3, 1, 1)?);
        let [cos, sin] =
            [&self.cosines, &self.sines].map(|table| table.reshape((rows / t, t, 1, 1, half)));
        let (cos, sin) = (cos?, sin?);
        let turned = [
            (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?,
            (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?,
        ];
        Tensor::cat(&turned, D::Minus2)?.reshape((b, t, width))
    }

    fn forward<T: Real>(&self, x: &Tensor) -> Result<Tensor> {
        let ((_, _, width), (rows, half)) = (x.dims3()?, self.cosines.dims2()?);
        let (x_host, cos_host, sin_host) =
            (Host::new(x)?, Host::new(&self.cosines)?, Host::new(&self.sines)?);
        let (x_numbers, cos, sin) =
            (x_host.numbers::<T>()?, cos_host.numbers::<T>()?, sin_host.numbers::<T>()?);
        build::<T>(x.shape().clone(), |out| {
            out.par_chunks_mut(width)
                .with_min_len(16)
                .zip(x_numbers.par_chunks(width))
                .enumerate()
                .for_each(|(row, (out, x))| {
                    let place = row % rows * half;
                    let (cos, sin) = (&cos[place..][..half], &sin[place..][..half]);
                    vectorized!({
                        for (out, x) in out.chunks_exact_mut(2 * half).zip(x.chunks_exact(2 * half))
                        {
                            let (out_low, out_high) = out.split_at_mut(half);
                            let (low, high) = x.split_at(half);
                            for i in 0..half {
                                out_low[i] = low[i] * cos[i] - high[i] * sin[i];
                                out_high[i] = high[i] * cos[i] + low[i] * sin[i];
                            }
                        }
                    })
                });
            Ok(())
        })
    }
}

/// x (B, T, H d) with every head of every token turned by its position, in x's type; the backward
/// turns the gradient back, and nothing of x is kept.
///
/// # Errors
/// If x has another number of tokens than there are positions, or is not made of such heads.
pub fn rotary(tape: &Tape, x: &Value, rotation: &Rotation) -> Result<Value> {
    let ((b, t, width), (positions, half)) = (x.tensor().dims3()?, rotation.cosines.dims2()?);
    if ![t, b * t].contains(&positions) || half == 0 || !width.is_multiple_of(2 * half) {
        bail!(
            "rotary: {:?} for {positions} positions and heads {} wide",
            x.tensor().dims(),
            2 * half
        )
    }
    let given = x.tensor().dtype();
    if wide(given) != rotation.cosines.dtype() {
        bail!("rotary: {given:?} and angles for {:?}", rotation.cosines.dtype())
    }
    let _span = span(|| Work::pass("rotary", x.tensor(), (2, 2)));
    let y = rotation.turn(x.tensor(), tape.compute())?.to_dtype(given)?;
    let (to_x, rotation) = (x.source(), rotation.clone());
    Ok(tape.record(&[to_x], y, move |delta, flow| {
        let dx = rotation.reversed()?.turn(&delta, flow.compute())?;
        flow.add(to_x, dx.to_dtype(given)?)
    }))
}
