//! Lists on stdout: columns as wide as what stands in them, the last cut at the terminal's edge.

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
    let line = |row: &Vec<String>| {
        let cells = row.iter().enumerate().map(|(column, cell)| {
            let pad = " ".repeat(widths[column] - cell.width());
            if is_right[column] { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
        });
        cut(cells.collect::<Vec<_>>().join("  ").trim_end(), width)
    };
    all.iter().map(line).collect()
}

/// The beginning of a line that is wider than the terminal, with a mark that it is.
fn cut(line: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| line.width() > *width) else { return line.to_owned() };
    let mut kept = String::new();
    for character in line.chars() {
        if kept.width() + character.to_string().width() + 1 > width {
            break;
        }
        kept.push(character);
    }
    kept + "…"
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
}
