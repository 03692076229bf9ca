//! The loop on a terminal: read, draw, wait for a key; and the end of it, by a key, a signal, or
//! because the terminal is gone.

use super::LOOK_EVERY;
use super::draw::draw;
use super::screen::Screen;
use super::view::View;
use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a key, a signal or the terminal's end may wait for an answer.
const WAIT: Duration = Duration::from_millis(250);

/// Shows runs on this terminal until a key asks to leave; the terminal is then as it was before.
/// A signal ends the process in the same way, and so does the end of the terminal.
///
/// # Errors
/// If the terminal cannot be drawn on or read from.
pub fn watch(views: Vec<View>) -> Result<()> {
    let mut screen = Screen::new(views);
    screen.refresh();
    let drawing = Arc::new(Mutex::new(()));
    leave_at_signals(Arc::clone(&drawing)).context("cannot listen for signals")?;
    let mut terminal = ratatui::try_init().context("the terminal cannot be drawn on")?;
    let shown = show(&mut terminal, &mut screen, &drawing);
    while shown.is_err() && !is_there() {
        // The thread ends the process. Leaving here would write to a terminal that is gone, in the
        // terminal's own end, which panics where standard error cannot be written to either.
        sleep(WAIT);
    }
    let restored = ratatui::try_restore().context("the terminal was not put back");
    shown.and(restored)
}

fn show(terminal: &mut DefaultTerminal, screen: &mut Screen, drawing: &Mutex<()>) -> Result<()> {
    let mut looked = Instant::now();
    loop {
        {
            let _drawing = drawing.lock().unwrap_or_else(PoisonError::into_inner);
            terminal.draw(|frame| draw(frame, screen))?;
        }
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
}

/// Whether the terminal is still there.
fn is_there() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Starts a thread that ends the process at the first signal that ends programs (Ctrl-C is a key
/// here), or when the terminal is gone: the loop may then wait in a read that never returns.
fn leave_at_signals(drawing: Arc<Mutex<()>>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGTERM])?;
    let wait_and_leave = move || {
        let signal = loop {
            match signals.pending().next() {
                Some(signal) => break signal,
                None if !is_there() => break SIGHUP,
                None => sleep(WAIT),
            }
        };
        // Nothing is drawn any more after the terminal was put back; one that takes no more bytes
        // keeps nobody.
        let asked = Instant::now();
        while drawing.try_lock().map(std::mem::forget).is_err() && asked.elapsed() < WAIT {
            sleep(WAIT / 25);
        }
        let _ = ratatui::try_restore();
        let _ = execute!(std::io::stdout(), Show);
        std::process::exit(128 + signal);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait_and_leave)?;
    Ok(())
}
