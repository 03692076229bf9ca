//! The network of a plan: `model:` of a spec with every setting decided.

use super::architecture::{Architecture, BlockWidths, ROPE_THETA, Target, key_width};
use super::bounds;
use super::model_spec::{InitialSpectrum, LowRankStart};
use super::plan::WeightForm;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Shape of the network and form of its weights. A setting that is what its architecture has where
/// nothing is said is left out, so that plans of before there was such a setting stay as they were.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelPlan {
    /// Architecture.
    pub arch: Architecture,
    /// Number of transformer blocks.
    pub n_layer: usize,
    /// Attention heads per block.
    pub n_head: usize,
    /// Heads of keys and values per block, where they are not as many.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_kv_head: Option<usize>,
    /// Whether the query, key and value matrices of a block are one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fused_qkv: bool,
    /// Width of the residual stream, C.
    pub n_embd: usize,
    /// Context length in tokens, T.
    pub block_size: usize,
    /// Probability of dropping an activation.
    pub dropout: f64,
    /// Whether linear layers, and layer norms, have biases.
    pub bias: bool,
    /// Width of the MLP, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_inner: Option<usize>,
    /// Whether the head is the table of tokens, where that is not as usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tie_word_embeddings: Option<bool>,
    /// Base of the rotary angles, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Added to the variance in layer norms, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_norm_epsilon: Option<f64>,
    /// Added to the mean square in RMS norms, where it is not the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rms_norm_eps: Option<f64>,
    /// Whether the matrices that write to the residual stream begin at zero.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub zero_outputs: bool,
    /// First singular values of low-rank weights.
    #[serde(default, skip_serializing_if = "InitialSpectrum::is_default")]
    pub spectrum: InitialSpectrum,
    /// What low-rank weights are until they are cut.
    #[serde(default, skip_serializing_if = "LowRankStart::is_default")]
    pub start: LowRankStart,
    /// Form of each matrix of a block, the same in all blocks but for the ranks in `layers`; has
    /// every target of a block.
    pub weights: BTreeMap<Target, WeightForm>,
    /// Ranks of single blocks' low-rank matrices where they are not those of `weights`: an entry
    /// for each block from the first on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<BTreeMap<Target, usize>>,
    /// The adapter beside the head, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_adapter: Option<WeightForm>,
}

impl ModelPlan {
    /// The smallest network of an architecture, of width 1 and dense, with every setting as usual:
    /// to be filled in.
    pub fn of(arch: Architecture) -> Self {
        let weights =
            arch.targets(false).iter().map(|target| (*target, WeightForm::Dense)).collect();
        Self {
            arch,
            n_layer: 1,
            n_head: 1,
            n_kv_head: None,
            fused_qkv: false,
            n_embd: 1,
            block_size: 1,
            dropout: 0.0,
            bias: false,
            n_inner: None,
            tie_word_embeddings: None,
            rope_theta: None,
            layer_norm_epsilon: None,
            rms_norm_eps: None,
            zero_outputs: false,
            spectrum: InitialSpectrum::Flat,
            start: LowRankStart::Factors,
            weights,
            layers: Vec::new(),
            head_adapter: None,
        }
    }

    /// Form of one matrix of a block, or what the head's adapter is; dense where nothing is said.
    /// Where `layers` gives single blocks ranks of their own, all but the rank.
    pub fn form(&self, target: Target) -> WeightForm {
        if target == Target::HEAD {
            return self.head_adapter.unwrap_or(WeightForm::Dense);
        }
        self.weights.get(&target).copied().unwrap_or(WeightForm::Dense)
    }

    /// Form of one matrix of one block, its own rank included: dense where an adapter has rank 0.
    ///
    /// An α that is the rank of all is each one's own rank.
    pub fn form_in(&self, layer: usize, target: Target) -> WeightForm {
        let own = self.layers.get(layer).and_then(|ranks| ranks.get(&target));
        match (self.form(target), own) {
            (WeightForm::LowRank { .. }, Some(rank)) => WeightForm::LowRank { rank: *rank },
            (WeightForm::Adapter { .. }, Some(0)) => WeightForm::Dense,
            (WeightForm::Adapter { rank, form, alpha }, Some(own)) => {
                let alpha = alpha.map(|alpha| if alpha == rank { *own } else { alpha });
                WeightForm::Adapter { rank: *own, form, alpha }
            }
            (form, _) => form,
        }
    }

