//! The newest text that the model wrote.

use super::{STRONG, nothing};
use crate::watch::screen::Screen;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

/// The newest sample of the chosen run, its control characters shown: [`crate::watch::View`] has
/// seen to that.
pub(super) fn draw(frame: &mut Frame, screen: &Screen, area: Rect) {
    let Some((step, text)) = &screen.view().sample else {
        let why = "no sample yet: `sample.tokens` of the spec says how long the text written at \
                   each validation is";
        return nothing(frame, area, why);
    };
    let [title, body] = Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(area);
    frame.render_widget(Line::styled(format!(" sample at step {step}"), STRONG), title);
    let body = Rect { x: body.x + 1.min(body.width), width: body.width.saturating_sub(2), ..body };
    // A scroll beyond the last line would show nothing.
    let last = text.lines().count().saturating_sub(1).min(screen.scroll) as u16;
    let text = Paragraph::new(text.as_str()).wrap(Wrap { trim: false }).scroll((last, 0));
    frame.render_widget(text, body);
}
