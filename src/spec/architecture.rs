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
    /// Llama: rotary positions, pre-norm by the root mean square, SwiGLU, head of its own.
    Llama,
}

/// Widths that the matrices of a block lead from and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockWidths {
    /// Of the residual stream, C.
    pub stream: usize,
    /// Of the keys, and of the values, over all of their heads.
    pub keys: usize,
    /// Of the MLP between its matrices.
    pub inner: usize,
}

/// A kind of weight matrix of a transformer block, by the name that specs and checkpoints use for
/// it; which kinds there are is the architecture's to say.
///
/// Targets are in the order in which a block applies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target(&'static str);

/// The base of the rotary angles where nothing is said.
pub const ROPE_THETA: f64 = 10_000.0;

/// The names of the targets of the blocks of all architectures, in their order.
const NAMES: &[&str] = &["q", "k", "v", "qkv", "o", "gate", "up", "down"];

impl Target {
    /// Attention query.
    pub const Q: Target = Target("q");
    /// Attention key.
    pub const K: Target = Target("k");
    /// Attention value.
    pub const V: Target = Target("v");
    /// Attention query, key and value as one matrix, one below the other.
    pub const QKV: Target = Target("qkv");
    /// Attention output.
    pub const O: Target = Target("o");
    /// MLP gate.
    pub const GATE: Target = Target("gate");
    /// MLP up.
    pub const UP: Target = Target("up");
    /// MLP down.
    pub const DOWN: Target = Target("down");

    /// The head, which is in no block: what an adapter beside it goes by.
    pub const HEAD: Target = Target("head");

    /// Every target of a block of every architecture, in their order.
    pub fn of_blocks() -> impl Iterator<Item = Target> {
        NAMES.iter().copied().map(Target)
    }

