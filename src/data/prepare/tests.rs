//! What preparation makes, keeps and makes again.

use super::*;
use crate::data::TokenShard;
use crate::spec::{BpeSpec, Count, RowsSourceSpec, SourceSpec, TextSourceSpec};
use std::path::PathBuf;

struct Fixture {
    folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text: String =
            (0..200).map(|index| format!("let value{index} = {index} * é;\n")).collect();
        std::fs::write(folder.path().join("text.txt"), text).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self) -> String {
        std::fs::read_to_string(self.path("text.txt")).unwrap()
    }

    fn prepare(&self, tokenizer: TokenizerSpec) -> anyhow::Result<Dataset> {
        let path = Some(self.path("text.txt").to_str().unwrap().to_string());
        let source = SourceSpec::Text(TextSourceSpec {
            path,
            val_fraction: Some(0.25),
            ..Default::default()
        });
        prepare(&DataSpec { source, tokenizer, end_of_text: None }, &self.path("cache"))
    }

    fn prepared_folders(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.path("cache"))
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect()
    }
}

fn byte_pairs() -> TokenizerSpec {
    TokenizerSpec::Bpe(BpeSpec { vocab_size: Count(280), sample_bytes: None })
}

#[test]
fn text_comes_back_from_the_shards() {
    let fixture = Fixture::new();
    for tokenizer in [TokenizerSpec::Bytes, TokenizerSpec::Chars, byte_pairs()] {
        let dataset = fixture.prepare(tokenizer).unwrap();
        let decode =
            |shard: &TokenShard| dataset.tokenizer.decode(&shard.read(0, shard.len())).unwrap();
        let (train, val) = (decode(&dataset.train), decode(&dataset.val));
        assert_eq!(train.clone() + &val, fixture.text());
        assert_eq!(
            (dataset.summary.train_bytes, dataset.summary.val_bytes),
            (Some(train.len() as u64), Some(val.len() as u64))
        );
        assert_eq!(val.chars().count(), fixture.text().chars().count().div_ceil(4));
    }
    assert_eq!(fixture.prepared_folders().len(), 3);
}

#[test]
fn preparation_runs_once_and_again_when_the_text_changes() {
    let fixture = Fixture::new();
    let first = fixture.prepare(byte_pairs()).unwrap().summary;
    let folder = fixture.prepared_folders().remove(0);
    let written =
        |folder: &Path| folder.join("train.tokens").metadata().unwrap().modified().unwrap();
    let before = written(&folder);
    assert_eq!(fixture.prepare(byte_pairs()).unwrap().summary, first);
    assert_eq!(written(&folder), before);

    std::fs::write(fixture.path("text.txt"), fixture.text() + "!").unwrap();
    assert_ne!(fixture.prepare(byte_pairs()).unwrap().summary.content_hash, first.content_hash);
    assert_eq!(fixture.prepared_folders().len(), 2);
}

#[test]
fn damaged_preparations_are_made_again() {
    let fixture = Fixture::new();
    let first = fixture.prepare(byte_pairs()).unwrap().summary;
    let folder = fixture.prepared_folders().remove(0);
    let shard = std::fs::read(folder.join("val.tokens")).unwrap();

    std::fs::write(folder.join("val.tokens"), &shard[..shard.len() - 2]).unwrap();
    assert!(Dataset::open(&folder).is_err());
    assert_eq!(fixture.prepare(byte_pairs()).unwrap().summary, first);
    assert_eq!(std::fs::read(folder.join("val.tokens")).unwrap(), shard);

    std::fs::write(folder.join("tokenizer.json"), Tokenizer::bytes().to_json().unwrap()).unwrap();
    let error = Dataset::open(&folder).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json is not the one"), "{error}");
}

#[test]
fn a_tokenizer_file_gives_the_same_tokens_and_its_content_counts() {
    let fixture = Fixture::new();
    let trained = fixture.prepare(byte_pairs()).unwrap();
    let file = fixture.path("tokenizer.json");
    std::fs::write(&file, trained.tokenizer.to_json().unwrap()).unwrap();
    let from_file = fixture.prepare(TokenizerSpec::File(file.clone())).unwrap();
    assert_eq!(
        from_file.train.read(0, from_file.train.len()),
        trained.train.read(0, trained.train.len())
    );
    assert_eq!(from_file.summary.tokenizer_hash, trained.summary.tokenizer_hash);

    std::fs::write(&file, Tokenizer::bytes().to_json().unwrap()).unwrap();
    assert_ne!(
        fixture.prepare(TokenizerSpec::File(file)).unwrap().summary.content_hash,
        from_file.summary.content_hash
    );
}

