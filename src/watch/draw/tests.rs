//! What stands on terminals of two sizes.

use super::draw;
use super::ranks::Grid;
use crate::watch::screen::{Screen, Tab};
use crate::watch::tests::{a_run, lines_of};
use crate::watch::view::open;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

const SIZES: [(u16, u16); 2] = [(80, 24), (140, 40)];

/// A screen of runs with figures at every tenth of 100 steps, spectra, and a sample.
fn screen(parent: &std::path::Path, names: &[&str]) -> Screen {
    let folders: Vec<_> = names.iter().map(|name| a_run(&parent.join(name))).collect();
    for folder in &folders {
        let metrics: String =
            (1..=10).map(|part| lines_of(10 * part, 4.0 - 0.2 * part as f64)).collect();
        std::fs::write(folder.join("metrics.jsonl"), metrics).unwrap();
        let spectra = "{\"step\":10,\"transformer.h.0.attn.q\":[2.0,1.0,0.5]}\n\
                       {\"step\":100,\"transformer.h.0.attn.q\":[4.0,0.01],\"other\":[1.0]}\n";
        std::fs::write(folder.join("spectra.jsonl"), spectra).unwrap();
        std::fs::create_dir_all(folder.join("samples")).unwrap();
        std::fs::write(folder.join("samples/step-00000100.txt"), "Once \u{1b}[31mupon\n").unwrap();
    }
    let mut screen = Screen::new(open(&folders).unwrap());
    screen.refresh();
    screen
}

/// The lines of a terminal of this size.
fn drawn(screen: &Screen, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, screen)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let rows = buffer.content.chunks(usize::from(width));
    rows.map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>()).collect()
}

fn press(screen: &mut Screen, code: KeyCode) -> bool {
    screen.press(KeyEvent::new(code, KeyModifiers::NONE))
}

fn has_curve(lines: &[String]) -> bool {
    let braille = |line: &String| line.chars().filter(|c| ('⠁'..='⣿').contains(c)).count();
    lines.iter().map(braille).sum::<usize>() >= 10
}

#[test]
fn the_loss_of_a_run_with_its_state_and_figures() {
    let parent = tempfile::tempdir().unwrap();
    let screen = screen(parent.path(), &["tiny"]);
    for size in SIZES {
        let lines = drawn(&screen, size);
        assert!(lines[0].contains("1 Loss") && lines[0].contains("6 Sample"), "{}", lines[0]);
        for part in ["● tiny", "finished", "100/100 (100%)", "val 2.2500", "loss 2.0000"] {
            assert!(lines[1].contains(part), "{part} in {}", lines[1]);
        }
        assert!(lines[2].contains("loss") && lines[2].contains("validation"), "{}", lines[2]);
        assert!(has_curve(&lines), "{}", lines.join("\n"));
        // The axes end at the last step and span all losses.
        let last = &lines[usize::from(size.1) - 2];
        assert!(last.contains("100") && last.contains("10"), "{}", lines.join("\n"));
        assert!(
            lines.iter().any(|line| line.trim_start().starts_with("4.1")),
            "{}",
            lines.join("\n")
        );
        assert!(lines[usize::from(size.1) - 1].contains("q leave"));
    }
}

#[test]
fn several_runs_stand_in_their_colours_and_can_be_chosen() {
    let parent = tempfile::tempdir().unwrap();
    let mut screen =
        screen(parent.path(), &["first", "second", "third-with-a-very-long-name-of-its-own"]);
    for size in SIZES {
        let lines = drawn(&screen, size);
        assert!(lines[1].starts_with("▶● first") && lines[2].starts_with(" ● second"));
        assert!(lines[3].contains("third-with") && lines[3].contains("finished"), "{}", lines[3]);
        assert!(lines[4].contains("― first ― second ― third"), "{}", lines[4]);
    }
    assert!(press(&mut screen, KeyCode::Down));
    assert_eq!(screen.chosen, 1);
    press(&mut screen, KeyCode::Char('p'));
    press(&mut screen, KeyCode::Char('p'));
    assert_eq!(screen.chosen, 2);
    assert!(drawn(&screen, SIZES[0])[3].starts_with("▶"));
}

