//! Causal self-attention, exact, without a T × T tensor (after FlashAttention: Dao et al. 2022,
//! Algorithms 1 and 4).
//!
//! Shapes: B sequences, T tokens, H heads of queries of width d, C = H d, and G heads of keys and
//! values, each for H/G heads of queries in a row. Heads are strided views within their rows,
//! nothing is transposed in memory. Queries go in tiles of rows against all keys up to the causal
//! limit; only the log-sum-exp of each row is kept, and the backward recomputes the probabilities
//! from it.

mod cached;
mod portable;
mod shape;

pub use cached::cached_attention;

use super::compute::{wide, widened};
use super::documents::PackedDocuments;
use super::pointwise::{Dropout, Mask};
use super::tape::{Tape, Value};
use crate::kernels::profile::span;
use crate::kernels::{
    Host, Matrix, Real, SharedOut, build, lane_max, lane_sum, multiply_at, unwritten, vectorized,
    with_real,
};
use candle_core::{DType, Device, Result, Tensor, bail};
use rayon::prelude::*;
use shape::AttentionShape;
use std::ops::Range;

/// Query rows per tile.
const TILE: usize = 64;

/// Heads of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionHeads {
    /// Heads of queries, H.
    pub queries: usize,
    /// Heads of keys and values, G; divides H.
    pub keys: usize,
}

impl From<usize> for AttentionHeads {
    /// As many heads of keys and values as of queries.
    fn from(heads: usize) -> Self {
        Self { queries: heads, keys: heads }
    }
}

/// softmax(q kᵀ/√d + causal mask) v per head of queries, for q of (B, T, H d) and k, v of
/// (B, T, G d), where head h of the queries sees head ⌊h G/H⌋ of the keys and values (grouped-query
/// attention: Ainslie et al. 2023); dropout acts on the probabilities.
///
/// # Errors
/// If the shapes do not fit the heads.
pub fn causal_attention(
    tape: &Tape,
    q: &Value,
    k: &Value,
    v: &Value,
    heads: impl Into<AttentionHeads>,
    dropout: Option<Dropout>,
) -> Result<Value> {
    attention(tape, [q, k, v], heads.into(), None, dropout)
}

/// [`causal_attention`] within documents: a token sees those of its own up to itself, as if every
/// document were a sequence. Work and scores are those of the documents, not of the row.
///
/// # Errors
/// If the shapes do not fit the heads or the documents.
pub fn document_attention(
    tape: &Tape,
    [q, k, v]: [&Value; 3],
    heads: AttentionHeads,
    documents: &PackedDocuments,
    dropout: Option<Dropout>,
) -> Result<Value> {
    let (b, t, _) = q.tensor().dims3()?;
    documents.check(b, t)?;
    attention(tape, [q, k, v], heads, Some(documents), dropout)
}

fn attention(
    tape: &Tape,
    [q, k, v]: [&Value; 3],
    heads: AttentionHeads,
    documents: Option<&PackedDocuments>,
    dropout: Option<Dropout>,
) -> Result<Value> {
    let (b, t, width) = q.tensor().dims3()?;
    let AttentionHeads { queries, keys } = heads;
    let fits = queries > 0
        && keys > 0
        && width.is_multiple_of(queries)
        && queries.is_multiple_of(keys)
        && [k, v].iter().all(|x| x.tensor().dims() == [b, t, width / queries * keys]);
    if !fits {
        bail!(
            "causal_attention: q {:?}, k {:?}, v {:?} with {queries} heads of queries, {keys} of \
             keys",
            q.tensor().dims(),
            k.tensor().dims(),
            v.tensor().dims()
        )
    }
    let shape = AttentionShape { b, t, heads: queries, key_heads: keys, d: width / queries };
    let _span = span(|| shape.work(documents, q.tensor().dtype()));
    let sources = [q.source(), k.source(), v.source()];
    let given = q.tensor().dtype();
    if !tape.compute().kernels
        || !q.tensor().device().is_cpu()
        || !matches!(wide(given), DType::F32 | DType::F64)
    {
        return portable::attention(tape, [q, k, v], shape, documents, dropout);
    }
    let contiguous = |x: &Value| widened(x.tensor())?.contiguous();
    let (q, k, v) = (contiguous(q)?, contiguous(k)?, contiguous(v)?);
    let (out, log_sums) =
        with_real!(q.dtype(), T => forward::<T>([&q, &k, &v], shape, documents, dropout)?);
    let (saved, documents) = (out.clone(), documents.cloned());
    Ok(tape.record(&sources, out.to_dtype(given)?, move |delta, flow| {
        let delta = widened(&delta)?.contiguous()?;
        let gradients = with_real!(q.dtype(), T => backward::<T>([&q, &k, &v, &saved, &log_sums, &delta], shape, documents.as_ref(), dropout)?);
        sources.into_iter().zip(gradients).try_for_each(|(to, gradient)| flow.add(to, gradient.to_dtype(given)?))
    }))
}

