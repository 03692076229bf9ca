//! Causal self-attention, exact, without a T × T tensor (after FlashAttention: Dao et al. 2022, Algorithms 1 and 4).
//!
//! Shapes: B sequences, T tokens, H heads of width d, C = H d. Heads are strided views within C, nothing is transposed in memory.
//! Queries go in tiles of rows against all keys up to the causal limit; only the log-sum-exp of each row is kept, and the backward
//! recomputes the probabilities from it.

use super::host::{Host, SharedOut, build, unwritten, with_real};
use super::pointwise::Dropout;
use super::real::{LANES, Real, lane_sum, vectorized};
use super::tape::{Tape, Value};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// Query rows per tile.
const TILE: usize = 64;

/// softmax(q kᵀ/√d + causal mask) v per head, for q, k, v of (B, T, C); dropout acts on the probabilities.
///
/// # Errors
/// If the shapes differ or `n_head` does not divide C.
pub fn causal_attention(tape: &Tape, q: &Value, k: &Value, v: &Value, n_head: usize, dropout: Option<Dropout>) -> Result<Value> {
    let (b, t, width) = q.tensor().dims3()?;
    if [k, v].iter().any(|x| x.tensor().dims() != [b, t, width]) || !width.is_multiple_of(n_head) {
        bail!("causal_attention: q {:?}, k {:?}, v {:?} with {n_head} heads", q.tensor().dims(), k.tensor().dims(), v.tensor().dims())
    }
    let shape = Shape { b, t, heads: n_head, d: width / n_head };
    let sources = [q.source(), k.source(), v.source()];
    if !tape.uses_kernels(q.tensor()) {
        return portable(tape, q, k, v, shape, dropout);
    }
    let (q, k, v) = (q.tensor().contiguous()?, k.tensor().contiguous()?, v.tensor().contiguous()?);
    let (out, log_sums) = with_real!(q.dtype(), T => forward::<T>(&q, &k, &v, shape, dropout)?);
    let saved = out.clone();
    Ok(tape.record(&sources, out, move |delta, flow| {
        let delta = delta.contiguous()?;
        let [dq, dk, dv] = with_real!(q.dtype(), T => backward::<T>([&q, &k, &v, &saved, &log_sums, &delta], shape, dropout)?);
        flow.add(sources[0], dq)?;
        flow.add(sources[1], dk)?;
        flow.add(sources[2], dv)
    }))
}

#[derive(Clone, Copy)]
struct Shape {
    b: usize,
    t: usize,
    heads: usize,
    d: usize,
}

impl Shape {
    fn width(&self) -> usize {
        self.heads * self.d
    }
    fn scale(&self) -> f64 {
        1.0 / (self.d as f64).sqrt()
    }
    /// Offset of (sequence, head) in a (B, T, C) tensor.
    fn offset(&self, task: usize) -> usize {
        (task / self.heads) * self.t * self.width() + (task % self.heads) * self.d
    }
    fn tensor(&self) -> (usize, usize, usize) {
        (self.b, self.t, self.width())
    }
}

/// A matrix of `rows` × `columns` at `start`, element (i, j) at i·row_stride + j·column_stride.
#[derive(Clone, Copy)]
struct Block<T> {
    start: *const T,
    row_stride: usize,
    column_stride: usize,
}

impl<T> Block<T> {
    fn new(start: *const T, row_stride: usize) -> Self {
        Self { start, row_stride, column_stride: 1 }
    }
    fn t(self) -> Self {
        Self { start: self.start, row_stride: self.column_stride, column_stride: self.row_stride }
    }
}

/// out (m × n, `out_stride` between rows) ← alpha · a (m × k) b (k × n), or added to it; single-threaded.
///
/// # Safety
/// All three must lie within live memory, and `out` must not overlap a or b.
unsafe fn small_product<T: Real>(
    (m, n, k): (usize, usize, usize),
    out: *mut T,
    out_stride: usize,
    accumulate: bool,
    a: Block<T>,
    b: Block<T>,
    alpha: T,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            out_stride as isize,
            accumulate,
            a.start,
            a.column_stride as isize,
            a.row_stride as isize,
            b.start,
            b.column_stride as isize,
            b.row_stride as isize,
            T::ONE,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        )
    }
}

/// The d × T transpose of a head's T × d rows, contiguous, so that products against it run at full speed.
fn transposed<T: Real>(rows: &[T], stride: usize, t: usize, d: usize) -> Vec<T> {
    let mut out = unwritten::<T>(t * d);
    for i in 0..t {
        for (j, x) in rows[i * stride..][..d].iter().enumerate() {
            out[j * t + i] = *x;
        }
    }
    out
}

