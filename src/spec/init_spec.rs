//! `init:` of a spec: where the first weights come from, if not from the seed.

use super::findings::Findings;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where the first weights come from. What `model` leaves out of the shape, and `data.tokenizer`
/// where it is left out, are the source's; the block size may be smaller. The weights take the form
/// that `model.weights` says, low-rank and factored ones by truncated SVDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitSpec {
    /// A folder of Hugging Face transformers: config.json and safetensors of a GPT-2 or a
    /// Llama.
    Hf(String),
    /// A GGUF file of a Llama, quantised or not, as llama.cpp writes it.
    Gguf(String),
    /// A run's folder (its best checkpoint is used) or one checkpoint's folder.
    Run(String),
    /// A model of transformers with an adapter of PEFT merged into it.
    Peft(PeftInitSpec),
}

/// An adapter of PEFT and its base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PeftInitSpec {
    /// The adapter's folder: adapter_config.json and adapter_model.safetensors.
    pub adapter: String,
    /// The base's folder; default: the one that adapter_config.json names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
}

impl InitSpec {
    /// The folder or the file; of an adapter its own folder.
    pub fn path(&self) -> &str {
        match self {
            InitSpec::Hf(path) | InitSpec::Gguf(path) | InitSpec::Run(path) => path,
            InitSpec::Peft(peft) => &peft.adapter,
        }
    }
}

pub(super) fn check_init(found: &mut Findings, init: Option<&InitSpec>) {
    if let Some(init) = init {
        found.require(!init.path().trim().is_empty(), "init", || {
            "names no model; write `init: {hf: DIR}`, `init: {gguf: FILE}` or `init: {run: RUN}`, or \
             leave it out"
                .into()
        });
    }
}
