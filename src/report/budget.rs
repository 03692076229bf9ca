//! Loss at equal spending: the loss a run had reached by the time it had spent as much as another.

use super::run_results::Point;

/// What is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spending {
    /// Tokens trained on.
    Tokens,
    /// Counted operations.
    Flops,
    /// Seconds of training steps.
    Seconds,
}

impl Spending {
    /// All kinds, in the order in which they are reported.
    pub const ALL: [Self; 3] = [Self::Tokens, Self::Flops, Self::Seconds];

    /// How much had been spent at a validation.
    pub fn of(self, point: &Point) -> f64 {
        match self {
            Self::Tokens => point.tokens,
            Self::Flops => point.flops,
            Self::Seconds => point.seconds,
        }
    }

    /// Its name: `tokens`, `FLOPs`, `seconds`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Flops => "FLOPs",
            Self::Seconds => "seconds",
        }
    }
}

/// The validation loss at this spending, interpolated linearly between two validations; none if the
/// run spent less, or if its first validation came later.
///
/// A run with a longer schedule has not decayed its learning rate by then, so the comparison
/// favours the run that ends there.
pub fn loss_at(validations: &[Point], spending: Spending, budget: f64) -> Option<f64> {
    // A run that ends at the budget up to rounding of the last figure counts as having reached it.
    let reached = |spent: f64| spent >= budget * (1.0 - 1e-9);
    let after = validations.iter().position(|point| reached(spending.of(point)))?;
    let (x1, y1) = (spending.of(&validations[after]), validations[after].loss);
    if x1 <= budget * (1.0 + 1e-9) {
        return Some(y1);
    }
    let before = validations[..after].last()?;
    let (x0, y0) = (spending.of(before), before.loss);
    Some(y0 + (y1 - y0) * (budget - x0) / (x1 - x0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_two_validations_the_loss_is_linear() {
        let point = |step: u64, loss: f64| Point {
            step,
            tokens: 100.0 * step as f64,
            flops: 7.0 * step as f64,
            seconds: step as f64,
            parameters: 1.0,
            loss,
        };
        let curve = [point(1, 4.0), point(2, 3.0), point(4, 2.0)];
        assert_eq!(loss_at(&curve, Spending::Tokens, 200.0), Some(3.0));
        assert_eq!(loss_at(&curve, Spending::Tokens, 300.0), Some(2.5));
        assert_eq!(loss_at(&curve, Spending::Seconds, 4.0), Some(2.0));
        assert_eq!(loss_at(&curve, Spending::Flops, 10.5), Some(3.5));
        assert_eq!(loss_at(&curve, Spending::Tokens, 401.0), None, "it never spent as much");
        assert_eq!(loss_at(&curve, Spending::Tokens, 50.0), None, "it had not been validated yet");
    }
}
