//! Rows of files that pyarrow wrote, and of files that are not as they should be.

use super::*;
use crate::data::prepare;
use crate::spec::DataSpec;
use parquet::data_type::{DataType, Int64Type};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

/// Three row groups of 17, 17 and 16 rows with a nested column beside the text, in pages of few
/// rows, as pyarrow 26.0.1 writes them:
///
/// ```python
/// texts = [f"document {i} é 好\n" * (i % 5) for i in range(50)]
/// meta = [{"url": f"u{i}", "tags": ["a", "b"]} for i in range(50)]
/// for codec, kind, pages in [("snappy", pa.string(), True), ("zstd", pa.large_string(), False)]:
///     table = pa.table({"id": range(50), "text": pa.array(texts, kind), "meta": meta})
///     pq.write_table(table, f"rows-{codec}.parquet", compression=codec, row_group_size=17,
///                    use_dictionary=pages, data_page_size=64)
/// ```
const WRITTEN: [&[u8]; 2] = [
    include_bytes!("../../../tests/support/rows-snappy.parquet"),
    include_bytes!("../../../tests/support/rows-zstd.parquet"),
];

fn expected() -> Vec<String> {
    (0..50).map(|i| format!("document {i} é 好\n").repeat(i % 5)).collect()
}

fn texts(rows: &ParquetRows) -> Result<Vec<String>> {
    rows.chunks().map(|chunk| Ok(chunk?.text.into_owned())).collect()
}

/// The texts of a file, under `text`.
fn read(path: &Path, text_key: &str) -> Result<Vec<String>> {
    texts(&ParquetRows::open(vec![path.to_path_buf()], text_key)?)
}

/// A file of one column called `text` of this type; two of its values, the second null where none.
fn write<T: DataType>(path: &Path, kind: &str, values: &[T::T]) {
    let schema = parse_message_type(&format!("message rows {{ {kind}; }}")).unwrap();
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Default::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    let levels = kind.starts_with("optional").then(|| [1, i16::from(values.len() > 1)]);
    let levels = levels.as_ref().map(|levels| &levels[..]);
    column.typed::<T>().write_batch(values, levels, None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn rows_of_pyarrow_are_read_from_every_row_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for (index, bytes) in WRITTEN.into_iter().enumerate() {
        paths.push(folder.path().join(format!("{index}.parquet")));
        std::fs::write(&paths[index], bytes).unwrap();
        assert_eq!(read(&paths[index], "text").unwrap(), expected());
    }
    let both = ParquetRows::open(paths.clone(), "text").unwrap();
    let all = [expected(), expected()].concat();
    for count in 0..=100 {
        let (before, after) = both.span().split(count);
        let [before, after] = [before, after].map(|span| texts(&both.within(span)).unwrap());
        assert_eq!((&before[..], &after[..]), all.split_at(count as usize), "{count}");
    }
    // A file that is replaced between measuring and reading.
    write::<ByteArrayType>(&paths[1], "required binary text (STRING)", &["a".into()]);
    let error = texts(&both).unwrap_err().to_string();
    assert!(error.contains("1.parquet") && error.contains("has changed"), "{error}");
}

#[test]
fn what_is_no_column_of_strings_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let refused = |text_key: &str, expected: &str| {
        let error = format!("{:#}", read(&path, text_key).unwrap_err());
        assert!(error.contains("rows.parquet") && error.contains(expected), "{error}");
    };
    std::fs::write(&path, WRITTEN[0]).unwrap();
    refused("body", "no column `body` among `id`, `text`, `meta`; name the right one with `data");
    refused("id", "the column `id` is not one of strings");
    refused("meta", "the column `meta` is not one of strings");
    write::<ByteArrayType>(&path, "required binary text", &["a".into()]);
    refused("text", "the column `text` is not one of strings");
    write::<Int64Type>(&path, "required int64 text", &[1]);
    refused("text", "the column `text` is not one of strings");
    write::<ByteArrayType>(&path, "repeated binary text (STRING)", &[]);
    refused("text", "the column `text` is not one of strings");

    write::<ByteArrayType>(&path, "optional binary text (STRING)", &["a".into(), "b".into()]);
    assert_eq!(read(&path, "text").unwrap(), ["a", "b"]);
    write::<ByteArrayType>(&path, "optional binary text (STRING)", &["a".into()]);
    refused("text", "row 2: the text is null; drop such rows first");
    let latin = ByteArray::from(b"caf\xe9".to_vec());
    write::<ByteArrayType>(&path, "required binary text (STRING)", &["a".into(), latin]);
    refused("text", "row 2: not UTF-8");
    for bytes in [&b""[..], b"PAR1", b"{\"text\": \"a\"}\n", &WRITTEN[0][..3000]] {
        std::fs::write(&path, bytes).unwrap();
        refused("text", "no Parquet file, or a damaged one; fetch it again");
    }
}

/// Whatever byte of a file is another, it is read or refused by name.
#[test]
fn a_changed_byte_is_no_more_than_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let (mut refused, mut changed) = (0, 0);
    for sound in WRITTEN {
        for at in 0..sound.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = sound.to_vec();
                bytes[at] ^= change;
                std::fs::write(&path, bytes).unwrap();
                match read(&path, "text") {
                    Ok(texts) => changed += usize::from(texts != expected()),
                    Err(error) => {
                        refused += 1;
                        let error = format!("{error:#}");
                        assert!(error.contains("rows.parquet"), "byte {at}: {error}");
                    }
                }
            }
        }
    }
    assert!(refused > 1000, "{refused} refused, {changed} read as something else");
}

/// The same documents are the same data, whether they are rows or lines.
#[test]
fn rows_are_the_data_that_lines_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("a.parquet"), WRITTEN[1]).unwrap();
    let line = |text: String| serde_json::json!({ "text": text }).to_string() + "\n";
    std::fs::write(path("a.jsonl"), expected().into_iter().map(line).collect::<String>()).unwrap();
    let prepared = |kind: &str| {
        let source = serde_json::json!({ kind: { "train": [path(&format!("*.{kind}"))] } });
        let spec =
            serde_json::json!({ "source": source, "tokenizer": { "bpe": { "vocab_size": 270 } } });
        let spec: DataSpec = serde_json::from_value(spec).unwrap();
        prepare(&spec, &path("cache")).unwrap().summary
    };
    let (rows, lines) = (prepared("parquet"), prepared("jsonl"));
    assert!(rows.source.starts_with("parquet: train ") && rows.source.contains("last 0.1 of"));
    assert_eq!(rows, lines, "what was prepared from lines is found, not made");
    assert_eq!(rows.val_bytes, Some(expected()[45..].concat().len() as u64));
    assert_eq!(std::fs::read_dir(path("cache")).unwrap().count(), 1);
}
