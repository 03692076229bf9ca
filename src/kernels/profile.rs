//! Where the time of the operations goes, for whoever asks on the thread that runs them; for all
//! others a span costs one look at a flag.
//!
//! Spans lie within one another: a layer calls products. The time of each is its own, without that
//! of the spans in it.

use super::Matrix;
use super::Real;
use candle_core::Tensor;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// A kind of operation on numbers of one shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Operation {
    /// Its name.
    pub name: &'static str,
    /// Whether it belongs to a backward pass.
    pub is_backward: bool,
    /// Its sizes; of a product rows, inner dimension and columns. 0 where it has fewer.
    pub shape: [usize; 3],
}

impl Operation {
    /// Whether the left and the right factor of a product lie transposed; `None` of what is no
    /// product.
    pub fn transposed_factors(&self) -> Option<[bool; 2]> {
        let ways = [[false, false], [false, true], [true, false], [true, true]];
        ways.into_iter().find(|transposed| product_name(*transposed) == self.name)
    }
}

/// What a product is called, by whether the left and the right factor lie transposed.
fn product_name(transposed: [bool; 2]) -> &'static str {
    match transposed {
        [false, false] => "a b",
        [false, true] => "a bᵀ",
        [true, false] => "aᵀ b",
        [true, true] => "aᵀ bᵀ",
    }
}

/// What an operation has to do at the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations of its products, a multiply-add counted as two.
    pub operations: u64,
    /// Bytes of its inputs and outputs, each once.
    pub bytes: u64,
}

/// An operation, forward and backward.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Its name.
    pub name: &'static str,
    /// Its sizes.
    pub shape: [usize; 3],
    /// What the forward pass has to do.
    pub forward: Cost,
    /// What the backward pass has to do.
    pub backward: Cost,
}

impl Work {
    /// A pass over the numbers of a tensor, which reads or writes as many numbers as it has this
    /// often: forward and backward.
    pub fn pass(name: &'static str, x: &Tensor, (forward, backward): (u64, u64)) -> Self {
        let bytes = (x.elem_count() * x.dtype().size_in_bytes()) as u64;
        let width = x.dims().last().copied().unwrap_or(1);
        let cost = |times: u64| Cost { operations: 0, bytes: times * bytes };
        Self {
            name,
            shape: [x.elem_count() / width.max(1), width, 0],
            forward: cost(forward),
            backward: cost(backward),
        }
    }

    /// Rows of a table read and written, and in the backward pass read, read and written.
    pub fn gathered(name: &'static str, rows: usize, table: &Tensor) -> Self {
        let width = table.dims().last().copied().unwrap_or(1);
        let bytes = (rows * width * table.dtype().size_in_bytes()) as u64;
        let cost = |times: u64| Cost { operations: 0, bytes: times * bytes };
        Self { name, shape: [rows, width, 0], forward: cost(2), backward: cost(3) }
    }

    /// A product, named by how its factors lie: `a b`, `a bᵀ`, `aᵀ b` or `aᵀ bᵀ`.
    pub fn product<T: Real>(a: &Matrix<T>, b: &Matrix<T>, accumulate: bool) -> Self {
        let ((rows, inner), (_, columns)) = (a.shape(), b.shape());
        let outputs = if accumulate { 2 } else { 1 };
        let numbers = rows * inner + inner * columns + outputs * rows * columns;
        let name = product_name([a.is_transposed(), b.is_transposed()]);
        let cost = Cost {
            operations: 2 * (rows * inner * columns) as u64,
            bytes: (numbers * size_of::<T>()) as u64,
        };
        Self { name, shape: [rows, inner, columns], forward: cost, backward: cost }
    }
}

/// Sums over the calls of an operation.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// How often it ran.
    pub calls: u64,
    /// Seconds, without those of operations within.
    pub seconds: f64,
    /// What it had to do.
    pub cost: Cost,
}

/// The operations that ran.
pub type Profile = BTreeMap<Operation, Totals>;

struct Open {
    work: Work,
    is_backward: bool,
    started: Instant,
    within: Duration,
}

#[derive(Default)]
struct Recorder {
    totals: Profile,
    open: Vec<Open>,
}

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    static RECORDER: RefCell<Recorder> = RefCell::default();
}

/// Runs `work` and records the operations that this thread starts meanwhile.
pub fn profiled<T>(work: impl FnOnce() -> T) -> (T, Profile) {
    RECORDER.take();
    IS_ON.set(true);
    let result = work();
    IS_ON.set(false);
    (result, RECORDER.take().totals)
}

/// An operation that runs until this is dropped.
#[must_use = "an operation lasts as long as its span"]
pub struct Span {
    is_on: bool,
    stays_on_its_thread: PhantomData<*const ()>,
}

