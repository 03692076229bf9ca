//! Does a device compute what the CPU computes? Every operation with its gradient, the linear
//! algebra, a step of every optimizer, a short training, checkpoints between devices, memory.
//!
//! ```text
//! operations   each operation on the device, in f32 and with bf16 products, against the CPU kernels in f64
//! algebra      stacks of matrices on the device in f32 against the host path in f64
//! training     steps and a short run on the device against the CPU kernels, a checkpoint carried over, memory after a run
//! ```
//!
//! On the CPU the device's side is the portable path with the device linear algebra: the code that
//! a GPU runs.

mod algebra;
mod operations;
mod training;

pub use algebra::Sizes;

use candle_core::{DType, Device, Result, Tensor};

/// One comparison.
#[derive(Clone, Debug)]
pub struct Check {
    /// What kind of comparison.
    pub group: String,
    /// What is compared.
    pub name: String,
    /// How far apart the two sides are, or why there is nothing to compare.
    pub error: std::result::Result<f64, String>,
    /// How far apart they may be.
    pub bound: f64,
}

impl Check {
    fn new(
        group: impl Into<String>,
        name: impl Into<String>,
        bound: f64,
        error: anyhow::Result<f64>,
    ) -> Self {
        Self {
            group: group.into(),
            name: name.into(),
            error: error.map_err(|error| format!("{error:#}")),
            bound,
        }
    }

    /// Whether the two sides agree.
    pub fn passes(&self) -> bool {
        // Not `error > bound`, which a NaN would pass.
        self.error.as_ref().is_ok_and(|error| *error <= self.bound)
    }
}

/// Runs all comparisons, handing over each as it is made; `steps` is the length of the short
/// training.
pub fn run(device: &Device, steps: u64, found: &mut dyn FnMut(Check)) {
    operations::run(device, found);
    algebra::run(device, Sizes::default(), found);
    training::run(device, steps, found);
}

/// Compares the linear algebra alone, on matrices of these sizes.
pub fn run_linear_algebra(device: &Device, sizes: Sizes, found: &mut dyn FnMut(Check)) {
    algebra::run(device, sizes, found);
}

/// A tensor on a device in a type; whole numbers keep theirs.
fn placed(x: &Tensor, dtype: DType, device: &Device) -> Result<Tensor> {
    let x = if x.dtype().is_float() { x.to_dtype(dtype)? } else { x.clone() };
    x.to_device(device)
}

/// The numbers of a tensor, in f64 on the host.
fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

/// The largest difference between two lists of numbers, relative to the largest of the second.
fn distance(found: &[f64], expected: &[f64]) -> Result<f64> {
    if found.len() != expected.len() {
        candle_core::bail!("{} numbers where {} were expected", found.len(), expected.len())
    }
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |max, x| max.max(x.abs()));
    // A sum keeps NaN, which `max` would drop.
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs() / largest);
    Ok(worst.fold(
        0.0,
        |max: f64, error| if error.is_nan() { f64::NAN } else { max.max(error) + 0.0 * max },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distance_sees_what_is_not_a_number() {
        assert_eq!(distance(&[1.0, 2.0], &[1.0, 4.0]).unwrap(), 0.5);
        assert!(distance(&[f64::NAN, 2.0], &[1.0, 2.0]).unwrap().is_nan());
        assert!(distance(&[1.0], &[1.0, 2.0]).is_err());
        assert!(!Check::new("", "", 1.0, Ok(f64::NAN)).passes());
        assert!(!Check::new("", "", 1.0, Err(anyhow::anyhow!("broken"))).passes());
        assert!(Check::new("", "", 1.0, Ok(0.5)).passes());
    }
}