/// Case 18.
#[test]
fn characters_of_the_validation_text_have_tokens() {
    let fixture = Fixture::new();
    std::fs::write(fixture.path("text.txt"), "abcabcabz").unwrap();
    let dataset = fixture.prepare(TokenizerSpec::Chars).unwrap();
    assert_eq!(dataset.summary.vocab_size, 4);
    assert_eq!(dataset.val.read(0, 3), [0, 1, 3]);
}

/// Case 11; also a cache of the format before, which had no checksums.
#[test]
fn changed_and_older_shards_are_made_again() {
    let fixture = Fixture::new();
    let first = fixture.prepare(byte_pairs()).unwrap().summary;
    let folder = fixture.prepared_folders().remove(0);
    for at in [8, 110] {
        for name in ["train.tokens", "val.tokens"] {
            let path = folder.join(name);
            let sound = std::fs::read(&path).unwrap();
            let mut changed = sound.clone();
            changed[at] ^= 3;
            std::fs::write(&path, changed).unwrap();
            assert!(Dataset::open(&folder).is_err(), "{name}, byte {at}");
            assert_eq!(fixture.prepare(byte_pairs()).unwrap().summary, first);
            assert_eq!(std::fs::read(&path).unwrap(), sound);
        }
    }
}

/// Case 25.
#[test]
fn a_vocabulary_that_is_not_the_tokenizers_is_refused() {
    let fixture = Fixture::new();
    fixture.prepare(byte_pairs()).unwrap();
    let folder = fixture.prepared_folders().remove(0);
    let path = folder.join("dataset.json");
    let summary = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, summary.replace(": 280,", ": 2147483648,")).unwrap();
    let error = Dataset::open(&folder).unwrap_err().to_string();
    assert!(error.contains("2147483648") && error.contains("280"), "{error}");
}

/// 20 documents of JSON lines, the last two of them for validation.
fn prepare_lines(
    fixture: &Fixture,
    tokenizer: TokenizerSpec,
    end_of_text: Option<&str>,
) -> anyhow::Result<Dataset> {
    let lines: String =
        (0..20).map(|index| format!("{{\"text\": \"Document NUMBER {index}\"}}\n")).collect();
    std::fs::write(fixture.path("documents.jsonl"), lines).unwrap();
    let source = SourceSpec::Jsonl(RowsSourceSpec {
        train: vec![fixture.path("documents.jsonl").to_str().unwrap().to_string()],
        val: None,
        val_fraction: None,
        text_key: "text".into(),
    });
    let end_of_text = end_of_text.map(String::from);
    prepare(&DataSpec { source, tokenizer, end_of_text }, &fixture.path("cache"))
}

#[test]
fn json_lines_end_with_the_end_of_text_token() {
    let dataset = prepare_lines(&Fixture::new(), byte_pairs(), None).unwrap();
    let end = dataset.tokenizer.end_of_text().unwrap();
    let tokens = dataset.train.read(0, dataset.train.len());
    assert_eq!(tokens.iter().filter(|token| **token == end).count(), 18);
    assert_eq!(tokens.last(), Some(&end));
}

/// A tokenizer in the form of BERT's: lower case, white space and unknown words lost; `end` is
/// its token 2.
fn uncased(fixture: &Fixture, end: &str) -> TokenizerSpec {
    let json = format!(
        r###"{{"version": "1.0", "added_tokens": [{{"id": 2, "content": "{end}", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}}],
        "normalizer": {{"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
          "strip_accents": null, "lowercase": true}},
        "pre_tokenizer": {{"type": "BertPreTokenizer"}}, "post_processor": null,
        "decoder": {{"type": "WordPiece", "prefix": "##", "cleanup": true}},
        "model": {{"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
          "max_input_chars_per_word": 100,
          "vocab": {{"[UNK]": 0, "document": 1, "{end}": 2, "number": 3, "1": 4, "##9": 5}}}}}}"###
    );
    let path = fixture.path("uncased.json");
    std::fs::write(&path, json).unwrap();
    TokenizerSpec::File(path)
}

/// Case 15.
#[test]
fn bytes_are_those_of_the_text_whatever_the_tokenizer_loses() {
    let fixture = Fixture::new();
    let dataset = prepare_lines(&fixture, uncased(&fixture, "[SEP]"), None).unwrap();
    assert_eq!(dataset.val.read(0, 8), [1, 3, 0, 2, 1, 3, 4, 5]);
    let text = "Document NUMBER 18Document NUMBER 19";
    assert_eq!(dataset.summary.val_bytes, Some(text.len() as u64));
    let lengths = dataset.token_byte_lengths();
    let all = dataset.val.text_bytes(0, dataset.val.len(), &lengths);
    assert!((all - text.len() as f64).abs() < 1e-9, "{all}");
}

