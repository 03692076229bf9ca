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

/// zᵀ z in V's slot where inputs are asked for, (δU)ᵀ (δU) in U's where all is; none unasked, and
/// none of a layer that is dense until a cut where inputs are asked for.
#[test]
fn low_rank_linear_measures_what_is_asked_for() -> Result<()> {
    let (u, s, v) = (normal(1, &[7, 2])?, normal(2, &[2, 2])?, normal(3, &[5, 2])?);
    let (x, w) = (normal(4, &[9, 5])?, normal(5, &[7, 5])?);
    let z = x.matmul(&v)?;
    let gram = z.t()?.matmul(&z)?;
    let asks: [fn(&mut Gradients); 3] =
        [|_| (), Gradients::want_input_grams, Gradients::want_grams];
    for (count, ask) in asks.into_iter().enumerate() {
        let tape = Tape::training();
        let [u, v, w, inputs] =
            [(0, &u), (1, &v), (2, &w), (3, &x)].map(|(slot, tensor)| tape.parameter(slot, tensor));
        let x = tape.constant(x.clone());
        let low_rank = ops::low_rank_linear(&tape, &x, &u, &s, &v, None)?;
        let dense = ops::measured_linear(&tape, &x, &w, &inputs, None)?;
        let loss = weighted_sum(&tape, &ops::add(&tape, &low_rank, &dense)?)?;
        let mut gradients = Gradients::new(4);
        ask(&mut gradients);
        tape.backward(&loss, &mut gradients)?;
        let found = [0, 1, 2, 3].map(|slot| gradients.gram(slot).is_some());
        assert_eq!(found, [count == 2, count >= 1, count == 2, count == 2]);
        if let Some(found) = gradients.gram(1) {
            assert!(largest(&numbers(&(found - &gram)?)?) < 1e-12 * largest(&numbers(&gram)?));
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
