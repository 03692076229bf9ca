//! Seconds of one training pass (forward and backward, no optimizer) of a GPT made of the project's operations, and of each operation
//! alone: `cargo bench --bench ops -- [dense | RANK] [THREADS]`. The shape: 6 layers, 384 wide, 6 heads, block 256, vocabulary 4096, batch 8.

use candle_core::{Device, Result, Tensor};
use lrpt::ops::{self, Gradients, LowRankWeight, Tape, Value};
use lrpt::rng;
use std::time::{Duration, Instant};

const LAYERS: usize = 6;
const WIDTH: usize = 384;
const HEADS: usize = 6;
const BLOCK: usize = 256;
const VOCABULARY: usize = 4096;
const BATCH: usize = 8;
const ROWS: usize = BATCH * BLOCK;

/// A weight of the network: dense (m × n), or U (m × r), S (r × r), V (n × r).
enum Weight {
    Dense(Tensor),
    LowRank(Tensor, Tensor, Tensor),
}

struct Network {
    tokens: Tensor,
    targets: Tensor,
    tables: [Tensor; 2],
    ones: Tensor,
    /// Query, key, value, output, up, down of each layer.
    weights: Vec<[Weight; 6]>,
}

impl Network {
    fn new(rank: Option<usize>) -> Result<Self> {
        let weight = |m: usize, n: usize| -> Result<Weight> {
            Ok(match rank {
                None => Weight::Dense(normal(&[m, n], 0.02)?),
                Some(r) => {
                    let (u, v) = (normal(&[m, r], 1.0 / (m as f64).sqrt())?, normal(&[n, r], 1.0 / (n as f64).sqrt())?);
                    Weight::LowRank(u, Tensor::eye(r, candle_core::DType::F32, &Device::Cpu)?, v)
                }
            })
        };
        let layer = |_| -> Result<[Weight; 6]> {
            let square = || weight(WIDTH, WIDTH);
            Ok([square()?, square()?, square()?, square()?, weight(4 * WIDTH, WIDTH)?, weight(WIDTH, 4 * WIDTH)?])
        };
        let ids =
            |step: u32| Tensor::from_iter((0..ROWS as u32).map(|i| i * step % VOCABULARY as u32), &Device::Cpu)?.reshape((BATCH, BLOCK));
        Ok(Self {
            tokens: ids(7919)?,
            targets: ids(4099)?,
            tables: [normal(&[VOCABULARY, WIDTH], 0.02)?, normal(&[BLOCK, WIDTH], 0.02)?],
            ones: Tensor::ones(WIDTH, candle_core::DType::F32, &Device::Cpu)?,
            weights: (0..LAYERS).map(layer).collect::<Result<_>>()?,
        })
    }

    fn slots(&self) -> usize {
        3 + LAYERS * 14
    }

    fn loss(&self, tape: &Tape) -> Result<Value> {
        let [tokens, positions] = [0, 1].map(|slot| tape.parameter(slot, &self.tables[slot]));
        let norm = |x: &Value, slot| ops::layer_norm(tape, x, &tape.parameter(slot, &self.ones), None, 1e-5);
        let mut x = ops::embedding(tape, &self.tokens, &tokens, &positions)?;
        for (layer, weights) in self.weights.iter().enumerate() {
            let first = 3 + layer * 14;
            // Layers `which` of one input, side by side where they are low-rank, as the model has them.
            let linears = |x: &Value, which: std::ops::Range<usize>| -> Result<Vec<Value>> {
                let low_rank = which.clone().filter_map(|which| match &weights[which] {
                    Weight::Dense(_) => None,
                    Weight::LowRank(u, s, v) => {
                        let (u, v) = (tape.parameter(first + 2 * which, u), tape.parameter(first + 2 * which + 1, v));
                        Some(LowRankWeight { u, s, v, bias: None })
                    }
                });
                let dense = which.clone().filter_map(|which| match &weights[which] {
                    Weight::Dense(w) => Some(ops::linear(tape, x, &tape.parameter(first + 2 * which, w), None)),
                    Weight::LowRank(..) => None,
                });
                let low_rank: Vec<_> = low_rank.collect();
                if low_rank.is_empty() { dense.collect() } else { ops::low_rank_linears(tape, x, low_rank) }
            };
            let linear = |x: &Value, which: usize| Ok::<_, candle_core::Error>(linears(x, which..which + 1)?.remove(0));
            let qkv = linears(&norm(&x, first + 12)?, 0..3)?;
            let mixed = ops::causal_attention(tape, &qkv[0], &qkv[1], &qkv[2], HEADS, None)?;
            x = ops::add(tape, &x, &linear(&mixed, 3)?)?;
            let active = ops::gelu(tape, &linear(&norm(&x, first + 13)?, 4)?)?;
            x = ops::add(tape, &x, &linear(&active, 5)?)?;
        }
        ops::cross_entropy_head(tape, &norm(&x, 2)?, &tokens, &self.targets)
    }

