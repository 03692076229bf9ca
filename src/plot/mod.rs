//! Plots as SVG: one text that reads in light and dark, inline in a page or as a file of its own.
//!
//! ```text
//! axis     a scale, its range and its ticks
//! bars     stacked bars
//! chart    lines and points over two axes; several charts side by side as one figure
//! svg      elements, escaping, the style sheet
//! ```

mod axis;
mod bars;
mod chart;
mod svg;

pub use axis::{Axis, Scale};
pub use bars::Bars;
pub use chart::{Chart, Mark, Series, figure};
pub use svg::escape;