    /// The weight matrices of a block, in the order in which it applies them.
    pub fn targets(&self) -> &'static [Target] {
        self.arch.targets(self.fused_qkv)
    }

    /// What is wrong with this target for this network; `None` if a block has it.
    pub(super) fn objection(&self, target: Target) -> Option<String> {
        self.arch.objection(target, self.fused_qkv)
    }

    /// Block and target of every matrix of the blocks, block by block.
    pub fn places(&self) -> impl Iterator<Item = (usize, Target)> {
        let targets = self.targets();
        (0..self.n_layer).flat_map(move |layer| targets.iter().map(move |target| (layer, *target)))
    }

    /// [`Self::places`], and that of the head's adapter, n_layer, if there is one.
    pub fn places_with_head(&self) -> impl Iterator<Item = (usize, Target)> {
        self.places().chain(self.head_adapter.map(|_| (self.n_layer, Target::HEAD)))
    }

    /// Blocks in which this matrix has the form that [`Self::form`] says: all, or those where its
    /// adapter is not left out.
    pub fn blocks_of(&self, target: Target) -> usize {
        let is_left_out =
            |layer: &usize| self.form(target).is_adapter() && !self.is_adapted_in(*layer, target);
        (0..self.n_layer).filter(|layer| !is_left_out(layer)).count()
    }

    /// Whether a matrix of a block has an adapter.
    pub fn is_adapted_in(&self, layer: usize, target: Target) -> bool {
        self.form_in(layer, target).is_adapter()
    }

    /// Whether only adapters are trained.
    pub fn is_adapted(&self) -> bool {
        self.head_adapter.is_some() || self.weights.values().any(|form| form.is_adapter())
    }

    /// Rows and columns (m, n) of one matrix of a block; (0, 0) where it has no such matrix.
    pub fn shape(&self, target: Target) -> (usize, usize) {
        match self.targets().contains(&target) {
            true => self.arch.shape(target, self.widths()),
            false => (0, 0),
        }
    }

    /// [`Self::shape`], and that of the head, (V, C), with a vocabulary of this size.
    pub fn shape_with_head(&self, target: Target, vocabulary: usize) -> (usize, usize) {
        if target == Target::HEAD { (vocabulary, self.n_embd) } else { self.shape(target) }
    }

    /// Rows of the queries, keys and values in the matrix that has them one below the other: C, and
    /// twice C G/H with G of H heads.
    pub fn qkv_rows(&self) -> [usize; 3] {
        [self.n_embd, self.key_width(), self.key_width()]
    }

    /// Widths that the matrices of a block lead from and to.
    pub fn widths(&self) -> BlockWidths {
        BlockWidths { stream: self.n_embd, keys: self.key_width(), inner: self.inner_width() }
    }

    /// Width of keys and of values, over all of their heads.
    pub fn key_width(&self) -> usize {
        key_width(self.n_embd, self.n_head, self.key_heads())
    }

    /// Heads of keys and values.
    pub fn key_heads(&self) -> usize {
        self.n_kv_head.unwrap_or(self.n_head)
    }

    /// Width of the MLP between its matrices.
    pub fn inner_width(&self) -> usize {
        self.n_inner.unwrap_or_else(|| self.arch.inner_width(self.n_embd))
    }

    /// Whether the head is the table of tokens.
    pub fn ties_embeddings(&self) -> bool {
        self.tie_word_embeddings.unwrap_or_else(|| self.arch.ties_embeddings())
    }

    /// Base of the rotary angles, where positions are rotary.
    pub fn rope_theta(&self) -> f64 {
        self.rope_theta.unwrap_or(ROPE_THETA)
    }

    /// What norms add to the mean square.
    pub fn norm_epsilon(&self) -> f64 {
        let (key, usual) = self.arch.norm_epsilon();
        let written =
            if key == "rms_norm_eps" { self.rms_norm_eps } else { self.layer_norm_epsilon };
        written.unwrap_or(usual)
    }

    /// Numbers in the blocks with dense weights; saturates.
    pub fn block_parameters(&self) -> u64 {
        let numbers = |target: &Target| {
            let (rows, columns) = self.shape(*target);
            (rows as u64).saturating_mul(columns as u64)
        };
        let block = self.targets().iter().map(numbers).fold(0, u64::saturating_add);
        block.saturating_mul(self.n_layer as u64)
    }

    /// What is wrong with the settings that some architectures have and others have not, by key.
    pub fn setting_problems(&self) -> Vec<(&'static str, String)> {
        let (arch, mut found) = (self.arch.name(), Vec::new());
        if let Some(inner) = self.n_inner
            && let Some(problem) = bounds::size_problem(inner as u64, bounds::MAX_INNER)
        {
            found.push(("n_inner", problem));
        }
        let foreign =
            |what: &str| format!("has no meaning for {arch}, which has {what}; remove it");
        match self.rope_theta {
            Some(_) if !self.arch.is_rotary() => {
                found.push(("rope_theta", foreign("learned positions")));
            }
            Some(theta) if !(1.0..=1e12).contains(&theta) => {
                found.push(("rope_theta", format!("is {theta}; set a number from 1 to 1e12")));
            }
            _ => {}
        }
        let (own, _) = self.arch.norm_epsilon();
        for (key, epsilon) in
            [("layer_norm_epsilon", self.layer_norm_epsilon), ("rms_norm_eps", self.rms_norm_eps)]
        {
            match epsilon {
                Some(_) if key != own => found.push((key, foreign(&format!("`{own}`")))),
                Some(epsilon) if !(epsilon > 0.0 && epsilon < 1.0) => {
                    found.push((key, format!("is {epsilon}; set a number between 0 and 1")));
                }
                _ => {}
            }
        }
        let head = self.n_embd.checked_div(self.n_head).unwrap_or(0);
        if self.arch.is_rotary() && !head.is_multiple_of(2) {
            let problem = format!(
                "is {}, which makes heads {head} wide; rotary positions turn pairs of numbers, \
                 choose a number of heads that makes the width even",
                self.n_head
            );
            found.push(("n_head", problem));
        }
        found
    }
}
