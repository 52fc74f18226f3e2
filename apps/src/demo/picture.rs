//! The demo's picture: throughput and latency over time, with the fault marked.

use std::ops::Range;

use indicatif::HumanFloatCount;
use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::{
    measure::{Acknowledged, Latency, Span},
    summary::{Nanos, Summary},
};

const SIZE: (u32, u32) = (1000, 640);
const TEXT: RGBColor = RGBColor(51, 51, 51);
const GRID: RGBColor = RGBColor(225, 225, 225);
const THROUGHPUT: RGBColor = RGBColor(31, 119, 180);
const MEDIAN: RGBColor = RGBColor(44, 140, 60);
const TAIL: RGBColor = RGBColor(214, 96, 10);
const FAULT: RGBColor = RGBColor(190, 30, 45);

/// What a point in time of the picture stands for at least, and how many there are at most.
const SPAN_NS_MIN: u64 = 100_000_000;
const SPANS_MAX: u64 = 100;

/// Draws the run as an SVG.
pub(super) fn draw(summary: &Summary, acknowledged: &Acknowledged) -> String {
    let time_ns = &summary.whole.time_ns;
    let count = ((time_ns.end - time_ns.start) / SPAN_NS_MIN).clamp(1, SPANS_MAX);
    let spans = acknowledged.spans(time_ns, count);
    let mut svg = String::new();
    paint(&mut svg, summary, &spans).expect("drawing into memory does not fail");
    svg
}

type Painted = Result<(), DrawingAreaErrorKind<std::io::Error>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn paint(svg: &mut String, summary: &Summary, spans: &[Span]) -> Painted {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let observed = &summary.observed;
    let title = format!(
        "HovercRaft demo: mode {}, {} replicas, {} callers",
        observed.mode, observed.replicas, observed.clients,
    );
    root.draw(&Text::new(title, (24, 18), font(20)))?;
    let (_, rest) = root.split_vertically(48);
    let (upper, lower) = rest.split_vertically(290);
    paint_throughput(&upper, summary, spans)?;
    paint_latency(&lower, summary, spans)?;
    root.present()
}

fn paint_throughput(area: &Area<'_>, summary: &Summary, spans: &[Span]) -> Painted {
    // The space above the highest point is for the names of the events.
    const HEADROOM: f64 = 1.4;
    let highest = spans.iter().map(Span::per_second).max().unwrap_or(0).max(1) as f64;
    let top = highest * HEADROOM;
    let mut chart = frame(area).build_cartesian_2d(times(summary), 0.0..top)?;
    chart.draw_series(outage(summary, 0.0..top))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(TEXT)
        .label_style(font(14))
        .y_desc("requests/s")
        .y_labels(6)
        .y_label_formatter(&|value| HumanFloatCount(*value).to_string())
        .x_label_formatter(&|seconds| format!("{seconds} s"))
        .draw()?;
    // A step for each span, because it is a count over the span.
    let steps = spans.iter().flat_map(|span| {
        let Range { start, end } = seconds(&span.time_ns);
        let height = span.per_second() as f64;
        [(start, height), (end, height)]
    });
    let series = AreaSeries::new(steps, 0.0, THROUGHPUT.mix(0.2));
    chart.draw_series(series.border_style(THROUGHPUT.stroke_width(2)))?;
    chart.draw_series(events(summary, 0.0..top))?;
    chart.draw_series(names(summary, top))?;
    Ok(())
}

