//! The loop on a terminal: read, draw, wait for a key.

use super::LOOK_EVERY;
use super::draw::draw;
use super::screen::Screen;
use super::view::View;
use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a signal may wait for an answer.
const WAIT: Duration = Duration::from_millis(250);

/// Shows runs on this terminal until a key or a signal asks to leave; the terminal is then as it
/// was before.
///
/// # Errors
/// If the terminal cannot be drawn on or read from.
pub fn watch(views: Vec<View>) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in signals() {
        signal_hook::flag::register(*signal, stop.clone()).context("cannot listen for signals")?;
    }
    let mut screen = Screen::new(views);
    screen.refresh();
    let mut terminal = ratatui::try_init().context("the terminal cannot be drawn on")?;
    let shown = show(&mut terminal, &mut screen, &stop);
    let restored = ratatui::try_restore().context("the terminal was not put back");
    shown.and(restored)
}

fn show(terminal: &mut DefaultTerminal, screen: &mut Screen, stop: &AtomicBool) -> Result<()> {
    let mut looked = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        terminal.draw(|frame| draw(frame, screen))?;
        // All keys that are there before the next drawing, which may be slow over a network.
        let mut wait = WAIT.min(LOOK_EVERY.saturating_sub(looked.elapsed()));
        while event::poll(wait)? {
            if let Event::Key(key) = event::read()?
                && !screen.press(key)
            {
                return Ok(());
            }
            wait = Duration::ZERO;
        }
        if looked.elapsed() >= LOOK_EVERY {
            screen.refresh();
            looked = Instant::now();
        }
    }
    Ok(())
}

/// The signals that end a program, beside Ctrl-C, which is a key here.
#[cfg(unix)]
fn signals() -> &'static [i32] {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    &[SIGHUP, SIGINT, SIGTERM]
}

#[cfg(not(unix))]
fn signals() -> &'static [i32] {
    use signal_hook::consts::{SIGINT, SIGTERM};
    &[SIGINT, SIGTERM]
}
