//! `init:` of a spec: where the first weights come from, if not from the seed.

use super::findings::Findings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the first weights come from. The model must have the source's shape; its weights take the
/// form that `model.weights` says, low-rank and factored ones by truncated SVDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitSpec {
    /// A folder of Hugging Face transformers: config.json and safetensors of a GPT-2 or a
    /// Llama.
    Hf(String),
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    Run(String),
}

impl InitSpec {
    /// The folder.
    pub fn path(&self) -> &str {
        let (InitSpec::Hf(path) | InitSpec::Run(path)) = self;
        path
    }
}

pub(super) fn check_init(found: &mut Findings, init: Option<&InitSpec>) {
    if let Some(init) = init {
        found.require(!init.path().trim().is_empty(), "init", || {
            "names no folder; write `init: {hf: DIR}` or `init: {run: RUN}`, or leave it out".into()
        });
    }
}
