//! Ranks by layer as a heat map, and over the steps.

use super::charts::{Line, chart};
use super::header::fitted;
use super::{QUIET, STRONG, colour, nothing};
use crate::watch::screen::Screen;
use crate::watch::view::one_line;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style};
use ratatui::text::{Line as TextLine, Span};
use ratatui::widgets::Paragraph;

/// Colours from few to many, dark to light, of the 256 that terminals share.
const HEAT: [u8; 10] = [17, 18, 24, 30, 36, 42, 78, 114, 150, 222];
/// Columns before the first cell.
const LAYER: usize = 6;
/// From here on text is dark.
const LIGHT: usize = 4;

/// Ranks of the weights with one of each layer in a row.
#[derive(Debug, PartialEq)]
pub(super) struct Grid {
    /// What stands in a layer: `attn.q`, …
    pub kinds: Vec<String>,
    /// Number of the layer and the rank of each kind in it.
    pub layers: Vec<(String, Vec<Option<usize>>)>,
}

impl Grid {
    /// Sorts weights called like `transformer.h.3.attn.q` by the number in their name and by what
    /// follows it; one without a number is a layer of its own.
    pub fn new(ranks: &[(String, usize)]) -> Self {
        let mut grid = Self { kinds: Vec::new(), layers: Vec::new() };
        for (name, rank) in ranks {
            let parts: Vec<&str> = name.split('.').collect();
            let number = parts.iter().position(|part| part.parse::<u32>().is_ok());
            let (layer, kind) = match number {
                Some(at) => (parts[at].to_owned(), parts[at + 1..].join(".")),
                None => ("–".to_owned(), name.clone()),
            };
            let kind = one_line(&kind);
            let column = grid.kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                grid.kinds.push(kind);
                grid.kinds.len() - 1
            });
            let row = grid.layers.iter().position(|(known, _)| *known == layer);
            let row = row.unwrap_or_else(|| {
                grid.layers.push((layer, Vec::new()));
                grid.layers.len() - 1
            });
            let cells = &mut grid.layers[row].1;
            cells.resize(cells.len().max(column + 1), None);
            cells[column] = Some(*rank);
        }
        grid
    }
}

/// The heat map of the chosen run beside its smallest, mean and largest rank.
pub(super) fn draw(frame: &mut Frame, screen: &Screen, area: Rect) {
    let view = screen.view();
    let figures = &view.figures;
    if figures.ranks.is_empty() {
        let why = "no ranks recorded: none yet, or the run has no low-rank weights";
        return nothing(frame, area, why);
    }
    let grid = Grid::new(&figures.ranks);
    let names = grid.kinds.iter().map(|kind| Span::raw(kind.as_str()).width());
    // A third of the width stays for the curves.
    let room = (usize::from(area.width) * 2 / 3).saturating_sub(LAYER) / grid.kinds.len();
    let cell = (names.max().unwrap_or(0) + 1).min(room).clamp(5, 10);
    let wanted = LAYER + cell * grid.kinds.len();
    let [left, right] = Layout::horizontal([
        Constraint::Length(wanted.min(u16::MAX.into()) as u16),
        Constraint::Min(0),
    ])
    .areas(area);
    let largest = figures.rank_most.points().iter().map(|(_, rank)| *rank).fold(1.0, f64::max);
    let mut lines = vec![TextLine::from(vec![
        Span::styled(format!(" {}", fitted("rank", 5)), STRONG),
        Span::styled(
            grid.kinds
                .iter()
                .map(|kind| format!("{:>cell$}", shortened(kind, cell - 1)))
                .collect::<String>(),
            QUIET,
        ),
    ])];
    let rows = usize::from(area.height).saturating_sub(1);
    let first = screen.scroll.min(grid.layers.len().saturating_sub(rows));
    for (layer, cells) in grid.layers.iter().skip(first).take(rows) {
        let mut spans = vec![Span::styled(format!(" {:>4} ", fitted_right(layer, 4)), QUIET)];
        spans.extend(cells.iter().map(|rank| match rank {
            Some(rank) => {
                let style = heat(*rank as f64 / largest);
                Span::styled(format!("{rank:>width$} ", width = cell - 1), style)
            }
            None => Span::raw(" ".repeat(cell)),
        }));
        lines.push(TextLine::from(spans));
    }
    frame.render_widget(Paragraph::new(lines), left);
    let line = |curve: &crate::watch::Curve, name: &str, colour: Color| Line {
        name: Some(name.to_owned()),
        colour,
        points: curve.points(),
        is_faint: false,
    };
    let curves = [
        line(&figures.rank_most, "max", Color::Green),
        line(&figures.rank_mean, "mean", colour(screen.chosen)),
        line(&figures.rank_least, "min", Color::Blue),
    ];
    chart(frame, right, "rank", &curves, false);
}

/// A name, its last part where it is too long, or the end of that: `down` of `mlp.down`.
fn shortened(name: &str, width: usize) -> &str {
    let fits = |text: &&str| text.chars().count() <= width;
    let last = name.rsplit('.').next().unwrap_or(name);
    let from = last.char_indices().rev().nth(width.saturating_sub(1)).map_or(0, |(at, _)| at);
    [name, last].into_iter().find(fits).unwrap_or(&last[from..])
}

fn fitted_right(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

/// The colours of a rank that is this share of the largest.
fn heat(share: f64) -> Style {
    let step = (share.clamp(0.0, 1.0) * (HEAT.len() - 1) as f64).round() as usize;
    let text = if step >= LIGHT { Color::Black } else { Color::White };
    Style::new().fg(text).bg(Color::Indexed(HEAT[step]))
}