fn forward<T: Real>(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape, dropout: Option<Dropout>) -> Result<(Tensor, Tensor)> {
    let hosts = [Host::new(q)?, Host::new(k)?, Host::new(v)?];
    let [q, k, v] = [hosts[0].numbers::<T>()?, hosts[1].numbers::<T>()?, hosts[2].numbers::<T>()?];
    let Shape { t, d, .. } = shape;
    let (tasks, stride, scale) = (shape.b * shape.heads, shape.width(), T::real(shape.scale()));
    let mut log_sums = unwritten::<T>(tasks * t);
    let out = build::<T>(shape.tensor(), |out| {
        let shared = SharedOut::new(out);
        log_sums.par_chunks_mut(t).enumerate().for_each(|(task, log_sums)| {
            let offset = shape.offset(task);
            let keys_t = transposed(&k[offset..], stride, t, d);
            let mut scores = unwritten::<T>(TILE * t);
            for first in (0..t).step_by(TILE) {
                let rows = TILE.min(t - first);
                let limit = first + rows;
                // SAFETY: the blocks lie within the tensors; tasks write disjoint heads of `out`.
                unsafe {
                    let queries = Block::new(q.as_ptr().add(offset + first * stride), stride);
                    small_product((rows, limit, d), scores.as_mut_ptr(), limit, false, queries, Block::new(keys_t.as_ptr(), t), scale);
                }
                for row in 0..rows {
                    let line = &mut scores[row * limit..][..limit];
                    log_sums[first + row] = softmax(line, first + row + 1);
                    drop_out(line, dropout, ((task * t) + first + row) * t, first + row + 1);
                }
                // SAFETY: as above.
                unsafe {
                    let values = Block::new(v.as_ptr().add(offset), stride);
                    let target = shared.get().add(offset + first * stride);
                    small_product((rows, d, limit), target, stride, false, Block::new(scores.as_ptr(), limit), values, T::ONE);
                }
            }
        });
        Ok(())
    })?;
    Ok((out, Tensor::from_vec(log_sums, (tasks, t), &candle_core::Device::Cpu)?))
}

/// Turns the first `live` scores into probabilities, the rest into 0, and returns their log-sum-exp.
fn softmax<T: Real>(line: &mut [T], live: usize) -> T {
    vectorized(|| {
        let (scores, rest) = line.split_at_mut(live);
        let max = row_max(scores);
        scores.iter_mut().for_each(|x| *x = (*x - max).exponential());
        let sum = lane_sum(live, |i| scores[i]);
        let inverse = T::ONE / sum;
        scores.iter_mut().for_each(|x| *x *= inverse);
        rest.fill(T::ZERO);
        max + T::real(sum.wide().ln())
    })
}

#[inline(always)]
pub(super) fn row_max<T: Real>(row: &[T]) -> T {
    let mut lanes = [row[0]; LANES];
    let chunks = row.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = x.larger(*lane);
        }
    }
    lanes.iter().chain(rest).fold(row[0], |max, x| x.larger(max))
}

/// Multiplies probabilities by their dropout factors.
fn drop_out<T: Real>(line: &mut [T], dropout: Option<Dropout>, first_index: usize, live: usize) {
    if let Some(dropout) = dropout {
        for (column, p) in line[..live].iter_mut().enumerate() {
            *p *= T::real(dropout.factor((first_index + column) as u64));
        }
    }
}

