//! The differentiable operations alone, forward and backward: `cargo bench --bench ops [--
//! FILTER]`.
//!
//! Shapes are those of one micro-batch of shape S in `compare_with_pytorch.py`: 384 wide, 6 heads,
//! block 256, vocabulary 4096, batch 8, on all threads (`RAYON_NUM_THREADS` to change). A whole
//! training step is timed by `lrpt bench`.

use candle_core::{DType, Device, Result, Tensor};
use divan::Bencher;
use lrpt::ops::{self, Gradients, Rotation, Tape, Value};
use lrpt::rng;

const WIDTH: usize = 384;
const HEADS: usize = 6;
const BLOCK: usize = 256;
const VOCABULARY: usize = 4096;
const BATCH: usize = 8;
const RANK: usize = 96;

fn main() {
    divan::main();
}

fn normal(shape: &[usize], standard_deviation: f64) -> Tensor {
    let mut numbers =
        rng::normals(&mut rng::stream(3, "bench", &[shape.len() as u64]), shape.iter().product());
    numbers.iter_mut().for_each(|x| *x *= standard_deviation);
    Tensor::from_vec(numbers, shape, &Device::Cpu)
        .and_then(|x| x.to_dtype(DType::F32))
        .expect("a tensor")
}

fn ids(step: u32) -> Tensor {
    let ids = (0..(BATCH * BLOCK) as u32).map(|i| i * step % VOCABULARY as u32);
    Tensor::from_iter(ids, &Device::Cpu).and_then(|ids| ids.reshape((BATCH, BLOCK))).expect("ids")
}

fn activations(width: usize) -> Tensor {
    normal(&[BATCH, BLOCK, width], 1.0)
}

/// Times `run` on inputs that all want gradients: its forward pass, or the backward pass from its
/// output.
fn time(
    bencher: Bencher,
    backward: bool,
    inputs: Vec<Tensor>,
    run: impl Fn(&Tape, &[Value]) -> Result<Value>,
) {
    let record = || {
        let tape = Tape::training();
        let values: Vec<Value> =
            inputs.iter().enumerate().map(|(slot, input)| tape.parameter(slot, input)).collect();
        let y = run(&tape, &values).expect("the operation succeeds");
        (tape, y)
    };
    let mut gradients = Gradients::new(inputs.len());
    match backward {
        false => bencher.bench_local(record),
        true => bencher.with_inputs(record).bench_local_values(|(tape, y)| {
            gradients.reset();
            tape.backward(&y, &mut gradients).expect("the backward pass succeeds");
        }),
    }
}

#[divan::bench(args = [false, true])]
fn linear_384_to_384(bencher: Bencher, backward: bool) {
    time(bencher, backward, vec![activations(WIDTH), normal(&[WIDTH, WIDTH], 0.02)], |tape, x| {
        ops::linear(tape, &x[0], &x[1], None)
    });
}

#[divan::bench(args = [false, true])]
fn linear_384_to_1536(bencher: Bencher, backward: bool) {
    time(
        bencher,
        backward,
        vec![activations(WIDTH), normal(&[4 * WIDTH, WIDTH], 0.02)],
        |tape, x| ops::linear(tape, &x[0], &x[1], None),
    );
}

#[divan::bench(args = [false, true])]
fn low_rank_linear_384_to_384(bencher: Bencher, backward: bool) {
    let core = normal(&[RANK, RANK], 0.05);
    let basis = || normal(&[WIDTH, RANK], 0.05);
    time(bencher, backward, vec![activations(WIDTH), basis(), basis()], |tape, x| {
        ops::low_rank_linear(tape, &x[0], &x[1], &core, &x[2], None)
    });
}

#[divan::bench(args = [false, true])]
fn layer_norm(bencher: Bencher, backward: bool) {
    time(bencher, backward, vec![activations(WIDTH), normal(&[WIDTH], 1.0)], |tape, x| {
        ops::layer_norm(tape, &x[0], &x[1], None, 1e-5)
    });
}

#[divan::bench(args = [false, true])]
fn rms_norm(bencher: Bencher, backward: bool) {
    time(bencher, backward, vec![activations(WIDTH), normal(&[WIDTH], 1.0)], |tape, x| {
        ops::rms_norm(tape, &x[0], &x[1], 1e-6)
    });
}

#[divan::bench(args = [false, true])]
fn rotary(bencher: Bencher, backward: bool) {
    time(bencher, backward, vec![activations(WIDTH)], |tape, x| {
        let head = WIDTH / HEADS;
        let rotation = Rotation::new(head, 1e4, 0, BLOCK, DType::F32, &Device::Cpu)?;
        ops::rotary(tape, &x[0], &rotation)
    });
}

#[divan::bench(args = [false, true])]
fn swiglu(bencher: Bencher, backward: bool) {
    let wide = || activations(8 * WIDTH / 3);
    time(bencher, backward, vec![wide(), wide()], |tape, x| ops::swiglu(tape, &x[0], &x[1]));
}

#[divan::bench(args = [false, true])]
fn gelu_1536(bencher: Bencher, backward: bool) {
    time(bencher, backward, vec![activations(4 * WIDTH)], |tape, x| ops::gelu(tape, &x[0]));
}

#[divan::bench(args = [false, true])]
fn dropout(bencher: Bencher, backward: bool) {
    time(bencher, backward, vec![activations(WIDTH)], |tape, x| {
        ops::dropout(tape, &x[0], ops::Dropout { probability: 0.1, key: 1 })
    });
}

#[divan::bench(args = [false, true])]
fn causal_attention(bencher: Bencher, backward: bool) {
    let inputs = (0..3).map(|_| activations(WIDTH)).collect();
    time(bencher, backward, inputs, |tape, x| {
        ops::causal_attention(tape, &x[0], &x[1], &x[2], HEADS, None)
    });
}

#[divan::bench(args = [false, true])]
fn embedding(bencher: Bencher, backward: bool) {
    let ids = ids(7919);
    let tables = vec![normal(&[VOCABULARY, WIDTH], 0.02), normal(&[BLOCK, WIDTH], 0.02)];
    time(bencher, backward, tables, |tape, x| ops::embedding(tape, &ids, &x[0], &x[1]));
}

#[divan::bench(args = [false, true])]
fn cross_entropy_head(bencher: Bencher, backward: bool) {
    let targets = ids(4099);
    let inputs = vec![activations(WIDTH), normal(&[VOCABULARY, WIDTH], 0.02)];
    time(bencher, backward, inputs, |tape, x| {
        ops::cross_entropy_head(tape, &x[0], &x[1], &targets)
    });
}
