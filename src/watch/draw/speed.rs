//! How fast, in how much memory, and where the time of a step goes.

use super::charts::{Line, chart, value_label};
use super::{QUIET, STRONG, colour, nothing};
use crate::watch::curve::Curve;
use crate::watch::screen::Screen;
use crate::watch::view::View;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line as TextLine, Span};
use ratatui::widgets::Paragraph;

/// Tokens per second and memory of all runs, and the phases of a step of the chosen one.
pub(super) fn draw(frame: &mut Frame, screen: &Screen, area: Rect) {
    let phases = screen.view().figures.phases.len().clamp(1, 6) as u16;
    let [curves, times] =
        Layout::vertical([Constraint::Min(5), Constraint::Length(phases + 1)]).areas(area);
    let [speed, memory] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(2).areas(curves);
    const MEBIBYTE: f64 = (1u64 << 20) as f64;
    let lines = |curve: &dyn Fn(&View) -> Curve, scale: f64| -> Vec<Line> {
        let runs = screen.views.iter().enumerate();
        runs.map(|(run, view)| {
            let points = curve(view).points();
            let points = points.into_iter().map(|(step, value)| (step, value / scale)).collect();
            Line { name: None, colour: colour(run), points, is_faint: false }
        })
        .collect()
    };
    chart(frame, speed, "tokens/s", &lines(&|view| view.figures.speed.clone(), 1.0), false);
    let of_memory = |view: &View| match view.figures.device_memory.is_empty() {
        true => view.figures.memory.clone(),
        false => view.figures.device_memory.clone(),
    };
    chart(frame, memory, "memory in MiB", &lines(&of_memory, MEBIBYTE), false);
    draw_phases(frame, screen, times);
}

/// Seconds per step by phase, as bars.
fn draw_phases(frame: &mut Frame, screen: &Screen, area: Rect) {
    let phases = &screen.view().figures.phases;
    if phases.is_empty() {
        return nothing(frame, area, "no times yet");
    }
    let longest = phases.iter().map(|(_, seconds)| *seconds).fold(f64::MIN_POSITIVE, f64::max);
    let mut lines = vec![TextLine::styled(" seconds per step", STRONG)];
    for (phase, seconds) in phases {
        let room = f64::from(area.width.saturating_sub(26));
        let bar = "█".repeat((room * (seconds / longest).clamp(0.0, 1.0)).round() as usize);
        let phase = super::header::fitted(&crate::watch::view::one_line(phase), 10);
        lines.push(TextLine::from(vec![
            Span::raw(format!(" {phase} {:>9}  ", value_label(*seconds))),
            Span::styled(bar, Style::new().fg(colour(screen.chosen))),
        ]));
    }
    frame.render_widget(Paragraph::new(lines).style(QUIET.patch(Style::reset())), area);
}
