//! Linear layers: y = x Wᵀ + b with W dense (m × n) or W = U S Vᵀ. Rows of x: B = product of its
//! leading dimensions.

use super::compute::{Compute, widened};
use super::gpu;
use super::gradients::Gram;
use super::product::{as_rows, product_by, rows_of};
use super::tape::{Flow, Remake, Source, Tape, Value};
use crate::kernels::profile::{Cost, Work, span};
use crate::kernels::{Host, Real, build, mutate, vectorized, with_real};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

/// y = x Wᵀ + b for x (…, n), W (m, n), b (m); backward: dx = δ W, dW = δᵀ x, db = Σ δ.
///
/// # Errors
/// If the shapes do not fit.
pub fn linear(tape: &Tape, x: &Value, w: &Value, bias: Option<&Value>) -> Result<Value> {
    dense_linear(tape, x, w, Measured::Nothing, bias)
}

/// [`linear`] of a block's matrix that stays dense: where [`Gradients`](super::Gradients) ask for
/// the Gram matrices of their inputs, the slot of `inputs` gets xᵀ x, n × n.
///
/// # Errors
/// If the shapes do not fit.
pub fn dense_matrix_linear(
    tape: &Tape,
    x: &Value,
    w: &Value,
    inputs: &Value,
    bias: Option<&Value>,
) -> Result<Value> {
    dense_linear(tape, x, w, Measured::Inputs(inputs.source()), bias)
}

/// [`linear`] of a weight whose rank is to be cut: where [`Gradients`](super::Gradients) ask for
/// Gram matrices, the slot of `inputs` gets xᵀ x, n × n, and that of w δᵀ δ, m × m; where they ask
/// for those of inputs, the slot of `inputs` alone.
///
/// # Errors
/// If the shapes do not fit.
pub fn measured_linear(
    tape: &Tape,
    x: &Value,
    w: &Value,
    inputs: &Value,
    bias: Option<&Value>,
) -> Result<Value> {
    dense_linear(tape, x, w, Measured::ForCuts(inputs.source()), bias)
}

/// Second moments that a dense layer measures where they are asked for, with the place of those of
/// its inputs.
#[derive(Clone, Copy)]
enum Measured {
    Nothing,
    Inputs(Option<Source>),
    /// Of inputs and output gradients.
    ForCuts(Option<Source>),
}

impl Measured {
    /// The place of those of the inputs.
    fn to_inputs(self) -> Option<Source> {
        match self {
            Self::Nothing => None,
            Self::Inputs(to) | Self::ForCuts(to) => to,
        }
    }
}

/// y = x Wᵀ + b, with second moments.
fn dense_linear(
    tape: &Tape,
    x: &Value,
    w: &Value,
    measured: Measured,
    bias: Option<&Value>,
) -> Result<Value> {
    let (m, n) = w.tensor().dims2()?;
    check_width("linear", x, n)?;
    let _span = span(|| bias_work("linear", x.tensor(), (m, n), bias));
    let compute = tape.compute();
    let rows = compute.narrowed(&as_rows(x.tensor())?)?;
    let weight = compute.narrowed(w.tensor())?;
    let y = tape.product(&rows, &weight.t()?)?;
    let y = add_bias(tape, y, bias)?.reshape(output_shape(x.tensor(), m))?;
    let (to_x, to_w, to_bias) = (x.source(), w.source(), bias.and_then(Value::source));
    let input = Input::of(x);
    // A frozen weight needs no input kept for its gradient.
    let rows = to_w.map(|_| KeptRows::of(x, rows));
    Ok(tape.record(&[to_x, to_w, measured.to_inputs(), to_bias], y, move |delta, flow| {
        let delta = as_rows(&delta)?;
        if let Some(rows) = rows {
            let rows = rows.tensor(compute)?;
            flow.add_product(to_w, weight.dims(), &delta.t()?, &rows)?;
            match measured {
                Measured::Nothing => {}
                Measured::Inputs(to) => flow.add_gram(Gram::DenseInputs, to, &rows)?,
                Measured::ForCuts(to) => {
                    flow.add_gram(Gram::Inputs, to, &rows)?;
                    flow.add_gram(Gram::Outputs, to_w, &delta)?;
                }
            }
        }
        add_bias_gradient(flow, to_bias, &delta)?;
        input.add_product(flow, to_x, &delta, &weight)
    }))
}

