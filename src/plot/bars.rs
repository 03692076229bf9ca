//! Stacked horizontal bars.

use super::axis::{Scale, Span};
use super::svg::{Anchor, COLOURS, Drawing, text_width};

/// As wide as a chart, so that a narrow page shows all of it.
const WIDTH: f64 = 460.0;
const MARGIN: f64 = 14.0;
const BAR: f64 = 22.0;
/// Above a bar, where its name stands if it has one.
const NAME: f64 = 18.0;
const GAP: f64 = 10.0;
const TITLE: f64 = 34.0;
const LEGEND_ROW: f64 = 18.0;
const SWATCH: f64 = 17.0;
const BOTTOM: f64 = 46.0;
/// The last tick's figures reach beyond the axis.
const RIGHT: f64 = 24.0;

/// Bars that are all made of the same parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// What is shown.
    pub title: String,
    /// What the length of a bar means, with its unit.
    pub label: String,
    /// Names of the parts.
    pub parts: Vec<String>,
    /// Name of each bar, empty where the title says enough, and the lengths of its parts, none
    /// negative.
    pub bars: Vec<(String, Vec<f64>)>,
}

impl Bars {
    /// The bars as a complete SVG image.
    pub fn to_svg(&self) -> String {
        let mut drawing = Drawing::default();
        drawing.text("title", (MARGIN, 18.0), Anchor::Start, &self.title);
        let top = self.draw_legend(&mut drawing) + 10.0;
        let height = |name: &str| BAR + GAP + if name.is_empty() { 0.0 } else { NAME };
        let bottom = top + self.bars.iter().map(|(name, _)| height(name)).sum::<f64>();
        let total = |parts: &[f64]| parts.iter().filter(|x| x.is_finite()).sum::<f64>();
        let span = Span::of(
            Scale::Linear,
            std::iter::once(0.0).chain(self.bars.iter().map(|(_, parts)| total(parts))),
        );
        let zero = span.place(0.0).unwrap_or(0.0);
        let room = WIDTH - MARGIN - RIGHT;
        let x_of =
            |value: f64| MARGIN + (span.place(value).unwrap_or(zero) - zero) / (1.0 - zero) * room;
        for (value, text) in span.ticks(6).into_iter().filter(|(value, _)| *value >= 0.0) {
            drawing.line("grid", (x_of(value), top - 6.0), (x_of(value), bottom));
            drawing.text("tick", (x_of(value), bottom + 14.0), Anchor::Middle, &text);
        }
        drawing.text("label", (MARGIN + room / 2.0, bottom + 34.0), Anchor::Middle, &self.label);
        let mut y = top;
        for (name, parts) in &self.bars {
            let bar = y + height(name) - BAR - GAP;
            if !name.is_empty() {
                drawing.text("legend", (MARGIN, bar - 5.0), Anchor::Start, name);
            }
            let mut sum = 0.0;
            let drawn = parts.iter().enumerate();
            for (part, length) in drawn.filter(|(_, x)| x.is_finite() && **x > 0.0) {
                let (left, right) = (x_of(sum), x_of(sum + length));
                drawing.rectangle(&class(part), (left, bar), (right - left, BAR));
                sum += length;
            }
            y += height(name);
        }
        drawing.finish(&self.title, (WIDTH, bottom + BOTTOM))
    }

    /// The names of the parts, in as many rows as they need; gives back where they end.
    fn draw_legend(&self, drawing: &mut Drawing) -> f64 {
        let (mut x, mut y) = (MARGIN, TITLE);
        for (part, name) in self.parts.iter().enumerate() {
            let width = SWATCH + text_width(name, 12.0);
            if x > MARGIN && x + width > WIDTH {
                (x, y) = (MARGIN, y + LEGEND_ROW);
            }
            drawing.rectangle(&class(part), (x, y), (12.0, 12.0));
            drawing.text("legend", (x + SWATCH, y + 10.0), Anchor::Start, name);
            x += width + 18.0;
        }
        y + LEGEND_ROW
    }
}

fn class(part: usize) -> String {
    format!("s{}", part % COLOURS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of an attribute in the lines that have all of these.
    fn numbers(svg: &str, with: &[&str], attribute: &str) -> Vec<f64> {
        let lines = svg.lines().filter(|line| with.iter().all(|part| line.contains(part)));
        let value = |line: &str| {
            let rest = line.split_once(&format!(" {attribute}=\"")).expect("an attribute").1;
            rest.split('"').next().expect("a value").parse().expect("a number")
        };
        lines.map(value).collect()
    }

    #[test]
    fn lengths_are_in_proportion() {
        let bars = Bars {
            title: "times".into(),
            label: "ms".into(),
            parts: vec!["forward".into(), "backward".into()],
            bars: vec![("a".into(), vec![1.0, 3.0]), ("b".into(), vec![2.0, 0.0])],
        };
        let svg = bars.to_svg();
        let widths = numbers(&svg, &["<rect", &format!("height=\"{BAR:.1}\"")], "width");
        assert_eq!(widths.len(), 3, "{svg}");
        assert!(
            (widths[1] / widths[0] - 3.0).abs() < 0.01
                && (widths[2] / widths[0] - 2.0).abs() < 0.01,
            "{widths:?}"
        );
    }

    /// At the width of a phone nothing lies outside, however many parts and long names there are.
    #[test]
    fn all_parts_and_names_are_within_the_image() {
        let parts: Vec<String> = (0..8).map(|part| format!("part number {part}")).collect();
        let name = "dense-muon-narrow-learning_rate-0.005-seed-1337";
        let bars = Bars {
            title: "times".into(),
            label: "ms".into(),
            bars: vec![(name.into(), vec![5.0; 8]), (String::new(), vec![1.0; 8])],
            parts,
        };
        let svg = bars.to_svg();
        let text = |with: &str, letters: &str| {
            let starts = numbers(&svg, &["<text", with], "x");
            assert!(!starts.is_empty(), "{with}");
            starts.into_iter().all(|start| start + text_width(letters, 12.0) <= WIDTH)
        };
        assert!(text("part number", "part number 0") && text(name, name), "{svg}");
        let (starts, widths) = (numbers(&svg, &["<rect"], "x"), numbers(&svg, &["<rect"], "width"));
        assert_eq!(starts.len(), 24);
        assert!(starts.iter().zip(&widths).all(|(x, width)| x + width <= WIDTH), "{svg}");
        let rows = numbers(&svg, &["<rect", "height=\"12.0\""], "y");
        assert!(rows.last() > rows.first(), "the legend takes several rows");
    }
}
