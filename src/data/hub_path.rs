//! Paths of files on the Hugging Face Hub as its own libraries spell them:
//! `hf://datasets/OWNER/NAME@REVISION/PATH`.

use super::corpus::usage;
use crate::spec::HUB;
use anyhow::Result;
use std::fmt;

/// Kind of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Dataset,
    Model,
}

impl Kind {
    /// What the Hub's addresses and its cache call all of them.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Kind::Dataset => "datasets",
            Kind::Model => "models",
        }
    }
}

/// A file or a glob of files in a repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubPath {
    pub kind: Kind,
    pub owner: String,
    pub name: String,
    pub revision: String,
    /// Within the repository; may be a glob.
    pub path: String,
}

impl HubPath {
    /// Reads what follows `hf://`: the kind (`datasets/`; without one a model), owner and name, the
    /// revision (`main` without one; a slash in it is written `%2F`, but for `refs/convert/...` and
    /// `refs/pr/...`), and the path.
    ///
    /// # Errors
    /// [`crate::error::Failure::Usage`] where it is spelled otherwise.
    pub(super) fn parse(written: &str) -> Result<Self> {
        let wrong = |why: &str| {
            usage(format!(
                "data.source: `{written}`: {why}; write \
                 `hf://datasets/OWNER/NAME@REVISION/PATH`, where @REVISION may be left out and PATH \
                 may be a glob"
            ))
        };
        let rest = written.strip_prefix(HUB).unwrap_or(written);
        let (kind, rest) = match rest.split_once('/') {
            Some(("datasets", rest)) => (Kind::Dataset, rest),
            Some(("models", rest)) => (Kind::Model, rest),
            Some(("spaces" | "buckets", _)) => {
                return Err(wrong("only data sets and models hold text to train on"));
            }
            _ => (Kind::Model, rest),
        };
        let (owner, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, rest) = match rest.find(['@', '/']) {
            Some(at) => rest.split_at(at),
            None => (rest, ""),
        };
        let is_name = |name: &str| {
            let is_known = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
            !name.is_empty() && name.chars().all(is_known) && !name.starts_with('.')
        };
        if !is_name(owner) || !is_name(name) {
            return Err(wrong("it does not begin with an owner and a name"));
        }
        let (revision, path) = match rest.strip_prefix('@') {
            None => ("main".to_string(), rest),
            Some(rest) => {
                let of_refs =
                    ["refs/convert/", "refs/pr/"].iter().find(|of| rest.starts_with(**of));
                let from = of_refs.map_or(0, |of| of.len());
                let end = rest[from..].find('/').map_or(rest.len(), |end| from + end);
                (rest[..end].replace("%2F", "/").replace("%2f", "/"), &rest[end..])
            }
        };
        let path = path.trim_start_matches('/');
        let is_plain = |text: &str| {
            !text.is_empty() && text.split('/').all(|part| !["", ".", ".."].contains(&part))
        };
        if !is_plain(&revision) {
            return Err(wrong("its revision is none"));
        }
        if !is_plain(path) {
            return Err(wrong("it names no file"));
        }
        let [owner, name, path] = [owner, name, path].map(String::from);
        Ok(Self { kind, owner, name, revision, path })
    }

    /// The same at a commit.
    pub(super) fn at(&self, commit: &str) -> Self {
        Self { revision: commit.to_string(), ..self.clone() }
    }

    /// Whether the revision is a commit, which never becomes another.
    pub(super) fn is_pinned(&self) -> bool {
        self.revision.len() == 40 && self.revision.chars().all(|c| c.is_ascii_hexdigit())
    }

    /// The address of the repository.
    pub(super) fn address(&self, endpoint: &str) -> String {
        let of = match self.kind {
            Kind::Dataset => "datasets/",
            Kind::Model => "",
        };
        format!("{}/{of}{}/{}", endpoint.trim_end_matches('/'), self.owner, self.name)
    }
}

impl fmt::Display for HubPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, owner, name, revision, path } = self;
        let of = if *kind == Kind::Dataset { "datasets/" } else { "" };
        write!(f, "{HUB}{of}{owner}/{name}@{}/{path}", revision.replace('/', "%2F"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_as_the_hubs_own_libraries_do() {
        for (written, kind, revision, path) in [
            ("hf://datasets/o/n/a.txt", Kind::Dataset, "main", "a.txt"),
            ("hf://datasets/o/n@v1.0/data/*.parquet", Kind::Dataset, "v1.0", "data/*.parquet"),
            ("hf://datasets/o/n@refs%2Fpr%2F3/a", Kind::Dataset, "refs/pr/3", "a"),
            (
                "hf://datasets/o/n@refs/convert/parquet/d/a",
                Kind::Dataset,
                "refs/convert/parquet",
                "d/a",
            ),
            ("hf://datasets/o/n@refs/pr/3/a@b", Kind::Dataset, "refs/pr/3", "a@b"),
            ("hf://o/n@main/**/*.txt", Kind::Model, "main", "**/*.txt"),
            ("hf://models/o/n/a.txt", Kind::Model, "main", "a.txt"),
        ] {
            let read = HubPath::parse(written).unwrap();
            let expected = (kind, "o", "n", revision, path);
            let found = (read.kind, &*read.owner, &*read.name, &*read.revision, &*read.path);
            assert_eq!(found, expected, "{written}");
            assert_eq!(HubPath::parse(&read.to_string()).unwrap(), read);
        }
        for (written, expected) in [
            ("hf://", "an owner and a name"),
            ("hf://datasets/o", "an owner and a name"),
            ("hf://datasets/../n/a", "an owner and a name"),
            ("hf://datasets/o/n", "names no file"),
            ("hf://datasets/o/n@main", "names no file"),
            ("hf://datasets/o/n@main/", "names no file"),
            ("hf://datasets/o/n/../../a", "names no file"),
            ("hf://datasets/o/n@/a", "its revision is none"),
            ("hf://datasets/o/n@..%2Fa/b", "its revision is none"),
            ("hf://spaces/o/n/a", "only data sets and models"),
        ] {
            let error = HubPath::parse(written).unwrap_err();
            assert_eq!(crate::error::exit_code(&error), 2, "{written}");
            assert!(error.to_string().contains(expected), "{written}: {error}");
        }
    }
}
