//! Backward passes of the operations against central differences in f64, through the CPU kernels
//! and through the portable path.

use candle_core::{DType, Device, Result, Tensor};
use lrpt::ops::{
    self, AttentionHeads, Compute, Dropout, Gradients, Rotation, Tape, Targets, Value,
};
use lrpt::rng;

/// Standard normal numbers in f64, another draw for every `draw`.
fn normal(draw: u64, shape: &[usize]) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(11, "ops test", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

fn ids(values: &[u32], shape: (usize, usize)) -> Result<Tensor> {
    Tensor::from_slice(values, shape, &Device::Cpu)
}

fn numbers(x: &Tensor) -> Result<Vec<f64>> {
    x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |max, x| max.max(x.abs()))
}

/// Σ c ∘ y with fixed random c: a scalar on which every element of y has its own influence.
fn weighted_sum(tape: &Tape, y: &Value) -> Result<Value> {
    let weights = normal(999, y.tensor().dims())?;
    let sum = (y.tensor() * &weights)?.sum_all()?;
    let to_y = y.source();
    Ok(tape.record(&[to_y], sum, move |delta, flow| flow.add(to_y, weights.broadcast_mul(&delta)?)))
}

type Operation<'a> = &'a dyn Fn(&Tape, &[Value]) -> Result<Value>;

fn gradients(tape: Tape, inputs: &[Tensor], operation: Operation) -> Result<Vec<Vec<f64>>> {
    let values: Vec<Value> =
        inputs.iter().enumerate().map(|(slot, input)| tape.parameter(slot, input)).collect();
    let loss = weighted_sum(&tape, &operation(&tape, &values)?)?;
    let mut gradients = Gradients::new(inputs.len());
    tape.backward(&loss, &mut gradients)?;
    (0..inputs.len())
        .map(|slot| numbers(gradients.get(slot).expect("every input gets a gradient")))
        .collect()
}

/// (f(x + h) − f(x − h)) / 2h for every element of one input.
fn central_differences(inputs: &[Tensor], which: usize, operation: Operation) -> Result<Vec<f64>> {
    const STEP: f64 = 1e-5;
    let base = numbers(&inputs[which])?;
    let loss_at = |element: usize, step: f64| -> Result<f64> {
        let mut moved = base.clone();
        moved[element] += step;
        let tape = Tape::inference();
        let values = inputs.iter().enumerate().map(|(slot, input)| {
            let input = if slot == which {
                Tensor::from_slice(&moved, input.shape(), &Device::Cpu)?
            } else {
                input.clone()
            };
            Ok(tape.constant(input))
        });
        weighted_sum(&tape, &operation(&tape, &values.collect::<Result<Vec<_>>>()?)?)?
            .tensor()
            .to_scalar()
    };
    (0..base.len())
        .map(|element| Ok((loss_at(element, STEP)? - loss_at(element, -STEP)?) / (2.0 * STEP)))
        .collect()
}

/// Every input's gradient, by kernels and portable, is within 1e-6 of the central differences,
/// relative to the largest element.
fn check(name: &str, inputs: &[Tensor], operation: Operation) -> Result<()> {
    let (kernels, portable) = (
        gradients(Tape::training(), inputs, operation)?,
        gradients(Tape::training().portable(), inputs, operation)?,
    );
    for which in 0..inputs.len() {
        let expected = central_differences(inputs, which, operation)?;
        let scale = largest(&expected);
        assert!(
            scale > 1e-3,
            "{name}: input {which} has next to no influence, the comparison would say nothing"
        );
        for (path, found) in [("kernels", &kernels[which]), ("portable", &portable[which])] {
            assert_eq!(found.len(), expected.len());
            for (element, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let error = (found - expected).abs() / scale;
                assert!(
                    error < 1e-6,
                    "{name} ({path}), input {which}, element {element}: {found} instead of {expected}"
                );
            }
        }
    }
    Ok(())
}

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

