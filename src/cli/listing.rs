//! Lists on stdout: columns as wide as what stands in them, and on a narrow terminal the last one
//! cut if it is text, then the first one shortened.

use super::output;
use crate::error::printable;
use crate::figures::duration;
use anyhow::Result;
use std::time::SystemTime;
use unicode_width::UnicodeWidthStr;

/// Prints rows under their header; columns whose header is in capitals with a leading space stand
/// to the right.
pub(super) fn print(header: &[&str], rows: &[Vec<String>]) -> Result<()> {
    table(header, rows, output::width(false)).iter().try_for_each(output::line)
}

fn table(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> Vec<String> {
    let is_right: Vec<bool> = header.iter().map(|name| name.starts_with(' ')).collect();
    let header = header.iter().map(|name| name.trim().to_owned()).collect();
    let one_line = |cell: &String| printable(cell).replace(['\n', '\t'], " ");
    let rows = rows.iter().map(|row| row.iter().map(one_line).collect());
    let all: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let widths: Vec<usize> = (0..is_right.len())
        .map(|column| all.iter().map(|row| row[column].width()).max().unwrap_or(0))
        .collect();
    let widths = within(widths, !is_right.last().is_none_or(|right| *right), width);
    let last = widths.len() - 1;
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let cell = match column == last {
                true => shortened(cell, widths[column], widths[column]),
                false => shortened(cell, widths[column], widths[column] / 2),
            };
            let pad = " ".repeat(widths[column].saturating_sub(cell.width()));
            if is_right[column] { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let most = width.unwrap_or(usize::MAX);
        shortened(line.trim_end(), most, most)
    };
    all.iter().map(line).collect()
}

/// Widths of columns that fit side by side as far as the first and the last, if that is text, can
/// give way.
fn within(mut widths: Vec<usize>, last_is_text: bool, width: Option<usize>) -> Vec<usize> {
    let needed = widths.iter().map(|width| width + 2).sum::<usize>().saturating_sub(2);
    let mut surplus = needed.saturating_sub(width.unwrap_or(usize::MAX));
    let last = widths.len() - 1;
    for (column, least) in [(last, 8), (0, 16)] {
        if column != last || last_is_text {
            let given = surplus.min(widths[column].saturating_sub(least));
            widths[column] -= given;
            surplus -= given;
        }
    }
    widths
}

/// A text of at most this width: where it is wider, a mark stands for what comes after `head`
/// columns and before the end.
fn shortened(text: &str, width: usize, head: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(1);
    let fits = |text: &str, room: usize| text.width() <= room;
    let start = prefixes(text).take_while(|part| fits(part, head.min(room))).last().unwrap_or("");
    let left = room - start.width();
    let end = suffixes(text).find(|part| fits(part, left)).unwrap_or("");
    format!("{start}…{end}")
}

/// The beginnings of a text, the shortest first.
fn prefixes(text: &str) -> impl Iterator<Item = &str> {
    text.char_indices().map(|(end, _)| &text[..end]).chain([text])
}

/// The ends of a text, the longest first.
fn suffixes(text: &str) -> impl Iterator<Item = &str> {
    text.char_indices().map(|(start, _)| &text[start..]).chain([""])
}

/// How long ago that was.
pub(super) fn age(then: SystemTime) -> String {
    duration(then.elapsed().map_or(0.0, |age| age.as_secs_f64()))
}

/// Seconds since 1970, for JSON.
pub(super) fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_the_last_is_cut() {
        let rows = [["a\u{1b}[2J", "7", "long words here"], ["é", "1234", "x\ny"]]
            .map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(
            table(&["NAME", " SIZE", "SOURCE"], &rows, Some(27)),
            ["NAME        SIZE  SOURCE", "a\\u{1b}[2J     7  long wor…", "é           1234  x y"]
                .map(|line| line.to_owned())
        );
    }

    /// Of long names one sees both ends, and all figures stay.
    #[test]
    fn names_give_way_to_figures() {
        let rows = ["narrow-learning_rate-0.005-seed-1337", "a", "ж界界界界界界界界界界界界界"]
            .map(|name| vec![name.to_owned(), "finished".into(), "400/400".into()]);
        let header = ["NAME", "STATE", " STEP"];
        assert_eq!(
            table(&header, &rows, Some(40)),
            [
                "NAME                   STATE        STEP",
                "narrow-lea…-seed-1337  finished  400/400",
                "a                      finished  400/400",
                "ж界界界界…界界界界界   finished  400/400",
            ]
        );
        let wide = table(&header, &rows, None);
        assert!(wide[1].starts_with(&rows[0][0]), "{wide:?}");
        assert!(table(&header, &rows, Some(20)).iter().all(|line| line.width() <= 20));
    }
}
