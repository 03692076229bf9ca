//! Reading optimizer state back: every leaf must be there, have its shape, and be used.

use crate::params::TensorReader;
use candle_core::Tensor;

/// Reads the state of one parameter, whose tensors are named `<parameter>/<leaf>`.
pub struct StateReader<'a> {
    reader: &'a mut TensorReader,
    parameter: &'a str,
}

impl<'a> StateReader<'a> {
    /// A reader of this parameter's state.
    pub fn new(reader: &'a mut TensorReader, parameter: &'a str) -> Self {
        Self { reader, parameter }
    }

    /// The leaf of this name, of the shape, type and device of `like`.
    pub fn take_like(&mut self, leaf: &str, like: &Tensor) -> anyhow::Result<Tensor> {
        let tensor = self.reader.take_shaped(&name(self.parameter, leaf), like.dims())?;
        Ok(tensor.to_dtype(like.dtype())?.to_device(like.device())?)
    }
}

/// The name of a state tensor in a checkpoint.
pub fn name(parameter: &str, leaf: &str) -> String {
    format!("{parameter}/{leaf}")
}
