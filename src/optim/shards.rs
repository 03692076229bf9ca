//! What the owners of parameters tell each other in a step.
//!
//! Every decision is taken by all processes alike from the same numbers, in the parameters' order:
//! the norm of the gradient from the squares of its parts, ranks from all singular values. Whatever
//! can fail on one process alone is agreed on before anyone goes on.

use super::owners::Owners;
use crate::lowrank::{CutNorm, LowRank, Truncation};
use crate::parallel::{Communicator, f64_bytes, f64_numbers, gather_if_all_succeed};
use crate::params::{ParamId, ParamStore, Weight};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use std::sync::atomic::{AtomicU64, Ordering};

/// The processes among which an optimizer is sharded, in one step.
pub struct Shards<'a> {
    owners: &'a Owners,
    processes: &'a dyn Communicator,
    sent: AtomicU64,
}

impl<'a> Shards<'a> {
    /// At the beginning of a step.
    pub fn new(owners: &'a Owners, processes: &'a dyn Communicator) -> Self {
        Self { owners, processes, sent: AtomicU64::new(0) }
    }

    /// Whether this process owns a parameter.
    pub fn owns(&self, id: ParamId) -> bool {
        self.owners.owns(id)
    }

    /// Bytes of weights that this process has sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The result where all processes succeeded; else, on all alike, the error of the first.
    ///
    /// # Errors
    /// As said, or if the connection fails.
    pub fn agree<T>(&self, own: Result<T>) -> Result<T> {
        let (own, said) = match own {
            Ok(own) => (Some(own), Ok(Vec::new())),
            Err(error) => (None, Err(error)),
        };
        gather_if_all_succeed(self.processes, said)?;
        own.context("a failure of this process was not told to the others")
    }

    /// What the owners of these parameters have found, one list of numbers for each parameter, from
    /// what this process has found for its own.
    ///
    /// # Errors
    /// On all processes alike if one of them found an error instead.
    pub fn joined(&self, ids: &[ParamId], own: Result<Vec<Vec<f64>>>) -> Result<Vec<Vec<f64>>> {
        let said = own.map(|lists| {
            let list = |numbers: &Vec<f64>| {
                [&(numbers.len() as u64).to_le_bytes(), f64_bytes(numbers).as_slice()].concat()
            };
            lists.iter().flat_map(list).collect()
        });
        let said = gather_if_all_succeed(self.processes, said)?;
        let mut rest: Vec<&[u8]> = said.iter().map(Vec::as_slice).collect();
        let mut next = |id: &ParamId| -> Option<Vec<f64>> {
            let rest = rest.get_mut(self.owners.of(*id)?)?;
            let (length, after) = rest.split_first_chunk::<8>()?;
            let bytes = usize::try_from(u64::from_le_bytes(*length)).ok()?.checked_mul(8)?;
            let (list, after) = after.split_at_checked(bytes)?;
            *rest = after;
            Some(f64_numbers(list))
        };
        let all: Option<Vec<Vec<f64>>> = ids.iter().map(&mut next).collect();
        all.context("the owner of a parameter has said nothing of it")
    }

    /// Replaces these parameters' numbers by those of their owners, whose ranks may be others, or
    /// which may have been cut.
    ///
    /// # Errors
    /// If the connection fails or a parameter is not in f32.
    pub fn spread(&self, params: &mut ParamStore, ids: &[ParamId]) -> Result<()> {
        let rank = |id: &ParamId| match &params.get(*id).weight {
            Weight::Dense(_) | Weight::Uncut(_) => Vec::new(),
            Weight::LowRank(point) => vec![point.rank() as f64],
        };
        let own = ids.iter().filter(|id| self.owns(**id)).map(rank).collect();
        let ranks = self.joined(ids, Ok(own))?;
        let before = self.processes.bytes_sent();
        for (id, rank) in ids.iter().zip(ranks) {
            let rank = rank.first().map(|rank| *rank as usize);
            let weight = match (&params.get(*id).weight, rank) {
                (Weight::Dense(tensor), _) => {
                    Weight::Dense(self.broadcast(*id, tensor, tensor.dims().to_vec())?)
                }
                (Weight::Uncut(tensor), None) => {
                    Weight::Uncut(self.broadcast(*id, tensor, tensor.dims().to_vec())?)
                }
                // The owner has cut what is still dense here.
                (Weight::Uncut(w), Some(rank)) => Weight::LowRank(LowRank {
                    u: self.broadcast(*id, w, vec![w.dims2()?.0, rank])?,
                    s: self.broadcast(*id, w, vec![rank, rank])?,
                    v: self.broadcast(*id, w, vec![w.dims2()?.1, rank])?,
                }),
                (Weight::LowRank(LowRank { u, s, v }), rank) => {
                    let rank = rank.context("the owner of a low-rank weight has no rank for it")?;
                    Weight::LowRank(LowRank {
                        u: self.broadcast(*id, u, vec![u.dims2()?.0, rank])?,
                        s: self.broadcast(*id, s, vec![rank, rank])?,
                        v: self.broadcast(*id, v, vec![v.dims2()?.0, rank])?,
                    })
                }
            };
            if !self.owns(*id) {
                params.set(*id, weight);
            }
        }
        self.processes.settle()?;
        self.sent.fetch_add(self.processes.bytes_sent() - before, Ordering::Relaxed);
        Ok(())
    }

    /// The owner's tensor, which has this shape; `own` is what this process has in its place.
    fn broadcast(&self, id: ParamId, own: &Tensor, shape: Vec<usize>) -> Result<Tensor> {
        let owner = self.owners.of(id).context("a frozen parameter has no owner")?;
        if own.dims() == shape {
            return self.processes.broadcast_tensor(owner, own);
        }
        let place = Tensor::zeros(shape, own.dtype(), own.device())?;
        self.processes.broadcast_tensor(owner, &place)
    }

    /// The truncations of these parameters, from those of this process's own.
    ///
    /// # Errors
    /// If the connection fails.
    pub fn truncations(
        &self,
        ids: &[ParamId],
        own: &[(ParamId, Truncation)],
    ) -> Result<Vec<(ParamId, Truncation)>> {
        let numbers = |id: &ParamId| {
            let found = own.iter().find(|(of, _)| of == id);
            found.map_or_else(Vec::new, |(_, truncation)| to_numbers(truncation))
        };
        let said = ids.iter().filter(|id| self.owns(**id)).map(numbers).collect();
        let all = self.joined(ids, Ok(said))?;
        let found = ids.iter().zip(all).filter(|(_, numbers)| !numbers.is_empty());
        found.map(|(id, numbers)| Ok((*id, from_numbers(&numbers)?))).collect()
    }
}

fn to_numbers(truncation: &Truncation) -> Vec<f64> {
    let Truncation { norm, singular_values, rank, error, relative_error } = truncation;
    let weighted = f64::from(u8::from(*norm == CutNorm::Weighted));
    [&[weighted, *rank as f64, *error, *relative_error], singular_values.as_slice()].concat()
}

fn from_numbers(numbers: &[f64]) -> Result<Truncation> {
    ensure!(numbers.len() >= 4, "a truncation has at least 4 numbers, not {}", numbers.len());
    Ok(Truncation {
        norm: if numbers[0] == 1.0 { CutNorm::Weighted } else { CutNorm::Frobenius },
        singular_values: numbers[4..].to_vec(),
        rank: numbers[1] as usize,
        error: numbers[2],
        relative_error: numbers[3],
    })
}
