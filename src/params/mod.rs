//! The parameters of a model, in one fixed order, each dense or low-rank.
//!
//! The model keeps ids and looks weights up here, so a rank change (new shapes) can never leave a
//! layer with an old weight. A network declares what parameters it has; their numbers are drawn
//! from a seed or read by name.

mod declared;
mod reader;
#[cfg(test)]
mod tests;

pub use declared::{Declared, Initial};
pub use reader::TensorReader;

use crate::lowrank::{LowRank, singular_values};
use crate::spec::Target;
use candle_core::{DType, Device, Result, Tensor, bail};
use std::collections::{BTreeMap, BTreeSet};

/// Index of a parameter in its [`ParamStore`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ParamId(pub usize);

/// The numbers of one parameter.
#[derive(Clone, Debug)]
pub enum Weight {
    /// A tensor of any shape.
    Dense(Tensor),
    /// A matrix W = U S Vᵀ.
    LowRank(LowRank),
    /// A matrix that becomes a W = U S Vᵀ at a cut of its rank and is dense, m × n, until then.
    Uncut(Tensor),
}

impl Weight {
    /// Names and tensors of the parts: the tensor itself under `""`, or `.u`, `.s`, `.v`.
    pub fn leaves(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Weight::Dense(tensor) | Weight::Uncut(tensor) => vec![("", tensor)],
            Weight::LowRank(point) => vec![(".u", &point.u), (".s", &point.s), (".v", &point.v)],
        }
    }

    /// The rank that a rank policy decides: r of W = U S Vᵀ, and min(m, n) until it is cut; none of
    /// a weight that stays dense.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Weight::Dense(_) => None,
            Weight::LowRank(point) => Some(point.rank()),
            Weight::Uncut(tensor) => tensor.dims().iter().min().copied(),
        }
    }

    /// The singular values of a matrix in any form, in decreasing order.
    ///
    /// # Errors
    /// If it is no matrix or not finite, or the SVD does not converge.
    pub fn singular_values(&self) -> Result<Vec<f64>> {
        match self {
            Weight::LowRank(point) => point.singular_values(),
            Weight::Dense(tensor) | Weight::Uncut(tensor) => singular_values(tensor),
        }
    }
}

/// A weight matrix's place in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Transformer block, counted from 0; their number for the head.
    pub layer: usize,
    /// Which matrix of the block, or the head.
    pub target: Target,
}

/// What a parameter is for; decides its optimizer rule and weight decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Token or position table.
    Embedding,
    /// The head that gives the logits, where it is not the table of tokens.
    Head,
    /// Weight or bias of a norm.
    Norm,
    /// Bias of a linear layer.
    Bias,
    /// A block's weight matrix, dense or low-rank.
    Matrix(Place),
    /// A free factor of a block's weight matrix.
    Factor(Place, Factor),
}

/// One of the free factors of a matrix W: m × n.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Factor {
    /// B: m × r, of W = B A.
    B,
    /// A: r × n, of W = B A.
    A,
    /// U: m × r, of W = U S Vᵀ.
    U,
    /// S: r × r, of W = U S Vᵀ.
    S,
    /// Vᵀ: r × n, of W = U S Vᵀ.
    VTransposed,
}

impl Factor {
    /// This factor of a W = U S Vᵀ whose S is diagonal and not negative; B = U √S and A = √S Vᵀ are
    /// balanced.
    ///
    /// # Errors
    /// If the device has no memory for it.
    pub fn of(self, point: &LowRank) -> Result<Tensor> {
        let LowRank { u, s, v } = point;
        match self {
            Factor::B => u.matmul(&s.sqrt()?),
            Factor::A => s.sqrt()?.matmul(&v.t()?),
            Factor::U => Ok(u.clone()),
            Factor::S => Ok(s.clone()),
            Factor::VTransposed => v.t()?.contiguous(),
        }
    }

    /// Last part of its name in checkpoints.
    pub fn name(self) -> &'static str {
        match self {
            Factor::B => "b",
            Factor::A => "a",
            Factor::U => "u",
            Factor::S => "s",
            Factor::VTransposed => "vt",
        }
    }
}

