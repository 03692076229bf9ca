//! Every operation, forward and backward.

use super::{Check, distance, numbers, placed};
use crate::ops::{
    self, AttentionHeads, Compute, Dropout, Gradients, HeadAdapter, PackedDocuments, Rotation,
    Tape, Value,
};
use crate::rng;
use candle_core::{DType, Device, Result, Tensor};

/// Largest error relative to the largest element, in f32.
const BOUND: f64 = 2e-5;
/// The same with products and activations in bf16, whose numbers have 8 binary digits.
const BOUND_BF16: f64 = 4e-2;

/// An operation on its arguments, in a place.
type Apply = Box<dyn Fn(&Tape, &[Value], ComputePlace) -> Result<Value>>;

/// An operation with its arguments in f64.
struct Operation {
    name: &'static str,
    /// Arguments that get a gradient: activations, which half precision rounds, and parameters,
    /// which it does not.
    arguments: Vec<(Tensor, ArgumentKind)>,
    apply: Apply,
}

#[derive(Clone, Copy, PartialEq)]
enum ArgumentKind {
    Activation,
    Parameter,
}

/// Where and in what type constants belong.
#[derive(Clone, Copy)]
struct ComputePlace<'a> {
    dtype: DType,
    device: &'a Device,
}

impl ComputePlace<'_> {
    fn put(self, x: &Tensor) -> Result<Tensor> {
        placed(x, self.dtype, self.device)
    }
}

/// Compares every operation.
pub fn run(device: &Device, found: &mut dyn FnMut(Check)) {
    let operations = match operations() {
        Ok(operations) => operations,
        Err(error) => {
            return found(Check::new("operations", "their arguments", 0.0, Err(error.into())));
        }
    };
    for operation in &operations {
        for (half, bound) in [(None, BOUND), (Some(DType::BF16), BOUND_BF16)] {
            // The CPU's kernels are the other side; a GPU's are tested, and so is what runs without.
            let ways: &[bool] = if device.is_cpu() { &[false] } else { &[true, false] };
            for &kernels in ways {
                let dtype = half.map_or("f32", |half| half.as_str());
                let way = if !kernels && ways.len() > 1 { ", candle's" } else { "" };
                found(Check::new(
                    "operations",
                    format!("{}, {dtype}{way}", operation.name),
                    bound,
                    compare(operation, Compute { kernels, half }, device).map_err(Into::into),
                ));
            }
        }
    }
}

/// The worst error of the output and of every gradient.
fn compare(operation: &Operation, compute: Compute, device: &Device) -> Result<f64> {
    let exact = results(
        operation,
        Compute::default(),
        ComputePlace { dtype: DType::F64, device: &Device::Cpu },
    )?;
    let computed = results(operation, compute, ComputePlace { dtype: DType::F32, device })?;
    let errors = computed
        .iter()
        .zip(&exact)
        .map(|(computed, exact)| distance(computed, exact))
        .collect::<Result<Vec<_>>>()?;
    Ok(errors
        .into_iter()
        .fold(0.0, |worst, error| if error.is_nan() { error } else { error.max(worst) }))
}

/// The output and every argument's gradient, for a loss on which each element of the output has its
/// own influence.
fn results(operation: &Operation, compute: Compute, place: ComputePlace) -> Result<Vec<Vec<f64>>> {
    let tape = Tape::training().computing(compute);
    let value = |(slot, (x, kind)): (usize, &(Tensor, ArgumentKind))| {
        let x = place.put(x)?;
        Ok(tape.parameter(
            slot,
            &if *kind == ArgumentKind::Activation { compute.narrowed(&x)? } else { x },
        ))
    };
    let values = operation.arguments.iter().enumerate().map(value).collect::<Result<Vec<_>>>()?;
    let y = (operation.apply)(&tape, &values, place)?;
    let mut results = vec![numbers(y.tensor())?];
    let weights = place.put(&normal(999, y.tensor().dims())?)?.to_dtype(y.tensor().dtype())?;
    let to_y = y.source();
    let zero = Tensor::zeros((), place.dtype, place.device)?;
    let loss = tape.record(&[to_y], zero, move |_, flow| flow.add(to_y, weights));
    let mut gradients = Gradients::new(values.len());
    tape.backward(&loss, &mut gradients)?;
    for slot in 0..values.len() {
        match gradients.get(slot) {
            Some(gradient) => results.push(numbers(gradient)?),
            None => candle_core::bail!("no gradient reached argument {slot}"),
        }
    }
    Ok(results)
}

fn normal(draw: u64, shape: &[usize]) -> Result<Tensor> {
    let numbers = rng::normals(&mut rng::stream(3, "selftest", &[draw]), shape.iter().product());
    Tensor::from_vec(numbers, shape, &Device::Cpu)
}

fn ids(below: u32, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let ids: Vec<u32> =
        (0..(rows * columns) as u32).map(|i| i.wrapping_mul(2_654_435_761) % below).collect();
    Tensor::from_vec(ids, (rows, columns), &Device::Cpu)
}

