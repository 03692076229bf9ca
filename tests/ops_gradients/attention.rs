//! Rotated positions, and attention with as many heads of keys as of queries or fewer.

use super::*;
use lrpt::ops::{AttentionHeads, Dropout, Rotation};

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
