//! A figure over the steps, in bounded memory.

/// Points kept at most; a terminal has fewer columns by far.
const MOST: usize = 4096;

/// A figure over the steps: every point while there are few, every second, fourth, … of a long run,
/// and always the last.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    kept: Vec<(f64, f64)>,
    last: Option<(f64, f64)>,
    seen: usize,
    every: usize,
}

impl Default for Curve {
    fn default() -> Self {
        Self { kept: Vec::new(), last: None, seen: 0, every: 1 }
    }
}

impl Curve {
    /// Adds a value at a step; one that is not finite is left out.
    pub fn push(&mut self, step: u64, value: f64) {
        if !value.is_finite() {
            return;
        }
        let point = (step as f64, value);
        if self.seen.is_multiple_of(self.every) {
            self.kept.push(point);
        }
        self.seen += 1;
        self.last = Some(point);
        if self.kept.len() >= MOST {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
    }

    /// The last value.
    pub fn last(&self) -> Option<f64> {
        self.last.map(|(_, value)| value)
    }

    /// Whether there is no value yet.
    pub fn is_empty(&self) -> bool {
        self.last.is_none()
    }

    /// Steps and values to draw, in their order.
    pub fn points(&self) -> Vec<(f64, f64)> {
        let is_kept = self.kept.last() == self.last.as_ref();
        self.kept.iter().copied().chain(self.last.filter(|_| !is_kept)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_keeps_its_form_and_its_last_point() {
        let mut curve = Curve::default();
        assert!(curve.is_empty());
        curve.push(1, f64::NAN);
        assert!(curve.is_empty());
        let steps = 100_001u64;
        (0..steps).for_each(|step| curve.push(step, 2.0 * step as f64));
        let points = curve.points();
        assert!((MOST / 2..=MOST).contains(&points.len()), "{}", points.len());
        assert_eq!(points[0], (0.0, 0.0));
        assert_eq!(points.last(), Some(&(100_000.0, 200_000.0)));
        assert!(
            points.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[1].0 <= pair[0].0 + 64.0)
        );
        assert!(points.iter().all(|(step, value)| *value == 2.0 * step));
        assert_eq!(curve.last(), Some(200_000.0));
    }
}
