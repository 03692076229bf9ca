//! bf16 products with f32 parameters: what is rounded, what is not, and that kernels and the
//! portable path round alike.

use candle_core::{DType, Device, Result, Tensor};
use lrpt::ops::{self, AttentionHeads, Compute, Dropout, Gradients, Rotation, Tape, Value};
use lrpt::rng;

fn normal(draw: u64, shape: &[usize]) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(13, "bf16 test", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)?.to_dtype(DType::F32)
}

fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    let largest = b.iter().fold(0.0f64, |max, x| max.max(x.abs()));
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

/// A block of a network: slots token table, positions, norm weight and bias, W, its bias, U, V.
fn block(
    tape: &Tape,
    parameters: &[Tensor],
    s: &Tensor,
    tokens: &Tensor,
    dtypes: &mut Vec<DType>,
) -> Result<Value> {
    let v: Vec<Value> =
        parameters.iter().enumerate().map(|(slot, tensor)| tape.parameter(slot, tensor)).collect();
    let mut see = |value: Value| {
        dtypes.push(value.tensor().dtype());
        value
    };
    let x = see(ops::embedding(tape, tokens, &v[0], &v[1])?);
    let h = see(ops::layer_norm(tape, &x, &v[2], Some(&v[3]), 1e-5)?);
    let q = see(ops::linear(tape, &h, &v[4], Some(&v[5]))?);
    let k = see(ops::low_rank_linear(tape, &h, &v[6], s, &v[7], Some(&v[5]))?);
    let mixed = see(ops::causal_attention(
        tape,
        &q,
        &k,
        &h,
        2,
        Some(Dropout { probability: 0.1, key: 4 }),
    )?);
    let x = see(ops::add(
        tape,
        &x,
        &ops::dropout(tape, &ops::gelu(tape, &mixed)?, Dropout { probability: 0.1, key: 5 })?,
    )?);
    let hidden = see(ops::layer_norm(tape, &x, &v[2], None, 1e-5)?);
    Ok(see(ops::cross_entropy_head(tape, &hidden, &v[0], tokens)?))
}

/// Types of the values, loss, and all gradients.
fn run(compute: Compute) -> Result<(Vec<DType>, f64, Vec<Tensor>)> {
    let shapes: [&[usize]; 8] =
        [&[40, 24], &[40, 24], &[24], &[24], &[24, 24], &[24], &[24, 6], &[24, 6]];
    let parameters = shapes
        .iter()
        .enumerate()
        .map(|(draw, shape)| normal(draw as u64, shape)? * 0.3)
        .collect::<Result<Vec<_>>>()?;
    let ids: Vec<u32> = (0..2 * 37u32).map(|i| i.wrapping_mul(2_654_435_761) % 40).collect();
    let tokens = Tensor::from_vec(ids, (2, 37), &Device::Cpu)?;
    let mut gradients = Gradients::new(parameters.len());
    let (mut dtypes, mut loss) = (Vec::new(), 0.0);
    // Twice into the same slots, as micro-batches do.
    for _ in 0..2 {
        dtypes.clear();
        let tape = Tape::training().computing(compute);
        let value = block(&tape, &parameters, &normal(50, &[6, 6])?, &tokens, &mut dtypes)?;
        loss = ops::scalar(value.tensor())?;
        tape.backward(&value, &mut gradients)?;
    }
    let gradients = (0..parameters.len())
        .map(|slot| gradients.get(slot).expect("a gradient").clone())
        .collect();
    Ok((dtypes, loss, gradients))
}

#[test]
fn activations_are_bf16_and_everything_that_is_kept_is_f32() -> Result<()> {
    use DType::{BF16, F32};
    for kernels in [true, false] {
        let (dtypes, loss, gradients) = run(Compute { kernels, half: Some(BF16) })?;
        // Embedding, norm, linear, low-rank linear, attention, residual sum, norm, loss.
        assert_eq!(dtypes, [F32, BF16, BF16, BF16, BF16, F32, BF16, F32], "kernels {kernels}");
        assert!(gradients.iter().all(|gradient| gradient.dtype() == F32));
        let (_, exact, expected) = run(Compute { kernels: true, half: None })?;
        assert!(
            (loss - exact).abs() < 0.02 && loss != exact,
            "kernels {kernels}: {loss} and {exact}"
        );
        for (slot, (found, expected)) in gradients.iter().zip(&expected).enumerate() {
            let error = distance(&numbers(found)?, &numbers(expected)?);
            // Rounding to 8 binary digits shows, and no more than that.
            assert!(error > 1e-5 && error < 0.05, "kernels {kernels}, slot {slot}: {error}");
        }
    }
    Ok(())
}

