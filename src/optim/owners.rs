//! Which process owns which parameter where the optimizer is sharded over processes (ZeRO stage 1,
//! Rajbhandari et al. 2020, arXiv:1910.02054): the owner alone keeps the moments and takes the step.

use super::cost::{MovedWeight, RuleCost, WeightSize, rule_cost};
use crate::params::{Declared, ParamId, ParamStore, Parameter, Role, Weight};
use crate::spec::{DenseOptimizerSpec, FactorForm, OptimizerPlan, WeightForm};

/// What the element-wise passes of a step cost for a number, in operations of a matrix product:
/// they wait for memory.
const OPERATIONS_PER_NUMBER: u64 = 32;

/// A trained parameter as it is shared out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Movable {
    /// Which.
    pub id: ParamId,
    /// What it is for.
    pub role: Role,
    /// Its size; the rank is 0 unless it is a point on the manifold.
    pub weight: MovedWeight,
    /// Whether it is low-rank and dense until it is cut.
    pub is_uncut: bool,
}

impl Movable {
    /// The trained ones of these parameters.
    pub fn all(params: &ParamStore) -> Vec<Self> {
        let of = |(id, parameter): (ParamId, &Parameter)| {
            let (dims, rank) = match &parameter.weight {
                Weight::Dense(tensor) | Weight::Uncut(tensor) => (tensor.dims().to_vec(), 0),
                Weight::LowRank(point) => (vec![point.rows(), point.columns()], point.rank()),
            };
            let is_uncut = matches!(parameter.weight, Weight::Uncut(_));
            let movable = || Self { is_uncut, ..Self::new(id, parameter.role, &dims, rank) };
            parameter.trained.then(movable)
        };
        params.iter().filter_map(of).collect()
    }

    /// The trained ones of parameters that have no numbers yet.
    pub fn all_declared(declared: &[Declared]) -> Vec<Self> {
        let of = |(index, declared): (usize, &Declared)| {
            let (dims, is_uncut) = (declared.initial.shape(), declared.initial.is_uncut());
            let rank = declared.initial.rank().filter(|_| !is_uncut).unwrap_or(0);
            let new = || Self::new(ParamId(index), declared.role, &dims, rank);
            declared.trained.then(|| Self { is_uncut, ..new() })
        };
        declared.iter().enumerate().filter_map(of).collect()
    }

    fn new(id: ParamId, role: Role, dims: &[usize], rank: usize) -> Self {
        let rows = dims.first().copied().unwrap_or(1) as u64;
        let (columns, rank) = (dims.iter().skip(1).product::<usize>() as u64, rank as u64);
        let values = if rank > 0 { rank * (rows + columns + rank) } else { rows * columns };
        let weight = MovedWeight { size: WeightSize { rows, columns, rank }, values };
        Self { id, role, weight, is_uncut: false }
    }

    /// The rule that moves it.
    pub fn rule<'a>(&self, rules: &'a OptimizerPlan) -> &'a dyn RuleCost {
        let form = match (self.role, self.weight.size.rank) {
            (Role::Matrix(_), 0) if !self.is_uncut => WeightForm::Dense,
            (Role::Matrix(_), rank) => WeightForm::LowRank { rank: rank as usize },
            (Role::Factor(..), _) => WeightForm::Factored { rank: 0, form: FactorForm::Ba },
            _ => {
                let DenseOptimizerSpec::Adamw(dense) = &rules.dense;
                return dense;
            }
        };
        rule_cost(rules, form)
    }

    /// What its step costs, in operations of a matrix product.
    fn cost(&self, rules: &OptimizerPlan) -> u64 {
        let products = self.rule(rules).flops(&[self.weight], None);
        products + OPERATIONS_PER_NUMBER * self.weight.values
    }
}

/// The owner, from 0 to `world` − 1, of each of these parameters, a pure function of their sizes.
///
/// The costliest goes first, each to the process that has the least so far (Graham 1969: at most 4/3
/// of the best balance); of equal ones the first goes first, to the lowest process. The factors of
/// one matrix, which some rules move together, stay together.
pub fn share_out(rules: &OptimizerPlan, movables: &[Movable], world: usize) -> Vec<usize> {
    let mut together: Vec<(u64, Vec<usize>)> = Vec::new();
    for (index, movable) in movables.iter().enumerate() {
        let partner = match movable.role {
            Role::Factor(place, _) => together.iter_mut().find(|(_, members)| {
                members.iter().any(|member| {
                    matches!(movables[*member].role, Role::Factor(other, _) if other == place)
                })
            }),
            _ => None,
        };
        let cost = movable.cost(rules);
        match partner {
            Some((sum, members)) => {
                *sum += cost;
                members.push(index);
            }
            None => together.push((cost, vec![index])),
        }
    }
    together.sort_by_key(|(cost, _)| std::cmp::Reverse(*cost));
    let (mut loads, mut owners) = (vec![0u64; world.max(1)], vec![0; movables.len()]);
    for (cost, members) in together {
        let least = (0..loads.len()).min_by_key(|rank| loads[*rank]).unwrap_or(0);
        loads[least] += cost;
        members.into_iter().for_each(|member| owners[member] = least);
    }
    owners
}

/// The owners of all trained parameters, as one of the processes sees them.
#[derive(Clone, Debug)]
pub struct Owners {
    rank: usize,
    of: Vec<Option<usize>>,
}

impl Owners {
    /// The owners among `world` processes, of which this one has the number `rank`.
    pub fn new(rules: &OptimizerPlan, params: &ParamStore, rank: usize, world: usize) -> Self {
        let (movables, mut of) = (Movable::all(params), vec![None; params.len()]);
        let owners = share_out(rules, &movables, world);
        movables.iter().zip(owners).for_each(|(movable, owner)| of[movable.id.0] = Some(owner));
        Self { rank, of }
    }

    /// The process that owns a parameter; none if the parameter is frozen.
    pub fn of(&self, id: ParamId) -> Option<usize> {
        self.of.get(id.0).copied().flatten()
    }

    /// Whether this process owns a parameter.
    pub fn owns(&self, id: ParamId) -> bool {
        self.of(id) == Some(self.rank)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::{Factor, Place};
    use crate::spec::{AdamwSpec, Target};

    fn movable(id: usize, role: Role, dims: [usize; 2]) -> Movable {
        Movable::new(ParamId(id), role, &dims, 0)
    }

    #[test]
    fn the_costliest_goes_first_to_whoever_has_least_and_factors_stay_together() {
        let factor = |layer, factor| Role::Factor(Place { layer, target: Target::Q }, factor);
        let movables = [
            movable(0, Role::Embedding, [10, 10]),
            movable(1, factor(0, Factor::B), [20, 2]),
            movable(2, factor(0, Factor::A), [2, 20]),
            movable(3, factor(1, Factor::B), [5, 2]),
            movable(4, factor(1, Factor::A), [2, 5]),
            movable(5, Role::Norm, [5, 1]),
        ];
        let dense = DenseOptimizerSpec::Adamw(AdamwSpec::default());
        let rules = OptimizerPlan { low_rank: None, matrices: None, dense };
        assert_eq!(share_out(&rules, &movables, 1), [0; 6]);
        assert_eq!(share_out(&rules, &movables, 2), [0, 1, 1, 1, 1, 0]);
        assert_eq!(share_out(&rules, &movables, 9), [0, 1, 1, 2, 2, 3]);
    }
}
