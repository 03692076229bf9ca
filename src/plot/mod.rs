//! Plots as SVG that are readable on light and dark backgrounds, both inline in a page and as a
//! separate file.
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
