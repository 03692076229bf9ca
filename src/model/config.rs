//! The resolved shape of a network: everything needed to build it and to load its checkpoints.

use crate::ops::AttentionHeads;
use crate::spec::{ModelPlan, Target, WeightForm, bounds};
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::ops::{Deref, DerefMut};

/// Shape of a network, stored as `config.json` in every checkpoint: what a plan says of it, and its
/// vocabulary. The plan's settings are read as if they were its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// What a plan says.
    #[serde(flatten)]
    pub model: ModelPlan,
    /// Vocabulary size V.
    pub vocab_size: usize,
}

impl Deref for ModelConfig {
    type Target = ModelPlan;

    fn deref(&self) -> &ModelPlan {
        &self.model
    }
}

impl DerefMut for ModelConfig {
    fn deref_mut(&mut self) -> &mut ModelPlan {
        &mut self.model
    }
}

impl ModelConfig {
    /// Heads of queries, and of keys and values.
    pub fn heads(&self) -> AttentionHeads {
        AttentionHeads { queries: self.n_head, keys: self.key_heads() }
    }

    /// The same once adapters are taken into what they adapt: dense, and with a head of its own where
    /// the table of tokens had an adapter as the head. One without adapters as it is.
    pub fn merged(&self) -> Self {
        let mut merged = self.clone();
        if !self.is_adapted() {
            return merged;
        }
        merged.weights.values_mut().for_each(|form| *form = WeightForm::Dense);
        merged.layers.clear();
        if merged.head_adapter.take().is_some() {
            merged.untie();
        }
        merged
    }

    /// Makes the head a matrix of its own.
    pub fn untie(&mut self) {
        self.tie_word_embeddings = Some(false).filter(|_| self.arch.ties_embeddings());
    }

