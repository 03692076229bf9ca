//! The default corpus: Rust sources of lrpt's own locked dependencies, which Cargo has already put
//! on the machine.
//!
//! Only crates that every build needs, on Linux, macOS and Windows and with or without default
//! features, are in [`CRATES`]; `cargo build` has fetched them wherever lrpt was built, and so the
//! text is the same on every machine. It changes when `Cargo.lock` changes: each run records the
//! hash of its text.

use super::corpus::Corpus;
use super::documents::Documents;
use anyhow::Context;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The lock file this program was built with.
const LOCK: &str = include_str!("../../Cargo.lock");

/// The crates of the corpus, in the order of `Cargo.lock`.
///
/// Left out: bindings and intrinsics (`libc`, `windows-sys`, `raw-cpuid`), crates that are only
/// Unicode tables, crates of a few lines, and names of which `Cargo.lock` ends with a version that
/// not every build uses.
const CRATES: &str = "
    ahash aho-corasick allocator-api2 anstream anstyle anstyle-parse anstyle-query anyhow arrayvec atomic-wait autocfg bit-set
    bit-vec bitflags blake3 bstr bytemuck bytemuck_derive byteorder candle-core candle-nn candle-transformers castaway cc cfg-if
    clap clap_builder clap_complete clap_derive clap_lex compact_str console constant_time_eq crc32fast crossbeam-channel
    crossbeam-deque crossbeam-epoch crossbeam-queue crossbeam-utils daachorse dary_heap derive_builder derive_builder_core dyn-clone
    dyn-stack either equator equator-macro errno esaxx-rs faer fancy-regex fastrand float8 foldhash gemm gemm-c32 gemm-c64
    gemm-common gemm-f16 gemm-f32 gemm-f64 getrandom globset half hashbrown heck ident_case indexmap indicatif itertools itoa
    lazy_static libm libyaml-rs lock_api log macro_rules_attribute macro_rules_attribute-proc_macro matchers memchr memmap2
    minimal-lexical monostate monostate-impl nano-gemm nom nu-ansi-term num-complex num-traits num_cpus once_cell parking_lot
    parking_lot_core paste pastey pin-project-lite portable-atomic ppv-lite86 proc-macro2 pulp qd quote rand_chacha rand_distr rayon
    rayon-cond rayon-core reborrow ref-cast ref-cast-impl regex regex-automata regex-syntax rustversion ryu safetensors schemars
    schemars_derive scopeguard seq-macro serde serde_core serde_derive serde_derive_internals serde_json
    serde_plain sharded-slab shlex signal-hook signal-hook-registry smallvec spindle static_assertions strsim syn synstructure
    tempfile thiserror thiserror-impl thread_local tokenizers tracing tracing-attributes tracing-core tracing-log tracing-serde
    tracing-subscriber typed-path unicode-ident unicode-segmentation unicode-width unit-prefix utf8parse version_check yaml_serde
    yoke yoke-derive zerocopy zerocopy-derive zerofrom zerofrom-derive zeroize zeroize_derive zip zmij";

/// Most text taken from one crate, in bytes: large crates do not drown the others.
const CRATE_LIMIT: u64 = 256_000;
/// Longer files are skipped, in bytes: most are generated.
const FILE_LIMIT: u64 = 100_000;
/// Files with a larger share of digits are skipped: they are tables of numbers.
const DIGIT_SHARE_LIMIT: f64 = 0.15;
/// One crate in so many is validation, whole, ...
const VALIDATION_EVERY: usize = 20;
/// ... beginning with this one, counted from 0. As the list stands: bit-set, console, fancy-regex,
/// itoa, once_cell, regex, signal-hook-registry and unicode-segmentation.
const VALIDATION_FIRST: usize = 11;

/// Reads the corpus.
///
/// Crates come in the order of `Cargo.lock` (of several versions the last), a crate's `.rs` files
/// in path order. Skipped are files over 100 000 bytes, files of which more than 15% are digits,
/// files that are not UTF-8 (counted in the log), and files that would take the crate past 256 000
/// bytes. Every 20th crate is validation, beginning with the 12th; no file of those is trained on.
///
/// # Errors
/// When a crate is not in Cargo's registry folder (the message says `cargo fetch`) or a file cannot
/// be read.
pub(super) fn read() -> anyhow::Result<Corpus> {
    let crates: Vec<&str> = CRATES.split_whitespace().collect();
    read_crates(&cargo_home()?, LOCK, &crates)
}

