//! The CPU kernels against the portable path on awkward sizes, and what they promise besides:
//! repeatability, causality, range.

use candle_core::{DType, Device, Result, Tensor};
use lrpt::ops::{self, Compute, Dropout, Gradients, HeadAdapter, Rotation, Tape, Value};
use lrpt::rng;

fn normal(draw: u64, shape: &[usize]) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(12, "ops test", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

fn random_ids(below: u32, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let ids: Vec<u32> =
        (0..(rows * columns) as u32).map(|i| i.wrapping_mul(2_654_435_761) % below).collect();
    Tensor::from_vec(ids, (rows, columns), &Device::Cpu)
}

fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

type Operation<'a> = &'a dyn Fn(&Tape, &[Value]) -> Result<Value>;

/// The output and every input's gradient, for a loss on which each element of the output has its
/// own influence.
fn run(tape: Tape, inputs: &[Tensor], dtype: DType, operation: Operation) -> Result<Vec<Vec<f64>>> {
    let inputs = inputs.iter().map(|input| input.to_dtype(dtype)).collect::<Result<Vec<_>>>()?;
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(slot, input)| tape.parameter(slot, input)).collect();
    let y = operation(&tape, &values)?;
    let mut results = vec![numbers(y.tensor())?];
    let weights = normal(999, y.tensor().dims())?.to_dtype(dtype)?;
    let to_y = y.source();
    let loss = tape.record(&[to_y], Tensor::zeros((), dtype, &Device::Cpu)?, move |_, flow| {
        flow.add(to_y, weights)
    });
    let mut gradients = Gradients::new(inputs.len());
    tape.backward(&loss, &mut gradients)?;
    for slot in 0..inputs.len() {
        results.push(numbers(gradients.get(slot).expect("every input gets a gradient"))?);
    }
    Ok(results)
}

/// Kernels and portable path agree to 1e-12 in f64 and to 1e-5 in f32, relative to the largest
/// element; f32 agrees with f64 as well.
fn check(name: &str, inputs: &[Tensor], operation: Operation) -> Result<()> {
    let exact = run(Tape::training().portable(), inputs, DType::F64, operation)?;
    for (dtype, bound) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let (kernels, portable) = (
            run(Tape::training(), inputs, dtype, operation)?,
            run(Tape::training().portable(), inputs, dtype, operation)?,
        );
        for (which, kernels) in kernels.iter().enumerate() {
            let scale = exact[which].iter().fold(0.0f64, |max, x| max.max(x.abs()));
            assert!(scale > 0.0, "{name}: result {which} is zero throughout");
            assert_eq!(kernels.len(), exact[which].len());
            for (element, kernel) in kernels.iter().enumerate() {
                for (path, expected) in [
                    ("the portable path", portable[which][element]),
                    ("f64", exact[which][element]),
                ] {
                    let error = (kernel - expected).abs() / scale;
                    assert!(
                        error < bound,
                        "{name} in {dtype:?}, result {which}, element {element}: {kernel}, {path} gives {expected}"
                    );
                }
            }
        }
    }
    Ok(())
}

#[test]
fn linear_layers_agree() -> Result<()> {
    // Beyond one output tile in every direction, and less than one vector.
    for (rows, m, n, r) in [(3, 5, 7, 2), (261, 397, 130, 33), (33, 1, 500, 1), (1, 203, 67, 19)] {
        let x = normal(1, &[1, rows, n])?;
        let inputs = [x.clone(), normal(2, &[m, n])?, normal(3, &[m])?];
        check("linear", &inputs, &|tape, v| ops::linear(tape, &v[0], &v[1], Some(&v[2])))?;
        let s = normal(4, &[r, r])?;
        let inputs = [x, normal(5, &[m, r])?, normal(6, &[n, r])?, normal(3, &[m])?];
        check("low_rank_linear", &inputs, &|tape, v| {
            ops::low_rank_linear(
                tape,
                &v[0],
                &v[1],
                &s.to_dtype(v[0].tensor().dtype())?,
                &v[2],
                Some(&v[3]),
            )
        })?;
    }
    Ok(())
}

