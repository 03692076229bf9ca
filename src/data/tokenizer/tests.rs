//! Every kind of tokenizer: text, tokens and files there and back.

use super::*;

const TEXT: &str = "fn main() {\n    println!(\"naïve – 你好\");\n}\n";

fn documents() -> Vec<String> {
    (0..40)
        .map(|index| format!("{TEXT}let x{index} = value + {index};\n\n\n    return  x;\n"))
        .collect()
}

fn all_kinds() -> Vec<Tokenizer> {
    vec![
        Tokenizer::bytes(),
        Tokenizer::characters([TEXT]),
        Tokenizer::train_byte_pair(&documents(), 300).unwrap(),
    ]
}

#[test]
fn text_survives_and_json_restores() {
    for tokenizer in all_kinds() {
        let tokens = tokenizer.encode(TEXT).unwrap();
        assert_eq!(tokenizer.decode(&tokens).unwrap(), TEXT);
        let json = tokenizer.to_json().unwrap();
        let restored = Tokenizer::from_json(&json).unwrap();
        assert_eq!(restored.to_json().unwrap(), json);
        assert_eq!(restored.hash().unwrap(), tokenizer.hash().unwrap());
        assert_eq!(restored.encode(TEXT).unwrap(), tokens);
        assert_eq!(
            (restored.vocab_size(), restored.end_of_text()),
            (tokenizer.vocab_size(), tokenizer.end_of_text())
        );
    }
}

#[test]
fn token_lengths_add_up_to_the_bytes_of_the_text() {
    for tokenizer in all_kinds() {
        let lengths = tokenizer.token_byte_lengths();
        assert_eq!(lengths.len(), tokenizer.vocab_size());
        let total: u32 =
            tokenizer.encode(TEXT).unwrap().iter().map(|token| lengths[*token as usize]).sum();
        assert_eq!(total as usize, TEXT.len(), "{}", tokenizer.description());
        if let Some(end) = tokenizer.end_of_text() {
            assert_eq!(lengths[end as usize], 0);
        }
    }
}

#[test]
fn unknown_characters_are_named_with_their_place() {
    let error = Tokenizer::characters(["abc"]).encode("abxc").unwrap_err().to_string();
    assert!(error.contains("'x'") && error.contains("position 2"), "{error}");
}

#[test]
fn unknown_tokens_are_named() {
    for tokenizer in all_kinds() {
        let unknown = tokenizer.vocab_size() as u32;
        let error = tokenizer.decode(&[0, unknown]).unwrap_err().to_string();
        assert!(error.contains(&unknown.to_string()), "{error}");
    }
}

/// Cases 16 and 25.
#[test]
fn numbers_without_a_token_are_shown_as_numbers() {
    let shown = Tokenizer::bytes().show(&[104, 50_300, 300, 105]).unwrap();
    assert_eq!(shown, "h⟨50300⟩⟨300⟩i");
}

/// Case 35.
#[test]
fn files_that_are_no_tokenizer_json_are_named() {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes, expected) in [
        ("tokenizer.model", &b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02"[..], "SentencePiece"),
        ("spiece", b"\n\x0e\n\x05<unk>\x15\xff\x00\x00\x00\x18\x02", "SentencePiece"),
        ("tokenizer.json.gz", &[0x1f, 0x8b, 8], "gzip"),
        ("latin", b"caf\xe9", "not UTF-8"),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = Tokenizer::from_file(&path).unwrap_err();
        assert_eq!(crate::error::exit_code(&error), 2);
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn half_a_character_is_shown_as_a_replacement() {
    assert_eq!(Tokenizer::bytes().decode(&[b'a'.into(), 0xe4]).unwrap(), "a\u{fffd}");
}

#[test]
fn nonsense_json_is_refused() {
    for json in [
        "",
        "{}",
        "{\"lrpt_tokenizer\": \"words\"}",
        "{\"lrpt_tokenizer\": \"characters\", \"characters\": \"aa\"}",
    ] {
        assert!(Tokenizer::from_json(json).is_err(), "{json}");
    }
}
