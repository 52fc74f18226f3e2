//! Pictures: SVG by plotters, and the same as PNG by resvg, with a font that is compiled in.

use std::{fs, io, path::Path};

use plotters::prelude::*;
use resvg::{tiny_skia, usvg};

use crate::run::{Failover, Found};

const SIZE: (u32, u32) = (900, 480);
const COLOURS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 96, 10),
    RGBColor(44, 140, 60),
    RGBColor(148, 103, 189),
    RGBColor(190, 30, 45),
    RGBColor(90, 90, 90),
];

/// Points in order, and what they are.
#[derive(Debug, Clone)]
pub struct Line {
    /// For the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
    /// Only the points: figures of somebody else.
    pub dots: bool,
}

impl Line {
    /// Points that are joined.
    pub fn new(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, dots: false }
    }

    /// Points that are not.
    pub fn dots(name: impl Into<String>, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), points, dots: true }
    }
}

/// What a picture says beside its lines.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Above it.
    pub title: &'a str,
    /// Below it.
    pub x: &'a str,
    /// Beside it.
    pub y: &'a str,
}

/// Lines over each other, from the origin.
pub fn lines(labels: Labels<'_>, lines: &[Line]) -> String {
    let top = |of: fn(&(f64, f64)) -> f64| {
        let largest = lines.iter().flat_map(|line| &line.points).map(of).fold(0.0, f64::max);
        if largest > 0.0 { largest * 1.08 } else { 1.0 }
    };
    let (x_max, y_max) = (top(|point| point.0), top(|point| point.1));
    let mut svg = String::new();
    paint(&mut svg, labels, lines, x_max, y_max).expect("drawing into memory does not fail");
    svg
}

type Painted = Result<(), DrawingAreaErrorKind<io::Error>>;

fn paint(svg: &mut String, labels: Labels<'_>, lines: &[Line], x_max: f64, y_max: f64) -> Painted {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(labels.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(78)
        .build_cartesian_2d(0.0..x_max, 0.0..y_max)?;
    chart
        .configure_mesh()
        .x_desc(labels.x)
        .y_desc(labels.y)
        .x_label_formatter(&|value| short(*value))
        .y_label_formatter(&|value| short(*value))
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .draw()?;
    for (place, line) in lines.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let points = line.points.iter().copied();
        let dots = points.clone().map(move |point| Circle::new(point, 4, colour.filled()));
        let drawn = if line.dots {
            chart.draw_series(dots)?
        } else {
            if line.points.len() <= 24 {
                chart.draw_series(dots)?;
            }
            chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?
        };
        drawn
            .label(&line.name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 2), (x + 16, y + 2)], colour.filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()
}

/// A number that fits an axis.
fn short(value: f64) -> String {
    let (scaled, unit) = match value.abs() {
        v if v >= 1e6 => (value / 1e6, " M"),
        v if v >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = usize::from(scaled.fract() != 0.0);
    format!("{scaled:.digits$}{unit}")
}

/// Throughput and p99, as the paper draws its figures.
pub fn throughput_and_p99(title: &str, found: &Found) -> String {
    let points = found.points.iter().filter(|point| point.p99_us <= 8.0 * found.slo_us);
    let points = points.map(|point| (point.achieved_per_s, point.p99_us)).collect();
    let right = found.points.iter().map(|point| point.achieved_per_s).fold(1.0, f64::max);
    let bound = vec![(0.0, found.slo_us), (right, found.slo_us)];
    let labels = Labels { title, x: "requests/s achieved", y: "p99, µs" };
    lines(labels, &[Line::dots("tried", points), Line::new("bound on p99", bound)])
}

/// The share of requests that took longer, over the latency.
pub fn latency_distribution(title: &str, histogram_ns: &[(u64, u64)]) -> String {
    let total: u64 = histogram_ns.iter().map(|(_, count)| count).sum();
    let mut seen = 0;
    let points = histogram_ns.iter().map(|(value, count)| {
        seen += count;
        (*value as f64 / 1000.0, 100.0 * seen as f64 / total.max(1) as f64)
    });
    // The last thousandth would squeeze all the rest together.
    let points: Vec<_> = points.take_while(|(_, share)| *share <= 99.9).collect();
    let labels = Labels { title, x: "latency, µs (up to p99.9)", y: "% of the requests" };
    lines(labels, &[Line::new("took at most", points)])
}

/// Throughput over time, with the fault.
pub fn failover(title: &str, offered_per_s: f64, run: &Failover) -> String {
    let answered: Vec<_> =
        run.slices.iter().map(|slice| (slice.at_s, slice.answered_per_s)).collect();
    let top = answered.iter().map(|point| point.1).fold(offered_per_s, f64::max);
    let end = run.slices.last().map_or(1.0, |slice| slice.at_s);
    let labels = Labels { title, x: "seconds", y: "requests/s" };
    let lines_of = [
        Line::new("answered", answered),
        Line::new("offered", vec![(0.0, offered_per_s), (end, offered_per_s)]),
        Line::new("the leader is killed", vec![(run.killed_at_s, 0.0), (run.killed_at_s, top)]),
    ];
    lines(labels, &lines_of)
}

/// Writes a picture to `path` as SVG, and beside it as PNG.
pub fn write(path: &Path, svg: &str) -> io::Result<()> {
    fs::write(path, svg)?;
    fs::write(path.with_extension("png"), png(svg).map_err(io::Error::other)?)
}

fn png(svg: &str) -> Result<Vec<u8>, String> {
    let mut options = usvg::Options::default();
    let fonts = options.fontdb_mut();
    fonts.load_font_data(dejavu::sans::regular().to_vec());
    fonts.set_sans_serif_family("DejaVu Sans");
    let tree = usvg::Tree::from_str(svg, &options).map_err(|error| error.to_string())?;
    let mut pixels =
        tiny_skia::Pixmap::new(SIZE.0, SIZE.1).ok_or("a picture has a size above zero")?;
    resvg::render(&tree, tiny_skia::Transform::identity(), &mut pixels.as_mut());
    pixels.encode_png().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_becomes_an_svg_and_a_png_with_text_in_it() {
        let labels = Labels { title: "a title", x: "x", y: "y" };
        let with = |title| {
            let labels = Labels { title, ..labels };
            lines(labels, &[Line::new("one", vec![(0.0, 1.0), (2.0, 30_000.0)])])
        };
        let svg = with("a title");
        assert!(svg.contains("a title") && svg.contains("30 k"), "{svg}");
        let picture = png(&svg).expect("a picture");
        assert!(picture.starts_with(b"\x89PNG"));
        assert_ne!(picture, png(&with("another")).expect("a picture"), "no text was drawn");
    }

    #[test]
    fn nothing_to_draw_is_an_empty_picture() {
        let labels = Labels { title: "t", x: "x", y: "y" };
        assert!(lines(labels, &[]).contains("<svg"));
    }
}
