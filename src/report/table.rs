//! The comparison as a table: text for a terminal, Markdown for a page.

use super::columns::{Column, fitted, wrapped};
use super::comparison::{Comparison, GroupSummary};
use super::groups::Group;
use super::missing::missing;
use super::statistics::Estimate;
use crate::error::printable;
use crate::figures::{bytes, count, operations};

/// The table, column by column.
fn columns(comparison: &Comparison) -> Vec<Column> {
    let cells = |of: &dyn Fn(&Group, &GroupSummary) -> String| {
        let rows = comparison.groups.iter().map(|(group, summary)| one_line(&of(group, summary)));
        rows.collect::<Vec<_>>()
    };
    let known = |value: f64, text: fn(f64) -> String| {
        if value.is_finite() { text(value) } else { "–".to_owned() }
    };
    let loss = |value: &Option<f64>| value.map_or("–".to_owned(), |loss| format!("{loss:.4}"));
    let baseline = comparison.baseline.map(|index| &comparison.groups[index].0.name);
    let mut columns = vec![
        Column::text("method", 0, cells(&|group, _| group.name.clone())),
        Column::text(
            "state",
            1,
            cells(&|group, _| group.unfinished().unwrap_or("finished".to_owned())),
        ),
        Column::numbers("n", 3, cells(&|_, s| s.loss.count.to_string())),
        Column::text("val/loss", 0, cells(&|_, s| estimate(&s.loss))),
        Column::text(
            "vs baseline",
            1,
            cells(&|group, s| difference(s, baseline == Some(&group.name))),
        ),
        Column::text("p", 5, cells(&|_, s| p_value(s))),
        Column::text("best", 7, cells(&|group, _| group.chosen().label())),
        Column::text("tuning", 9, cells(&|group, _| group.tuning())),
        Column::numbers("parameters", 2, cells(&|_, s| known(s.parameters, count))),
        Column::numbers("r (m + n − r)", 8, cells(&|_, s| known(s.manifold_dimension, count))),
        Column::numbers("tokens", 6, cells(&|_, s| known(s.tokens, count))),
        Column::numbers("FLOPs", 4, cells(&|_, s| known(s.flops, operations))),
        Column::numbers("seconds", 4, cells(&|_, s| format!("{:.1}", s.seconds))),
        Column::numbers(
            "memory",
            6,
            cells(&|_, s| s.peak_memory.map_or("–".to_owned(), |memory| bytes(memory as u64))),
        ),
        Column::text(
            "loss at equal tokens / FLOPs / seconds",
            10,
            cells(&|_, s| s.loss_at_equal.iter().map(loss).collect::<Vec<_>>().join(" / ")),
        ),
    ];
    if comparison.groups.iter().all(|(group, _)| group.unfinished().is_none()) {
        columns.retain(|column| column.header != "state");
    }
    columns
}

/// Header and rows.
fn rows(comparison: &Comparison) -> (Vec<String>, Vec<Vec<String>>) {
    let columns = columns(comparison);
    let row = |row: usize| columns.iter().map(|column| column.cells[row].clone()).collect();
    let rows = (0..comparison.groups.len()).map(row).collect();
    (columns.iter().map(|column| column.header.clone()).collect(), rows)
}

/// Text from a file as part of one line: line ends and other control characters are shown.
pub(super) fn one_line(text: &str) -> String {
    printable(text).replace('\n', "\\n").replace('\t', " ")
}

/// Text as Markdown shows it as it is: no tags, links or emphasis of its own, and no further cells.
pub(super) fn markdown_text(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in one_line(text).chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '|' | '[' | ']' | '*' | '\\' => escaped.extend(['\\', character]),
            character => escaped.push(character),
        }
    }
    escaped
}

/// The difference to the baseline, with half its interval.
fn difference(summary: &GroupSummary, is_baseline: bool) -> String {
    match &summary.difference {
        _ if is_baseline => "baseline".to_owned(),
        Some(difference) => match difference.half_interval {
            Some(half) => format!("{:+.4} ± {half:.4}", difference.estimate.mean),
            None => format!("{:+.4} (1 seed)", difference.estimate.mean),
        },
        None => "–".to_owned(),
    }
}

