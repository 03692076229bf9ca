//! What must never exist as a whole, or stay, does not: attention's T × T scores, the head's logits,
//! what an MLP's last matrix takes; measured at the allocator.

#[path = "support/allocator.rs"]
mod allocator;

use allocator::peak;
use candle_core::{Device, Result, Tensor};
use lrpt::ops::{self, Gradients, Tape};

/// One test, since the count is the process's.
#[test]
fn neither_scores_nor_logits_exist_as_a_whole_and_no_activation_stays() -> Result<()> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build_global()
        .expect("the first use of the thread pool");
    let t = 2048;
    let x = Tensor::ones((1, t, 8), candle_core::DType::F32, &Device::Cpu)?;
    let attention = |x: &Tensor| {
        let tape = Tape::training();
        let [q, k, v] = [0, 1, 2].map(|slot| tape.parameter(slot, x));
        let y = ops::causal_attention(&tape, &q, &k, &v, 1, None)?;
        tape.backward(&y, &mut Gradients::new(3))
    };
    // Every thread's packing memory for products is reserved once, with its first product, whatever
    // the sizes.
    let short = x.narrow(1, 0, 100)?;
    rayon::broadcast(|_| attention(&short)).into_iter().collect::<Result<Vec<()>>>()?;
    attention(&short)?;
    let (bytes, done) = peak(|| attention(&x));
    done?;
    // T × T alone would be 16 MB.
    assert!(bytes < 4 * t * t / 4, "attention took {bytes} bytes");

    let (rows, vocabulary, width) = (4096, 8192, 4);
    let (h, w) = (
        x.reshape((1, t * 2, width))?,
        Tensor::ones((vocabulary, width), candle_core::DType::F32, &Device::Cpu)?,
    );
    let targets = Tensor::zeros((1, rows), candle_core::DType::U32, &Device::Cpu)?;
    let (bytes, done) = peak(|| {
        let tape = Tape::training();
        let loss = ops::cross_entropy_head(
            &tape,
            &tape.parameter(0, &h),
            &tape.parameter(1, &w),
            &targets,
        )?;
        tape.backward(&loss, &mut Gradients::new(2))
    });
    done?;
    // All logits would be 128 MB; a chunk of them is 8 MB.
    assert!(bytes < 4 * rows * vocabulary / 8, "the head took {bytes} bytes");

    // Between up and down a layer is 1 MB wide: before GELU each of 8 stays, after it none.
    let (wide, layers) = (1024, 8);
    let ones = |rows: usize, columns: usize| {
        Tensor::ones((rows, columns), candle_core::DType::F32, &Device::Cpu)
    };
    let (x, up, down) = (ones(256, 16)?, ones(wide, 16)?, ones(16, wide)?);
    let mlp = |layers: usize| {
        let tape = Tape::training();
        let (up, down) = (tape.parameter(0, &up), tape.parameter(1, &down));
        let mut y = tape.parameter(2, &x);
        for _ in 0..layers {
            let inner = ops::gelu(&tape, &ops::linear(&tape, &y, &up, None)?)?;
            y = ops::scaled(&tape, &ops::linear(&tape, &inner, &down, None)?, 1e-4)?;
        }
        tape.backward(&y, &mut Gradients::new(3))
    };
    mlp(1)?;
    let (bytes, done) = peak(|| mlp(layers));
    done?;
    let stage = 4 * 256 * wide;
    assert!(bytes < (layers + 4) * stage, "{layers} MLPs took {bytes} bytes");
    Ok(())
}