#[test]
fn layer_norm() -> Result<()> {
    let inputs = [normal(1, &[2, 3, 19])?, normal(2, &[19])?, normal(3, &[19])?];
    check("layer_norm with bias", &inputs, &|tape, v| {
        ops::layer_norm(tape, &v[0], &v[1], Some(&v[2]), 1e-5)
    })?;
    check("layer_norm", &inputs[..2], &|tape, v| ops::layer_norm(tape, &v[0], &v[1], None, 1e-5))
}

#[test]
fn rms_norm() -> Result<()> {
    let inputs = [(normal(1, &[2, 3, 19])? + 0.5)?, normal(2, &[19])?];
    check("rms_norm", &inputs, &|tape, v| ops::rms_norm(tape, &v[0], &v[1], 1e-5))
}

#[test]
fn swiglu() -> Result<()> {
    let inputs = [(normal(1, &[5, 8])? * 3.0)?, normal(2, &[5, 8])?];
    check("swiglu", &inputs, &|tape, v| ops::swiglu(tape, &v[0], &v[1]))
}

#[test]
fn rotary() -> Result<()> {
    // Two heads 6 wide, from the beginning and from further on.
    for first in [0, 11] {
        let rotation = Rotation::new(6, 100.0, first, 5, DType::F64, &Device::Cpu)?;
        check("rotary", &[normal(1, &[2, 5, 12])?], &|tape, v| {
            ops::rotary(tape, &v[0], &rotation)
        })?;
    }
    Ok(())
}

/// What positions are for: the product of a turned query and a turned key depends on their
/// distance alone, and a row that starts further on is the end of one that starts at 0.
#[test]
fn turned_queries_and_keys_see_their_distance() -> Result<()> {
    let (width, t) = (8, 9);
    let [q, k] = [1, 2].map(|draw| normal(draw, &[1, 1, width])?.repeat((1, t, 1)));
    let (q, k) = (q?, k?);
    for tape in [Tape::inference(), Tape::inference().portable()] {
        let turned = |x: &Tensor, first| -> Result<Tensor> {
            let rotation = Rotation::new(width, 1e4, first, t, DType::F64, &Device::Cpu)?;
            let y = ops::rotary(&tape, &tape.constant(x.clone()), &rotation)?;
            y.tensor().squeeze(0)
        };
        let products = turned(&q, 0)?.matmul(&turned(&k, 0)?.t()?)?.to_vec2::<f64>()?;
        let later = turned(&q, 700)?.matmul(&turned(&k, 700)?.t()?)?.to_vec2::<f64>()?;
        for i in 1..t {
            for j in 1..t {
                assert!((products[i][j] - products[i - 1][j - 1]).abs() < 1e-12);
                assert!((products[i][j] - later[i][j]).abs() < 1e-10);
            }
        }
        assert!((products[1][0] - products[0][0]).abs() > 1e-3, "distance counts");
        let (from_start, further) = (turned(&q, 0)?, turned(&q, 4)?);
        let same = (from_start.narrow(0, 4, t - 4)? - further.narrow(0, 0, t - 4)?)?;
        assert!(largest(&numbers(&same)?) == 0.0);
        // By hand: numbers 1 and 5 are a pair, turned by p 10000^(−2/8) = p/10 at position p.
        let (x, y) = (numbers(&q)?, numbers(&from_start.narrow(0, 3, 1)?)?);
        let (cos, sin) = (0.3f64.cos(), 0.3f64.sin());
        assert!((y[1] - (x[1] * cos - x[5] * sin)).abs() < 1e-12);
        assert!((y[5] - (x[5] * cos + x[1] * sin)).abs() < 1e-12);
    }
    Ok(())
}

#[test]
fn gelu() -> Result<()> {
    check("gelu", &[(normal(1, &[5, 8])? * 3.0)?], &|tape, v| ops::gelu(tape, &v[0]))
}

#[test]
fn dropout() -> Result<()> {
    let dropout = Dropout { probability: 0.4, key: 5 };
    check("dropout", &[normal(1, &[6, 9])?], &|tape, v| ops::dropout(tape, &v[0], dropout))
}

