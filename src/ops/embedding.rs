//! Token and position embedding: x[b, t] = token_table[token[b, t]] + position_table[t], or without
//! the latter.

use super::gpu;
use super::tape::{Tape, Value};
use crate::kernels::profile::{Work, span};
use crate::kernels::{Host, Real, SharedOut, build, with_real};
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

/// Columns that one thread scatters; fixed, and every column adds its tokens in order, so the
/// gradient repeats bit for bit.
const COLUMNS: usize = 64;

/// Sum of token and position vectors: tokens (B, T) u32, token table (V, C), position table (at
/// least T, C), result (B, T, C).
///
/// # Errors
/// If a token is outside the table, or T exceeds the positions.
pub fn embedding(
    tape: &Tape,
    tokens: &Tensor,
    token_table: &Value,
    position_table: &Value,
) -> Result<Value> {
    embedded(tape, tokens, token_table, Some(position_table))
}

/// Token vectors alone, where positions enter elsewhere: tokens (B, T) u32, token table (V, C),
/// result (B, T, C).
///
/// # Errors
/// If a token is outside the table.
pub fn token_embedding(tape: &Tape, tokens: &Tensor, token_table: &Value) -> Result<Value> {
    embedded(tape, tokens, token_table, None)
}

fn embedded(
    tape: &Tape,
    tokens: &Tensor,
    token_table: &Value,
    position_table: Option<&Value>,
) -> Result<Value> {
    let (b, t) = tokens.dims2()?;
    let (vocabulary, width) = token_table.tensor().dims2()?;
    if let Some(table) = position_table {
        let (positions, position_width) = table.tensor().dims2()?;
        if position_width != width {
            bail!("tokens are {width} wide, positions {position_width}")
        }
        if t > positions {
            bail!("a sequence of {t} tokens exceeds the block size of {positions}")
        }
    }
    let _span = span(|| Work::gathered("embedding", b * t, token_table.tensor()));
    let tokens = tokens.contiguous()?;
    let kernels = tape.uses_kernels(token_table.tensor());
    let (to_tokens, to_positions) = (token_table.source(), position_table.and_then(Value::source));
    let token_table = token_table.tensor().clone();
    let position_table = position_table.map(|table| table.tensor().clone());
    let embedded = if kernels {
        let ids = Host::new(&tokens)?;
        if let Some(outside) = ids.ids()?.iter().find(|id| **id as usize >= vocabulary) {
            bail!("token {outside} is outside the vocabulary of {vocabulary}")
        }
        with_real!(token_table.dtype(), T => forward::<T>(ids.ids()?, &token_table, position_table.as_ref(), (b, t, width))?)
    } else {
        let rows = token_table.index_select(&tokens.flatten_all()?, 0)?.reshape((b, t, width))?;
        match &position_table {
            Some(table) => rows.broadcast_add(&table.narrow(0, 0, t)?)?,
            None => rows,
        }
    };
    Ok(tape.record(&[to_tokens, to_positions], embedded, move |delta, flow| {
        let delta = delta.contiguous()?;
        if !kernels {
            if to_tokens.is_some() {
                let rows = delta.reshape((b * t, width))?;
                let ids = tokens.flatten_all()?;
                let is_f32 = rows.dtype() == DType::F32;
                let gradient = match flow.compute().gpu(&token_table).filter(|_| is_f32) {
                    Some(gpu) => gpu::embedding_gradient(gpu, &ids, &rows, &token_table)?,
                    None => token_table.zeros_like()?.index_add(&ids, &rows, 0)?,
                };
                flow.add(to_tokens, gradient)?;
            }
            let Some(table) = position_table.filter(|_| to_positions.is_some()) else {
                return Ok(());
            };
            let (head, positions) = (delta.sum(0)?, table.dim(0)?);
            return flow.add(to_positions, head.pad_with_zeros(0, 0, positions - t)?);
        }
        let ids = Host::new(&tokens)?;
        let ids = ids.ids()?;
        let host = Host::new(&delta)?;
        with_real!(delta.dtype(), T => {
            let delta = host.numbers::<T>()?;
            flow.update_slot::<T>(to_tokens, &token_table, |table| {
                scatter(table, width, delta, |row| ids[row] as usize)
            })?;
            match &position_table {
                Some(table) => flow.update_slot::<T>(to_positions, table, |table| {
                    scatter(table, width, delta, |row| row % t)
                }),
                None => Ok(()),
            }
        })
    }))
}

fn forward<T: Real>(
    ids: &[u32],
    tokens: &Tensor,
    positions: Option<&Tensor>,
    (b, t, width): (usize, usize, usize),
) -> Result<Tensor> {
    let tokens = tokens.contiguous()?;
    let positions = positions.map(Tensor::contiguous).transpose()?;
    let token_host = Host::new(&tokens)?;
    let position_host = positions.as_ref().map(Host::new).transpose()?;
    let tokens = token_host.numbers::<T>()?;
    let positions = position_host.as_ref().map(|host| host.numbers::<T>()).transpose()?;
    build::<T>((b, t, width), |out| {
        out.par_chunks_mut(width).with_min_len(64).enumerate().for_each(|(row, out)| {
            let token = &tokens[ids[row] as usize * width..][..width];
            let Some(positions) = positions else { return out.copy_from_slice(token) };
            let position = &positions[row % t * width..][..width];
            out.iter_mut()
                .zip(token.iter().zip(position))
                .for_each(|(x, (token, position))| *x = *token + *position);
        });
        Ok(())
    })
}

/// table[place(row)] += delta[row] for every row, in row order, columns shared out between threads.
///
/// # Errors
/// If a place is outside the table.
fn scatter<T: Real>(
    table: &mut [T],
    width: usize,
    delta: &[T],
    place: impl Fn(usize) -> usize,
) -> Result<()> {
    let places: Vec<usize> = (0..delta.len() / width).map(place).collect();
    let rows = table.len() / width;
    if let Some(outside) = places.iter().find(|place| **place >= rows) {
        bail!("a gradient for row {outside} of a table that has {rows} rows of {width}")
    }
    let shared = SharedOut::new(table);
    (0..width.div_ceil(COLUMNS)).into_par_iter().for_each(|part| {
        let (start, end) = (part * COLUMNS, width.min((part + 1) * COLUMNS));
        for (source, place) in delta.chunks_exact(width).zip(&places) {
            // SAFETY: threads own disjoint columns, and every place was just found to be a row of
            // the table.
            let target = unsafe {
                std::slice::from_raw_parts_mut(shared.get().add(place * width + start), end - start)
            };
            target.iter_mut().zip(&source[start..end]).for_each(|(x, d)| *x += *d);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gradient_outside_the_table_is_refused_before_anything_is_written() {
        let mut table = vec![1.0f32; 4 * 3];
        let delta = vec![1.0f32; 2 * 3];
        let error = scatter(&mut table, 3, &delta, |row| 3 + row).unwrap_err().to_string();
        assert!(error.contains("row 4 of a table that has 4 rows"), "{error}");
        assert_eq!(table, [1.0; 12]);
        scatter(&mut table, 3, &delta, |_| 3).expect("row 3 is the last");
        assert_eq!(table[8..], [1.0, 3.0, 3.0, 3.0]);
    }
}
