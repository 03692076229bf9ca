//! One value as several, by columns: the queries, keys and values of a joint projection.

use super::tape::{Tape, Value};
use crate::kernels::profile::{Work, span};
use crate::kernels::{Host, build, with_real};
use candle_core::{D, DType, Device, Result, Shape, Tensor, bail};
use rayon::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

/// Rows that a task copies at the least.
const ROWS: usize = 16;

/// The columns of x (…, Σ widths) in parts of these widths from the first on, each a tensor of its
/// own; nothing of x is kept. The backward puts the parts' gradients side by side in one tensor of
/// x's shape, zeros where a part has none.
///
/// # Errors
/// If the widths do not add up to x's, or one is 0.
pub fn split<const N: usize>(tape: &Tape, x: &Value, widths: [usize; N]) -> Result<[Value; N]> {
    let (given, to_x) = (x.tensor(), x.source());
    if widths.iter().sum::<usize>() != given.dim(D::Minus1)? || widths.contains(&0) {
        bail!("split: {:?} in parts {widths:?} wide", given.dims())
    }
    let kernels = tape.uses_kernels(given);
    let whole = span(|| Work::pass("split", given, (2, 2)));
    let mut start = 0;
    let mut tensors = Vec::with_capacity(N);
    for width in widths {
        tensors.push(columns(given, start, width, kernels)?);
        start += width;
    }
    let parts = Rc::new(Parts {
        shapes: tensors.iter().map(|part| part.shape().clone()).collect(),
        dtype: given.dtype(),
        device: given.device().clone(),
        gradients: RefCell::new(vec![None; N]),
    });
    let mut tensors = tensors.into_iter();
    let Some(first) = tensors.next() else { bail!("split: no parts of {:?}", given.dims()) };
    // Recorded before the others, its backward runs after theirs: it has all gradients.
    let all = parts.clone();
    let first = tape.record(&[to_x], first, move |delta, flow| {
        all.gradients.borrow_mut()[0] = Some(delta);
        flow.add(to_x, all.joined(kernels)?)
    });
    drop(whole);
    let to_first = first.source();
    let mut values = vec![first];
    for (index, tensor) in (1..).zip(tensors) {
        let all = parts.clone();
        values.push(tape.record(&[to_first], tensor, move |delta, flow| {
            all.gradients.borrow_mut()[index] = Some(delta);
            // Without a gradient the first's backward would not run.
            if flow.has_arrived(to_first) { Ok(()) } else { flow.add(to_first, all.zeros(0)?) }
        }));
    }
    match values.try_into() {
        Ok(values) => Ok(values),
        Err(values) => bail!("split: {} parts of {N}", Vec::len(&values)),
    }
}

/// The parts of a value, and those of their gradients that have arrived.
struct Parts {
    shapes: Vec<Shape>,
    dtype: DType,
    device: Device,
    gradients: RefCell<Vec<Option<Tensor>>>,
}

impl Parts {
    fn zeros(&self, index: usize) -> Result<Tensor> {
        Tensor::zeros(self.shapes[index].clone(), self.dtype, &self.device)
    }

    /// The gradients side by side.
    fn joined(&self, kernels: bool) -> Result<Tensor> {
        let gradients = self.gradients.take().into_iter().enumerate();
        let gradients: Vec<Tensor> = gradients
            .map(|(index, gradient)| gradient.map_or_else(|| self.zeros(index), |x| x.contiguous()))
            .collect::<Result<_>>()?;
        if !kernels {
            return Tensor::cat(&gradients, D::Minus1);
        }
        let mut shape = self.shapes[0].dims().to_vec();
        let widths: Vec<usize> =
            gradients.iter().map(|x| x.dim(D::Minus1)).collect::<Result<_>>()?;
        let total = widths.iter().sum();
        shape.pop();
        shape.push(total);
        let hosts: Vec<Host> = gradients.iter().map(Host::new).collect::<Result<_>>()?;
        with_real!(self.dtype, T => {
            let numbers: Vec<&[T]> = hosts.iter().map(Host::numbers::<T>).collect::<Result<_>>()?;
            build::<T>(shape, |out| {
                let rows = out.par_chunks_mut(total).with_min_len(ROWS).enumerate();
                rows.for_each(|(row, mut rest)| {
                    for (numbers, width) in numbers.iter().zip(&widths) {
                        let (part, others) = rest.split_at_mut(*width);
                        part.copy_from_slice(&numbers[row * width..][..*width]);
                        rest = others;
                    }
                });
                Ok(())
            })
        })
    }
}

/// So many columns of x from one on, as a tensor of their own.
fn columns(x: &Tensor, start: usize, width: usize, kernels: bool) -> Result<Tensor> {
    let part = x.narrow(D::Minus1, start, width)?;
    if !kernels {
        return part.contiguous();
    }
    let (x, total) = (x.contiguous()?, x.dim(D::Minus1)?);
    let host = Host::new(&x)?;
    with_real!(x.dtype(), T => {
        let numbers = host.numbers::<T>()?;
        build::<T>(part.shape().clone(), |out| {
            let rows = out.par_chunks_mut(width).with_min_len(ROWS).zip(numbers.par_chunks(total));
            rows.for_each(|(out, x)| out.copy_from_slice(&x[start..][..width]));
            Ok(())
        })
    })
}
