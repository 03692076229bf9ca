//! What is wrong with a spec, at which key, and what to do about it.

use super::key_path::KeyPath;

/// One thing that is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The key it is about.
    pub path: KeyPath,
    /// Whether to point at the key's name or at its value.
    pub points_at: PointsAt,
    /// What is wrong and the remedy.
    pub message: String,
}

/// Which place of the file shows a problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PointsAt {
    /// The name of the key: it should not be there, or should hold more.
    Key,
    /// Its value.
    Value,
}

impl Problem {
    /// A problem with the value at a dotted path.
    pub fn at(path: &str, message: impl Into<String>) -> Self {
        Problem {
            path: KeyPath::of_keys(path),
            points_at: PointsAt::Value,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_root() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// The name among `known` that `written` was probably meant to be: nearest in edits with at most a
/// third of the letters wrong, or else one that contains it or is contained in it.
pub(crate) fn nearest<'a>(written: &str, known: &[&'a str]) -> Option<&'a str> {
    let written = written.to_lowercase();
    let allowed = |name: &str| (written.chars().count().max(name.chars().count()) / 3).max(1);
    let near = known.iter().map(|name| (*name, strsim::damerau_levenshtein(&written, name)));
    let near = near
        .filter(|(name, edits)| *edits <= allowed(name) && *edits < name.chars().count())
        .min_by_key(|(_, edits)| *edits);
    let part = || {
        known.iter().copied().find(|name| {
            written.len() >= 3
                && (name.contains(&written) || (name.len() >= 3 && written.contains(name)))
        })
    };
    near.map(|(name, _)| name).or_else(part)
}

/// The end of a message about a name that is not one of `known`.
pub(crate) fn suggestion(written: &str, known: &[&str], kind: &str) -> String {
    let guess =
        nearest(written, known).map(|name| format!("; did you mean `{name}`?")).unwrap_or_default();
    if known.is_empty() {
        "; nothing is set here, remove it".to_owned()
    } else {
        format!("{guess} ({kind} here: {})", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_near_name_is_suggested() {
        let known = ["arch", "n_layer", "n_head", "n_embd"];
        assert_eq!(nearest("n_layr", &known), Some("n_layer"));
        assert_eq!(nearest("N_Head", &known), Some("n_head"));
        assert_eq!(nearest("layer", &known), Some("n_layer"));
        assert_eq!(nearest("batch", &known), None);
        assert_eq!(nearest("steps", &["max_steps", "batch_size"]), Some("max_steps"));
        assert_eq!(nearest("q", &["k", "v"]), None);
    }
}
