//! Tables for a terminal: as wide as it is, less important columns left out first.

/// A column of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// What stands above it.
    pub header: String,
    /// One cell a row.
    pub cells: Vec<String>,
    /// Which columns go first where there is no room: those with the largest number.
    pub rank: u8,
    /// Whether its cells stand at its right end, as numbers do.
    pub right: bool,
}

impl Column {
    /// A column of text.
    pub fn text(header: &str, rank: u8, cells: Vec<String>) -> Self {
        Self { header: header.to_owned(), cells, rank, right: false }
    }

    /// A column of numbers.
    pub fn numbers(header: &str, rank: u8, cells: Vec<String>) -> Self {
        Self { right: true, ..Self::text(header, rank, cells) }
    }

    fn width(&self) -> usize {
        let cells = self.cells.iter().chain([&self.header]);
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

/// The lines of a table, the header first. Where `width` is given, columns are left out until the
/// rest fits, and a last line names them; the first column always stays.
pub fn fitted(columns: &[Column], width: Option<usize>) -> Vec<String> {
    let mut shown: Vec<&Column> = columns.iter().collect();
    let room = width.unwrap_or(usize::MAX);
    let needed = |shown: &[&Column]| {
        shown.iter().map(|column| column.width() + 2).sum::<usize>().saturating_sub(2)
    };
    while needed(&shown) > room && shown.len() > 1 {
        // Of equals the last one goes.
        let least = (1..shown.len()).max_by_key(|index| (shown[*index].rank, *index));
        shown.remove(least.unwrap_or(shown.len() - 1));
    }
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
    let line = |cell: &dyn Fn(&Column) -> String| {
        let cells = shown.iter().map(|column| {
            let (text, width) = (cell(column), column.width());
            if column.right { format!("{text:>width$}") } else { format!("{text:<width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines = vec![line(&|column| column.header.clone())];
    lines
        .extend((0..rows).map(|row| {
            line(&|column: &Column| column.cells.get(row).cloned().unwrap_or_default())
        }));
    let left_out: Vec<&str> = columns
        .iter()
        .filter(|column| !shown.contains(column))
        .map(|column| column.header.as_str())
        .collect();
    if !left_out.is_empty() {
        let note = format!("(not shown for want of width: {}; --wide)", left_out.join(", "));
        lines.push(wrapped(&note, width));
    }
    lines
}

/// Text in lines of at most this width, broken between words.
pub fn wrapped(text: &str, width: Option<usize>) -> String {
    let Some(width) = width else { return text.to_owned() };
    let mut lines = vec![String::new()];
    let mut used = 0;
    for word in text.split(' ') {
        let length = word.chars().count();
        if used > 0 && used + 1 + length > width {
            lines.push(String::new());
            used = 0;
        }
        if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            line.push_str(word);
            used += length;
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column> {
        let cells = |texts: [&str; 2]| texts.map(str::to_owned).to_vec();
        vec![
            Column::text("method", 0, cells(["dense", "spectral"])),
            Column::numbers("loss", 0, cells(["2.5", "2.25"])),
            Column::text("remark", 2, cells(["a long remark", "none"])),
            Column::numbers("n", 1, cells(["3", "12"])),
        ]
    }

    #[test]
    fn the_least_important_columns_go_first() {
        assert_eq!(
            fitted(&columns(), None),
            [
                "method    loss  remark          n",
                "dense      2.5  a long remark   3",
                "spectral  2.25  none           12"
            ]
        );
        assert_eq!(
            fitted(&columns(), Some(20))[..3],
            ["method    loss   n", "dense      2.5   3", "spectral  2.25  12"]
        );
        let narrow = fitted(&columns(), Some(14));
        assert_eq!(narrow[..3], ["method    loss", "dense      2.5", "spectral  2.25"]);
        assert!(narrow[3].replace('\n', " ").contains("remark, n; --wide"), "{narrow:?}");
        assert_eq!(fitted(&columns(), Some(3))[1], "dense", "the first stays");
        assert_eq!(fitted(&columns(), Some(33)).len(), 3);
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrapped("one two three", Some(8)), "one two\nthree");
        assert_eq!(wrapped("unbreakable", Some(4)), "unbreakable");
    }
}
