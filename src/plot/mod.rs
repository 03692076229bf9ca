//! Plots as SVG that are readable on light and dark backgrounds, both inline in a page and as a
//! separate file.
//!
//! ```text
//! axis       a scale, its range and its ticks
//! bars       stacked bars
//! chart      lines and points over two axes; several charts side by side as one figure
//! power_law  y = a xᵇ through points
//! series     points that belong together: their colour, line and shape
//! svg        elements, escaping, the style sheet
//! ```

mod axis;
mod bars;
mod chart;
mod power_law;
mod series;
mod svg;

pub use axis::{Axis, Scale};
pub use bars::Bars;
pub use chart::{Chart, figure};
pub use power_law::PowerLaw;
pub use series::{Mark, Series};
pub use svg::escape;
