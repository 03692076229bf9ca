//! Where the linear algebra of a step runs, and weights of one shape side by side.

use crate::ops::Compute;
use crate::params::ParamStore;
use candle_core::Result;
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Where the linear algebra of low-rank and full matrices runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Placement {
    /// On the CPU by faer, weight beside weight on all threads; tensors of another device travel
    /// there and back.
    #[default]
    Host,
    /// Where the tensors live, by candle's products, all weights of one shape and rank as one
    /// stack.
    Device,
}

impl Placement {
    /// Whether this is [`Placement::Device`].
    pub fn is_device(self) -> bool {
        self == Self::Device
    }
}

/// How a step is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Execution {
    /// Element-wise rules and sums.
    pub compute: Compute,
    /// QR, polar factors, SVD, transport.
    pub linalg: Placement,
}

/// Groups the indices of equal keys; the groups and their members are in a fixed order.
pub fn groups<K: Ord>(keys: impl IntoIterator<Item = K>) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<K, Vec<usize>> = BTreeMap::new();
    keys.into_iter()
        .enumerate()
        .for_each(|(index, key)| groups.entry(key).or_default().push(index));
    groups.into_values().collect()
}

/// Applies `change` to every item: in parallel on the host; one after another on a device, which
/// has a single queue of work.
pub fn map_all<T: Send, R: Send>(
    placement: Placement,
    items: Vec<T>,
    change: impl Fn(T) -> anyhow::Result<R> + Send + Sync,
) -> anyhow::Result<Vec<R>> {
    match placement {
        Placement::Host => items.into_par_iter().map(change).collect(),
        Placement::Device => items.into_iter().map(change).collect(),
    }
}

/// Waits until the parameters' device has finished its work, so that times are right; does nothing
/// on the CPU.
pub fn wait_for(params: &ParamStore) -> Result<()> {
    let leaves = params.iter().next().map(|(_, parameter)| parameter.weight.leaves());
    match leaves.as_deref() {
        Some([(_, tensor), ..]) if !tensor.device().is_cpu() => tensor.device().synchronize(),
        _ => Ok(()),
    }
}
