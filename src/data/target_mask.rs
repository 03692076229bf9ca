//! Which tokens of a shard are trained on: one bit each, in a file beside it.
//!
//! The file is `LRPTMASK`, the format version (u32), the number of tokens (u64), BLAKE3 of all other
//! bytes, and the bits, token i in bit i mod 8 of byte ⌊i/8⌋; numbers are little-endian.

use crate::fs::write_atomic;
use anyhow::{Context, Result, ensure};
use std::path::Path;

const MAGIC: &[u8; 8] = b"LRPTMASK";
const VERSION: u32 = 1;
const CHECKSUM: usize = 20;
const BITS: usize = CHECKSUM + blake3::OUT_LEN;

/// A bit for every token.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct TargetMask {
    bits: Vec<u8>,
    length: usize,
}

impl TargetMask {
    /// Adds the next token.
    pub(super) fn push(&mut self, is_trained: bool) {
        if self.length.is_multiple_of(8) {
            self.bits.push(0);
        }
        if let Some(byte) = self.bits.last_mut() {
            *byte |= u8::from(is_trained) << (self.length % 8);
        }
        self.length += 1;
    }

    /// Whether a token is trained on; none past the end is.
    pub(super) fn is_trained(&self, token: usize) -> bool {
        self.bits.get(token / 8).is_some_and(|byte| byte >> (token % 8) & 1 == 1)
    }

    /// Number of tokens that are.
    pub(super) fn count(&self) -> u64 {
        self.bits.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let mut bytes = Vec::with_capacity(BITS + self.bits.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.length as u64).to_le_bytes());
        let checksum = checksum(&bytes, &self.bits);
        bytes.extend(checksum.as_bytes());
        bytes.extend(&self.bits);
        write_atomic(path, &bytes)
    }

    /// The mask of the first tokens of a file, which may have been written for more.
    ///
    /// # Errors
    /// When it is missing, damaged, or of fewer tokens.
    pub(super) fn read_first(path: &Path, tokens: usize) -> Result<Self> {
        let mut mask = Self::read_any(path)?;
        ensure!(mask.length >= tokens, "a mask of {} tokens beside {tokens}", mask.length);
        mask.bits.truncate(tokens.div_ceil(8));
        if let (Some(last), rest @ 1..) = (mask.bits.last_mut(), tokens % 8) {
            *last &= (1 << rest) - 1;
        }
        Ok(Self { length: tokens, ..mask })
    }

    fn read_any(path: &Path) -> Result<Self> {
        let bytes = crate::fs::read_ordinary(path, u64::MAX)?;
        ensure!(
            bytes.len() >= BITS && bytes.starts_with(MAGIC),
            "not a mask of tokens: it does not begin with {}",
            String::from_utf8_lossy(MAGIC)
        );
        let version = u32::from_le_bytes(bytes[8..12].try_into()?);
        ensure!(version == VERSION, "format version {version}, this program reads {VERSION}");
        let length = usize::try_from(u64::from_le_bytes(bytes[12..CHECKSUM].try_into()?))?;
        let bits = bytes[BITS..].to_vec();
        ensure!(
            checksum(&bytes[..CHECKSUM], &bits).as_bytes()[..] == bytes[CHECKSUM..BITS],
            "its checksum is not that of its content: bytes of it have changed"
        );
        ensure!(
            bits.len() == length.div_ceil(8),
            "{} bytes of bits for {length} tokens",
            bits.len()
        );
        Ok(Self { bits, length })
    }

    /// Reads the file of a shard of so many tokens.
    ///
    /// # Errors
    /// When it is missing, damaged, or of another length.
    pub(super) fn read(path: &Path, tokens: usize) -> Result<Self> {
        let read = || -> Result<Self> {
            let mask = Self::read_any(path)?;
            ensure!(mask.length == tokens, "a mask of {} tokens beside {tokens}", mask.length);
            Ok(mask)
        };
        read().with_context(|| {
            format!("{}: delete its folder and prepare the data again", path.display())
        })
    }
}

fn checksum(start: &[u8], bits: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(start).update(bits).finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(bits: &[bool]) -> TargetMask {
        let mut mask = TargetMask::default();
        bits.iter().for_each(|bit| mask.push(*bit));
        mask
    }

    #[test]
    fn bits_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.mask");
        for length in [0, 1, 7, 8, 9, 100] {
            let bits: Vec<bool> = (0..length).map(|i| i % 3 == 1).collect();
            let written = mask(&bits);
            written.write(&path).unwrap();
            let read = TargetMask::read(&path, length).unwrap();
            assert_eq!((&read, read.length), (&written, length));
            assert!((0..length).all(|i| read.is_trained(i) == bits[i]) && !read.is_trained(length));
            assert_eq!(read.count(), bits.iter().filter(|bit| **bit).count() as u64);
            for first in 0..=length {
                let part = TargetMask::read_first(&path, first).unwrap();
                assert_eq!(part, mask(&bits[..first]), "{first} of {length}");
            }
            assert!(TargetMask::read_first(&path, length + 1).is_err());
        }
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("train.mask");
        mask(&[true; 19]).write(&path).unwrap();
        let sound = std::fs::read(&path).unwrap();
        for at in 0..sound.len() {
            let mut bytes = sound.clone();
            bytes[at] ^= 0x10;
            std::fs::write(&path, bytes).unwrap();
            assert!(TargetMask::read(&path, 19).is_err(), "byte {at}");
        }
        std::fs::write(&path, &sound[..30]).unwrap();
        let error = format!("{:#}", TargetMask::read(&path, 19).unwrap_err());
        assert!(
            error.contains("train.mask") && error.contains("prepare the data again"),
            "{error}"
        );
        std::fs::write(&path, &sound).unwrap();
        let error = format!("{:#}", TargetMask::read(&path, 20).unwrap_err());
        assert!(error.contains("19 tokens beside 20"), "{error}");
    }
}
