//! A safetensors file, its header read and checked before anything of the size it speaks of is
//! allocated: eight bytes with the header's length n, the header, then the tensors' bytes.

use crate::fs::open_ordinary;
use anyhow::{Context, Result, ensure};
use candle_core::safetensors::Load;
use candle_core::{Device, Tensor};
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The longest header that is read, as in the reference reader.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of the header's length.
const LENGTH: u64 = 8;

/// A safetensors file of which the header is read.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    start: u64,
    tensors: Vec<(String, TensorInfo)>,
}

impl TensorFile {
    /// Reads the header and checks that the file has exactly the bytes that it speaks of.
    ///
    /// # Errors
    /// If the file cannot be read, is no safetensors file, or is shorter or longer than its header
    /// says; the message names the file.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> Result<Self> {
            let mut file = open_ordinary(path)?;
            let size = file.metadata()?.len();
            ensure!(
                size >= LENGTH,
                "has {size} bytes, too few for a safetensors file; fetch it again"
            );
            let mut length = [0; LENGTH as usize];
            file.read_exact(&mut length)?;
            let length = u64::from_le_bytes(length);
            ensure!(
                length <= MAX_HEADER,
                "its header would have {length} bytes, and at most {MAX_HEADER} are read; it is \
                 no safetensors file"
            );
            ensure!(
                LENGTH + length <= size,
                "its header has {length} bytes, the whole file {size}; it is cut short, fetch it \
                 again"
            );
            let mut header = vec![0; length as usize];
            file.read_exact(&mut header)?;
            let header: Metadata = serde_json::from_slice(&header)
                .context("its header describes no tensors; it is no safetensors file")?;
            let (data, found) = (header.data_len() as u64, size - LENGTH - length);
            ensure!(
                data == found,
                "its header speaks of {data} bytes of tensors, the file has {found}; it is cut \
                 short or damaged, fetch it again"
            );
            let described = |name: String| header.info(&name).cloned().map(|info| (name, info));
            let tensors = header.offset_keys().into_iter().filter_map(described).collect();
            Ok(Self { path: path.to_owned(), file, start: LENGTH + length, tensors })
        };
        open().with_context(|| path.display().to_string())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names and shapes, in the order of the file.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.tensors.iter().map(|(name, info)| (name.as_str(), info.shape.as_slice()))
    }

    /// The tensors whose names `wanted` takes, in the file's order and types, on the host; one
    /// tensor's bytes are read at a time.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor has a type that candle lacks.
    pub fn read(&mut self, wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Tensor)>> {
        let Self { path, file, start, tensors } = self;
        let mut read = |info: &TensorInfo| -> Result<Tensor> {
            let (from, to) = info.data_offsets;
            let mut bytes = vec![0; to - from];
            file.seek(SeekFrom::Start(*start + from as u64))?;
            file.read_exact(&mut bytes)?;
            Ok(TensorView::new(info.dtype, info.shape.clone(), &bytes)?.load(&Device::Cpu)?)
        };
        let mut found = Vec::new();
        for (name, info) in tensors.iter().filter(|(name, _)| wanted(name)) {
            let place = || format!("{}: tensor `{name}`", path.display());
            found.push((name.clone(), read(info).with_context(place)?));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;
    use std::collections::HashMap;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("model.safetensors");
        std::fs::write(&path, bytes).unwrap();
        (place, path)
    }

    fn with_header(header: &str) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat()
    }

    fn refusal(path: &Path) -> String {
        format!("{:#}", TensorFile::open(path).unwrap_err())
    }

    fn sound() -> Vec<u8> {
        let tensors = HashMap::from([
            ("a", Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap()),
            ("b", Tensor::zeros(3, DType::BF16, &Device::Cpu).unwrap()),
        ]);
        safetensors::serialize(tensors, None).unwrap()
    }

    #[test]
    fn shapes_come_first_and_tensors_one_by_one() {
        let (_place, path) = file(&sound());
        let mut file = TensorFile::open(&path).unwrap();
        let shapes: Vec<_> = file.shapes().map(|(name, shape)| (name, shape.to_vec())).collect();
        assert_eq!(shapes, [("a", vec![2, 2]), ("b", vec![3])]);
        let only = file.read(|name| name == "a").unwrap();
        assert_eq!(only.len(), 1);
        assert_eq!(only[0].1.to_vec2::<f32>().unwrap(), [[1., 2.], [3., 4.]]);
        assert_eq!(file.read(|_| true).unwrap()[1].1.dtype(), DType::BF16);
    }

    /// Terabytes that a header claims, in one tensor or in its own length, are refused by the
    /// file's length alone.
    #[test]
    fn what_a_header_claims_is_checked_against_the_file() {
        let claims =
            r#"{"a":{"dtype":"F32","shape":[1048576,1048576],"data_offsets":[0,4398046511104]}}"#;
        let (_place, path) = file(&with_header(claims));
        let said = refusal(&path);
        assert!(said.contains("speaks of 4398046511104 bytes") && said.contains("the file has 0"));
        let (_place, path) = file(&[&(1u64 << 41).to_le_bytes()[..], b"{}"].concat());
        assert!(refusal(&path).contains("would have 2199023255552 bytes"));
        let overflow =
            r#"{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,4]}}"#;
        let (_place, path) = file(&with_header(overflow));
        assert!(refusal(&path).contains("describes no tensors"), "{}", refusal(&path));
    }

    #[test]
    fn a_file_cut_short_anywhere_is_refused_with_a_remedy() {
        let whole = sound();
        for length in 0..whole.len() {
            let (_place, path) = file(&whole[..length]);
            let said = refusal(&path);
            assert!(
                said.contains("model.safetensors") && said.contains("fetch it again"),
                "{said}"
            );
        }
    }

    /// A terabyte that takes no room on the disk.
    #[test]
    fn a_sparse_file_of_absurd_length_is_refused_at_once() {
        let (_place, path) = file(&sound());
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(refusal(&path).contains("cut short or damaged"), "{}", refusal(&path));
        let (_place, path) = file(b"");
        std::fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap();
        assert!(refusal(&path).contains("describes no tensors"), "{}", refusal(&path));
    }
}
