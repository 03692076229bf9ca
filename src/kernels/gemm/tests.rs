use super::instructions::{ALL, PORTABLE};
use super::*;

/// With everything that this processor has.
fn all() -> Vec<Gemm> {
    let portable: &'static Instructions = &PORTABLE;
    let here = ALL.iter().filter(|instructions| (instructions.are_here)());
    here.chain([portable]).map(Gemm).collect()
}

/// Whole numbers below 8, so that sums are exact in f32.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + seed * 11) % 15) as f32 - 7.0).collect()
}

/// A rows × columns part of a larger matrix, transposed or not.
fn matrix(memory: &[f32], (rows, columns): (usize, usize), is_transposed: bool) -> Matrix<'_, f32> {
    let (height, width) = if is_transposed { (columns, rows) } else { (rows, columns) };
    let whole = Matrix::new(memory, height + 3, width + 5).part((2, 3), (height, width));
    if is_transposed { whole.t() } else { whole }
}

fn memory((rows, columns): (usize, usize), seed: usize) -> Vec<f32> {
    numbers((rows + 5) * (columns + 5), seed)
}

fn element(x: &Matrix<f32>, i: usize, j: usize) -> f32 {
    x.numbers()[i * x.strides().0 + j * x.strides().1]
}

fn textbook(a: &Matrix<f32>, b: &Matrix<f32>, i: usize, j: usize) -> f32 {
    (0..a.shape().1).map(|k| element(a, i, k) * element(b, k, j)).sum()
}

const SHAPES: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (6, 8, 16),
    (7, 9, 17),
    (5, 3, 31),
    (13, 300, 33),
    (130, 20, 15),
    (97, 257, 48),
    (2, 0, 3),
    (64, 64, 64),
];

#[test]
fn products_are_those_of_the_textbook_whatever_lies_where() {
    let all = all();
    for ((rows, inner, columns), gemm) in
        SHAPES.into_iter().flat_map(|shape| all.iter().map(move |gemm| (shape, gemm)))
    {
        let (left, right) = (memory((rows, inner), 1), memory((inner, columns), 2));
        for layout in 0..4 {
            let a = matrix(&left, (rows, inner), layout & 1 == 1);
            let b = matrix(&right, (inner, columns), layout & 2 == 2);
            for (alpha, accumulate) in [(1.0, false), (0.5, true)] {
                let stride = columns + 2;
                let mut out = vec![3.0; rows * stride];
                // SAFETY: the output is large enough and borrowed by nobody else.
                unsafe { gemm.multiply_at(out.as_mut_ptr(), stride, [a, b], alpha, accumulate) };
                for i in 0..rows {
                    for j in 0..stride {
                        let start = if accumulate { 3.0 } else { 0.0 };
                        let expected = match j < columns {
                            true => start + alpha * textbook(&a, &b, i, j),
                            false => 3.0,
                        };
                        let at = format!("({i}, {j}) of {rows} x {inner} x {columns}, {layout}");
                        assert_eq!(out[i * stride + j], expected, "{at}");
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "inner dimensions of a product")]
fn factors_that_do_not_fit_are_refused() {
    let (left, right) = (numbers(6, 1), numbers(8, 2));
    let (a, b) = (Matrix::new(&left, 2, 3), Matrix::new(&right, 4, 2));
    Gemm(&PORTABLE).multiply(&mut [0.0; 4], [a, b], false);
}

/// However many threads share a product, whether its right factor is copied, and whatever it is made
/// with: the same bits.
#[test]
fn results_depend_neither_on_threads_nor_on_tiles_nor_on_instructions() {
    let fractions = |count, seed| -> Vec<f32> {
        numbers(count, seed).iter().enumerate().map(|(i, x)| x / (3.0 + i as f32)).collect()
    };
    let (rows, inner, columns) = if cfg!(miri) { (40, 9, 40) } else { (60, 9000, 150) };
    let (left, right) = (fractions(rows * inner, 3), fractions(inner * columns, 4));
    for layout in 0..4 {
        let a = match layout & 1 {
            0 => Matrix::new(&left, rows, inner),
            _ => Matrix::new(&left, inner, rows).t(),
        };
        let b = match layout & 2 {
            0 => Matrix::new(&right, inner, columns),
            _ => Matrix::new(&right, columns, inner).t(),
        };
        let on_threads = |gemm: Gemm, threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![0.25; rows * columns];
            pool.expect("threads").install(|| gemm.multiply(&mut out, [a, b], true));
            out
        };
        let alone = on_threads(Gemm(&PORTABLE), 1);
        for (gemm, row) in all().into_iter().zip([0, 1, rows - 1].into_iter().cycle()) {
            assert!(on_threads(gemm, 1) == alone && on_threads(gemm, 3) == alone);
            let mut out = vec![0.25; columns];
            let part = a.part((row, 0), (1, inner));
            // SAFETY: one row, borrowed by nobody else.
            unsafe { gemm.multiply_at(out.as_mut_ptr(), columns, [part, b], 1.0, true) };
            assert_eq!(out, alone[row * columns..][..columns], "a row by itself");
        }
    }
}
