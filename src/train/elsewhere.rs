//! A run from another folder than the one it was begun in: where its data lie from here.

use super::run_folder::RunFolder;
use crate::data;
use crate::spec::DataSpec;
use std::path::{Path, PathBuf};

impl RunFolder {
    /// The data of a plan of this run, paths that are relative to the folder it was begun in
    /// written so that they are found from here. Where that folder is gone, because all was moved
    /// together, they count from here. What is found is the run's data only if its hash says so.
    pub fn data_from_here(&self, data: &DataSpec) -> DataSpec {
        match self.begun_elsewhere("folder") {
            Some(folder) => data.within(&folder),
            None => data.clone(),
        }
    }

    /// The folder of prepared data: the one that is asked for here or, where none is, the one that
    /// the run began with.
    pub fn cache_from_here(&self) -> PathBuf {
        let own = || self.begun_elsewhere("data_dir");
        let asked = data::cache_dir();
        (!asked.exists()).then(own).flatten().unwrap_or_else(|| asked.to_path_buf())
    }

    /// A folder that env.json names, if this process is not in the one that the run was begun in
    /// and it is there.
    fn begun_elsewhere(&self, key: &str) -> Option<PathBuf> {
        let text = std::fs::read_to_string(self.root().join("env.json")).ok()?;
        let environment: serde_json::Value = serde_json::from_str(&text).ok()?;
        let here = std::env::current_dir().ok()?;
        let begun = Path::new(environment["folder"].as_str()?);
        let folder = PathBuf::from(environment[key].as_str()?);
        (begun != here && folder.is_dir()).then_some(folder)
    }
}