/// dq, dk, dv from [q, k, v, out, log-sum-exp, d out].
///
/// With P the probabilities, M the dropout factors and D = Σ_j dO ∘ O: dV = (P∘M)ᵀ dO, dP = (dO Vᵀ)∘M, dS = P∘(dP − D)/√d, dQ = dS K, dK = dSᵀ Q.
fn backward<T: Real>(tensors: [&Tensor; 6], shape: Shape, dropout: Option<Dropout>) -> Result<[Tensor; 3]> {
    let mut hosts = Vec::with_capacity(6);
    for tensor in tensors {
        hosts.push(Host::new(tensor)?);
    }
    let mut slices = [[].as_slice(); 6];
    for (slice, host) in slices.iter_mut().zip(&hosts) {
        *slice = host.numbers::<T>()?;
    }
    let [q, k, v, out, log_sums, delta] = slices;
    let count = q.len();
    let mut gradients = [unwritten::<T>(count), unwritten::<T>(count), unwritten::<T>(count)];
    let [dq, dk, dv] = gradients.each_mut().map(|g| SharedOut::new(g));
    let Shape { t, d, .. } = shape;
    let (stride, scale) = (shape.width(), T::real(shape.scale()));
    (0..shape.b * shape.heads).into_par_iter().for_each(|task| {
        let offset = shape.offset(task);
        let (keys_t, values_t) = (transposed(&k[offset..], stride, t, d), transposed(&v[offset..], stride, t, d));
        let (mut p, mut dp) = (unwritten::<T>(TILE * t), unwritten::<T>(TILE * t));
        // From the last tile to the first: the last one reaches every key, so it writes dk and dv, and the others add.
        for (nth, first) in (0..t).step_by(TILE).rev().enumerate() {
            let rows = TILE.min(t - first);
            let (limit, start) = (first + rows, offset + first * stride);
            // SAFETY: the blocks lie within the tensors and scratch buffers; tasks write disjoint heads of dq, dk and dv.
            unsafe {
                let queries = Block::new(q.as_ptr().add(start), stride);
                let deltas = Block::new(delta.as_ptr().add(start), stride);
                small_product((rows, limit, d), p.as_mut_ptr(), limit, false, queries, Block::new(keys_t.as_ptr(), t), scale);
                small_product((rows, limit, d), dp.as_mut_ptr(), limit, false, deltas, Block::new(values_t.as_ptr(), t), T::ONE);
                for row in 0..rows {
                    let position = first + row;
                    let (p, dp) = (&mut p[row * limit..][..limit], &mut dp[row * limit..][..limit]);
                    let (o, delta) = (&out[offset + position * stride..][..d], &delta[offset + position * stride..][..d]);
                    let log_sum = log_sums[task * t + position];
                    row_backward(p, dp, o, delta, log_sum, scale, position + 1, dropout, (task * t + position) * t);
                }
                // p now holds P∘M and dp holds dS.
                let accumulate = nth > 0;
                let (p_t, ds) = (Block::new(p.as_ptr(), limit).t(), Block::new(dp.as_ptr(), limit));
                small_product((limit, d, rows), dv.get().add(offset), stride, accumulate, p_t, deltas, T::ONE);
                small_product((limit, d, rows), dk.get().add(offset), stride, accumulate, ds.t(), queries, T::ONE);
                let keys = Block::new(k.as_ptr().add(offset), stride);
                small_product((rows, d, limit), dq.get().add(start), stride, false, ds, keys, T::ONE);
            }
        }
    });
    let [dq, dk, dv] = gradients.map(|g| Tensor::from_vec(g, shape.tensor(), &candle_core::Device::Cpu));
    Ok([dq?, dk?, dv?])
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
    dropout: Option<Dropout>,
    first_index: usize,
) {
    vectorized(|| {
        let d = lane_sum(out.len(), |i| out[i] * delta[i]);
        let (p_live, p_rest) = p.split_at_mut(live);
        let (dp_live, dp_rest) = dp.split_at_mut(live);
        p_live.iter_mut().for_each(|x| *x = (*x - log_sum).exponential());
        match dropout {
            None => dp_live.iter_mut().zip(p_live.iter()).for_each(|(dp, p)| *dp = *p * (*dp - d) * scale),
            Some(dropout) => {
                for (column, (dp, p)) in dp_live.iter_mut().zip(p_live.iter_mut()).enumerate() {
                    let factor = T::real(dropout.factor((first_index + column) as u64));
                    *dp = *p * (*dp * factor - d) * scale;
                    *p *= factor;
                }
            }
        }
        p_rest.fill(T::ZERO);
        dp_rest.fill(T::ZERO);
    })
}

/// The same by candle operations, with T × T tensors, for devices without a kernel.
fn portable(tape: &Tape, q: &Value, k: &Value, v: &Value, shape: Shape, dropout: Option<Dropout>) -> Result<Value> {
    let Shape { b, t, heads, d } = shape;
    let split = move |x: &Tensor| -> Result<Tensor> { x.reshape((b, t, heads, d))?.transpose(1, 2)?.contiguous() };
    let merge = move |x: &Tensor| -> Result<Tensor> { x.transpose(1, 2)?.contiguous()?.reshape((b, t, heads * d)) };
    let (dtype, device) = (q.tensor().dtype(), q.tensor().device().clone());
    let mask: Vec<f64> = (0..t * t).map(|i| if i % t > i / t { f64::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (t, t), &candle_core::Device::Cpu)?.to_dtype(dtype)?.to_device(&device)?;
    let (qh, kh, vh) = (split(q.tensor())?, split(k.tensor())?, split(v.tensor())?);
    let scores = (qh.matmul(&kh.t()?)? * shape.scale())?.broadcast_add(&mask)?;
    let exponents = scores.broadcast_sub(&scores.max_keepdim(3)?)?.exp()?;
    let p = exponents.broadcast_div(&exponents.sum_keepdim(3)?)?;
    let factors = match dropout {
        None => None,
        Some(dropout) => {
            let factors: Vec<f64> = (0..(b * heads * t * t) as u64).map(|index| dropout.factor(index)).collect();
            Some(Tensor::from_vec(factors, (b, heads, t, t), &candle_core::Device::Cpu)?.to_dtype(dtype)?.to_device(&device)?)
        }
    };
    let masked = move |x: Tensor| if let Some(factors) = &factors { x * factors } else { Ok(x) };
    let out = merge(&masked(p.clone())?.matmul(&vh)?)?;
    let sources = [q.source(), k.source(), v.source()];
    Ok(tape.record(&sources, out, move |delta, flow| {
        let delta = split(&delta)?;
        flow.add(sources[2], merge(&masked(p.clone())?.t()?.matmul(&delta)?)?)?;
        let dp = masked(delta.matmul(&vh.t()?)?)?;
        let centered = dp.broadcast_sub(&(&dp * &p)?.sum_keepdim(3)?)?;
        let ds = ((p * centered)? * shape.scale())?;
        flow.add(sources[0], merge(&ds.matmul(&kh)?)?)?;
        flow.add(sources[1], merge(&ds.t()?.matmul(&qh)?)?)
    }))
}
