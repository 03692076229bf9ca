//! An event file: records with checksums, each a `tensorflow.Event`.

use super::proto::Message;
use anyhow::Context;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A new event file, to which whole events are appended.
#[derive(Debug)]
pub(super) struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a file in a folder, which is made if missing; its name sorts after those of before.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("{}: not created", folder.display()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = (now.as_secs(), now.subsec_nanos());
        let path = folder.join(format!("events.out.tfevents.{seconds}.{nanoseconds:09}.lrpt"));
        let file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .open(&path)
            .with_context(|| format!("{}: not created", path.display()))?;
        let mut begun = Self { path, file };
        // file_version
        begun.write(0, |event| event.text(3, b"brain.Event:2"))?;
        Ok(begun)
    }

    /// Appends an event of this moment.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(
        &mut self,
        step: u64,
        what: impl FnOnce(Message) -> Message,
    ) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // wall_time, step
        let event = Message::default().double(1, now.as_secs_f64()).integer(2, step);
        // One unbuffered write, so that a reader sees whole records.
        self.file
            .write_all(&record(what(event).bytes()))
            .with_context(|| format!("{}: not written (is the disk full?)", self.path.display()))
    }
}

/// A record: length, checksum of the length, data, checksum of the data.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(data);
    record.extend(masked(crc32c(data)).to_le_bytes());
    record
}

/// A checksum as it is stored, so that the checksum of data with checksums in it is not weak.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli).
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let mut crc = index as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)];
    !data.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, appendix B.4, and the check value of the CRC catalogue.
    #[test]
    fn published_checksums() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The first record that TensorFlow writes into every event file begins so.
    #[test]
    fn a_record_has_length_and_checksums() {
        let bytes = record(b"0123456789abcdef01234567");
        assert_eq!(bytes[..12], [0x18, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, 0x4b, 0x22]);
        assert_eq!(bytes.len(), 8 + 4 + 24 + 4);
    }

    #[test]
    fn a_later_file_sorts_after_an_earlier_one() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventFile::create(folder.path()).unwrap();
        let second = EventFile::create(folder.path()).unwrap();
        assert!(first.path < second.path);
        assert!(std::fs::metadata(&first.path).unwrap().len() > 16);
    }
}
