//! The pictures of the report, as SVG.

use serde_json::Value;

use super::{
    TrendLine,
    tables::{pace, text, title},
};
use crate::draw::{Labels, Line, lines};

/// A point of each run, joined by mode, over the number of replicas: the scaling that the leader's
/// work shows even where all replicas share two cores.
pub(super) fn runs(runs: &[Value]) -> Vec<String> {
    let mut pictures = Vec::new();
    let mut groups: Vec<(String, Vec<&Value>)> = Vec::new();
    for run in runs {
        let group = format!("{}, {}", title(run), pace(run));
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, members)) => members.push(run),
            None => groups.push((group, vec![run])),
        }
    }
    for (group, members) in &groups {
        let sizes: std::collections::BTreeSet<_> =
            members.iter().filter_map(|run| run["replicas"].as_u64()).filter(|n| *n > 1).collect();
        if sizes.len() > 1 {
            pictures.push(over_replicas(group, members));
        }
    }
    let curves: Vec<_> = runs.iter().filter_map(curve).collect();
    if !curves.is_empty() {
        let labels = Labels {
            title: "Throughput and p99, from the searches for the highest throughput",
            x: "requests/s achieved",
            y: "p99, µs",
        };
        pictures.push(lines(labels, &curves));
    }
    pictures
}

fn over_replicas(group: &str, members: &[&Value]) -> String {
    let mut drawn: Vec<Line> = Vec::new();
    for run in members {
        let fields = [
            ("leader, bytes out", &run["leader"]["bytes_out_per_op"]),
            ("follower, bytes out", &run["follower"]["bytes_out_per_op"]),
        ];
        for (what, value) in fields {
            let name = format!("{}: {what}", text(&run["mode"]));
            let (Some(x), Some(y)) = (run["replicas"].as_f64(), value.as_f64()) else { continue };
            match drawn.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push((x, y)),
                None => drawn.push(Line::new(name, vec![(x, y)])),
            }
        }
    }
    for line in &mut drawn {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    let title = format!("A request over the number of replicas: {group}");
    lines(Labels { title: &title, x: "replicas", y: "bytes a request" }, &drawn)
}

fn curve(run: &Value) -> Option<Line> {
    let found = &run["max_under_slo"];
    let slo = found["slo_us"].as_f64()?;
    let points = found["points"]
        .as_array()?
        .iter()
        .filter_map(|point| Some((point["achieved_per_s"].as_f64()?, point["p99_us"].as_f64()?)));
    let points: Vec<_> = points.filter(|point| point.1 <= 4.0 * slo).collect();
    let name = format!("{}, {}, {}", title(run), text(&run["mode"]), text(&run["replicas"]));
    (!points.is_empty()).then(|| Line::dots(name, points))
}

pub(super) fn failovers(runs: &[Value]) -> Vec<String> {
    let picture = |run: &Value| {
        let failover = &run["failover"];
        let points = failover["slices"]
            .as_array()?
            .iter()
            .filter_map(|slice| Some((slice["at_s"].as_f64()?, slice["answered_per_s"].as_f64()?)));
        let points: Vec<_> = points.collect();
        let (killed, offered) = (failover["killed_at_s"].as_f64()?, run["offered_per_s"].as_f64()?);
        let labels = Labels { title: "The leader is killed", x: "seconds", y: "requests/s" };
        let fault = Line::new("the leader is killed", vec![(killed, 0.0), (killed, offered)]);
        Some(lines(labels, &[Line::new("answered", points), fault]))
    };
    runs.iter().filter_map(picture).collect()
}

pub(super) fn peers(peers: &[Value]) -> Vec<String> {
    let mut pictures = Vec::new();
    for file in peers {
        let mut drawn: Vec<Line> = Vec::new();
        for row in file["rows"].as_array().into_iter().flatten() {
            let name = text(&row["system"]);
            let one_each = row["clients"] == row["outstanding"];
            let (Some(x), Some(y)) = (row["clients"].as_f64(), row["ops_per_s"].as_f64()) else {
                continue;
            };
            match drawn.iter_mut().find(|line| line.name == name) {
                Some(line) if one_each => line.points.push((x, y)),
                None if one_each => drawn.push(Line::new(name, vec![(x, y)])),
                _ => {}
            }
        }
        let labels =
            Labels { title: "Clients with one request each", x: "clients", y: "operations/s" };
        pictures.push(lines(labels, &drawn));
    }
    pictures
}

pub(super) fn models(models: &[Value]) -> Vec<String> {
    let mut pictures = Vec::new();
    for figure in models.iter().filter_map(|model| model["figures"].as_array()).flatten() {
        let (mut drawn, mut paper) = (Vec::<Line>::new(), Vec::new());
        for bar in figure["bars"].as_array().into_iter().flatten() {
            let (Some(x), Some(y)) = (bar["x"].as_f64(), bar["per_s"].as_f64()) else { continue };
            let name = text(&bar["name"]);
            match drawn.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push((x, y)),
                None => drawn.push(Line::new(name, vec![(x, y)])),
            }
            if let (Some(ratio), Some(found)) = (bar["ratio"].as_f64(), bar["paper_ratio"].as_f64())
            {
                paper.push((x, y / ratio * found));
            }
        }
        drawn.push(Line::dots("the paper's ratio", paper));
        let title = format!("Figure {} (model): {}", figure["number"], text(&figure["title"]));
        let x = text(&figure["x"]);
        let labels = Labels { title: &title, x: &x, y: "requests/s with p99 ≤ 500 µs" };
        pictures.push(lines(labels, &drawn));
    }
    pictures
}

pub(super) fn trend(trend: &[TrendLine]) -> Vec<String> {
    let mut drawn: Vec<Line> = Vec::new();
    for (place, line) in trend.iter().enumerate() {
        let point = (place as f64, line.per_s);
        match drawn.iter_mut().find(|it| it.name == line.name) {
            Some(it) => it.points.push(point),
            None => drawn.push(Line::new(&line.name, vec![point])),
        }
    }
    drawn.retain(|line| line.points.len() > 1);
    if drawn.is_empty() {
        return Vec::new();
    }
    let labels = Labels { title: "Trend", x: "runs, oldest first", y: "requests/s" };
    vec![lines(labels, &drawn)]
}
