//! Why a value of a spec was refused, in words.

use super::count::Count;
use super::key_path::{KeyPath, Segment};
use super::problem::{PointsAt, Problem, suggestion};
use serde::de::{self, Expected, Unexpected};
use std::fmt::{self, Display};

/// Why a value was refused, and the way down to it, innermost step first.
#[derive(Debug)]
pub(super) struct Refusal {
    way: Vec<Segment>,
    pub(super) reason: Reason,
}

/// What does not fit.
#[derive(Debug)]
pub(super) enum Reason {
    UnknownKey { key: String, known: &'static [&'static str] },
    MissingKey(&'static str),
    UnknownChoice { choice: String, known: &'static [&'static str] },
    WrongType { expected: String, found: String, hint: String },
    Other(String),
}

impl Refusal {
    pub(super) fn new(reason: Reason) -> Self {
        Refusal { way: Vec::new(), reason }
    }

    pub(super) fn other(message: impl Display) -> Self {
        Refusal::new(Reason::Other(message.to_string()))
    }

    pub(super) fn under(mut self, segment: Segment) -> Self {
        self.way.push(segment);
        self
    }

    pub(super) fn into_problem(self) -> Problem {
        let here = KeyPath(self.way.into_iter().rev().collect());
        let (path, points_at, message) = match self.reason {
            Reason::UnknownKey { key, known } => (
                here.with_key(&key),
                PointsAt::Key,
                format!("unknown key{}", suggestion(&key, known, "keys")),
            ),
            Reason::MissingKey(key) => {
                let place = if here.is_root() {
                    "at the top of the spec".to_owned()
                } else {
                    format!("under `{here}`")
                };
                (here, PointsAt::Key, format!("missing key `{key}`; add `{key}: ...` {place}"))
            }
            Reason::UnknownChoice { choice, known } => (
                here,
                PointsAt::Value,
                format!("unknown choice `{choice}`{}", suggestion(&choice, known, "choices")),
            ),
            Reason::WrongType { expected, found, hint } => {
                (here, PointsAt::Value, format!("expected {expected}, found {found}{hint}"))
            }
            Reason::Other(message) => (here, PointsAt::Value, message),
        };
        Problem { path, points_at, message }
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.reason)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: Display>(message: T) -> Self {
        Refusal::other(message)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let wants_integer = matches!(expected.to_string().as_str(), "usize" | "u64" | "u32");
        let hint = match found {
            Unexpected::Str(text) if wants_integer => {
                text.parse::<Count>().map(|count| format!("; write `{count}`")).unwrap_or_default()
            }
            Unexpected::Float(value) if wants_integer && value.fract() == 0.0 => {
                format!("; write `{value}`")
            }
            Unexpected::Unsigned(_)
            | Unexpected::Signed(_)
            | Unexpected::Float(_)
            | Unexpected::Bool(_)
                if expected.to_string().contains("string") =>
            {
                "; put it in quotes".to_owned()
            }
            _ => String::new(),
        };
        Refusal::new(Reason::WrongType {
            expected: expected_in_words(expected),
            found: found_in_words(found),
            hint,
        })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Refusal::invalid_type(found, expected)
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Refusal::new(Reason::UnknownKey { key: key.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> Self {
        Refusal::new(Reason::MissingKey(key))
    }

    fn unknown_variant(choice: &str, known: &'static [&'static str]) -> Self {
        Refusal::new(Reason::UnknownChoice { choice: choice.to_owned(), known })
    }
}

fn expected_in_words(expected: &dyn Expected) -> String {
    let expected = expected.to_string();
    match expected.as_str() {
        "usize" | "u64" | "u32" => "a whole number of at least 0".to_owned(),
        "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a string" | "path string" => "text".to_owned(),
        "a sequence" => "a list such as `[a, b]`".to_owned(),
        text if text.starts_with("struct ") || text == "a map" => {
            "a mapping of keys to values".to_owned()
        }
        _ => expected,
    }
}

pub(super) fn found_in_words(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number `{value}`"),
        Unexpected::Signed(value) => format!("the number `{value}`"),
        Unexpected::Float(value) => format!("the number `{value}`"),
        Unexpected::Str(text) => format!("the text `{text}`"),
        Unexpected::Unit => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}
