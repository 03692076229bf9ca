//! The parts of a product that are written in a processor's own instructions, and which of them
//! this one has.

#[cfg(all(target_arch = "x86_64", not(miri)))]
mod avx2;
#[cfg(any(test, not(target_arch = "x86_64"), miri))]
mod portable;

use super::Output;
use super::strips::Lines;

/// A tile of a product of at most so many rows and columns: out ← alpha · a b, or out + alpha · a b.
///
/// # Safety
/// The processor has the instructions. Both factors have `inner` steps of the tile's rows and of
/// [`Instructions::columns`] columns, and `out` is valid for the tile's rows and columns.
type Tile = unsafe fn(inner: usize, a: Lines, b: Lines, out: Output, size: (usize, usize));

/// One set of instructions, and the sizes that suit its registers.
pub struct Instructions {
    /// Rows of a tile.
    pub rows: usize,
    /// Columns of a tile.
    pub columns: usize,
    /// Whether this processor has them.
    pub are_here: fn() -> bool,
    /// Whether faer's products are slower than those with these, where they are here.
    pub are_worth_it: fn() -> bool,
    pub tile: Tile,
    /// Sets of `rows` numbers side by side, each set in its part of `to`: of set s, part[rows · k +
    /// i] ← from[rows · s + i + k · distance]. Panics if `from` ends before the last number.
    pub copy_sets: fn(from: &[f32], distance: usize, sets: usize, to: &mut [f32]),
    /// to[columns · k + j] ← from[k + j · distance] for j < columns. Panics if `from` ends before
    /// the last number, or the processor lacks the instructions.
    pub copy_transposed: fn(from: &[f32], distance: usize, to: &mut [f32]),
}

/// All that there are.
#[cfg(all(target_arch = "x86_64", not(miri)))]
pub const ALL: &[Instructions] = &[avx2::INSTRUCTIONS];
#[cfg(not(all(target_arch = "x86_64", not(miri))))]
pub const ALL: &[Instructions] = &[portable::INSTRUCTIONS];

/// What tests can use anywhere.
#[cfg(test)]
pub const PORTABLE: Instructions = portable::INSTRUCTIONS;

impl Instructions {
    /// Those that this processor has and that are faster than faer's products.
    #[inline]
    pub fn chosen() -> Option<&'static Self> {
        ALL.iter().find(|instructions| (instructions.are_here)() && (instructions.are_worth_it)())
    }
}

/// [`Instructions::copy_sets`] for sets of R: a row is read whole, some rows after it was asked for,
/// since the processor does not foresee reading at such distances.
fn copy_sets<const R: usize>(from: &[f32], distance: usize, sets: usize, to: &mut [f32]) {
    let (width, set) = (sets * R, to.len() / sets.max(1));
    for k in 0..set / R {
        let line = &from[k * distance..][..width];
        for number in (0..width).step_by(LINE) {
            ask_for(line.as_ptr().wrapping_add(ROWS_AHEAD * distance + number));
        }
        for (index, numbers) in line.as_chunks::<R>().0.iter().enumerate() {
            to[index * set + k * R..][..R].copy_from_slice(numbers);
        }
    }
}

/// Numbers in a line of the cache.
const LINE: usize = 16;
/// Rows between one that is asked for and one that is read.
const ROWS_AHEAD: usize = 8;

/// Asks for the line of the cache with this number, which may lie anywhere.
#[inline(always)]
fn ask_for(number: *const f32) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint; it reads nothing, and no address is wrong for it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(number.cast())
    };
    let _ = number;
}

/// Asks for the line of the cache with this number, to write to it.
#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline(always)]
fn ask_to_write(number: *const f32) {
    // SAFETY: a hint; it writes nothing, and no address is wrong for it.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(number.cast())
    };
}
