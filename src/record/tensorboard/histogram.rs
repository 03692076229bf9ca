//! Values counted in buckets of equal width, as TensorBoard shows them.

use super::proto::Message;

/// Buckets of a histogram, as many as TensorBoard's own default.
const BUCKETS: usize = 30;

/// HistogramProto of the finite values; none where there are none.
pub(super) fn histogram(values: &[f64]) -> Option<Message> {
    let values: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    let min = values.iter().copied().reduce(f64::min)?;
    let max = values.iter().copied().reduce(f64::max)?;
    let (limits, counts) = buckets(&values, min, max);
    let sum = values.iter().sum();
    let squares = values.iter().map(|value| value * value).sum();
    Some(
        Message::default()
            .double(1, min)
            .double(2, max)
            .double(3, values.len() as f64)
            .double(4, sum)
            .double(5, squares)
            .doubles(6, &limits)
            .doubles(7, &counts),
    )
}

/// The upper end of each bucket and how many values it has. One value many times has one bucket
/// about it.
fn buckets(values: &[f64], min: f64, max: f64) -> (Vec<f64>, Vec<f64>) {
    if min == max {
        return (vec![min - 0.5, max + 0.5], vec![0.0, values.len() as f64]);
    }
    let width = (max - min) / BUCKETS as f64;
    let mut counts = vec![0.0; BUCKETS + 1];
    for value in values {
        let bucket = ((value - min) / width) as usize;
        counts[1 + bucket.min(BUCKETS - 1)] += 1.0;
    }
    // The first, empty one ends where the values begin.
    let limits = (0..=BUCKETS).map(|bucket| match bucket {
        BUCKETS => max,
        bucket => min + width * bucket as f64,
    });
    (limits.collect(), counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_holds_it() {
        let values: Vec<f64> = (0..=60).map(f64::from).collect();
        let (limits, counts) = buckets(&values, 0.0, 60.0);
        assert_eq!((limits[0], limits[30], counts[0], counts[1]), (0.0, 60.0, 0.0, 2.0));
        assert_eq!(counts.iter().sum::<f64>(), 61.0);
        assert_eq!(counts[30], 3.0, "58, 59 and the largest");
        assert_eq!(buckets(&[2.0, 2.0], 2.0, 2.0), (vec![1.5, 2.5], vec![0.0, 2.0]));
        assert_eq!(histogram(&[f64::NAN]), None);
    }
}
