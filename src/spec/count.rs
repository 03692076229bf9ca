//! Counts as people write them: `500`, `60_000`, `1e6`, `10M`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A whole number of steps, tokens or bytes: digits with `_` between them, a decimal fraction or
/// exponent, and one of the suffixes `k` (10³), `M` (10⁶), `B` or `G` (10⁹), `T` (10¹²), as long as
/// the product is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Count(pub u64);

const EXPECTED: &str =
    "a whole number of at least 0 such as `500`, `60_000`, `1e6`, `64k` or `10M`";

/// Text that is no [`Count`].
#[derive(Debug, PartialEq, Eq)]
pub struct NotACount(String);

impl fmt::Display for NotACount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {EXPECTED}, found `{}`", self.0)
    }
}

impl std::error::Error for NotACount {}

impl FromStr for Count {
    type Err = NotACount;

    /// Reads a count exactly, in integers: no rounding through floating point.
    ///
    /// # Errors
    /// The text is not a number in one of the forms above, is negative, is not whole, or does not
    /// fit 64 bits.
    fn from_str(text: &str) -> Result<Self, NotACount> {
        parse(text.trim()).map(Count).ok_or_else(|| NotACount(text.to_owned()))
    }
}

/// digits[.digits][e[+]digits][suffix] as an integer, where `_` may stand between digits.
fn parse(text: &str) -> Option<u64> {
    let (text, suffix_exponent) = match text.char_indices().next_back()? {
        (end, 'k' | 'K') => (&text[..end], 3),
        (end, 'M') => (&text[..end], 6),
        (end, 'B' | 'G') => (&text[..end], 9),
        (end, 'T') => (&text[..end], 12),
        _ => (text, 0),
    };
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => {
            (mantissa, exponent.strip_prefix('+').unwrap_or(exponent).parse::<i32>().ok()?)
        }
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digit_group = |part: &str| {
        !part.starts_with('_')
            && !part.ends_with('_')
            && part.chars().all(|c| c.is_ascii_digit() || c == '_')
    };
    if whole.is_empty() || !is_digit_group(whole) || !is_digit_group(fraction) {
        return None;
    }
    let digits: String = [whole, fraction].concat().replace('_', "");
    let fraction_digits = fraction.chars().filter(char::is_ascii_digit).count() as i32;
    scale(
        digits.trim_start_matches('0'),
        exponent.checked_add(suffix_exponent)?.checked_sub(fraction_digits)?,
    )
}

/// digits · 10^exponent, if whole and in range.
fn scale(digits: &str, exponent: i32) -> Option<u64> {
    if digits.is_empty() {
        return Some(0);
    }
    if exponent < 0 {
        let split = digits.len().checked_sub(exponent.unsigned_abs() as usize)?;
        let (whole, rest) = digits.split_at(split);
        return if rest.chars().all(|c| c == '0') { whole.parse().ok() } else { None };
    }
    digits.parse::<u64>().ok()?.checked_mul(10u64.checked_pow(exponent.unsigned_abs())?)
}

impl From<u64> for Count {
    fn from(value: u64) -> Self {
        Count(value)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Count, E> {
        Ok(Count(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Count, E> {
        u64::try_from(value)
            .map(Count)
            .map_err(|_| E::invalid_value(Unexpected::Signed(value), &self))
    }

    /// `1e6` reaches us as a floating-point number; every whole number below 2⁵³ is exact in it.
    fn visit_f64<E: Error>(self, value: f64) -> Result<Count, E> {
        let whole = value >= 0.0 && value.fract() == 0.0 && value <= (1u64 << 53) as f64;
        if whole {
            Ok(Count(value as u64))
        } else {
            Err(E::invalid_value(Unexpected::Float(value), &self))
        }
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Count, E> {
        value.parse().map_err(|_| E::invalid_value(Unexpected::Str(value), &self))
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A whole number such as 500, 60_000, 1e6, 64k or 10M.",
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9][0-9_]*(\\.[0-9]+)?([eE]\\+?[0-9]+)?[kKMBGT]?$" }
            ]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_as_people_write_them() {
        let cases: [(&str, u64); 14] = [
            ("500", 500),
            ("0", 0),
            ("007", 7),
            ("60_000", 60_000),
            ("1e6", 1_000_000),
            ("1E+3", 1_000),
            ("2.5e3", 2_500),
            ("64k", 64_000),
            ("10M", 10_000_000),
            ("1.5B", 1_500_000_000),
            ("0.25M", 250_000),
            ("3T", 3_000_000_000_000),
            ("1200e-2", 12),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, value) in cases {
            assert_eq!(text.parse(), Ok(Count(value)), "{text}");
        }
    }

    #[test]
    fn what_is_no_count_is_refused_by_name() {
        for text in [
            "",
            "-1",
            "1.5",
            "1e-1",
            "10m",
            "M",
            "_1",
            "1_",
            "1e",
            "ten",
            "1 000",
            ".5k",
            "18446744073709551616",
            "1e99",
        ] {
            let error = text.parse::<Count>().expect_err(text).to_string();
            assert!(
                error.contains(&format!("found `{text}`")) && error.contains("60_000"),
                "{error}"
            );
        }
    }

    #[test]
    fn counts_are_written_as_plain_integers() {
        let read: Vec<Count> = serde_yaml::from_str("[60_000, 1e6, 10M, 7]").unwrap();
        assert_eq!(read, [60_000, 1_000_000, 10_000_000, 7].map(Count));
        assert_eq!(serde_json::to_string(&read).unwrap(), "[60000,1000000,10000000,7]");
        for wrong in ["-3", "1.5", ".inf", ".nan", "true", "[1]"] {
            assert!(serde_yaml::from_str::<Count>(wrong).is_err(), "{wrong}");
        }
    }
}
