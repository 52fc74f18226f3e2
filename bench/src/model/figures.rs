//! The figures of the paper's evaluation, and what the paper found as points beside them.

use std::fmt::Write as _;

use hovercraft::core::Policy;
use serde::Serialize;

use super::{
    Costs, Load, Service, System, model,
    queue::{Check, checks},
};
use crate::draw::{Labels, Line, lines};

/// The paper's bound on p99, in µs.
const SLO_US: f64 = 500.0;

/// Throughput and p99 at rising load.
#[derive(Debug, Clone, Serialize)]
pub struct Curve {
    /// Which system.
    pub name: String,
    /// Answers a second, and p99 in µs.
    pub points: Vec<(f64, f64)>,
    /// The highest throughput with p99 within 500 µs.
    pub knee_per_s: f64,
}

/// A highest throughput within 500 µs, and what the paper's figure says of it.
#[derive(Debug, Clone, Serialize)]
pub struct Bar {
    /// Which system.
    pub name: String,
    /// Bytes, replicas, or whatever the figure's axis is.
    pub x: f64,
    /// Requests a second.
    pub per_s: f64,
    /// Of the same system at the first x, or of the unreplicated server.
    pub ratio: f64,
    /// What the paper found for that ratio.
    pub paper_ratio: Option<f64>,
}

/// One figure.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// As in the paper.
    pub number: u32,
    /// What it shows.
    pub title: String,
    /// The axis of the bars.
    pub x: String,
    /// Throughput and p99.
    pub curves: Vec<Curve>,
    /// Highest throughputs.
    pub bars: Vec<Bar>,
    /// What to know of it.
    pub notes: Vec<String>,
}

/// Everything that the model says.
#[derive(Debug, Clone, Serialize)]
pub struct Model {
    /// Of the machines.
    pub costs: Costs,
    /// The queues against what is known of them.
    pub checks: Vec<Check>,
    /// Figures 7 to 11.
    pub figures: Vec<Figure>,
}

const RAFT: System = System::Raft;
const HOVERCRAFT: System = System::HovercRaft(Policy::Jbsq);

/// Models all figures, with so many requests a point; `each` sees every figure when it is done.
pub fn figures(costs: &Costs, count: u64, mut each: impl FnMut(&Figure)) -> Model {
    let base = Load {
        system: System::Unreplicated,
        replicas: 3,
        bytes: (24, 8),
        service: Service::Fixed(1.0),
        reads: 0.0,
        // What is in flight must not be what is measured, where the paper does not set it.
        queue_bound: 1024,
        per_second: 0.0,
        count,
        seed: 1,
    };
    let bench = Bench { costs, base };
    let made: [fn(&Bench<'_>) -> Figure; 5] = [figure_7, figure_8, figure_9, figure_10, figure_11];
    let mut all = Vec::new();
    for make in made {
        let figure = make(&bench);
        each(&figure);
        all.push(figure);
    }
    Model { costs: costs.clone(), checks: checks(4_000_000), figures: all }
}

struct Bench<'a> {
    costs: &'a Costs,
    base: Load,
}

impl Bench<'_> {
    fn p99_us(&self, load: Load, per_second: f64) -> (f64, f64) {
        let modelled = model(Load { per_second, ..load }, self.costs);
        (modelled.achieved_per_s, modelled.quantile_us(0.99))
    }

    /// The highest throughput with p99 within the bound, below `most`.
    fn knee(&self, load: Load, most: f64) -> f64 {
        let (mut low, mut high) = (0.0, most);
        while high - low > 0.02 * high {
            let rate = f64::midpoint(low, high);
            if self.p99_us(load, rate).1 <= SLO_US { low = rate } else { high = rate }
        }
        low
    }

    fn curve(&self, name: &str, load: Load, most: f64) -> Curve {
        let knee_per_s = self.knee(load, most);
        let shares = [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05];
        let points = shares.map(|share| self.p99_us(load, knee_per_s * share));
        let points = points.into_iter().filter(|point| point.1.is_finite()).collect();
        Curve { name: name.to_owned(), points, knee_per_s }
    }
}

/// What one server could do at most, with some room above.
const MOST: f64 = 1.5e6;

