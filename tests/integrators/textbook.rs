//! The dense textbook of both integrators.

use super::*;

pub fn truncated(w: &Mat<f64>, rank: usize) -> Mat<f64> {
    let (u, sigma, v) = truncated_svd(w, rank);
    u * Mat::from_fn(rank, rank, |i, j| if i == j { sigma[i] } else { 0.0 }) * v.transpose()
}

pub fn beside(a: &Mat<f64>, b: &Mat<f64>) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols() + b.ncols(), |i, j| {
        if j < a.ncols() { a[(i, j)] } else { b[(i, j - a.ncols())] }
    })
}

pub fn map(a: &Mat<f64>, f: impl Fn(f64) -> f64) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| f(a[(i, j)]))
}

pub fn quotient(a: &Mat<f64>, b: &Mat<f64>, epsilon: f64) -> Mat<f64> {
    Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] / (b[(i, j)].sqrt() + epsilon))
}

pub fn square(a: &Mat<f64>) -> Mat<f64> {
    map(a, |x| x * x)
}

/// The textbook: full matrices and bases, nothing else.
pub struct Textbook {
    pub w: Mat<f64>,
    pub u: Mat<f64>,
    pub v: Mat<f64>,
    /// First moment, as a full matrix.
    pub z: Mat<f64>,
    /// Second moments of M, P and Q with what each entry has gathered, in the bases above.
    pub second: [Mat<f64>; 3],
    pub gathered: [Mat<f64>; 3],
    pub offset: Mat<f64>,
    pub offset_moments: [Mat<f64>; 2],
}

impl Textbook {
    pub fn new(training: &Training) -> Self {
        let w = training.weight();
        let (m, n, r) = (w.nrows(), w.ncols(), training.point().rank());
        let (u, _, v) = truncated_svd(&w, r);
        let blocks = || [Mat::zeros(r, r), Mat::zeros(m, r), Mat::zeros(n, r)];
        let offset = training.offset();
        let zero = Mat::zeros(offset.nrows(), 1);
        Self {
            z: Mat::zeros(m, n),
            w,
            u,
            v,
            second: blocks(),
            gathered: blocks(),
            offset,
            offset_moments: [zero.clone(), zero],
        }
    }

    /// P_W(Z) = U Uᵀ Z + Z V Vᵀ − U Uᵀ Z V Vᵀ.
    pub fn project(&self, z: &Mat<f64>) -> Mat<f64> {
        let left = &self.u * (self.u.transpose() * z);
        let right = (z * &self.v) * self.v.transpose();
        let both = (&left * &self.v) * self.v.transpose();
        left + right - both
    }

    /// M, P and Q of a tangent vector.
    pub fn coordinates(&self, z: &Mat<f64>) -> [Mat<f64>; 3] {
        let m = self.u.transpose() * z * &self.v;
        let p = z * &self.v - &self.u * &m;
        let q = z.transpose() * &self.u - &self.v * m.transpose();
        [m, p, q]
    }

    /// [U | Q_P] and [V | Q_Q] with the Q factors of D's parts outside of U and V.
    pub fn augmented(&self, d: &Mat<f64>) -> (Mat<f64>, Mat<f64>) {
        let [_, p, q] = self.coordinates(d);
        let new = |basis: &Mat<f64>, part: Mat<f64>| {
            let count = part.ncols().min(basis.nrows() - basis.ncols());
            beside(basis, &part.subcols(0, count).to_owned().qr().compute_thin_Q())
        };
        (new(&self.u, p), new(&self.v, q))
    }

    /// AdamW's step of the offset by the first gradient.
    pub fn step_offset(&mut self, gradient: &Mat<f64>, step: u64) {
        let rule = AdamwSpec::default();
        let [m, v] = &self.offset_moments;
        let (m, v) = (
            rule.beta1 * m + (1.0 - rule.beta1) * gradient,
            rule.beta2 * v + (1.0 - rule.beta2) * square(gradient),
        );
        let (c1, c2) = (1.0 - rule.beta1.powi(step as i32), 1.0 - rule.beta2.powi(step as i32));
        self.offset -= 0.01 * quotient(&((1.0 / c1) * &m), &((1.0 / c2) * &v), rule.epsilon);
        self.offset_moments = [m, v];
    }

    /// The first gradient's part: moments, and the direction that augments.
    pub fn take_in(
        &mut self,
        gradient: &Mat<f64>,
        dlra: &DlraSpec,
        step: u64,
    ) -> (Mat<f64>, Mat<f64>) {
        let weight = if dlra.momentum == Momentum::HeavyBall { 1.0 } else { 1.0 - dlra.beta1 };
        let tangent = self.project(gradient);
        let m = dlra.beta1 * self.project(&self.z) + weight * &tangent;
        let mean = if dlra.nesterov { dlra.beta1 * &m + weight * &tangent } else { m.clone() };
        if dlra.momentum != Momentum::Adam {
            return (m, mean);
        }
        let (first, g) = (self.coordinates(&mean), self.coordinates(&tangent));
        let correction = 1.0 - dlra.beta1.powi(step as i32 + i32::from(dlra.nesterov));
        let mut d = [0, 1, 2].map(|block| {
            self.second[block] =
                dlra.beta2 * &self.second[block] + (1.0 - dlra.beta2) * square(&g[block]);
            self.gathered[block] =
                map(&self.gathered[block], |c| dlra.beta2 * c + 1.0 - dlra.beta2);
            let v = Mat::from_fn(first[block].nrows(), first[block].ncols(), |i, j| {
                self.second[block][(i, j)] / self.gathered[block][(i, j)]
            });
            quotient(&((1.0 / correction) * &first[block]), &v, dlra.epsilon)
        });
        d[1] = &d[1] - &self.u * (self.u.transpose() * &d[1]);
        d[2] = &d[2] - &self.v * (self.v.transpose() * &d[2]);
        (
            m,
            &self.u * &d[0] * self.v.transpose()
                + &d[1] * self.v.transpose()
                + &self.u * d[2].transpose(),
        )
    }

