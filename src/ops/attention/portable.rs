//! Attention by candle operations, for other devices than the CPU.

use super::AttentionShape;
use crate::ops::compute::widened;
use crate::ops::documents::PackedDocuments;
use crate::ops::pointwise::Dropout;
use crate::ops::product::batched_product;
use crate::ops::tape::{Tape, Value};
use candle_core::{DType, Device, Result, Tensor};

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
    let AttentionShape { t, .. } = shape;
    let heads = Heads {
        q: shape.split(q.tensor())?,
        k: shape.repeat(&shape.of_keys().split(k.tensor())?)?,
        v: shape.repeat(&shape.of_keys().split(v.tensor())?)?,
        starts: documents.map(|documents| documents.starts(q.tensor().device())).transpose()?,
        shape,
        dropout,
    };
    let tiles = Tile::all(t, heads.q.device())?;
    let parts = tiles.iter().map(|tile| heads.forward(tile)).collect::<Result<Vec<_>>>()?;
    let out = shape.merge(&Tensor::cat(&parts, 1)?)?;
    let sources = [q.source(), k.source(), v.source()];
    Ok(tape.record(&sources, out, move |delta, flow| {
        let gradients = heads.backward(&tiles, &shape.split(&delta)?)?;
        let shapes = [shape, shape.of_keys(), shape.of_keys()];
        for ((to, gradient), shape) in sources.into_iter().zip(gradients).zip(shapes) {
            flow.add(to, shape.merge(&gradient)?)?;
        }
        Ok(())
    }))
}

impl AttentionShape {
    /// (B, T, C) as (B H, T, d).
    fn split(&self, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { b, t, heads, d, .. } = *self;
        x.reshape((b, t, heads, d))?.transpose(1, 2)?.contiguous()?.reshape((b * heads, t, d))
    }

    /// (B H, T, d) as (B, T, C).
    fn merge(&self, x: &Tensor) -> Result<Tensor> {
        let AttentionShape { b, t, heads, d, .. } = *self;
        x.reshape((b, heads, t, d))?.transpose(1, 2)?.contiguous()?.reshape((b, t, heads * d))
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

    /// A gradient of what [`Self::repeat`] gave, summed over the repetitions: (B G, T, d).
    fn sum_repeated(&self, gradient: Tensor) -> Result<Tensor> {
        let (AttentionShape { b, t, d, .. }, group) = (*self, self.group());
        if group == 1 {
            return Ok(gradient);
        }
        gradient.reshape((b * self.key_heads, group, t, d))?.sum(1)
    }
}

/// Query rows `first..first + rows` against keys `0..limit`.
struct Tile {
    first: usize,
    rows: usize,
    limit: usize,
    /// (rows, limit) in f32: 0 where a row may look, −∞ behind it.
    mask: Tensor,
}

impl Tile {
    /// Query rows per tile: large enough to keep a device busy, small enough to leave out most of
    /// what the mask would hide.
    const ROWS: usize = 256;

    fn all(t: usize, device: &Device) -> Result<Vec<Self>> {
        let tile = |first: usize| {
            let rows = Self::ROWS.min(t - first);
            let limit = first + rows;
            let hidden =
                |i: usize| if i % limit > first + i / limit { f32::NEG_INFINITY } else { 0.0 };
            let mask =
                Tensor::from_vec((0..rows * limit).map(hidden).collect(), (rows, limit), device)?;
            Ok(Self { first, rows, limit, mask })
        };
        (0..t).step_by(Self::ROWS).map(tile).collect()
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
    dropout: Option<Dropout>,
}

impl Heads {
    fn rows(x: &Tensor, first: usize, count: usize) -> Result<Tensor> {
        x.narrow(1, first, count)?.contiguous()
    }

    /// softmax of a tile, (B H, rows, limit), in f32 or wider.
    fn probabilities(&self, tile: &Tile) -> Result<Tensor> {
        let (q, k) =
            (Self::rows(&self.q, tile.first, tile.rows)?, Self::rows(&self.k, 0, tile.limit)?);
        let scores = (widened(&batched_product(&q, &k.t()?)?)? * self.shape.scale())?;
        let mask = tile.mask.to_dtype(scores.dtype())?;
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
        let p = self.probabilities(tile)?;
        let p = match self.factors(tile, p.dtype())? {
            Some(factors) => (p * factors)?,
            None => p,
        };
        batched_product(&p.to_dtype(self.v.dtype())?, &Self::rows(&self.v, 0, tile.limit)?)
    }

    /// dq, dk, dv by head; sums over tiles are in f32 or wider.
    fn backward(&self, tiles: &[Tile], delta: &Tensor) -> Result<[Tensor; 3]> {
        let given = self.q.dtype();
        let (mut dq, mut dk, mut dv) = (Vec::with_capacity(tiles.len()), None, None);
        // From the last tile, which reaches every key, to the first.
        for tile in tiles.iter().rev() {
            let p = self.probabilities(tile)?;
            let factors = self.factors(tile, p.dtype())?;
            let masked = |x: Tensor| if let Some(factors) = &factors { x * factors } else { Ok(x) };
            let (delta, q) = (
                Self::rows(delta, tile.first, tile.rows)?,
                Self::rows(&self.q, tile.first, tile.rows)?,
            );
            let (k, v) = (Self::rows(&self.k, 0, tile.limit)?, Self::rows(&self.v, 0, tile.limit)?);
            let dp = masked(widened(&batched_product(&delta, &v.t()?)?)?)?;
            let centered = dp.broadcast_sub(&(&dp * &p)?.sum_keepdim(2)?)?;
            drop(dp);
            let ds = ((&p * centered)? * self.shape.scale())?.to_dtype(given)?;
            dq.push(batched_product(&ds, &k)?);
            let add = |sum: Option<Tensor>, part: Tensor| -> Result<Option<Tensor>> {
                let part = widened(&part)?;
                Ok(Some(match sum {
                    Some(sum) => (sum + part.pad_with_zeros(1, 0, self.shape.t - tile.limit)?)?,
                    None => part,
                }))
            };
            dk = add(dk, batched_product(&ds.t()?, &q)?)?;
            dv = add(dv, batched_product(&masked(p)?.to_dtype(given)?.t()?, &delta)?)?;
        }
        dq.reverse();
        let whole = |sum: Option<Tensor>| {
            let sum = sum.map_or_else(|| self.k.zeros_like(), Ok)?;
            self.shape.sum_repeated(sum)?.to_dtype(given)
        };
        Ok([Tensor::cat(&dq, 1)?, whole(dk)?, whole(dv)?])
    }
}