fn forward<T: Real>(
    [q, k, v]: [&Tensor; 3],
    shape: AttentionShape,
    documents: Option<&PackedDocuments>,
    dropout: Option<Dropout>,
) -> Result<(Tensor, Tensor)> {
    let hosts = [Host::new(q)?, Host::new(k)?, Host::new(v)?];
    let [q, k, v] = [hosts[0].numbers::<T>()?, hosts[1].numbers::<T>()?, hosts[2].numbers::<T>()?];
    let AttentionShape { t, .. } = shape;
    let (tasks, stride, scale) = (shape.b * shape.heads, shape.width(), T::real(shape.scale()));
    let mask = dropout.map(|dropout| dropout.mask::<T>());
    let (mut log_sums, row) = (unwritten::<T>(tasks * t), 0..t);
    let out = build::<T>(shape.tensor(), |out| {
        let shared = SharedOut::new(out);
        log_sums.par_chunks_mut(t).enumerate().with_max_len(1).for_each(|(task, log_sums)| {
            let mut scores = unwritten::<T>(TILE.min(t) * t);
            let parts = parts_of(documents, task / shape.heads, &row);
            let tiles = parts
                .iter()
                .flat_map(|part| part.clone().step_by(TILE).map(move |first| (part, first)));
            for (part, first) in tiles {
                let rows = TILE.min(part.end - first);
                // Keys that the last of these queries sees.
                let limit = first + rows - part.start;
                let queries = shape.rows(q, task, first, rows);
                let [keys, values] = [k, v]
                    .map(|x| shape.of_keys().rows(x, shape.key_task(task), part.start, limit));
                // SAFETY: the scores are this task's own.
                unsafe { multiply_at(scores.as_mut_ptr(), limit, queries, keys.t(), scale, false) };
                for row in 0..rows {
                    let line = &mut scores[row * limit..][..limit];
                    let (position, live) = (first + row, first + row + 1 - part.start);
                    log_sums[position] = softmax(line, live);
                    drop_out(line, mask, (task * t + position) * t + part.start, live);
                }
                let probabilities = Matrix::new(&scores[..rows * limit], rows, limit);
                // SAFETY: tasks write disjoint heads of `out`, tiles disjoint rows.
                unsafe {
                    multiply_at(
                        shared.get().add(shape.offset(task, first)),
                        stride,
                        probabilities,
                        values,
                        T::ONE,
                        false,
                    )
                };
            }
        });
        Ok(())
    })?;
    Ok((out, Tensor::from_vec(log_sums, (tasks, t), &Device::Cpu)?))
}

/// The documents of a row of a batch; without any, the row is one.
fn parts_of<'a>(
    documents: Option<&'a PackedDocuments>,
    row: usize,
    whole: &'a Range<usize>,
) -> &'a [Range<usize>] {
    documents.map_or(std::slice::from_ref(whole), |documents| documents.of_row(row))
}

/// Turns the first `live` scores into probabilities, the rest into 0, and returns their
/// log-sum-exp.
fn softmax<T: Real>(line: &mut [T], live: usize) -> T {
    vectorized!({
        let (scores, rest) = line.split_at_mut(live);
        let max = lane_max(scores);
        scores.iter_mut().for_each(|x| *x = (*x - max).exponential());
        let sum = lane_sum([scores], |[x]| x);
        let inverse = T::ONE / sum;
        scores.iter_mut().for_each(|x| *x *= inverse);
        rest.fill(T::ZERO);
        max + T::real(sum.wide().ln())
    })
}

/// Multiplies probabilities by their dropout factors.
fn drop_out<T: Real>(line: &mut [T], mask: Option<Mask<T>>, first_index: usize, live: usize) {
    if let Some(mask) = mask {
        vectorized!(for (column, p) in line[..live].iter_mut().enumerate() {
            *p *= mask.factor((first_index + column) as u64);
        })
    }
}

