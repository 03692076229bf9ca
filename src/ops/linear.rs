//! Linear layers: y = x Wᵀ + b with W dense (m × n) or W = U S Vᵀ. Rows of x: B = product of its leading dimensions.

use super::host::{Host, build, mutate, with_real};
use super::product::{as_rows, product, rows_of};
use super::real::{Real, vectorized};
use super::tape::{Flow, Source, Tape, Value};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

/// y = x Wᵀ + b for x (…, n), W (m, n), b (m); backward: dx = δ W, dW = δᵀ x, db = Σ δ.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(tape: &Tape, x: &Value, w: &Value, bias: Option<&Value>) -> Result<Value> {
    let (m, n) = w.tensor().dims2()?;
    check_width("linear", x, n)?;
    let rows = as_rows(x.tensor())?;
    let y = product(&rows, w.tensor(), false, true)?;
    let y = add_bias(tape, y, bias)?.reshape(output_shape(x.tensor(), m))?;
    let (to_x, to_w, to_bias) = (x.source(), w.source(), bias.and_then(Value::source));
    let (w, input) = (w.tensor().clone(), x.tensor().dims().to_vec());
    Ok(tape.record(&[to_x, to_w, to_bias], y, move |delta, flow| {
        let delta = as_rows(&delta)?;
        flow.add_product(to_w, w.dims(), &delta, &rows, true, false)?;
        drop(rows);
        add_bias_gradient(flow, to_bias, &delta)?;
        flow.add_product(to_x, &input, &delta, &w, false, false)
    }))
}

/// One W = U S Vᵀ of a low-rank linear layer with its bias.
pub struct LowRankWeight<'a> {
    /// U, m × r; its slot receives the K-gradient.
    pub u: Value,
    /// S, r × r.
    pub s: &'a Tensor,
    /// V, n × r; its slot receives the L-gradient.
    pub v: Value,
    /// b, m numbers.
    pub bias: Option<Value>,
}

impl LowRankWeight<'_> {
    /// (m, n, r).
    fn dimensions(&self) -> Result<(usize, usize, usize)> {
        let ((m, r), (n, r_v)) = (self.u.tensor().dims2()?, self.v.tensor().dims2()?);
        if r != r_v || self.s.dims() != [r, r] {
            bail!("low_rank_linear: U is {m} x {r}, S {:?}, V {n} x {r_v}", self.s.dims())
        }
        Ok((m, n, r))
    }
}

/// y = x V Sᵀ Uᵀ + b for x (…, n), U (m, r), S (r, r), V (n, r).
///
/// With z = x V saved and δ the gradient of y, the backward gives U's slot the K-gradient G V = δᵀ z (m × r), V's slot the L-gradient
/// Gᵀ U = xᵀ (δ U) (n × r), and dx = (δ U) S Vᵀ, where G = δᵀ x is never formed and nothing is divided by S. These are not the partial
/// derivatives by U and V (algorithms.md §1); S needs no slot, since its gradient Uᵀ G V is Uᵀ times the K-gradient.
///
/// # Errors
/// If the shapes do not fit.
pub fn low_rank_linear(tape: &Tape, x: &Value, weight: LowRankWeight) -> Result<Value> {
    let mut outputs = low_rank_linears(tape, x, vec![weight])?;
    Ok(outputs.remove(0))
}

/// [`low_rank_linear`] with several weights of one input, as query, key and value have.
///
/// The bases V lie side by side, so that x [V₁ | V₂ | …], all L-gradients and dx are one product each, Σr wide instead of r: thin products
/// are far from the processor's peak.
///
/// # Errors
/// If the shapes do not fit.
pub fn low_rank_linears(tape: &Tape, x: &Value, weights: Vec<LowRankWeight>) -> Result<Vec<Value>> {
    let dimensions: Vec<_> = weights.iter().map(LowRankWeight::dimensions).collect::<Result<_>>()?;
    for (_, n, _) in &dimensions {
        check_width("low_rank_linear", x, *n)?;
    }
    let rows = as_rows(x.tensor())?;
    let (count, total_rank) = (rows.dim(0)?, dimensions.iter().map(|(_, _, r)| r).sum::<usize>());
    let z = project_on_bases(tape, x, &rows, &weights)?;
    let mut first = 0;
    let mut outputs = Vec::with_capacity(weights.len());
    for (weight, (m, _, r)) in weights.into_iter().zip(dimensions) {
        let own = z.tensor().narrow(1, first, r)?;
        let u = weight.u.tensor().clone();
        // S goes to the smaller side: into U (m × r) or onto the rows of z.
        let y = if m < count {
            product(&own, &product(&u, weight.s, false, false)?, false, true)?
        } else {
            product(&product(&own, weight.s, false, true)?, &u, false, true)?
        };
        let y = add_bias(tape, y, weight.bias.as_ref())?.reshape(output_shape(x.tensor(), m))?;
        let (to_z, to_u, to_bias) = (z.source(), weight.u.source(), weight.bias.as_ref().and_then(Value::source));
        outputs.push(tape.record(&[to_z, to_u, to_bias], y, move |delta, flow| {
            let delta = as_rows(&delta)?;
            flow.add_product(to_u, u.dims(), &delta, &own, true, false)?;
            drop(own);
            add_bias_gradient(flow, to_bias, &delta)?;
            flow.add_product_as_columns(to_z, (count, total_rank), first, &delta, &u, false)
        }));
        first += r;
    }
    Ok(outputs)
}