#[test]
fn rates_speed_and_sample() {
    let parent = tempfile::tempdir().unwrap();
    let mut screen = screen(parent.path(), &["tiny"]);
    let expected: [(Tab, &[&str]); 3] = [
        (Tab::Rates, &["learning rate", "― low-rank ― dense", "gradient norm"]),
        (Tab::Speed, &["tokens/s", "memory in MiB", "seconds per step", "backward", "0.03000"]),
        (Tab::Sample, &["sample at step 100", "Once \\u{1b}[31mupon"]),
    ];
    for (tab, parts) in expected {
        screen.tab = tab;
        for size in SIZES {
            let text = drawn(&screen, size).join("\n");
            parts.iter().for_each(|part| assert!(text.contains(part), "{part} in\n{text}"));
            assert!(!text.contains('\u{1b}'));
        }
    }
}

#[test]
fn ranks_are_a_heat_map_by_layer() {
    let named = |name: &str, rank| (name.to_owned(), rank);
    let grid = Grid::new(&[
        named("transformer.h.0.attn.q", 3),
        named("transformer.h.0.mlp.up", 4),
        named("transformer.h.11.mlp.up", 5),
        named("head", 6),
    ]);
    assert_eq!(grid.kinds, ["attn.q", "mlp.up", "head"]);
    assert_eq!(
        grid.layers,
        [
            ("0".to_owned(), vec![Some(3), Some(4)]),
            ("11".to_owned(), vec![None, Some(5)]),
            ("–".to_owned(), vec![None, None, Some(6)])
        ]
    );

    let parent = tempfile::tempdir().unwrap();
    let mut screen = screen(parent.path(), &["tiny"]);
    press(&mut screen, KeyCode::Char('4'));
    assert_eq!(screen.tab, Tab::Ranks);
    for (width, height) in SIZES {
        let lines = drawn(&screen, (width, height));
        let text = lines.join("\n");
        assert!(text.contains("attn.q") && text.contains("― max ― mean ― min"), "{text}");
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, &screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let row =
            |number: &str| lines.iter().position(|line| line.trim_start().starts_with(number));
        let background = |row: usize| buffer[(7, row as u16)].bg;
        let (low, high) = (row("0 ").unwrap(), row("1 ").unwrap());
        assert!(lines[low].contains(" 4 ") && lines[high].contains(" 7 "), "{text}");
        // 7 is the largest rank, 4 is 57% of it.
        assert_eq!(background(high), Color::Indexed(222));
        assert_eq!(background(low), Color::Indexed(42));
    }
}

#[test]
fn spectra_at_first_and_now_by_weight() {
    let parent = tempfile::tempdir().unwrap();
    let mut screen = screen(parent.path(), &["tiny"]);
    press(&mut screen, KeyCode::BackTab);
    press(&mut screen, KeyCode::Left);
    assert_eq!(screen.tab, Tab::Spectra);
    for size in SIZES {
        let text = drawn(&screen, size).join("\n");
        assert!(text.contains("― step 10 ― step 100") && text.contains("h.0.attn.q"), "{text}");
        assert!(text.contains("4.000"), "{text}");
    }
    press(&mut screen, KeyCode::Down);
    assert_eq!(screen.weight, 1);
    let text = drawn(&screen, SIZES[0]).join("\n");
    // This one has no spectrum at first.
    assert!(text.contains("― step 100") && !text.contains("― step 10 "), "{text}");
    press(&mut screen, KeyCode::Down);
    assert_eq!(screen.weight, 0);
}

#[test]
fn a_run_without_figures_and_a_tiny_terminal_draw_too() {
    let parent = tempfile::tempdir().unwrap();
    let folder = a_run(&parent.path().join("empty"));
    let mut screen = Screen::new(open(&[folder]).unwrap());
    screen.refresh();
    for tab in Tab::ALL {
        screen.tab = tab;
        for size in [(1, 1), (3, 2), (20, 5), (80, 24)] {
            drawn(&screen, size);
        }
        let text = drawn(&screen, SIZES[0]).join("\n");
        assert!(text.contains(" yet") || text.contains("no "), "{text}");
    }
    for code in [KeyCode::Char('q'), KeyCode::Esc] {
        assert!(!press(&mut screen, code));
    }
    assert!(!screen.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    assert!(press(&mut screen, KeyCode::Char('c')));
}