#[test]
fn causal_attention() -> Result<()> {
    let inputs = [normal(1, &[2, 7, 6])?, normal(2, &[2, 7, 6])?, normal(3, &[2, 7, 6])?];
    for dropout in [None, Some(Dropout { probability: 0.3, key: 8 })] {
        for heads in [1, 2, 3] {
            check("causal_attention", &inputs, &|tape, v| {
                ops::causal_attention(tape, &v[0], &v[1], &v[2], heads, dropout)
            })?;
        }
    }
    // More rows than a tile of queries has.
    let inputs = [normal(1, &[1, 67, 2])?, normal(2, &[1, 67, 2])?, normal(3, &[1, 67, 2])?];
    check("causal_attention in two tiles", &inputs, &|tape, v| {
        ops::causal_attention(tape, &v[0], &v[1], &v[2], 1, None)
    })
}

#[test]
fn grouped_query_attention() -> Result<()> {
    // (heads of queries, heads of keys), heads 2 wide; one length takes two tiles of queries.
    for (t, queries, keys) in [(5, 4, 2), (5, 6, 2), (5, 3, 1), (67, 2, 1)] {
        let of = |draw, heads: usize| normal(draw, &[if t > 64 { 1 } else { 2 }, t, heads * 2]);
        let inputs = [of(1, queries)?, of(2, keys)?, of(3, keys)?];
        for dropout in [None, Some(Dropout { probability: 0.3, key: 8 })] {
            check(&format!("{queries} heads of queries, {keys} of keys"), &inputs, &|tape, v| {
                let heads = AttentionHeads { queries, keys };
                ops::causal_attention(tape, &v[0], &v[1], &v[2], heads, dropout)
            })?;
        }
    }
    Ok(())
}

/// Grouped heads are heads whose keys and values are the same: repeating those gives the same
/// numbers.
#[test]
fn grouped_heads_see_the_keys_of_their_group() -> Result<()> {
    let (queries, keys) = (6, 2);
    let q = normal(1, &[2, 9, queries * 4])?;
    let [k, v] = [2, 3].map(|draw| normal(draw, &[2, 9, keys * 4]));
    let (k, v) = (k?, v?);
    let repeated = |x: &Tensor| {
        let heads = [0, 0, 0, 1, 1, 1].map(|head| x.narrow(2, head * 4, 4));
        Tensor::cat(&heads.into_iter().collect::<Result<Vec<_>>>()?, 2)
    };
    for tape in [Tape::inference(), Tape::inference().portable()] {
        let attend = |k: &Tensor, v: &Tensor, keys| {
            let [q, k, v] = [&q, k, v].map(|x| tape.constant(x.clone()));
            let heads = AttentionHeads { queries, keys };
            numbers(ops::causal_attention(&tape, &q, &k, &v, heads, None)?.tensor())
        };
        assert_eq!(attend(&k, &v, keys)?, attend(&repeated(&k)?, &repeated(&v)?, queries)?);
    }
    let [q, k] = [&q, &k].map(|x| Tape::inference().constant(x.clone()));
    for heads in [AttentionHeads { queries, keys: 4 }, AttentionHeads { queries, keys: 0 }] {
        assert!(ops::causal_attention(&Tape::inference(), &q, &k, &k, heads, None).is_err());
    }
    Ok(())
}

#[test]
fn embedding() -> Result<()> {
    let tokens = ids(&[0, 3, 3, 1, 4, 0], (2, 3))?;
    let inputs = [normal(1, &[5, 4])?, normal(2, &[6, 4])?];
    check("embedding", &inputs, &|tape, v| ops::embedding(tape, &tokens, &v[0], &v[1]))?;
    check("token_embedding", &inputs[..1], &|tape, v| ops::token_embedding(tape, &tokens, &v[0]))
}

#[test]
fn cross_entropy_head() -> Result<()> {
    let targets = ids(&[0, 3, 8, 1, 4, 0], (2, 3))?;
    check("cross_entropy_head", &[normal(1, &[2, 3, 5])?, normal(2, &[9, 5])?], &|tape, v| {
        ops::cross_entropy_head(tape, &v[0], &v[1], &targets)
    })
}

