//! Whose checkpoint it is: what a run and its checkpoints must agree on to be continued.

use crate::data::DatasetSummary;
use crate::error::Failure;
use crate::spec::Plan;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What a checkpoint says of the run it belongs to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Hash of the settings.
    plan: String,
    /// Hash of the text.
    data: String,
    /// Hash of the tokenizer.
    tokenizer: String,
    /// [`Plan::identity`], which leaves out what may change on resume, so that a refusal can say
    /// which settings differ.
    settings: BTreeMap<String, Value>,
}

impl Identity {
    /// The identity of a run of this plan on these data.
    pub fn of(plan: &Plan, data: &DatasetSummary) -> Self {
        let settings = plan.identity();
        Self {
            plan: blake3::hash(&serde_json::to_vec(&settings).unwrap_or_default()).to_string(),
            data: data.content_hash.clone(),
            tokenizer: data.tokenizer_hash.clone(),
            settings,
        }
    }

    /// Refuses a checkpoint that says it is of another run.
    ///
    /// # Errors
    /// [`Failure::Usage`] with what differs and what to do.
    pub fn check(&self, checkpoint: Option<&Self>, path: &Path) -> Result<()> {
        let Some(found) = checkpoint else {
            return Err(refusal(
                path,
                "does not say which run it belongs to (an older version of lrpt wrote it)",
                "continue it with that version, or begin anew with --restart",
            ));
        };
        let mut differences = Vec::new();
        if found.plan != self.plan {
            let keys = found.settings.keys().chain(self.settings.keys());
            let keys: std::collections::BTreeSet<&String> = keys.collect();
            let shown = |value: Option<&Value>| value.map_or("not set".into(), Value::to_string);
            for key in keys {
                let (theirs, ours) =
                    (shown(found.settings.get(key)), shown(self.settings.get(key)));
                if theirs != ours {
                    differences.push(format!("{key}: {theirs} -> {ours}"));
                }
            }
            if differences.is_empty() {
                differences.push(format!("plan hash: {} -> {}", found.plan, self.plan));
            }
        }
        for (what, theirs, ours) in
            [("data", &found.data, &self.data), ("tokenizer", &found.tokenizer, &self.tokenizer)]
        {
            if theirs != ours {
                differences.push(format!("{what}: {theirs} -> {ours}"));
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        Err(refusal(
            path,
            &format!(
                "is of another run or plan (checkpoint -> this run):\n  {}",
                differences.join("\n  ")
            ),
            "undo these changes in plan.yaml, take the foreign checkpoint out of the folder, or \
             begin anew with --restart",
        ))
    }
}

fn refusal(path: &Path, what: &str, remedy: &str) -> anyhow::Error {
    Failure::Usage(format!("the checkpoint {} {what}\n{remedy}", path.display())).into()
}
