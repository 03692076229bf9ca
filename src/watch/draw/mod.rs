//! A screen on a terminal of any size: views above, runs below them, then the chosen view.

mod charts;
mod header;
mod ranks;
mod sample;
mod spectra;
mod speed;
#[cfg(test)]
mod tests;

use super::screen::{Screen, Tab};
use charts::{Line, chart};
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::widgets::{Paragraph, Wrap};

/// Colours of the runs, in their order, which any terminal has.
const RUN_COLOURS: [Color; 6] =
    [Color::Cyan, Color::Yellow, Color::Green, Color::Magenta, Color::Red, Color::Blue];
/// What is said beside figures.
const QUIET: Style = Style::new().fg(Color::DarkGray);
const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);

/// The colour of a run.
fn colour(run: usize) -> Color {
    RUN_COLOURS[run % RUN_COLOURS.len()]
}

/// Draws a screen on all of a frame.
pub fn draw(frame: &mut Frame, screen: &Screen) {
    let runs = header::run_lines(screen, frame.area());
    let [tabs, states, body, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(runs.len() as u16),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(header::tabs(screen), tabs);
    frame.render_widget(Paragraph::new(runs), states);
    match screen.tab {
        Tab::Loss => loss(frame, screen, body),
        Tab::Rates => rates(frame, screen, body),
        Tab::Speed => speed::draw(frame, screen, body),
        Tab::Ranks => ranks::draw(frame, screen, body),
        Tab::Spectra => spectra::draw(frame, screen, body),
        Tab::Sample => sample::draw(frame, screen, body),
    }
    frame.render_widget(Paragraph::new(header::keys(screen)).style(QUIET), keys);
}

/// Says in the middle why there is nothing to show.
fn nothing(frame: &mut Frame, area: Rect, why: &str) {
    let [_, middle, _] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(2), Constraint::Fill(1)])
            .areas(area);
    let text = Paragraph::new(why.to_owned()).style(QUIET);
    frame.render_widget(text.alignment(Alignment::Center).wrap(Wrap { trim: true }), middle);
}

/// Training loss as points and validation loss as a line, of all runs.
fn loss(frame: &mut Frame, screen: &Screen, area: Rect) {
    let is_alone = screen.views.len() == 1;
    let mut lines = Vec::new();
    for (run, view) in screen.views.iter().enumerate() {
        let validation = if is_alone { Color::Yellow } else { colour(run) };
        let (named, train) = match is_alone {
            true => ("validation".to_owned(), Some("training".to_owned())),
            false => (view.name.clone(), None),
        };
        let points = view.figures.loss.points();
        lines.push(Line { name: train, colour: colour(run), points, is_faint: true });
        let points = view.figures.validation.points();
        lines.push(Line { name: Some(named), colour: validation, points, is_faint: false });
    }
    let title = if is_alone { "loss" } else { "validation loss (points: training)" };
    chart(frame, area, title, &lines, false);
}

/// Learning rates above gradient norms, of all runs.
fn rates(frame: &mut Frame, screen: &Screen, area: Rect) {
    let [above, below] =
        Layout::vertical([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(area);
    let is_alone = screen.views.len() == 1;
    let (mut rates, mut norms) = (Vec::new(), Vec::new());
    for (run, view) in screen.views.iter().enumerate() {
        let figures = &view.figures;
        let name = |of: &str| Some(if is_alone { of.to_owned() } else { view.name.clone() });
        let dense = if is_alone { Color::Yellow } else { colour(run) };
        let points = figures.low_rank_rate.points();
        if !points.is_empty() {
            rates.push(Line {
                name: name("low-rank"),
                colour: colour(run),
                points,
                is_faint: false,
            });
        }
        let dense_name = name("dense").filter(|_| is_alone || figures.low_rank_rate.is_empty());
        let points = figures.rate.points();
        rates.push(Line { name: dense_name, colour: dense, points, is_faint: false });
        let points = figures.gradient_norm.points();
        let norm_name = name("").filter(|name| !name.is_empty());
        norms.push(Line { name: norm_name, colour: colour(run), points, is_faint: false });
    }
    chart(frame, above, "learning rate", &rates, false);
    chart(frame, below, "gradient norm", &norms, true);
}
