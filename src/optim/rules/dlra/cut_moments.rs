//! Second moments that cuts in the Fisher norm go by, carried from one measurement to the next
//! (docs/method.md §6).

use super::momenta::FormMean;
use crate::lowrank::{BasisChange, LowRank};
use crate::optim::leaves::LeafMap;
use candle_core::{DType, Result, Tensor};

/// Of a point on the manifold: E_U of output gradients as U sees them and E_V of inputs as V does,
/// r × r each, E ← dE + (1−d)E_now at every measurement.
///
/// Into new bases they travel as quadratic forms, with the weights that their directions have
/// gathered: exactly within the old bases; what lies outside was never measured.
#[derive(Clone, Debug)]
pub(super) struct CutMoments {
    outputs: FormMean,
    inputs: FormMean,
}

impl CutMoments {
    /// Nothing measured yet at this point.
    pub fn new(point: &LowRank) -> Result<Self> {
        Ok(Self { outputs: FormMean::new(&point.s)?, inputs: FormMean::new(&point.s)? })
    }

    /// Takes in what was measured of output gradients and of inputs, (δU)ᵀ(δU) and zᵀz.
    pub fn update(&mut self, decay: f64, [outputs, inputs]: [&Tensor; 2]) -> Result<()> {
        self.outputs.update(decay, 1.0 - decay, outputs)?;
        self.inputs.update(decay, 1.0 - decay, inputs)
    }

    /// E_U ← R_U E_U R_Uᵀ and E_V ← R_Vᵀ E_V R_V, and alike their weights.
    pub fn transport(&mut self, change: &BasisChange) -> Result<()> {
        let (left, right) = (change.rotation_u(), change.rotation_v());
        self.outputs.transport(left, &left.t()?)?;
        self.inputs.transport(&right.t()?, right)
    }

    /// The means of what was measured, of output gradients and of inputs.
    pub fn means(&self) -> Result<[Tensor; 2]> {
        Ok([self.outputs.mean()?, self.inputs.mean()?])
    }

    /// The leaves `cut_outputs`, `cut_outputs_weight`, `cut_inputs` and `cut_inputs_weight`.
    pub fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        let outputs = self.outputs.map_leaves("cut_outputs", map)?;
        Ok(Self { outputs, inputs: self.inputs.map_leaves("cut_inputs", map)? })
    }
}

/// Of a weight that is dense until a cut: the whole second moments, m × m and n × n.
#[derive(Clone, Debug)]
pub(super) struct WholeMoments {
    outputs: Tensor,
    inputs: Tensor,
    /// The weight that both have gathered, one number.
    weight: Tensor,
}

impl WholeMoments {
    /// Nothing measured yet of this matrix.
    pub fn new(weight: &Tensor) -> Result<Self> {
        let (rows, columns) = weight.dims2()?;
        let zeros = |size| Tensor::zeros((size, size), weight.dtype(), weight.device());
        let gathered = Tensor::zeros(1, DType::F32, weight.device())?;
        Ok(Self { outputs: zeros(rows)?, inputs: zeros(columns)?, weight: gathered })
    }

    /// Takes in what was measured of output gradients and of inputs, δᵀδ and xᵀx.
    pub fn update(&mut self, decay: f64, [outputs, inputs]: [&Tensor; 2]) -> Result<()> {
        self.outputs = ((&self.outputs * decay)? + (outputs * (1.0 - decay))?)?;
        self.inputs = ((&self.inputs * decay)? + (inputs * (1.0 - decay))?)?;
        self.weight = self.weight.affine(decay, 1.0 - decay)?;
        Ok(())
    }

    /// The means of what was measured, of output gradients and of inputs.
    pub fn means(&self) -> Result<[Tensor; 2]> {
        let mean = |sum: &Tensor| sum.broadcast_div(&self.weight.to_dtype(sum.dtype())?);
        Ok([mean(&self.outputs)?, mean(&self.inputs)?])
    }

    /// The same as the bases of a point see them, UᵀE U and VᵀE V: nothing is lost.
    pub fn seen_by(&self, point: &LowRank) -> Result<CutMoments> {
        let outputs = FormMean::seen(&self.outputs, &self.weight, &point.u)?;
        Ok(CutMoments { outputs, inputs: FormMean::seen(&self.inputs, &self.weight, &point.v)? })
    }

    /// The leaves `cut_outputs`, `cut_inputs` and `cut_weight`.
    pub fn map_leaves(&self, map: &mut dyn LeafMap) -> anyhow::Result<Self> {
        Ok(Self {
            outputs: map.tensor("cut_outputs", &self.outputs)?,
            inputs: map.tensor("cut_inputs", &self.inputs)?,
            weight: map.tensor("cut_weight", &self.weight)?,
        })
    }
}
