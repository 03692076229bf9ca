//! What must never exist as a whole does not: attention's T × T scores and the head's logits,
//! measured at the allocator.

use candle_core::{Device, Result, Tensor};
use lrpt::ops::{self, Gradients, Tape};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// The system's allocator with a count of live bytes and its peak.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes by which `run` raises the peak.
fn peak(run: impl FnOnce() -> Result<()>) -> Result<usize> {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    run()?;
    Ok(PEAK.load(Relaxed) - before)
}

/// One test, since the count is the process's.
#[test]
fn neither_scores_nor_logits_exist_as_a_whole() -> Result<()> {
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
    let bytes = peak(|| attention(&x))?;
    // T × T alone would be 16 MB.
    assert!(bytes < 4 * t * t / 4, "attention took {bytes} bytes");

    let (rows, vocabulary, width) = (4096, 8192, 4);
    let (h, w) = (
        x.reshape((1, t * 2, width))?,
        Tensor::ones((vocabulary, width), candle_core::DType::F32, &Device::Cpu)?,
    );
    let targets = Tensor::zeros((1, rows), candle_core::DType::U32, &Device::Cpu)?;
    let bytes = peak(|| {
        let tape = Tape::training();
        let loss = ops::cross_entropy_head(
            &tape,
            &tape.parameter(0, &h),
            &tape.parameter(1, &w),
            &targets,
        )?;
        tape.backward(&loss, &mut Gradients::new(2))
    })?;
    // All logits would be 128 MB; a chunk of them is 8 MB.
    assert!(bytes < 4 * rows * vocabulary / 8, "the head took {bytes} bytes");
    Ok(())
}
