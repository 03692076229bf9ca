//! Lines and points over two axes.

use super::axis::{Axis, Span};
use super::series::Series;
use super::svg::{Anchor, Drawing, text_width};
use crate::figures::tick;

/// Size of a chart in pixels.
const SIZE: (f64, f64) = (460.0, 320.0);
/// Space left of the frame for the numbers and the label of the axis.
const LEFT: f64 = 64.0;
const RIGHT: f64 = 16.0;
/// Space below the frame.
const BOTTOM: f64 = 46.0;
/// Height of the title, and of a row of the legend.
const TITLE: f64 = 26.0;
const LEGEND_ROW: f64 = 18.0;
const LEGEND_SWATCH: f64 = 32.0;

/// A titled pair of axes with series on them.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// What is shown.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// What is drawn; the first series lies below the others.
    pub series: Vec<Series>,
}

impl Chart {
    /// The chart as a complete SVG image.
    pub fn to_svg(&self) -> String {
        figure(&self.title, std::slice::from_ref(self), 1)
    }

    /// Draws into a frame of the usual size with its upper left corner at `origin`, and reserves
    /// `legend_rows` rows for the legend.
    fn draw(
        &self,
        drawing: &mut Drawing,
        origin: (f64, f64),
        legend: &[Vec<usize>],
        legend_rows: usize,
    ) {
        let top = origin.1 + TITLE + LEGEND_ROW * legend_rows as f64 + 8.0;
        let frame = Frame {
            left: origin.0 + LEFT,
            right: origin.0 + SIZE.0 - RIGHT,
            top,
            bottom: origin.1 + SIZE.1 + LEGEND_ROW * legend_rows as f64 - BOTTOM,
            x: Span::of(
                self.x.scale,
                self.series.iter().flat_map(|series| series.points.iter().map(|(x, _)| *x)),
            ),
            y: Span::of(self.y.scale, self.series.iter().flat_map(Series::heights)),
        };
        drawing.text("title", (origin.0 + LEFT, origin.1 + 18.0), Anchor::Start, &self.title);
        self.draw_legend(drawing, (frame.left, origin.1 + TITLE + 8.0), legend);
        self.draw_axes(drawing, &frame);
        for series in &self.series {
            draw_series(drawing, &frame, series);
        }
    }

    fn draw_axes(&self, drawing: &mut Drawing, frame: &Frame) {
        for (value, text) in frame.x.ticks(6) {
            let Some(x) = frame.x_of(value) else { continue };
            drawing.line("grid", (x, frame.top), (x, frame.bottom));
            drawing.text("tick", (x, frame.bottom + 16.0), Anchor::Middle, &text);
        }
        for (value, text) in frame.y.ticks(5) {
            let Some(y) = frame.y_of(value) else { continue };
            drawing.line("grid", (frame.left, y), (frame.right, y));
            drawing.text("tick", (frame.left - 6.0, y + 4.0), Anchor::End, &text);
        }
        drawing.rectangle(
            "frame",
            (frame.left, frame.top),
            (frame.right - frame.left, frame.bottom - frame.top),
        );
        drawing.text(
            "label",
            ((frame.left + frame.right) / 2.0, frame.bottom + 36.0),
            Anchor::Middle,
            &self.x.label,
        );
        drawing.upright_text(
            "label",
            (frame.left - LEFT + 14.0, (frame.top + frame.bottom) / 2.0),
            &self.y.label,
        );
    }

    /// The rows of the legend, as indices of series that fit side by side; empty for a single
    /// series, which the title describes.
    fn legend(&self) -> Vec<Vec<usize>> {
        let mut named: Vec<usize> = Vec::new();
        for (index, series) in self.series.iter().enumerate() {
            if !series.name.is_empty()
                && !named.iter().any(|other| self.series[*other].name == series.name)
            {
                named.push(index);
            }
        }
        if named.len() < 2 {
            return Vec::new();
        }
        let (mut rows, mut used) = (vec![Vec::new()], 0.0);
        for index in named {
            let width = legend_width(&self.series[index].name);
            if used + width > SIZE.0 - LEFT - RIGHT && used > 0.0 {
                rows.push(Vec::new());
                used = 0.0;
            }
            rows.last_mut().expect("there is a first row").push(index);
            used += width;
        }
        rows
    }

