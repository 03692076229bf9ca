//! The highest rate of matrix products on this machine at this moment, against which a training
//! step is measured.

use crate::ops::product_into;
use candle_core::{DType, Device, Result, Tensor};
use serde::Serialize;
use std::time::{Duration, Instant};

/// Rows, inner dimension and columns of the products tried: those of the MLPs of small GPTs, and a
/// large square one.
const SHAPES: [(usize, usize, usize); 4] =
    [(2048, 384, 1536), (2048, 1536, 384), (1024, 768, 3072), (1024, 1024, 1024)];
/// Products large enough to keep a device with thousands of cores busy.
const SHAPES_OFF_CPU: [(usize, usize, usize); 2] = [(4096, 4096, 4096), (8192, 8192, 8192)];

/// Time spent on each shape; every product is computed at least twice.
const TIME_PER_SHAPE: Duration = Duration::from_millis(150);

/// The fastest product.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ProductPeak {
    /// Floating-point operations per second, a multiply-add counted as two.
    pub flops_per_second: f64,
    /// Rows, inner dimension, columns.
    pub shape: (usize, usize, usize),
    /// Type of the factors: `f32` or `bf16`.
    pub dtype: &'static str,
}

/// The highest rate of [`ops::product`](crate::ops::product) in this type, with all threads, over a
/// few shapes, with and without a transposed right factor. It takes about a second. The CPU has no
/// half-precision product, so there the rate is that of f32, which training uses instead.
///
/// # Errors
/// If the device fails or has too little memory.
pub fn product_peak(device: &Device, dtype: DType) -> Result<ProductPeak> {
    let (shapes, dtype): (&[_], _) =
        if device.is_cpu() { (&SHAPES, DType::F32) } else { (&SHAPES_OFF_CPU, dtype) };
    let mut peak = ProductPeak { flops_per_second: 0.0, shape: shapes[0], dtype: dtype.as_str() };
    for &shape in shapes {
        for transposed in [false, true] {
            let rate = rate(shape, transposed, device, dtype)?;
            if rate > peak.flops_per_second {
                peak = ProductPeak { flops_per_second: rate, shape, ..peak };
            }
        }
    }
    Ok(peak)
}

/// The best rate of one product, repeated for [`TIME_PER_SHAPE`].
fn rate(
    shape: (usize, usize, usize),
    transposed: bool,
    device: &Device,
    dtype: DType,
) -> Result<f64> {
    let (rows, inner, columns) = shape;
    let seconds = time_product(shape, [false, transposed], device, dtype, TIME_PER_SHAPE)?;
    let best = seconds.into_iter().fold(f64::MAX, f64::min);
    Ok(2.0 * (rows * inner * columns) as f64 / best.max(f64::MIN_POSITIVE))
}

/// Seconds of every call of a product of rows × inner and inner × columns numbers, each factor lying
/// transposed or not, which is computed once and then again and again for this long, once at least.
///
/// # Errors
/// If the device fails or has too little memory.
pub(super) fn time_product(
    (rows, inner, columns): (usize, usize, usize),
    [left, right]: [bool; 2],
    device: &Device,
    dtype: DType,
    time: Duration,
) -> Result<Vec<f64>> {
    // Random, since a GPU multiplies equal numbers faster: they take it less power.
    let random = |(rows, columns): (usize, usize), transposed: bool| -> Result<Tensor> {
        let shape = if transposed { (columns, rows) } else { (rows, columns) };
        let matrix = Tensor::rand(-1f32, 1f32, shape, device)?.to_dtype(dtype)?;
        if transposed { matrix.t() } else { Ok(matrix) }
    };
    let (a, b) = (random((rows, inner), left)?, random((inner, columns), right)?);
    let mut out = Tensor::zeros((rows, columns), dtype, device)?;
    product_into(&mut out, &a, &b, false)?;
    device.synchronize()?;
    let (mut seconds, mut spent) = (Vec::new(), Duration::ZERO);
    while seconds.is_empty() || spent < time {
        let started = Instant::now();
        product_into(&mut out, &a, &b, false)?;
        device.synchronize()?;
        let took = started.elapsed();
        seconds.push(took.as_secs_f64());
        spent += took;
    }
    Ok(seconds)
}
