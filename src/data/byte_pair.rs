//! Training of byte-level BPE.

use super::corpus::usage;
use super::hugging_face::END_OF_TEXT;
use crate::spec::MAX_VOCABULARY;
use anyhow::anyhow;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};
use tokenizers::{DecoderWrapper, NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper};

/// The 256 bytes and the end-of-text token.
const SMALLEST_VOCABULARY: usize = 257;
/// Longest word that pairs are counted in, in bytes.
const LONGEST_WORD: usize = 1 << 12;

/// Trains byte-level BPE as GPT-2 does (its splitting expression, no space put before the text) on
/// texts, which it takes one by one, and returns the `tokenizer.json`.
///
/// Token 0 is `<|endoftext|>`, tokens 1 to 256 the bytes, the others merges in the order they were
/// found. Of equally frequent pairs the one of the smaller tokens is merged first, so the same text
/// always gives the same tokenizer.
///
/// # Errors
/// [`crate::error::Failure::Usage`] for a vocabulary below 257.
pub(super) fn train(
    texts: impl Iterator<Item = String> + Send,
    vocab_size: usize,
) -> anyhow::Result<String> {
    if vocab_size < SMALLEST_VOCABULARY {
        return Err(usage(format!(
            "data.tokenizer.bpe.vocab_size: {vocab_size} is too small; it takes \
             {SMALLEST_VOCABULARY} for the bytes and the end of text"
        )));
    }
    if vocab_size > MAX_VOCABULARY {
        return Err(usage(format!(
            "data.tokenizer.bpe.vocab_size: {vocab_size} is too large; set at most {MAX_VOCABULARY}"
        )));
    }
    let byte_level = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::default()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(byte_level.into()))
    .with_decoder(Some(byte_level.into()))
    .build()
    .map_err(|e| anyhow!("the BPE tokenizer cannot be built: {e}"))?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(vocab_size)
        // The library's progress bar writes to stdout, which is for results.
        .show_progress(false)
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let texts = texts.flat_map(|text| match short_words(&text)[..] {
        [_] => vec![text],
        ref parts => parts.iter().map(|part| (*part).to_string()).collect(),
    });
    tokenizer.train(&mut trainer, texts).map_err(|e| anyhow!("training the BPE tokenizer: {e}"))?;
    let reached = tokenizer.get_vocab_size(true);
    if reached < vocab_size {
        tracing::warn!(
            "the text gives only {reached} tokens, fewer than the {vocab_size} asked for"
        );
    }
    tokenizer.to_string(true).map_err(|e| anyhow!("writing the BPE tokenizer: {e}"))
}

/// A text in parts, between which no word is longer than 4 KiB: runs of letters, of numbers, of
/// white space and of other characters are cut there.
///
/// The library takes a pair out of a word by moving all that follows, which is quadratic in the
/// length of a word; a long line of genes is one word, a column of spaces another.
fn short_words(text: &str) -> Vec<&str> {
    let kind = |character: char| match character {
        c if c.is_whitespace() => 0,
        c if c.is_numeric() => 1,
        c if c.is_alphabetic() => 2,
        _ => 3,
    };
    let mut parts = Vec::new();
    let (mut part, mut word, mut before) = (0, 0, None);
    for (at, character) in text.char_indices() {
        let kind = Some(kind(character));
        if kind != before {
            word = at;
        } else if at - word >= LONGEST_WORD {
            parts.push(&text[part..at]);
            (part, word) = (at, at);
        }
        before = kind;
    }
    parts.push(&text[part..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Tokenizer;

    /// Words in many equally frequent variations: the order of merges hangs on how ties are broken.
    fn documents() -> Vec<String> {
        let word = |index: usize| -> String {
            (0..6)
                .map(|place| char::from(b'a' + ((index * 7 + place * place * 3) % 26) as u8))
                .collect()
        };
        (0..300)
            .map(|index| format!("{} {}\n{}(x);\n", word(index), word(index + 5), word(index * 3)))
            .collect()
    }

    #[test]
    fn training_twice_gives_the_same_tokenizer() {
        let first = train(documents().into_iter(), 600).unwrap();
        for _ in 0..4 {
            assert_eq!(train(documents().into_iter(), 600).unwrap(), first);
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert_eq!(pool.install(|| train(documents().into_iter(), 600).unwrap()), first);
        }
    }

    #[test]
    fn the_vocabulary_has_the_size_asked_for_and_all_bytes() {
        let tokenizer =
            Tokenizer::from_json(&train(documents().into_iter(), 400).unwrap()).unwrap();
        assert_eq!((tokenizer.vocab_size(), tokenizer.end_of_text()), (400, Some(0)));
        let unseen = "\u{0}\u{7f} ünseen Ж";
        assert_eq!(tokenizer.decode(&tokenizer.encode(unseen).unwrap()).unwrap(), unseen);
        let text = documents().concat();
        assert!(
            tokenizer.encode(&text).unwrap().len() * 10 < text.len() * 7,
            "merges shorten the text"
        );
    }

    /// Case 22.
    #[test]
    fn long_words_are_cut_and_others_are_not() {
        let text = documents().concat();
        assert_eq!(short_words(&text), [text.as_str()]);
        assert_eq!(short_words(""), [""]);
        for unit in ["a", "é", " ", "\n", "7", "="] {
            let text = format!("fn {}", unit.repeat(3 * LONGEST_WORD));
            let parts = short_words(&text);
            assert_eq!(parts.concat(), text);
            assert!(parts.iter().all(|part| part.len() <= LONGEST_WORD + 5), "{unit:?}");
        }
    }

    /// Case 22: 22 seconds and more than 11 minutes before.
    #[test]
    fn unbroken_text_is_learned_in_seconds() {
        let started = std::time::Instant::now();
        let mut state = 1u64;
        let genes: String = (0..200_000)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ['A', 'C', 'G', 'T'][(state >> 62) as usize]
            })
            .collect();
        for text in [genes, " ".repeat(1_500_000)] {
            let json = train([text.clone()].into_iter(), 400).unwrap();
            let tokenizer = Tokenizer::from_json(&json).unwrap();
            let tokens = tokenizer.encode(&text).unwrap();
            assert!(tokens.len() < text.len());
            assert_eq!(tokenizer.decode(&tokens).unwrap(), text);
        }
        assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
    }

    #[test]
    fn a_vocabulary_without_room_for_the_bytes_is_a_usage_error() {
        assert_eq!(crate::error::exit_code(&train(documents().into_iter(), 256).unwrap_err()), 2);
    }
}
