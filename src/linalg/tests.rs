//! Factorisations over a grid of sizes, dtypes and degenerate inputs.

use super::*;
use crate::rng;
use candle_core::{DType, Device, Result, Tensor};

const DTYPES: [(DType, f64); 2] = [(DType::F32, 1e-5), (DType::F64, 1e-12)];
const SIZES: [(usize, usize); 9] =
    [(1, 1), (5, 1), (1, 5), (7, 7), (40, 9), (9, 40), (130, 64), (384, 96), (200, 199)];

fn normal(rows: usize, columns: usize, seed: u64, dtype: DType) -> Tensor {
    let numbers = rng::normals(
        &mut rng::stream(seed, "linalg tests", &[rows as u64, columns as u64]),
        rows * columns,
    );
    Tensor::from_vec(numbers, (rows, columns), &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn distance(a: &Tensor, b: &Tensor) -> f64 {
    frobenius_norm(&(a - b).unwrap()).unwrap()
}

fn diagonal(values: &[f64], dtype: DType) -> Tensor {
    let rows: Vec<f64> = (0..values.len() * values.len())
        .map(|k| if k / values.len() == k % values.len() { values[k / values.len()] } else { 0.0 })
        .collect();
    Tensor::from_vec(rows, (values.len(), values.len()), &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// A matrix with the given singular values and random singular vectors.
fn with_singular_values(rows: usize, columns: usize, sigma: &[f64], seed: u64) -> Tensor {
    let (u, _) = qr(&normal(rows, sigma.len(), seed, DType::F64)).unwrap();
    let (v, _) = qr(&normal(columns, sigma.len(), seed + 1, DType::F64)).unwrap();
    multiply(&multiply(&u, &diagonal(sigma, DType::F64)).unwrap(), &v.t().unwrap()).unwrap()
}

#[test]
fn qr_reconstructs_with_an_upper_triangular_factor_of_positive_diagonal() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        for (rows, columns) in SIZES {
            for factorise in [qr, cholesky_qr] {
                let a = normal(rows, columns, 1, dtype);
                let (q, r) = factorise(&a)?;
                let count = rows.min(columns);
                assert_eq!((q.dims2()?, r.dims2()?), ((rows, count), (count, columns)));
                let scale = frobenius_norm(&a)?;
                assert!(
                    distance(&multiply(&q, &r)?, &a) < tolerance * scale,
                    "{rows} x {columns} {dtype:?}"
                );
                assert!(
                    orthonormality_defect(&q)? < tolerance,
                    "{rows} x {columns} {dtype:?}: {}",
                    orthonormality_defect(&q)?
                );
                let r = r.to_dtype(DType::F64)?.to_vec2::<f64>()?;
                assert!(
                    (0..count)
                        .all(|i| r[i][i] > 0.0 && r[i][..i].iter().all(|&below| below == 0.0))
                );
            }
        }
    }
    Ok(())
}

#[test]
fn both_qr_factorisations_agree_on_an_ill_conditioned_matrix() -> Result<()> {
    for (dtype, worst, tolerance) in [(DType::F32, 1e-5, 1e-5), (DType::F64, 1e-13, 1e-12)] {
        let sigma: Vec<f64> = (0..40).map(|i| f64::powf(worst, i as f64 / 39.0)).collect();
        let a = with_singular_values(150, 40, &sigma, 3).to_dtype(dtype)?;
        let (q, r) = cholesky_qr(&a)?;
        assert!(orthonormality_defect(&q)? < tolerance, "{dtype:?} {}", orthonormality_defect(&q)?);
        assert!(distance(&multiply(&q, &r)?, &a) < tolerance, "{dtype:?}");
        let (reference, _) = qr(&a)?;
        // The leading directions are determined to (machine epsilon / their singular value).
        assert!(distance(&q.narrow(1, 0, 3)?, &reference.narrow(1, 0, 3)?) < 1e-4);
    }
    Ok(())
}

#[test]
fn qr_of_dependent_columns_still_has_an_orthonormal_factor() -> Result<()> {
    let column = normal(20, 1, 5, DType::F64);
    let a = Tensor::cat(&[&column, &column, &column.zeros_like()?, &(&column * 2.0)?], 1)?;
    for factorise in [qr, cholesky_qr] {
        let (q, r) = factorise(&a)?;
        assert!(orthonormality_defect(&q)? < 1e-13);
        assert!(distance(&multiply(&q, &r)?, &a) < 1e-13);
    }
    Ok(())
}

#[test]
fn svd_reconstructs_and_sorts() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        for (rows, columns) in SIZES {
            let a = normal(rows, columns, 2, dtype);
            let Svd { u, sigma, v } = svd(&a)?;
            let rebuilt = multiply(&multiply(&u, &diagonal(&sigma, dtype))?, &v.t()?)?;
            assert!(distance(&rebuilt, &a) < tolerance * frobenius_norm(&a)?, "{rows} x {columns}");
            assert!(orthonormality_defect(&u)?.max(orthonormality_defect(&v)?) < tolerance);
            assert!(
                sigma.windows(2).all(|pair| pair[0] >= pair[1])
                    && sigma.iter().all(|&value| value >= 0.0)
            );
        }
    }
    let sigma = [1.0, 0.5, 1e-3, 1e-9, 1e-12];
    for (found, expected) in svd(&with_singular_values(12, 9, &sigma, 4))?.sigma.iter().zip(sigma) {
        assert!((found - expected).abs() < 1e-14, "{found} {expected}");
    }
    Ok(())
}

