//! The architectures a spec can name, and the weight matrices that a block of each has: the names
//! by which specs speak of them (targets) and their shapes.

use schemars::JsonSchema;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cmp::Ordering;
use std::fmt;

/// Network architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// GPT-2: learned positions, pre-norm, GELU (tanh form), tied head.
    #[default]
    Gpt2,
}

/// A kind of weight matrix of a transformer block, by the name that specs and checkpoints use for
/// it; which kinds there are is the architecture's to say.
///
/// Targets are in the order in which a block applies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(&'static str);

/// The names of the targets of all architectures, in their order.
const NAMES: &[&str] = &["q", "k", "v", "o", "up", "down"];

impl Target {
    /// Attention query.
    pub const Q: Target = Target("q");
    /// Attention key.
    pub const K: Target = Target("k");
    /// Attention value.
    pub const V: Target = Target("v");
    /// Attention output.
    pub const O: Target = Target("o");
    /// MLP up.
    pub const UP: Target = Target("up");
    /// MLP down.
    pub const DOWN: Target = Target("down");

    /// Every target of every architecture, in their order.
    pub fn known() -> impl Iterator<Item = Target> {
        NAMES.iter().copied().map(Target)
    }

    /// The target of this name; `None` if no architecture has one.
    pub fn named(name: &str) -> Option<Target> {
        Target::known().find(|target| target.0 == name)
    }

    /// Name as written in a spec, such as `q`.
    pub fn name(self) -> &'static str {
        self.0
    }

    fn position(self) -> Option<usize> {
        NAMES.iter().position(|name| *name == self.0)
    }
}

impl Ord for Target {
    fn cmp(&self, other: &Self) -> Ordering {
        self.position().cmp(&other.position())
    }
}

impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// C G / H, the width of keys and values of `key_heads` heads beside `heads` heads of queries that
/// share out `n_embd`; 0 where there are no heads.
pub fn key_width(n_embd: usize, heads: usize, key_heads: usize) -> usize {
    n_embd.checked_div(heads).unwrap_or(0).saturating_mul(key_heads)
}

impl Architecture {
    /// Name as written in a spec.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Gpt2 => "gpt2",
        }
    }

    /// The weight matrices of a block, in the order in which it applies them.
    pub fn targets(self) -> &'static [Target] {
        match self {
            Architecture::Gpt2 => {
                &[Target::Q, Target::K, Target::V, Target::O, Target::UP, Target::DOWN]
            }
        }
    }

    /// Rows and columns (m, n) of a target's W in y = W x for a residual stream of width `n_embd`
    /// and keys and values of `key_width` together over all of their heads; (0, 0) where a block
    /// has no such matrix.
    pub fn shape(self, target: Target, n_embd: usize, key_width: usize) -> (usize, usize) {
        let wide = n_embd.saturating_mul(4);
        match (self, target) {
            (Architecture::Gpt2, Target::Q | Target::O) => (n_embd, n_embd),
            (Architecture::Gpt2, Target::K | Target::V) => (key_width, n_embd),
            (Architecture::Gpt2, Target::UP) => (wide, n_embd),
            (Architecture::Gpt2, Target::DOWN) => (n_embd, wide),
            (Architecture::Gpt2, _) => (0, 0),
        }
    }

    /// What is wrong with this target for this architecture; `None` if a block has it.
    pub(crate) fn objection(self, target: Target) -> Option<String> {
        let targets = self.targets();
        let names = || targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(", ");
        (!targets.contains(&target)).then(|| {
            format!(
                "`{}` is no target of {}; its targets are {}",
                target.name(),
                self.name(),
                names()
            )
        })
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TargetName;
        impl Visitor<'_> for TargetName {
            type Value = Target;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "the name of a weight matrix: {}", NAMES.join(", "))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Target, E> {
                Target::named(name).ok_or_else(|| E::unknown_variant(name, NAMES))
            }
        }
        deserializer.deserialize_str(TargetName)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_ordered_as_a_block_applies_them() {
        let mut sorted: Vec<Target> = Architecture::Gpt2.targets().to_vec();
        sorted.sort_by_key(|target| target.name());
        sorted.sort();
        let names: Vec<&str> = sorted.into_iter().map(Target::name).collect();
        assert_eq!(names, ["q", "k", "v", "o", "up", "down"]);
    }

    #[test]
    fn a_target_that_an_architecture_lacks_is_answered_with_its_list() {
        assert_eq!(Architecture::Gpt2.objection(Target::Q), None);
        let gate = Target("gate");
        assert_eq!(
            Architecture::Gpt2.objection(gate).as_deref(),
            Some("`gate` is no target of gpt2; its targets are q, k, v, o, up, down")
        );
        assert_eq!(Architecture::Gpt2.shape(gate, 8, 8), (0, 0));
        assert_eq!(Architecture::Gpt2.shape(Target::DOWN, 8, 4), (8, 32));
        assert_eq!(Architecture::Gpt2.shape(Target::V, 8, 4), (4, 8));
    }

    #[test]
    fn a_name_is_read_and_written_and_an_unknown_one_refused() {
        let read: Target = serde_json::from_str("\"up\"").expect("a target");
        assert_eq!(
            (read, serde_json::to_string(&read).ok().as_deref()),
            (Target::UP, Some("\"up\""))
        );
        let error = serde_json::from_str::<Target>("\"w\"").expect_err("unknown").to_string();
        assert!(
            error.contains("`w`") && error.contains("`q`, `k`, `v`, `o`, `up`, `down`"),
            "{error}"
        );
    }
}
