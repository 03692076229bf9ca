//! Numbers as people read them, in one style everywhere: `4.3M` parameters, `2.4 MB`, `1.62e12`
//! operations, `2h03m`. Three figures, without zeros that say nothing; files for programs (JSON,
//! CSV) have every digit instead.

/// Steps of a thousand and their letters.
const THOUSANDS: [&str; 5] = ["", "k", "M", "B", "T"];

/// A number of things: `950`, `12.3k`, `4.3M`, `7.89B`; `?` where it is not known.
pub fn count(value: f64) -> String {
    in_thousands(value, &THOUSANDS, "")
}

/// A size in memory or on a disk in decimal units: `950 B`, `2.4 MB`, `3.22 GB`.
pub fn bytes(value: u64) -> String {
    in_thousands(value as f64, &["B", "kB", "MB", "GB", "TB", "PB"], " ")
}

/// Floating-point operations, or their rate: `950`, `1.62e12`; `?` where it is not known.
pub fn operations(value: f64) -> String {
    match value {
        value if !value.is_finite() => "?".into(),
        value if value.abs() < 1000.0 => figures(value, 3),
        value => exponent(value, 3),
    }
}

/// Digits in groups of three, for counts that are to be exact: `12_345`, as a spec may have them.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).expect("digits are ASCII"))
        .collect();
    groups.join("_")
}

/// A time as `45s`, `5m12s`, `2h03m` or `3d04h`; `?` where it is unknown.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".into();
    }
    let seconds = seconds.round() as u64;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match () {
        () if minutes == 0 => format!("{seconds}s"),
        () if hours == 0 => format!("{minutes}m{:02}s", seconds % 60),
        () if days == 0 => format!("{hours}h{:02}m", minutes % 60),
        () => format!("{days}d{:02}h", hours % 24),
    }
}

/// A tick of an axis with as many figures as tell it from its neighbours: `0.02`, `1.5k`, `20M`,
/// `1e-6`, `5e11`.
pub fn tick(value: f64) -> String {
    const FIGURES: usize = 6;
    let size = value.abs();
    match size {
        0.0 => "0".to_owned(),
        _ if !(1e-4..1e10).contains(&size) => exponent(value, FIGURES),
        _ => {
            let thousands = (0..THOUSANDS.len()).rfind(|n| size >= 1000f64.powi(*n as i32));
            let unit = thousands.unwrap_or(0);
            figures(value / 1000f64.powi(unit as i32), FIGURES) + THOUSANDS[unit]
        }
    }
}

/// Three figures and the unit of the largest step of a thousand within the value.
fn in_thousands(value: f64, units: &[&str], between: &str) -> String {
    if !value.is_finite() {
        return "?".into();
    }
    let (mut scaled, mut unit) = (value, 0);
    // 999.5 would be rounded to 1000, so it belongs to the next unit.
    while scaled.abs() >= 999.5 && unit + 1 < units.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let number = if unit == 0 { format!("{scaled:.0}") } else { figures(scaled, 3) };
    format!("{number}{between}{}", units[unit])
}

/// A number with this many figures at most.
fn figures(value: f64, most: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let before = value.abs().log10().floor() as i32;
    let decimals = (most as i32 - 1 - before).clamp(0, 12) as usize;
    without_zeros(&format!("{value:.decimals$}")).to_owned()
}

/// A number with this many figures at most, and a power of ten: `1.62e12`.
fn exponent(value: f64, most: usize) -> String {
    let text = format!("{value:.*e}", most - 1);
    match text.split_once('e') {
        Some((digits, power)) => format!("{}e{power}", without_zeros(digits)),
        None => text,
    }
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_three_figures() {
        let values = [0.0, 950.0, 999.6, 1234.0, 9996.0, 12_345.0, 999_600.0, 4.3e6, 7.894e9];
        assert_eq!(
            values.map(count),
            ["0", "950", "1k", "1.23k", "10k", "12.3k", "1M", "4.3M", "7.89B"]
        );
        assert_eq!([f64::INFINITY, 2e15].map(count), ["?", "2000T"]);
    }

    #[test]
    fn sizes_are_decimal() {
        let values = [0, 999, 1000, 2_400_000, 3 << 30, u64::MAX];
        assert_eq!(values.map(bytes), ["0 B", "999 B", "1 kB", "2.4 MB", "3.22 GB", "18447 PB"]);
    }

    #[test]
    fn operations_have_a_power_of_ten() {
        let values = [0.0, 12.0, 1500.0, 1.624e12, 1.6e9, f64::NAN];
        assert_eq!(values.map(operations), ["0", "12", "1.5e3", "1.62e12", "1.6e9", "?"]);
    }

    #[test]
    fn digits_in_groups_of_three() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1_000", "1_234_567"]);
    }

    #[test]
    fn durations_round_into_the_next_unit() {
        let values = [0.4, 59.4, 59.6, 312.0, 3599.6, 7380.0, 86_399.0, 273_600.0, f64::NAN, -1.0];
        assert_eq!(
            values.map(duration),
            ["0s", "59s", "1m00s", "5m12s", "1h00m", "2h03m", "23h59m", "3d04h", "?", "?"]
        );
    }

    #[test]
    fn ticks_are_short_and_differ() {
        let values = [0.0, 0.02, 1500.0, 2e7, 1e-6, 384.0, 1.95, 2.5e9, 5e11, -1e5];
        assert_eq!(
            values.map(tick),
            ["0", "0.02", "1.5k", "20M", "1e-6", "384", "1.95", "2.5B", "5e11", "-100k"]
        );
        assert_eq!([1_234_500.0, 1_235_000.0].map(tick), ["1.2345M", "1.235M"]);
    }
}