/// y = x V Sᵀ Uᵀ + b for x (…, n), U (m, r), S (r, r), V (n, r).
///
/// With z = x V saved and δ the gradient of y, the backward gives U's slot the K-gradient G V = δᵀ
/// z (m × r), V's slot the L-gradient Gᵀ U = xᵀ (δ U) (n × r), and dx = (δ U) S Vᵀ, where G = δᵀ x
/// is never formed and nothing is divided by S. These are not the partial derivatives by U and V
/// (docs/method.md §2); S needs no slot, since its gradient Uᵀ G V is Uᵀ times the K-gradient.
/// Where [`Gradients`](super::Gradients) ask for Gram matrices, V's slot also gets zᵀ z, the
/// inputs' second moment seen in V, and U's (δU)ᵀ (δU), the output gradients' in U: r × r each;
/// where they ask for those of inputs, V's alone.
///
/// # Errors
/// If the shapes do not fit.
pub fn low_rank_linear(
    tape: &Tape,
    x: &Value,
    u: &Value,
    s: &Tensor,
    v: &Value,
    bias: Option<&Value>,
) -> Result<Value> {
    let ((m, r), (n, r_v)) = (u.tensor().dims2()?, v.tensor().dims2()?);
    if r != r_v || s.dims() != [r, r] {
        bail!("low_rank_linear: U is {m} x {r}, S {:?}, V {n} x {r_v}", s.dims())
    }
    check_width("low_rank_linear", x, n)?;
    let _span = span(|| bias_work("low_rank_linear", x.tensor(), (m, n), bias));
    let compute = tape.compute();
    let rows = compute.narrowed(&as_rows(x.tensor())?)?;
    let count = rows.dim(0)?;
    let (u_narrow, v_narrow) = (compute.narrowed(u.tensor())?, compute.narrowed(v.tensor())?);
    let z = tape.product(&rows, &v_narrow)?;
    // S goes to the smaller side: into U (m × r) or onto the rows of z.
    let y = if m < count {
        let us = product_by(compute, u.tensor(), s)?;
        product_by(compute, &z, &compute.narrowed(&us)?.t()?)?
    } else {
        tape.product(&tape.product(&z, &compute.narrowed(s)?.t()?)?, &u_narrow.t()?)?
    };
    let y = add_bias(tape, y, bias)?.reshape(output_shape(x.tensor(), m))?;
    let (to_x, to_u, to_v, to_bias) =
        (x.source(), u.source(), v.source(), bias.and_then(Value::source));
    let (s, v, input) = (s.clone(), v.tensor().clone(), Input::of(x));
    // A frozen weight needs no input kept for its gradient.
    let (z, rows) = (to_u.or(to_v).map(|_| z), to_v.map(|_| KeptRows::of(x, rows)));
    Ok(tape.record(&[to_x, to_u, to_v, to_bias], y, move |delta, flow| {
        let delta = as_rows(&delta)?;
        if let Some(z) = z {
            flow.add_product(to_u, u_narrow.dims(), &delta.t()?, &z)?;
            flow.add_gram(Gram::Inputs, to_v, &z)?;
        }
        add_bias_gradient(flow, to_bias, &delta)?;
        if to_x.or(to_u).or(to_v).is_none() {
            return Ok(());
        }
        let delta_u = flow.product(&delta, &u_narrow)?;
        drop(delta);
        if let Some(rows) = rows {
            let rows = rows.tensor(compute)?;
            flow.add_product(to_v, v.dims(), &rows.t()?, &delta_u)?;
        }
        flow.add_gram(Gram::Outputs, to_u, &delta_u)?;
        match to_x {
            None => Ok(()),
            Some(_) if n < count => {
                let vs = compute.narrowed(&flow.product(&v, &s.t()?)?)?;
                input.add_product(flow, to_x, &delta_u, &vs.t()?)
            }
            Some(_) => {
                let delta_z = flow.product(&delta_u, &compute.narrowed(&s)?)?;
                input.add_product(flow, to_x, &delta_z, &v_narrow.t()?)
            }
        }
    }))
}

