//! The products of a step's forward and backward passes alone, each again and again with factors of
//! its own: the rate that its shape allows here and now, beside the one that it has within a step.

use super::product_peak::time_product;
use super::report::median;
use crate::ops::profile::{Operation, Profile};
use candle_core::{DType, Device, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Time spent on each product: enough for the median not to be that of a disturbance.
const TIME_PER_PRODUCT: Duration = Duration::from_millis(60);

/// Seconds of one call of each product of a step, alone: by its name and shape.
#[derive(Debug, Default)]
pub(super) struct Alone(BTreeMap<(&'static str, [usize; 3]), f64>);

impl Alone {
    /// Times every product among these operations, by the kernels and threads that they had, with
    /// factors of ones, whose result is written and not added to what is there.
    ///
    /// # Errors
    /// If there is too little memory.
    pub fn measure(profile: &Profile) -> Result<Self> {
        let mut seconds = BTreeMap::new();
        for operation in profile.keys() {
            let Some(transposed) = operation.transposed_factors() else { continue };
            let Operation { name, shape, .. } = *operation;
            // Products of both passes that are alike are timed once.
            if seconds.contains_key(&(name, shape)) {
                continue;
            }
            let [rows, inner, columns] = shape;
            let mut calls = time_product(
                (rows, inner, columns),
                transposed,
                &Device::Cpu,
                DType::F32,
                TIME_PER_PRODUCT,
            )?;
            seconds.insert((name, shape), median(&mut calls));
        }
        Ok(Self(seconds))
    }

    /// These seconds, by name and shape.
    #[cfg(test)]
    pub fn of<const N: usize>(seconds: [((&'static str, [usize; 3]), f64); N]) -> Self {
        Self(BTreeMap::from(seconds))
    }

    /// Seconds of one call of this operation alone; `None` of what is no product.
    pub fn seconds(&self, operation: &Operation) -> Option<f64> {
        self.0.get(&(operation.name, operation.shape)).copied()
    }
}

/// The products of a step's forward and backward passes, within it and alone.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProductsAlone {
    /// Their floating-point operations in a step, a multiply-add counted as two.
    pub flops: u64,
    /// Seconds that they take in a step.
    pub seconds: f64,
    /// Seconds that as many calls of them take alone.
    pub alone_seconds: f64,
    /// Mean seconds of a step.
    pub step_seconds: f64,
    /// Seconds that a step would take if each of these took what it takes alone: the limit that
    /// their shapes set, all else being as it is.
    pub step_seconds_at_rates_alone: f64,
}

impl fmt::Display for ProductsAlone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "products alone: {:.4} s of {:.4} s a step (the products {:.4} s of {:.4} s)",
            self.step_seconds_at_rates_alone, self.step_seconds, self.alone_seconds, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::product;
    use crate::ops::profile::{Work, profiled, span};
    use candle_core::Tensor;

    /// What is timed alone has the name and shape that the profile saw, whichever factor lies
    /// transposed: it is profiled again here.
    #[test]
    fn every_product_of_a_profile_is_done_again_as_it_was() {
        let ones = |shape: (usize, usize)| {
            Tensor::ones(shape, DType::F32, &Device::Cpu).expect("a tensor")
        };
        let (tall, wide) = (ones((70, 20)), ones((20, 50)));
        let t = |x: &Tensor| x.t().expect("a transpose");
        let step = || {
            let _span = span(|| Work::pass("gelu", &tall, (2, 3)));
            for (a, b) in [
                (tall.clone(), wide.clone()),
                (tall.clone(), t(&ones((50, 20)))),
                (t(&ones((20, 70))), wide.clone()),
                (t(&wide), t(&tall)),
            ] {
                product(&a, &b).expect("a product");
            }
        };
        let ((), profile) = profiled(step);
        let (alone, again) = profiled(|| Alone::measure(&profile).expect("measured"));
        let products: Vec<_> =
            profile.keys().filter(|operation| operation.name != "gelu").collect();
        assert_eq!(products.len(), 4);
        assert_eq!(again.keys().collect::<Vec<_>>(), products);
        for (operation, totals) in &profile {
            let seconds = alone.seconds(operation);
            assert_eq!(seconds.is_some(), totals.cost.operations > 0, "{operation:?}");
            assert!(seconds.is_none_or(|seconds| seconds > 0.0), "{operation:?}");
        }
    }
}