#[test]
fn layer_norms_agree() -> Result<()> {
    for (rows, width) in [(1, 1024), (67, 37), (130, 16), (5, 7)] {
        let inputs =
            [(normal(1, &[rows, width])? + 3.0)?, normal(2, &[width])?, normal(3, &[width])?];
        check("layer_norm", &inputs, &|tape, v| {
            ops::layer_norm(tape, &v[0], &v[1], Some(&v[2]), 1e-5)
        })?;
        check("rms_norm", &inputs[..2], &|tape, v| ops::rms_norm(tape, &v[0], &v[1], 1e-5))?;
    }
    Ok(())
}

#[test]
fn rotations_agree() -> Result<()> {
    for (b, t, heads, width) in [(2, 1, 3, 4), (3, 67, 1, 2), (2, 130, 5, 34)] {
        check("rotary", &[normal(1, &[b, t, heads * width])?], &|tape, v| {
            let dtype = v[0].tensor().dtype();
            let rotation = Rotation::new(width, 1e4, 3, t, dtype, &Device::Cpu)?;
            ops::rotary(tape, &v[0], &rotation)
        })?;
    }
    Ok(())
}

#[test]
fn element_wise_operations_agree() -> Result<()> {
    // More than two parallel pieces, and not a multiple of any.
    let inputs = [(normal(1, &[3, 11_003])? * 4.0)?, normal(2, &[3, 11_003])?];
    check("gelu", &inputs[..1], &|tape, v| ops::gelu(tape, &v[0]))?;
    check("swiglu", &inputs, &|tape, v| ops::swiglu(tape, &v[0], &v[1]))?;
    check("add", &inputs, &|tape, v| ops::add(tape, &v[0], &v[1]))?;
    check("dropout", &inputs[..1], &|tape, v| {
        ops::dropout(tape, &v[0], Dropout { probability: 0.1, key: 77 })
    })
}

#[test]
fn attention_agrees() -> Result<()> {
    for (b, t, heads, d) in
        [(2, 1, 3, 4), (3, 63, 1, 8), (1, 64, 2, 5), (2, 131, 3, 7), (1, 260, 2, 16)]
    {
        let inputs = [1, 2, 3].map(|draw| normal(draw, &[b, t, heads * d]));
        let inputs: Vec<Tensor> = inputs.into_iter().collect::<Result<_>>()?;
        for dropout in [None, Some(Dropout { probability: 0.2, key: 3 })] {
            // With one token, the probability is 1 whatever the query and the key are: their
            // gradients are zero.
            let skip = if t == 1 { 2 } else { 0 };
            check("causal_attention", &inputs[skip..], &|tape, v| {
                let [q, k, value] = match v {
                    [q, k, value] => [q.clone(), k.clone(), value.clone()],
                    [value] => [value.clone(), value.clone(), value.clone()]
                        .map(|x| tape.constant(x.tensor().clone())),
                    _ => unreachable!("one or three inputs"),
                };
                let value = if v.len() == 1 { v[0].clone() } else { value };
                ops::causal_attention(tape, &q, &k, &value, heads, dropout)
            })?;
        }
    }
    Ok(())
}

#[test]
fn embeddings_agree() -> Result<()> {
    // Fewer tokens in the vocabulary than in the batch: rows of the table receive many gradients.
    let tokens = random_ids(23, (5, 41))?;
    let inputs = [normal(1, &[23, 70])?, normal(2, &[50, 70])?];
    check("embedding", &inputs, &|tape, v| ops::embedding(tape, &tokens, &v[0], &v[1]))?;
    check("token_embedding", &inputs[..1], &|tape, v| ops::token_embedding(tape, &tokens, &v[0]))
}

