//! The YAML spec of a run and the plan made from it.
//!
//! `text + --set` → [`RunSpec`] (what was written) → [`Plan`] (everything resolved and checked). No
//! candle here.

mod adapter_spec;
mod architecture;
mod beta1_spec;
pub mod bounds;
mod count;
mod cut_spec;
mod data_parallel_spec;
mod data_rules;
mod data_spec;
mod decode;
mod dlra_spec;
mod document;
mod findings;
mod init_spec;
mod integrator;
mod key_path;
mod layer_rules;
mod locate;
mod model_plan;
mod model_spec;
mod name;
mod optimizer_plan;
mod optimizer_rules;
mod optimizer_spec;
mod overrides;
mod plan;
mod plan_as_spec;
mod problem;
mod rank_plan;
mod rank_rules;
mod rank_spec;
mod refusal;
mod resume;
mod run_spec;
mod scalar;
mod schedule_spec;
mod schema;
mod start_rules;
mod unused;

pub use adapter_spec::{AdapterForm, AdapterTargets, AdapterWeightsSpec};
pub use architecture::{Architecture, BlockWidths, ROPE_THETA, Target};
pub use beta1_spec::Beta1ScheduleSpec;
pub use count::{Count, NotACount};
pub use cut_spec::{CutBudgetSpec, CutSpec, CutToleranceSpec};
pub use data_parallel_spec::{DataParallelSpec, ProcessBackend};
pub use data_spec::*;
pub use dlra_spec::*;
pub use init_spec::{InitSpec, PeftInitSpec};
pub use integrator::CyclePhase;
pub use model_plan::ModelPlan;
pub use model_spec::*;
pub use name::name_problem;
pub use optimizer_plan::OptimizerPlan;
pub use optimizer_spec::*;
pub use plan::*;
pub use rank_plan::*;
pub use rank_spec::*;
pub use resume::is_of_length;
pub use run_spec::*;
pub use schedule_spec::*;
pub use schema::schema;
pub use unused::unused_settings;

use document::Document;
pub use document::ImportedShape;
pub(crate) use document::decode_document;
use std::path::Path;

/// Reads the spec in a file, with `key.path=value` settings laid over it.
///
/// # Errors
/// [`Failure::Usage`](crate::error::Failure::Usage) with `file:line:column: key.path: what is
/// wrong; the remedy`: the file cannot be read, is not YAML, or holds an unknown, missing, doubled
/// or mistyped key. Whether values fit together shows only in
/// [`load_plan`].
pub fn load(path: &Path, overrides: &[String]) -> anyhow::Result<RunSpec> {
    Document::read(path, overrides)?.spec()
}

/// Reads the spec in a text; `name` stands for the file in messages.
///
/// # Errors
/// As for [`load`].
pub fn parse(text: &str, name: &str, overrides: &[String]) -> anyhow::Result<RunSpec> {
    Document::parse(text, name, overrides)?.spec()
}

/// Reads the spec in a file and resolves it.
///
/// # Errors
/// As for [`load`], and one line for each value that does not fit with others, with its place in
/// the file.
pub fn load_plan(path: &Path, overrides: &[String]) -> anyhow::Result<(RunSpec, Plan)> {
    Document::read(path, overrides)?.plan()
}

/// Reads the spec in a file, with what it leaves out of the model's shape and the tokenizer filled
/// in from the model that `init` names, which `shape_of` reads.
///
/// # Errors
/// As for [`load`], and as `shape_of`.
pub fn load_completed(
    path: &Path,
    overrides: &[String],
    shape_of: &dyn Fn(&InitSpec) -> anyhow::Result<ImportedShape>,
) -> anyhow::Result<RunSpec> {
    let mut document = Document::read(path, overrides)?;
    document.complete(shape_of)?;
    document.spec()
}

/// [`load_plan`] with what [`load_completed`] fills in.
///
/// # Errors
/// As both.
pub fn load_completed_plan(
    path: &Path,
    overrides: &[String],
    shape_of: &dyn Fn(&InitSpec) -> anyhow::Result<ImportedShape>,
) -> anyhow::Result<(RunSpec, Plan)> {
    let mut document = Document::read(path, overrides)?;
    document.complete(shape_of)?;
    document.plan()
}

/// Reads the spec in a text and resolves it; `name` stands for the file in messages.
///
/// # Errors
/// As for [`load_plan`].
pub fn parse_plan(text: &str, name: &str, overrides: &[String]) -> anyhow::Result<(RunSpec, Plan)> {
    Document::parse(text, name, overrides)?.plan()
}

/// Writes a spec or a plan as YAML that [`parse`] or [`Plan::from_yaml`] reads back.
///
/// # Errors
/// The value holds something that YAML cannot say; specs and plans do not.
pub fn to_yaml<T: serde::Serialize>(value: &T) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    serde_yaml::with::singleton_map_recursive::serialize(
        value,
        &mut serde_yaml::Serializer::new(&mut bytes),
    )?;
    Ok(String::from_utf8(bytes)?)
}