    /// [`Self::of_blocks`] and the head.
    fn known() -> impl Iterator<Item = Target> {
        Target::of_blocks().chain([Target::HEAD])
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
        Target::known().position(|target| target.0 == self.0)
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
            Architecture::Llama => "llama",
        }
    }

    /// The weight matrices of a block, in the order in which it applies them, with query, key and
    /// value as one matrix or as three.
    pub fn targets(self, fused_qkv: bool) -> &'static [Target] {
        const GPT2: &[Target] =
            &[Target::Q, Target::K, Target::V, Target::O, Target::UP, Target::DOWN];
        const FUSED_GPT2: &[Target] = &[Target::QKV, Target::O, Target::UP, Target::DOWN];
        const LLAMA: &[Target] =
            &[Target::Q, Target::K, Target::V, Target::O, Target::GATE, Target::UP, Target::DOWN];
        const FUSED_LLAMA: &[Target] =
            &[Target::QKV, Target::O, Target::GATE, Target::UP, Target::DOWN];
        match (self, fused_qkv) {
            (Architecture::Gpt2, false) => GPT2,
            (Architecture::Gpt2, true) => FUSED_GPT2,
            (Architecture::Llama, false) => LLAMA,
            (Architecture::Llama, true) => FUSED_LLAMA,
        }
    }

    /// Whether a block has such a matrix, with query, key and value as one or as three.
    fn knows(self, target: Target) -> bool {
        [false, true].iter().any(|fused_qkv| self.targets(*fused_qkv).contains(&target))
    }

    /// Rows and columns (m, n) of a target's W in y = W x; (0, 0) where no block has such a matrix.
    pub fn shape(self, target: Target, widths: BlockWidths) -> (usize, usize) {
        let BlockWidths { stream, keys, inner } = widths;
        match target {
            _ if !self.knows(target) => (0, 0),
            Target::Q | Target::O => (stream, stream),
            Target::K | Target::V => (keys, stream),
            Target::QKV => (keys.saturating_mul(2).saturating_add(stream), stream),
            Target::DOWN => (stream, inner),
            _ => (inner, stream),
        }
    }

    /// Vectors as wide as the MLP that a token has between its matrices: before and after GELU;
    /// under SwiGLU the gate, what it gates, and both together.
    pub fn mlp_stages(self) -> u64 {
        match self {
            Architecture::Gpt2 => 2,
            Architecture::Llama => 3,
        }
    }

    /// Whether its norms have biases where the model has any.
    pub fn norms_have_biases(self) -> bool {
        match self {
            Architecture::Gpt2 => true,
            Architecture::Llama => false,
        }
    }

    /// Width of the MLP where nothing is said. GPT-2: 4 C. Llama: 8/3 C, so that three matrices
    /// have the numbers of GPT-2's two, rounded up to a multiple of the largest power of two that
    /// is at most C/16, from 8 to 256: 1376 for C = 512, 11008 for C = 4096.
    pub fn inner_width(self, n_embd: usize) -> usize {
        match self {
            Architecture::Gpt2 => n_embd.saturating_mul(4),
            Architecture::Llama => {
                let sixteenth = (n_embd / 16).clamp(8, 256);
                let unit = 1 << sixteenth.ilog2();
                n_embd.saturating_mul(8).div_ceil(3).div_ceil(unit).saturating_mul(unit)
            }
        }
    }

    /// Whether the head is the table of tokens where nothing is said.
    pub fn ties_embeddings(self) -> bool {
        self == Architecture::Gpt2
    }

    /// Whether positions turn queries and keys; else they are learned vectors.
    pub fn is_rotary(self) -> bool {
        self == Architecture::Llama
    }

    /// The key that says what is added to the mean square in norms, and its default.
    pub fn norm_epsilon(self) -> (&'static str, f64) {
        match self {
            Architecture::Gpt2 => ("layer_norm_epsilon", 1e-5),
            Architecture::Llama => ("rms_norm_eps", 1e-6),
        }
    }

    /// What is wrong with this target for this architecture, with query, key and value as one
    /// matrix or as three; `None` if a block has it.
    pub(crate) fn objection(self, target: Target, fused_qkv: bool) -> Option<String> {
        let (targets, name) = (self.targets(fused_qkv), target.name());
        if targets.contains(&target) {
            return None;
        }
        Some(match target {
            Target::QKV => {
                "`qkv` is a target with `model.fused_qkv: true`; set that, or name `q`, \
                            `k` and `v`"
                    .to_owned()
            }
            Target::HEAD => "`head` is in no block; the rank of an adapter beside it is \
                             `model.weights.adapter.head`"
                .to_owned(),
            _ if self.knows(target) => format!(
                "`{name}` is a part of the target `qkv` with `model.fused_qkv: true`; name `qkv`, or \
                 remove `fused_qkv`"
            ),
            _ => {
                let names: Vec<&str> = targets.iter().map(|target| target.name()).collect();
                let names = names.join(", ");
                format!("`{name}` is no target of {}; its targets are {names}", self.name())
            }
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
        let sorted = |architecture: Architecture, fused_qkv: bool| -> Vec<&str> {
            let mut sorted: Vec<Target> = architecture.targets(fused_qkv).to_vec();
            sorted.sort_by_key(|target| target.name());
            sorted.sort();
            sorted.into_iter().map(Target::name).collect()
        };
        assert_eq!(sorted(Architecture::Gpt2, false), ["q", "k", "v", "o", "up", "down"]);
        assert_eq!(sorted(Architecture::Llama, false), ["q", "k", "v", "o", "gate", "up", "down"]);
        assert_eq!(sorted(Architecture::Gpt2, true), ["qkv", "o", "up", "down"]);
        assert_eq!(sorted(Architecture::Llama, true), ["qkv", "o", "gate", "up", "down"]);
    }

    #[test]
    fn a_target_that_an_architecture_lacks_is_answered_with_its_list() {
        assert_eq!(Architecture::Gpt2.objection(Target::Q, false), None);
        assert_eq!(Architecture::Llama.objection(Target::GATE, true), None);
        assert_eq!(Architecture::Gpt2.objection(Target::QKV, true), None);
        for (fused_qkv, names) in [(false, "q, k, v, o, up, down"), (true, "qkv, o, up, down")] {
            assert_eq!(
                Architecture::Gpt2.objection(Target::GATE, fused_qkv),
                Some(format!("`gate` is no target of gpt2; its targets are {names}"))
            );
        }
    }

    #[test]
    fn matrices_lead_between_the_widths_of_a_block() {
        let widths = BlockWidths { stream: 8, keys: 4, inner: 20 };
        let shapes = |architecture: Architecture| {
            [Target::O, Target::V, Target::QKV, Target::GATE, Target::UP, Target::DOWN]
                .map(|target| architecture.shape(target, widths))
        };
        let gpt2 = [(8, 8), (4, 8), (16, 8), (0, 0), (20, 8), (8, 20)];
        assert_eq!(shapes(Architecture::Gpt2), gpt2);
        let llama = [(8, 8), (4, 8), (16, 8), (20, 8), (20, 8), (8, 20)];
        assert_eq!(shapes(Architecture::Llama), llama);
    }

    /// Widths that published models have: GPT-2, the 60M and 130M of GaLore (Zhao et al. 2024), and
    /// Llama's 7B and 13B.
    #[test]
    fn the_usual_widths_of_an_mlp_are_those_of_published_models() {
        assert_eq!(Architecture::Gpt2.inner_width(768), 3072);
        let llama = [512, 768, 4096, 5120].map(|width| Architecture::Llama.inner_width(width));
        assert_eq!(llama, [1376, 2048, 11_008, 13_824]);
        let small = [8, 64, 256].map(|width| Architecture::Llama.inner_width(width));
        assert_eq!(small, [24, 176, 688]);
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
            error.contains("`w`")
                && error.contains("`q`, `k`, `v`, `qkv`, `o`, `gate`, `up`, `down`"),
            "{error}"
        );
    }
}
