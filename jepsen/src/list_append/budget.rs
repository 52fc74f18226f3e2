//! What a check of transactions may still use.

use super::graph::Edge;
use crate::{
    History,
    check::{Limit, Limits},
};

/// Counts what is used, and remembers the limit that was reached first.
#[derive(Debug)]
pub(super) struct Budget<'a> {
    limits: &'a Limits<'a>,
    steps: u64,
    edges_max: usize,
    is_time_up: bool,
    limit: Option<Limit>,
}

/// What is made of a history before its graph takes no more than the history itself.
const HISTORIES: usize = 2;

/// An edge, its copies while the vector of edges grows and is sorted, and what a search notes of it.
const BYTES_OF_EDGE: usize = 4 * size_of::<Edge>();

/// After so many steps the time is looked at.
const STEPS_BETWEEN_LOOKS: u64 = 1 << 10;

impl<'a> Budget<'a> {
    pub(super) fn new(history: &History, limits: &'a Limits<'a>) -> Self {
        let left = limits.bytes_max.checked_sub(HISTORIES * history.bytes());
        let edges_max = left.unwrap_or(0) / BYTES_OF_EDGE;
        let limit = if left.is_none() {
            Some(Limit::Memory)
        } else if limits.steps_max == 0 {
            Some(Limit::Steps)
        } else if (limits.is_time_up)() {
            Some(Limit::Time)
        } else {
            None
        };
        Self { limits, steps: 0, edges_max, is_time_up: false, limit }
    }

    /// Takes a step; false if there are no more, or no more time. Where only memory was missing, what is
    /// there is looked at.
    pub(super) fn step(&mut self) -> bool {
        self.steps += 1;
        if self.steps > self.limits.steps_max {
            self.reach(Limit::Steps);
            return false;
        }
        self.is_time_up |=
            self.steps.is_multiple_of(STEPS_BETWEEN_LOOKS) && (self.limits.is_time_up)();
        if self.is_time_up {
            self.reach(Limit::Time);
        }
        !self.is_time_up
    }

    /// Whether so many edges may be kept.
    pub(super) fn has_room_for(&mut self, edges: usize) -> bool {
        if edges > self.edges_max {
            self.reach(Limit::Memory);
        }
        edges <= self.edges_max
    }

    fn reach(&mut self, limit: Limit) {
        self.limit.get_or_insert(limit);
    }

    /// Whether a limit was reached.
    pub(super) fn is_over(&self) -> bool {
        self.limit.is_some()
    }

    pub(super) fn limit(&self) -> Option<Limit> {
        self.limit
    }
}
