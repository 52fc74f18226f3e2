//! Cycles: transactions that each came before the next, and the last before the first.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{
    AnomalyKind,
    budget::Budget,
    graph::{Edge, EdgeKind, Graph},
};

/// A cycle of a kind.
#[derive(Debug)]
pub(super) struct Cycle {
    pub(super) kind: AnomalyKind,
    pub(super) edges: Vec<Edge>,
}

/// A kind of cycles: it has an edge of the first kind, and the others are of the set.
struct Pattern {
    kind: AnomalyKind,
    one: EdgeKind,
    others: u8,
}

/// From the worst to the mildest (Adya's thesis, and Elle, VLDB 2020, for real time).
fn patterns() -> Vec<Pattern> {
    let [ww, wr, rw, real_time] =
        [EdgeKind::Ww, EdgeKind::Wr, EdgeKind::Rw, EdgeKind::RealTime].map(EdgeKind::bit);
    let pattern = |kind, one, others| Pattern { kind, one, others };
    vec![
        pattern(AnomalyKind::G0, EdgeKind::Ww, ww),
        pattern(AnomalyKind::G1c, EdgeKind::Wr, ww | wr),
        pattern(AnomalyKind::GSingle, EdgeKind::Rw, ww | wr),
        pattern(AnomalyKind::G2, EdgeKind::Rw, ww | wr | rw),
        pattern(AnomalyKind::G0RealTime, EdgeKind::Ww, ww | real_time),
        pattern(AnomalyKind::G1cRealTime, EdgeKind::Wr, ww | wr | real_time),
        pattern(AnomalyKind::GSingleRealTime, EdgeKind::Rw, ww | wr | real_time),
        pattern(AnomalyKind::G2RealTime, EdgeKind::Rw, ww | wr | rw | real_time),
    ]
}

/// How many edges of a component are tried as the first of a cycle, to find a short one.
const STARTS_MAX: usize = 200;

/// Finds a short cycle, of the worst kind that it has, in each part of the graph that has any.
pub(super) fn find(graph: &Graph, budget: &mut Budget<'_>) -> Vec<Cycle> {
    let mut cycles = Vec::new();
    // What was found already is not to be told again as something milder.
    let mut told: HashSet<u32> = HashSet::new();
    for Pattern { kind, one, others } in patterns() {
        for component in graph.components(others | one.bit()) {
            if component.iter().any(|txn| told.contains(txn)) {
                continue;
            }
            if let Some(edges) = shortest(graph, &component, (one, others), budget) {
                told.extend(&component);
                cycles.push(Cycle { kind, edges });
            }
        }
    }
    cycles
}

fn shortest(
    graph: &Graph,
    component: &[u32],
    (one, others): (EdgeKind, u8),
    budget: &mut Budget<'_>,
) -> Option<Vec<Edge>> {
    let is_inside: HashSet<u32> = component.iter().copied().collect();
    let mut sorted = component.to_vec();
    sorted.sort_unstable();
    let starts = sorted.iter().flat_map(|txn| graph.after(*txn, one.bit()));
    let starts = starts.filter(|edge| is_inside.contains(&edge.to)).take(STARTS_MAX);
    let mut shortest: Option<Vec<Edge>> = None;
    for start in starts {
        // Only what is shorter is looked for.
        let length_max = shortest.as_ref().map_or(usize::MAX, |cycle| cycle.len() - 2);
        let ends = (start.to, start.from);
        if let Some(path) = path(graph, &is_inside, ends, others, length_max, budget) {
            shortest = Some([vec![*start], path].concat());
        }
    }
    shortest
}

/// The shortest path between two transactions, in breadth first, if it is not longer than a maximum.
fn path(
    graph: &Graph,
    is_inside: &HashSet<u32>,
    (from, to): (u32, u32),
    kinds: u8,
    length_max: usize,
    budget: &mut Budget<'_>,
) -> Option<Vec<Edge>> {
    let mut came_by: HashMap<u32, Edge> = HashMap::new();
    let mut queue = VecDeque::from([(from, 0)]);
    while let Some((txn, length)) = queue.pop_front() {
        if length == length_max || !budget.step() {
            return None;
        }
        for edge in graph.after(txn, kinds) {
            if edge.to == from || !is_inside.contains(&edge.to) || came_by.contains_key(&edge.to) {
                continue;
            }
            came_by.insert(edge.to, *edge);
            if edge.to == to {
                let mut path = Vec::new();
                let mut at = to;
                while at != from {
                    path.push(came_by[&at]);
                    at = came_by[&at].from;
                }
                path.reverse();
                return Some(path);
            }
            queue.push_back((edge.to, length + 1));
        }
    }
    None
}
