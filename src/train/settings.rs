//! From a plan to the network's configuration and the optimizer's rules.

use crate::model::ModelConfig;
use crate::ops::Compute;
use crate::optim::{Execution, OptimizerSettings, Placement, Schedule};
use crate::spec::{ComputeType, KernelsSpec, LinalgSpec, Plan};
use candle_core::{DType, Device};

/// The network of a plan, once the vocabulary is known.
pub fn model_config(plan: &Plan, vocab_size: usize) -> ModelConfig {
    ModelConfig { model: plan.model.clone(), vocab_size }
}

/// How a plan's network computes.
pub fn compute(plan: &Plan) -> Compute {
    Compute {
        kernels: plan.kernels == KernelsSpec::Auto,
        half: match plan.dtype.compute {
            ComputeType::F32 => None,
            ComputeType::Bf16 => Some(DType::BF16),
        },
    }
}

/// How a plan's optimizer computes on this device.
fn execution(plan: &Plan, device: &Device) -> Execution {
    let linalg = match plan.linalg {
        LinalgSpec::Auto if device.is_cpu() => Placement::Host,
        LinalgSpec::Host => Placement::Host,
        LinalgSpec::Auto | LinalgSpec::Device => Placement::Device,
    };
    Execution { compute: compute(plan), linalg }
}

/// The rules of a plan, on this device.
pub fn optimizer_settings(plan: &Plan, device: &Device) -> OptimizerSettings {
    OptimizerSettings {
        rules: plan.optimizer.clone(),
        ranks: plan.rank.clone(),
        schedule: Schedule::new(plan.schedule.clone(), plan.train.max_steps.0),
        grad_clip: plan.train.grad_clip,
        execution: execution(plan, device),
    }
}
