//! A matrix in host memory, whatever its strides.

use super::Real;
use faer::mat::MatRef;

/// A matrix in memory: element (i, j) at i·row_stride + j·column_stride.
#[derive(Clone, Copy)]
pub struct Matrix<'a, T> {
    numbers: &'a [T],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a, T: Real> Matrix<'a, T> {
    /// A row-major matrix without gaps.
    pub fn new(numbers: &'a [T], rows: usize, columns: usize) -> Self {
        Self::strided(numbers, (rows, columns), (columns, 1))
    }

    /// A matrix of `rows` × `columns` with these distances between rows and between columns.
    ///
    /// # Panics
    /// If it reaches beyond `numbers`.
    pub fn strided(
        numbers: &'a [T],
        (rows, columns): (usize, usize),
        (row_stride, column_stride): (usize, usize),
    ) -> Self {
        let last = || {
            let row = rows.checked_sub(1)?.checked_mul(row_stride)?;
            row.checked_add(columns.checked_sub(1)?.checked_mul(column_stride)?)
        };
        assert!(
            rows == 0 || columns == 0 || last().is_some_and(|last| last < numbers.len()),
            "a {rows} x {columns} matrix reaches beyond its memory"
        );
        Self { numbers, rows, columns, row_stride, column_stride }
    }

    /// The transpose, without moving anything.
    pub fn t(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Whether its columns lie without gaps and its rows do not.
    pub fn is_transposed(&self) -> bool {
        self.row_stride == 1 && self.column_stride != 1
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }

    /// Distances between rows and between columns.
    pub fn strides(&self) -> (usize, usize) {
        (self.row_stride, self.column_stride)
    }

    /// Its memory, from the first element on.
    pub fn numbers(&self) -> &'a [T] {
        self.numbers
    }

    /// The same matrix, of which the caller knows that its numbers are of this type.
    ///
    /// # Panics
    /// If they are of another.
    pub fn cast<U: Real>(self) -> Matrix<'a, U> {
        assert_eq!(T::TYPE, U::TYPE);
        // SAFETY: the two types are one, since each has a `DType` of its own.
        let numbers =
            unsafe { std::slice::from_raw_parts(self.numbers.as_ptr().cast(), self.numbers.len()) };
        let Self { rows, columns, row_stride, column_stride, .. } = self;
        Matrix { numbers, rows, columns, row_stride, column_stride }
    }

    /// The rows × columns part whose first element is (row, column).
    pub fn part(&self, (row, column): (usize, usize), (rows, columns): (usize, usize)) -> Self {
        let start = row * self.row_stride + column * self.column_stride;
        Self::strided(
            &self.numbers[start.min(self.numbers.len())..],
            (rows, columns),
            (self.row_stride, self.column_stride),
        )
    }

    /// As faer takes it.
    pub fn view(&self) -> MatRef<'a, T> {
        // SAFETY: `strided` checked the extent against the slice.
        unsafe {
            MatRef::from_raw_parts(
                self.numbers.as_ptr(),
                self.rows,
                self.columns,
                self.row_stride as isize,
                self.column_stride as isize,
            )
        }
    }
}
