//! Attention by products of stacks, for other devices than the CPU: with kernels of our own between
//! the products on an NVIDIA GPU, with candle's operations elsewhere.

use super::AttentionShape;
use crate::kernels::gpu::Gpu;
use crate::ops::compute::{Compute, widened};
use crate::ops::documents::PackedDocuments;
use crate::ops::gpu;
use crate::ops::pointwise::Dropout;
use crate::ops::product::batched_product;
use crate::ops::tape::{Tape, Value};
use candle_core::{DType, Device, Result, Tensor, bail};

/// [`causal_attention`](super::causal_attention) by candle operations: tiles of query rows against
/// the keys up to the causal limit, probabilities computed again in the backward.
///
/// A document in a row is one more thing that the mask says: what a device computes is the row's.
///
/// Products are in the inputs' type, softmax and everything element-wise in f32 or wider.
pub fn attention(
    tape: &Tape,
    [q, k, v]: [&Value; 3],
    shape: AttentionShape,
    documents: Option<&PackedDocuments>,
    dropout: Option<Dropout>,
) -> Result<Value> {
    let (AttentionShape { t, .. }, compute) = (shape, tape.compute());
    let heads = Heads {
        q: shape.split(compute, q.tensor())?,
        k: shape.repeat(&shape.of_keys().split(compute, k.tensor())?)?,
        v: shape.repeat(&shape.of_keys().split(compute, v.tensor())?)?,
        starts: documents.map(|documents| documents.starts(q.tensor().device())).transpose()?,
        shape,
        compute,
        dropout,
    };
    let tiles = Tile::all(t, &heads)?;
    let parts = tiles.iter().map(|tile| heads.forward(tile)).collect::<Result<Vec<_>>>()?;
    let out = shape.merge(compute, &Tensor::cat(&parts, 1)?)?;
    let sources = [q.source(), k.source(), v.source()];
    Ok(tape.record(&sources, out, move |delta, flow| {
        let gradients = heads.backward(&tiles, &shape.split(compute, &delta)?)?;
        let shapes = [shape, shape.of_keys(), shape.of_keys()];
        for ((to, gradient), shape) in sources.into_iter().zip(gradients).zip(shapes) {
            flow.add(to, shape.merge(compute, &gradient)?)?;
        }
        Ok(())
    }))
}

impl AttentionShape {
    /// (B, T, C) as (B H, T, d).
    fn split(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { b, t, heads, d, .. } = *self;
        swapped(compute, &x.reshape((b, t, heads, d))?)?.reshape((b * heads, t, d))
    }

    /// (B H, T, d) as (B, T, C).
    fn merge(&self, compute: Compute, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { b, t, heads, d, .. } = *self;
        swapped(compute, &x.reshape((b, heads, t, d))?)?.reshape((b, t, heads * d))
    }

    /// Keys or values (B G, T, d) as (B H, T, d): each head once for every head of queries that
    /// sees it.
    fn repeat(&self, x: &Tensor) -> Result<Tensor> {
        let (AttentionShape { b, t, d, .. }, group) = (*self, self.group());
        if group == 1 {
            return Ok(x.clone());
        }
        x.reshape((b * self.key_heads, 1, t, d))?
            .broadcast_as((b * self.key_heads, group, t, d))?
            .contiguous()?
            .reshape((b * self.heads, t, d))
    }

    /// A gradient of what [`Self::repeat`] gave, summed over the repetitions in f32 or wider:
    /// (B G, T, d).
    fn sum_repeated(&self, gradient: Tensor) -> Result<Tensor> {
        let (AttentionShape { b, t, d, .. }, group) = (*self, self.group());
        if group == 1 {
            return Ok(gradient);
        }
        widened(&gradient)?.reshape((b * self.key_heads, group, t, d))?.sum(1)
    }
}

/// The two middle dimensions of four in each other's place.
fn swapped(compute: Compute, x: &Tensor) -> Result<Tensor> {
    match compute.gpu(x) {
        Some(gpu) => gpu::swap_axes(gpu, &x.contiguous()?),
        None => x.transpose(1, 2)?.contiguous(),
    }
}

/// Query rows `first..first + rows` against keys `0..limit`.
struct Tile {
    first: usize,
    rows: usize,
    limit: usize,
    /// (rows, limit) in f32: 0 where a row may look, −∞ behind it; none where a kernel knows.
    mask: Option<Tensor>,
}