fn p_value(summary: &GroupSummary) -> String {
    match summary.difference.and_then(|difference| difference.p) {
        Some(p) if p < 0.001 => "<0.001".to_owned(),
        Some(p) => format!("{p:.3}"),
        None => "–".to_owned(),
    }
}

/// `1.9374 ± 0.0040`, mean and standard error; without an error for a single value.
pub(super) fn estimate(estimate: &Estimate) -> String {
    match estimate.standard_error {
        Some(error) => format!("{:.4} ± {error:.4}", estimate.mean),
        None => format!("{:.4}", estimate.mean),
    }
}

/// Remarks on what the columns mean and what is missing, one per line.
pub(super) fn remarks(comparison: &Comparison) -> Vec<String> {
    let mut remarks = vec![
        "val/loss: mean ± standard error over n seeds, nats per token; vs baseline: mean paired difference on shared seeds ± half its 95% \
         interval (Student's t), p two-sided; seconds: training steps only."
            .to_owned(),
        "Loss at equal tokens, FLOPs, seconds: at what the thriftiest run of the table spent in all, linear between validations. A run that goes \
         on from there has not decayed its learning rate by then; `equal:` in a sweep gives every run a schedule of its own for the same budget."
            .to_owned(),
    ];
    remarks.push(
        "Parameters: what training stores at the end; r (m + n − r): the degrees of freedom of the \
         same model, the dimension of its manifold, where a low-rank weight of rank r counts \
         r (m + n − r) and everything else as it is stored."
            .to_owned(),
    );
    remarks.extend(super::scaling::remark(comparison));
    remarks.extend(comparison.rule.clone());
    remarks.extend(comparison.goal.iter().flat_map(|goal| goal.remarks(comparison)));
    for (group, _) in &comparison.groups {
        if let super::groups::Search::Edge(setting) = &group.search {
            remarks.push(format!(
                "{}: not tuned: {setting} is at the edge of its list; try values beyond.",
                group.name
            ));
        }
    }
    for (group, _) in &comparison.groups {
        if let Some(state) = group.unfinished() {
            remarks.push(format!(
                "{}: not finished ({state}): its figures are those of its newest validation, before \
                 its learning rate has decayed; compare at equal spending.",
                group.name
            ));
        }
    }
    let groups = comparison.groups.iter().map(|(group, _)| group).chain(&comparison.empty);
    remarks.extend(missing(groups.flat_map(|group| &group.missing)));
    remarks.iter().map(|remark| one_line(remark)).collect()
}

/// The comparison for a terminal of this width, or with every column where none is given.
pub fn text_table(comparison: &Comparison, width: Option<usize>) -> String {
    let mut lines = fitted(&columns(comparison), width);
    lines.push(String::new());
    lines.extend(remarks(comparison).iter().map(|remark| wrapped(remark, width)));
    lines.join("\n")
}

/// The comparison as a Markdown table, without remarks.
pub fn markdown_table(comparison: &Comparison) -> String {
    let line = |cells: Vec<String>| {
        format!(
            "| {} |",
            cells.iter().map(|cell| markdown_text(cell)).collect::<Vec<_>>().join(" | ")
        )
    };
    let (header, rows) = rows(comparison);
    let rule = format!("|{}", "---|".repeat(header.len()));
    let mut lines = vec![line(header), rule];
    lines.extend(rows.into_iter().map(line));
    lines.join("\n")
}

/// Characters of a cell of which an HTML table makes several lines.
const LONG: usize = 28;

/// The comparison as an HTML table, without remarks.
pub(super) fn html_table(comparison: &Comparison) -> String {
    let row = |cells: Vec<String>, tag: &str| {
        let cell = |cell: &String| {
            let class = if cell.chars().count() > LONG { " class=\"long\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", crate::plot::escape(cell))
        };
        let cells: String = cells.iter().map(cell).collect();
        format!("<tr>{cells}</tr>")
    };
    let (header, rows) = rows(comparison);
    let body: String = rows.into_iter().map(|cells| row(cells, "td")).collect();
    format!(
        "<table class=\"runs\"><thead>{}</thead><tbody>{body}</tbody></table>",
        row(header, "th")
    )
}
