//! The tokenizers that the Hugging Face format has no form of its own for, in its terms: what
//! `transformers` reads.

use serde_json::{Map, Value, json};

/// Byte-level BPE without merges: token i is byte i.
pub(super) fn of_bytes() -> Value {
    let vocabulary: Map<String, Value> =
        (0..=255u8).map(|byte| (byte_level_character(byte).to_string(), json!(byte))).collect();
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false,
    });
    tokenizer(
        byte_level.clone(),
        byte_level,
        json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": [],
        }),
    )
}

/// Words of one character: token i is the i-th.
pub(super) fn of_characters(characters: &[char]) -> Value {
    let vocabulary: Map<String, Value> =
        characters.iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let split = json!({
        "type": "Split", "pattern": { "Regex": "[\\s\\S]" }, "behavior": "Isolated",
        "invert": false,
    });
    // The library wants the name of a token for what it does not know; there is none, so that
    // unknown characters are left out.
    let model = json!({ "type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>" });
    tokenizer(split, json!({ "type": "Fuse" }), model)
}

fn tokenizer(pre_tokenizer: Value, decoder: Value, model: Value) -> Value {
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null,
        "decoder": decoder, "model": model,
    })
}

/// The character that stands for a byte in byte-level vocabularies (GPT-2's table): printable ones
/// stand for themselves, the others for those from U+0100 on, in order.
fn byte_level_character(byte: u8) -> char {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if is_itself(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !is_itself(*other)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use crate::data::Tokenizer;

    /// The tokenizers library, given this form, encodes and decodes as we do.
    #[test]
    fn the_library_agrees_with_ours() {
        let text = "Two lines,\nand Ünïcödé: 私 🎲\t\u{7f}.";
        for ours in [Tokenizer::bytes(), Tokenizer::characters([text])] {
            let json = ours.to_hugging_face_json().expect("JSON");
            let theirs = tokenizers::Tokenizer::from_bytes(&json).expect("a tokenizer.json");
            let ids = theirs.encode(text, false).expect("tokens").get_ids().to_vec();
            assert_eq!(ids, ours.encode(text).expect("tokens"));
            assert_eq!(theirs.decode(&ids, false).expect("text"), text);
            assert_eq!(theirs.get_vocab_size(true), ours.vocab_size());
        }
    }
}