    /// Multiplications and additions of one forward and backward pass; attention counted up to the causal limit, no recomputation.
    fn floating_point_operations(&self) -> f64 {
        let weight = |weight: &Weight| match weight {
            Weight::Dense(w) => w.elem_count(),
            Weight::LowRank(u, _, v) => u.elem_count() + v.elem_count(),
        };
        let weights: usize = self.weights.iter().flatten().map(weight).sum::<usize>() + VOCABULARY * WIDTH;
        6.0 * ROWS as f64 * (weights + LAYERS * WIDTH * BLOCK) as f64
    }
}

fn normal(shape: &[usize], standard_deviation: f64) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(1, "bench", &[shape[0] as u64]), shape.iter().product());
    Tensor::from_iter(numbers.into_iter().map(|x| (x * standard_deviation) as f32), &Device::Cpu)?.reshape(shape)
}

/// Median seconds of `count` runs after two to warm up.
fn median(count: usize, mut run: impl FnMut() -> Result<Duration>) -> Result<f64> {
    run()?;
    run()?;
    let mut times = (0..count).map(|_| Ok(run()?.as_secs_f64())).collect::<Result<Vec<_>>>()?;
    times.sort_by(f64::total_cmp);
    Ok(times[count / 2])
}

/// Prints the forward and backward milliseconds of one operation.
fn operation(name: &str, run: impl Fn(&Tape) -> Result<Value>) -> Result<()> {
    let mut gradients = Gradients::new(8);
    let forward = median(9, || {
        let (tape, started) = (Tape::training(), Instant::now());
        run(&tape)?;
        Ok(started.elapsed())
    })?;
    let backward = median(9, || {
        let tape = Tape::training();
        let y = run(&tape)?;
        gradients.reset();
        let started = Instant::now();
        tape.backward(&y, &mut gradients)?;
        Ok(started.elapsed())
    })?;
    println!("{name:34} forward {:8.2} ms   backward {:8.2} ms", forward * 1e3, backward * 1e3);
    Ok(())
}

