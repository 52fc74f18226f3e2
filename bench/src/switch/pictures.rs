//! The pictures of the switch's figures, as SVG.

use super::{
    Jbsq, Overload, Table1,
    overload::{Keeper, Point},
};
use crate::{
    count::{Counts, REPLICAS},
    draw::{Labels, Line, lines},
};

impl Table1 {
    /// What comes in and goes out for a request, over the number of replicas.
    pub fn draw(&self) -> String {
        let rows = || self.table1.iter().filter(|row| row.outstanding == 1);
        let rows = || rows().filter(|row| row.durability == "memory");
        let mut drawn: Vec<Line> = Vec::new();
        for row in rows() {
            let y = row.counted_in + row.counted_out;
            add(&mut drawn, &row.mode, (row.replicas.into(), y));
        }
        let paper = rows().map(|row| (f64::from(row.replicas), row.paper_in + row.paper_out));
        drawn.push(Line::dots("the paper's formula", paper.collect()));
        let labels = Labels {
            title: "Messages at the leader for a request, one at a time",
            x: "replicas",
            y: "messages in and out",
        };
        lines(labels, &drawn)
    }
}

/// Instructions of the leader for a request, over the number of replicas.
pub fn instructions(counts: &Counts) -> String {
    let of = |mode: &str, name: &str| {
        let point = |replicas: &u16| {
            let count = counts.get(&format!("{mode}leader of {replicas}"))?;
            Some((f64::from(*replicas), *count))
        };
        Line::new(name, REPLICAS.iter().filter_map(point).collect())
    };
    let labels = Labels {
        title: "Instructions of the leader's core for a request, ten requests a turn",
        x: "replicas",
        y: "instructions",
    };
    lines(labels, &[of("", "hovercraft"), of("hovercraft++ ", "hovercraft++")])
}

impl Overload {
    /// What is answered in time, over what is offered.
    pub fn draw(&self) -> String {
        let mut drawn = self.lines_of(|point| Some(point.answered_per_s));
        let right = self.overload.iter().map(|point| point.offered_per_s).fold(0.0, f64::max);
        drawn.push(Line::new(
            "capacity",
            vec![(0.0, self.capacity_per_s), (right, self.capacity_per_s)],
        ));
        let title = format!("Answered within {:.0} ms, over the offered load", self.deadline_ms);
        let labels = Labels { title: &title, x: "requests/s offered", y: "answered in time/s" };
        lines(labels, &drawn)
    }

    /// p99 of what is answered in time, over what is offered.
    pub fn draw_p99(&self) -> String {
        // Where nothing was answered in time there is nothing to draw.
        let is_some = |point: &Point| point.answered_per_s > 0.0;
        let mut drawn = self.lines_of(|point| is_some(point).then_some(point.p99_ms));
        let right = self.overload.iter().map(|point| point.offered_per_s).fold(0.0, f64::max);
        drawn.push(Line::new("SLO", vec![(0.0, self.slo_ms), (right, self.slo_ms)]));
        let labels = Labels {
            title: "p99 of what is answered in time, over the offered load",
            x: "requests/s offered",
            y: "ms",
        };
        lines(labels, &drawn)
    }

    fn lines_of(&self, y: impl Fn(&Point) -> Option<f64>) -> Vec<Line> {
        let mut drawn = Vec::new();
        for keeper in [Keeper::Nobody, Keeper::Threshold, Keeper::Slo] {
            for point in self.overload.iter().filter(|point| point.keeper == keeper) {
                let name = format!("admission: {}", keeper.name());
                if let Some(y) = y(point) {
                    add(&mut drawn, &name, (point.offered_per_s, y));
                }
            }
        }
        drawn
    }
}

impl Jbsq {
    /// p99 over the load.
    pub fn draw(&self) -> String {
        let mut drawn = Vec::new();
        for point in &self.jbsq {
            add(&mut drawn, &point.policy, (point.load, point.p99_ms));
        }
        let ideal = self.jbsq.iter().take_while(|point| point.policy == self.jbsq[0].policy);
        let ideal = ideal.map(|point| (point.load, point.ideal_p99_ms)).collect();
        drawn.push(Line::new("a single queue, simulated", ideal));
        let title = format!(
            "p99 on {} workers, bimodal service with a mean of {:.0} ms",
            self.workers, self.service_ms
        );
        lines(Labels { title: &title, x: "load", y: "p99, ms" }, &drawn)
    }
}

/// Adds a point to the line with a name.
fn add(drawn: &mut Vec<Line>, name: &str, point: (f64, f64)) {
    match drawn.iter_mut().find(|line| line.name == name) {
        Some(line) => line.points.push(point),
        None => drawn.push(Line::new(name, vec![point])),
    }
}