    /// Into the bases of the truncated matrix.
    pub fn settle(&mut self, w: &Mat<f64>, rank: usize) {
        let (u, _, v) = truncated_svd(w, rank);
        let (ru, rv) = (square(&(u.transpose() * &self.u)), square(&(self.v.transpose() * &v)));
        let outside =
            |x: &Mat<f64>, basis: &Mat<f64>| square(&(x - basis * (basis.transpose() * x)));
        let (enter_u, leave_u) = (outside(&u, &self.u), outside(&self.u, &u));
        let (enter_v, leave_v) = (outside(&v, &self.v), outside(&self.v, &v));
        let keep = |x: Mat<f64>, enter: &Mat<f64>| {
            Mat::from_fn(x.nrows(), x.ncols(), |i, j| {
                x[(i, j)] * (1.0 - (0..enter.ncols()).map(|k| enter[(i, k)]).sum::<f64>())
            })
        };
        // The gathered weights of P and Q are kept as means over the rows.
        let mean = |x: Mat<f64>| {
            Mat::from_fn(x.nrows(), x.ncols(), |_, j| {
                x.col(j).iter().sum::<f64>() / x.nrows() as f64
            })
        };
        for (moments, one_row) in [(&mut self.second, false), (&mut self.gathered, true)] {
            let [m, p, q] = &*moments;
            let right = m * &rv + q.transpose() * &enter_v;
            let left = &ru * m + enter_u.transpose() * p;
            let new_m = &ru * &right + enter_u.transpose() * p * &rv;
            let new_p = &leave_u * &right + keep(p * &rv, &enter_u);
            let new_q = &leave_v * left.transpose() + keep(q * ru.transpose(), &enter_v);
            *moments =
                if one_row { [new_m, mean(new_p), mean(new_q)] } else { [new_m, new_p, new_q] };
        }
        (self.w, self.u, self.v) = (truncated(w, rank), u, v);
    }

    pub fn augmented_bug(&mut self, problem: &Problem, dlra: &DlraSpec, step: u64) {
        let rank = self.u.ncols();
        let carried = self.project(&self.z);
        let (old_second, old_gathered) = (self.second.clone(), self.gathered.clone());
        let (_, gradient, by_offset) = problem.gradients(&self.w, &self.offset, step);
        let (m, d) = self.take_in(&gradient, dlra, step);
        let (u, v) = self.augmented(&d);
        let mut s = u.transpose() * &self.w * &v;
        let mut z = u.transpose() * &carried * &v;
        let (q_p, q_q) = (
            square(&u.subcols(rank, u.ncols() - rank).to_owned()),
            square(&v.subcols(rank, v.ncols() - rank).to_owned()),
        );
        let into = |[m, p, q]: &[Mat<f64>; 3]| {
            let (right, below) = (q.transpose() * &q_q, q_p.transpose() * p);
            Mat::from_fn(u.ncols(), v.ncols(), |i, j| match (i < rank, j < rank) {
                (true, true) => m[(i, j)],
                (true, false) => right[(i, j - rank)],
                (false, true) => below[(i - rank, j)],
                (false, false) => 0.0,
            })
        };
        let (mut second, mut gathered) = (into(&old_second), into(&old_gathered));
        let weight = if dlra.momentum == Momentum::HeavyBall { 1.0 } else { 1.0 - dlra.beta1 };
        for taken in 1..=dlra.coefficient_steps() {
            let (_, gradient, _) =
                problem.gradients(&(&u * &s * v.transpose()), &self.offset, step);
            let g = u.transpose() * &gradient * &v;
            z = dlra.beta1 * &z + weight * &g;
            let mean = if dlra.nesterov { dlra.beta1 * &z + weight * &g } else { z.clone() };
            let direction = match dlra.momentum {
                Momentum::Spectral => {
                    let (a, _, b) = truncated_svd(&mean, mean.nrows().min(mean.ncols()));
                    0.2 * (self.w.nrows().max(self.w.ncols()) as f64).sqrt() * (a * b.transpose())
                }
                Momentum::Adam => {
                    second = dlra.beta2 * &second + (1.0 - dlra.beta2) * square(&g);
                    gathered = map(&gathered, |c| dlra.beta2 * c + 1.0 - dlra.beta2);
                    let decays =
                        (step - 1) * dlra.coefficient_steps() + taken + u64::from(dlra.nesterov);
                    let v = Mat::from_fn(g.nrows(), g.ncols(), |i, j| {
                        second[(i, j)] / gathered[(i, j)]
                    });
                    quotient(
                        &((1.0 / (1.0 - dlra.beta1.powi(decays as i32))) * &mean),
                        &v,
                        dlra.epsilon,
                    )
                }
                Momentum::HeavyBall => mean,
                other => panic!("there is no textbook of {other:?} here"),
            };
            s = (1.0 - LEARNING_RATE * DECAY) * &s - LEARNING_RATE * direction;
        }
        self.z = &m + &u * (&z - u.transpose() * &m * &v) * v.transpose();
        self.settle(&(&u * &s * v.transpose()), rank);
        self.step_offset(&by_offset, step);
    }
}