#[test]
fn newton_schulz_reaches_the_polar_factor_within_its_stated_error() -> Result<()> {
    for (rows, columns) in [(1, 1), (24, 24), (60, 24), (24, 60)] {
        let count = rows.min(columns);
        let sigma: Vec<f64> =
            (0..count).map(|i| 30.0 * f64::powf(2e-3, i as f64 / count as f64)).collect();
        let a = with_singular_values(rows, columns, &sigma, 6);
        let exact = polar(&a)?;
        assert!(
            distance(&polar_by_polynomials(&a, &PolarPolynomials::new(1e-3, 9))?, &exact) < 1e-10
        );
        let rough = svd(&polar_newton_schulz(&a)?)?.sigma;
        let error = PolarPolynomials::default().error();
        assert!(rough.iter().all(|value| (value - 1.0).abs() <= error), "{rough:?}");
        let single = polar_newton_schulz(&a.to_dtype(DType::F32)?)?.to_dtype(DType::F64)?;
        assert!(distance(&single, &polar_newton_schulz(&a)?) < 1e-3);
        // A polar factor does not depend on scale, however small.
        let scaled =
            polar_newton_schulz(&(&a * 1e-30)?.to_dtype(DType::F32)?)?.to_dtype(DType::F64)?;
        assert!(distance(&scaled, &polar_newton_schulz(&a)?) < 1e-3);
    }
    Ok(())
}

#[test]
fn newton_schulz_leaves_zero_directions_at_zero() -> Result<()> {
    let a = with_singular_values(30, 20, &[2.0, 1.0, 0.5], 7).to_dtype(DType::F32)?;
    let sigma = svd(&polar_newton_schulz(&a)?)?.sigma;
    assert!(
        sigma[..3].iter().all(|value| (value - 1.0).abs() < 0.12) && sigma[3] < 1e-3,
        "{sigma:?}"
    );
    let zero = a.zeros_like()?;
    assert_eq!(frobenius_norm(&polar_newton_schulz(&zero)?)?, 0.0);
    let infinite = (zero + f64::INFINITY)?;
    assert!(polar_newton_schulz(&infinite).unwrap_err().to_string().contains("not finite"));
    Ok(())
}

#[test]
fn inverse_square_root_undoes_a_covariance() -> Result<()> {
    let x = normal(50, 12, 8, DType::F64);
    let covariance = multiply(&x.t()?, &x)?;
    let root = inverse_square_root(&covariance, 0.0)?;
    let whitened = multiply(&multiply(&root, &covariance)?, &root)?;
    assert!(distance(&whitened, &Tensor::eye(12, DType::F64, &Device::Cpu)?) < 1e-12);
    // (4 + 0.5 · 2.5)^-½ and (1 + 0.5 · 2.5)^-½
    let found = inverse_square_root(&diagonal(&[4.0, 1.0], DType::F64), 0.5)?;
    assert!(
        distance(&found, &diagonal(&[5.25f64.sqrt().recip(), 1.5f64.recip()], DType::F64)) < 1e-15
    );
    assert_eq!(frobenius_norm(&inverse_square_root(&found.zeros_like()?, 0.1)?)?, 0.0);
    Ok(())
}

#[test]
fn reorthonormalize_finds_the_closest_orthonormal_matrix() -> Result<()> {
    let drifted =
        (qr(&normal(60, 10, 9, DType::F64))?.0 + (normal(60, 10, 10, DType::F64) * 1e-3)?)?;
    let closest = reorthonormalize(&drifted)?;
    assert!(orthonormality_defect(&closest)? < 1e-13);
    assert!(distance(&closest, &polar(&drifted)?) < 1e-12);
    Ok(())
}

