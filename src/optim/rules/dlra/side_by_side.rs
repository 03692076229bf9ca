//! The steps of many low-rank weights: one after another's thread on the host, or as stacks where
//! the tensors live.

use super::{DlraState, DlraStep, DlraUpdate};
use crate::lowrank::{LowRank, Tangent};
use crate::optim::execution::{Placement, groups};
use crate::optim::gradient::Scaled;
use crate::optim::leaves::Leaves;
use crate::optim::rank::RankDecision;
use anyhow::Context;
use candle_core::{Device, Result};
use rayon::prelude::*;

/// One weight about to step.
pub struct Item<'a> {
    /// Name, for errors.
    pub name: &'a str,
    /// Its state.
    pub state: &'a DlraState,
    /// Where it is.
    pub point: &'a LowRank,
    /// Its tangent gradient.
    pub gradient: Scaled<'a, Tangent>,
    /// The numbers of its step.
    pub hyper: DlraStep<'a>,
}

/// Takes `step` on every item; the updates are in the items' order, and nothing is changed in
/// place.
///
/// On the device, weights whose rank stays step together if shape and rank are the same and they are
/// of the blocks: the number of kernels and of transfers does not grow with the number of layers. A
/// weight whose rank may change steps as a stack of one.
///
/// # Errors
/// As `step`, naming the weight, or the first and the number of a stack.
pub fn step_all(
    placement: Placement,
    items: &[Item],
    step: StepOf,
) -> anyhow::Result<Vec<DlraUpdate>> {
    match placement {
        Placement::Host => on_host(items, step),
        Placement::Device => {
            let key = |(index, item): (usize, &Item)| {
                let alone = if item.hyper.rank == RankDecision::Keep { 0 } else { index + 1 };
                let shape = (item.point.rows(), item.point.columns(), item.point.rank());
                (alone, item.hyper.of_head, shape)
            };
            let mut updates: Vec<Option<DlraUpdate>> = items.iter().map(|_| None).collect();
            for group in groups(items.iter().enumerate().map(key)) {
                let members: Vec<&Item> = group.iter().map(|&index| &items[index]).collect();
                let found = as_stack(&members, step).with_context(|| match members.as_slice() {
                    [one] => format!("the low-rank step of `{}` failed", one.name),
                    [first, ..] => format!(
                        "the low-rank step of `{}` and {} more of its shape failed",
                        first.name,
                        members.len() - 1
                    ),
                    [] => String::new(),
                })?;
                group
                    .into_iter()
                    .zip(found)
                    .for_each(|(index, update)| updates[index] = Some(update));
            }
            let all: Option<Vec<DlraUpdate>> = updates.into_iter().collect();
            all.context("a weight was left out of every stack")
        }
    }
}

/// A step of one weight, or of a stack of weights.
type StepOf<'a> =
    &'a (dyn Fn(&DlraState, &LowRank, Scaled<Tangent>, &DlraStep) -> Result<DlraUpdate> + Sync);

/// Steps in host memory, wherever the weights live; what has to travel does so before and after,
/// one after another.
fn on_host(items: &[Item], step: StepOf) -> anyhow::Result<Vec<DlraUpdate>> {
    let host = Device::Cpu;
    let hosted = |item: &Item| -> anyhow::Result<_> {
        let gradient = item.gradient.sum().to_device(&host)?;
        Ok((item.state.to_device(&host)?, item.point.to_device(&host)?, gradient))
    };
    let hosted = items.iter().map(hosted).collect::<anyhow::Result<Vec<_>>>()?;
    let stepped = items.par_iter().zip(&hosted).map(|(item, (state, point, gradient))| {
        step(state, point, item.gradient.with(gradient), &item.hyper)
            .with_context(|| format!("the low-rank step of `{}` failed", item.name))
    });
    let updates = stepped.collect::<anyhow::Result<Vec<_>>>()?;
    let back = |(item, update): (&Item, DlraUpdate)| update.to_device(item.point.u.device());
    items.iter().zip(updates).map(back).collect()
}

fn as_stack(items: &[&Item], step: StepOf) -> anyhow::Result<Vec<DlraUpdate>> {
    let [first, ..] = items else { return Ok(Vec::new()) };
    let point = LowRank::stack(&items.iter().map(|item| item.point).collect::<Vec<_>>())?;
    let sum = Tangent::stack(&items.iter().map(|item| item.gradient.sum()).collect::<Vec<_>>())?;
    let state = DlraState::stack(&items.iter().map(|item| item.state).collect::<Vec<_>>())?;
    let mut update = step(&state, &point, first.gradient.with(&sum), &first.hyper)?;
    let single = |(place, point)| -> anyhow::Result<DlraUpdate> {
        let [r_u, r_v] = &update.rotations;
        let rotations = [r_u.get(place)?, r_v.get(place)?];
        let state = update.state.unstacked(place)?;
        Ok(DlraUpdate { point, state, rotations, truncation: update.truncation.take() })
    };
    update.point.unstack()?.into_iter().enumerate().map(single).collect()
}
