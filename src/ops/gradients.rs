//! Parameter gradients, summed over the micro-batches of a step.

use super::compute::{Compute, is_half, widened};
use super::product::{as_rows, product_by, product_into_by};
use crate::kernels::{Host, PIECE, mutate, unwritten, with_real};
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Parameter gradients by slot; buffers are kept from step to step.
///
/// A low-rank weight W = U S Vᵀ uses two slots: U's receives the K-gradient G V (m × r) and V's the
/// L-gradient Gᵀ U (n × r), with G the Euclidean gradient at W. These are not the partial
/// derivatives by U and V, which would carry a factor S (docs/method.md §2).
///
/// Sums over micro-batches are in f32. Of half-precision rows the products are formed in f32 on
/// the CPU; on a device, whose products of half precision add up in f32 and are rounded at their
/// end, they are widened after that rounding. Gram matrices are formed in f32 everywhere.
#[derive(Debug)]
pub struct Gradients {
    slots: Vec<Slot>,
    wanted: Wanted,
    /// Whether the Gram matrices of the inputs of matrices that stay dense are asked for.
    wants_dense_inputs: bool,
    grams: BTreeMap<usize, Tensor>,
    /// Gram matrices of earlier evaluations, until they join those of the last.
    earlier_grams: BTreeMap<usize, Tensor>,
}

/// A kind of Gram matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gram {
    /// Of the inputs of a layer whose rank is cut, as its V sees them where it has one.
    Inputs,
    /// Of the output gradients of such a layer.
    Outputs,
    /// Of the inputs of a matrix that stays dense.
    DenseInputs,
}

/// Which of those that are of layers whose rank is cut are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Nothing,
    Inputs,
    /// Of inputs and of output gradients.
    All,
}

#[derive(Debug, Default)]
struct Slot {
    buffer: Option<Tensor>,
    filled: bool,
}

impl Gradients {
    /// Empty slots.
    pub fn new(count: usize) -> Self {
        Self {
            slots: (0..count).map(|_| Slot::default()).collect(),
            wanted: Wanted::Nothing,
            wants_dense_inputs: false,
            grams: BTreeMap::new(),
            earlier_grams: BTreeMap::new(),
        }
    }

    /// The gradient of a slot, if one has arrived since the last [`Self::reset`].
    pub fn get(&self, slot: usize) -> Option<&Tensor> {
        self.slots.get(slot).filter(|slot| slot.filled).and_then(|slot| slot.buffer.as_ref())
    }

