//! Speed and memory: training steps on random tokens, timed by phase and compared with the
//! operations and bytes that the ledger counts; and what this machine offers.
//!
//! ```text
//! steps          a plan's training steps on random tokens, timed -> Report
//! report         the figures of a benchmark, as a table and as JSON
//! by_operation   where the time of forward and backward goes, operation by operation
//! alone          what its products take alone, each again and again
//! low_rank_parts where the low-rank optimizer's time goes, part by part
//! growth         seconds and operations of a step against one setting, with fitted exponents
//! product_peak   the largest rate of matrix products in this process
//! timings        how long steps took here, kept for later
//! machine        threads, SIMD level, memory, devices, and what would slow training down
//! ```

mod alone;
mod by_operation;
mod growth;
mod low_rank_parts;
mod machine;
mod product_peak;
mod report;
mod steps;
mod timings;

pub use alone::ProductsAlone;
pub use by_operation::{OperationRow, OperationTable};
pub use growth::{Exponents, Growth, GrowthPoint, growth};
pub use low_rank_parts::LowRankParts;
pub use machine::{DeviceState, Machine, Simd, available_memory};
pub use product_peak::{ProductPeak, product_peak};
pub use report::{Memory, Operations, Report, SecondsPerStep, Shape};
pub use steps::{StepCounts, measure, seconds_per_step};
pub use timings::{Expected, Timing, Timings, kind_of_step};