/// One named parameter.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Name in checkpoints, in the spirit of Hugging Face's: `transformer.h.0.attn.q`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its numbers.
    pub weight: Weight,
    /// Whether training changes it; a frozen one has no gradient and no moments.
    pub trained: bool,
}

impl Parameter {
    /// Count of its numbers: dense entries, and r (m + n + r) for a low-rank weight.
    pub fn element_count(&self) -> usize {
        self.weight.leaves().iter().map(|(_, tensor)| tensor.elem_count()).sum()
    }
}

/// All parameters, in the order the model declares them.
#[derive(Clone, Debug, Default)]
pub struct ParamStore {
    parameters: Vec<Parameter>,
}

impl ParamStore {
    /// A store of these parameters.
    ///
    /// # Errors
    /// If two parameters share a name.
    pub fn new(parameters: Vec<Parameter>) -> Result<Self> {
        let mut names = BTreeSet::new();
        if let Some(twice) = parameters.iter().find(|p| !names.insert(p.name.as_str())) {
            bail!("two parameters are named `{}`", twice.name)
        }
        Ok(Self { parameters })
    }

    /// Parameters with their first numbers, a pure function of the seed and each one's name.
    ///
    /// # Errors
    /// If two parameters share a name, or a tensor cannot be made.
    pub fn initialize(
        declared: &[Declared],
        seed: u64,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let draw = |declared: &Declared| declared.draw(seed, dtype, device);
        Self::new(declared.iter().map(draw).collect::<Result<_>>()?)
    }

    /// Parameters with numbers read by name; low-rank weights have the ranks they were saved with.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than the one declared, or is left over.
    pub fn load(
        declared: &[Declared],
        mut reader: TensorReader,
        dtype: DType,
        device: &Device,
    ) -> anyhow::Result<Self> {
        let parameters = declared
            .iter()
            .map(|declared| declared.read(&mut reader, dtype, device))
            .collect::<anyhow::Result<_>>()?;
        reader.finish()?;
        Ok(Self::new(parameters)?)
    }

    /// Parameters with these weights, by name; those that none is declared for are left.
    ///
    /// # Errors
    /// If one that is declared has no weight, or two share a name.
    pub fn of_weights(
        declared: &[Declared],
        mut weights: BTreeMap<String, Weight>,
    ) -> Result<Self> {
        let parameter = |declared: &Declared| -> Result<Parameter> {
            let Some((name, weight)) = weights.remove_entry(&declared.name) else {
                bail!("the model has no parameter `{}`", declared.name)
            };
            Ok(Parameter { name, role: declared.role, weight, trained: declared.trained })
        };
        Self::new(declared.iter().map(parameter).collect::<Result<_>>()?)
    }

    /// The weights by name.
    pub fn weights(&self) -> BTreeMap<String, Weight> {
        let named = |parameter: &Parameter| (parameter.name.clone(), parameter.weight.clone());
        self.parameters.iter().map(named).collect()
    }

    /// Number of parameters (named weights, not numbers).
    pub fn len(&self) -> usize {
        self.parameters.len()
    }