/// QᵀQ = I, BᵀQ = 0, and D − B BᵀD = Q R.
fn check_directions(
    basis: &Tensor,
    directions: &Tensor,
    tolerance: f64,
) -> Result<(Tensor, Tensor)> {
    let (q, r) = orthonormal_directions(basis, directions)?;
    let count = directions.dim(1)?.min(basis.dim(0)? - basis.dim(1)?);
    assert_eq!((q.dims2()?, r.dims2()?), ((basis.dim(0)?, count), (count, directions.dim(1)?)));
    assert!(orthonormality_defect(&q)? < tolerance, "defect {}", orthonormality_defect(&q)?);
    assert!(frobenius_norm(&multiply(&basis.t()?, &q)?)? < tolerance);
    let outside = add_product(1.0, directions, -1.0, basis, &multiply(&basis.t()?, directions)?)?;
    let error = distance(&multiply(&q, &r)?, &outside);
    assert!(error <= tolerance * frobenius_norm(directions)?, "reconstruction {error}");
    Ok((q, r))
}

fn zero_rows(r: &Tensor) -> usize {
    r.to_dtype(DType::F64)
        .unwrap()
        .to_vec2::<f64>()
        .unwrap()
        .iter()
        .filter(|row| row.iter().all(|&x| x == 0.0))
        .count()
}

#[test]
fn directions_are_orthonormal_beside_the_basis() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        for (rows, basis_columns, columns) in [
            (384, 96, 96),
            (50, 20, 10),
            (8, 4, 4),
            (7, 5, 5),
            (6, 5, 5),
            (5, 5, 5),
            (9, 0, 3),
            (3, 1, 1),
        ] {
            let basis = qr(&normal(rows, basis_columns.max(1), 11, dtype))?.0.narrow(
                1,
                0,
                basis_columns,
            )?;
            let directions = normal(rows, columns, 12, dtype);
            let (_, r) = check_directions(&basis, &directions, tolerance)?;
            assert_eq!(zero_rows(&r), 0);
            let tangent =
                add_product(1.0, &directions, -1.0, &basis, &multiply(&basis.t()?, &directions)?)?;
            check_directions(&basis, &tangent, tolerance)?;
        }
    }
    Ok(())
}

#[test]
fn zero_and_dependent_directions_carry_no_weight() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        let basis = qr(&normal(40, 6, 13, dtype))?.0;
        let column = |seed| normal(40, 1, seed, dtype);
        let (a, b, zero) = (column(14), column(15), column(14).zeros_like()?);
        let within = multiply(&basis, &normal(6, 1, 16, dtype))?;
        let sum = (&a + &b)?;
        let cases: [(&[&Tensor], usize); 5] = [
            (&[&a, &zero, &b], 1),
            (&[&a, &a, &b, &a], 2),
            (&[&a, &within, &b], 1),
            (&[&zero, &zero], 2),
            (&[&a, &b, &sum], 1),
        ];
        for (columns, expected) in cases {
            let (_, r) = check_directions(&basis, &Tensor::cat(columns, 1)?, tolerance)?;
            assert_eq!(zero_rows(&r), expected, "{dtype:?} {columns:?}");
        }
        // Small, but a direction of its own: kept, with its small weight.
        let tiny = (&b * 1e-9)?;
        let (q, r) = check_directions(&basis, &Tensor::cat(&[&a, &tiny], 1)?, tolerance)?;
        assert_eq!(zero_rows(&r), 0);
        let weight = r.to_dtype(DType::F64)?.to_vec2::<f64>()?[1][1];
        assert!(weight > 1e-9 && weight < 1e-8, "{weight}");
        assert!(orthonormality_defect(&q)? < tolerance);
    }
    Ok(())
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() -> Result<()> {
    let mut numbers = vec![1.0; 12];
    numbers[7] = f64::INFINITY;
    let bad = Tensor::from_vec(numbers, (6, 2), &Device::Cpu)?;
    let basis = qr(&normal(6, 2, 17, DType::F64))?.0;
    for error in [
        qr(&bad).unwrap_err(),
        cholesky_qr(&bad).unwrap_err(),
        orthonormal_directions(&basis, &bad).unwrap_err(),
    ] {
        assert!(error.to_string().contains("(3, 1) is inf"), "{error}");
    }
    Ok(())
}