    fn draw_legend(&self, drawing: &mut Drawing, (left, top): (f64, f64), rows: &[Vec<usize>]) {
        for (row, indices) in rows.iter().enumerate() {
            let (mut x, y) = (left, top + LEGEND_ROW * row as f64 + 4.0);
            for series in indices.iter().map(|index| &self.series[*index]) {
                if let Some(line) = series.line_class() {
                    drawing.polyline(&line, &[(x, y), (x + LEGEND_SWATCH - 4.0, y)]);
                }
                if series.has_dots() {
                    series.point(drawing, (x + (LEGEND_SWATCH - 4.0) / 2.0, y), &series.name);
                }
                drawing.text("legend", (x + LEGEND_SWATCH, y + 4.0), Anchor::Start, &series.name);
                x += legend_width(&series.name);
            }
        }
    }
}

fn legend_width(name: &str) -> f64 {
    LEGEND_SWATCH + text_width(name, 12.0) + 14.0
}

/// Where values lie on the image.
struct Frame {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x: Span,
    y: Span,
}

impl Frame {
    fn x_of(&self, value: f64) -> Option<f64> {
        self.x
            .place(value)
            .filter(|place| (0.0..=1.0).contains(place))
            .map(|place| self.left + place * (self.right - self.left))
    }

    fn y_of(&self, value: f64) -> Option<f64> {
        self.y
            .place(value)
            .filter(|place| (0.0..=1.0).contains(place))
            .map(|place| self.bottom - place * (self.bottom - self.top))
    }
}

fn draw_series(drawing: &mut Drawing, frame: &Frame, series: &Series) {
    let placed = |(x, y): (f64, f64)| Some((frame.x_of(x)?, frame.y_of(y)?));
    // A value that cannot be placed breaks the line rather than being skipped over.
    let pieces: Vec<Vec<(f64, f64)>> = series
        .points
        .iter()
        .map(|point| placed(*point))
        .collect::<Vec<_>>()
        .split(Option::is_none)
        .map(|piece| piece.iter().flatten().copied().collect())
        .collect();
    if let Some(line) = series.line_class() {
        pieces
            .iter()
            .filter(|piece| piece.len() > 1)
            .for_each(|piece| drawing.polyline(&line, piece));
    }
    for ((x, y), error) in series.points.iter().zip(&series.errors) {
        if let (Some(x), Some(low), Some(high)) =
            (frame.x_of(*x), frame.y_of(y - error), frame.y_of(y + error))
        {
            let class = format!("{} error", series.colour_class());
            drawing.line(&class, (x, low), (x, high));
            [low, high].iter().for_each(|y| drawing.line(&class, (x - 4.0, *y), (x + 4.0, *y)));
        }
    }
    if series.has_dots() {
        for point in &series.points {
            if let Some(place) = placed(*point) {
                let title = format!("{}: {}, {}", series.name, tick(point.0), tick(point.1));
                series.point(drawing, place, &title);
            }
        }
    }
}

