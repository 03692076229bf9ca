//! Files of the Hugging Face Hub, fetched into its cache, where its own libraries find them too.

use super::corpus::usage;
use super::files::{matching, matching_files};
use super::hub_path::{HubPath, Kind};
use crate::figures;
use crate::fs::{read_text, write_atomic};
use anyhow::{Context, Result, bail};
use hf_hub::repository::{RepoTreeEntry, RepoType};
use hf_hub::{HFClientSync, HFError, HFRepositorySync, HFResult};
use std::path::{Path, PathBuf};

/// The files that a path or a glob names, in path order, and the same with the commit they are of.
///
/// The Hub is asked which commit the revision is and which files it has; what the cache does not
/// hold of them is fetched. Where the Hub cannot be reached, or `HF_HUB_OFFLINE` is set, the files
/// are those that the cache holds. `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT` and `HF_TOKEN` mean what
/// they mean to the Hub's own libraries.
///
/// # Errors
/// [`crate::error::Failure::Usage`] for a path that is spelled otherwise or matches no file; else
/// where the Hub refuses or does not have it, or neither the Hub nor the cache gives it.
pub(super) fn fetch(written: &str) -> Result<(Vec<PathBuf>, String)> {
    let wanted = HubPath::parse(written)?;
    let (owner, name, revision) = (&wanted.owner, &wanted.name, wanted.revision.clone());
    let repository = Repository::new(&wanted);
    if is_offline() {
        return repository.cached("HF_HUB_OFFLINE is set");
    }
    let client = HFClientSync::new().with_context(|| {
        format!(
            "{written}: the Hub cannot be asked; is HF_ENDPOINT an address such as {HUB_ADDRESS}?"
        )
    })?;
    match wanted.kind {
        Kind::Dataset => {
            let hub = client.dataset(owner, name);
            repository.files(&hub, || Ok(hub.info().revision(revision).send()?.sha))
        }
        Kind::Model => {
            let hub = client.model(owner, name);
            repository.files(&hub, || Ok(hub.info().revision(revision).send()?.sha))
        }
    }
}

/// The Hub's address where `HF_ENDPOINT` names no other.
const HUB_ADDRESS: &str = "https://huggingface.co";

/// Whether the user wants nothing asked of the Hub.
fn is_offline() -> bool {
    let value = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
    ["1", "true", "yes", "on"].contains(&value.to_lowercase().as_str())
}

/// A repository of the Hub, and its folder in the cache.
struct Repository<'a> {
    wanted: &'a HubPath,
    folder: PathBuf,
    address: String,
}

