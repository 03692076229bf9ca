//! CPU access to the numbers of candle tensors without copies, and output buffers that are not
//! zeroed before they are overwritten.

use super::matrix::Matrix;
use super::real::Real;
use candle_core::{
    CpuStorage, DType, InplaceOp1, Layout, Result, Shape, Storage, StorageRef, Tensor, bail,
};
use std::cell::RefCell;
use std::marker::PhantomData;

/// Whether the CPU kernels take this tensor.
pub fn has_kernel(x: &Tensor) -> bool {
    x.device().is_cpu() && matches!(x.dtype(), DType::F32 | DType::F64)
}

/// The number of a scalar tensor on any device.
///
/// # Errors
/// If the tensor has more than one element.
pub fn scalar(x: &Tensor) -> Result<f64> {
    // To the host first: not every device has f64.
    x.to_device(&candle_core::Device::Cpu)?.to_dtype(DType::F64)?.to_scalar()
}

/// A CPU tensor opened for reading, without a copy.
pub struct Host<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
    /// Number of elements from the first on; to the end of the storage for a tensor with strides.
    count: Option<usize>,
}

impl<'a> Host<'a> {
    /// Opens a contiguous tensor.
    ///
    /// # Errors
    /// If it is not contiguous.
    pub fn new(x: &'a Tensor) -> Result<Self> {
        let opened = Self::strided(x);
        if !opened.layout.is_contiguous() {
            bail!("a CPU kernel needs a contiguous tensor, got {:?}", opened.layout)
        }
        Ok(Self { count: Some(opened.layout.shape().elem_count()), ..opened })
    }

    /// Opens a tensor of any strides: its numbers then run from its first element to the end of its
    /// storage.
    pub fn strided(x: &'a Tensor) -> Self {
        let (storage, layout) = x.storage_and_layout();
        Self { storage, layout, count: None }
    }

    /// The numbers, as T.
    ///
    /// # Errors
    /// If the tensor is not on the CPU or not of this type.
    pub fn numbers<T: Real>(&self) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => match T::of_storage(storage) {
                Some(numbers) => Ok(self.own(numbers)),
                None => bail!("a CPU kernel for {:?} met {:?}", T::TYPE, self.storage.dtype()),
            },
            _ => bail!("a CPU kernel met a tensor on another device"),
        }
    }

    /// A 2-D tensor as a matrix.
    ///
    /// # Errors
    /// As [`Self::numbers`], or if the tensor has another number of dimensions.
    pub fn matrix<T: Real>(&self) -> Result<Matrix<'_, T>> {
        match *self.layout.stride() {
            [row_stride, column_stride] => Ok(Matrix::strided(
                self.numbers::<T>()?,
                self.layout.shape().dims2()?,
                (row_stride, column_stride),
            )),
            _ => bail!("a tensor of shape {:?} is not a matrix", self.layout.dims()),
        }
    }

    /// The numbers of a u32 tensor.
    ///
    /// # Errors
    /// If the tensor is not on the CPU or not of this type.
    pub fn ids(&self) -> Result<&[u32]> {
        match &*self.storage {
            Storage::Cpu(CpuStorage::U32(ids)) => Ok(self.own(ids)),
            _ => bail!("token ids must be u32 on the CPU"),
        }
    }

    /// The part of a storage that is this tensor's.
    fn own<'b, N>(&self, storage: &'b [N]) -> &'b [N] {
        let rest = &storage[self.layout.start_offset()..];
        match self.count {
            Some(count) => &rest[..count],
            None => rest,
        }
    }
}

/// A tensor filled by `fill`, which should write every number: the buffer it gets holds arbitrary
/// ones.
pub fn build<T: Real>(
    shape: impl Into<Shape>,
    fill: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<Tensor> {
    let shape = shape.into();
    let mut numbers = unwritten::<T>(shape.elem_count());
    fill(&mut numbers)?;
    Tensor::from_vec(numbers, shape, &candle_core::Device::Cpu)
}

/// A vector of `count` numbers whose values are arbitrary, for kernels that overwrite all of them:
/// zeroing them first would be a measurable part of a training step.
pub fn unwritten<T: Real>(count: usize) -> Vec<T> {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        let mut numbers: Vec<T> = Vec::with_capacity(count);
        // SAFETY: an empty assembly block that is given a pointer, and that does not promise to
        // leave memory alone, may write to the memory behind it; the compiler must take it to have
        // written whatever bytes stand there. So the block initialises the `count` elements of the
        // capacity with arbitrary values, which every bit pattern of f32 and f64 is, and no
        // instruction is spent on it. Without the block the memory would be uninitialised, which
        // is no value at all, and the length could not be set.
        unsafe {
            std::arch::asm!("/* {0} */", in(reg) numbers.as_mut_ptr(), options(nostack, preserves_flags));
            numbers.set_len(count);
        }
        numbers
    }
    #[cfg(not(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    {
        vec![T::ZERO; count]
    }
}

/// Changes a contiguous CPU tensor in place; clones that share its storage change with it.
pub fn mutate<T: Real>(x: &Tensor, change: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    struct Mutate<F>(RefCell<Option<F>>);
    impl<F: FnOnce(&mut CpuStorage, &Layout) -> Result<()>> InplaceOp1 for Mutate<F> {
        fn name(&self) -> &'static str {
            "mutate"
        }
        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
            match self.0.borrow_mut().take() {
                Some(change) => change(storage, layout),
                None => bail!("an in-place change runs once"),
            }
        }
    }
    let on_storage = |storage: &mut CpuStorage, layout: &Layout| {
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("an in-place change needs a contiguous tensor, got {layout:?}")
        };
        match T::of_storage_mut(storage) {
            Some(numbers) => change(&mut numbers[start..end]),
            None => bail!("an in-place change for {:?} met another type", T::TYPE),
        }
    };
    x.inplace_op1(&Mutate(RefCell::new(Some(on_storage))))
}

/// A pointer that rayon tasks may share; each task writes its own part. It holds the borrow of the
/// buffer, so the buffer outlives it and nobody else uses it meanwhile.
#[derive(Clone, Copy)]
pub struct SharedOut<'a, T>(*mut T, PhantomData<&'a mut [T]>);

// SAFETY: tasks on other threads write values of T through the pointer, each to its own part, which
// is as if each had been sent its part of the slice: T: Send is what that takes.
unsafe impl<T: Send> Send for SharedOut<'_, T> {}
// SAFETY: the same; a shared reference gives no more than the pointer, and whoever writes through
// it promises in its own unsafe block that the parts are disjoint.
unsafe impl<T: Send> Sync for SharedOut<'_, T> {}

impl<'a, T> SharedOut<'a, T> {
    /// Shares a buffer.
    pub fn new(out: &'a mut [T]) -> Self {
        Self(out.as_mut_ptr(), PhantomData)
    }

    /// The pointer.
    pub fn get(&self) -> *mut T {
        self.0
    }
}