#[test]
fn heads_agree_over_several_chunks() -> Result<()> {
    for (b, t, width, vocabulary) in [(2, 65, 3, 40_000), (3, 7, 33, 257), (1, 1, 4, 5)] {
        let targets = random_ids(vocabulary as u32, (b, t))?;
        let inputs = [normal(1, &[b, t, width])?, normal(2, &[vocabulary, width])?];
        check("cross_entropy_head", &inputs, &|tape, v| {
            ops::cross_entropy_head(tape, &v[0], &v[1], &targets)
        })?;
        let tape = Tape::inference();
        let mean = ops::cross_entropy_head(
            &tape,
            &tape.constant(inputs[0].clone()),
            &tape.constant(inputs[1].clone()),
            &targets,
        )?;
        let sum = ops::cross_entropy_sum(Compute::default(), &inputs[0], &inputs[1], &targets)?;
        assert!(
            (mean.tensor().to_scalar::<f64>()? * (b * t) as f64 - sum).abs() < 1e-9 * sum,
            "{sum}"
        );
    }
    Ok(())
}

#[test]
fn adapted_heads_agree_over_several_chunks() -> Result<()> {
    for (b, t, width, vocabulary, r) in [(2, 65, 5, 40_000, 3), (3, 7, 33, 257, 20)] {
        let targets = random_ids(vocabulary as u32, (b, t))?;
        let s = normal(5, &[r, r])?;
        let inputs = [
            normal(1, &[b, t, width])?,
            normal(2, &[vocabulary, width])?,
            normal(3, &[vocabulary, r])?,
            normal(4, &[width, r])?,
        ];
        check("a head and U S Vᵀ", &inputs, &|tape, v| {
            let s = s.to_dtype(v[0].tensor().dtype())?;
            let adapter = HeadAdapter::LowRank { u: v[2].clone(), s, v: v[3].clone() };
            ops::adapted_cross_entropy_head(tape, &v[0], &v[1], Some(&adapter), &targets)
        })?;
    }
    Ok(())
}

/// Products of transposed and narrowed views, as they lie in memory, against candle's.
#[test]
fn products_of_views() -> Result<()> {
    let (a, b) = (normal(1, &[210, 77])?, normal(2, &[77, 205])?);
    let expected = a.matmul(&b)?;
    let (a_t, b_t) = (a.t()?.contiguous()?, b.t()?.contiguous()?);
    let wide = Tensor::cat(&[&normal(3, &[210, 9])?, &a, &normal(4, &[210, 2])?], 1)?;
    let mut into = normal(5, &[210, 205])?.copy()?;
    let before = into.copy()?;
    ops::product_into(&mut into, &a, &b_t.t()?, true)?;
    let found = [
        ops::product(&a, &b)?,
        ops::product(&a_t.t()?, &b)?,
        ops::product(&a, &b_t.t()?)?,
        ops::product(&a_t.t()?, &b_t.t()?)?,
        ops::product(&wide.narrow(1, 9, 77)?, &b)?,
        (into - before)?,
    ];
    for (which, found) in found.iter().enumerate() {
        let error = numbers(&(found - &expected)?)?.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        assert!(error < 1e-12, "product {which}: {error}");
    }
    let error = ops::product(&a, &a).expect_err("inner dimensions differ").to_string();
    assert!(error.contains("210 x 77"), "{error}");
    Ok(())
}

fn block(tape: &Tape, v: &[Value], tokens: &Tensor) -> Result<Value> {
    let x = ops::embedding(tape, tokens, &v[0], &v[1])?;
    let h = ops::layer_norm(tape, &x, &v[2], Some(&v[3]), 1e-5)?;
    let q = ops::linear(tape, &h, &v[4], Some(&v[3]))?;
    let h = ops::dropout(tape, &h, Dropout { probability: 0.1, key: 1 })?;
    let mixed =
        ops::causal_attention(tape, &q, &h, &h, 3, Some(Dropout { probability: 0.1, key: 2 }))?;
    let x = ops::add(tape, &x, &ops::gelu(tape, &mixed)?)?;
    let (t, dtype) = (tokens.dim(1)?, x.tensor().dtype());
    let turned = ops::rotary(tape, &x, &Rotation::new(32, 1e4, 0, t, dtype, &Device::Cpu)?)?;
    let h = ops::rms_norm(tape, &turned, &v[2], 1e-6)?;
    let x = ops::add(tape, &x, &ops::swiglu(tape, &h, &turned)?)?;
    ops::cross_entropy_head(tape, &x, &v[0], tokens)
}

