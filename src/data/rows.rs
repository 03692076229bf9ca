//! Sources of which every document is a row of a file, given for both parts or split by number.

use super::corpus::usage;
use super::files::expand;
use anyhow::{Result, bail};
use std::path::PathBuf;

/// Share of the text that is validation where the spec does not say.
const DEFAULT_VAL_FRACTION: f64 = 0.1;

/// Rows that follow one another: those before them, and how many they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub first: u64,
    pub count: u64,
}

impl Span {
    /// The first so many of them, and the others.
    pub(super) fn split(self, count: u64) -> (Self, Self) {
        let count = count.min(self.count);
        let after = Self { first: self.first + count, count: self.count - count };
        (Self { count, ..self }, after)
    }
}

/// Some of the rows of files.
pub(super) trait Rows: Sized {
    /// What the files have more of, in messages.
    const NAME: &'static str;

    /// Which of all rows of the files these are.
    fn span(&self) -> Span;

    /// Others of the same files.
    fn within(&self, span: Span) -> Self;

    /// Reads the first of them, if there is one.
    ///
    /// # Errors
    /// When it is no document.
    fn check_first(&self) -> Result<()>;
}

/// Training and validation rows of a source of this kind, whose files are given for both or split
/// by number; and what they are.
///
/// # Errors
/// [`crate::error::Failure::Usage`] where the source contradicts itself or matches no file; else
/// where a file cannot be read, or a part is empty.
pub(super) fn read_rows<R: Rows>(
    kind: &str,
    (train, val): (&[String], Option<&[String]>),
    val_fraction: Option<f64>,
    open: impl Fn(Vec<PathBuf>) -> Result<R>,
) -> Result<(R, R, String)> {
    let rows = |patterns: &[String]| {
        let found = expand(patterns)?;
        Ok::<_, anyhow::Error>((open(found.files)?, found.names))
    };
    let (all, names) = rows(train)?;
    let mut description = format!("{kind}: train {names}");
    let (train, val) = match (val, val_fraction) {
        (Some(_), Some(_)) => {
            return Err(usage(format!(
                "data.source.{kind}: give `val` or `val_fraction`, not both"
            )));
        }
        (Some(val), None) => {
            let (val, names) = rows(val)?;
            description += &format!(", val {names}");
            (all, val)
        }
        (None, fraction) => {
            let fraction = checked_fraction(fraction, &format!("data.source.{kind}.val_fraction"))?;
            description += &format!(", last {fraction} of the documents for validation");
            let count = train_share(all.span().count as usize, fraction) as u64;
            let (train, val) = all.span().split(count);
            (all.within(train), all.within(val))
        }
    };
    for (part, rows) in [("training", &train), ("validation", &val)] {
        if rows.span().count > 0 {
            continue;
        }
        // A file of another kind, such as a JSON array on one line, is named as what it is.
        train.check_first()?;
        val.check_first()?;
        bail!(
            "data.source.{kind}: no {part} documents; give more {}, or another `val_fraction`",
            R::NAME
        );
    }
    Ok((train, val, description))
}

/// The share that is validation, as the spec or else the default has it.
///
/// # Errors
/// [`crate::error::Failure::Usage`] where it is none.
pub(super) fn checked_fraction(fraction: Option<f64>, key: &str) -> Result<f64> {
    let fraction = fraction.unwrap_or(DEFAULT_VAL_FRACTION);
    if fraction > 0.0 && fraction < 1.0 {
        Ok(fraction)
    } else {
        Err(usage(format!("{key}: {fraction} is not between 0 and 1")))
    }
}

/// How many of `count` come before the validation part: int((1 − f)·count), as nanoGPT's `int(n *
/// 0.9)`.
pub(super) fn train_share(count: usize, val_fraction: f64) -> usize {
    (count as f64 * (1.0 - val_fraction)) as usize
}