    /// Forgets all gradients but keeps their buffers; Gram matrices are forgotten and no longer
    /// asked for.
    pub fn reset(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.filled = false);
        self.wanted = Wanted::Nothing;
        self.wants_dense_inputs = false;
        self.grams.clear();
        self.earlier_grams.clear();
    }

    /// Forgets the sums of an earlier micro-batch, and keeps what is asked for.
    pub(super) fn forget_sums(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.filled = false);
        self.grams.clear();
    }

    /// Makes an empty slot hold a sum that `read` fills in.
    pub(super) fn fill(
        &mut self,
        slot: usize,
        (dims, device): (&[usize], &Device),
        read: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let slot = &mut self.slots[slot];
        slot.buffer = Some(filled(dims, device, read)?);
        slot.filled = true;
        Ok(())
    }

    /// Makes a slot have a Gram matrix (r × r) that `read` fills in.
    pub(super) fn fill_gram(
        &mut self,
        slot: usize,
        (r, device): (usize, &Device),
        read: impl FnOnce(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let gram = filled(&[r, r], device, read)?;
        self.grams.insert(slot, gram);
        Ok(())
    }

    /// Replaces sums by those of other processes: `exchange` gets the number of each (2 × slot, or
    /// 2 × slot + 1 for its Gram matrix) and the sum, in an order that is the same on every process,
    /// and returns what takes its place, if anything does.
    ///
    /// # Errors
    /// As `exchange`.
    pub fn exchange(
        &mut self,
        mut exchange: impl FnMut(usize, &Tensor) -> anyhow::Result<Option<Tensor>>,
    ) -> anyhow::Result<()> {
        let mut one = |number: usize, sum: &mut Tensor| -> anyhow::Result<()> {
            if let Some(other) = exchange(number, sum)? {
                *sum = other;
            }
            Ok(())
        };
        for (index, slot) in self.slots.iter_mut().enumerate().filter(|(_, slot)| slot.filled) {
            if let Some(sum) = &mut slot.buffer {
                one(2 * index, sum)?;
            }
        }
        self.grams.iter_mut().try_for_each(|(slot, gram)| one(2 * slot + 1, gram))
    }

    /// Whether Gram matrices of this kind are asked for.
    pub(super) fn wants(&self, kind: Gram) -> bool {
        match kind {
            Gram::Inputs => self.wanted >= Wanted::Inputs,
            Gram::Outputs => self.wanted == Wanted::All,
            Gram::DenseInputs => self.wants_dense_inputs,
        }
    }

    /// Asks the low-rank layers for the second moments of what passes through them; see
    /// [`low_rank_linear`](super::low_rank_linear).
    pub fn want_grams(&mut self) {
        self.wanted = Wanted::All;
    }

    /// Asks for those of their inputs, zᵀz with z = xV, if not for more; of a weight that is dense
    /// until a cut xᵀx.
    pub fn want_input_grams(&mut self) {
        self.wanted = self.wanted.max(Wanted::Inputs);
    }

    /// Asks the layers whose matrices stay dense for xᵀx of their inputs, beside what else is asked
    /// for; see [`dense_matrix_linear`](super::dense_matrix_linear).
    pub fn want_dense_input_grams(&mut self) {
        self.wants_dense_inputs = true;
    }

    /// The sum of xᵀ x over the rows x that passed a slot, if one was asked for and has arrived.
    pub fn gram(&self, slot: usize) -> Option<&Tensor> {
        self.grams.get(&slot)
    }

    /// Puts the Gram matrices of an evaluation by, and forgets its gradients: what the next one adds
    /// is summed by itself first, as processes that share it have it.
    ///
    /// # Errors
    /// If Gram matrices of a slot have different shapes.
    pub fn set_grams_by(&mut self) -> Result<()> {
        self.slots.iter_mut().for_each(|slot| slot.filled = false);
        self.join_grams()?;
        self.earlier_grams = std::mem::take(&mut self.grams);
        Ok(())
    }

    /// Adds the Gram matrices that were put by to those of the last evaluation.
    ///
    /// # Errors
    /// If Gram matrices of a slot have different shapes.
    pub fn join_grams(&mut self) -> Result<()> {
        for (slot, earlier) in std::mem::take(&mut self.earlier_grams) {
            let sum = match self.grams.get(&slot) {
                Some(gram) => (earlier + gram)?,
                None => earlier,
            };
            self.grams.insert(slot, sum);
        }
        Ok(())
    }

    pub(super) fn add_gram(&mut self, compute: Compute, slot: usize, x: &Tensor) -> Result<()> {
        // Rounded to half precision, a Gram matrix of one strong direction is indefinite: the
        // noise of its large elements exceeds its small eigenvalues.
        let x = widened(x)?;
        let gram = product_by(compute, &x.t()?, &x)?;
        let sum = match self.grams.get(&slot) {
            Some(sum) => (sum + gram)?,
            None => gram,
        };
        self.grams.insert(slot, sum);
        Ok(())
    }

    pub(super) fn add(
        &mut self,
        compute: Compute,
        slot: usize,
        gradient: Tensor,
        shared: bool,
    ) -> Result<()> {
        let slot = &mut self.slots[slot];
        let shared = shared && !is_half(gradient.dtype());
        let gradient = widened(&gradient)?;
        slot.buffer = Some(match slot.buffer.take().filter(|_| slot.filled) {
            Some(buffer) => add_in_place(compute, buffer, &gradient)?,
            None if shared => gradient.copy()?,
            None => gradient.contiguous()?,
        });
        slot.filled = true;
        Ok(())
    }

    /// In place, into the buffer of the last step if its shape is still the same; for kernels.
    pub(super) fn add_product(
        &mut self,
        compute: Compute,
        slot: usize,
        shape: &[usize],
        a: &Tensor,
        b: &Tensor,
    ) -> Result<()> {
        let slot = &mut self.slots[slot];
        match &slot.buffer {
            Some(buffer) if slot.filled || buffer.dims() == shape => {
                product_into_by(compute, &mut as_rows(buffer)?, a, b, slot.filled)?;
            }
            _ => slot.buffer = Some(product_by(compute, a, b)?.reshape(shape)?),
        }
        slot.filled = true;
        Ok(())
    }

    pub(super) fn zeroed(&mut self, slot: usize, like: &Tensor) -> Result<&Tensor> {
        let slot = &mut self.slots[slot];
        if !slot.filled {
            slot.buffer = Some(like.zeros_like()?);
            slot.filled = true;
        }
        match &slot.buffer {
            Some(buffer) if buffer.dims() == like.dims() => Ok(buffer),
            Some(buffer) => bail!(
                "a gradient of shape {:?} for a parameter whose slot has one of shape {:?}",
                like.dims(),
                buffer.dims()
            ),
            None => bail!("a filled gradient slot has no buffer"),
        }
    }
}