/// Number of crates of the default corpus, all of them with their sources on this machine; reads no
/// text.
///
/// # Errors
/// When the sources of a crate are not in Cargo's registry folder; the message says how to get
/// them.
pub fn crates_at_hand() -> anyhow::Result<usize> {
    let crates: Vec<&str> = CRATES.split_whitespace().collect();
    Ok(crate_folders(&cargo_home()?, LOCK, &crates)?.len())
}

/// `$CARGO_HOME`, or `.cargo` in the home folder.
fn cargo_home() -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("CARGO_HOME").filter(|folder| !folder.is_empty()) {
        return Ok(folder.into());
    }
    let home = std::env::home_dir()
        .context("the home folder is unknown; set CARGO_HOME to Cargo's folder")?;
    Ok(home.join(".cargo"))
}

fn read_crates(cargo_home: &Path, lock: &str, crates: &[&str]) -> anyhow::Result<Corpus> {
    let folders = crate_folders(cargo_home, lock, crates)?;
    let (mut train, mut val) = (Vec::new(), Vec::new());
    let mut not_utf8 = 0;
    for (index, folder) in folders.iter().enumerate() {
        let part = if index % VALIDATION_EVERY == VALIDATION_FIRST { &mut val } else { &mut train };
        not_utf8 += read_crate(folder, part)?;
    }
    if not_utf8 > 0 {
        tracing::warn!("skipped {not_utf8} source files that are not UTF-8");
    }
    let description = format!(
        "cargo_registry: {} crates, {} training and {} validation files",
        folders.len(),
        train.len(),
        val.len()
    );
    let (train, val) = (Documents::Memory(train), Documents::Memory(val));
    Ok(Corpus { description, train, val, documents_end: true })
}

/// Appends a crate's files to `documents`; returns the number of files that are not UTF-8.
fn read_crate(folder: &Path, documents: &mut Vec<String>) -> anyhow::Result<usize> {
    let mut files = BTreeMap::new();
    list_sources(folder, "", &mut files)?;
    let (mut taken, mut not_utf8) = (0, 0);
    for (path, length) in files.values() {
        if *length == 0 || *length > FILE_LIMIT || taken + length > CRATE_LIMIT {
            continue;
        }
        let bytes = std::fs::read(path)
            .with_context(|| format!("{}: the file cannot be read", path.display()))?;
        let digits = bytes.iter().filter(|byte| byte.is_ascii_digit()).count();
        if digits as f64 > DIGIT_SHARE_LIMIT * bytes.len() as f64 {
            continue;
        }
        match String::from_utf8(bytes) {
            Ok(text) => {
                taken += length;
                documents.push(text);
            }
            Err(_) => not_utf8 += 1,
        }
    }
    Ok(not_utf8)
}

/// The `.rs` files under a folder and their lengths, by path within the crate with `/` between
/// names, so that the order is the same on every system.
fn list_sources(
    folder: &Path,
    prefix: &str,
    files: &mut BTreeMap<String, (PathBuf, u64)>,
) -> anyhow::Result<()> {
    let unreadable = || format!("{}: the folder cannot be read", folder.display());
    for entry in std::fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        let kind = entry.file_type().with_context(unreadable)?;
        if kind.is_dir() {
            list_sources(&entry.path(), &format!("{name}/"), files)?;
        } else if kind.is_file() && name.ends_with(".rs") {
            files.insert(name, (entry.path(), entry.metadata().with_context(unreadable)?.len()));
        }
    }
    Ok(())
}

