//! The lines around a view: its name among the others, the runs and their state, the keys.

use super::{QUIET, STRONG, colour};
use crate::figures::{bytes, count, duration};
use crate::train::RunState;
use crate::watch::screen::{Screen, Tab};
use crate::watch::view::{Standing, View};
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};

/// The names of the views.
pub(super) fn tabs(screen: &Screen) -> Line<'static> {
    let mut spans = vec![Span::styled(" lrpt watch ", QUIET)];
    for (index, tab) in Tab::ALL.into_iter().enumerate() {
        let style = if tab == screen.tab { STRONG.reversed() } else { Style::new() };
        spans.push(Span::raw(" "));
        spans.push(Span::styled(format!(" {} {} ", index + 1, tab.name()), style));
    }
    Line::from(spans)
}

/// What keys do.
pub(super) fn keys(screen: &Screen) -> String {
    let up_down = match screen.tab {
        Tab::Spectra => "↑↓ weight",
        Tab::Ranks | Tab::Sample => "↑↓ scroll",
        _ if screen.views.len() > 1 => "↑↓ run",
        _ => "",
    };
    let run = if screen.views.len() > 1 && screen.tab.is_of_one_run() { "n/p run" } else { "" };
    let parts = ["q leave", "←→ Tab 1-6 view", up_down, run];
    let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    format!(" {}", parts.join("   "))
}

/// A line for each run, as many as leave room for the view, among them the chosen one; and what
/// went wrong with that one.
pub(super) fn run_lines(screen: &Screen, area: Rect) -> Vec<Line<'static>> {
    let room = (usize::from(area.height) / 4).max(1);
    let runs = screen.views.len();
    let first = (screen.chosen + 1).saturating_sub(room).min(runs.saturating_sub(room));
    let longest = screen.views.iter().map(|view| Span::raw(view.name.as_str()).width()).max();
    let name_width = longest.unwrap_or(0).min((usize::from(area.width) / 4).max(8));
    let shown = (first..runs.min(first + room)).map(|run| {
        let is_chosen = run == screen.chosen && runs > 1;
        run_line(&screen.views[run], run, is_chosen, name_width, usize::from(area.width))
    });
    let mut lines: Vec<Line> = shown.collect();
    if let Some(trouble) = trouble(screen.view()) {
        lines.push(Line::styled(format!("   {trouble}"), Style::new().fg(Color::Red)));
    }
    lines
}

fn trouble(view: &View) -> Option<String> {
    let figures = &view.figures;
    let recovered = (figures.skipped_steps + figures.rollbacks > 0).then(|| {
        let (skipped, rollbacks) = (figures.skipped_steps, figures.rollbacks);
        format!("diverged on the way: {skipped} steps left out, {rollbacks} rollbacks")
    });
    match &view.standing {
        Standing::Run(RunState::Failed(error)) => Some(error.clone()),
        Standing::Gone => Some("its folder is no longer there".into()),
        _ => view.trouble.clone().or(recovered),
    }
}

/// Name, state and figures of a run, those that fit in their order of importance.
fn run_line(
    view: &View,
    run: usize,
    is_chosen: bool,
    name_width: usize,
    width: usize,
) -> Line<'static> {
    let name = fitted(&view.name, name_width);
    let state_style = Style::new().fg(match view.standing {
        Standing::Run(RunState::Running) | Standing::Preparing => Color::Green,
        Standing::Run(RunState::Diverged | RunState::Failed(_)) | Standing::Gone => Color::Red,
        Standing::Run(RunState::Interrupted) => Color::Yellow,
        Standing::Run(RunState::Finished) => Color::Reset,
    });
    let mark = if is_chosen { "▶" } else { " " };
    let mut spans = vec![
        Span::raw(mark),
        Span::styled("● ", Style::new().fg(colour(run))),
        Span::styled(name, STRONG),
        Span::styled(format!("  {}", view.standing), state_style),
    ];
    let mut used: usize = spans.iter().map(Span::width).sum();
    for part in figures(view) {
        let text = format!("  {part}");
        let more = Span::raw(text.as_str()).width();
        if used + more <= width {
            used += more;
            spans.push(Span::raw(text));
        }
    }
    Line::from(spans)
}

/// The figures of a run, the most important first.
fn figures(view: &View) -> Vec<String> {
    let figures = &view.figures;
    let mut parts = Vec::new();
    if view.max_steps > 0 {
        // Rounded down: 100% is the end.
        let share = (100.0 * figures.progress.step as f64 / view.max_steps as f64).floor();
        parts.push(format!("{}/{} ({share}%)", figures.progress.step, view.max_steps));
    }
    parts.extend(figures.progress.validation.map(|(_, loss)| format!("val {loss:.4}")));
    parts.extend(view.seconds_left().map(|seconds| format!("{} left", duration(seconds))));
    parts.extend(figures.loss.last().map(|loss| format!("loss {loss:.4}")));
    parts.extend(figures.speed.last().map(|speed| format!("{} tokens/s", count(speed))));
    parts.extend(figures.rank_mean.last().map(|rank| format!("rank {rank:.1}")));
    let memory = figures.device_memory.last().or(figures.memory.last());
    parts.extend(memory.map(|memory| bytes(memory.max(0.0) as u64)));
    parts
}

/// A name as wide as asked for: cut with a mark, or filled up.
pub(super) fn fitted(name: &str, width: usize) -> String {
    let has = |text: &str| Span::raw(text).width();
    let mut kept = String::new();
    if has(name) <= width {
        kept.push_str(name);
    } else {
        for character in name.chars() {
            if has(&kept) + has(character.encode_utf8(&mut [0; 4])) + 1 > width {
                break;
            }
            kept.push(character);
        }
        kept.push('…');
    }
    let missing = width.saturating_sub(has(&kept));
    kept + &" ".repeat(missing)
}
