//! The files of paths and globs, and what is in them: UTF-8 text, or something to be named.

use super::corpus::usage;
#[cfg(feature = "datasets")]
use super::hub_files::fetch;
use crate::spec::HUB;
use anyhow::Context;
use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

/// First bytes of files that are not text, and what such a file is.
const SIGNATURES: [(&[u8], &str); 9] = [
    (&[0x1f, 0x8b], "gzip data; decompress it first (`gunzip FILE`)"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd data; decompress it first (`zstd -d FILE`)"),
    (b"BZh", "bzip2 data; decompress it first (`bunzip2 FILE`)"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz data; decompress it first (`unxz FILE`)"),
    (b"PK\x03\x04", "a zip archive; unpack it first"),
    (b"PAR1", "a Parquet file; read it with `data.source: {parquet: {train: [FILE]}}`"),
    (b"LRPTTOKN", "a token shard of lrpt, not text"),
    (&[0xff, 0xfe], "UTF-16 text; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
    (&[0xfe, 0xff], "UTF-16 text; convert it to UTF-8 first (`iconv -f UTF-16 -t UTF-8`)"),
];

/// What the first bytes of a file show it to be, with the remedy, where that is not text.
pub(super) fn not_text(first: &[u8]) -> Option<&'static str> {
    SIGNATURES.iter().find(|(bytes, _)| first.starts_with(bytes)).map(|(_, what)| *what)
}

/// A text without the byte-order mark that editors on Windows put before it.
pub(super) fn without_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Files, and what they were asked for as.
pub(super) struct Found {
    pub files: Vec<PathBuf>,
    /// The paths and globs, those of the Hugging Face Hub with the commit they are of.
    pub names: String,
}

/// The files of a list of paths and globs: entries in their order, the files of a glob in path
/// order, every file once, also where links lead to it twice. What begins with `hf://` is fetched
/// from the Hugging Face Hub.
///
/// # Errors
/// [`crate::error::Failure::Usage`] for a glob that cannot be parsed and an entry that matches no
/// file; where the Hub does not give a file.
pub(super) fn expand(patterns: &[String]) -> anyhow::Result<Found> {
    let mut seen = BTreeSet::new();
    let (mut files, mut names) = (Vec::new(), Vec::new());
    for pattern in patterns {
        let mut name = pattern.clone();
        let matches = if pattern.starts_with(HUB) {
            let (matches, at_commit) = fetch(pattern)?;
            name = at_commit;
            matches
        } else if Path::new(pattern).is_file() {
            vec![PathBuf::from(pattern)]
        } else {
            matching_files(pattern)?
        };
        if matches.is_empty() {
            let here = std::env::current_dir().unwrap_or_default();
            return Err(usage(format!(
                "data.source: no file matches `{pattern}` (paths are relative to {})",
                here.display()
            )));
        }
        names.push(name);
        // Files of the Hub that hold the same lead to one place in its cache, and are two all the same.
        let place = |path: &PathBuf| match pattern.starts_with(HUB) {
            true => path.clone(),
            false => path.canonicalize().unwrap_or_else(|_| path.clone()),
        };
        files.extend(matches.into_iter().filter(|path| seen.insert(place(path))));
    }
    if files.is_empty() {
        return Err(usage("data.source: the list of files is empty"));
    }
    Ok(Found { files, names: names.join(" ") })
}

#[cfg(not(feature = "datasets"))]
fn fetch(pattern: &str) -> anyhow::Result<(Vec<PathBuf>, String)> {
    Err(usage(format!(
        "data.source: `{pattern}`: this build of lrpt fetches nothing; build it with the feature \
         `datasets` (`cargo build --release --features datasets`), or fetch the files \
         (`hf download`) and name them where they are"
    )))
}

/// Of the paths of files, those that a path or a glob names, as the files of a folder are matched.
///
/// # Errors
/// [`crate::error::Failure::Usage`] for a glob that cannot be parsed.
#[cfg(feature = "datasets")]
pub(super) fn matching<'a>(
    pattern: &str,
    paths: impl Iterator<Item = &'a str> + Clone,
) -> anyhow::Result<Vec<&'a str>> {
    if let Some(path) = paths.clone().find(|path| *path == pattern) {
        return Ok(vec![path]);
    }
    let glob = glob_of(pattern, pattern)?;
    let has_dot = |path: &str| path.split('/').any(|part| is_dot_name(part.as_ref()));
    let takes_dot_names = has_dot(pattern);
    Ok(paths.filter(|path| glob.is_match(path) && (takes_dot_names || !has_dot(path))).collect())
}

fn glob_of(pattern: &str, written: &str) -> anyhow::Result<globset::GlobMatcher> {
    let glob = globset::GlobBuilder::new(pattern).literal_separator(true).build();
    let glob = glob.map_err(|e| usage(format!("data.source: `{written}` is not a glob: {e}")))?;
    Ok(glob.compile_matcher())
}

/// A glob as the paths it is compared with are written: without `./`, `//` and `/./`.
fn plain(pattern: &str) -> String {
    let parts: Vec<&str> =
        pattern.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    let root = if pattern.starts_with('/') { "/" } else { "" };
    format!("{root}{}", parts.join("/"))
}

