//! The tape: what training differentiates through.
//!
//! candle's own autograd zero-fills and adds every gradient and its custom operations take three
//! arguments at most; on the CPU that costs more than the products. Here an operation records one
//! closure; the backward pass runs them in reverse, moves a first gradient in instead of adding it
//! to zeros, and frees each saved activation as soon as it is used.

use super::compute::Compute;
use super::few_rows::few_rows_product;
use super::gradients::{Gradients, Gram, add_in_place};
use super::product::{as_rows, multiplies_in_f32, product_by, product_into_by, widened_view};
use super::relay::{Contribution, Passing, Relay};
use crate::kernels::profile::{Work, backward_span, innermost};
use crate::kernels::{Real, mutate};
use candle_core::{Result, Tensor, bail};
use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

/// Where a value's gradient goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The output of the node of this index.
    Node(usize),
    /// A parameter's gradient slot.
    Slot(usize),
}

/// How a value's numbers are made again, to the bit, from what the backward pass keeps anyway.
#[derive(Clone)]
pub(super) struct Remake(Rc<dyn Fn() -> Result<Tensor>>);

impl Remake {
    /// The numbers, once more.
    pub fn again(&self) -> Result<Tensor> {
        (self.0)()
    }
}

impl fmt::Debug for Remake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Remake")
    }
}

/// A tensor, with the place of its gradient if it has one.
#[derive(Clone, Debug)]
pub struct Value {
    tensor: Tensor,
    source: Option<Source>,
    remake: Option<Remake>,
}

impl Value {
    /// The numbers.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Where the gradient goes; `None` where none is wanted.
    pub fn source(&self) -> Option<Source> {
        self.source
    }

    /// The same value for operations that keep their input: they keep instead how it is made again,
    /// so that it need not stay in memory until the backward pass.
    pub(super) fn made_again_by(self, remake: impl Fn() -> Result<Tensor> + 'static) -> Self {
        Self { remake: Some(Remake(Rc::new(remake))), ..self }
    }

    /// How its numbers are made again, where that is cheaper to keep than they are.
    pub(super) fn remake(&self) -> Option<&Remake> {
        self.remake.as_ref()
    }
}

type Backward = Box<dyn FnOnce(Tensor, &mut Flow) -> Result<()>>;

struct Node {
    backward: Backward,
    /// The gradient slots among the operation's inputs.
    slots: Vec<usize>,
    /// The operation, where its time is recorded.
    work: Option<Work>,
}

/// A record of operations, or of nothing in inference.
pub struct Tape {
    nodes: RefCell<Vec<Node>>,
    recording: bool,
    /// Whether products of few rows are made as [`few_rows_product`] makes them.
    few_rows: bool,
    compute: Compute,
}

impl Tape {
    /// A tape that records.
    pub fn training() -> Self {
        let (nodes, compute) = (RefCell::new(Vec::new()), Compute::default());
        Self { nodes, recording: true, few_rows: false, compute }
    }

    /// A tape that records and saves nothing.
    pub fn inference() -> Self {
        Self { recording: false, ..Self::training() }
    }

    /// The same tape for passes over few tokens at a time, whose products are of few rows.
    pub fn of_few_rows(self) -> Self {
        Self { few_rows: true, ..self }
    }

    /// The same tape with the CPU kernels turned off: every operation takes the path of candle
    /// operations that other devices take.
    pub fn portable(mut self) -> Self {
        self.compute.kernels = false;
        self
    }

    /// The same tape, computing in this way.
    pub fn computing(self, compute: Compute) -> Self {
        Self { compute, ..self }
    }

    /// a b for 2-D a and b, as this tape's products are made.
    pub(super) fn product(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        match self.few_rows {
            true => few_rows_product(self.compute, a, b),
            false => product_by(self.compute, a, b),
        }
    }

    /// How its operations compute.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Whether operations must save what their backward needs.
    pub fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether the CPU kernels are to be used for this tensor.
    pub fn uses_kernels(&self, x: &Tensor) -> bool {
        self.compute.takes_kernels(x)
    }

    /// Number of operations recorded so far.
    pub fn recorded(&self) -> usize {
        self.nodes.borrow().len()
    }

    /// A value without gradient.
    pub fn constant(&self, tensor: Tensor) -> Value {
        Value { tensor, source: None, remake: None }
    }

