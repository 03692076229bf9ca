//! SVG elements as text, and the style sheet that makes them readable on light and dark
//! backgrounds.

use std::fmt::{Display, Write};

/// Colours of series, as pairs for light and dark backgrounds. People with most forms of colour
/// blindness can tell them apart (Okabe & Ito 2008).
pub(super) const COLOURS: [(&str, &str); 8] = [
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff9a4d"),
    ("#009e73", "#3ddbb0"),
    ("#b3478f", "#e59ccb"),
    ("#8a6d00", "#f0e442"),
    ("#2f9fd6", "#9ad6ff"),
    ("#5b5b5b", "#c8c8c8"),
    ("#a3001b", "#ff7d8e"),
];

/// Width of a character relative to the font size, roughly right for sans-serif text.
const CHARACTER_WIDTH: f64 = 0.56;

/// The approximate width of a text in pixels.
pub(super) fn text_width(text: &str, size: f64) -> f64 {
    text.chars().count() as f64 * size * CHARACTER_WIDTH
}

/// The text with all characters escaped that have a special meaning in XML.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Which point of a text its position refers to.
#[derive(Clone, Copy)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing that is built element by element.
#[derive(Default)]
pub(super) struct Drawing {
    elements: String,
}

impl Drawing {
    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.element(format_args!(
            r#"<line class="{class}" x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}"/>"#
        ));
    }

    pub fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.element(format_args!(r#"<polyline class="{class}" points="{}"/>"#, points.join(" ")));
    }

    /// A dot, with a `title` that appears when the pointer rests on it.
    pub fn dot(&mut self, class: &str, (x, y): (f64, f64), radius: f64, title: &str) {
        let title = escape(title);
        self.element(format_args!(r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius:.1}"><title>{title}</title></circle>"#));
    }

    /// A point with corners, with a `title` as that of a dot.
    pub fn polygon(&mut self, class: &str, corners: &[(f64, f64)], title: &str) {
        let corners: Vec<String> = corners.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let (corners, title) = (corners.join(" "), escape(title));
        self.element(format_args!(
            r#"<polygon class="{class}" points="{corners}"><title>{title}</title></polygon>"#
        ));
    }

    pub fn rectangle(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        self.element(format_args!(r#"<rect class="{class}" x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}"/>"#));
    }

    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let (anchor, text) = (anchor.name(), escape(text));
        self.element(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#
        ));
    }

    /// Text that runs from bottom to top.
    pub fn upright_text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let text = escape(text);
        self.element(format_args!(
            r#"<text class="{class}" x="{x:.1}" y="{y:.1}" text-anchor="middle" transform="rotate(-90 {x:.1} {y:.1})">{text}</text>"#
        ));
    }

    fn element(&mut self, element: impl Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.elements, "{element}");
    }

    /// The whole image, of this size in pixels, with a title for readers who cannot see it.
    pub fn finish(self, title: &str, (width, height): (f64, f64)) -> String {
        let (title, style) = (escape(title), style());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\" \
             role=\"img\" class=\"plot\">\n<title>{title}</title>\n<style>{style}</style>\n{}</svg>\n",
            self.elements
        )
    }
}

impl Anchor {
    fn name(self) -> &'static str {
        match self {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        }
    }
}

/// The style sheet. Every rule begins with `.plot`, so it affects nothing else on a page.
fn style() -> String {
    let mut sheet = String::from(
        ".plot{background:#fff;font-family:system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;max-width:100%;height:auto}\
         .plot text{fill:#24292f;font-size:12px}.plot .title{font-size:14px;font-weight:600}.plot .tick{fill:#57606a;font-size:11px}\
         .plot .frame{stroke:#8c959f;stroke-width:1;fill:none}.plot .grid{stroke:#d8dee4;stroke-width:1}\
         .plot polyline{fill:none;stroke-width:2;stroke-linejoin:round}.plot .error{stroke-width:1.2}.plot .dashed{stroke-dasharray:6 4}\
         .plot .p1{stroke-dasharray:12 3 2 3}.plot .p2{stroke-dasharray:2 3}.plot .p3{stroke-dasharray:14 3 2 3 2 3}",
    );
    let series = |sheet: &mut String,
                  prefix: &str,
                  pick: &dyn Fn(&(&'static str, &'static str)) -> &'static str| {
        for (index, pair) in COLOURS.iter().enumerate() {
            let colour = pick(pair);
            let _ = write!(
                sheet,
                "{prefix}.plot polyline.s{index},{prefix}.plot line.s{index}{{stroke:{colour}}}{prefix}.plot circle.s{index},{prefix}.plot polygon.s{index},{prefix}.plot rect.s{index}{{fill:{colour}}}"
            );
        }
    };
    series(&mut sheet, "", &|pair| pair.0);
    sheet.push_str(
        "@media (prefers-color-scheme:dark){.plot{background:#0d1117}.plot text{fill:#e6edf3}.plot .tick{fill:#9198a1}\
         .plot .frame{stroke:#656c76}.plot .grid{stroke:#2a313a}",
    );
    series(&mut sheet, "", &|pair| pair.1);
    sheet.push('}');
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_can_break_out() {
        assert_eq!(escape("a<b & \"c\">\u{1}"), "a&lt;b &amp; &quot;c&quot;&gt;\u{fffd}");
        let mut drawing = Drawing::default();
        drawing.text("tick", (1.0, 2.0), Anchor::Middle, "</svg>");
        let svg = drawing.finish("t", (10.0, 10.0));
        assert_eq!(svg.matches("</svg>").count(), 1);
    }
}
