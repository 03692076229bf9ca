//! Singular values of a weight, at first and now, beside the list of weights.

use super::charts::{Line, plot};
use super::header::fitted;
use super::{QUIET, STRONG, colour, nothing};
use crate::watch::screen::Screen;
use crate::watch::view::Spectrum;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::Line as TextLine;
use ratatui::widgets::Paragraph;

/// The spectrum of the chosen weight of the chosen run.
pub(super) fn draw(frame: &mut Frame, screen: &Screen, area: Rect) {
    let Some((first, newest)) = &screen.view().spectra else {
        let why = "no spectra recorded: they come with validations of low-rank weights";
        return nothing(frame, area, why);
    };
    if newest.layers.is_empty() {
        return nothing(frame, area, "the run has no low-rank weights");
    }
    let chosen = screen.weight.min(newest.layers.len() - 1);
    let longest = newest.layers.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let wide = (longest + 24).min(usize::from(area.width) / 2).max(20);
    let [left, right] =
        Layout::horizontal([Constraint::Length(wide as u16), Constraint::Min(0)]).areas(area);
    frame.render_widget(Paragraph::new(list(newest, chosen, left)), left);
    let (name, values) = &newest.layers[chosen];
    let then = first.layers.iter().find(|(known, _)| known == name).map(|(_, values)| values);
    let line = |of: &Spectrum, values: &[f64], colour: Color| Line {
        name: Some(format!("step {}", of.step)),
        colour,
        points: points(values),
        is_faint: false,
    };
    let mut lines = Vec::new();
    if let Some(then) = then.filter(|_| first.step != newest.step) {
        lines.push(line(first, then, Color::DarkGray));
    }
    lines.push(line(newest, values, colour(screen.chosen)));
    plot(frame, right, "σᵢ", "i", &lines, true);
}

/// Positive singular values by their number, counted from 1.
fn points(values: &[f64]) -> Vec<(f64, f64)> {
    let numbered = values.iter().enumerate().map(|(index, value)| (index as f64 + 1.0, *value));
    numbered.filter(|(_, value)| *value > 0.0 && value.is_finite()).collect()
}

/// Weights with rank and largest singular value, the chosen one among them.
fn list(spectrum: &Spectrum, chosen: usize, area: Rect) -> Vec<TextLine<'static>> {
    let width = usize::from(area.width).saturating_sub(19);
    let rows = usize::from(area.height).saturating_sub(1).max(1);
    let first = (chosen + 1).saturating_sub(rows);
    let header = format!(" {} {:>5} {:>9}", fitted("weight", width), "rank", "σ₁");
    let mut lines = vec![TextLine::styled(header, STRONG)];
    let weights = spectrum.layers.iter().enumerate().skip(first).take(rows);
    lines.extend(weights.map(|(index, (name, values))| {
        let largest =
            values.first().map_or("–".into(), |value| super::charts::value_label(*value));
        let short = name.strip_prefix("transformer.").unwrap_or(name);
        let text = format!(" {} {:>5} {largest:>9} ", fitted(short, width), values.len());
        let style =
            if index == chosen { Style::new().reversed() } else { QUIET.patch(Style::reset()) };
        TextLine::styled(text, style)
    }));
    lines
}