/// Case 17.
#[test]
fn the_end_of_text_is_found_or_named() {
    let fixture = Fixture::new();
    let ends = |dataset: &Dataset| {
        let tokens = dataset.train.read(0, dataset.train.len());
        tokens.iter().filter(|token| **token == 2).count()
    };
    let named = |end: &str, key| prepare_lines(&fixture, uncased(&fixture, end), key);
    for end in ["<|eos|>", "[SEP]", "<|im_end|>", "</s>", "<|end_of_text|>"] {
        assert_eq!(ends(&named(end, None).unwrap()), 18, "{end}");
    }
    let without = named("[END]", None).unwrap();
    assert_eq!(ends(&without), 0);
    let with = named("[END]", Some("[END]")).unwrap();
    assert_eq!(ends(&with), 18);
    assert_ne!(with.summary.content_hash, without.summary.content_hash);
    let error = named("[END]", Some("[STOP]")).unwrap_err();
    assert_eq!(crate::error::exit_code(&error), 2);
    assert!(format!("{error:#}").contains("[STOP]"), "{error:#}");
}

/// The default corpus goes through bytes: the whole path on real text, without the seconds BPE
/// training takes.
#[test]
fn the_default_corpus_is_prepared() {
    let cache = tempfile::tempdir().unwrap();
    let dataset = prepare(
        &DataSpec {
            source: SourceSpec::CargoRegistry,
            tokenizer: TokenizerSpec::Bytes,
            end_of_text: None,
        },
        cache.path(),
    )
    .unwrap();
    assert_eq!(dataset.summary.train_bytes, Some(dataset.summary.train_tokens));
    assert!(dataset.summary.train_tokens > 15_000_000);
}

/// Compressed files are the text they hold: the same hash, so the same data.
#[test]
fn compressed_sources_are_the_text_they_hold() {
    use std::io::Write;
    let fixture = Fixture::new();
    let lines: String = (0..30).map(|index| format!("{{\"text\": \"é {index}\"}}\n")).collect();
    let gzip = |text: &str| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
    let text = fixture.text();
    let mut hashes = Vec::new();
    for (name, bytes) in [
        ("t", text.clone().into_bytes()),
        ("t.gz", gzip(&text)),
        ("t.zst", zstd(&text)),
        ("l.jsonl", lines.clone().into_bytes()),
        ("l.jsonl.gz", gzip(&lines)),
        ("l.jsonl.zst", zstd(&lines)),
    ] {
        std::fs::write(fixture.path(name), bytes).unwrap();
        let path = fixture.path(name).to_str().unwrap().to_string();
        let source = if name.starts_with('t') {
            SourceSpec::Text(TextSourceSpec { path: Some(path), ..Default::default() })
        } else {
            SourceSpec::Jsonl(RowsSourceSpec {
                train: vec![path],
                val: None,
                val_fraction: None,
                text_key: "text".into(),
            })
        };
        let spec = DataSpec { source, tokenizer: TokenizerSpec::Chars, end_of_text: None };
        hashes.push(prepare(&spec, &fixture.path("cache")).unwrap().summary.content_hash);
    }
    assert!(hashes[..3].iter().all(|hash| *hash == hashes[0]));
    assert!(hashes[3..].iter().all(|hash| *hash == hashes[3]) && hashes[0] != hashes[3]);
}

/// A sample is spread over the text, and one that is all of it gives the tokenizer of all of it.
#[test]
fn byte_pairs_are_trained_on_a_sample() {
    let fixture = Fixture::new();
    let text: String = (0..60_000).map(|index| format!("word{}\nx\n", index % 977)).collect();
    std::fs::write(fixture.path("text.txt"), "rare ".repeat(40_000) + "\n" + &text).unwrap();
    let bpe = |sample: Option<u64>| {
        let sample_bytes = sample.map(Count);
        let spec = BpeSpec { vocab_size: Count(300), sample_bytes };
        fixture.prepare(TokenizerSpec::Bpe(spec)).unwrap()
    };
    let (all, same, part) = (bpe(None), bpe(Some(1 << 40)), bpe(Some(200_000)));
    assert_eq!(all.summary.tokenizer_hash, same.summary.tokenizer_hash);
    assert_ne!(all.summary.tokenizer_hash, part.summary.tokenizer_hash);
    assert_ne!(all.summary.content_hash, part.summary.content_hash);
    for dataset in [&all, &part] {
        let tokens = dataset.train.read(0, dataset.train.len());
        let decoded = dataset.tokenizer.decode(&tokens).unwrap();
        assert_eq!(dataset.summary.train_bytes, Some(decoded.len() as u64));
    }
}
