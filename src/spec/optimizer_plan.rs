//! `optimizer:` of a plan: every rule that the weights need, and no other.

use super::dlra_spec::DlraSpec;
use super::model_plan::ModelPlan;
use super::model_spec::{TrainedForm, WeightsSpec};
use super::optimizer_spec::{
    AdamwSpec, DenseOptimizerSpec, GaloreSpec, HeavyBallSpec, LoroSpec, LowRankOptimizerSpec,
    MatrixOptimizerSpec, MuonSpec, OptimizerSpec,
};
use super::plan::WeightForm;
use serde::{Deserialize, Serialize};

/// The rules that move the weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerPlan {
    /// Rule for embeddings, norms, biases, and full matrices.
    pub dense: DenseOptimizerSpec,
    /// Rule for the blocks' full matrices where it is another; none where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrices: Option<MatrixOptimizerSpec>,
    /// Rule for low-rank or factored matrices; none exactly where the network has neither.
    pub low_rank: Option<LowRankOptimizerSpec>,
}

impl OptimizerPlan {
    /// The settings of DLRA where low-rank matrices are trained by it.
    pub fn dlra(&self) -> Option<&DlraSpec> {
        match &self.low_rank {
            Some(LowRankOptimizerSpec::Dlra(dlra)) => Some(dlra),
            _ => None,
        }
    }

    /// The settings of AdamW on factors where factored matrices are trained by it.
    pub fn factored_adamw(&self) -> Option<&AdamwSpec> {
        match &self.low_rank {
            Some(LowRankOptimizerSpec::Adamw(adamw)) => Some(adamw),
            _ => None,
        }
    }

    /// The settings of heavy ball on factors where factored matrices are trained by it.
    pub fn factored_heavy_ball(&self) -> Option<&HeavyBallSpec> {
        match &self.low_rank {
            Some(LowRankOptimizerSpec::HeavyBall(heavy_ball)) => Some(heavy_ball),
            _ => None,
        }
    }

    /// The settings of LORO where factored matrices are trained by it.
    pub fn loro(&self) -> Option<&LoroSpec> {
        match &self.low_rank {
            Some(LowRankOptimizerSpec::Loro(loro)) => Some(loro),
            _ => None,
        }
    }

    /// The settings of Muon where full matrices are trained by it.
    pub fn muon(&self) -> Option<&MuonSpec> {
        match &self.matrices {
            Some(MatrixOptimizerSpec::Muon(muon)) => Some(muon),
            _ => None,
        }
    }

    /// The settings of GaLore where full matrices are trained by it.
    pub fn galore(&self) -> Option<&GaloreSpec> {
        match &self.matrices {
            Some(MatrixOptimizerSpec::Galore(galore)) => Some(galore),
            _ => None,
        }
    }
}

pub(super) fn optimizer_plan(
    spec: &OptimizerSpec,
    weights: &WeightsSpec,
    model: &ModelPlan,
) -> OptimizerPlan {
    let trained = weights.trained_form();
    let default_rule = || match trained {
        TrainedForm::Dense => None,
        TrainedForm::LowRank => Some(LowRankOptimizerSpec::Dlra(DlraSpec::default())),
        TrainedForm::Factored(_) => {
            let DenseOptimizerSpec::Adamw(adamw) = &spec.dense;
            Some(LowRankOptimizerSpec::Adamw(adamw.clone()))
        }
    };
    let written = match (&spec.low_rank, trained) {
        (_, TrainedForm::Dense)
        | (Some(LowRankOptimizerSpec::Dlra(_)), TrainedForm::Factored(_)) => None,
        (Some(LowRankOptimizerSpec::Dlra(dlra)), _) => {
            Some(LowRankOptimizerSpec::Dlra(dlra.resolved()))
        }
        (rule, _) => rule.clone(),
    };
    let has_full_matrices =
        !model.is_adapted() && model.weights.values().any(|form| *form == WeightForm::Dense);
    let matrices = spec.matrices.clone().filter(|_| has_full_matrices);
    OptimizerPlan { dense: spec.dense.clone(), matrices, low_rank: written.or_else(default_rule) }
}
