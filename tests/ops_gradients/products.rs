//! Linear maps, dense and low-rank.

use super::*;

#[test]
fn linear() -> Result<()> {
    let inputs = [normal(1, &[2, 3, 5])?, normal(2, &[7, 5])?, normal(3, &[7])?];
    check("linear with bias", &inputs, &|tape, v| ops::linear(tape, &v[0], &v[1], Some(&v[2])))?;
    check("linear", &inputs[..2], &|tape, v| ops::linear(tape, &v[0], &v[1], None))
}

#[test]
fn low_rank_linear_input_and_bias() -> Result<()> {
    let (u, s, v) = (normal(1, &[7, 2])?, normal(2, &[2, 2])?, normal(3, &[5, 2])?);
    // Once with more rows than outputs and inputs and once with fewer: S is applied to the smaller
    // side.
    for rows in [3, 9] {
        check("low_rank_linear", &[normal(4, &[1, rows, 5])?, normal(5, &[7])?], &|tape, x| {
            ops::low_rank_linear(
                tape,
                &x[0],
                &tape.constant(u.clone()),
                &s,
                &tape.constant(v.clone()),
                Some(&x[1]),
            )
        })?;
    }
    Ok(())
}

/// zᵀ z in V's slot, and xᵀ x of a layer that is dense until a cut, where inputs are asked for;
/// (δU)ᵀ (δU) in U's, and δᵀ δ, where all is; xᵀ x of a matrix that stays dense where that is; none
/// unasked.
#[test]
fn linear_layers_measure_what_is_asked_for() -> Result<()> {
    let (u, s, v) = (normal(1, &[7, 2])?, normal(2, &[2, 2])?, normal(3, &[5, 2])?);
    let (x, w) = (normal(4, &[9, 5])?, normal(5, &[7, 5])?);
    let z = x.matmul(&v)?;
    let (gram, whole) = (z.t()?.matmul(&z)?, x.t()?.matmul(&x)?);
    type Ask = fn(&mut Gradients);
    let asks: [(Ask, [bool; 6]); 4] = [
        (|_| (), [false; 6]),
        (Gradients::want_input_grams, [false, true, false, true, false, false]),
        (Gradients::want_grams, [true, true, true, true, false, false]),
        (Gradients::want_dense_input_grams, [false, false, false, false, false, true]),
    ];
    for (ask, expected) in asks {
        let tape = Tape::training();
        let parameters = [(0, &u), (1, &v), (2, &w), (3, &x), (4, &w), (5, &x)];
        let [u, v, w, inputs, dense, dense_inputs] =
            parameters.map(|(slot, tensor)| tape.parameter(slot, tensor));
        let rows = tape.constant(x.clone());
        let low_rank = ops::low_rank_linear(&tape, &rows, &u, &s, &v, None)?;
        let uncut = ops::measured_linear(&tape, &rows, &w, &inputs, None)?;
        let dense = ops::dense_matrix_linear(&tape, &rows, &dense, &dense_inputs, None)?;
        let sum = ops::add(&tape, &ops::add(&tape, &low_rank, &uncut)?, &dense)?;
        let loss = weighted_sum(&tape, &sum)?;
        let mut gradients = Gradients::new(6);
        ask(&mut gradients);
        tape.backward(&loss, &mut gradients)?;
        let found = [0, 1, 2, 3, 4, 5].map(|slot| gradients.gram(slot).is_some());
        assert_eq!(found, expected);
        for (slot, expected) in [(1, &gram), (3, &whole), (5, &whole)] {
            if let Some(found) = gradients.gram(slot) {
                let difference = largest(&numbers(&(found - expected)?)?);
                assert!(difference < 1e-12 * largest(&numbers(expected)?), "slot {slot}");
            }
        }
    }
    Ok(())
}

/// With G = δᵀ x formed: the slot of U gets G V, the slot of V gets Gᵀ U, and dx = δ W for W = U S
/// Vᵀ formed.
#[test]
fn low_rank_linear_outer_gradients_are_those_of_the_dense_gradient() -> Result<()> {
    let (m, n, r) = (13, 11, 4);
    let (u, s, v) = (normal(1, &[m, r])?, normal(2, &[r, r])?, normal(3, &[n, r])?);
    let dense = u.matmul(&s)?.matmul(&v.t()?)?;
    for rows in [6, 40] {
        let x = normal(4, &[rows, n])?;
        let delta = normal(999, &[rows, m])?;
        let euclidean = delta.t()?.matmul(&x)?;
        let expected = [delta.matmul(&dense)?, euclidean.matmul(&v)?, euclidean.t()?.matmul(&u)?];
        for tape in [Tape::training(), Tape::training().portable()] {
            let [x, u, v] =
                [(0, &x), (1, &u), (2, &v)].map(|(slot, tensor)| tape.parameter(slot, tensor));
            let y = ops::low_rank_linear(&tape, &x, &u, &s, &v, None)?;
            let difference = (y.tensor() - x.tensor().matmul(&dense.t()?)?)?;
            assert!(largest(&numbers(&difference)?) < 1e-12);
            let loss = weighted_sum(&tape, &y)?;
            let mut gradients = Gradients::new(3);
            tape.backward(&loss, &mut gradients)?;
            for (slot, expected) in expected.iter().enumerate() {
                let found = gradients.get(slot).expect("a gradient");
                let error = largest(&numbers(&(found - expected)?)?) / largest(&numbers(expected)?);
                assert!(error < 1e-12, "slot {slot}: {error}");
            }
        }
    }
    Ok(())
}