fn figure_7(bench: &Bench<'_>) -> Figure {
    // The leader replies in all of them, as in the paper's experiment.
    let hovercraft = System::HovercRaft(Policy::Leader);
    let systems =
        [("unreplicated", System::Unreplicated), ("raft", RAFT), ("hovercraft", hovercraft)];
    let curves: Vec<_> = systems
        .iter()
        .map(|(name, system)| bench.curve(name, Load { system: *system, ..bench.base }, MOST))
        .collect();
    let alone = curves[0].knee_per_s;
    let bars = curves.iter().map(|curve| Bar {
        name: curve.name.clone(),
        x: 3.0,
        per_s: curve.knee_per_s,
        ratio: curve.knee_per_s / alone,
        paper_ratio: Some(1.0),
    });
    let at = 0.95 * alone.min(curves[2].knee_per_s);
    let p99 = |system| bench.p99_us(Load { system, ..bench.base }, at).1;
    let overhead = p99(hovercraft) - p99(System::Unreplicated);
    Figure {
        number: 7,
        title: "24-byte requests of 1 µs, 3 replicas, the leader replies".to_owned(),
        x: "replicas".to_owned(),
        bars: bars.collect(),
        curves,
        notes: vec![format!(
            "At {at:.0} requests/s agreement adds {overhead:.0} µs at p99; the paper: all near 1 M \
             requests/s, at most 68 µs up to 950 k."
        )],
    }
}

fn figure_8(bench: &Bench<'_>) -> Figure {
    let bars = over(
        bench,
        &[24.0, 64.0, 512.0],
        |load, bytes| Load { bytes: (bytes_of(bytes), 8), ..load },
        |name, x| match (name, x) {
            ("raft", 64.0) => Some(0.98),
            ("raft", 512.0) => Some(0.52),
            ("hovercraft", _) => Some(1.0),
            _ => None,
        },
    );
    Figure {
        number: 8,
        title: unreproduced("requests of 24, 64 and 512 bytes, 1 µs, 3 replicas"),
        x: "bytes of a request".to_owned(),
        curves: Vec::new(),
        bars,
        notes: vec!["Ratios are to the same system with 24 bytes.".to_owned()],
    }
}

fn figure_9(bench: &Bench<'_>) -> Figure {
    let bars = over(
        bench,
        &[3.0, 5.0, 7.0, 9.0],
        |load, replicas| Load { replicas: bytes_of(replicas) as u16, ..load },
        |name, x| match (name, x) {
            ("raft", 9.0) => Some(0.57),
            ("hovercraft", 3.0 | 5.0) => Some(1.0),
            _ => None,
        },
    );
    Figure {
        number: 9,
        title: unreproduced("24-byte requests of 1 µs, 3 to 9 replicas"),
        x: "replicas".to_owned(),
        curves: Vec::new(),
        bars,
        notes: vec![
            "Ratios are to the same system with 3 replicas. The paper's hovercraft drops from 7 on; \
             with the aggregator, which is not modelled here, it does not."
                .to_owned(),
        ],
    }
}

/// Raft and HovercRaft along an axis.
fn over(
    bench: &Bench<'_>,
    axis: &[f64],
    load_at: impl Fn(Load, f64) -> Load,
    paper: impl Fn(&str, f64) -> Option<f64>,
) -> Vec<Bar> {
    let mut bars = Vec::new();
    for (name, system) in [("raft", RAFT), ("hovercraft", System::HovercRaft(Policy::Leader))] {
        let mut first = None;
        for x in axis {
            let load = load_at(Load { system, ..bench.base }, *x);
            let per_s = bench.knee(load, MOST);
            let ratio = per_s / *first.get_or_insert(per_s);
            let paper_ratio = paper(name, *x);
            bars.push(Bar { name: name.to_owned(), x: *x, per_s, ratio, paper_ratio });
        }
    }
    bars
}

fn figure_10(bench: &Bench<'_>) -> Figure {
    let replies = Load { bytes: (24, 6000), queue_bound: 128, ..bench.base };
    let random = System::HovercRaft(Policy::Random);
    let alone = bench.knee(replies, MOST);
    let systems = [
        ("unreplicated", System::Unreplicated, 1, Some(1.0)),
        ("jbsq", HOVERCRAFT, 3, Some(3.0)),
        ("jbsq", HOVERCRAFT, 5, Some(5.0)),
        ("random", random, 3, None),
        ("random", random, 5, None),
    ];
    let bars = systems.map(|(name, system, replicas, paper_ratio)| {
        let per_s = bench.knee(Load { system, replicas, ..replies }, MOST);
        let ratio = per_s / alone;
        Bar { name: name.to_owned(), x: replicas.into(), per_s, ratio, paper_ratio }
    });
    Figure {
        number: 10,
        title: "6 kB replies, balanced, B = 128".to_owned(),
        x: "replicas".to_owned(),
        curves: Vec::new(),
        bars: bars.to_vec(),
        notes: vec![
            "Ratios are to the unreplicated server within 500 µs at p99. The queues that jbsq compares do \
             not see that of the network card, where 6 kB replies wait."
                .to_owned(),
        ],
    }
}

