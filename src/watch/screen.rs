//! Which runs are shown, which view of them, and what a key changes.

use super::view::View;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

/// A view of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    /// Training and validation loss of all runs.
    Loss,
    /// Learning rates and gradient norms of all runs.
    Rates,
    /// Tokens per second, memory and the time of a step by phase.
    Speed,
    /// Ranks by layer, and over the steps.
    Ranks,
    /// Singular values of a weight, at first and now.
    Spectra,
    /// The newest sample.
    Sample,
}

impl Tab {
    /// All views, in their order.
    pub const ALL: [Tab; 6] =
        [Tab::Loss, Tab::Rates, Tab::Speed, Tab::Ranks, Tab::Spectra, Tab::Sample];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Tab::Loss => "Loss",
            Tab::Rates => "Rates",
            Tab::Speed => "Speed",
            Tab::Ranks => "Ranks",
            Tab::Spectra => "Spectra",
            Tab::Sample => "Sample",
        }
    }

    /// Whether it is about the chosen run and not about all.
    pub fn is_of_one_run(self) -> bool {
        matches!(self, Tab::Ranks | Tab::Spectra | Tab::Sample)
    }

    fn moved(self, by: isize) -> Self {
        let at = Self::ALL.iter().position(|tab| *tab == self).unwrap_or(0);
        Self::ALL[around(at, by, Self::ALL.len())]
    }
}

/// What is shown.
#[derive(Debug)]
pub struct Screen {
    /// The runs.
    pub views: Vec<View>,
    /// The view.
    pub tab: Tab,
    /// The chosen run.
    pub chosen: usize,
    /// The chosen low-rank weight, counted on; the model's number of them is its period.
    pub weight: usize,
    /// Lines by which ranks or a sample are moved up; drawing keeps it within what there is.
    pub scroll: usize,
}

impl Screen {
    /// A screen that begins with the loss of these runs, of which there is one at least.
    pub fn new(views: Vec<View>) -> Self {
        Self { views, tab: Tab::Loss, chosen: 0, weight: 0, scroll: 0 }
    }

    /// The chosen run.
    pub fn view(&self) -> &View {
        &self.views[self.chosen]
    }

    /// Looks at the folders of all runs again.
    pub fn refresh(&mut self) {
        for view in &mut self.views {
            view.refresh();
        }
    }

    /// Does what a key asks for; false where it asks to leave.
    pub fn press(&mut self, key: KeyEvent) -> bool {
        if key.kind == KeyEventKind::Release {
            return true;
        }
        let is_interrupt = key.modifiers.contains(KeyModifiers::CONTROL)
            && matches!(key.code, KeyCode::Char('c' | 'd'));
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            _ if is_interrupt => return false,
            KeyCode::Tab | KeyCode::Right => self.show(self.tab.moved(1)),
            KeyCode::BackTab | KeyCode::Left => self.show(self.tab.moved(-1)),
            KeyCode::Char(digit @ '1'..='6') => {
                self.show(Tab::ALL[digit as usize - '1' as usize]);
            }
            KeyCode::Char('n') => self.choose(1),
            KeyCode::Char('p') => self.choose(-1),
            KeyCode::Down => self.step(1),
            KeyCode::Up => self.step(-1),
            KeyCode::PageDown => self.scroll = self.scroll.saturating_add(10),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            _ => {}
        }
        true
    }

    fn show(&mut self, tab: Tab) {
        self.tab = tab;
        self.scroll = 0;
    }

    fn choose(&mut self, by: isize) {
        self.chosen = around(self.chosen, by, self.views.len());
        self.scroll = 0;
    }

    /// Moves within the view: through weights, through lines, or to another run.
    fn step(&mut self, by: isize) {
        match self.tab {
            Tab::Spectra => {
                let spectra = self.view().spectra.as_ref();
                let weights = spectra.map_or(1, |(_, newest)| newest.layers.len().max(1));
                self.weight = around(self.weight.min(weights - 1), by, weights);
            }
            Tab::Ranks | Tab::Sample => self.scroll = self.scroll.saturating_add_signed(by),
            Tab::Loss | Tab::Rates | Tab::Speed => self.choose(by),
        }
    }
}

/// The place `by` further in a ring.
fn around(at: usize, by: isize, length: usize) -> usize {
    (at as isize + by).rem_euclid(length.max(1) as isize) as usize
}