/// dq, dk, dv from [q, k, v, out, log-sum-exp, d out].
///
/// With P the probabilities, M the dropout factors and D = Σ_j dO ∘ O: dV = (P∘M)ᵀ dO, dP = (dO
/// Vᵀ)∘M, dS = P∘(dP − D)/√d, dQ = dS K, dK = dSᵀ Q.
fn backward<T: Real>(
    tensors: [&Tensor; 6],
    shape: AttentionShape,
    documents: Option<&PackedDocuments>,
    dropout: Option<Dropout>,
) -> Result<[Tensor; 3]> {
    let mut hosts = Vec::with_capacity(6);
    for tensor in tensors {
        hosts.push(Host::new(tensor)?);
    }
    let mut slices = [[].as_slice(); 6];
    for (slice, host) in slices.iter_mut().zip(&hosts) {
        *slice = host.numbers::<T>()?;
    }
    let [q, k, v, out, log_sums, delta] = slices;
    let mut gradients = [q, k, v].map(|x| unwritten::<T>(x.len()));
    let [dq, dk, dv] = gradients.each_mut().map(|g| SharedOut::new(g));
    let AttentionShape { t, d, .. } = shape;
    let (keys_shape, scale) = (shape.of_keys(), T::real(shape.scale()));
    let (stride, key_stride) = (shape.width(), keys_shape.width());
    let mask = dropout.map(|dropout| dropout.mask::<T>());
    let row = 0..t;
    (0..shape.b * shape.key_heads).into_par_iter().with_max_len(1).for_each(|key_task| {
        let (mut p, mut dp) = (unwritten::<T>(TILE.min(t) * t), unwritten::<T>(TILE.min(t) * t));
        let parts = parts_of(documents, key_task / shape.key_heads, &row);
        let members =
            parts.iter().flat_map(|part| (0..shape.group()).map(move |member| (part, member)));
        // From the last tile of a part to its first: the last one reaches every key, so that of the
        // first member writes dk and dv, and the others add.
        let tiles = members.flat_map(|(part, member)| {
            part.clone().step_by(TILE).rev().enumerate().map(move |tile| (part, member, tile))
        });
        for (part, member, (nth, first)) in tiles {
            let task = shape.member(key_task, member);
            let rows = TILE.min(part.end - first);
            let limit = first + rows - part.start;
            let [queries, deltas] = [q, delta].map(|x| shape.rows(x, task, first, rows));
            let [keys, values] = [k, v].map(|x| keys_shape.rows(x, key_task, part.start, limit));
            // SAFETY: the scratch memory is this task's own.
            unsafe {
                multiply_at(p.as_mut_ptr(), limit, queries, keys.t(), scale, false);
                multiply_at(dp.as_mut_ptr(), limit, deltas, values.t(), T::ONE, false);
            }
            for row in 0..rows {
                let position = first + row;
                let (p, dp) = (&mut p[row * limit..][..limit], &mut dp[row * limit..][..limit]);
                let [o, delta] = [out, delta].map(|x| &x[shape.offset(task, position)..][..d]);
                row_backward(
                    p,
                    dp,
                    o,
                    delta,
                    log_sums[task * t + position],
                    scale,
                    position + 1 - part.start,
                    mask,
                    (task * t + position) * t + part.start,
                );
            }
            // p now holds P∘M and dp holds dS.
            let [p, ds] = [&p, &dp].map(|x| Matrix::new(&x[..rows * limit], rows, limit));
            let (start, add) = (keys_shape.offset(key_task, part.start), member > 0 || nth > 0);
            // SAFETY: tasks write disjoint heads of dq, dk and dv.
            unsafe {
                multiply_at(dv.get().add(start), key_stride, p.t(), deltas, T::ONE, add);
                multiply_at(dk.get().add(start), key_stride, ds.t(), queries, T::ONE, add);
                multiply_at(
                    dq.get().add(shape.offset(task, first)),
                    stride,
                    ds,
                    keys,
                    T::ONE,
                    false,
                );
            }
        }
    });
    let [dq, dk, dv] = gradients;
    let tensor =
        |numbers, shape: AttentionShape| Tensor::from_vec(numbers, shape.tensor(), &Device::Cpu);
    Ok([tensor(dq, shape)?, tensor(dk, keys_shape)?, tensor(dv, keys_shape)?])
}

/// Turns a row of scores and of dO Vᵀ into P∘M and dS, in place.
#[allow(clippy::too_many_arguments)]
fn row_backward<T: Real>(
    p: &mut [T],
    dp: &mut [T],
    out: &[T],
    delta: &[T],
    log_sum: T,
    scale: T,
    live: usize,
    mask: Option<Mask<T>>,
    first_index: usize,
) {
    vectorized!({
        let d = lane_sum([out, delta], |[o, d]| o * d);
        let (p_live, p_rest) = p.split_at_mut(live);
        let (dp_live, dp_rest) = dp.split_at_mut(live);
        p_live.iter_mut().for_each(|x| *x = (*x - log_sum).exponential());
        match mask {
            None => dp_live
                .iter_mut()
                .zip(p_live.iter())
                .for_each(|(dp, p)| *dp = *p * (*dp - d) * scale),
            Some(mask) => {
                for (column, (dp, p)) in dp_live.iter_mut().zip(p_live.iter_mut()).enumerate() {
                    let factor = mask.factor((first_index + column) as u64);
                    *dp = *p * (*dp * factor - d) * scale;
                    *p *= factor;
                }
            }
        }
        p_rest.fill(T::ZERO);
        dp_rest.fill(T::ZERO);
    })
}