    /// A parameter whose gradient is added to this slot.
    pub fn parameter(&self, slot: usize, tensor: &Tensor) -> Value {
        let source = self.recording.then_some(Source::Slot(slot));
        Value { tensor: tensor.clone(), source, remake: None }
    }

    /// Records an operation's output; `backward` gets the output's gradient and passes gradients
    /// on.
    ///
    /// Nothing is recorded in inference, or if no input wants a gradient.
    pub fn record(
        &self,
        inputs: &[Option<Source>],
        output: Tensor,
        backward: impl FnOnce(Tensor, &mut Flow) -> Result<()> + 'static,
    ) -> Value {
        if !self.recording || inputs.iter().all(Option::is_none) {
            return Value { tensor: output, source: None, remake: None };
        }
        let mut nodes = self.nodes.borrow_mut();
        let slots = inputs.iter().filter_map(|input| match input {
            Some(Source::Slot(slot)) => Some(*slot),
            Some(Source::Node(_)) | None => None,
        });
        let (backward, work) = (Box::new(backward), innermost());
        nodes.push(Node { backward, slots: slots.collect(), work });
        Value { tensor: output, source: Some(Source::Node(nodes.len() - 1)), remake: None }
    }

    /// Runs the record backwards from a scalar and adds parameter gradients to `gradients`.
    ///
    /// # Errors
    /// If `loss` was not recorded on this tape, or an operation fails.
    pub fn backward(self, loss: &Value, gradients: &mut Gradients) -> Result<()> {
        self.run(loss, gradients, None)
    }

    /// [`Self::backward`] of a micro-batch whose sums come from another process and go on to the
    /// next; `gradients` is left with the sums up to this micro-batch.
    ///
    /// # Errors
    /// As [`Self::backward`], or if a sum does not come.
    pub fn backward_in_turn(
        self,
        loss: &Value,
        gradients: &mut Gradients,
        relay: &mut dyn Relay,
    ) -> Result<()> {
        gradients.forget_sums();
        self.run(loss, gradients, Some(relay))
    }

    fn run(
        self,
        loss: &Value,
        gradients: &mut Gradients,
        relay: Option<&mut dyn Relay>,
    ) -> Result<()> {
        let Some(source) = loss.source else {
            bail!("backward: no parameter influences this value, or the tape does not record")
        };
        let nodes = self.nodes.into_inner();
        let used = || nodes.iter().flat_map(|node| node.slots.iter().copied());
        let mut flow = Flow {
            arrived: (0..nodes.len()).map(|_| None).collect(),
            gradients,
            compute: self.compute,
            passing: relay.map(|relay| Passing::new(relay, self.compute, used())),
        };
        flow.add(Some(source), loss.tensor.ones_like()?)?;
        for (index, Node { backward, slots, work }) in nodes.into_iter().enumerate().rev() {
            if let Some(arrived) = flow.arrived[index].take() {
                let _span = backward_span(work);
                backward(arrived.tensor, &mut flow)?;
            }
            if let Some(passing) = &mut flow.passing {
                passing.used(flow.gradients, &slots)?;
            }
        }
        Ok(())
    }
}

/// Gradients on their way through the tape.
pub struct Flow<'a> {
    arrived: Vec<Option<Arrived>>,
    gradients: &'a mut Gradients,
    compute: Compute,
    /// Where the sums come from other processes.
    passing: Option<Passing<'a>>,
}

struct Arrived {
    tensor: Tensor,
    /// Whether another value's gradient may share the numbers, so that they must not be changed in
    /// place.
    shared: bool,
}