/// What a layer does beside its products: y + b, and the sum of δ over the rows.
fn bias_work(name: &'static str, x: &Tensor, (m, n): (usize, usize), bias: Option<&Value>) -> Work {
    let rows = x.elem_count() / n.max(1);
    let bytes = match bias {
        Some(_) => (rows * m * x.dtype().size_in_bytes()) as u64,
        None => 0,
    };
    let cost = |times: u64| Cost { operations: 0, bytes: times * bytes };
    Work { name, shape: [rows, n, m], forward: cost(2), backward: cost(1) }
}

/// The rows of an input in the type of the products, for the gradient of the weight: kept, or made
/// again.
enum KeptRows {
    Kept(Tensor),
    Remade(Remake),
}

impl KeptRows {
    /// Of this input, which has these rows.
    fn of(x: &Value, rows: Tensor) -> Self {
        x.remake().cloned().map_or(Self::Kept(rows), Self::Remade)
    }

    fn tensor(self, compute: Compute) -> Result<Tensor> {
        match self {
            Self::Kept(rows) => Ok(rows),
            Self::Remade(remake) => compute.narrowed(&as_rows(&remake.again()?)?),
        }
    }
}

/// Shape and type that the gradient of an input must have.
struct Input {
    shape: Vec<usize>,
    dtype: DType,
}

impl Input {
    fn of(x: &Value) -> Self {
        Self { shape: x.tensor().dims().to_vec(), dtype: x.tensor().dtype() }
    }

    /// Adds a b as its gradient.
    fn add_product(
        &self,
        flow: &mut Flow,
        to: Option<Source>,
        a: &Tensor,
        b: &Tensor,
    ) -> Result<()> {
        if to.is_none() || a.dtype() == self.dtype {
            return flow.add_product(to, &self.shape, a, b);
        }
        let gradient = flow.product(a, b)?.to_dtype(self.dtype)?.reshape(self.shape.as_slice())?;
        flow.add(to, gradient)
    }
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
    let (_, width) = rows_of(&y)?;
    if bias.tensor().dims() != [width] {
        bail!("a bias of shape {:?} for outputs that are {width} wide", bias.tensor().dims())
    }
    if let Some(gpu) = tape.compute().gpu(&y).filter(|_| bias.tensor().dtype() == DType::F32) {
        return gpu::add_bias(gpu, &y, bias.tensor());
    }
    if !tape.uses_kernels(&y) {
        return y.broadcast_add(&tape.compute().narrowed(bias.tensor())?);
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
    if let Some(gpu) = flow.compute().gpu(delta) {
        return flow.add(to, gpu::column_sums(gpu, &delta.contiguous()?)?);
    }
    flow.add(to, column_sums(flow.compute(), &widened(delta)?)?)
}

/// Σ over rows of a (rows, columns) tensor.
fn column_sums(compute: Compute, x: &Tensor) -> Result<Tensor> {
    if !compute.takes_kernels(x) {
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
            vectorized!(
                part.chunks_exact(columns)
                    .for_each(|row| sum.iter_mut().zip(row).for_each(|(s, x)| *s += *x))
            );
            sum
        })
        .collect();
    out.fill(T::ZERO);
    for part in parts {
        out.iter_mut().zip(part).for_each(|(o, p)| *o += p);
    }
}
