//! Named tensors as safetensors bytes; equal tensors give equal bytes.

use anyhow::{Context, bail};
use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use std::collections::{BTreeMap, HashMap};

/// The safetensors file of some tensors of any shape, scalars included; neither the order given nor
/// the device changes a byte.
///
/// The metadata is the one entry that Hugging Face's loaders ask for, `format: pt`.
///
/// # Errors
/// When two tensors share a name, a type has no safetensors form in candle, or a tensor cannot be
/// copied to the host.
pub fn encode(tensors: &[(String, Tensor)]) -> anyhow::Result<Vec<u8>> {
    let mut on_host = BTreeMap::new();
    for (name, tensor) in tensors {
        if matches!(tensor.dtype(), DType::F6E2M3 | DType::F6E3M2 | DType::F4 | DType::F8E8M0) {
            bail!(
                "tensor `{name}`: the type {:?} cannot be stored; convert it first",
                tensor.dtype()
            );
        }
        let copy = tensor
            .to_device(&Device::Cpu)
            .with_context(|| format!("tensor `{name}`: not copied to the host"))?;
        if on_host.insert(name.as_str(), copy).is_some() {
            bail!("two tensors are called `{name}`; names must differ");
        }
    }
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    Ok(safetensors::serialize(on_host, Some(metadata))?)
}

/// The tensors of a safetensors file, in the order of their names, on the host.
///
/// # Errors
/// When the bytes are no safetensors file or hold a type that candle lacks.
pub fn decode(bytes: &[u8]) -> anyhow::Result<Vec<(String, Tensor)>> {
    let views: BTreeMap<_, _> = SafeTensors::deserialize(bytes)?.tensors().into_iter().collect();
    let load = |(name, view): (String, safetensors::tensor::TensorView)| {
        let tensor = view.load(&Device::Cpu).with_context(|| format!("tensor `{name}`"))?;
        Ok((name, tensor))
    };
    views.into_iter().map(load).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str, tensor: Tensor) -> (String, Tensor) {
        (name.to_string(), tensor)
    }

    fn examples() -> Vec<(String, Tensor)> {
        let cpu = &Device::Cpu;
        vec![
            named(
                "z.f32",
                Tensor::new(&[[1f32, -2.5, f32::MIN_POSITIVE], [4., 5., f32::NAN]], cpu).unwrap(),
            ),
            named("a.f64", Tensor::new(&[1e-300f64, -0.0, f64::INFINITY], cpu).unwrap()),
            named("m.u32", Tensor::new(&[0u32, u32::MAX], cpu).unwrap()),
            named("scalar", Tensor::new(0.1f64, cpu).unwrap()),
            named("empty", Tensor::zeros((0, 3), DType::F32, cpu).unwrap()),
            named(
                "transposed",
                Tensor::arange(0f32, 6., cpu).unwrap().reshape((2, 3)).unwrap().t().unwrap(),
            ),
        ]
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_and_come_back_exactly() {
        let tensors = examples();
        let reversed: Vec<_> = tensors.iter().rev().cloned().collect();
        let bytes = encode(&tensors).unwrap();
        assert_eq!(bytes, encode(&reversed).unwrap());

        let read = decode(&bytes).unwrap();
        let names: Vec<_> = read.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a.f64", "empty", "m.u32", "scalar", "transposed", "z.f32"]);
        for (name, tensor) in &read {
            let written = &tensors.iter().find(|(other, _)| other == name).unwrap().1;
            assert_eq!(
                (tensor.dims(), tensor.dtype()),
                (written.dims(), written.dtype()),
                "{name}"
            );
        }
        // Bit for bit, the NaN included: the bytes of what was read are the bytes of what was
        // written.
        assert_eq!(encode(&read).unwrap(), bytes);
        let transposed = read[4].1.to_vec2::<f32>().unwrap();
        assert_eq!(transposed, [[0., 3.], [1., 4.], [2., 5.]]);
        assert_eq!(read[0].1.to_vec1::<f64>().unwrap(), [1e-300, -0.0, f64::INFINITY]);
    }

    #[test]
    fn a_name_used_twice_is_refused() {
        let mut tensors = examples();
        tensors.push(tensors[2].clone());
        let error = encode(&tensors).unwrap_err().to_string();
        assert!(error.contains("two tensors are called `m.u32`"), "{error}");
    }
}