impl Tile {
    /// Query rows per tile: large enough to keep a device busy, small enough to leave out most of
    /// what the mask would hide.
    const ROWS: usize = 256;
    /// The same where kernels of our own make little of what is hidden, and sums over tiles cost
    /// more than that.
    const GPU_ROWS: usize = 1024;

    fn all(t: usize, heads: &Heads) -> Result<Vec<Self>> {
        let (device, by_kernels) = (heads.q.device(), heads.gpu().is_some());
        let most = if by_kernels { Self::GPU_ROWS } else { Self::ROWS };
        let tile = |first: usize| {
            let rows = most.min(t - first);
            let limit = first + rows;
            if by_kernels {
                return Ok(Self { first, rows, limit, mask: None });
            }
            let hidden =
                |i: usize| if i % limit > first + i / limit { f32::NEG_INFINITY } else { 0.0 };
            let mask =
                Tensor::from_vec((0..rows * limit).map(hidden).collect(), (rows, limit), device)?;
            Ok(Self { first, rows, limit, mask: Some(mask) })
        };
        (0..t).step_by(most).map(tile).collect()
    }
}

/// Queries, keys and values by head of queries, (B H, T, d).
struct Heads {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    /// The first token that each query's document has, (B, 1, T, 1) f32, where rows have several.
    starts: Option<Tensor>,
    shape: AttentionShape,
    compute: Compute,
    dropout: Option<Dropout>,
}

