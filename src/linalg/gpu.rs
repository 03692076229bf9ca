//! Cholesky factors on NVIDIA GPUs.

use super::cholesky_qr::shift;
use super::stack::{epsilon_of, stack_shape};
use crate::kernels::gpu::{Argument, Gpu, Grid, Module};
use candle_core::{DType, Result, Tensor, bail};
use std::collections::BTreeMap;

/// Threads for each matrix, as many as the kernel is compiled for.
const THREADS: u32 = 256;

/// Side of the tiles that the kernel takes a matrix in, its `TILE`.
const TILE: usize = 32;

/// R⁻¹ of matrices G = RᵀR.
#[derive(Clone)]
pub(super) struct Inverted {
    /// R⁻¹, L × n × n, upper triangular; I where there is no factor.
    pub inverse: Tensor,
    /// Of each matrix, L × 1 × (2n + 2) f64: whether it has a factor (then 1), ‖G − I‖_F, R's
    /// diagonal, and √Gⱼⱼ.
    pub notes: Tensor,
}

/// R⁻¹ of every Gram matrix of these stacks on a GPU, in f64, scaled and shifted as on the host.
/// Matrices of one size are worked on side by side.
///
/// # Errors
/// If a stack is not on a GPU, or the device has too little memory.
pub(super) fn cholesky_inverses(grams: &[&Tensor]) -> Result<Vec<Inverted>> {
    let mut by_size: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, gram) in grams.iter().enumerate() {
        by_size.entry(stack_shape(gram)?.1).or_default().push(index);
    }
    let mut found = vec![None; grams.len()];
    for (size, members) in by_size {
        let stacks = members
            .iter()
            .map(|&index| grams[index].reshape(((), size, size)))
            .collect::<Result<Vec<_>>>()?;
        let all = of_one_size(&Tensor::cat(&stacks, 0)?)?;
        let mut first = 0;
        for (index, stack) in members.into_iter().zip(stacks) {
            let count = stack.dim(0)?;
            let inverse = all.inverse.narrow(0, first, count)?.reshape(grams[index].shape())?;
            let notes = all.notes.narrow(0, first, count)?;
            found[index] = Some(Inverted { inverse, notes });
            first += count;
        }
    }
    match found.into_iter().collect() {
        Some(found) => Ok(found),
        None => bail!("a stack of Gram matrices belongs to no size"),
    }
}

/// The same of one stack, L × n × n.
fn of_one_size(gram: &Tensor) -> Result<Inverted> {
    let Some(gpu) = Gpu::of(gram).filter(|_| gram.dtype() == DType::F32) else {
        bail!("Cholesky factors of {:?} on {:?} have no kernel", gram.dtype(), gram.device())
    };
    let gram = gram.contiguous()?;
    let (count, size, _) = gram.dims3()?;
    let inverse = gpu.output(gram.shape(), gram.dtype())?;
    let notes = gpu.output((count, 1, 2 * size + 2), DType::F64)?;
    let padded = size.next_multiple_of(TILE);
    let scratch = gpu.output((count, 2, padded, padded), DType::F64)?;
    let arguments = [
        Argument::Of(&gram),
        Argument::Of(&inverse),
        Argument::Of(&notes),
        Argument::Of(&scratch),
        Argument::Count(size),
        Argument::Count(padded),
        Argument::Double(shift(epsilon_of(&gram)?, size)),
    ];
    let grid = Grid::of_blocks(count, THREADS);
    gpu.launch(Module::Cholesky, "cholesky_inverse_f32", grid, &arguments)?;
    Ok(Inverted { inverse, notes })
}