/// Targets that do not count: central differences, and PyTorch's `cross_entropy(ignore_index)`.
#[test]
fn cross_entropy_head_of_some_targets() -> Result<()> {
    let targets = ids(&[0, 3, 8, 1, 4, 0], (2, 3))?;
    let rows = Tensor::new(&[1u32, 2, 5], &Device::Cpu)?;
    check("some targets", &[normal(1, &[2, 3, 5])?, normal(2, &[9, 5])?], &|tape, v| {
        ops::cross_entropy_head(tape, &v[0], &v[1], Targets::only(&targets, &rows, 2.5))
    })?;

    let h = [0.5, -1.0, 2.0, 0.25, -0.75, 1.5, 1.0, 1.0, 0.0, -2.0, 0.3, 0.7];
    let w = [1.0, 0.0, 0.0, 1.0, -1.0, 0.5, 0.25, -0.5];
    let inputs = [
        Tensor::from_slice(&h, (2, 3, 2), &Device::Cpu)?,
        Tensor::from_slice(&w, (4, 2), &Device::Cpu)?,
    ];
    // Of the targets 0, -100, 3, -100, 2, 1, by torch 2.15 in f64.
    let targets = ids(&[0, 0, 3, 0, 2, 1], (2, 3))?;
    let rows = Tensor::new(&[0u32, 2, 4, 5], &Device::Cpu)?;
    let expected_dh = [
        -0.147248066682,
        -0.022474044121,
        0.0,
        0.0,
        -0.162003451681,
        0.291034856283,
        0.0,
        0.0,
        0.32767926608,
        -0.186581591823,
        0.023600590161,
        -0.14566039782,
    ];
    let expected_dw = [
        -0.065986522754,
        0.098314311153,
        -0.120507017396,
        0.026465621185,
        -0.059457496148,
        0.641371646364,
        0.245951036298,
        -0.766151578702,
    ];
    for tape in [Tape::training(), Tape::training().portable()] {
        let compute = tape.compute();
        let (h, w) = (tape.parameter(0, &inputs[0]), tape.parameter(1, &inputs[1]));
        let chosen = Targets::only(&targets, &rows, 4.0);
        let loss = ops::cross_entropy_head(&tape, &h, &w, chosen)?;
        assert!((numbers(loss.tensor())?[0] - 1.8885383073537734).abs() < 1e-14);
        let sum = ops::cross_entropy_sum(compute, &inputs[0], &inputs[1], chosen)?;
        assert!((sum - 4.0 * 1.8885383073537734).abs() < 1e-13);
        let each = ops::cross_entropies(compute, &inputs[0], &inputs[1], chosen)?;
        assert!(each.len() == 4 && (each.iter().sum::<f64>() - sum).abs() < 1e-13, "{each:?}");
        let mut gradients = Gradients::new(2);
        tape.backward(&loss, &mut gradients)?;
        for (slot, expected) in [&expected_dh[..], &expected_dw[..]].into_iter().enumerate() {
            let found = numbers(gradients.get(slot).expect("a gradient"))?;
            let differences: Vec<f64> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
            assert!(largest(&differences) < 1e-11, "{slot}: {found:?}");
        }
    }
    let none = Tensor::zeros(0, DType::U32, &Device::Cpu)?;
    for (rows, divisor) in [(&none, 4.0), (&rows, 0.0)] {
        let chosen = Targets::only(&targets, rows, divisor);
        assert!(
            ops::cross_entropy_sum(Compute::default(), &inputs[0], &inputs[1], chosen).is_err()
        );
    }
    Ok(())
}

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

/// The token table as embedding and as head: one slot, the sum of both gradients.
#[test]
fn a_tied_table() -> Result<()> {
    let (tokens, targets) = (ids(&[0, 3, 3, 1], (2, 2))?, ids(&[3, 4, 1, 0], (2, 2))?);
    check("tied table", &[normal(1, &[5, 4])?, normal(2, &[2, 4])?], &|tape, v| {
        let h = ops::embedding(tape, &tokens, &v[0], &v[1])?;
        ops::cross_entropy_head(tape, &h, &v[0], &targets)
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