fn paint_latency(area: &Area<'_>, summary: &Summary, spans: &[Span]) -> Painted {
    let latencies = || spans.iter().filter_map(|span| span.latency);
    let lowest = latencies().map(|it| it.p50_ns).min().unwrap_or(100_000);
    let highest = latencies().map(|it| it.p99_ns).max().unwrap_or(1_000_000);
    let range = millis(lowest) * 0.7..millis(highest) * 2.0;
    let axes = frame(area).build_cartesian_2d(times(summary), range.clone().log_scale());
    let mut chart = axes?;
    chart.draw_series(outage(summary, range.clone()))?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(TEXT)
        .label_style(font(14))
        .y_desc("latency")
        .y_label_formatter(&|millis| format!("{millis} ms"))
        .x_label_formatter(&|seconds| format!("{seconds} s"))
        .draw()?;
    chart.draw_series(events(summary, range))?;
    for (name, color) in [("p99", TAIL), ("p50", MEDIAN)] {
        let of = |latency: &Latency| if name == "p99" { latency.p99_ns } else { latency.p50_ns };
        // Where there was no service there is no latency, and the line is broken.
        for (number, line) in spans.split(|span| span.latency.is_none()).enumerate() {
            let points = line.iter().filter_map(|span| {
                let Range { start, end } = seconds(&span.time_ns);
                let latency = span.latency.as_ref()?;
                Some((f64::midpoint(start, end), millis(of(latency))))
            });
            let series = chart.draw_series(LineSeries::new(points, color.stroke_width(2)))?;
            if number == 0 {
                let sample =
                    move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
                series.label(name).legend(sample);
            }
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(font(14))
        .border_style(TRANSPARENT)
        .background_style(WHITE.mix(0.8))
        .draw()
}

fn frame<'a, 'b>(area: &'a Area<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut frame = ChartBuilder::on(area);
    frame.margin(8).margin_right(24).x_label_area_size(28).y_label_area_size(90);
    frame
}

/// The time without service, over the whole height.
fn outage(summary: &Summary, height: Range<f64>) -> Option<Rectangle<(f64, f64)>> {
    let Range { start, end } = seconds(summary.outage.as_ref()?);
    let corners = [(start, height.start), (end, height.end)];
    Some(Rectangle::new(corners, FAULT.mix(0.25).filled()))
}

/// A line over the whole height when the leader is killed, and when it is started again.
fn events(summary: &Summary, height: Range<f64>) -> Vec<PathElement<(f64, f64)>> {
    let fault = summary.observed.timeline.fault.iter();
    let switch = summary.observed.timeline.switch_ns.iter();
    let times = fault.flat_map(|fault| [(fault.killed_ns, FAULT), (fault.restarted_ns, MEDIAN)]);
    let times = switch.flat_map(|(killed, back)| [(*killed, FAULT), (*back, MEDIAN)]).chain(times);
    let line = |(time, color): (u64, RGBColor)| {
        let time = time as f64 / 1e9;
        PathElement::new([(time, height.start), (time, height.end)], color.stroke_width(1))
    };
    times.map(line).collect()
}

/// The names of these, and the time without service, below the top.
fn names(summary: &Summary, top: f64) -> Vec<Text<'static, (f64, f64), String>> {
    let Some(fault) = &summary.observed.timeline.fault else { return Vec::new() };
    let mut lines = vec![
        (fault.killed_ns, 0.98, FAULT, format!("leader (replica {}) killed", fault.node)),
        (fault.restarted_ns, 0.98, MEDIAN, format!("replica {} started again", fault.node)),
    ];
    if let Some((killed_ns, _)) = summary.observed.timeline.switch_ns {
        lines.push((killed_ns, 0.86, FAULT, "switch killed".to_owned()));
    }
    if let Some(outage) = &summary.outage {
        let text = format!("{} without service", Nanos(outage.end - outage.start));
        lines.push((fault.killed_ns, 0.90, FAULT, text));
    }
    let whole = summary.whole.time_ns.end as f64 / 1e9;
    let text = |(time, height, color, text): (u64, f64, RGBColor, String)| {
        let position = (time as f64 / 1e9 + whole * 0.006, top * height);
        let style = TextStyle { color: color.to_backend_color(), ..font(14) };
        Text::new(text, position, style)
    };
    lines.into_iter().map(text).collect()
}

fn font(size: u32) -> TextStyle<'static> {
    let style = ("sans-serif", size).into_text_style(&SIZE);
    style.color(&TEXT).pos(Pos::new(HPos::Left, VPos::Top))
}

fn times(summary: &Summary) -> Range<f64> {
    seconds(&summary.whole.time_ns)
}

fn seconds(time_ns: &Range<u64>) -> Range<f64> {
    time_ns.start as f64 / 1e9..time_ns.end as f64 / 1e9
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::summary::samples;

    #[test]
    fn the_fault_and_the_time_without_service_are_in_the_picture() {
        let (summary, acknowledged) = samples::with_fault();
        let svg = draw(&summary, &acknowledged);
        for text in [
            "mode hovercraft, 3 replicas, 32 callers",
            "leader (replica 2) killed",
            "replica 2 started again",
            "250 ms without service",
            "p99",
            "requests/s",
        ] {
            assert!(svg.contains(text), "{text} is not in the picture");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn a_run_without_anything_can_be_drawn() {
        let (summary, acknowledged) = samples::nothing();
        assert!(draw(&summary, &acknowledged).contains("without service"));
    }
}
