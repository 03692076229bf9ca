//! A nonlinear problem, and the optimizer on it.

use super::*;

/// L(W, b) = ½ ‖tanh(A W B + b 1ᵀ) − Y‖², another A, B and Y for each batch: gradients at two
/// points differ.
pub struct Problem {
    pub rows: usize,
    pub columns: usize,
    pub batches: u64,
}

impl Problem {
    pub const OUTPUTS: usize = 9;
    pub const SAMPLES: usize = 8;

    pub fn gradients(
        &self,
        w: &Mat<f64>,
        offset: &Mat<f64>,
        step: u64,
    ) -> (f64, Mat<f64>, Mat<f64>) {
        let batch = step % self.batches;
        let a = 0.4 * random(Self::OUTPUTS, self.rows, "a", batch);
        let b = 0.4 * random(self.columns, Self::SAMPLES, "b", batch);
        let y = random(Self::OUTPUTS, Self::SAMPLES, "y", batch);
        let x = &a * w * &b;
        let t = Mat::from_fn(x.nrows(), x.ncols(), |i, j| (x[(i, j)] + offset[(i, 0)]).tanh());
        let delta = Mat::from_fn(x.nrows(), x.ncols(), |i, j| {
            (t[(i, j)] - y[(i, j)]) * (1.0 - t[(i, j)] * t[(i, j)])
        });
        let by_offset =
            Mat::from_fn(Self::OUTPUTS, 1, |i, _| (0..Self::SAMPLES).map(|j| delta[(i, j)]).sum());
        (0.5 * (&t - &y).squared_norm_l2(), a.transpose() * &delta * b.transpose(), by_offset)
    }
}

/// Gives the gradients of a problem as the network's backward does: K = G V and L = Gᵀ U, whatever
/// U and V are.
pub struct Oracle<'a> {
    pub problem: &'a Problem,
    pub step: u64,
    pub evaluations: u64,
    /// The evaluation of a step, counted from 1, whose gradient is not finite.
    pub broken: Option<u64>,
}

impl GradientOracle for Oracle<'_> {
    fn evaluate(&mut self, params: &ParamStore, gradients: &mut Gradients) -> Result<BatchLoss> {
        self.evaluations += 1;
        let Weight::LowRank(point) = &params.get(WEIGHT).weight else {
            panic!("the weight is low-rank")
        };
        let (loss, mut g, by_offset) = self.problem.gradients(
            &dense(&point.to_dense()?),
            &dense(params.dense(OFFSET)?),
            self.step,
        );
        if self.broken == Some(self.evaluations) {
            g[(0, 0)] = f64::NAN;
        }
        let g = tensor(&g);
        let tape = Tape::training();
        let u = tape.parameter(ParamStore::slot(WEIGHT), &point.u);
        let v = tape.parameter(ParamStore::l_slot(WEIGHT), &point.v);
        let b = tape.parameter(ParamStore::slot(OFFSET), params.dense(OFFSET)?);
        let (k, l, by_offset) =
            (g.matmul(&point.v)?, g.t()?.contiguous()?.matmul(&point.u)?, tensor(&by_offset));
        let (to_u, to_v, to_b) = (u.source(), v.source(), b.source());
        let output =
            tape.record(&[to_u, to_v, to_b], Tensor::new(loss, &Device::Cpu)?, move |_, flow| {
                flow.add(to_u, k)?;
                flow.add(to_v, l)?;
                flow.add(to_b, by_offset)
            });
        tape.backward(&output, gradients)?;
        Ok(BatchLoss { loss, micro_batches: 1 })
    }
}

/// A problem, and the optimizer on it.
pub struct Training {
    pub problem: Problem,
    pub params: ParamStore,
    pub optimizer: Optimizer,
    pub gradients: Gradients,
    pub step: u64,
}

impl Training {
    pub fn new(
        problem: Problem,
        rank: usize,
        low_rank: DlraSpec,
        ranks: RankPlan,
        max_steps: u64,
    ) -> Self {
        let start = random(problem.rows, problem.columns, "start", 0);
        let point = LowRank::from_dense(&tensor(&start), rank).expect("rank fits");
        Self::from(problem, point, low_rank, ranks, max_steps)
    }

    pub fn from(
        problem: Problem,
        point: LowRank,
        low_rank: DlraSpec,
        ranks: RankPlan,
        max_steps: u64,
    ) -> Self {
        let offset = tensor(&(0.1 * random(Problem::OUTPUTS, 1, "offset", 0)));
        let parameter =
            |name: &str, role, weight| Parameter { name: name.into(), role, weight, trained: true };
        let params = ParamStore::new(vec![
            parameter(
                "weight",
                Role::Matrix(Place { layer: 0, target: Target::UP }),
                Weight::LowRank(point),
            ),
            parameter("offset", Role::Bias, Weight::Dense(offset)),
        ])
        .expect("two names");
        let dense = AdamwSpec { learning_rate: 0.01, weight_decay: 0.0, ..AdamwSpec::default() };
        let settings = OptimizerSettings {
            rules: OptimizerPlan {
                dense: DenseOptimizerSpec::Adamw(dense),
                matrices: None,
                low_rank: Some(LowRankOptimizerSpec::Dlra(low_rank)),
            },
            ranks,
            schedule: Schedule::new(
                ScheduleSpec::Constant(ConstantScheduleSpec { warmup_steps: Count(0) }),
                max_steps,
            ),
            grad_clip: 0.0,
            execution: Execution::default(),
        };
        let optimizer = Optimizer::new(settings, &params).expect("an optimizer");
        let gradients = Gradients::new(params.slot_count());
        Self { problem, params, optimizer, gradients, step: 0 }
    }

    pub fn try_step(&mut self, broken: Option<u64>) -> Result<u64> {
        let mut oracle =
            Oracle { problem: &self.problem, step: self.step + 1, evaluations: 0, broken };
        self.optimizer.step(&mut self.params, &mut oracle, &mut self.gradients, self.step + 1)?;
        self.step += 1;
        Ok(oracle.evaluations)
    }

    pub fn step(&mut self) -> u64 {
        self.try_step(None).expect("a step")
    }

    pub fn point(&self) -> &LowRank {
        let Weight::LowRank(point) = &self.params.get(WEIGHT).weight else {
            panic!("the weight is low-rank")
        };
        point
    }

    pub fn weight(&self) -> Mat<f64> {
        dense(&self.point().to_dense().expect("dense"))
    }

    pub fn offset(&self) -> Mat<f64> {
        dense(self.params.dense(OFFSET).expect("dense"))
    }
}

pub fn settings(integrator: Integrator, momentum: Momentum, coefficient_steps: u64) -> DlraSpec {
    DlraSpec {
        integrator,
        momentum,
        coefficient_steps: Some(Count(coefficient_steps)),
        retraction: RetractionSpec::Svd,
        learning_rate: LEARNING_RATE,
        weight_decay: DECAY,
        reorthonormalize_every: Count(1_000_000),
        ..DlraSpec::default()
    }
}
