//! A run from another folder than the one it was begun in: where its data lie from here.

use super::run_folder::RunFolder;
use crate::data::{self, Dataset};
use crate::spec::DataSpec;
use anyhow::Result;
use std::path::{Path, PathBuf};

impl RunFolder {
    /// The data of a plan of this run, paths that are relative to the folder it was begun in
    /// written so that they are found from here. Where that folder is gone, because all was moved
    /// together, they count from here. What is found is the run's data only if its hash says so.
    fn data_from_here(&self, data: &DataSpec) -> DataSpec {
        match self.begun_elsewhere("folder") {
            Some(folder) => data.within(&folder),
            None => data.clone(),
        }
    }

    /// The data of a plan of this run as this process finds them: prepared in the folder that is
    /// asked for here or in the one that the run began with; or prepared here and now.
    ///
    /// # Errors
    /// As [`data::prepare`].
    pub fn prepare_from_here(&self, data: &DataSpec) -> Result<Dataset> {
        // A run may come from anyone, so that what it names is read and not written to.
        let other = self.begun_elsewhere("data_dir");
        data::prepare_or_find(&self.data_from_here(data), data::cache_dir(), other.as_deref())
    }

    /// A folder that env.json names, if this process is not in the one that the run was begun in
    /// and it is there.
    fn begun_elsewhere(&self, key: &str) -> Option<PathBuf> {
        let text = crate::fs::read_text(&self.root().join("env.json")).ok()?;
        let environment: serde_json::Value = serde_json::from_str(&text).ok()?;
        let here = std::env::current_dir().ok()?;
        let begun = Path::new(environment["folder"].as_str()?);
        let folder = PathBuf::from(environment[key].as_str()?);
        (begun != here && folder.is_dir()).then_some(folder)
    }
}