#[test]
fn results_repeat_bit_for_bit_whatever_the_number_of_threads() -> Result<()> {
    let tokens = random_ids(1500, (3, 150))?;
    let shapes: [&[usize]; 5] = [&[1500, 96], &[160, 96], &[96], &[96], &[96, 96]];
    let inputs = shapes
        .iter()
        .enumerate()
        .map(|(draw, shape)| normal(draw as u64, shape))
        .collect::<Result<Vec<_>>>()?;
    let once = |threads: usize| -> Result<Vec<Vec<f64>>> {
        let pool =
            rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a thread pool");
        pool.install(|| {
            run(Tape::training(), &inputs, DType::F32, &|tape, v| block(tape, v, &tokens))
        })
    };
    let first = once(2)?;
    for threads in [2, 1, 3, 5] {
        assert!(once(threads)? == first, "another result with {threads} threads");
    }
    Ok(())
}

#[test]
fn later_tokens_change_nothing_before_them() -> Result<()> {
    let (t, change) = (150, 97);
    let inputs = [1, 2, 3].map(|draw| normal(draw, &[2, t, 12]));
    let inputs: Vec<Tensor> = inputs.into_iter().collect::<Result<_>>()?;
    let attention = |inputs: &[Tensor]| -> Result<Vec<f64>> {
        let tape = Tape::inference();
        let [q, k, v] = [0, 1, 2].map(|which| tape.constant(inputs[which].clone()));
        numbers(&ops::causal_attention(&tape, &q, &k, &v, 2, None)?.tensor().narrow(1, 0, change)?)
    };
    let before = attention(&inputs)?;
    let changed = inputs.iter().map(|x| {
        let later = (normal(9, &[2, t - change, 12])? * 100.0)?;
        Tensor::cat(&[&x.narrow(1, 0, change)?, &later], 1)
    });
    assert_eq!(before, attention(&changed.collect::<Result<Vec<_>>>()?)?);
    // And the last position that may see the change does.
    let visible = |inputs: &[Tensor]| {
        ops::causal_attention(
            &Tape::inference(),
            &Tape::inference().constant(inputs[0].clone()),
            &Tape::inference().constant(inputs[1].clone()),
            &Tape::inference().constant((inputs[2].clone() * 2.0)?),
            2,
            None,
        )?
        .tensor()
        .narrow(1, change, 1)
    };
    assert_ne!(
        numbers(&visible(&inputs)?)?,
        numbers(&visible(&[inputs[0].clone(), inputs[1].clone(), inputs[0].clone()])?)?
    );
    Ok(())
}

#[test]
fn dropout_masks_are_fair_and_follow_their_key() -> Result<()> {
    let ones = Tensor::ones(200_000, DType::F64, &Device::Cpu)?;
    let tape = Tape::inference();
    let mask = |key, probability| -> Result<Vec<f64>> {
        numbers(
            ops::dropout(&tape, &tape.constant(ones.clone()), Dropout { probability, key })?
                .tensor(),
        )
    };
    let (first, other) = (mask(1, 0.3)?, mask(2, 0.3)?);
    assert_eq!(first, mask(1, 0.3)?);
    assert!(first.iter().all(|x| *x == 0.0 || (x * 0.7 - 1.0).abs() < 1e-12));
    let count = first.len() as f64;
    let kept = |x: &[f64]| x.iter().filter(|x| **x > 0.0).count() as f64 / count;
    let both = |a: &[f64], b: &[f64]| {
        a.iter().zip(b).filter(|(a, b)| **a > 0.0 && **b > 0.0).count() as f64 / count
    };
    // Standard deviation of these fractions: about 0.001. Neighbours, and equal places under two
    // keys, are independent.
    assert!((kept(&first) - 0.7).abs() < 0.005, "{}", kept(&first));
    for distance in [1, 2, 64, 256] {
        assert!((both(&first, &first[distance..]) - 0.49).abs() < 0.006, "distance {distance}");
    }
    assert!((both(&first, &other) - 0.49).abs() < 0.006);
    assert_eq!(mask(1, 0.0)?, numbers(&ones)?);
    Ok(())
}