fn operations() -> Result<Vec<Operation>> {
    use ArgumentKind::{Activation, Parameter};
    // Sequences longer than a tile of queries, widths that are no multiple of a vector, fewer and
    // more rows than outputs.
    let (b, t, width, rank) = (2, 300, 24, 7);
    let x = || normal(1, &[b, t, width]);
    let mut all: Vec<Operation> = Vec::new();
    let mut add = |name, arguments, apply: Apply| {
        all.push(Operation { name, arguments, apply });
    };
    let weight =
        |draw, shape: &[usize]| Ok::<_, candle_core::Error>((normal(draw, shape)?, Parameter));
    add(
        "linear",
        vec![(x()?, Activation), weight(2, &[33, width])?, weight(3, &[33])?],
        Box::new(|tape, v, _| ops::linear(tape, &v[0], &v[1], Some(&v[2]))),
    );
    for (name, outputs) in [("low-rank linear, narrow", 33), ("low-rank linear, wide", 2 * b * t)] {
        let s = normal(4, &[rank, rank])?;
        add(
            name,
            vec![
                (x()?, Activation),
                weight(5, &[outputs, rank])?,
                weight(6, &[width, rank])?,
                weight(7, &[outputs])?,
            ],
            Box::new(move |tape, v, place| {
                ops::low_rank_linear(tape, &v[0], &v[1], &place.put(&s)?, &v[2], Some(&v[3]))
            }),
        );
    }
    add(
        "layer norm",
        vec![(x()?, Parameter), weight(2, &[width])?, weight(3, &[width])?],
        Box::new(|tape, v, _| ops::layer_norm(tape, &v[0], &v[1], Some(&v[2]), 1e-5)),
    );
    add(
        "RMS norm",
        vec![(x()?, Parameter), weight(2, &[width])?],
        Box::new(|tape, v, _| ops::rms_norm(tape, &v[0], &v[1], 1e-6)),
    );
    add(
        "rotary positions",
        vec![(x()?, Activation)],
        Box::new(move |tape, v, place| {
            let rotation = Rotation::new(width / 3, 1e4, 5, t, place.dtype, place.device)?;
            ops::rotary(tape, &v[0], &rotation)
        }),
    );
    add(
        "SwiGLU",
        vec![((x()? * 3.0)?, Activation), (normal(8, &[b, t, width])?, Activation)],
        Box::new(|tape, v, _| ops::swiglu(tape, &v[0], &v[1])),
    );
    add("GELU", vec![((x()? * 3.0)?, Activation)], Box::new(|tape, v, _| ops::gelu(tape, &v[0])));
    add(
        "dropout",
        vec![(x()?, Activation)],
        Box::new(|tape, v, _| ops::dropout(tape, &v[0], Dropout { probability: 0.3, key: 5 })),
    );
    add("sum of branches", vec![(x()?, Parameter), (normal(8, &[b, t, width])?, Activation)], {
        Box::new(|tape, v, _| ops::add(tape, &v[0], &v[1]))
    });
    for (name, dropout) in [
        ("causal attention", None),
        ("causal attention, dropout", Some(Dropout { probability: 0.2, key: 9 })),
    ] {
        let arguments = [1, 9, 10].map(|draw| Ok((normal(draw, &[b, t, width])?, Activation)));
        add(
            name,
            arguments.into_iter().collect::<Result<_>>()?,
            Box::new(move |tape, v, _| {
                ops::causal_attention(tape, &v[0], &v[1], &v[2], 3, dropout)
            }),
        );
    }
    // More tokens than any tile of queries has.
    let long = |draw| Ok((normal(draw, &[1, 1100, 8])?, Activation));
    add(
        "causal attention, long",
        [1, 9, 10].map(long).into_iter().collect::<Result<_>>()?,
        Box::new(|tape, v, _| ops::causal_attention(tape, &v[0], &v[1], &v[2], 2, None)),
    );
    let positions: Vec<u32> = (0..(b * t) as u32).map(|i| i % 300 % 77).collect();
    let documents = PackedDocuments::new(&Tensor::from_vec(positions, (b, t), &Device::Cpu)?)?;
    let keys = |draw| normal(draw, &[b, t, width / 3]);
    add(
        "attention within documents, grouped heads",
        vec![(x()?, Activation), (keys(9)?, Activation), (keys(10)?, Activation)],
        Box::new(move |tape, v, _| {
            let heads = AttentionHeads { queries: 3, keys: 1 };
            ops::document_attention(tape, [&v[0], &v[1], &v[2]], heads, &documents, None)
        }),
    );
    let tokens = ids(50, (b, t))?;
    let read = tokens.clone();
    add(
        "embedding",
        vec![weight(11, &[50, width])?, weight(12, &[t + 9, width])?],
        Box::new(move |tape, v, place| ops::embedding(tape, &place.put(&read)?, &v[0], &v[1])),
    );
    let read = tokens.clone();
    add(
        "embedding without positions",
        vec![weight(11, &[50, width])?],
        Box::new(move |tape, v, place| ops::token_embedding(tape, &place.put(&read)?, &v[0])),
    );
    let read = tokens.clone();
    add(
        "head and loss",
        vec![(x()?, Activation), weight(11, &[50, width])?],
        Box::new(move |tape, v, place| {
            ops::cross_entropy_head(tape, &v[0], &v[1], &place.put(&read)?)
        }),
    );
    // Logits of about the size of those of the head alone.
    let s = (normal(4, &[rank, rank])? * 0.1)?;
    add(
        "head with an adapter, and loss",
        vec![
            (x()?, Activation),
            weight(11, &[50, width])?,
            weight(5, &[50, rank])?,
            weight(6, &[width, rank])?,
        ],
        Box::new(move |tape, v, place| {
            let (u, v_basis) = (v[2].clone(), v[3].clone());
            let adapter = HeadAdapter::LowRank { u, s: place.put(&s)?, v: v_basis };
            let targets = place.put(&tokens)?;
            ops::adapted_cross_entropy_head(tape, &v[0], &v[1], Some(&adapter), &targets)
        }),
    );
    Ok(all)
}