#[test]
fn kernels_and_portable_path_round_alike() -> Result<()> {
    let [kernels, portable] =
        [true, false].map(|kernels| run(Compute { kernels, half: Some(DType::BF16) }));
    let ((_, a, kernels), (_, b, portable)) = (kernels?, portable?);
    assert!((a - b).abs() < 5e-3, "{a} and {b}");
    for (slot, (a, b)) in kernels.iter().zip(&portable).enumerate() {
        let error = distance(&numbers(a)?, &numbers(b)?);
        assert!(error < 0.02, "slot {slot}: {error}");
    }
    Ok(())
}

/// The operations of a Llama: norms read the residual stream in f32 and give bf16, turns and gates
/// give the type that they are given; kernels and portable path round alike, near the exact ones.
#[test]
fn operations_of_a_llama_round_as_the_others() -> Result<()> {
    let run = |compute: Compute| -> Result<(Vec<DType>, Vec<Vec<f64>>)> {
        let tape = Tape::training().computing(compute);
        let inputs = [normal(1, &[2, 9, 24])?, normal(2, &[24])?, normal(3, &[24, 24])?];
        let [x, weight, w] = [0, 1, 2].map(|slot| tape.parameter(slot, &inputs[slot]));
        let h = ops::rms_norm(&tape, &x, &weight, 1e-6)?;
        let rotation = Rotation::new(6, 1e4, 0, 9, DType::F32, &Device::Cpu)?;
        let turned = ops::rotary(&tape, &ops::linear(&tape, &h, &w, None)?, &rotation)?;
        let gated = ops::swiglu(&tape, &turned, &h)?;
        let types = [&h, &turned, &gated].map(|value| value.tensor().dtype()).to_vec();
        let mut found = vec![numbers(gated.tensor())?];
        let mut gradients = Gradients::new(3);
        tape.backward(&gated, &mut gradients)?;
        for slot in 0..3 {
            let gradient = gradients.get(slot).expect("a gradient");
            assert_eq!(gradient.dtype(), DType::F32);
            found.push(numbers(gradient)?);
        }
        Ok((types, found))
    };
    let (_, exact) = run(Compute::default())?;
    let mut rounded = Vec::new();
    for kernels in [true, false] {
        let (types, found) = run(Compute { kernels, half: Some(DType::BF16) })?;
        assert_eq!(types, [DType::BF16; 3], "kernels {kernels}");
        for (which, (found, exact)) in found.iter().zip(&exact).enumerate() {
            let error = distance(found, exact);
            assert!(error > 1e-5 && error < 0.03, "kernels {kernels}, result {which}: {error}");
        }
        rounded.push(found);
    }
    for (which, (a, b)) in rounded[0].iter().zip(&rounded[1]).enumerate() {
        assert!(distance(a, b) < 0.01, "result {which}: {}", distance(a, b));
    }
    Ok(())
}

/// bf16 numbers are a subset of f32's: a product of them is the f32 product, rounded once.
#[test]
fn a_bf16_product_is_rounded_once() -> Result<()> {
    let (a, b) =
        (normal(1, &[9, 33])?.to_dtype(DType::BF16)?, normal(2, &[17, 33])?.to_dtype(DType::BF16)?);
    let exact = a.to_dtype(DType::F64)?.matmul(&b.to_dtype(DType::F64)?.t()?)?;
    let found = ops::product(&a, &b.t()?)?;
    assert_eq!(found.dtype(), DType::BF16);
    for (found, exact) in numbers(&found)?.iter().zip(numbers(&exact)?) {
        assert!((found - exact).abs() <= exact.abs() * 2f64.powi(-8) + 1e-5, "{found} {exact}");
    }
    Ok(())
}

