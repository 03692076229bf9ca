//! What a network remembers of the tokens it has seen: the keys and values of every layer, so that
//! a new token costs a pass over itself alone.

use super::layers::Pass;
use crate::ops::{self, AttentionHeads, Value};
use candle_core::{Result, Tensor, bail};
use std::cell::RefCell;

/// Keys and values of B sequences of one length, per layer, in the order of their tokens.
///
/// They belong to the tokens' positions from 0 on: once the window over a text moves, every
/// position and all that was computed from it is another, and the cache is
/// [cleared](Self::clear).
#[derive(Debug)]
pub struct KeyValueCache {
    layers: Vec<RefCell<Option<Layer>>>,
    /// Tokens that there is room for.
    room: usize,
    /// Tokens that every layer has seen.
    length: usize,
}

/// Keys and values of a layer, each (B, room, G d), of which the first tokens are filled.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

impl KeyValueCache {
    /// An empty cache for so many layers and tokens.
    pub fn new(layers: usize, room: usize) -> Self {
        Self { layers: (0..layers).map(|_| RefCell::new(None)).collect(), room, length: 0 }
    }

    /// Tokens seen so far: the position of the next.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether no further token fits.
    pub fn is_full(&self) -> bool {
        self.length >= self.room
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.length = 0;
        self.layers.iter_mut().for_each(|layer| *layer.get_mut() = None);
    }

    /// Goes on with the sequences of these numbers, each as often as it is listed.
    ///
    /// # Errors
    /// If there is no sequence of a number.
    pub fn select(&mut self, sequences: &[usize]) -> Result<()> {
        let numbers: Vec<u32> = sequences.iter().map(|number| *number as u32).collect();
        for layer in &mut self.layers {
            if let Some(Layer { keys, values }) = layer.get_mut() {
                let rows = Tensor::from_slice(&numbers, numbers.len(), keys.device())?;
                *keys = keys.index_select(&rows, 0)?;
                *values = values.index_select(&rows, 0)?;
            }
        }
        Ok(())
    }

    /// Counts tokens that every layer has now seen.
    pub(super) fn advance(&mut self, tokens: usize) {
        self.length += tokens;
    }

    /// Keeps the new keys and values (B, t, G d) of a layer, and gives what the new queries (B, t,
    /// H d) see: all that is kept up to each of them.
    pub(super) fn attend(
        &self,
        pass: &Pass,
        layer: usize,
        [q, k, v]: [&Value; 3],
        heads: AttentionHeads,
    ) -> Result<Value> {
        let Some(kept) = self.layers.get(layer) else {
            bail!("layer {layer} of a cache for {} layers", self.layers.len())
        };
        let (b, t, width) = k.tensor().dims3()?;
        let length = self.length + t;
        if length > self.room {
            bail!("{t} tokens after {} for which there is room for {}", self.length, self.room)
        }
        let mut kept = kept.borrow_mut();
        let Layer { keys, values } = match &mut *kept {
            Some(kept) => kept,
            none => {
                let room = |x: &Value| {
                    Tensor::zeros((b, self.room, width), x.tensor().dtype(), x.tensor().device())
                };
                none.insert(Layer { keys: room(k)?, values: room(v)? })
            }
        };
        keys.slice_set(&k.tensor().contiguous()?, 1, self.length)?;
        values.slice_set(&v.tensor().contiguous()?, 1, self.length)?;
        if self.length == 0 {
            return ops::causal_attention(pass.tape, q, k, v, heads, None);
        }
        let compute = pass.tape.compute();
        let mixed = ops::cached_attention(compute, q.tensor(), keys, values, length, heads)?;
        Ok(pass.tape.constant(mixed))
    }
}
