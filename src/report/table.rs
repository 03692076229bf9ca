//! The comparison as a table: text for a terminal, Markdown for a page.

use super::comparison::{Comparison, GroupSummary};
use super::groups::Group;
use super::statistics::Estimate;
use crate::error::printable;
use crate::figures::{bytes, count, operations};

const HEADER: [&str; 14] = [
    "method",
    "n",
    "val/loss",
    "vs baseline",
    "p",
    "best",
    "tuning",
    "parameters",
    "r (m + n − r)",
    "tokens",
    "FLOPs",
    "seconds",
    "memory",
    "loss at equal tokens / FLOPs / seconds",
];

fn rows(comparison: &Comparison) -> Vec<Vec<String>> {
    let rows = comparison.groups.iter().enumerate();
    rows.map(|(index, (group, summary))| row(group, summary, comparison.baseline == Some(index)))
        .map(|cells| cells.iter().map(|cell| one_line(cell)).collect())
        .collect()
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

fn row(group: &Group, summary: &GroupSummary, is_baseline: bool) -> Vec<String> {
    let difference = match &summary.difference {
        _ if is_baseline => "baseline".to_owned(),
        Some(difference) => match difference.half_interval {
            Some(half) => format!("{:+.4} ± {half:.4}", difference.estimate.mean),
            None => format!("{:+.4} (1 seed)", difference.estimate.mean),
        },
        None => "–".to_owned(),
    };
    let p = summary.difference.and_then(|difference| difference.p).map_or("–".to_owned(), |p| {
        if p < 0.001 { "<0.001".to_owned() } else { format!("{p:.3}") }
    });
    let known = |value: f64, text: fn(f64) -> String| {
        if value.is_finite() { text(value) } else { "–".to_owned() }
    };
    let loss = |value: &Option<f64>| value.map_or("–".to_owned(), |loss| format!("{loss:.4}"));
    vec![
        group.name.clone(),
        summary.loss.count.to_string(),
        estimate(&summary.loss),
        difference,
        p,
        group.chosen().label(),
        group.tuning(),
        known(summary.parameters, count),
        known(summary.manifold_dimension, count),
        known(summary.tokens, count),
        known(summary.flops, operations),
        format!("{:.1}", summary.seconds),
        summary.peak_memory.map_or("–".to_owned(), |memory| bytes(memory as u64)),
        summary.loss_at_equal.iter().map(loss).collect::<Vec<_>>().join(" / "),
    ]
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
    let groups = comparison.groups.iter().map(|(group, _)| group).chain(&comparison.empty);
    for (id, why) in groups.flat_map(|group| &group.missing) {
        remarks.push(format!("No result: {id}: {why}."));
    }
    remarks.iter().map(|remark| one_line(remark)).collect()
}

/// The comparison for a terminal.
pub fn text_table(comparison: &Comparison) -> String {
    let mut all = vec![HEADER.map(str::to_owned).to_vec()];
    all.extend(rows(comparison));
    let width =
        |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEADER.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    let mut lines: Vec<String> = all.iter().map(line).collect();
    lines.push(String::new());
    lines.extend(remarks(comparison));
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
    let mut lines =
        vec![line(HEADER.map(str::to_owned).to_vec()), format!("|{}", "---|".repeat(HEADER.len()))];
    lines.extend(rows(comparison).into_iter().map(line));
    lines.join("\n")
}

/// The comparison as an HTML table, without remarks.
pub(super) fn html_table(comparison: &Comparison) -> String {
    let row = |cells: Vec<String>, tag: &str| {
        let cells: String = cells
            .iter()
            .map(|cell| format!("<{tag}>{}</{tag}>", crate::plot::escape(cell)))
            .collect();
        format!("<tr>{cells}</tr>")
    };
    let body: String = rows(comparison).into_iter().map(|cells| row(cells, "td")).collect();
    format!(
        "<table><thead>{}</thead><tbody>{body}</tbody></table>",
        row(HEADER.map(str::to_owned).to_vec(), "th")
    )
}