/// Begins an operation: of the backward pass if the one around it is, else of the forward pass.
#[inline]
pub fn span(work: impl FnOnce() -> Work) -> Span {
    let is_on = IS_ON.get();
    if is_on {
        begin(&work(), false);
    }
    Span { is_on, stays_on_its_thread: PhantomData }
}

/// Begins the backward pass of an operation.
pub fn backward_span(work: Option<Work>) -> Span {
    let is_on = IS_ON.get() && work.is_some();
    if let Some(work) = work.filter(|_| is_on) {
        begin(&work, true);
    }
    Span { is_on, stays_on_its_thread: PhantomData }
}

/// The operation that this thread is in, if operations are recorded.
pub fn innermost() -> Option<Work> {
    if !IS_ON.get() {
        return None;
    }
    RECORDER.with_borrow(|recorder| recorder.open.last().map(|open| open.work))
}

fn begin(work: &Work, is_backward: bool) {
    RECORDER.with_borrow_mut(|recorder| {
        let is_within = recorder.open.last().is_some_and(|outer| outer.is_backward);
        let is_backward = is_backward || is_within;
        let (work, started) = (*work, Instant::now());
        recorder.open.push(Open { work, is_backward, started, within: Duration::ZERO });
    });
}

impl Drop for Span {
    #[inline]
    fn drop(&mut self) {
        if self.is_on {
            end();
        }
    }
}

fn end() {
    RECORDER.with_borrow_mut(|recorder| {
        let Some(Open { work, is_backward, started, within }) = recorder.open.pop() else { return };
        let operation = Operation { name: work.name, is_backward, shape: work.shape };
        let cost = if is_backward { work.backward } else { work.forward };
        let whole = started.elapsed();
        if let Some(outer) = recorder.open.last_mut() {
            outer.within += whole;
        }
        let totals = recorder.totals.entry(operation).or_default();
        totals.calls += 1;
        totals.seconds += whole.saturating_sub(within).as_secs_f64();
        totals.cost.operations += cost.operations;
        totals.cost.bytes += cost.bytes;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{DType, Device};

    #[test]
    fn the_time_of_an_operation_is_without_those_within() {
        let x = Tensor::zeros((2, 3, 4), DType::F32, &Device::Cpu).expect("a tensor");
        let (layer, gate) = (Work::pass("layer", &x, (2, 5)), Work::pass("gate", &x, (1, 1)));
        let run = || {
            let outer = backward_span(Some(layer));
            std::thread::sleep(Duration::from_millis(2));
            for _ in 0..3 {
                let _inner = span(|| gate);
                std::thread::sleep(Duration::from_millis(20));
            }
            drop(outer);
        };
        run();
        let ((), profile) = profiled(run);
        let found: Vec<_> = profile
            .iter()
            .map(|(operation, totals)| (operation.name, operation.shape, totals.calls, totals.cost))
            .collect();
        let bytes = |times: u64| Cost { operations: 0, bytes: times * 24 * 4 };
        assert_eq!(
            found,
            [("gate", [6, 4, 0], 3, bytes(3)), ("layer", [6, 4, 0], 1, bytes(5))],
            "what ran outside of `profiled` is not recorded"
        );
        assert!(profile.keys().all(|operation| operation.is_backward));
        let seconds: Vec<f64> = profile.values().map(|totals| totals.seconds).collect();
        assert!(
            seconds[0] >= 0.06 && seconds[1] >= 0.002 && seconds[1] < seconds[0],
            "{seconds:?}"
        );
        assert!(profiled(|| ()).1.is_empty());
    }

    #[test]
    fn products_are_named_by_how_their_factors_lie() {
        let numbers = [0f32; 12];
        let (a, b) = (Matrix::new(&numbers, 3, 4), Matrix::new(&numbers, 4, 3));
        let work = Work::product(&a, &b, true);
        assert_eq!((work.name, work.shape), ("a b", [3, 4, 3]));
        assert_eq!(work.forward, Cost { operations: 72, bytes: 4 * (12 + 12 + 18) });
        assert_eq!(Work::product(&b.t(), &b, false).name, "aᵀ b");
        assert_eq!(Work::product(&a, &a.t(), false).name, "a bᵀ");
        assert_eq!(Work::product(&b.t(), &a.t(), false).name, "aᵀ bᵀ");
        let factors =
            |name| Operation { name, is_backward: true, shape: [3, 4, 3] }.transposed_factors();
        assert_eq!(factors("a b"), Some([false, false]));
        assert_eq!(factors("a bᵀ"), Some([false, true]));
        assert_eq!(factors("aᵀ b"), Some([true, false]));
        assert_eq!(factors("aᵀ bᵀ"), Some([true, true]));
        assert_eq!(factors("attention"), None);
    }
}
