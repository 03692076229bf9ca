//! Sums over uses and micro-batches, slots whose shape changes, and inference.

use super::*;

/// A value that several operations read gets the sum of their gradients, also when the sum's two
/// parts share memory.
#[test]
fn values_used_more_than_once() -> Result<()> {
    let inputs = [normal(1, &[2, 3, 5])?, normal(2, &[5])?, normal(3, &[5, 5])?];
    check("x + x", &inputs[..1], &|tape, v| ops::add(tape, &v[0], &v[0]))?;
    check("residual block", &inputs, &|tape, v| {
        let x = ops::linear(tape, &v[0], &v[2], None)?;
        let h = ops::layer_norm(tape, &x, &v[1], None, 1e-5)?;
        let [q, k, value] = [
            ops::linear(tape, &h, &v[2], None)?,
            ops::linear(tape, &h, &v[2], None)?,
            ops::gelu(tape, &h)?,
        ];
        let x = ops::add(tape, &x, &ops::causal_attention(tape, &q, &k, &value, 1, None)?)?;
        let doubled = ops::add(tape, &x, &x)?;
        ops::add(tape, &doubled, &ops::gelu(tape, &x)?)
    })
}

/// A small network with every operation; slots: token table, positions, norm weight and bias, W,
/// its bias, U, V.
fn network(
    tape: &Tape,
    parameters: &[Tensor],
    s: &Tensor,
    tokens: &Tensor,
    targets: &Tensor,
) -> Result<Value> {
    let v: Vec<Value> =
        parameters.iter().enumerate().map(|(slot, tensor)| tape.parameter(slot, tensor)).collect();
    let x = ops::embedding(tape, tokens, &v[0], &v[1])?;
    let h = ops::layer_norm(tape, &x, &v[2], Some(&v[3]), 1e-5)?;
    let q = ops::linear(tape, &h, &v[4], Some(&v[5]))?;
    let k = ops::low_rank_linear(tape, &h, &v[6], s, &v[7], Some(&v[5]))?;
    let mixed = ops::causal_attention(tape, &q, &k, &h, 2, None)?;
    let x = ops::add(tape, &x, &ops::gelu(tape, &mixed)?)?;
    ops::cross_entropy_head(tape, &x, &v[0], targets)
}

/// Two micro-batches into the same slots give the sum of each alone, and after a reset the kept
/// buffers hold nothing of the past.
#[test]
fn micro_batches_add_up_and_a_reset_forgets() -> Result<()> {
    let shapes: [&[usize]; 8] = [&[7, 6], &[4, 6], &[6], &[6], &[6, 6], &[6], &[6, 3], &[6, 3]];
    let parameters = shapes
        .iter()
        .enumerate()
        .map(|(draw, shape)| normal(draw as u64, shape))
        .collect::<Result<Vec<_>>>()?;
    let s = normal(50, &[3, 3])?;
    let batches = [
        (ids(&[0, 1, 2, 3, 4, 5, 6, 0], (2, 4))?, ids(&[1, 2, 3, 4, 5, 6, 0, 1], (2, 4))?),
        (ids(&[6, 6, 1, 0, 2, 2], (2, 3))?, ids(&[6, 1, 0, 5, 2, 3], (2, 3))?),
    ];
    for portable in [false, true] {
        let add = |gradients: &mut Gradients, batch: &(Tensor, Tensor)| -> Result<()> {
            let tape = if portable { Tape::training().portable() } else { Tape::training() };
            let loss = network(&tape, &parameters, &s, &batch.0, &batch.1)?;
            tape.backward(&loss, gradients)
        };
        let collect = |gradients: &Gradients| {
            (0..shapes.len())
                .map(|slot| numbers(gradients.get(slot).expect("a gradient")))
                .collect()
        };
        let alone = |batch| -> Result<Vec<Vec<f64>>> {
            let mut gradients = Gradients::new(shapes.len());
            add(&mut gradients, batch)?;
            collect(&gradients)
        };
        let (first, second) = (alone(&batches[0])?, alone(&batches[1])?);
        let mut gradients = Gradients::new(shapes.len());
        add(&mut gradients, &batches[0])?;
        add(&mut gradients, &batches[1])?;
        let both: Vec<Vec<f64>> = collect(&gradients)?;
        for slot in 0..shapes.len() {
            let scale = largest(&both[slot]);
            for ((both, first), second) in both[slot].iter().zip(&first[slot]).zip(&second[slot]) {
                assert!(
                    (both - first - second).abs() < 1e-13 * scale,
                    "slot {slot}: {both} {first} {second}"
                );
            }
        }
        gradients.reset();
        assert!((0..shapes.len()).all(|slot| gradients.get(slot).is_none()));
        add(&mut gradients, &batches[1])?;
        let again: Vec<Vec<f64>> = collect(&gradients)?;
        assert_eq!(again, second);
    }
    Ok(())
}

/// A slot whose parameter changed its shape between steps, as ranks do, gets a gradient of the new
/// shape.
#[test]
fn slots_follow_a_change_of_rank() -> Result<()> {
    let x = normal(1, &[4, 6])?;
    let mut gradients = Gradients::new(2);
    for rank in [3, 5, 2] {
        let (u, v) = (normal(2, &[6, rank])?, normal(3, &[6, rank])?);
        let tape = Tape::training();
        let y = ops::low_rank_linear(
            &tape,
            &tape.constant(x.clone()),
            &tape.parameter(0, &u),
            &Tensor::eye(rank, DType::F64, &Device::Cpu)?,
            &tape.parameter(1, &v),
            None,
        )?;
        gradients.reset();
        tape.backward(&y, &mut gradients)?;
        let expected = Tensor::ones((6, 4), DType::F64, &Device::Cpu)?.matmul(&x.matmul(&v)?)?;
        let found = gradients.get(0).expect("a gradient");
        assert!(largest(&numbers(&(found - expected)?)?) < 1e-12);
    }
    Ok(())
}

#[test]
fn inference_records_nothing() -> Result<()> {
    let tape = Tape::inference();
    let y = ops::gelu(&tape, &tape.parameter(0, &normal(1, &[3])?))?;
    assert!(y.source().is_none());
    let error = tape.backward(&y, &mut Gradients::new(1)).expect_err("nothing to go back along");
    assert!(error.to_string().contains("no parameter influences this value"), "{error}");
    Ok(())
}