/// The folder `registry/src/INDEX/NAME-VERSION` of each crate.
fn crate_folders(cargo_home: &Path, lock: &str, crates: &[&str]) -> anyhow::Result<Vec<PathBuf>> {
    let versions = locked_versions(lock);
    let sources = cargo_home.join("registry").join("src");
    let mut indexes: Vec<PathBuf> = std::fs::read_dir(&sources)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    indexes.sort();

    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in crates {
        let version = versions.get(name).with_context(|| {
            format!("Cargo.lock has no crate `{name}`; remove it from the corpus")
        })?;
        let folder_name = format!("{name}-{version}");
        match indexes.iter().map(|index| index.join(&folder_name)).find(|folder| folder.is_dir()) {
            Some(folder) => found.push(folder),
            None => missing.push(folder_name),
        }
    }
    anyhow::ensure!(
        missing.is_empty(),
        "source: cargo_registry needs the sources of {} crates that are not in {} (the first: {}); run `cargo fetch --locked` in the folder \
         that has lrpt's Cargo.lock, or choose another `data.source`",
        missing.len(),
        sources.display(),
        missing[0]
    );
    Ok(found)
}

/// The last version of each package in a lock file.
fn locked_versions<'a>(lock: &'a str) -> BTreeMap<&'a str, &'a str> {
    let quoted = |line: &'a str, before: &str| line.strip_prefix(before)?.strip_suffix('"');
    let mut versions = BTreeMap::new();
    let mut name = None;
    for line in lock.lines() {
        if let Some(value) = quoted(line, "name = \"") {
            name = Some(value);
        } else if let (Some(version), Some(package)) = (quoted(line, "version = \""), name) {
            versions.insert(package, version);
            name = None;
        }
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crate_of_the_list_is_locked_and_in_lock_order() {
        let crates: Vec<&str> = CRATES.split_whitespace().collect();
        let versions = locked_versions(LOCK);
        for name in &crates {
            assert!(
                versions.contains_key(name),
                "`{name}` is no longer in Cargo.lock: take it out of CRATES"
            );
        }
        assert!(crates.is_sorted());
    }

    #[test]
    fn the_text_is_about_twenty_megabytes_of_rust() {
        let corpus = read().unwrap();
        let size = |documents: &[String]| documents.iter().map(String::len).sum::<usize>();
        let [of_train, of_val] = [corpus.train.all(), corpus.val.all()];
        let (train, val) = (size(&of_train), size(&of_val));
        assert!((15_000_000..25_000_000).contains(&train), "{train}");
        assert!((600_000..2_000_000).contains(&val), "{val}");
        let with_functions = of_train.iter().filter(|text| text.contains("fn ")).count();
        assert!(with_functions * 2 > of_train.len(), "{with_functions} of {}", of_train.len());
        let training: std::collections::BTreeSet<&String> = of_train.iter().collect();
        let shared: usize =
            of_val.iter().filter(|text| training.contains(text)).map(|text| text.len()).sum();
        assert!(shared * 100 < val, "{shared} bytes of validation files are also training files");
    }

    #[test]
    fn files_are_chosen_by_the_rule() {
        let home = tempfile::tempdir().unwrap();
        let source = home.path().join("registry/src/index/one-2.0.0");
        std::fs::create_dir_all(source.join("src/b")).unwrap();
        let write = |path: &str, bytes: &[u8]| std::fs::write(source.join(path), bytes).unwrap();
        write("src/b/z.rs", b"second");
        write("src/b.rs", b"first");
        write("src/table.rs", b"0x00, 0x11, 0x22");
        write("src/long.rs", &vec![b'x'; FILE_LIMIT as usize + 1]);
        write("src/latin.rs", b"caf\xe9");
        write("src/notes.txt", b"not Rust");
        let lock = "[[package]]\nname = \"one\"\nversion = \"1.0.0\"\n\n[[package]]\nname = \"one\"\nversion = \"2.0.0\"\n";
        let corpus = read_crates(home.path(), lock, &["one"]).unwrap();
        assert_eq!(corpus.train.all(), ["first", "second"]);
    }

    #[test]
    fn missing_sources_say_how_to_get_them() {
        let home = tempfile::tempdir().unwrap();
        let error = read_crates(home.path(), LOCK, &["anyhow"]).unwrap_err().to_string();
        assert!(error.contains("cargo fetch") && error.contains("anyhow-1"), "{error}");
    }
}
