//! Geometry of low-rank matrices, part by part, on one thread as in a training step: `cargo bench
//! --bench geometry [-- FILTER]`.
//!
//! The matrix is 1536 × 384, the MLP of shape S in `compare_with_pytorch.py`; what one DLRA step
//! does to it is one of each but `*_svd`.

use candle_core::{DType, Device, Result, Tensor};
use divan::{Bencher, black_box};
use lrpt::linalg;
use lrpt::lowrank::{Augmentation, BasisChange, LowRank, Tangent};
use lrpt::rng;

const ROWS: usize = 1536;
const COLUMNS: usize = 384;
const RANKS: [usize; 4] = [16, 32, 96, 192];

fn main() {
    rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build_global()
        .expect("the first use of the thread pool");
    divan::main();
}

fn normal(draw: u64, shape: &[usize]) -> Tensor {
    let numbers = rng::normals(&mut rng::stream(3, "bench", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
        .and_then(|x| x.to_dtype(DType::F32))
        .expect("a tensor")
}

fn point(rank: usize) -> LowRank {
    LowRank::random(
        ROWS,
        COLUMNS,
        rank,
        1.0,
        &mut rng::stream(3, "bench point", &[rank as u64]),
        DType::F32,
        &Device::Cpu,
    )
    .expect("a point")
}

fn outer_gradients(rank: usize) -> (Tensor, Tensor) {
    (normal(1, &[ROWS, rank]), normal(2, &[COLUMNS, rank]))
}

fn tangent(point: &LowRank) -> Tangent {
    let (k, l) = outer_gradients(point.rank());
    Tangent::from_outer_gradients(point, &k, &l).expect("a tangent vector")
}

/// The augmentation of a tangent vector, and Ŝ after a step of 0.01.
fn augmented(point: &LowRank) -> (Augmentation, Tensor) {
    let augmentation = Augmentation::new(point, &tangent(point)).expect("an augmentation");
    let coefficients =
        augmentation.coefficients(point, augmentation.core(), 0.01, 0.1).expect("coefficients");
    (augmentation, coefficients)
}

fn time<T>(bencher: Bencher, run: impl Fn() -> Result<T> + Sync) {
    bencher.bench(|| black_box(run().expect("the operation succeeds")));
}

#[divan::bench(args = RANKS)]
fn projection_of_the_gradient(bencher: Bencher, rank: usize) {
    let (point, (k, l)) = (point(rank), outer_gradients(rank));
    time(bencher, || Tangent::from_outer_gradients(&point, &k, &l));
}

#[divan::bench(args = RANKS)]
fn augmentation_qr(bencher: Bencher, rank: usize) {
    let point = point(rank);
    let tangent = tangent(&point);
    time(bencher, || Augmentation::new(&point, &tangent));
}

#[divan::bench(args = RANKS)]
fn polar_factor_by_products(bencher: Bencher, rank: usize) {
    let (augmentation, _) = augmented(&point(rank));
    time(bencher, || linalg::polar_newton_schulz(augmentation.core()));
}

#[divan::bench(args = RANKS)]
fn polar_factor_svd(bencher: Bencher, rank: usize) {
    let (augmentation, _) = augmented(&point(rank));
    time(bencher, || linalg::polar(augmentation.core()));
}

#[divan::bench(args = RANKS)]
fn retraction_by_subspace_iteration(bencher: Bencher, rank: usize) {
    let point = point(rank);
    let (augmentation, coefficients) = augmented(&point);
    time(bencher, || augmentation.retract_subspace(&point, &coefficients));
}

#[divan::bench(args = RANKS)]
fn retraction_svd(bencher: Bencher, rank: usize) {
    let point = point(rank);
    let (augmentation, coefficients) = augmented(&point);
    time(bencher, || augmentation.truncate(&point, &coefficients, &|_| rank));
}

#[divan::bench(args = RANKS)]
fn transport_of_the_first_moment(bencher: Bencher, rank: usize) {
    let (change, tangent) = change(rank);
    time(bencher, || change.transport(&tangent));
}

#[divan::bench(args = RANKS)]
fn transport_of_second_moments(bencher: Bencher, rank: usize) {
    let (change, tangent) = change(rank);
    time(bencher, || change.transport_second_moments(&tangent));
}

fn change(rank: usize) -> (BasisChange, Tangent) {
    let point = point(rank);
    let (augmentation, coefficients) = augmented(&point);
    let retracted = augmentation.retract_subspace(&point, &coefficients).expect("a retraction");
    (
        BasisChange::from_rotations(
            &point,
            &retracted.point,
            retracted.rotation_u,
            retracted.rotation_v,
        ),
        tangent(&point),
    )
}