impl Flow<'_> {
    /// Adds a gradient that nothing else refers to.
    pub fn add(&mut self, to: Option<Source>, gradient: Tensor) -> Result<()> {
        self.arrive(to, Arrived { tensor: gradient, shared: false })
    }

    /// Adds a gradient whose numbers are also passed elsewhere.
    pub fn add_shared(&mut self, to: Option<Source>, gradient: Tensor) -> Result<()> {
        self.arrive(to, Arrived { tensor: gradient, shared: true })
    }

    fn arrive(&mut self, to: Option<Source>, new: Arrived) -> Result<()> {
        match to {
            None => Ok(()),
            Some(Source::Slot(slot)) => match &mut self.passing {
                None => self.gradients.add(self.compute, slot, new.tensor, new.shared),
                Some(passing) => {
                    let sum = Contribution::Sum { gradient: new.tensor, shared: new.shared };
                    passing.add(self.gradients, slot, sum)
                }
            },
            Some(Source::Node(index)) => {
                let add = |a: Tensor, b: &Tensor| add_in_place(self.compute, a, b);
                let sum = match self.arrived[index].take() {
                    None => new,
                    Some(old) if !old.shared => {
                        Arrived { tensor: add(old.tensor, &new.tensor)?, shared: false }
                    }
                    Some(old) if !new.shared => {
                        Arrived { tensor: add(new.tensor, &old.tensor)?, shared: false }
                    }
                    Some(old) => Arrived { tensor: (old.tensor + new.tensor)?, shared: false },
                };
                self.arrived[index] = Some(sum);
                Ok(())
            }
        }
    }

    /// Whether a gradient of a node's output has arrived so far.
    pub(super) fn has_arrived(&self, of: Option<Source>) -> bool {
        matches!(of, Some(Source::Node(index)) if self.arrived[index].is_some())
    }

    /// Adds the product a b, viewed in this shape; where possible directly into the existing
    /// buffer.
    pub fn add_product(
        &mut self,
        to: Option<Source>,
        shape: &[usize],
        a: &Tensor,
        b: &Tensor,
    ) -> Result<()> {
        match to {
            None => Ok(()),
            // A parameter's gradient is summed in f32, so it is not rounded on its way there.
            Some(Source::Slot(_)) if multiplies_in_f32(a) => {
                let (a, b) = (widened_view(a)?, widened_view(b)?);
                self.add_product(to, shape, &a, &b)
            }
            Some(Source::Slot(slot)) if self.compute.takes_kernels(a) => match &mut self.passing {
                None => self.gradients.add_product(self.compute, slot, shape, a, b),
                Some(passing) => {
                    let (shape, a, b) = (shape.to_vec(), a.clone(), b.clone());
                    passing.add(self.gradients, slot, Contribution::Product { shape, a, b })
                }
            },
            Some(Source::Node(index)) if self.compute.takes_kernels(a) => {
                match &self.arrived[index] {
                    Some(old)
                        if !old.shared
                            && old.tensor.dtype() == a.dtype()
                            && old.tensor.is_contiguous() =>
                    {
                        product_into_by(self.compute, &mut as_rows(&old.tensor)?, a, b, true)
                    }
                    _ => self.add(to, self.product(a, b)?.reshape(shape)?),
                }
            }
            Some(_) => self.add(to, self.product(a, b)?.reshape(shape)?),
        }
    }

    /// Adds the Gram matrix xᵀ x of rows x to a parameter's slot, if the gradients ask for its kind.
    pub(super) fn add_gram(&mut self, kind: Gram, to: Option<Source>, x: &Tensor) -> Result<()> {
        match to {
            Some(Source::Slot(slot)) if self.gradients.wants(kind) => {
                if let Some(passing) = &mut self.passing {
                    passing.bring_gram(self.gradients, slot, (x.dim(1)?, x.device()))?;
                }
                self.gradients.add_gram(self.compute, slot, x)
            }
            _ => Ok(()),
        }
    }

    /// a b, computed as the tape computes.
    pub fn product(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        product_by(self.compute, a, b)
    }

    /// How the tape computes.
    pub fn compute(&self) -> Compute {
        self.compute
    }

    /// Changes a parameter's buffer in place, filled with zeros of this tensor's kind if nothing
    /// has arrived yet; CPU only.
    pub fn update_slot<T: Real>(
        &mut self,
        to: Option<Source>,
        like: &Tensor,
        change: impl FnOnce(&mut [T]) -> Result<()>,
    ) -> Result<()> {
        match to {
            None => Ok(()),
            Some(Source::Slot(slot)) => {
                if let Some(passing) = &mut self.passing {
                    passing.bring(self.gradients, slot, (like.dims(), like.device()))?;
                }
                mutate(self.gradients.zeroed(slot, like)?, change)
            }
            Some(Source::Node(_)) => {
                let gradient = like.zeros_like()?;
                mutate(&gradient, change)?;
                self.add(to, gradient)
            }
        }
    }
}