/// z = x [V₁ | V₂ | …]. What its backward expects is not the gradient of z, δᵢ Uᵢ Sᵢ, but δᵢ Uᵢ, which both the L-gradients xᵀ (δᵢ Uᵢ) and
/// dx = Σ (δᵢ Uᵢ) Sᵢ Vᵢᵀ begin with.
fn project_on_bases(tape: &Tape, x: &Value, rows: &Tensor, weights: &[LowRankWeight]) -> Result<Value> {
    let beside = |blocks: &[Tensor]| if let [only] = blocks { Ok(only.clone()) } else { Tensor::cat(blocks, 1) };
    let bases: Vec<Tensor> = weights.iter().map(|weight| weight.v.tensor().clone()).collect();
    let cores: Vec<Tensor> = weights.iter().map(|weight| weight.s.clone()).collect();
    let to_bases: Vec<_> = weights.iter().map(|weight| weight.v.source()).collect();
    let z = product(rows, &beside(&bases)?, false, false)?;
    let (to_x, rows, input) = (x.source(), rows.clone(), x.tensor().dims().to_vec());
    let inputs: Vec<_> = to_bases.iter().copied().chain([to_x]).collect();
    Ok(tape.record(&inputs, z, move |delta_u, flow| {
        match (to_bases.as_slice(), bases.as_slice()) {
            ([to], [basis]) => flow.add_product(*to, basis.dims(), &rows, &delta_u, true, false)?,
            _ if to_bases.iter().all(Option::is_none) => {}
            _ => {
                let l_gradients = product(&rows, &delta_u, true, false)?;
                let mut first = 0;
                for (to, basis) in to_bases.iter().zip(&bases) {
                    let rank = basis.dim(1)?;
                    flow.add(*to, l_gradients.narrow(1, first, rank)?.contiguous()?)?;
                    first += rank;
                }
            }
        }
        if to_x.is_none() {
            return Ok(());
        }
        let (count, n) = rows.dims2()?;
        drop(rows);
        if n < count || bases.len() > 1 {
            let products = bases.iter().zip(&cores).map(|(basis, core)| product(basis, core, false, true));
            return flow.add_product(to_x, &input, &delta_u, &beside(&products.collect::<Result<Vec<_>>>()?)?, false, true);
        }
        flow.add_product(to_x, &input, &product(&delta_u, &cores[0], false, false)?, &bases[0], false, true)
    }))
}

fn check_width(operation: &str, x: &Value, n: usize) -> Result<()> {
    let (_, width) = rows_of(x.tensor())?;
    if width != n {
        bail!("{operation}: the input is {width} wide, the weight takes {n}")
    }
    Ok(())
}

fn output_shape(x: &Tensor, m: usize) -> Vec<usize> {
    let mut shape = x.dims().to_vec();
    if let Some(last) = shape.last_mut() {
        *last = m;
    }
    shape
}

/// y + b on every row, in place where kernels run.
fn add_bias(tape: &Tape, y: Tensor, bias: Option<&Value>) -> Result<Tensor> {
    let Some(bias) = bias else { return Ok(y) };
    if !tape.uses_kernels(&y) {
        return y.broadcast_add(bias.tensor());
    }
    let host = Host::new(bias.tensor())?;
    with_real!(y.dtype(), T => {
        let bias = host.numbers::<T>()?;
        mutate::<T>(&y, |y| {
            y.par_chunks_mut(bias.len()).for_each(|row| vectorized!(row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b)));
            Ok(())
        })?
    });
    Ok(y)
}

fn add_bias_gradient(flow: &mut Flow, to: Option<Source>, delta: &Tensor) -> Result<()> {
    if to.is_none() {
        return Ok(());
    }
    flow.add(to, column_sums(delta)?)
}

/// Σ over rows of a (rows, columns) tensor.
fn column_sums(x: &Tensor) -> Result<Tensor> {
    if !super::host::has_kernel(x) {
        return x.sum(0);
    }
    let (rows, columns) = x.dims2()?;
    let x = x.contiguous()?;
    let host = Host::new(&x)?;
    with_real!(x.dtype(), T => {
        let x = host.numbers::<T>()?;
        build::<T>(columns, |out| {
            sum_rows(x, rows, columns, out);
            Ok(())
        })
    })
}

/// Rows per partial sum of [`sum_rows`].
const ROWS_PER_PART: usize = 64;

/// out ← Σ over the rows of x, in parts of fixed size that are added in order.
pub(super) fn sum_rows<T: Real>(x: &[T], rows: usize, columns: usize, out: &mut [T]) {
    debug_assert_eq!(x.len(), rows * columns);
    let parts: Vec<Vec<T>> = x
        .par_chunks(ROWS_PER_PART * columns)
        .map(|part| {
            let mut sum = vec![T::ZERO; columns];
            vectorized!(part.chunks_exact(columns).for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += *x)));
            sum
        })
        .collect();
    out.fill(T::ZERO);
    for part in parts {
        out.iter_mut().zip(part).for_each(|(o, p)| *o += p);
    }
}