impl<'a> Repository<'a> {
    fn new(wanted: &'a HubPath) -> Self {
        let HubPath { kind, owner, name, .. } = wanted;
        let folder = format!("{}--{owner}--{name}", kind.plural());
        let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| HUB_ADDRESS.to_string());
        Self {
            wanted,
            folder: hf_hub::resolve_cache_dir().join(folder),
            address: wanted.address(&endpoint),
        }
    }

    /// Where the files of a commit are in the cache.
    fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where the cache notes the commit of the revision.
    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(&self.wanted.revision)
    }

    /// The wanted files; `commit` asks the Hub which the revision is.
    fn files<T: RepoType>(
        &self,
        hub: &HFRepositorySync<T>,
        commit: impl FnOnce() -> HFResult<Option<String>>,
    ) -> Result<(Vec<PathBuf>, String)> {
        let HubPath { revision, path, .. } = self.wanted;
        let is_pinned = self.wanted.is_pinned();
        let file = self.snapshot(revision).join(path);
        if is_pinned && file.is_file() {
            return Ok((vec![file], self.wanted.to_string()));
        }
        let commit = if is_pinned { Ok(Some(revision.clone())) } else { commit() };
        let listed = commit.and_then(|commit| {
            let none = || HFError::Other("the Hub did not say which commit it is".to_string());
            let commit = commit.ok_or_else(none)?;
            let tree = hub.list_tree().revision(commit.clone()).recursive(true);
            let tree = tree.maybe_path_in_repo(fixed_folder(path)).send()?;
            Ok((commit, tree))
        });
        let (commit, tree) = match listed {
            Ok(listed) => listed,
            Err(error) if is_unreachable(&error) => {
                let why = format!(
                    "{} cannot be reached ({:#})",
                    self.address,
                    anyhow::Error::from(error)
                );
                return self.cached(&why);
            }
            Err(error) => return Err(self.refused(error)),
        };
        let file = |entry| match entry {
            RepoTreeEntry::File { path, size, .. } => Some((path, size)),
            RepoTreeEntry::Directory { .. } => None,
        };
        let mut sizes: Vec<(String, u64)> = tree.into_iter().filter_map(file).collect();
        sizes.sort();
        let names = matching(path, sizes.iter().map(|(path, _)| path.as_str()))?;
        if names.is_empty() {
            let at = self.wanted.at(&commit);
            return Err(usage(format!("data.source: no file of {} matches `{at}`", self.address)));
        }
        let mut files = Vec::new();
        for (name, size) in sizes.iter().filter(|(path, _)| names.contains(&path.as_str())) {
            files.push(self.file(hub, &commit, name, *size)?);
        }
        // The Hub's own libraries note it as well; without a network it is what the revision is.
        if !is_pinned {
            write_atomic(&self.reference(), commit.as_bytes())?;
        }
        Ok((files, self.wanted.at(&commit).to_string()))
    }

    /// One file of a commit, fetched if the cache does not hold it.
    fn file<T: RepoType>(
        &self,
        hub: &HFRepositorySync<T>,
        commit: &str,
        name: &str,
        size: u64,
    ) -> Result<PathBuf> {
        if !self.snapshot(commit).join(name).is_file() {
            tracing::info!("fetching {name} of {} ({})", self.address, figures::bytes(size));
        }
        let file = hub.download_file().filename(name).revision(commit).send();
        let file = file.map_err(|error| self.refused(error))?;
        let failed = || format!("{}: the file cannot be read", file.display());
        let length = file.metadata().with_context(failed)?.len();
        if length != size {
            // Both the name and what it leads to, so that the next attempt fetches it.
            let blob = file.canonicalize().with_context(failed)?;
            for path in [&file, &blob] {
                std::fs::remove_file(path).with_context(failed)?;
            }
            bail!("{name} of {}: {length} bytes came, but it has {size}; try again", self.address);
        }
        Ok(file)
    }

    /// The wanted files as far as the cache holds them, and why the Hub is not asked.
    fn cached(&self, why: &str) -> Result<(Vec<PathBuf>, String)> {
        let HubPath { revision, path, owner, name, kind } = self.wanted;
        let commit = if self.wanted.is_pinned() {
            Some(revision.clone())
        } else {
            read_text(&self.reference()).ok().map(|commit| commit.trim().to_string())
        };
        let of_commit = commit.map(|commit| (self.snapshot(&commit), commit));
        if let Some((snapshot, commit)) = of_commit.filter(|(snapshot, _)| snapshot.is_dir()) {
            let files = files_of(&snapshot, path)?;
            if !files.is_empty() {
                tracing::warn!(
                    "{}: {why}; using what the cache holds of it at commit {commit}, {} file(s)",
                    self.wanted,
                    files.len()
                );
                return Ok((files, self.wanted.at(&commit).to_string()));
            }
        }
        let of = if *kind == Kind::Dataset { "--repo-type dataset " } else { "" };
        bail!(
            "{}: {why}, and the cache ({}) does not hold it; check the network and HF_ENDPOINT, or \
             fetch it where there is a network (`hf download {of}{owner}/{name} --revision {revision} \
             --include '{path}'`) and set HF_HOME to the folder of that cache",
            self.wanted,
            self.folder.display()
        )
    }

    /// What an answer of the Hub means to the user.
    fn refused(&self, error: HFError) -> anyhow::Error {
        let status = match &error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context } => context.status.as_u16(),
            _ => 0,
        };
        let remedy = match (&error, status) {
            (_, 401 | 403) => {
                "access is refused; where its page asks for it, accept the conditions, and log in \
                 (`hf auth login`) or set HF_TOKEN to a token that may read it"
            }
            (HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. }, _) => {
                "there is no such repository or revision, or only for those who may see it; check \
                 the spelling, and log in (`hf auth login`) or set HF_TOKEN if it is private"
            }
            (HFError::EntryNotFound { .. }, _) | (_, 404) => {
                "there is no such commit, folder or file; check the spelling"
            }
            _ => "the Hub did not give it; try again",
        };
        let context = format!("{}: {}: {remedy}", self.wanted, self.address);
        anyhow::Error::from(error).context(context)
    }
}

/// Whether an error says nothing of what was asked for.
fn is_unreachable(error: &HFError) -> bool {
    match error {
        HFError::Request { .. } | HFError::RateLimited { .. } => true,
        HFError::Http { context } => context.status.is_server_error(),
        _ => false,
    }
}

/// The folder that a path or glob within a repository begins with, if it does.
fn fixed_folder(path: &str) -> Option<String> {
    let parts = path.split('/').collect::<Vec<_>>();
    let is_glob = |part: &&str| part.contains(['*', '?', '[', '{']);
    let fixed = parts.iter().position(is_glob).unwrap_or(parts.len());
    let fixed = parts[..fixed.min(parts.len() - 1)].join("/");
    (!fixed.is_empty()).then_some(fixed)
}

/// The files of a snapshot that match.
fn files_of(snapshot: &Path, path: &str) -> Result<Vec<PathBuf>> {
    let file = snapshot.join(path);
    if file.is_file() {
        return Ok(vec![file]);
    }
    matching_files(&file.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_folder_that_a_glob_begins_with_is_listed() {
        for (path, folder) in [
            ("a.txt", None),
            ("*.txt", None),
            ("data/a.txt", Some("data")),
            ("data/en/*.txt", Some("data/en")),
            ("data/**/a.txt", Some("data")),
            ("data/{a,b}/c/d.txt", Some("data")),
        ] {
            assert_eq!(fixed_folder(path).as_deref(), folder, "{path}");
        }
    }
}
