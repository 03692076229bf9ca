//! Where a value stands in a spec: `data.source.text.train[0]`.

use std::fmt;

/// One step down from a value to one of its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// The value under this key of a mapping.
    Key(String),
    /// The item at this index of a list.
    Index(usize),
}

/// The steps from the root of a spec down to a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KeyPath(pub Vec<Segment>);

impl KeyPath {
    /// The path of keys joined by dots, as in `train.max_steps`.
    pub fn of_keys(text: &str) -> Self {
        KeyPath(text.split('.').map(|key| Segment::Key(key.to_owned())).collect())
    }

    /// This path and one key further down.
    pub fn with_key(&self, key: &str) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Key(key.to_owned()));
        KeyPath(segments)
    }

    /// The path of the value that holds this one; none for the root.
    pub fn parent(&self) -> Option<Self> {
        self.0.split_last().map(|(_, above)| KeyPath(above.to_vec()))
    }

    /// Whether `self` is `other` or a value that holds it.
    pub fn holds(&self, other: &KeyPath) -> bool {
        other.0.starts_with(&self.0)
    }

    /// Whether this is the whole spec.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if position == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
