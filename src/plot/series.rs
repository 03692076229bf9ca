//! Points that belong together, and what tells them from others.

use super::svg::{COLOURS, Drawing};

/// Half the height of a point in pixels.
const POINT: f64 = 3.5;

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line from point to point.
    Line,
    /// A dashed line, for a fit, a bound or a reference.
    Dashed,
    /// Dots only.
    Dots,
    /// A line with dots at its points.
    LineWithDots,
}

/// Points that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// (x, y), in the order in which a line connects them.
    pub points: Vec<(f64, f64)>,
    /// Half the height of an error bar at each point; empty for none.
    pub errors: Vec<f64>,
    /// How it is drawn.
    pub mark: Mark,
    /// Index of its look; series of one kind share one. Each of the first eight has a colour of its
    /// own. The next eight have the same colours with another pattern of the line and another shape
    /// of the points, and so on; the 33rd looks like the first.
    pub look: usize,
}

impl Series {
    /// A series without error bars.
    pub fn new(name: impl Into<String>, mark: Mark, look: usize, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, errors: Vec::new(), mark, look }
    }

    /// The same series with error bars of these half heights.
    pub fn with_errors(self, errors: Vec<f64>) -> Self {
        Self { errors, ..self }
    }

    /// The class that has its colour.
    pub(super) fn colour_class(&self) -> String {
        format!("s{}", self.look % COLOURS.len())
    }

    /// The classes of its line, if it has one.
    pub(super) fn line_class(&self) -> Option<String> {
        let colour = self.colour_class();
        match (self.mark, self.pattern()) {
            (Mark::Dots, _) => None,
            (Mark::Dashed, _) => Some(format!("{colour} dashed")),
            (Mark::Line | Mark::LineWithDots, 0) => Some(colour),
            (Mark::Line | Mark::LineWithDots, pattern) => Some(format!("{colour} p{pattern}")),
        }
    }

    pub(super) fn has_dots(&self) -> bool {
        matches!(self.mark, Mark::Dots | Mark::LineWithDots) || self.points.len() == 1
    }

    /// Draws one of its points at this place of the image.
    pub(super) fn point(&self, drawing: &mut Drawing, place: (f64, f64), title: &str) {
        const SQUARE: &[(f64, f64)] = &[(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)];
        const TRIANGLE: &[(f64, f64)] = &[(0.0, -1.4), (1.3, 1.0), (-1.3, 1.0)];
        const DIAMOND: &[(f64, f64)] = &[(0.0, -1.6), (1.3, 0.0), (0.0, 1.6), (-1.3, 0.0)];
        let class = self.colour_class();
        let corners = match self.pattern() {
            0 => return drawing.dot(&class, place, POINT, title),
            1 => SQUARE,
            2 => TRIANGLE,
            _ => DIAMOND,
        };
        let corner = |(x, y): &(f64, f64)| (place.0 + POINT * x, place.1 + POINT * y);
        drawing.polygon(&class, &corners.iter().map(corner).collect::<Vec<_>>(), title);
    }

    /// Values that the vertical axis has to hold.
    pub(super) fn heights(&self) -> impl Iterator<Item = f64> + '_ {
        let errors = self.errors.iter().copied().chain(std::iter::repeat(0.0));
        self.points.iter().zip(errors).flat_map(|((_, y), error)| [y - error, y + error])
    }

    /// How often all colours were taken before it, up to three times: 0 is a whole line with round
    /// points.
    fn pattern(&self) -> usize {
        self.look / COLOURS.len() % 4
    }
}