/// The files of this machine that match, in path order.
pub(super) fn matching_files(written: &str) -> anyhow::Result<Vec<PathBuf>> {
    let pattern = plain(written);
    let glob = glob_of(&pattern, written)?;
    let parts: Vec<Component> = Path::new(&pattern).components().collect();
    let fixed: PathBuf = parts.iter().take_while(|part| !is_glob(part)).collect();
    let below = &parts[fixed.components().count().min(parts.len())..];
    let search = Search {
        glob,
        // `**` may stand for any number of folders; without it the pattern says how deep to look.
        depth: (!pattern.contains("**")).then_some(below.len()),
        takes_dot_names: below.iter().any(|part| is_dot_name(part.as_os_str())),
    };
    let mut files = BTreeSet::new();
    search.collect(&fixed, &mut Vec::new(), &mut files)?;
    Ok(files.into_iter().collect())
}

fn is_glob(part: &Component) -> bool {
    part.as_os_str().to_string_lossy().contains(['*', '?', '[', '{'])
}

/// Whether a name is one that shells pass over, such as `.git`, `._a.txt` or `.ipynb_checkpoints`.
pub(super) fn is_dot_name(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b".") && name != ".."
}

/// What a walk through folders looks for.
struct Search {
    glob: globset::GlobMatcher,
    depth: Option<usize>,
    /// Whether the pattern names something that begins with a dot; else such names are passed over.
    takes_dot_names: bool,
}

impl Search {
    /// Adds the matching files under a folder, links followed; `above` are the folders on the way
    /// to it, which a link may not lead back to.
    fn collect(
        &self,
        folder: &Path,
        above: &mut Vec<PathBuf>,
        files: &mut BTreeSet<PathBuf>,
    ) -> anyhow::Result<()> {
        let place = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        let is_deep_enough = self.depth.is_some_and(|depth| above.len() >= depth.max(1));
        if is_deep_enough || !place.is_dir() {
            return Ok(());
        }
        let unreadable = || format!("{}: the folder cannot be read", place.display());
        let canonical = place.canonicalize().with_context(unreadable)?;
        if above.contains(&canonical) {
            return Ok(());
        }
        above.push(canonical);
        for entry in std::fs::read_dir(place).with_context(unreadable)? {
            let name = entry.with_context(unreadable)?.file_name();
            if is_dot_name(&name) && !self.takes_dot_names {
                continue;
            }
            let path = folder.join(name);
            if path.is_dir() {
                self.collect(&path, above, files)?;
            } else if self.glob.is_match(&path) && path.is_file() {
                files.insert(path);
            }
        }
        above.pop();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The files a pattern under a folder matches, by their paths within it.
    fn matched(folder: &Path, pattern: &str) -> Vec<String> {
        let root = format!("{}/", folder.display());
        let found = expand(&[format!("{root}{pattern}")]);
        let files = found.map_or_else(|_| Vec::new(), |found| found.files);
        files
            .iter()
            .map(|path| path.display().to_string().replace("//", "/").replacen(&root, "", 1))
            .collect()
    }

    fn write(folder: &Path, name: &str) {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, name).unwrap();
    }

    /// Case 13.
    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_a_circle_of_them_ends() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "c/real/a.txt");
        write(root, "s/b.txt");
        std::os::unix::fs::symlink("../s", root.join("c/link")).unwrap();
        std::os::unix::fs::symlink("..", root.join("c/real/up")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("c/real/broken.txt")).unwrap();
        assert_eq!(matched(root, "c/*/*.txt"), ["c/link/b.txt", "c/real/a.txt"]);
        assert_eq!(matched(root, "c/**/*.txt"), ["c/link/b.txt", "c/real/a.txt"]);
        // The same file by two ways is read once.
        assert_eq!(matched(root, "{c,s}/**/*.txt"), ["c/link/b.txt", "c/real/a.txt"]);
    }

    /// Case 14.
    #[test]
    fn names_that_begin_with_a_dot_are_passed_over_unless_named() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["c/a.txt", "c/._a.txt", "c/.ipynb_checkpoints/a.txt", "c/x/b.txt"] {
            write(root, name);
        }
        assert_eq!(matched(root, "c/**/*.txt"), ["c/a.txt", "c/x/b.txt"]);
        assert_eq!(matched(root, "c/.ipynb_checkpoints/*.txt"), ["c/.ipynb_checkpoints/a.txt"]);
        assert_eq!(matched(root, "*/.ipynb*/*.txt"), ["c/.ipynb_checkpoints/a.txt"]);
    }

    /// Case 42.
    #[test]
    fn doubled_slashes_and_dots_match() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "corpus/a.txt");
        for pattern in ["/corpus/*.txt", "./corpus/*.txt", "corpus/.//./*.txt"] {
            assert_eq!(matched(folder.path(), pattern), ["corpus/a.txt"], "{pattern}");
        }
        assert_eq!(plain("./g//corpus/./*.txt"), "g/corpus/*.txt");
        assert_eq!(plain("//g/*"), "/g/*");
    }
}
