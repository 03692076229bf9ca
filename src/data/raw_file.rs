//! The layouts of token files that others wrote: nanoGPT's and llama2.c's without a header, and
//! llm.c's with one.

use super::corpus::usage;
use super::files::not_text;
use super::shard::{TokenShard, map};
use super::shard_file::Width;
use crate::spec::TokenType;
use anyhow::Context;
use std::path::PathBuf;

/// llm.c's header: 256 numbers of four bytes, the first three of them a magic number, a version and
/// the number of tokens.
const LLM_C_HEADER_BYTES: usize = 1024;
/// Magic number, version and width of llm.c's token files (`dev/data/data_common.py`).
const LLM_C_FORMATS: [(u32, u32, Width); 2] =
    [(20_240_520, 1, Width::U16), (20_240_801, 7, Width::U32)];
/// Tokens looked at to tell four bytes from two.
const TOKENS_LOOKED_AT: usize = 4096;
/// So many numbers of which every second is 0 are taken for tokens of four bytes.
const FEWEST_HALVES: usize = 16;

/// Where the tokens of a file begin, and their width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    offset: usize,
    width: Width,
}

/// Opens token files, one after the other. `dtype` is the width the user gives, if any;
/// `vocab_size` the number of tokens the files may use.
///
/// # Errors
/// [`crate::error::Failure::Usage`] for a missing file, an empty one, one of another length than
/// its header or the width of its tokens allows, and one whose width must be given.
pub(super) fn open(
    paths: &[PathBuf],
    dtype: Option<TokenType>,
    vocab_size: usize,
) -> anyhow::Result<TokenShard> {
    let mut parts = Vec::with_capacity(paths.len());
    for path in paths {
        if !path.is_file() {
            return Err(usage(format!("{}: no such token file", path.display())));
        }
        let map =
            map(path).with_context(|| format!("{}: the tokens cannot be read", path.display()))?;
        let Layout { offset, width } = layout(&map, dtype, vocab_size)
            .map_err(|what| usage(format!("{}: {what}", path.display())))?;
        let length = (map.len() - offset) / width.bytes();
        parts.push((map, offset, width, length));
    }
    Ok(TokenShard::from_maps(parts))
}

/// The layout of a file, or what is wrong with it.
fn layout(bytes: &[u8], dtype: Option<TokenType>, vocab_size: usize) -> Result<Layout, String> {
    let asked = dtype.map(|dtype| match dtype {
        TokenType::U16 => Width::U16,
        TokenType::U32 => Width::U32,
    });
    if let Some(layout) = llm_c_layout(bytes)? {
        return match asked.filter(|asked| *asked != layout.width) {
            None => Ok(layout),
            Some(asked) => Err(format!(
                "llm.c's header says tokens of {} bytes, `dtype` says {}; remove `dtype`",
                layout.width.bytes(),
                asked.bytes()
            )),
        };
    }
    let width = asked.unwrap_or(Width::U16);
    if bytes.is_empty() || !bytes.len().is_multiple_of(width.bytes()) {
        let what = not_text(bytes).map(|what| format!("; this is {what}")).unwrap_or_default();
        return Err(format!(
            "{} bytes are not uint{} tokens{what}",
            bytes.len(),
            8 * width.bytes()
        ));
    }
    if asked.is_none() && Width::for_vocabulary(vocab_size) == Width::U32 {
        return Err(format!(
            "a vocabulary of {vocab_size} does not fit in two bytes, and the file has no header; say with `data.source.bin.dtype: u32` (or `u16`) \
             how wide its tokens are"
        ));
    }
    if asked.is_none() && looks_like_four_bytes(bytes) {
        return Err("every second uint16 is 0, so the tokens seem to be uint32; say with \
             `data.source.bin.dtype: u32` (or `u16`) how wide they are"
            .to_string());
    }
    Ok(Layout { offset: 0, width })
}

