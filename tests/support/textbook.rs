//! Dense f64 matrices for textbook versions: to and from tensors, seeded draws, truncated SVDs.

use candle_core::{Device, Tensor};
use faer::Mat;
use lrpt::rng;

/// A 2-D f64 tensor as a matrix.
pub fn dense(x: &Tensor) -> Mat<f64> {
    let rows = x.to_vec2::<f64>().expect("a 2-D f64 tensor");
    Mat::from_fn(rows.len(), rows[0].len(), |i, j| rows[i][j])
}

/// A matrix as a tensor.
pub fn tensor(x: &Mat<f64>) -> Tensor {
    let numbers: Vec<f64> =
        (0..x.nrows()).flat_map(|i| (0..x.ncols()).map(move |j| x[(i, j)])).collect();
    Tensor::from_vec(numbers, (x.nrows(), x.ncols()), &Device::Cpu).expect("matching sizes")
}

/// Standard normal elements, the same on every call with the same arguments.
pub fn random(rows: usize, columns: usize, purpose: &str, index: u64) -> Mat<f64> {
    let numbers = rng::normals(&mut rng::stream(11, purpose, &[index]), rows * columns);
    Mat::from_fn(rows, columns, |i, j| numbers[i * columns + j])
}

/// Bases and singular values of the leading `rank` directions.
pub fn truncated_svd(w: &Mat<f64>, rank: usize) -> (Mat<f64>, Vec<f64>, Mat<f64>) {
    let svd = w.thin_svd().expect("the SVD converges");
    let sigma = (0..rank).map(|i| svd.S().column_vector()[i]).collect();
    (svd.U().subcols(0, rank).to_owned(), sigma, svd.V().subcols(0, rank).to_owned())
}
