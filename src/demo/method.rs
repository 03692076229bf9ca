//! The rules of the training code, applied to the factors or to the point of a small problem.

use super::problem::Instance;
use crate::linalg::multiply;
use crate::lowrank::{LowRank, Tangent};
use crate::ops::Compute;
use crate::optim::{
    AdamwState, AdamwStep, DlraState, DlraStep, HeavyBallState, RankDecision, Scaled,
};
use crate::spec::{AdamwSpec, DlraSpec, HeavyBallSpec, Momentum, RetractionSpec};
use candle_core::{Result, Tensor};
use serde::Serialize;

/// A rule and what it acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Heavy ball on B and A.
    FactoredHeavyBall,
    /// Heavy ball in the tangent space.
    HeavyBall,
    /// Adam on B and A.
    FactoredAdam,
    /// Element-wise second moments of the tangent coordinates.
    Adam,
    /// r × r second moments.
    MatrixAdam,
    /// Polar factor of the tangent momentum.
    Spectral,
}

impl Method {
    /// All methods, each geometric one after the rule on factors that it replaces.
    pub const ALL: [Method; 6] = [
        Method::FactoredHeavyBall,
        Method::HeavyBall,
        Method::FactoredAdam,
        Method::Adam,
        Method::MatrixAdam,
        Method::Spectral,
    ];

    /// Name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Method::FactoredHeavyBall => "heavy ball on B, A",
            Method::HeavyBall => "DLRA heavy_ball",
            Method::FactoredAdam => "Adam on B, A",
            Method::Adam => "DLRA adam",
            Method::MatrixAdam => "DLRA matrix_adam",
            Method::Spectral => "DLRA spectral",
        }
    }

    /// Whether it acts on the factors.
    pub fn is_factored(self) -> bool {
        matches!(self, Method::FactoredHeavyBall | Method::FactoredAdam)
    }

    /// The method at the start of a problem.
    pub(super) fn start(self, instance: &Instance) -> Result<Weights> {
        let momentum = match self {
            Method::FactoredHeavyBall => {
                return Weights::factors(instance, HeavyBallState::new, Weights::HeavyBall);
            }
            Method::FactoredAdam => {
                return Weights::factors(instance, AdamwState::new, Weights::Adam);
            }
            Method::HeavyBall => Momentum::HeavyBall,
            Method::Adam => Momentum::Adam,
            Method::MatrixAdam => Momentum::MatrixAdam,
            Method::Spectral => Momentum::Spectral,
        };
        let settings = DlraSpec {
            momentum,
            retraction: RetractionSpec::Svd,
            weight_decay: 0.0,
            ..DlraSpec::default()
        };
        let point = instance.point()?;
        let state = DlraState::new(&point, &settings)?;
        Ok(Weights::Point { point, state, settings: Box::new(settings) })
    }
}

/// W as a method sees it, with its state.
pub(super) enum Weights {
    /// B, A and their momenta.
    HeavyBall([(Tensor, HeavyBallState); 2]),
    /// B, A and their moments.
    Adam([(Tensor, AdamwState); 2]),
    /// U S Vᵀ and its moments.
    Point { point: LowRank, state: DlraState, settings: Box<DlraSpec> },
}

impl Weights {
    fn factors<S>(
        instance: &Instance,
        state: impl Fn(&Tensor) -> Result<S>,
        wrap: fn([(Tensor, S); 2]) -> Self,
    ) -> Result<Self> {
        // Copies, since the dense rules work in place.
        let with_state =
            |factor: &Tensor| -> Result<(Tensor, S)> { Ok((factor.copy()?, state(factor)?)) };
        Ok(wrap([with_state(instance.left())?, with_state(instance.right())?]))
    }

    /// W: m × n. Training never forms it; here it is small, and the error needs it.
    pub fn product(&self) -> Result<Tensor> {
        match self {
            Weights::HeavyBall([(left, _), (right, _)]) => multiply(left, right),
            Weights::Adam([(left, _), (right, _)]) => multiply(left, right),
            Weights::Point { point, .. } => point.to_dense(),
        }
    }

    /// A step, counted from 1, with this gradient of f at W: m × n.
    pub fn step(&mut self, gradient: &Tensor, learning_rate: f64, step: u64) -> Result<()> {
        match self {
            Weights::HeavyBall(factors) => {
                let rule = HeavyBallSpec { weight_decay: 0.0, ..HeavyBallSpec::default() };
                for (gradient, (factor, state)) in
                    of_factors(gradient, &factors[0].0, &factors[1].0)?.iter().zip(factors)
                {
                    let gradient = Scaled::new(gradient, 1.0);
                    state.step(Compute::default(), factor, gradient, &rule, learning_rate)?;
                }
            }
            Weights::Adam(factors) => {
                let AdamwSpec { beta1, beta2, epsilon, .. } = AdamwSpec::default();
                let compute = Compute::default();
                let rule = AdamwStep {
                    learning_rate,
                    beta1,
                    beta2,
                    epsilon,
                    weight_decay: 0.0,
                    step,
                    compute,
                };
                for (gradient, (factor, state)) in
                    of_factors(gradient, &factors[0].0, &factors[1].0)?.iter().zip(factors)
                {
                    state.step(factor, Scaled::new(gradient, 1.0), &rule)?;
                }
            }
            Weights::Point { point, state, settings } => {
                let tangent = Tangent::project(point, gradient)?;
                let rule = DlraStep {
                    settings,
                    learning_rate,
                    step,
                    rank: RankDecision::Keep,
                    of_head: false,
                };
                let update = state.step(point, Scaled::new(&tangent, 1.0), &rule)?;
                (*point, *state) = (update.point, update.state);
            }
        }
        Ok(())
    }
}

/// ∂f/∂B = G Aᵀ and ∂f/∂A = Bᵀ G.
fn of_factors(gradient: &Tensor, left: &Tensor, right: &Tensor) -> Result<[Tensor; 2]> {
    Ok([multiply(gradient, &right.t()?)?, multiply(&left.t()?, gradient)?])
}
