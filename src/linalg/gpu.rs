//! Cholesky factors on NVIDIA GPUs.

use super::stack::{shape_like, stack_shape};
use crate::kernels::gpu::{Argument, Gpu, Grid, Module};
use candle_core::{DType, Result, Tensor, bail};

/// Threads for each matrix.
const THREADS: u32 = 512;

/// R⁻¹ of matrices G = RᵀR.
pub(super) struct Inverted {
    /// R⁻¹, L × n × n, upper triangular; I where there is no factor.
    pub inverse: Tensor,
    /// Of each matrix, L × 1 × (2n + 2) f64: whether it has a factor (then 1), ‖G − I‖_F, R's
    /// diagonal, and √Gⱼⱼ.
    pub notes: Tensor,
}

/// R⁻¹ of every Gram matrix of a stack on a GPU, in f64, scaled and shifted as on the host.
///
/// # Errors
/// If the stack is not on a GPU, or the device has too little memory.
pub(super) fn cholesky_inverses(gram: &Tensor, shift: f64) -> Result<Inverted> {
    let Some(gpu) = Gpu::of(gram).filter(|_| gram.dtype() == DType::F32) else {
        bail!("Cholesky factors of {:?} on {:?} have no kernel", gram.dtype(), gram.device())
    };
    let gram = gram.contiguous()?;
    let (count, size, _) = stack_shape(&gram)?;
    let inverse = gpu.output(gram.shape(), gram.dtype())?;
    let notes = gpu.output(shape_like(&gram, 1, 2 * size + 2), DType::F64)?;
    let scratch = gpu.output((count, 2 * size * size), DType::F64)?;
    let arguments = [
        Argument::Of(&gram),
        Argument::Of(&inverse),
        Argument::Of(&notes),
        Argument::Of(&scratch),
        Argument::Count(size),
        Argument::Double(shift),
    ];
    let grid =
        Grid { shared_bytes: size * DType::F64.size_in_bytes(), ..Grid::of_blocks(count, THREADS) };
    gpu.launch(Module::Cholesky, "cholesky_inverse_f32", grid, &arguments)?;
    Ok(Inverted { inverse, notes })
}