fn figure_11(bench: &Bench<'_>) -> Figure {
    const SERVICE_US: f64 = 10.0;
    const WRITES: f64 = 0.25;
    let reads = Load {
        service: Service::Bimodal(SERVICE_US),
        reads: 1.0 - WRITES,
        queue_bound: 32,
        ..bench.base
    };
    let random = System::HovercRaft(Policy::Random);
    let systems =
        [("unreplicated", System::Unreplicated), ("jbsq", HOVERCRAFT), ("random", random)];
    let most = 3.0e6 / SERVICE_US;
    let curves: Vec<_> = systems
        .iter()
        .map(|(name, system)| bench.curve(name, Load { system: *system, ..reads }, most))
        .collect();
    let alone = curves[0].knee_per_s;
    let bar = |name: &str, replicas: u16, per_s: f64, paper_ratio| {
        let (name, x) = (name.to_owned(), f64::from(replicas));
        Bar { name, x, per_s, ratio: per_s / alone, paper_ratio }
    };
    let mut bars = vec![bar("unreplicated", 1, alone, Some(1.0))];
    for (name, system) in [("jbsq", HOVERCRAFT), ("random", random)] {
        for replicas in [3, 5, 7, 9] {
            let per_s = bench.knee(Load { system, replicas, ..reads }, most);
            // As its figure shows.
            let paper_ratio = (name == "jbsq" && replicas == 3).then_some(2.05);
            bars.push(bar(name, replicas, per_s, paper_ratio));
        }
    }
    for replicas in [3, 5, 7, 9] {
        let shared = WRITES + (1.0 - WRITES) / f64::from(replicas);
        bars.push(bar("(1/S)/(w+(1−w)/N)", replicas, 1e6 / SERVICE_US / shared, None));
    }
    let notes = vec![
        "Nothing can do more than (1/S)/(w + (1 − w)/N): every replica executes each write, and its \
         share of the reads."
            .to_owned(),
        "Ratios are to the unreplicated server within 500 µs. The paper's figure shows 2.05 with 3 \
         replicas, and jbsq beats random."
            .to_owned(),
    ];
    Figure {
        number: 11,
        title: unreproduced("bimodal service of 10 µs, 75 % reads, 3 to 9 replicas, B = 32"),
        x: "replicas".to_owned(),
        bars,
        curves,
        notes,
    }
}

/// The title of a figure whose ratios are not the paper's: its curves must not be compared yet.
fn unreproduced(title: &str) -> String {
    format!("not reproduced yet: {title}")
}

fn bytes_of(x: f64) -> usize {
    #[expect(clippy::cast_sign_loss, reason = "the axes are positive")]
    let whole = x as usize;
    whole
}

impl Bar {
    /// What it would be here by the paper's ratio.
    fn papers(&self) -> Option<f64> {
        Some(self.per_s / self.ratio * self.paper_ratio?)
    }
}

impl Figure {
    /// As pictures: throughput and p99 if there are curves, and the highest throughputs.
    pub fn draw(&self) -> Vec<(String, String)> {
        let name = format!("figure{}", self.number);
        let curves = (!self.curves.is_empty()).then(|| (format!("{name}-p99"), self.draw_curves()));
        curves.into_iter().chain([(name, self.draw_bars())]).collect()
    }

    fn title(&self) -> String {
        format!("Figure {} (model): {}", self.number, self.title)
    }

    fn draw_curves(&self) -> String {
        let mut drawn: Vec<_> = self
            .curves
            .iter()
            .map(|curve| Line::new(&curve.name, visible(&curve.points)))
            .collect();
        let paper =
            self.bars.iter().filter_map(|bar| Some((bar.papers()?, SLO_US))).collect::<Vec<_>>();
        drawn.push(Line::dots("the paper's ratio, at 500 µs", paper));
        lines(Labels { title: &self.title(), x: "requests/s", y: "p99, µs" }, &drawn)
    }

    fn draw_bars(&self) -> String {
        let mut drawn: Vec<Line> = Vec::new();
        for bar in &self.bars {
            let point = (bar.x, bar.per_s);
            match drawn.iter_mut().find(|line| line.name == bar.name) {
                Some(line) => line.points.push(point),
                None => drawn.push(Line::new(&bar.name, vec![point])),
            }
        }
        let paper = self.bars.iter().filter_map(|bar| Some((bar.x, bar.papers()?)));
        drawn.push(Line::dots("the paper's ratio", paper.collect()));
        let title = self.title();
        let labels = Labels { title: &title, x: &self.x, y: "requests/s with p99 ≤ 500 µs" };
        lines(labels, &drawn)
    }

    /// As a table.
    pub fn table(&self) -> String {
        let mut text = format!("Figure {}: {}\n", self.number, self.title);
        for bar in &self.bars {
            let paper = bar.paper_ratio.map_or(String::new(), |it| format!(" (paper {it:.2})"));
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "  {:<13} {} {:>4}: {:>9.0} requests/s, ratio {:.2}{paper}",
                bar.name, self.x, bar.x, bar.per_s, bar.ratio
            );
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        text
    }
}

/// What does not go through the roof.
fn visible(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    points.iter().copied().filter(|point| point.1 <= 2.0 * SLO_US).collect()
}