#[test]
fn views_and_copies_give_the_same_numbers() -> Result<()> {
    let wide = normal(30, 80, 18, DType::F32);
    let view = wide.t()?.narrow(1, 3, 20)?;
    let copy = view.contiguous()?;
    let bits = |t: &Tensor| -> Result<Vec<u32>> {
        Ok(t.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
    };
    assert_eq!(bits(&qr(&view)?.0)?, bits(&qr(&copy)?.0)?);
    assert!(distance(&cholesky_qr(&view)?.0, &cholesky_qr(&copy)?.0) < 1e-5);
    assert_eq!(inner(&view, &copy)?, inner(&copy, &copy)?);
    Ok(())
}

/// What a single matrix on a device takes: the path of stacks with two dimensions, here called on
/// the CPU.
#[test]
fn single_matrices_take_the_path_of_stacks_as_well() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        let (a, basis) = (normal(40, 9, 21, dtype), qr(&normal(40, 6, 22, dtype))?.0);
        let on_device = |basis: Option<&Tensor>, a: &Tensor, beside: usize| {
            let found = orthonormal_stacks::orthonormalize_stacks(&[(basis, a)])?
                .pop()
                .expect("one problem");
            let tolerance = 10.0 * host::epsilon(dtype)?;
            let pick = |index| orthonormal_stacks::pick(a, index);
            found.with_failures(a, a.dim(1)?, pick, |a| match basis {
                None => householder::thin_qr(a),
                Some(basis) => directions::rank_revealing(host::read(basis)?, a, beside, tolerance),
            })
        };
        let dependent = Tensor::cat(&[&a, &a.narrow(1, 0, 2)?], 1)?;
        for (basis, a) in [(None, &a), (Some(&basis), &a), (Some(&basis), &dependent)] {
            let (q, r) = on_device(basis, a, a.dim(1)?)?;
            let (expected_q, expected_r) = match basis {
                None => qr(a)?,
                Some(basis) => orthonormal_directions(basis, a)?,
            };
            assert!(
                distance(&q, &expected_q) < tolerance * 10.0
                    && distance(&r, &expected_r) < tolerance * 100.0,
                "{dtype:?}"
            );
        }
        let square = normal(24, 24, 23, dtype);
        let polynomials = PolarPolynomials::default();
        let difference = distance(
            &newton_schulz::polar_on_device(&square, &polynomials)?,
            &polar_by_polynomials(&square, &polynomials)?,
        );
        assert!(difference < tolerance * 100.0, "{dtype:?}: {difference}");
    }
    Ok(())
}

/// More directions than there is room for beside the bases, as at ranks above half of the width: the
/// new ones span all of it, and nothing is lost.
#[test]
fn stacks_of_more_directions_than_room_are_decided_by_products() -> Result<()> {
    for (dtype, tolerance) in DTYPES {
        for taken in [0, 14] {
            let matrices = |rows, columns, first| {
                (0..3u64).map(move |i| normal(rows, columns, first + i, dtype))
            };
            let stacked = |all: Vec<Tensor>| stack(&all.iter().collect::<Vec<_>>());
            let a = stacked(matrices(20, 25, 40).collect())?;
            let basis = match taken {
                0 => None,
                _ => Some(stacked(
                    matrices(20, taken, 50).map(|x| Ok(qr(&x)?.0)).collect::<Result<_>>()?,
                )?),
            };
            let before = transfers();
            let (q, r) = match &basis {
                Some(basis) => orthonormal_directions(basis, &a)?,
                None => cholesky_qr(&a)?,
            };
            assert!(transfers() - before <= 2 * 5, "a pass takes two, and a matrix none by itself");
            assert_eq!((q.dims(), r.dims()), (&[3, 20, 20 - taken][..], &[3, 20 - taken, 25][..]));
            assert!(orthonormality_defect(&q)? < tolerance * 10.0);
            let mut again = multiply(&q, &r)?;
            if let Some(basis) = &basis {
                let overlap = multiply(&basis.t()?, &q)?;
                assert!(frobenius_norm(&overlap.flatten_to(1)?)? < tolerance * 10.0);
                again = (again + multiply(basis, &multiply(&basis.t()?, &a)?)?)?;
            }
            let lost = (again - &a)?.flatten_to(1)?;
            assert!(frobenius_norm(&lost)? < tolerance * 100.0, "{dtype:?}, {taken} taken");
        }
    }
    Ok(())
}