/// What a low-rank layer leaves in its slots: products of bf16 rows, formed and kept in f32.
#[test]
fn parameter_gradients_and_gram_matrices_of_bf16_rows_are_not_rounded() -> Result<()> {
    let (rows, n, rank) = (64, 12, 5);
    for kernels in [true, false] {
        let compute = Compute { kernels, half: Some(DType::BF16) };
        let tape = Tape::training().computing(compute);
        let (u, s, v) =
            (normal(61, &[1, rank])?, normal(62, &[rank, rank])?, normal(63, &[n, rank])?);
        let x = tape.constant(normal(64, &[rows, n])?);
        let (u_value, v_value) = (tape.parameter(0, &u), tape.parameter(1, &v));
        let y = ops::low_rank_linear(&tape, &x, &u_value, &s, &v_value, None)?;
        // The loss is the sum of all outputs, so every output's gradient is 1.
        let sum = tape.record(&[y.source()], y.tensor().to_dtype(DType::F32)?.sum_all()?, {
            let (to_y, ones) = (y.source(), y.tensor().ones_like()?);
            move |_, flow| flow.add(to_y, ones)
        });
        let mut gradients = Gradients::new(2);
        gradients.want_grams();
        tape.backward(&sum, &mut gradients)?;

        let half = |x: &Tensor| x.to_dtype(DType::BF16);
        let wide = |x: &Tensor| x.to_dtype(DType::F64);
        let z = wide(&ops::product(&half(x.tensor())?, &half(&v)?)?)?;
        let ones = Tensor::ones((rows, 1), DType::F64, &Device::Cpu)?;
        let delta_u = ones.matmul(&wide(&half(&u)?)?)?;
        let input = wide(&half(x.tensor())?)?;
        let cases = [
            ("K-gradient", gradients.get(0), ones.t()?.matmul(&z)?),
            ("L-gradient", gradients.get(1), input.t()?.contiguous()?.matmul(&delta_u)?),
            ("Gram matrix of the inputs", gradients.gram(1), z.t()?.contiguous()?.matmul(&z)?),
            (
                "Gram matrix of the gradients",
                gradients.gram(0),
                delta_u.t()?.contiguous()?.matmul(&delta_u)?,
            ),
        ];
        for (name, found, exact) in cases {
            let error = distance(&numbers(found.expect(name))?, &numbers(&exact)?);
            assert!(error < 1e-6, "kernels {kernels}, {name}: {error}");
        }
    }
    Ok(())
}

/// The gradient of a head of keys that many heads of queries share is summed in f32, in one tile of
/// queries as in several: off by what rounds each head's share, not by a rounding of every sum.
#[test]
fn gradients_of_shared_keys_are_summed_in_f32() -> Result<()> {
    let (t, d, queries) = (24, 8, 64);
    let heads = AttentionHeads { queries, keys: 1 };
    let arguments =
        [normal(61, &[1, t, queries * d])?, normal(62, &[1, t, d])?, normal(63, &[1, t, d])?];
    let arguments = arguments.map(|x| x.to_dtype(DType::BF16).expect("bf16"));
    let gradients = |tape: Tape, dtype: DType| -> Result<Vec<Vec<f64>>> {
        let mut values = Vec::new();
        for (slot, x) in arguments.iter().enumerate() {
            values.push(tape.parameter(slot, &x.to_dtype(dtype)?));
        }
        let y = ops::causal_attention(&tape, &values[0], &values[1], &values[2], heads, None)?;
        let (to_y, delta) = (y.source(), normal(64, y.tensor().dims())?.to_dtype(DType::BF16)?);
        let delta = delta.to_dtype(dtype)?;
        let zero = Tensor::zeros((), dtype, &Device::Cpu)?;
        let loss = tape.record(&[to_y], zero, move |_, flow| flow.add(to_y, delta));
        let mut gradients = Gradients::new(3);
        tape.backward(&loss, &mut gradients)?;
        (1..3).map(|slot| numbers(gradients.get(slot).expect("a gradient"))).collect()
    };
    let exact = gradients(Tape::training(), DType::F64)?;
    let found = gradients(Tape::training().portable(), DType::BF16)?;
    for (found, exact) in found.iter().zip(&exact) {
        let error = distance(found, exact);
        assert!(error < 6e-3, "{error}");
    }
    Ok(())
}
