//! Curves over the steps.

use super::{QUIET, STRONG, nothing};
use ratatui::Frame;
use ratatui::layout::{Constraint, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line as TextLine, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType};

/// One curve of a chart.
pub(super) struct Line {
    /// What the title calls it, if anything.
    pub name: Option<String>,
    /// Its colour.
    pub colour: Color,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
    /// Drawn as single faint points: a noisy figure behind others.
    pub is_faint: bool,
}

/// Draws curves over the steps; `is_log` takes values by their logarithm, where all are positive.
pub(super) fn chart(frame: &mut Frame, area: Rect, title: &str, lines: &[Line], is_log: bool) {
    plot(frame, area, title, "step", lines, is_log);
}

/// The same over anything that is counted.
pub(super) fn plot(
    frame: &mut Frame,
    area: Rect,
    title: &str,
    counted: &str,
    lines: &[Line],
    is_log: bool,
) {
    let title = title_line(title, lines);
    let block = Block::new().title(title);
    let values = || lines.iter().flat_map(|line| &line.points).copied();
    let is_log = is_log && values().all(|(_, value)| value > 0.0);
    let Some((x, y)) = bounds(lines, is_log) else {
        let inner = block.inner(area);
        frame.render_widget(block, area);
        return nothing(frame, inner, "no figures yet");
    };
    let on_scale = |value: f64| if is_log { value.log10() } else { value };
    let scaled: Vec<Vec<(f64, f64)>> = lines
        .iter()
        .map(|line| line.points.iter().map(|(at, value)| (*at, on_scale(*value))).collect())
        .collect();
    let datasets = lines.iter().zip(&scaled).map(|(line, points)| {
        let style = Style::new().fg(line.colour);
        // A single point is no line.
        let is_points = line.is_faint || points.len() == 1;
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(if is_points { GraphType::Scatter } else { GraphType::Line })
            .style(if line.is_faint { style.add_modifier(Modifier::DIM) } else { style })
            .data(points)
    });
    let y_labels = labels(y, if area.height >= 14 { 5 } else { 3 }, |value| {
        value_label(if is_log { 10f64.powf(value) } else { value })
    });
    let x_labels =
        labels(x, if area.width >= 60 { 5 } else { 3 }, |value| count_label(value.round()));
    let chart = Chart::new(datasets.collect())
        .block(block)
        .legend_position(None)
        .hidden_legend_constraints((Constraint::Length(0), Constraint::Length(0)))
        .x_axis(
            Axis::default()
                .title(Span::styled(counted.to_owned(), QUIET))
                .bounds(x)
                .labels(x_labels)
                .style(QUIET),
        )
        .y_axis(Axis::default().bounds(y).labels(y_labels).style(QUIET));
    frame.render_widget(chart, area);
}

/// The title and the names of the curves in their colours.
fn title_line(title: &str, lines: &[Line]) -> TextLine<'static> {
    let mut spans = vec![Span::styled(format!(" {title} "), STRONG)];
    for line in lines {
        if let Some(name) = &line.name {
            spans.push(Span::styled(format!(" ― {name}"), Style::new().fg(line.colour)));
        }
    }
    TextLine::from(spans)
}

/// Bounds of both axes, those of values on their scale. A steep beginning, the first twentieth of
/// the steps, may reach beyond: it would press all that follows into a line.
fn bounds(lines: &[Line], is_log: bool) -> Option<([f64; 2], [f64; 2])> {
    let points = || lines.iter().flat_map(|line| &line.points).copied();
    let end = points().map(|(at, _)| at).fold(f64::NEG_INFINITY, f64::max);
    if !end.is_finite() {
        return None;
    }
    let begin = points().map(|(at, _)| at).fold(f64::INFINITY, f64::min);
    let is_long = lines.iter().any(|line| line.points.len() >= 20);
    let from = if is_long { begin + (end - begin) / 20.0 } else { begin };
    let settled = points().filter(|(at, _)| *at >= from);
    let values = settled.map(|(_, value)| if is_log { value.log10() } else { value });
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    // One value alone gets an axis around it.
    let margin = match high - low {
        0.0 if low == 0.0 => 1.0,
        0.0 => 0.1 * low.abs(),
        range => 0.04 * range,
    };
    let end = if end > begin { end } else { begin + 1.0 };
    // No figure here is negative, so no axis reaches below zero either.
    let bottom = if is_log || low < 0.0 { low - margin } else { (low - margin).max(0.0) };
    Some(([begin.min(end - 1.0), end], [bottom, high + margin]))
}

fn labels(bounds: [f64; 2], count: usize, text: impl Fn(f64) -> String) -> Vec<Span<'static>> {
    let at = |index: usize| bounds[0] + (bounds[1] - bounds[0]) * index as f64 / (count - 1) as f64;
    (0..count).map(|index| Span::raw(text(at(index)))).collect()
}

/// A value with four figures, in powers of ten where it is very small, with a unit where large.
pub(super) fn value_label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if size < 1e-3 => format!("{value:.2e}"),
        size if size < 0.1 => format!("{value:.5}"),
        size if size < 10.0 => format!("{value:.3}"),
        size if size < 1000.0 => format!("{value:.1}"),
        _ => crate::figures::count(value),
    }
}

/// A count: whole while it is short.
fn count_label(value: f64) -> String {
    if value.abs() < 1e5 { format!("{value}") } else { crate::figures::count(value) }
}