fn operations() -> Result<()> {
    let x = normal(&[BATCH, BLOCK, WIDTH], 1.0)?;
    let wide = normal(&[BATCH, BLOCK, 4 * WIDTH], 1.0)?;
    let (square, up, table) = (normal(&[WIDTH, WIDTH], 0.02)?, normal(&[4 * WIDTH, WIDTH], 0.02)?, normal(&[VOCABULARY, WIDTH], 0.02)?);
    let (basis, core) = (normal(&[WIDTH, 96], 0.05)?, normal(&[96, 96], 0.05)?);
    let (positions, ones) = (normal(&[BLOCK, WIDTH], 0.02)?, normal(&[WIDTH], 1.0)?);
    let ids = Tensor::from_iter((0..ROWS as u32).map(|i| i * 7919 % VOCABULARY as u32), &Device::Cpu)?.reshape((BATCH, BLOCK))?;
    operation("linear 384 -> 384", |tape| ops::linear(tape, &tape.parameter(0, &x), &tape.parameter(1, &square), None))?;
    operation("linear 384 -> 1536", |tape| ops::linear(tape, &tape.parameter(0, &x), &tape.parameter(1, &up), None))?;
    let weight = |tape: &Tape, slot| LowRankWeight { u: tape.parameter(slot, &basis), s: &core, v: tape.parameter(slot + 1, &basis), bias: None };
    operation("low_rank_linear 384 -> 384, rank 96", |tape| ops::low_rank_linear(tape, &tape.parameter(0, &x), weight(tape, 1)))?;
    // The sum lets one backward reach all three; it costs two additions of 2048 x 384 numbers.
    let sum = |tape: &Tape, y: Vec<Value>| ops::add(tape, &ops::add(tape, &y[0], &y[1])?, &y[2]);
    operation("three of one input, one by one", |tape| {
        let x = tape.parameter(0, &x);
        let y = [1, 3, 5].map(|slot| ops::low_rank_linear(tape, &x, weight(tape, slot)));
        sum(tape, y.into_iter().collect::<Result<_>>()?)
    })?;
    operation("three of one input, side by side", |tape| {
        let weights = [1, 3, 5].map(|slot| weight(tape, slot));
        sum(tape, ops::low_rank_linears(tape, &tape.parameter(0, &x), weights.into())?)
    })?;
    operation("layer_norm", |tape| ops::layer_norm(tape, &tape.parameter(0, &x), &tape.parameter(1, &ones), None, 1e-5))?;
    operation("gelu 1536", |tape| ops::gelu(tape, &tape.parameter(0, &wide)))?;
    operation("add", |tape| ops::add(tape, &tape.parameter(0, &x), &tape.parameter(1, &x)))?;
    operation("dropout", |tape| ops::dropout(tape, &tape.parameter(0, &x), ops::Dropout { probability: 0.1, key: 1 }))?;
    operation("causal_attention", |tape| {
        ops::causal_attention(tape, &tape.parameter(0, &x), &tape.parameter(1, &x), &tape.parameter(2, &x), HEADS, None)
    })?;
    operation("embedding", |tape| ops::embedding(tape, &ids, &tape.parameter(0, &table), &tape.parameter(1, &positions)))?;
    operation("cross_entropy_head", |tape| ops::cross_entropy_head(tape, &tape.parameter(0, &x), &tape.parameter(1, &table), &ids))
}

/// The best rate of a product of the network's own shape, in operations per second: what the passes are measured against.
fn product_peak() -> Result<f64> {
    let (a, b) = (normal(&[ROWS, WIDTH], 1.0)?, normal(&[WIDTH, 4 * WIDTH], 1.0)?);
    let mut best = f64::INFINITY;
    for _ in 0..30 {
        let started = Instant::now();
        ops::product(&a, &b, false, false)?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (ROWS * WIDTH * 4 * WIDTH) as f64 / best)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let threads = arguments.get(1).map_or(0, |threads| threads.parse().expect("a number of threads"));
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().expect("the first use of the thread pool");
    let rank = arguments.first().filter(|form| *form != "dense").map(|rank| rank.parse().expect("a rank, or `dense`"));
    let peak = product_peak()?;
    println!("product peak {:.0} GFLOP/s on {} threads", peak / 1e9, rayon::current_num_threads());
    let network = Network::new(rank)?;
    let mut gradients = Gradients::new(network.slots());
    let mut halves = [Vec::new(), Vec::new()];
    for step in 0..10 {
        let (tape, started) = (Tape::training(), Instant::now());
        let loss = network.loss(&tape)?;
        let forward = started.elapsed().as_secs_f64();
        gradients.reset();
        tape.backward(&loss, &mut gradients)?;
        if step >= 3 {
            halves[0].push(forward);
            halves[1].push(started.elapsed().as_secs_f64() - forward);
        }
    }
    let [forward, backward] = halves.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    });
    let seconds = forward + backward;
    println!(
        "{}: forward {:.0} ms, backward {:.0} ms, {:.0} tokens/s, {:.2} of the product peak",
        rank.map_or("dense".to_string(), |rank| format!("rank {rank}")),
        forward * 1e3,
        backward * 1e3,
        ROWS as f64 / seconds,
        network.floating_point_operations() / seconds / peak
    );
    operations()
}
