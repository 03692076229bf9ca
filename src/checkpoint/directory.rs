//! One checkpoint's folder: written into a place of its own, read back with every doubt.

use super::manifest::{FORMAT_VERSION, FileEntry, Manifest};
use super::{Snapshot, tensors};
use crate::fs::open_ordinary;
use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";
const MANIFEST: &str = "manifest.json";
/// The files a manifest lists, in its order.
const FILES: [&str; 4] = [CONFIG, MODEL, OPTIMIZER, STATE];

/// Most bytes of a manifest that are read.
const MAX_MANIFEST: u64 = 1 << 20;

/// Contents of `state.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StateFile {
    step: u64,
    state: serde_json::Value,
}

/// Name of the folder of a step, `step-00001000`.
pub(super) fn folder_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// The step of a folder called like one of [`folder_name`].
pub(super) fn step_of(folder_name: &str) -> Option<u64> {
    let digits = folder_name.strip_prefix("step-")?;
    let step = digits.parse().ok()?;
    (folder_name == self::folder_name(step)).then_some(step)
}

/// Writes a snapshot's files into an empty folder, the manifest last, each flushed to the disk.
pub(super) fn write(folder: &Path, snapshot: &Snapshot) -> anyhow::Result<()> {
    let state = StateFile { step: snapshot.step, state: snapshot.state.clone() };
    // One file's bytes at a time: the optimizer's are several times the model's.
    let files = vec![
        write_file(folder, CONFIG, &json_bytes(&snapshot.config)?)?,
        write_file(folder, MODEL, &tensors::encode(&snapshot.model).context(MODEL)?)?,
        write_file(folder, OPTIMIZER, &tensors::encode(&snapshot.optimizer).context(OPTIMIZER)?)?,
        write_file(folder, STATE, &json_bytes(&state)?)?,
    ];
    let manifest = Manifest { format_version: FORMAT_VERSION, step: snapshot.step, files };
    write_file(folder, MANIFEST, &manifest.to_bytes()?)?;
    Ok(())
}

fn json_bytes(value: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    Ok(bytes)
}

fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<FileEntry> {
    let path = folder.join(name);
    let write = || -> std::io::Result<()> {
        let mut file = File::create_new(&path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().with_context(|| format!("{}: not written (is the disk full?)", path.display()))?;
    Ok(FileEntry::new(name, bytes.len() as u64, blake3::hash(bytes)))
}

/// Checks a checkpoint's folder against its manifest, without building tensors, and returns the
/// manifest.
///
/// # Errors
/// When a file is missing or differs in size or hash, the manifest is damaged or of another format
/// version, or the folder's name (where it is that of a step) gives another step; the message names
/// the folder, the file and what differs.
pub fn verify(folder: &Path) -> anyhow::Result<Manifest> {
    let check = || -> anyhow::Result<Manifest> {
        let manifest = read_manifest(folder)?;
        for entry in &manifest.files {
            let mut hasher = blake3::Hasher::new();
            let file = open_checked(folder, entry)?;
            hasher.update_reader(file).with_context(|| entry.name.clone())?;
            entry.check_length(hasher.count())?;
            entry.check_hash(hasher.finalize())?;
        }
        Ok(manifest)
    };
    check().with_context(|| damaged(folder))
}

/// Reads a checkpoint, every byte of it checked against the manifest. Tensors come in the order of
/// their names, on the host.
///
/// # Errors
/// As [`verify`], and when `state.json` gives another step than the manifest.
pub fn load(folder: &Path) -> anyhow::Result<Snapshot> {
    let read = || -> anyhow::Result<Snapshot> {
        let manifest = read_manifest(folder)?;
        let checked = |name: &str| read_checked(folder, &manifest, name);
        let config = serde_json::from_slice(&checked(CONFIG)?).context(CONFIG)?;
        let StateFile { step, state } = serde_json::from_slice(&checked(STATE)?).context(STATE)?;
        ensure!(
            step == manifest.step,
            "state.json is of step {step}, but the manifest is of step {}",
            manifest.step
        );
        let model = tensors::decode(&checked(MODEL)?).context(MODEL)?;
        let optimizer = tensors::decode(&checked(OPTIMIZER)?).context(OPTIMIZER)?;
        Ok(Snapshot { step, config, model, optimizer, state })
    };
    read().with_context(|| damaged(folder))
}

/// Reads what is needed to rebuild a checkpoint's model, its `config.json`, and no tensor.
///
/// # Errors
/// When the manifest or that file is damaged.
pub fn load_config(folder: &Path) -> anyhow::Result<serde_json::Value> {
    let read = || -> anyhow::Result<serde_json::Value> {
        let bytes = read_checked(folder, &read_manifest(folder)?, CONFIG)?;
        serde_json::from_slice(&bytes).context(CONFIG)
    };
    read().with_context(|| damaged(folder))
}

/// Bytes of a checkpoint's `model.safetensors` and `optimizer.safetensors`, as its manifest has
/// them; neither is read.
///
/// # Errors
/// When the manifest is damaged.
pub fn tensor_bytes(folder: &Path) -> anyhow::Result<[u64; 2]> {
    let manifest = read_manifest(folder).with_context(|| damaged(folder))?;
    let bytes = |name| manifest.files.iter().find(|file| file.name == name).map(|file| file.bytes);
    Ok([MODEL, OPTIMIZER].map(|name| bytes(name).unwrap_or(0)))
}

/// A file of a checkpoint, every byte of it checked against the manifest.
fn read_checked(folder: &Path, manifest: &Manifest, name: &str) -> anyhow::Result<Vec<u8>> {
    let entry = manifest
        .files
        .iter()
        .find(|entry| entry.name == name)
        .with_context(|| format!("{name} is not listed"))?;
    let read = || -> anyhow::Result<Vec<u8>> {
        let (file, mut bytes) = (open_checked(folder, entry)?, Vec::new());
        bytes.try_reserve_exact(usize::try_from(entry.bytes)?)?;
        file.take(entry.bytes).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().with_context(|| name.to_string())?;
    entry.check_length(bytes.len() as u64)?;
    entry.check_hash(blake3::hash(&bytes))?;
    Ok(bytes)
}

/// A file of the length that the manifest says, of which nothing is read yet.
fn open_checked(folder: &Path, entry: &FileEntry) -> anyhow::Result<File> {
    let open = || -> std::io::Result<(File, u64)> {
        let file = open_ordinary(&folder.join(&entry.name))?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    let (file, length) = open().with_context(|| entry.name.clone())?;
    entry.check_length(length)?;
    Ok(file)
}

/// The step that a folder's manifest gives, if there is a sound one.
pub(super) fn step_of_manifest(folder: &Path) -> Option<u64> {
    read_manifest(folder).ok().map(|manifest| manifest.step)
}

/// The manifest of a folder; its step must agree with the folder's name where that is a step's,
/// also when reached through a link.
fn read_manifest(folder: &Path) -> anyhow::Result<Manifest> {
    let folder = folder.canonicalize()?;
    let file = open_ordinary(&folder.join(MANIFEST)).context(MANIFEST)?;
    let length = file.metadata().context(MANIFEST)?.len();
    ensure!(
        length <= MAX_MANIFEST,
        "manifest.json has {length} bytes, and no manifest has more than {MAX_MANIFEST}"
    );
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST).read_to_end(&mut bytes).context(MANIFEST)?;
    let manifest = Manifest::from_bytes(&bytes, &FILES)?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if let Some(step) = step_of(name) {
        ensure!(
            step == manifest.step,
            "the manifest is of step {}, but the folder is called {name}",
            manifest.step
        );
    }
    Ok(manifest)
}

fn damaged(folder: &Path) -> String {
    format!("{}: not a whole checkpoint, use another one", folder.display())
}
