//! Named tensors that must all be used: loading fails on a missing, a mis-shaped and an unconsumed
//! leaf alike.

use anyhow::{Context, bail, ensure};
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Named tensors, each handed out once.
#[derive(Debug)]
pub struct TensorReader {
    source: String,
    tensors: BTreeMap<String, Tensor>,
}

impl TensorReader {
    /// A reader of tensors that came from `source`, which the errors name (a file, say).
    pub fn new(source: impl Into<String>, tensors: Vec<(String, Tensor)>) -> Self {
        Self { source: source.into(), tensors: tensors.into_iter().collect() }
    }

    /// Where the tensors came from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether a tensor of this name is still there to be taken.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Hands out the tensor of this name.
    ///
    /// # Errors
    /// When there is none, or it was taken before.
    pub fn take(&mut self, name: &str) -> anyhow::Result<Tensor> {
        self.tensors.remove(name).with_context(|| {
            format!("{}: no tensor `{name}` is left to read; the file is of another model or optimizer, or of another version", self.source)
        })
    }

    /// Hands out the tensor of this name, which must have this shape.
    ///
    /// # Errors
    /// As [`TensorReader::take`], and when the shape differs.
    pub fn take_shaped(&mut self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor> {
        let tensor = self.take(name)?;
        ensure!(
            tensor.dims() == shape,
            "{}: tensor `{name}` has the shape {:?}, but the model or optimizer needs {shape:?}; was the spec changed?",
            self.source,
            tensor.dims()
        );
        Ok(tensor)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When tensors are left; the message lists them.
    pub fn finish(self) -> anyhow::Result<()> {
        if self.tensors.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self.tensors.keys().map(|name| format!("`{name}`")).collect();
        bail!(
            "{}: {} tensors have no place in this model or optimizer: {}",
            self.source,
            names.len(),
            names.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    fn reader() -> TensorReader {
        let tensor = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        TensorReader::new(
            "model.safetensors",
            ["a", "b", "c"].map(|name| (name.to_string(), tensor.clone())).to_vec(),
        )
    }

    #[test]
    fn every_leaf_must_be_taken_once() {
        let mut all = reader();
        for name in ["b", "a", "c"] {
            assert!(all.contains(name));
            all.take_shaped(name, &[2, 3]).unwrap();
            assert!(!all.contains(name));
        }
        all.finish().unwrap();

        let mut some = reader();
        some.take("b").unwrap();
        insta::assert_snapshot!(
            some.take("b").unwrap_err(),
            @"model.safetensors: no tensor `b` is left to read; the file is of another model or optimizer, or of another version"
        );
        insta::assert_snapshot!(
            some.take_shaped("a", &[3, 2]).unwrap_err(),
            @"model.safetensors: tensor `a` has the shape [2, 3], but the model or optimizer needs [3, 2]; was the spec changed?"
        );
        insta::assert_snapshot!(
            reader().finish().unwrap_err(),
            @"model.safetensors: 3 tensors have no place in this model or optimizer: `a`, `b`, `c`"
        );
    }
}