impl Heads {
    /// The GPU whose kernels stand between the products; they know no dropout.
    fn gpu(&self) -> Option<Gpu<'_>> {
        self.compute.gpu(&self.q).filter(|_| self.dropout.is_none())
    }

    /// What such a kernel is told of a tile.
    fn causal_rows(&self, tile: &Tile) -> gpu::CausalRows<'_> {
        let AttentionShape { t, heads, .. } = self.shape;
        let (first, scale, starts) = (tile.first, self.shape.scale(), self.starts.as_ref());
        gpu::CausalRows { first, heads, length: t, scale, starts }
    }

    /// q kᵀ of a tile, (B H, rows, limit), in their type.
    fn scores(&self, tile: &Tile) -> Result<Tensor> {
        let (q, k) =
            (Self::rows(&self.q, tile.first, tile.rows)?, Self::rows(&self.k, 0, tile.limit)?);
        batched_product(&q, &k.t()?)
    }

    /// These rows of every head, as products take them.
    fn rows(x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
        let rows = x.narrow(1, first, count)?;
        if x.device().is_cuda() { Ok(rows) } else { rows.contiguous() }
    }

    /// softmax of a tile, (B H, rows, limit), in f32 or wider.
    fn probabilities(&self, tile: &Tile) -> Result<Tensor> {
        let scores = (widened(&self.scores(tile)?)? * self.shape.scale())?;
        let Some(mask) = &tile.mask else { bail!("a tile of queries without its mask") };
        let mask = mask.to_dtype(scores.dtype())?;
        let masked = match &self.starts {
            None => scores.broadcast_add(&mask)?,
            Some(starts) => {
                let shape = (self.shape.b, self.shape.heads, tile.rows, tile.limit);
                let before = self.before_documents(tile, starts)?.to_dtype(scores.dtype())?;
                let mask = mask.broadcast_add(&before)?;
                scores.reshape(shape)?.broadcast_add(&mask)?.reshape(scores.shape())?
            }
        };
        // candle's fused softmax has no backward, and needs none here.
        candle_nn::ops::softmax_last_dim(&masked)
    }

    /// (B, 1, rows, limit) in f32: −∞ before the start of a row's document, else 0.
    fn before_documents(&self, tile: &Tile, starts: &Tensor) -> Result<Tensor> {
        let device = starts.device();
        let starts = starts.narrow(2, tile.first, tile.rows)?;
        let shape = (self.shape.b, 1, tile.rows, tile.limit);
        let columns = Tensor::arange(0f32, tile.limit as f32, device)?.broadcast_as(shape)?;
        let constant = |number: f32| Tensor::new(number, device)?.broadcast_as(shape);
        columns.broadcast_lt(&starts)?.where_cond(&constant(f32::NEG_INFINITY)?, &constant(0.0)?)
    }

    /// Dropout factors of a tile's probabilities, those of [`Mask`] at the same (row, column).
    fn factors(&self, tile: &Tile, dtype: DType) -> Result<Option<Tensor>> {
        let Some(dropout) = self.dropout else { return Ok(None) };
        let (mask, t, tasks) =
            (dropout.mask::<f64>(), self.shape.t, self.shape.b * self.shape.heads);
        let index = |i: usize| {
            let (task, row, column) =
                (i / (tile.rows * tile.limit), i / tile.limit % tile.rows, i % tile.limit);
            ((task * t + tile.first + row) * t + column) as u64
        };
        let factors: Vec<f64> =
            (0..tasks * tile.rows * tile.limit).map(|i| mask.factor(index(i))).collect();
        let factors = Tensor::from_vec(factors, (tasks, tile.rows, tile.limit), &Device::Cpu)?;
        Ok(Some(factors.to_dtype(dtype)?.to_device(self.q.device())?))
    }

    fn forward(&self, tile: &Tile) -> Result<Tensor> {
        if let Some(gpu) = self.gpu() {
            let p = self.causal_rows(tile).softmax(gpu, &self.scores(tile)?)?;
            return batched_product(&p, &Self::rows(&self.v, 0, tile.limit)?);
        }
        let p = self.probabilities(tile)?;
        let p = match self.factors(tile, p.dtype())? {
            Some(factors) => (p * factors)?,
            None => p,
        };
        batched_product(&p.to_dtype(self.v.dtype())?, &Self::rows(&self.v, 0, tile.limit)?)
    }

    /// The probabilities of a tile as they met the values, and the gradient by its scores, from that
    /// by the former: both in the type of the products.
    fn gradient_by_scores(&self, tile: &Tile, dp: Tensor) -> Result<(Tensor, Tensor)> {
        let given = self.q.dtype();
        let p = self.probabilities(tile)?;
        let factors = self.factors(tile, p.dtype())?;
        let masked = |x: Tensor| if let Some(factors) = &factors { x * factors } else { Ok(x) };
        let dp = masked(widened(&dp)?)?;
        let centered = dp.broadcast_sub(&(&dp * &p)?.sum_keepdim(2)?)?;
        drop(dp);
        let ds = ((&p * centered)? * self.shape.scale())?.to_dtype(given)?;
        Ok((masked(p)?.to_dtype(given)?, ds))
    }

    /// dq, dk, dv by head; sums over tiles and over heads that share keys are in f32 or wider.
    fn backward(&self, tiles: &[Tile], delta: &Tensor) -> Result<[Tensor; 3]> {
        let given = self.q.dtype();
        let (mut dq, mut dk, mut dv) = (Vec::with_capacity(tiles.len()), None, None);
        // From the last tile, which reaches every key, to the first.
        for tile in tiles.iter().rev() {
            let (delta, q) = (
                Self::rows(delta, tile.first, tile.rows)?,
                Self::rows(&self.q, tile.first, tile.rows)?,
            );
            let (k, v) = (Self::rows(&self.k, 0, tile.limit)?, Self::rows(&self.v, 0, tile.limit)?);
            let dp = batched_product(&delta, &v.t()?)?;
            let (p, ds) = match self.gpu() {
                Some(gpu) => self.causal_rows(tile).backward(gpu, &self.scores(tile)?, &dp)?,
                None => self.gradient_by_scores(tile, dp)?,
            };
            dq.push(batched_product(&ds, &k)?);
            let add = |sum: Option<Tensor>, part: Tensor| -> Result<Option<Tensor>> {
                let part = if tiles.len() == 1 { part } else { widened(&part)? };
                Ok(Some(match sum {
                    Some(sum) => (sum + part.pad_with_zeros(1, 0, self.shape.t - tile.limit)?)?,
                    None => part,
                }))
            };
            dk = add(dk, batched_product(&ds.t()?, &q)?)?;
            dv = add(dv, batched_product(&p.t()?, &delta)?)?;
        }
        dq.reverse();
        let whole = |sum: Option<Tensor>| {
            let sum = sum.map_or_else(|| self.k.zeros_like(), Ok)?;
            self.shape.sum_repeated(sum)?.to_dtype(given)
        };
        Ok([Tensor::cat(&dq, 1)?, whole(dk)?, whole(dv)?])
    }
}