    /// Whether there are no parameters.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty()
    }

    /// The parameters with their ids.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &Parameter)> {
        self.parameters.iter().enumerate().map(|(index, parameter)| (ParamId(index), parameter))
    }

    /// The parameter of this id.
    pub fn get(&self, id: ParamId) -> &Parameter {
        &self.parameters[id.0]
    }

    /// Replaces a parameter's numbers; a low-rank weight may change its rank.
    pub fn set(&mut self, id: ParamId, weight: Weight) {
        self.parameters[id.0].weight = weight;
    }

    /// A dense parameter's tensor.
    ///
    /// # Errors
    /// If the parameter is low-rank.
    pub fn dense(&self, id: ParamId) -> Result<&Tensor> {
        match &self.get(id).weight {
            Weight::Dense(tensor) | Weight::Uncut(tensor) => Ok(tensor),
            Weight::LowRank(_) => {
                bail!("`{}` is low-rank where a dense tensor is needed", self.get(id).name)
            }
        }
    }

    /// A low-rank weight's point.
    ///
    /// # Errors
    /// If the parameter is dense.
    pub fn point(&self, id: ParamId) -> Result<&LowRank> {
        match &self.get(id).weight {
            Weight::LowRank(point) => Ok(point),
            Weight::Dense(_) | Weight::Uncut(_) => {
                bail!("`{}` is dense where a low-rank weight is needed", self.get(id).name)
            }
        }
    }

    /// Says whether training changes a parameter.
    pub fn set_trained(&mut self, id: ParamId, trained: bool) {
        self.parameters[id.0].trained = trained;
    }

    /// Count of trained numbers: dense entries, and r (m + n + r) for a low-rank weight.
    pub fn element_count(&self) -> usize {
        self.parameters.iter().filter(|p| p.trained).map(Parameter::element_count).sum()
    }

    /// Count of all numbers, those of frozen parameters included.
    pub fn total_element_count(&self) -> usize {
        self.parameters.iter().map(Parameter::element_count).sum()
    }

    /// Count of the numbers that training leaves as they are.
    pub fn frozen_element_count(&self) -> usize {
        self.total_element_count() - self.element_count()
    }

    /// The low-rank weights that are factors.
    pub fn low_rank(&self) -> impl Iterator<Item = (ParamId, &Parameter, &LowRank)> {
        self.iter().filter_map(|(id, parameter)| match &parameter.weight {
            Weight::LowRank(point) => Some((id, parameter, point)),
            Weight::Dense(_) | Weight::Uncut(_) => None,
        })
    }

    /// The low-rank weights that are dense until they are cut.
    pub fn uncut(&self) -> impl Iterator<Item = (ParamId, &Parameter, &Tensor)> {
        self.iter().filter_map(|(id, parameter)| match &parameter.weight {
            Weight::Uncut(tensor) => Some((id, parameter, tensor)),
            Weight::Dense(_) | Weight::LowRank(_) => None,
        })
    }

    /// The low-rank weights, cut or not, with their ranks ([`Weight::rank`]).
    pub fn ranks(&self) -> impl Iterator<Item = (ParamId, &Parameter, usize)> {
        self.iter().filter_map(|(id, parameter)| Some((id, parameter, parameter.weight.rank()?)))
    }

    /// The factors (B, A) of every matrix W = B A.
    pub fn factor_pairs(&self) -> Vec<(ParamId, ParamId)> {
        let partner = |b: Place| {
            self.iter()
                .find(|(_, parameter)| parameter.role == Role::Factor(b, Factor::A))
                .map(|(id, _)| id)
        };
        let pair = |(id, parameter): (ParamId, &Parameter)| match parameter.role {
            Role::Factor(place, Factor::B) => Some((id, partner(place)?)),
            _ => None,
        };
        self.iter().filter_map(pair).collect()
    }

    /// Mean rank of the low-rank weights, cut or not, or `None` where there are none.
    pub fn mean_rank(&self) -> Option<f64> {
        let ranks: Vec<usize> = self.ranks().map(|(_, _, rank)| rank).collect();
        (!ranks.is_empty()).then(|| ranks.iter().sum::<usize>() as f64 / ranks.len() as f64)
    }

    /// Every tensor under its checkpoint name: `name` for a dense parameter, `name.u`, `name.s`,
    /// `name.v` for a low-rank one.
    pub fn named_tensors(&self) -> Vec<(String, Tensor)> {
        let leaves = |p: &Parameter| -> Vec<_> {
            p.weight
                .leaves()
                .into_iter()
                .map(|(leaf, t)| (format!("{}{leaf}", p.name), t.clone()))
                .collect()
        };
        self.parameters.iter().flat_map(leaves).collect()
    }

    /// The gradient slot of a dense parameter, cut later or never, or of a low-rank weight's U (its
    /// K-gradient).
    pub fn slot(id: ParamId) -> usize {
        2 * id.0
    }

    /// The gradient slot of a low-rank weight's V (its L-gradient); of a dense matrix, cut later or
    /// never, only the second moment of its inputs is there.
    pub fn l_slot(id: ParamId) -> usize {
        2 * id.0 + 1
    }

    /// The parameter that a gradient slot belongs to.
    pub fn of_slot(slot: usize) -> ParamId {
        ParamId(slot / 2)
    }

    /// Number of gradient slots.
    pub fn slot_count(&self) -> usize {
        2 * self.len()
    }
}
