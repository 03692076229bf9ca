//! Means with standard errors, and paired differences.

use statrs::distribution::{ContinuousCDF, StudentsT};

/// A mean over seeds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Number of values, n.
    pub count: usize,
    /// x̄ = Σ xᵢ / n.
    pub mean: f64,
    /// Standard error s/√n with s² = Σ (xᵢ − x̄)² / (n − 1); none for a single value.
    pub standard_error: Option<f64>,
}

impl Estimate {
    /// The mean of these values; none if there are none.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.is_empty() {
            return None;
        }
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = (count > 1)
            .then(|| values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (count - 1) as f64);
        Some(Self {
            count,
            mean,
            standard_error: variance.map(|variance| (variance / count as f64).sqrt()),
        })
    }

    /// Half the width of the 95% interval of the mean by Student's t with n − 1 degrees of freedom;
    /// none for a single value.
    pub fn half_interval(&self) -> Option<f64> {
        Some(t_quantile(0.975, self.count - 1)? * self.standard_error?)
    }

    /// Two-sided p of the hypothesis that the true mean is 0; none for a single value.
    pub fn p_of_zero(&self) -> Option<f64> {
        let error = self.standard_error?;
        let student = StudentsT::new(0.0, 1.0, (self.count - 1) as f64).ok()?;
        match error > 0.0 {
            true => Some(2.0 * student.cdf(-(self.mean / error).abs())),
            // All differences are the same number.
            false => Some(if self.mean == 0.0 { 1.0 } else { 0.0 }),
        }
    }
}

/// The mean of yᵢ − xᵢ over pairs that share a seed; pairing removes the spread that the seeds have
/// in common.
pub fn paired_difference(pairs: &[(f64, f64)]) -> Option<Estimate> {
    Estimate::of(&pairs.iter().map(|(x, y)| y - x).collect::<Vec<_>>())
}

/// The quantile of Student's t distribution; none without degrees of freedom.
fn t_quantile(probability: f64, degrees: usize) -> Option<f64> {
    let student = StudentsT::new(0.0, 1.0, degrees as f64).ok()?;
    Some(student.inverse_cdf(probability))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64, tolerance: f64) {
        assert!((a - b).abs() < tolerance, "{a} is not {b}");
    }

    /// Student's 1908 data on hours of sleep gained under two drugs, ten patients (R's data set
    /// `sleep`). scipy 1.17.1, `scipy.stats.ttest_rel`: t = -4.062128, 9 degrees of freedom, p =
    /// 0.002832890, 95% interval -2.459885763 to -0.700114237.
    #[test]
    fn students_own_data() {
        let first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0];
        let second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4];
        let pairs: Vec<_> = second.into_iter().zip(first).collect();
        let difference = paired_difference(&pairs).expect("ten pairs");
        close(difference.mean, -1.58, 1e-12);
        close(difference.mean / difference.standard_error.expect("an error"), -4.062128, 5e-7);
        close(difference.mean - difference.half_interval().expect("an interval"), -2.4598858, 5e-7);
        close(difference.mean + difference.half_interval().expect("an interval"), -0.7001142, 5e-7);
        close(difference.p_of_zero().expect("a p"), 0.002832890, 5e-10);
    }

    /// `scipy.stats.t.ppf(0.975, n)`, scipy 1.17.1.
    #[test]
    fn quantiles_of_few_seeds() {
        for (degrees, expected) in [(1, 12.706205), (2, 4.302653), (3, 3.182446), (9, 2.262157)] {
            close(t_quantile(0.975, degrees).expect("a quantile"), expected, 5e-7);
        }
    }

    #[test]
    fn one_value_has_no_error() {
        let one = Estimate::of(&[2.5]).expect("a mean");
        assert_eq!(
            (one.mean, one.standard_error, one.half_interval(), one.p_of_zero()),
            (2.5, None, None, None)
        );
        assert_eq!(Estimate::of(&[]), None);
        assert_eq!(Estimate::of(&[1.0, 1.0]).expect("a mean").standard_error, Some(0.0));
    }
}
