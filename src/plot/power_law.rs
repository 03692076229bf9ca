//! A power law through measured points.

/// y = a xᵇ, a straight line on two logarithmic axes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PowerLaw {
    /// a, the value at x = 1.
    pub coefficient: f64,
    /// b: where x doubles, y is multiplied by 2ᵇ.
    pub exponent: f64,
}

impl PowerLaw {
    /// The law that leaves the least Σ (ln y − ln a − b ln x)²; none unless all values are positive
    /// and finite and two x differ.
    pub fn through(points: &[(f64, f64)]) -> Option<Self> {
        let is_fit = |value: f64| value > 0.0 && value.is_finite();
        if points.is_empty() || !points.iter().all(|(x, y)| is_fit(*x) && is_fit(*y)) {
            return None;
        }
        let logs: Vec<(f64, f64)> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
        let count = logs.len() as f64;
        let mean_x = logs.iter().map(|log| log.0).sum::<f64>() / count;
        let mean_y = logs.iter().map(|log| log.1).sum::<f64>() / count;
        let spread: f64 = logs.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
        let common: f64 = logs.iter().map(|(x, y)| (x - mean_x) * (y - mean_y)).sum();
        let exponent = common / spread;
        let coefficient = (mean_y - exponent * mean_x).exp();
        (spread > 0.0).then_some(Self { coefficient, exponent })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.polyfit(numpy.log(x), numpy.log(y), 1)`, NumPy 2.4.6.
    #[test]
    fn least_squares_on_logarithms() {
        let law = PowerLaw::through(&[(6e11, 1.92), (6e12, 1.40), (1.6e14, 1.12)]).expect("a law");
        assert!((law.exponent - (-0.09454756063930184)).abs() < 1e-12, "{law:?}");
        assert!((law.coefficient - 24.050100418935738).abs() < 1e-9, "{law:?}");
    }

    #[test]
    fn an_exact_law_is_found_again() {
        let points = [1.0, 2.0, 8.0].map(|x: f64| (x, 3.0 * x.powf(-0.5)));
        let law = PowerLaw::through(&points).expect("a law");
        assert!((law.exponent + 0.5).abs() < 1e-14 && (law.coefficient - 3.0).abs() < 1e-13);
    }

    #[test]
    fn what_no_law_goes_through() {
        let none: [&[(f64, f64)]; 5] = [
            &[],
            &[(1.0, 2.0)],
            &[(1.0, 2.0), (1.0, 3.0)],
            &[(1.0, 2.0), (0.0, 3.0)],
            &[(1.0, 2.0), (2.0, f64::NAN)],
        ];
        for points in none {
            assert_eq!(PowerLaw::through(points), None, "{points:?}");
        }
    }
}