    /// Checks that every size is one that a network can have, before anything is made from it: a
    /// `config.json` may come from anyone.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("n_layer", self.n_layer, bounds::MAX_LAYERS),
            ("n_head", self.n_head, bounds::MAX_WIDTH),
            ("n_kv_head", self.heads().keys, bounds::MAX_WIDTH),
            ("n_embd", self.n_embd, bounds::MAX_WIDTH),
            ("block_size", self.block_size, bounds::MAX_BLOCK_SIZE),
            ("vocab_size", self.vocab_size, bounds::MAX_VOCABULARY),
        ];
        for (key, size, most) in sizes {
            if let Some(problem) = bounds::size_problem(size as u64, most) {
                bail!("config.json: {key}: {problem}; the checkpoint is not one of lrpt's");
            }
        }
        let (heads, width, dropout) = (self.n_head, self.n_embd, self.dropout);
        ensure!(
            width.is_multiple_of(heads),
            "config.json: n_head: {heads} does not divide n_embd {width}"
        );
        let key_heads = self.heads().keys;
        ensure!(
            heads.is_multiple_of(key_heads),
            "config.json: n_kv_head: {key_heads} does not divide n_head {heads}"
        );
        ensure!(
            (0.0..1.0).contains(&dropout),
            "config.json: dropout: is {dropout}; it is at least 0 and less than 1"
        );
        if let Some((key, problem)) = self.setting_problems().into_iter().next() {
            bail!("config.json: {key}: {problem}")
        }
        let numbers = self.block_parameters();
        ensure!(
            numbers <= bounds::MAX_PARAMETERS,
            "config.json: n_layer: {} blocks of width {width} are more than the {} numbers that are accepted",
            self.n_layer,
            bounds::MAX_PARAMETERS
        );
        for (target, form) in &self.weights {
            let Some(rank) = form.rank() else { continue };
            ensure!(
                !matches!(form, WeightForm::Adapter { alpha: Some(0), .. }),
                "config.json: weights.{}: alpha is 0; it is at least 1",
                target.name()
            );
            self.check_rank(&format!("weights.{}", target.name()), *target, rank)?;
        }
        if let Some(form) = self.head_adapter {
            let WeightForm::Adapter { rank, alpha, .. } = form else {
                bail!("config.json: head_adapter: is no adapter")
            };
            ensure!(alpha != Some(0), "config.json: head_adapter: alpha is 0; it is at least 1");
            self.check_rank("head_adapter", Target::HEAD, rank)?;
        }
        ensure!(
            self.layers.len() <= self.n_layer,
            "config.json: layers: has {} entries for {} blocks",
            self.layers.len(),
            self.n_layer
        );
        for (layer, ranks) in self.layers.iter().enumerate() {
            for (target, rank) in ranks {
                // An adapter of rank 0 is none.
                if *rank == 0 && self.form(*target).is_adapter() {
                    continue;
                }
                self.check_rank(&format!("layers[{layer}].{}", target.name()), *target, *rank)?;
            }
        }
        Ok(())
    }

    /// Refuses a rank that a matrix cannot have, by the key of `config.json`.
    fn check_rank(&self, key: &str, target: Target, rank: usize) -> Result<()> {
        let (rows, columns) = self.shape_with_head(target, self.vocab_size);
        let limit = rows.min(columns);
        ensure!(
            (1..=limit).contains(&rank),
            "config.json: {key}: rank {rank} is not possible for {rows} × {columns}; it is 1 to {limit}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Target;

    fn config(key: &str, value: serde_json::Value) -> ModelConfig {
        let mut config = serde_json::json!({
            "arch": "gpt2", "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 16,
            "vocab_size": 60, "dropout": 0.1, "bias": true, "weights": {"q": {"low_rank": {"rank": 6}}}
        });
        config[key] = value;
        serde_json::from_value(config).expect("a configuration")
    }

    /// Checkpoints of before there was `n_kv_head` have as many heads of keys as of queries, and
    /// such ones are still written without it.
    #[test]
    fn heads_of_keys_are_those_of_queries_unless_said() {
        let usual = config("bias", serde_json::json!(false));
        assert_eq!((usual.heads(), usual.shape(Target::K)), (2.into(), (32, 32)));
        assert!(!serde_json::to_string(&usual).expect("JSON").contains("n_kv_head"));
        let grouped = config("n_kv_head", serde_json::json!(1));
        grouped.validate().expect("a sound one");
        let shapes = [Target::Q, Target::K, Target::V, Target::O].map(|kind| grouped.shape(kind));
        assert_eq!(shapes, [(32, 32), (16, 32), (16, 32), (32, 32)]);
    }

    /// Settings that checkpoints of before had not are those of GPT-2, and are written only where
    /// they differ.
    #[test]
    fn settings_are_the_architecture_s_unless_said() {
        use serde_json::json;
        let mut llama = config("arch", json!("llama"));
        let usual = |config: &ModelConfig| {
            (config.inner_width(), config.ties_embeddings(), config.norm_epsilon())
        };
        assert_eq!(usual(&config("bias", json!(false))), (128, true, 1e-5));
        assert_eq!((usual(&llama), llama.rope_theta()), ((88, false, 1e-6), 10_000.0));
        (llama.n_inner, llama.tie_word_embeddings) = (Some(96), Some(true));
        (llama.rope_theta, llama.rms_norm_eps) = (Some(5e5), Some(1e-5));
        llama.validate().expect("a sound one");
        assert_eq!((usual(&llama), llama.rope_theta()), ((96, true, 1e-5), 5e5));
        assert_eq!(llama.shape(Target::GATE), (96, 32));
        let text = serde_json::to_string(&llama).expect("JSON");
        assert_eq!(serde_json::from_str::<ModelConfig>(&text).expect("read back"), llama);
        llama.n_head = 32;
        let error = llama.validate().expect_err("heads 1 wide").to_string();
        assert!(error.contains("n_head") && error.contains("heads 1 wide"), "{error}");
    }

    /// Case 25: a checkpoint with sizes that no network has.
    #[test]
    fn a_stranger_s_configuration_is_checked_before_it_is_used() {
        use serde_json::json;
        config("bias", json!(false)).validate().expect("a sound one");
        for (key, value, said) in [
            ("n_embd", json!(1u64 << 40), "set at most 65536"),
            ("n_layer", json!(u64::MAX), "set at most 4096"),
            ("vocab_size", json!(1u64 << 31), "set at most 4194304"),
            ("block_size", json!(0), "is 0"),
            ("n_inner", json!(0), "is 0"),
            ("rope_theta", json!(10_000.0), "has learned positions"),
            ("rms_norm_eps", json!(1e-6), "has `layer_norm_epsilon`"),
            ("layer_norm_epsilon", json!(0.0), "is 0"),
            ("n_head", json!(3), "does not divide n_embd 32"),
            ("n_kv_head", json!(0), "is 0"),
            ("n_kv_head", json!(3), "does not divide n_head 2"),
            ("dropout", json!(1.5), "is 1.5"),
            ("weights", json!({"q": {"low_rank": {"rank": 33}}}), "it is 1 to 32"),
            ("layers", json!([{}, {"q": 33}]), "layers[1].q"),
            ("layers", json!([{"q": 0}]), "it is 1 to 32"),
            ("layers", json!([{"gate": 2}]), "layers[0].gate"),
            ("layers", json!([{}, {}, {}]), "3 entries for 2 blocks"),
        ] {
            let error = config(key, value).validate().expect_err(key).to_string();
            assert!(error.contains(key) && error.contains(said), "{error}");
        }
        let mut huge = config("bias", json!(true));
        (huge.n_layer, huge.n_embd) = (4096, 65_536);
        assert!(huge.validate().is_err(), "each size is possible, all together are not");
    }
}
