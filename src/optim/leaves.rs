//! Named leaves of a state, enumerated once: saving, loading, stacking, moving to a device and
//! counting bytes all follow from one `map_leaves`.

use crate::params::TensorReader;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};

/// What happens to each leaf, in the order in which the state names them.
pub trait LeafMap {
    /// What becomes of the tensor of this name.
    ///
    /// # Errors
    /// Those of the map: a missing leaf when loading, no memory when moving.
    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<Tensor>;

    /// What becomes of the number of this name, which lies between 1 and `largest`.
    ///
    /// # Errors
    /// As [`Self::tensor`].
    fn number(&mut self, name: &str, number: usize, largest: usize) -> Result<usize>;
}

/// A state made of named tensors and numbers.
pub trait Leaves: Sized {
    /// The same state with every leaf replaced by what `map` makes of it.
    ///
    /// # Errors
    /// As `map`.
    fn map_leaves(&self, map: &mut dyn LeafMap) -> Result<Self>;

    /// Names and tensors, in the state's order; a number is one u32.
    ///
    /// # Errors
    /// If a number does not fit into 32 bits.
    fn named_tensors(&self) -> Result<Vec<(String, Tensor)>> {
        let mut named = Named(Vec::new());
        self.map_leaves(&mut named)?;
        Ok(named.0)
    }

    /// The state that `read` holds under `<parameter>/<leaf>`; shapes and types are those of
    /// `self`.
    ///
    /// # Errors
    /// If a leaf is missing, has another shape, or is a number out of its bounds.
    fn load(&self, parameter: &str, reader: &mut TensorReader) -> Result<Self> {
        self.map_leaves(&mut Load { parameter, reader })
    }

    /// The same state on this device.
    ///
    /// # Errors
    /// If the device has no memory for it.
    fn to_device(&self, device: &Device) -> Result<Self> {
        self.map_leaves(&mut Tensors(|tensor: &Tensor| Ok(tensor.to_device(device)?)))
    }

    /// States of parameters of one shape and rule as one, whose tensors are stacks.
    ///
    /// # Errors
    /// If there are none, or shapes differ.
    fn stack(states: &[&Self]) -> Result<Self> {
        let first = states.first().context("no states to stack")?;
        let mut columns: Vec<Vec<Tensor>> = Vec::new();
        for state in states {
            let tensors = state.named_tensors()?.into_iter().map(|(_, tensor)| tensor);
            columns.resize_with(tensors.len(), Vec::new);
            columns.iter_mut().zip(tensors).for_each(|(column, tensor)| column.push(tensor));
        }
        let mut columns = columns.into_iter();
        first.map_leaves(&mut Tensors(|_: &Tensor| {
            let column = columns.next().context("states of one rule have the same leaves")?;
            Ok(Tensor::stack(&column, 0)?)
        }))
    }

    /// The state at this place of a stack.
    ///
    /// # Errors
    /// If the place is beyond the stack.
    fn unstacked(&self, place: usize) -> Result<Self> {
        self.map_leaves(&mut Tensors(|tensor: &Tensor| Ok(tensor.get(place)?)))
    }
}

/// The name of a state's leaf in a checkpoint.
pub fn leaf_name(parameter: &str, leaf: &str) -> String {
    format!("{parameter}/{leaf}")
}

/// Changes tensors and leaves numbers as they are.
struct Tensors<F>(F);

impl<F: FnMut(&Tensor) -> Result<Tensor>> LeafMap for Tensors<F> {
    fn tensor(&mut self, _: &str, tensor: &Tensor) -> Result<Tensor> {
        (self.0)(tensor)
    }

    fn number(&mut self, _: &str, number: usize, _: usize) -> Result<usize> {
        Ok(number)
    }
}

/// Collects names and tensors.
struct Named(Vec<(String, Tensor)>);

impl LeafMap for Named {
    fn tensor(&mut self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        self.0.push((name.to_owned(), tensor.clone()));
        Ok(tensor.clone())
    }

    fn number(&mut self, name: &str, number: usize, _: usize) -> Result<usize> {
        self.0.push((name.to_owned(), Tensor::new(&[u32::try_from(number)?], &Device::Cpu)?));
        Ok(number)
    }
}

/// Takes leaves from a checkpoint.
struct Load<'a> {
    parameter: &'a str,
    reader: &'a mut TensorReader,
}

impl LeafMap for Load<'_> {
    fn tensor(&mut self, name: &str, like: &Tensor) -> Result<Tensor> {
        let tensor = self.reader.take_shaped(&leaf_name(self.parameter, name), like.dims())?;
        Ok(tensor.to_dtype(like.dtype())?.to_device(like.device())?)
    }

    fn number(&mut self, name: &str, _: usize, largest: usize) -> Result<usize> {
        let name = leaf_name(self.parameter, name);
        let stored = self.reader.take_shaped(&name, &[1])?;
        // Older checkpoints hold f64, which has every such number exactly.
        let number = stored.to_dtype(candle_core::DType::F64)?.get(0)?.to_scalar::<f64>()?;
        let whole = number as usize;
        ensure!(
            whole as f64 == number && (1..=largest).contains(&whole),
            "optimizer state: `{name}` is {number}, which is no number from 1 to {largest}; the \
             checkpoint is damaged"
        );
        Ok(whole)
    }
}
