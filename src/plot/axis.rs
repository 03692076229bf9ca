//! One axis: what it shows, how values are mapped to positions on it, and where its ticks are.

use crate::figures::tick;

/// How values are mapped to positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// Linear: equal differences are equal distances.
    Linear,
    /// Logarithmic: equal ratios are equal distances; values must be positive.
    Log,
}

/// An axis as requested; its range follows from the data.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit: `training tokens (millions)`.
    pub label: String,
    /// How values are mapped to positions.
    pub scale: Scale,
}

impl Axis {
    /// A linear axis: equal differences are equal distances.
    pub fn linear(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Linear }
    }

    /// A logarithmic axis: equal ratios are equal distances.
    pub fn log(label: impl Into<String>) -> Self {
        Self { label: label.into(), scale: Scale::Log }
    }
}

/// An axis with a range, which knows positions and ticks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Span {
    scale: Scale,
    low: f64,
    high: f64,
}

/// The share of the range left free at each end, so that marks do not touch the frame.
const MARGIN: f64 = 0.04;

impl Span {
    /// The range of these values; those that cannot be placed (not finite, or not positive on a
    /// logarithmic axis) do not count.
    pub fn of(scale: Scale, values: impl Iterator<Item = f64>) -> Self {
        let placed =
            values.filter(|value| placeable(scale, *value)).map(|value| forward(scale, value));
        let (mut low, mut high) = placed
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if high - low < 1e-12 * high.abs().max(1.0) {
            let half = if low == 0.0 { 0.5 } else { 0.05 * low.abs() };
            (low, high) = (low - half, high + half);
        }
        let margin = MARGIN * (high - low);
        Self { scale, low: low - margin, high: high + margin }
    }

    /// Where a value lies, 0 at the low end and 1 at the high end; none if it cannot be placed.
    pub fn place(&self, value: f64) -> Option<f64> {
        placeable(self.scale, value)
            .then(|| (forward(self.scale, value) - self.low) / (self.high - self.low))
    }

    /// About `count` values to mark with a tick, with their labels.
    pub fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let values = match self.scale {
            Scale::Linear => linear_ticks(self.low, self.high, count),
            Scale::Log => log_ticks(self.low, self.high, count),
        };
        values.into_iter().map(|value| (value, tick(value))).collect()
    }
}

fn placeable(scale: Scale, value: f64) -> bool {
    value.is_finite() && (scale == Scale::Linear || value > 0.0)
}

fn forward(scale: Scale, value: f64) -> f64 {
    match scale {
        Scale::Linear => value,
        Scale::Log => value.log10(),
    }
}

/// Multiples of 1, 2 or 5 times a power of ten.
fn linear_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let rough = (high - low) / count.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * power)
        .into_iter()
        .find(|step| *step >= rough * 0.75)
        .unwrap_or(10.0 * power);
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last)
        .map(|index| index as f64 * step)
        .map(|value| if value.abs() < step * 1e-9 { 0.0 } else { value })
        .collect()
}

/// Powers of ten, or 1, 2 and 5 times them, or every digit: the coarsest choice that gives at least
/// three ticks. Equal differences if the range is narrower than a digit.
fn log_ticks(low: f64, high: f64, count: usize) -> Vec<f64> {
    let digits: [&[f64]; 3] =
        [&[1.0], &[1.0, 2.0, 5.0], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]];
    for digits in digits {
        let decades = low.floor() as i32..=high.ceil() as i32;
        let all =
            decades.flat_map(|power| digits.iter().map(move |digit| digit * 10f64.powi(power)));
        let inside: Vec<f64> = all.filter(|value| (low..=high).contains(&value.log10())).collect();
        if inside.len() >= 3 {
            let every = inside.len().div_ceil(count.max(3) + 2);
            return inside.into_iter().step_by(every).collect();
        }
    }
    linear_ticks(10f64.powf(low), 10f64.powf(high), count)
        .into_iter()
        .filter(|value| *value > 0.0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(scale: Scale, values: &[f64], count: usize) -> Vec<String> {
        Span::of(scale, values.iter().copied())
            .ticks(count)
            .into_iter()
            .map(|(_, text)| text)
            .collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(texts(Scale::Linear, &[1.93, 2.41], 5), ["2", "2.1", "2.2", "2.3", "2.4"]);
        assert_eq!(texts(Scale::Linear, &[0.0, 800.0], 5), ["0", "200", "400", "600", "800"]);
        assert_eq!(texts(Scale::Log, &[2.5e-3, 4e-2], 5), ["0.005", "0.01", "0.02"]);
        assert_eq!(
            texts(Scale::Log, &[1.0, 1e6], 6),
            ["1", "10", "100", "1k", "10k", "100k", "1M"]
        );
        assert_eq!(texts(Scale::Log, &[2.0, 2.2], 4), ["2", "2.05", "2.1", "2.15", "2.2"]);
    }

    #[test]
    fn values_are_placed_in_proportion() {
        let span = Span::of(Scale::Log, [1.0, 100.0].into_iter());
        assert!((span.place(10.0).expect("a place") - 0.5).abs() < 1e-12);
        assert_eq!(span.place(0.0), None);
        assert_eq!(span.place(f64::NAN), None);
        let flat = Span::of(Scale::Linear, [3.0, 3.0].into_iter());
        assert!((flat.place(3.0).expect("a place") - 0.5).abs() < 1e-12);
    }
}