fn llm_c_layout(bytes: &[u8]) -> Result<Option<Layout>, String> {
    let number = |index: usize| {
        let bytes = bytes.get(4 * index..4 * index + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let known = LLM_C_FORMATS.iter().find(|(magic, ..)| number(0) == Some(*magic));
    let Some((_, version, width)) = known else { return Ok(None) };
    if number(1) != Some(*version) {
        return Err(format!(
            "llm.c's header has version {}; only {version} is known",
            number(1).unwrap_or(0)
        ));
    }
    let tokens = u64::from(number(2).unwrap_or(0));
    let expected = LLM_C_HEADER_BYTES as u64 + tokens * width.bytes() as u64;
    if tokens == 0 || expected != bytes.len() as u64 {
        return Err(format!(
            "{} bytes, but llm.c's header promises {tokens} tokens of {} bytes: the file was cut \
             off or appended to",
            bytes.len(),
            width.bytes()
        ));
    }
    Ok(Some(Layout { offset: LLM_C_HEADER_BYTES, width: *width }))
}

/// Whether the upper halves of numbers of four bytes are all 0.
fn looks_like_four_bytes(bytes: &[u8]) -> bool {
    let words = bytes.chunks_exact(4);
    bytes.len() >= 4 * FEWEST_HALVES
        && bytes.len().is_multiple_of(4)
        && words.clone().take(TOKENS_LOOKED_AT).all(|word| word[2..] == [0, 0])
        && words.take(TOKENS_LOOKED_AT).any(|word| word[..2] != [0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn bytes_of(tokens: &[u32], width: Width) -> Vec<u8> {
        tokens.iter().flat_map(|token| token.to_le_bytes()[..width.bytes()].to_vec()).collect()
    }

    fn with_header(magic: u32, version: u32, tokens: &[u32], width: Width) -> Vec<u8> {
        let mut header = vec![magic, version, tokens.len() as u32];
        header.resize(LLM_C_HEADER_BYTES / 4, 0);
        [bytes_of(&header, Width::U32), bytes_of(tokens, width)].concat()
    }

    fn tokens_of(folder: &Path, bytes: &[u8], dtype: Option<TokenType>) -> Vec<u32> {
        let path = folder.join("tokens.bin");
        std::fs::write(&path, bytes).unwrap();
        let shard = open(&[path], dtype, 50_257).unwrap();
        shard.read(0, shard.len())
    }

    /// Case 12.
    #[test]
    fn headers_of_llm_c_and_the_key_give_the_width() {
        let folder = tempfile::tempdir().unwrap();
        let narrow: Vec<u32> = (50_000..50_100).collect();
        let wide: Vec<u32> = (70_000..70_100).collect();
        let gpt2 = with_header(20_240_520, 1, &narrow, Width::U16);
        assert_eq!(tokens_of(folder.path(), &gpt2, None), narrow);
        let llama3 = with_header(20_240_801, 7, &wide, Width::U32);
        assert_eq!(tokens_of(folder.path(), &llama3, None), wide);
        assert_eq!(tokens_of(folder.path(), &llama3, Some(TokenType::U32)), wide);
        let bare = bytes_of(&wide, Width::U32);
        assert_eq!(tokens_of(folder.path(), &bare, Some(TokenType::U32)), wide);
        let bare = bytes_of(&narrow, Width::U16);
        assert_eq!(tokens_of(folder.path(), &bare, None), narrow);
        // The key has the last word on a file that seems to be of another width.
        let zeros = bytes_of(&narrow, Width::U32);
        assert_eq!(tokens_of(folder.path(), &zeros, Some(TokenType::U16)).len(), 200);
    }

    /// Case 12.
    #[test]
    fn files_whose_width_is_unknown_or_contradicted_are_refused() {
        let narrow: Vec<u32> = (100..200).collect();
        let wide: Vec<u32> = (70_000..90_000).collect();
        let gpt2 = with_header(20_240_520, 1, &narrow, Width::U16);
        for (bytes, dtype, vocab_size, expected) in [
            (bytes_of(&wide, Width::U32), None, 151_936, "does not fit in two bytes"),
            (bytes_of(&narrow, Width::U32), None, 256, "seem to be uint32"),
            (gpt2.clone(), Some(TokenType::U32), 256, "remove `dtype`"),
            (gpt2[..gpt2.len() - 2].to_vec(), None, 256, "cut off"),
            (gpt2[..20].to_vec(), None, 256, "cut off"),
            (with_header(20_240_520, 2, &narrow, Width::U16), None, 256, "version 2"),
            (vec![1, 2, 3], None, 256, "not uint16"),
            (vec![1, 2], Some(TokenType::U32), 256, "not uint32"),
            (Vec::new(), None, 256, "0 bytes"),
            (vec![0x1f, 0x8b, 8], None, 256, "gzip"),
        ] {
            let error = layout(&bytes, dtype, vocab_size).unwrap_err();
            assert!(error.contains(expected), "{expected}: {error}");
        }
    }

    #[test]
    fn raw_files_follow_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = [vec![1u16, 2], vec![3], vec![4, 5, 6]]
            .iter()
            .enumerate()
            .map(|(index, tokens)| {
                let path = folder.path().join(format!("{index}.bin"));
                std::fs::write(
                    &path,
                    tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<u8>>(),
                )
                .unwrap();
                path
            })
            .collect();
        let shard = open(&paths, None, 256).unwrap();
        for start in 0..6 {
            for count in 0..=6 - start {
                let expected: Vec<u32> = (start as u32 + 1..).take(count).collect();
                assert_eq!(shard.read(start, count), expected);
            }
        }
        std::fs::write(&paths[1], [1]).unwrap();
        assert_eq!(crate::error::exit_code(&open(&paths, None, 256).unwrap_err()), 2);
    }
}
