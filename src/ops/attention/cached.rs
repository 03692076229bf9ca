//! Attention of new tokens to the keys and values of those before them, kept from earlier passes:
//! one row of scores for each query, nothing to differentiate.

use super::{AttentionHeads, softmax};
use crate::kernels::{Host, Real, SharedOut, build, dot_rows, unwritten, weigh_rows, with_real};
use crate::ops::compute::{Compute, wide, widened};
use crate::ops::product::batched_product;
use candle_core::{D, DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Multiplications below which attention is not worth a second thread.
const WORTH_SHARING: usize = 1 << 17;

/// softmax(q kᵀ/√d) v per head, where query i of the t in q (B, t, H d) sees the first
/// `length` − t + i + 1 of the keys and values (B, at least `length`, G d).
///
/// # Errors
/// If the shapes do not fit the heads.
pub fn cached_attention(
    compute: Compute,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    length: usize,
    heads: AttentionHeads,
) -> Result<Tensor> {
    let ((b, t, width), (key_b, room, key_width)) = (q.dims3()?, k.dims3()?);
    let AttentionHeads { queries, keys } = heads;
    let fits = queries > 0
        && keys > 0
        && width.is_multiple_of(queries)
        && queries.is_multiple_of(keys)
        && (key_b, key_width) == (b, width / queries * keys)
        && v.dims() == k.dims()
        && (t..=room).contains(&length);
    if !fits {
        bail!(
            "cached_attention: q {:?}, k {:?}, v {:?}, {length} of them filled, with {queries} \
             heads of queries, {keys} of keys",
            q.dims(),
            k.dims(),
            v.dims()
        )
    }
    let given = q.dtype();
    let shape = Shape { b, t, room, length, heads, d: width / queries };
    if !compute.kernels || !q.device().is_cpu() || !matches!(wide(given), DType::F32 | DType::F64) {
        return by_operations(q, k, v, shape);
    }
    let [q, k, v] = [q, k, v].map(|x| widened(x)?.contiguous());
    let (q, k, v) = (q?, k?, v?);
    with_real!(q.dtype(), T => by_rows::<T>(&q, &k, &v, shape))?.to_dtype(given)
}

#[derive(Clone, Copy)]
struct Shape {
    b: usize,
    t: usize,
    room: usize,
    length: usize,
    heads: AttentionHeads,
    d: usize,
}

impl Shape {
    /// Keys that the query of this number sees.
    fn live(&self, query: usize) -> usize {
        self.length - self.t + query + 1
    }
    fn scale(&self) -> f64 {
        1.0 / (self.d as f64).sqrt()
    }
}

/// One task for each (sequence, query, head).
fn by_rows<T: Real>(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<Tensor> {
    let hosts = [Host::new(q)?, Host::new(k)?, Host::new(v)?];
    let [q, k, v] = [hosts[0].numbers::<T>()?, hosts[1].numbers::<T>()?, hosts[2].numbers::<T>()?];
    let Shape { b, t, room, d, .. } = shape;
    let AttentionHeads { queries, keys } = shape.heads;
    let (stride, scale) = (keys * d, T::real(shape.scale()));
    build::<T>((b, t, queries * d), |out| {
        let tasks = b * t * queries;
        let shared = SharedOut::new(out);
        let run = |task: usize, scores: &mut Vec<T>| {
            let (row, head) = (task / queries, task % queries);
            let (sequence, live) = (row / t, shape.live(row % t));
            let first = sequence * room * stride + head / (queries / keys) * d;
            let scores = &mut scores[..live];
            dot_rows(scores, &q[task * d..][..d], &k[first..], stride);
            scores.iter_mut().for_each(|score| *score *= scale);
            softmax(scores, live);
            // SAFETY: tasks write disjoint heads of `out`, which nothing else refers to until this
            // function returns.
            let out = unsafe { std::slice::from_raw_parts_mut(shared.get().add(task * d), d) };
            weigh_rows(out, scores, &v[first..], stride);
        };
        let scratch = || unwritten::<T>(shape.length);
        if tasks * shape.length * d * 2 < WORTH_SHARING {
            let mut scores = scratch();
            (0..tasks).for_each(|task| run(task, &mut scores));
        } else {
            (0..tasks).into_par_iter().for_each_init(scratch, |scores, task| run(task, scores));
        }
        Ok(())
    })
}

/// The same by candle's operations, for other devices than the CPU.
fn by_operations(q: &Tensor, k: &Tensor, v: &Tensor, shape: Shape) -> Result<Tensor> {
    let Shape { b, t, d, .. } = shape;
    let AttentionHeads { queries, keys } = shape.heads;
    let mut rows = Vec::with_capacity(t);
    for query in 0..t {
        let live = shape.live(query);
        let seen = |x: &Tensor| -> Result<Tensor> {
            x.narrow(1, 0, live)?
                .reshape((b, live, keys, d))?
                .transpose(1, 2)?
                .contiguous()?
                .reshape((b * keys, live, d))
        };
        let q = q.narrow(1, query, 1)?.contiguous()?.reshape((b * keys, queries / keys, d))?;
        let scores = widened(&batched_product(&q, &seen(k)?.transpose(1, 2)?)?)?;
        let scores = (scores * shape.scale())?;
        let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
        let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
        let mixed = batched_product(&weights.to_dtype(q.dtype())?, &seen(v)?)?;
        rows.push(mixed.reshape((b, 1, queries * d))?);
    }
    Tensor::cat(&rows, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{Tape, causal_attention};
    use candle_core::Device;

    /// The last queries of a whole pass, with room behind the keys, shared heads and both paths.
    #[test]
    fn new_queries_see_what_they_see_in_a_whole_pass() -> Result<()> {
        for (b, all, t, queries, keys, d) in
            [(1, 9, 1, 4, 4, 8), (3, 7, 3, 4, 2, 5), (2, 5, 5, 6, 1, 16), (2, 300, 1, 4, 4, 64)]
        {
            let random = |heads: usize| Tensor::randn(0f64, 1.0, (b, all, heads * d), &Device::Cpu);
            let (q, k, v) = (random(queries)?, random(keys)?, random(keys)?);
            let heads = AttentionHeads { queries, keys };
            let tape = Tape::inference();
            let value = |x: &Tensor| tape.constant(x.clone());
            let whole = causal_attention(&tape, &value(&q), &value(&k), &value(&v), heads, None)?;
            let expected = whole.tensor().narrow(1, all - t, t)?;
            let roomy = |x: &Tensor| x.pad_with_zeros(1, 0, 4);
            let (k, v, q) = (roomy(&k)?, roomy(&v)?, q.narrow(1, all - t, t)?);
            for kernels in [true, false] {
                let compute = Compute { kernels, half: None };
                let ours = cached_attention(compute, &q, &k, &v, all, heads)?;
                let error = (ours - &expected)?.abs()?.max_all()?.to_scalar::<f64>()?;
                assert!(error < 1e-12, "{b} {all} {t} {queries} {keys}: {error}");
            }
            assert!(cached_attention(Compute::default(), &q, &k, &v, all + 5, heads).is_err());
        }
        Ok(())
    }
}
