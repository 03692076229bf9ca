//! Stacked horizontal bars.

use super::axis::{Scale, Span};
use super::svg::{Anchor, COLOURS, Drawing, text_width};

const WIDTH: f64 = 860.0;
const BAR: f64 = 22.0;
const GAP: f64 = 10.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = 46.0;
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
    /// Name of each bar and the lengths of its parts, none negative.
    pub bars: Vec<(String, Vec<f64>)>,
}

impl Bars {
    /// The bars as a complete SVG image.
    pub fn to_svg(&self) -> String {
        let mut drawing = Drawing::default();
        let left =
            self.bars.iter().map(|(name, _)| text_width(name, 12.0)).fold(60.0, f64::max) + 14.0;
        let bottom = TOP + self.bars.len() as f64 * (BAR + GAP);
        let total = |parts: &[f64]| parts.iter().filter(|x| x.is_finite()).sum::<f64>();
        let span = Span::of(
            Scale::Linear,
            std::iter::once(0.0).chain(self.bars.iter().map(|(_, parts)| total(parts))),
        );
        let zero = span.place(0.0).unwrap_or(0.0);
        let x_of = |value: f64| {
            left + (span.place(value).unwrap_or(zero) - zero) / (1.0 - zero)
                * (WIDTH - left - RIGHT)
        };
        drawing.text("title", (14.0, 18.0), Anchor::Start, &self.title);
        let mut x = 14.0;
        for (part, name) in self.parts.iter().enumerate() {
            drawing.rectangle(&class(part), (x, 34.0), (12.0, 12.0));
            drawing.text("legend", (x + 17.0, 44.0), Anchor::Start, name);
            x += 17.0 + text_width(name, 12.0) + 18.0;
        }
        for (value, text) in span.ticks(6).into_iter().filter(|(value, _)| *value >= 0.0) {
            drawing.line("grid", (x_of(value), TOP - 6.0), (x_of(value), bottom));
            drawing.text("tick", (x_of(value), bottom + 14.0), Anchor::Middle, &text);
        }
        drawing.text(
            "label",
            ((left + WIDTH - RIGHT) / 2.0, bottom + 34.0),
            Anchor::Middle,
            &self.label,
        );
        for (row, (name, parts)) in self.bars.iter().enumerate() {
            let y = TOP + row as f64 * (BAR + GAP);
            drawing.text("legend", (left - 8.0, y + BAR / 2.0 + 4.0), Anchor::End, name);
            let mut sum = 0.0;
            for (part, length) in
                parts.iter().enumerate().filter(|(_, length)| length.is_finite() && **length > 0.0)
            {
                drawing.rectangle(
                    &class(part),
                    (x_of(sum), y),
                    (x_of(sum + length) - x_of(sum), BAR),
                );
                sum += length;
            }
        }
        drawing.finish(&self.title, (WIDTH, bottom + BOTTOM))
    }
}

fn class(part: usize) -> String {
    format!("s{}", part % COLOURS.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_in_proportion() {
        let bars = Bars {
            title: "times".into(),
            label: "ms".into(),
            parts: vec!["forward".into(), "backward".into()],
            bars: vec![("a".into(), vec![1.0, 3.0]), ("b".into(), vec![2.0, 0.0])],
        };
        let svg = bars.to_svg();
        let widths: Vec<f64> = svg
            .lines()
            .filter(|line| line.contains("<rect") && line.contains(&format!("height=\"{BAR:.1}\"")))
            .map(|line| {
                line.split("width=\"")
                    .nth(1)
                    .and_then(|rest| rest.split('"').next())
                    .expect("a width")
                    .parse()
                    .expect("a number")
            })
            .collect();
        assert_eq!(widths.len(), 3, "{svg}");
        assert!(
            (widths[1] / widths[0] - 3.0).abs() < 0.01
                && (widths[2] / widths[0] - 2.0).abs() < 0.01,
            "{widths:?}"
        );
    }
}
