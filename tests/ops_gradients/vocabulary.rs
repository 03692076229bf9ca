//! Token tables: embedding in, cross entropy out.

use super::*;
use lrpt::ops::{Compute, HeadAdapter, Targets};

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

/// scale · B A beside W₀, of all targets and of some: every input's central differences, W₀'s among
/// them.
#[test]
fn a_head_with_two_factors_beside_it() -> Result<()> {
    let targets = ids(&[0, 3, 8, 1, 4, 0], (2, 3))?;
    let rows = Tensor::new(&[1u32, 2, 5], &Device::Cpu)?;
    let inputs =
        [normal(1, &[2, 3, 5])?, normal(2, &[9, 5])?, normal(3, &[9, 2])?, normal(4, &[2, 5])?];
    for of_some in [false, true] {
        check("a head with B A", &inputs, &|tape, v| {
            let adapter = HeadAdapter::Lora { b: v[2].clone(), a: v[3].clone(), scale: 1.5 };
            let chosen = match of_some {
                true => Targets::only(&targets, &rows, 2.5),
                false => Targets::from(&targets),
            };
            ops::adapted_cross_entropy_head(tape, &v[0], &v[1], Some(&adapter), chosen)
        })?;
    }
    Ok(())
}

/// U S Vᵀ beside W₀: with G the gradient by the sum of both, U's slot gets G V and V's Gᵀ U, h what
/// it gets from the sum, and the second moments are those of h V and of δ U; over several chunks of
/// rows, of all targets and of some.
#[test]
fn a_head_with_a_point_beside_it() -> Result<()> {
    for (count, width, vocabulary, rank) in [(6, 5, 9, 3), (70, 3, 40_000, 2)] {
        let (h, w) = (normal(1, &[count, width])?, normal(2, &[vocabulary, width])?);
        let (u, s, v) = (
            normal(3, &[vocabulary, rank])?,
            normal(4, &[rank, rank])?,
            normal(5, &[width, rank])?,
        );
        let targets: Vec<u32> = (0..count).map(|i| (i * 7919 % vocabulary) as u32).collect();
        let targets = ids(&targets, (1, count))?;
        let rows = Tensor::new(&[0u32, 2, 3, 5], &Device::Cpu)?;
        let sum = (&w + u.matmul(&s)?.matmul(&v.t()?)?)?;
        for (of_some, portable) in [(false, false), (false, true), (true, false), (true, true)] {
            let chosen = match of_some {
                true => Targets::only(&targets, &rows, 3.0),
                false => Targets::from(&targets),
            };
            let tape = || if portable { Tape::training().portable() } else { Tape::training() };
            let (dense, mut by_sum) = (tape(), Gradients::new(2));
            let (h_value, w_value) = (dense.parameter(0, &h), dense.parameter(1, &sum));
            let expected = ops::cross_entropy_head(&dense, &h_value, &w_value, chosen)?;
            dense.backward(&expected, &mut by_sum)?;
            let g = by_sum.get(1).expect("the gradient by the sum");

            let (adapted, mut found) = (tape(), Gradients::new(3));
            found.want_grams();
            let [h_value, u_value, v_value] =
                [(0, &h), (1, &u), (2, &v)].map(|(slot, x)| adapted.parameter(slot, x));
            let adapter = HeadAdapter::LowRank { u: u_value, s: s.clone(), v: v_value };
            let w_value = adapted.constant(w.clone());
            let loss = ops::adapted_cross_entropy_head(
                &adapted,
                &h_value,
                &w_value,
                Some(&adapter),
                chosen,
            )?;
            let difference =
                loss.tensor().to_scalar::<f64>()? - expected.tensor().to_scalar::<f64>()?;
            assert!(difference.abs() < 1e-12, "{difference}");
            adapted.backward(&loss, &mut found)?;
            let counted = if of_some { h.index_select(&rows, 0)? } else { h.clone() };
            let z = counted.matmul(&v)?;
            let expected = [
                ("h", found.get(0), by_sum.get(0).expect("by h").clone()),
                ("K", found.get(1), g.matmul(&v)?),
                ("L", found.get(2), g.t()?.matmul(&u)?),
                ("inputs", found.gram(2), z.t()?.matmul(&z)?),
            ];
            for (name, found, expected) in expected {
                let difference = (found.expect(name).reshape(expected.shape())? - &expected)?;
                let error = largest(&numbers(&difference)?) / largest(&numbers(&expected)?);
                assert!(error < 1e-12, "{name}: {error}");
            }
            // Frozen, it still stands in the way of the gradient by h.
            let (frozen, mut by_frozen) = (tape(), Gradients::new(1));
            let h_value = frozen.parameter(0, &h);
            let [u_value, v_value, w_value] = [&u, &v, &w].map(|x| frozen.constant(x.clone()));
            let adapter = HeadAdapter::LowRank { u: u_value, s: s.clone(), v: v_value };
            let loss = ops::adapted_cross_entropy_head(
                &frozen,
                &h_value,
                &w_value,
                Some(&adapter),
                chosen,
            )?;
            frozen.backward(&loss, &mut by_frozen)?;
            let dh = by_frozen.get(0).map(numbers).transpose()?;
            assert_eq!(dh, found.get(0).map(numbers).transpose()?);
            // Σ of (δ U)ᵀ (δ U), with δ from the logits of the sum.
            let p = candle_nn::ops::softmax(&counted.matmul(&sum.t()?)?, 1)?;
            let chosen_ids = targets.flatten_all()?;
            let chosen_ids = if of_some { chosen_ids.index_select(&rows, 0)? } else { chosen_ids };
            let n = p.dim(0)?;
            let minus = Tensor::full(-1.0, (n, 1), &Device::Cpu)?;
            let delta = p.scatter_add(&chosen_ids.unsqueeze(1)?, &minus, 1)?;
            let delta = (delta / if of_some { 3.0 } else { n as f64 })?.matmul(&u)?;
            let expected = delta.t()?.matmul(&delta)?;
            let difference = (found.gram(1).expect("outputs") - &expected)?;
            assert!(largest(&numbers(&difference)?) < 1e-12 * largest(&numbers(&expected)?));
        }
    }
    Ok(())
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

/// The token table as embedding and as head: one slot, the sum of both gradients.
#[test]
fn a_tied_table() -> Result<()> {
    let (tokens, targets) = (ids(&[0, 3, 3, 1], (2, 2))?, ids(&[3, 4, 1, 0], (2, 2))?);
    check("tied table", &[normal(1, &[5, 4])?, normal(2, &[2, 4])?], &|tape, v| {
        let h = ops::embedding(tape, &tokens, &v[0], &v[1])?;
        ops::cross_entropy_head(tape, &h, &v[0], &targets)
    })
}