/// Charts side by side, `columns` to a row, as one SVG image.
pub fn figure(title: &str, charts: &[Chart], columns: usize) -> String {
    let mut drawing = Drawing::default();
    let columns = columns.clamp(1, charts.len().max(1));
    let mut top = 0.0;
    for row in charts.chunks(columns) {
        let legends: Vec<Vec<Vec<usize>>> = row.iter().map(Chart::legend).collect();
        // All charts in a row get the same number of legend rows, so that their frames are level.
        let legend_rows = legends.iter().map(Vec::len).max().unwrap_or(0);
        for (column, (chart, legend)) in row.iter().zip(&legends).enumerate() {
            chart.draw(&mut drawing, (column as f64 * SIZE.0, top), legend, legend_rows);
        }
        top += SIZE.1 + LEGEND_ROW * legend_rows as f64 + 8.0;
    }
    drawing.finish(title, (columns as f64 * SIZE.0, top))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Mark;
    use std::collections::BTreeSet;

    fn chart() -> Chart {
        let lines = vec![
            Series::new(
                "spectral",
                Mark::LineWithDots,
                0,
                vec![(1e-3, 2.0), (1e-2, 1.9), (1e-1, f64::NAN), (1.0, 2.5)],
            )
            .with_errors(vec![0.1; 4]),
            Series::new("dense <AdamW>", Mark::Dashed, 1, vec![(1e-3, 2.2), (1.0, 2.1)]),
            Series::new("Muon", Mark::LineWithDots, 9, vec![(1e-3, 2.3), (1.0, 2.2)]),
        ];
        Chart {
            title: "loss".into(),
            x: Axis::log("learning rate"),
            y: Axis::linear("validation loss (nats)"),
            series: lines,
        }
    }

    #[test]
    fn every_element_is_closed_and_every_series_named() {
        let svg = chart().to_svg();
        for name in ["spectral", "dense &lt;AdamW&gt;", "learning rate", "validation loss (nats)"] {
            assert!(svg.contains(name), "{name} in {svg}");
        }
        for element in ["svg", "text", "style", "circle", "polygon"] {
            let opened = svg.matches(&format!("<{element} ")).count()
                + svg.matches(&format!("<{element}>")).count();
            assert_eq!(opened, svg.matches(&format!("</{element}>")).count(), "{element}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    /// Each has a line and a point of its own, by colour or by shape, in the legend as in the frame.
    #[test]
    fn no_two_of_thirty_two_methods_look_alike() {
        let method = |index: usize| {
            let points = vec![(1.0, index as f64), (2.0, index as f64)];
            Series::new(format!("method {index}"), Mark::LineWithDots, index, points)
        };
        let svg = Chart { series: (0..32).map(method).collect(), ..chart() }.to_svg();
        let attribute = |line: &str, name: &str| {
            let rest = line.split_once(&format!("{name}=\"")).map(|(_, rest)| rest)?;
            Some(rest.split('"').next().expect("an attribute").to_owned())
        };
        let lines: Vec<String> = svg
            .lines()
            .filter(|line| line.starts_with("<polyline"))
            .filter_map(|line| attribute(line, "class"))
            .collect();
        // A shape by the number of its corners, and of the heights at which they are: a square has
        // four at two, a diamond four at three.
        let shape = |line: &str| {
            let corners = attribute(line, "points").unwrap_or_default();
            let heights: Vec<&str> =
                corners.split(' ').filter_map(|corner| Some(corner.split_once(',')?.1)).collect();
            (heights.len(), heights.iter().collect::<BTreeSet<_>>().len())
        };
        let points: Vec<(String, (usize, usize))> = svg
            .lines()
            .filter(|line| line.starts_with("<circle") || line.starts_with("<polygon"))
            .filter_map(|line| Some((attribute(line, "class")?, shape(line))))
            .collect();
        // The legend comes first, then a line and two points of each method.
        assert_eq!((lines.len(), points.len()), (64, 96));
        assert_eq!(lines[..32], lines[32..]);
        for index in 0..32 {
            assert_eq!(points[32 + 2 * index], points[index], "method {index}");
        }
        assert_eq!(lines[..32].iter().collect::<BTreeSet<_>>().len(), 32);
        assert_eq!(points[..32].iter().collect::<BTreeSet<_>>().len(), 32);
        // What the classes say differs, too, and from the dashes of bounds and references.
        let rules = |selector: &str, property: &str| {
            let rule = format!("{selector}{{{property}:");
            let rest = svg.split(rule.as_str()).skip(1);
            rest.map(|rest| rest.split('}').next().expect("a value")).collect::<Vec<_>>()
        };
        let dashes = ["dashed", "p1", "p2", "p3"].map(|class| {
            let found = rules(&format!(".plot .{class}"), "stroke-dasharray");
            assert_eq!(found.len(), 1, "{class}");
            found[0].to_owned()
        });
        assert_eq!(BTreeSet::from(dashes).len(), 4);
        let colours = (0..8).map(|colour| rules(&format!(".plot line.s{colour}"), "stroke"));
        let colours: Vec<Vec<&str>> = colours.collect();
        for scheme in [0, 1] {
            let of_scheme: BTreeSet<&str> = colours.iter().map(|pair| pair[scheme]).collect();
            assert_eq!(of_scheme.len(), 8, "{colours:?}");
        }
    }

    #[test]
    fn a_missing_value_breaks_the_line() {
        let svg = chart().to_svg();
        // The two points before the gap make a line; the one after it is only a dot. Then come the
        // two swatches of the legend and the dashed line.
        assert_eq!(svg.matches("<polyline class=\"s0\"").count(), 2);
        assert_eq!(svg.matches("<polyline class=\"s1 dashed\"").count(), 2);
        // Three dots that can be placed, and the one in the legend.
        assert_eq!(svg.matches("<circle class=\"s0\"").count(), 4);
    }

    #[test]
    fn a_chart_without_points_is_an_empty_frame() {
        let empty = Chart { series: Vec::new(), ..chart() };
        assert!(empty.to_svg().contains("class=\"frame\""));
    }

    #[test]
    fn frames_of_a_row_are_level() {
        let alone = Chart { series: chart().series[..1].to_vec(), ..chart() };
        let svg = figure("two", &[chart(), alone], 2);
        let tops: Vec<&str> = svg
            .lines()
            .filter(|line| line.contains("class=\"frame\""))
            .map(|line| line.split("y=\"").nth(1).expect("a y"))
            .map(|rest| rest.split('"').next().expect("a number"))
            .collect();
        assert_eq!(tops.len(), 2);
        assert_eq!(tops[0], tops[1]);
    }
}
