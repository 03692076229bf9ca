//! How operations compute: by which code, and in which number type.

use crate::kernels::gpu::Gpu;
use crate::kernels::has_kernel;
use candle_core::{DType, Result, Tensor};

/// What every operation of a forward and backward pass is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compute {
    /// Whether tensors take the kernels, of the CPU or of an NVIDIA GPU; without them they take the
    /// candle operations that other devices take.
    pub kernels: bool,
    /// Type of the large products and of the activations between them; none: that of the
    /// parameters. Norms, softmax, loss, the residual stream, sums of parameter gradients and Gram
    /// matrices stay in the parameters' type.
    pub half: Option<DType>,
}

impl Default for Compute {
    fn default() -> Self {
        Self { kernels: true, half: None }
    }
}

impl Compute {
    /// Whether the CPU kernels are to be used for this tensor.
    pub fn takes_kernels(self, x: &Tensor) -> bool {
        self.kernels && has_kernel(x)
    }

    /// The GPU that this tensor is on, if kernels are to be used there.
    pub(super) fn gpu(self, x: &Tensor) -> Option<Gpu<'_>> {
        Gpu::of(x).filter(|_| self.kernels)
    }

    /// The tensor in the type of the products.
    pub fn narrowed(self, x: &Tensor) -> Result<Tensor> {
        match self.half {
            Some(half) if x.dtype() == DType::F32 => x.to_dtype(half),
            _ => Ok(x.clone()),
        }
    }
}

/// The tensor in a type that sums can be taken in: half precision becomes f32.
pub(super) fn widened(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(wide(x.dtype()))
}

/// f32 for a half-precision type, else the type itself.
pub(super) fn wide(dtype: DType) -> DType {
    if is_half(dtype) { DType::F32 } else { dtype }
}

/// Whether a type has fewer digits than f32.
pub(super) fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}
