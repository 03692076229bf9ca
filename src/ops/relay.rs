//! Running sums of gradients that pass from one process to the next, where the micro-batches of a
//! step are shared out.
//!
//! The order in which a sum is taken is that of one process: a micro-batch adds its contributions
//! to the very numbers that the micro-batch before it left, slot by slot, with the same operations.
//! So the bytes of the sum do not depend on who computed what. Forward passes run at the same
//! time; a backward pass follows the one before it at the distance of one slot: it waits for a
//! slot's sum when it is about to add to it, and sends it on as soon as the tape has no further
//! use of that slot. A slot that several operations add to (a tied embedding, at the head first
//! and at the tokens last) would hold up everything in between; a gradient that is added to it
//! before its last use is kept until then.

use super::compute::Compute;
use super::gradients::Gradients;
use candle_core::{Device, Result, Tensor, bail};
use std::collections::BTreeMap;

/// Brings the sums of the micro-batches before this one, and takes them on to the next.
pub trait Relay {
    /// Whether this is the first micro-batch of the step, which has nothing to bring.
    fn is_first(&self) -> bool;

    /// Fills in the running sum of this number: 2 × slot, or 2 × slot + 1 for its Gram matrix.
    ///
    /// # Errors
    /// If it does not come.
    fn receive(&mut self, number: usize, sum: &mut [f32]) -> Result<()>;

    /// Takes on the running sum of this number.
    ///
    /// # Errors
    /// If it cannot be sent.
    fn send(&mut self, number: usize, sum: &mut [f32]) -> Result<()>;
}

/// What an operation adds to a slot.
pub(super) enum Contribution {
    Sum { gradient: Tensor, shared: bool },
    Product { shape: Vec<usize>, a: Tensor, b: Tensor },
}

impl Contribution {
    /// Shape and device of the sum it belongs to.
    fn place(&self) -> (Vec<usize>, Device) {
        match self {
            Contribution::Sum { gradient, .. } => {
                (gradient.dims().to_vec(), gradient.device().clone())
            }
            Contribution::Product { shape, a, .. } => (shape.clone(), a.device().clone()),
        }
    }

    fn add_to(self, gradients: &mut Gradients, compute: Compute, slot: usize) -> Result<()> {
        match self {
            Contribution::Sum { gradient, shared } => {
                gradients.add(compute, slot, gradient, shared)
            }
            Contribution::Product { shape, a, b } => {
                gradients.add_product(compute, slot, &shape, &a, &b)
            }
        }
    }
}

/// Where the sums of one micro-batch are on their way.
pub(super) struct Passing<'a> {
    relay: &'a mut dyn Relay,
    compute: Compute,
    /// Operations that have yet to run backward, by the slot they add to.
    uses: BTreeMap<usize, usize>,
    /// What waits for the last use of a slot.
    kept: BTreeMap<usize, Vec<Contribution>>,
}

impl<'a> Passing<'a> {
    /// At the start of a backward pass over operations that use these slots, each as often as it
    /// is in the list. The gradients must not hold a sum of an earlier micro-batch.
    pub fn new(
        relay: &'a mut dyn Relay,
        compute: Compute,
        used: impl Iterator<Item = usize>,
    ) -> Self {
        let mut uses = BTreeMap::new();
        used.for_each(|slot| *uses.entry(slot).or_default() += 1);
        Self { relay, compute, uses, kept: BTreeMap::new() }
    }

    /// Adds to a slot, now or at its last use.
    pub fn add(
        &mut self,
        gradients: &mut Gradients,
        slot: usize,
        contribution: Contribution,
    ) -> Result<()> {
        // The factors of a product may change in place once their operation has run backward.
        let keeps = matches!(contribution, Contribution::Sum { .. });
        let is_used_again = self.uses.get(&slot).is_some_and(|uses| *uses > 1);
        if keeps && is_used_again && gradients.get(slot).is_none() {
            self.kept.entry(slot).or_default().push(contribution);
            return Ok(());
        }
        let (dims, device) = contribution.place();
        self.bring(gradients, slot, (&dims, &device))?;
        contribution.add_to(gradients, self.compute, slot)
    }

    /// Makes a slot hold the running sum, and what was kept for it.
    pub fn bring(
        &mut self,
        gradients: &mut Gradients,
        slot: usize,
        place: (&[usize], &Device),
    ) -> Result<()> {
        if gradients.get(slot).is_none() {
            if !self.uses.contains_key(&slot) {
                bail!("an operation adds to gradient slot {slot}, which is not among its inputs")
            }
            if !self.relay.is_first() {
                gradients.fill(slot, place, |sum| self.relay.receive(2 * slot, sum))?;
            }
        }
        for contribution in self.kept.remove(&slot).unwrap_or_default() {
            contribution.add_to(gradients, self.compute, slot)?;
        }
        Ok(())
    }

    /// Makes a slot's Gram matrix (r × r) the running sum.
    pub fn bring_gram(
        &mut self,
        gradients: &mut Gradients,
        slot: usize,
        place: (usize, &Device),
    ) -> Result<()> {
        if gradients.gram(slot).is_some() || self.relay.is_first() {
            return Ok(());
        }
        gradients.fill_gram(slot, place, |sum| self.relay.receive(2 * slot + 1, sum))
    }

    /// After an operation has run backward: sends on the slots that have no further use.
    pub fn used(&mut self, gradients: &mut Gradients, slots: &[usize]) -> Result<()> {
        for slot in slots {
            match self.uses.get_mut(slot) {
                Some(uses) if *uses > 1 => *uses -= 1,
                _ => {
                    self.send(gradients, *slot)?;
                    self.uses.remove(slot);
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, gradients: &mut Gradients, slot: usize) -> Result<()> {
        if let Some(first) = self.kept.get(&slot).and_then(|kept| kept.first()) {
            let (dims, device) = first.place();
            self.bring(gradients, slot, (&dims, &device))?;
        }
        if let Some(sum) = gradients.get(slot) {
            self.relay.send(2 * slot, &mut numbers(sum)?)?;
        }
        if let Some(gram) = gradients.gram(slot) {
            self.relay.send(2 * slot + 1, &mut numbers(gram)?)?;
        }
        Ok(())
    }
}

/// The numbers of an f32 tensor on any device, in host memory.
pub(super) fn numbers(sum: &Tensor) -> Result<Vec<f32>> {
    sum.flatten_all()?.to_vec1()
}