/// A tensor whose numbers `read` fills in.
fn filled(
    dims: &[usize],
    device: &Device,
    read: impl FnOnce(&mut [f32]) -> Result<()>,
) -> Result<Tensor> {
    let mut numbers = unwritten(dims.iter().product());
    read(&mut numbers)?;
    Tensor::from_vec(numbers, dims, device)
}

/// a + b into a's memory where kernels run; `a` must not be shared then.
pub(super) fn add_in_place(compute: Compute, a: Tensor, b: &Tensor) -> Result<Tensor> {
    if !compute.takes_kernels(&a) {
        return &a + b;
    }
    if a.dims() != b.dims() {
        bail!("gradients of shapes {:?} and {:?} cannot be added", a.dims(), b.dims())
    }
    let b = b.contiguous()?;
    let host = Host::new(&b)?;
    with_real!(a.dtype(), T => {
        let b = host.numbers::<T>()?;
        mutate::<T>(&a, |a| {
            a.par_chunks_mut(PIECE).zip(b.par_chunks(PIECE)).for_each(|(a, b)| {
                for (a, b) in a.iter_mut().zip(b) {
                    *a += *b;
                }
            });
            Ok(())
        })?
    });
    Ok(a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn a_slot_takes_gradients_of_one_shape_between_resets() -> Result<()> {
        let zeros = |shape: (usize, usize)| Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let compute = Compute::default();
        let mut gradients = Gradients::new(1);
        gradients.zeroed(0, &zeros((2, 3))?)?;
        let error = gradients.zeroed(0, &zeros((40, 3))?).unwrap_err().to_string();
        assert!(error.contains("[40, 3]") && error.contains("[2, 3]"), "{error}");
        let error = gradients.add(compute, 0, zeros((3, 2))?, false).unwrap_err().to_string();
        assert!(error.contains("[2, 3] and [3, 2]"), "{error}");
        gradients.reset();
        assert_eq!(gradients.zeroed(0, &zeros((40, 3))?)?.dims(), [40, 3]);
        Ok(())
    }

    /// Of x₁ᵀx₁ + x₂ᵀx₂ + x₃ᵀx₃ the first two are put by; gradients are those of the last alone.
    #[test]
    fn gram_matrices_of_several_evaluations_are_summed() -> Result<()> {
        let rows = |numbers: [f32; 2]| Tensor::new(&[numbers], &Device::Cpu);
        let compute = Compute::default();
        let mut gradients = Gradients::new(1);
        for numbers in [[1.0, 2.0], [3.0, -1.0]] {
            gradients.add(compute, 0, rows(numbers)?, true)?;
            gradients.add_gram(compute, 0, &rows(numbers)?)?;
            gradients.set_grams_by()?;
            assert!(gradients.get(0).is_none() && gradients.gram(0).is_none());
        }
        gradients.add(compute, 0, rows([0.5, 4.0])?, true)?;
        gradients.add_gram(compute, 0, &rows([0.5, 4.0])?)?;
        gradients.join_grams()?;
        let gram = gradients.gram(0).map(Tensor::to_vec2::<f32>).transpose()?;
        assert_eq!(gram, Some(vec![vec![10.25, 1.0], vec![1.0, 21.0]]));
        let sum = gradients.get(0).map(Tensor::to_vec2::<f32>).transpose()?;
        assert_eq!(sum, Some(vec![vec![0.5, 4.0]]));
        gradients.reset();
        gradients.join_grams()?;
        assert!(gradients.gram(0).is_none(), "what was put by is forgotten with the rest");
        Ok(())
    }
}
