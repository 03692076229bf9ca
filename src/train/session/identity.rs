//! Whose checkpoint it is: what a run and its checkpoints must agree on to be continued.

use crate::data::DatasetSummary;
use crate::error::Failure;
use crate::spec::{Plan, is_of_length};
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
        let mut identity = Self {
            plan: String::new(),
            data: data.content_hash.clone(),
            tokenizer: data.tokenizer_hash.clone(),
            settings: plan.identity(),
        };
        identity.plan = identity.hash();
        identity
    }

    /// Hash of the settings.
    fn hash(&self) -> String {
        blake3::hash(&serde_json::to_vec(&self.settings).unwrap_or_default()).to_string()
    }

    /// Refuses a checkpoint of a step that says it is of another run than this one, of this plan.
    ///
    /// # Errors
    /// [`Failure::Usage`] with what differs and what to do.
    pub fn check(
        &self,
        checkpoint: Option<&Self>,
        step: u64,
        plan: &Plan,
        path: &Path,
    ) -> Result<()> {
        let Some(found) = checkpoint else {
            return Err(refusal(
                path,
                "does not say which run it belongs to (an older version of lrpt wrote it)",
                "continue it with that version, or begin anew with --restart",
            ));
        };
        let mut differences = Vec::new();
        if found.plan != self.plan {
            // An older version counted settings, too, that may change.
            differences = plan.differences_of_identity(&found.settings);
            if found.hash() != found.plan {
                differences.push(format!("plan hash: {} -> {}", found.plan, self.plan));
            }
        }
        // A run that was extended has checkpoints of before.
        if differences.iter().all(|line| is_of_length(line)) {
            let steps = found.settings.get("train.max_steps").and_then(Value::as_u64);
            let shorter = steps.map(|steps| plan.with_steps(steps));
            let until = shorter.and_then(|shorter| shorter.agrees_until(plan));
            differences.retain(|_| until.is_none_or(|until| step > until));
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
