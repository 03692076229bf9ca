//! Several documents in a row: where each of them begins.

use candle_core::{Device, Result, Tensor, bail};
use std::ops::Range;
use std::sync::Arc;

/// Documents that share the rows of a batch (B, T): a token sees those before it in its own
/// document only, and positions count from that document's first token.
#[derive(Clone, Debug)]
pub struct PackedDocuments {
    positions: Tensor,
    rows: Arc<[Vec<Range<usize>>]>,
    longest: usize,
}

impl PackedDocuments {
    /// The documents of these positions (B, T), u32 in host memory: 0 begins one, and every other
    /// position is that before it and 1.
    ///
    /// # Errors
    /// If they are not.
    pub fn new(positions: &Tensor) -> Result<Self> {
        let rows = positions.to_vec2::<u32>()?;
        let rows = rows.iter().map(|row| ranges(row)).collect::<Result<Vec<_>>>()?;
        let longest = rows.iter().flatten().map(|range| range.len()).max().unwrap_or(0);
        Ok(Self { positions: positions.clone(), rows: rows.into(), longest })
    }

    /// Position of every token within its document, (B, T) u32 in host memory.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Tokens of the longest document.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The documents of a row, in order, which together are the whole row.
    pub(super) fn of_row(&self, row: usize) -> &[Range<usize>] {
        &self.rows[row]
    }

    /// The first token of every token's document, (B, 1, T, 1) f32.
    pub(super) fn starts(&self, device: &Device) -> Result<Tensor> {
        let (b, t) = self.positions.dims2()?;
        let starts = self.rows.iter().flatten();
        let starts = starts.flat_map(|range| range.clone().map(|_| range.start as f32));
        let starts = Tensor::from_vec(starts.collect::<Vec<f32>>(), (b, 1, t, 1), &Device::Cpu)?;
        starts.to_device(device)
    }

    /// Refuses tokens (B, T) that these are not the documents of.
    pub(super) fn check(&self, b: usize, t: usize) -> Result<()> {
        if self.positions.dims() != [b, t] {
            bail!("documents of {:?} tokens for {:?}", self.positions.dims(), [b, t])
        }
        Ok(())
    }
}

/// The documents of a row of positions.
fn ranges(row: &[u32]) -> Result<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for (token, position) in row.iter().enumerate() {
        match ranges.last_mut() {
            _ if *position == 0 => ranges.push(token..token + 1),
            Some(range) if *position as usize == token - range.start => range.end = token + 1,
            _ => bail!("token {token} of a row has position {position} in its document"),
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_at_position_0() -> Result<()> {
        let positions = Tensor::new(&[[0u32, 1, 2, 0, 0], [0, 1, 0, 1, 2]], &Device::Cpu)?;
        let documents = PackedDocuments::new(&positions)?;
        assert_eq!(documents.of_row(0), [0..3, 3..4, 4..5]);
        assert_eq!(documents.of_row(1), [0..2, 2..5]);
        assert_eq!(documents.longest(), 3);
        let starts = documents.starts(&Device::Cpu)?.reshape((2, 5))?.to_vec2::<f32>()?;
        assert_eq!(starts, [[0., 0., 0., 3., 4.], [0., 0., 2., 2., 2.]]);
        assert!(documents.check(2, 5).is_ok() && documents.check(5, 2).is_err());
        for wrong in [[1u32, 2], [0, 2]] {
            let error =
                PackedDocuments::new(&Tensor::new(&[wrong], &Device::Cpu)?).expect_err("wrong");
            assert!(error.to_string().contains("position"), "{error}");
        }
        Ok(())
    }
}
