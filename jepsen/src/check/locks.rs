//! What must be seen before anything overwrites it.

use super::problem::Problem;
use crate::{Model, model::Role};

/// Of each action, whether it still has to come and nothing is left that could make it possible, if the
/// state does not already lead to it: then it is locked to the states that do.
#[derive(Debug)]
pub(super) struct Locks {
    /// Of each action, how many operations with it are not ordered.
    left: Vec<u32>,
    /// Of these, how many completed, so that they have to be ordered.
    due: Vec<u32>,
    /// Of each action, those that can make it possible; none if that is not known.
    sources: Vec<Option<Vec<u32>>>,
    /// The inverse.
    feeds: Vec<Vec<u32>>,
    /// Those that are locked, and of each action its place among them.
    locked: Vec<u32>,
    places: Vec<u32>,
    /// Whether of all actions that depend on what is there the sources are known.
    knows_all: bool,
    bytes: usize,
}

const NONE: u32 = u32::MAX;

/// What an action takes in all the lists.
const BYTES_EACH: usize = 4 * size_of::<u32>() + 2 * size_of::<Vec<u32>>();

/// How many of those that are locked are looked at: those that came last, because these are new.
const LOOKED_AT: usize = 16;

impl Locks {
    pub(super) fn new<M: Model>(model: &M, problem: &Problem<M>) -> Self {
        let actions = problem.actions.items();
        let sources = model.sources(actions);
        let mut feeds = vec![Vec::new(); actions.len()];
        for (fed, sources) in (0..).zip(&sources) {
            for source in sources.iter().flatten() {
                feeds[*source as usize].push(fed);
            }
        }
        // What depends on a state must be known of all actions, to say that nothing depends on one.
        let depends =
            |action: u32| matches!(problem.role_of(action), Role::Observes | Role::Overwrites);
        let knows_all = (0..).zip(&sources).all(|(action, it)| it.is_some() || !depends(action));
        // Sources stand in both directions.
        let count: usize = sources.iter().flatten().map(Vec::len).sum();
        let bytes = actions.len() * BYTES_EACH + count * 2 * size_of::<u32>();
        let mut locks = Self {
            knows_all,
            bytes,
            left: vec![0; actions.len()],
            due: vec![0; actions.len()],
            sources,
            feeds,
            locked: Vec::new(),
            places: vec![NONE; actions.len()],
        };
        for op in &problem.ops {
            locks.left[op.action as usize] += 1;
            locks.due[op.action as usize] += u32::from(op.completed_ns.is_some());
        }
        for action in 0..actions.len() as u32 {
            locks.update(action);
        }
        locks
    }

    /// An operation is ordered.
    pub(super) fn order(&mut self, action: u32, is_due: bool) {
        self.left[action as usize] -= 1;
        self.due[action as usize] -= u32::from(is_due);
        self.changed(action, 0, 0);
    }

    /// An operation is given back.
    pub(super) fn give_back(&mut self, action: u32, is_due: bool) {
        self.left[action as usize] += 1;
        self.due[action as usize] += u32::from(is_due);
        self.changed(action, 1, 1);
    }

    /// Looks again at what depends on the numbers of an action, if they have come to be such.
    fn changed(&mut self, action: u32, left: u32, due: u32) {
        if self.due[action as usize] == due {
            self.update(action);
        }
        if self.left[action as usize] == left {
            for at in 0..self.feeds[action as usize].len() {
                self.update(self.feeds[action as usize][at]);
            }
        }
    }

    fn update(&mut self, action: u32) {
        let is_gone = |source: &u32| self.left[*source as usize] == 0;
        let sources = &self.sources[action as usize];
        let is_locked = self.due[action as usize] > 0
            && sources.as_ref().is_some_and(|sources| sources.iter().all(is_gone));
        let place = self.places[action as usize];
        match (is_locked, place) {
            (true, NONE) => {
                self.places[action as usize] = self.locked.len() as u32;
                self.locked.push(action);
            }
            (true, _) | (false, NONE) => {}
            (false, place) => {
                self.locked.swap_remove(place as usize);
                if let Some(moved) = self.locked.get(place as usize) {
                    self.places[*moved as usize] = place;
                }
                self.places[action as usize] = NONE;
            }
        }
    }

    /// Whether it is known that nothing is left that an action can make possible.
    pub(super) fn is_unneeded(&self, action: u32) -> bool {
        self.knows_all
            && self.feeds[action as usize].iter().all(|fed| self.left[*fed as usize] == 0)
    }

    /// Some of the actions that are locked.
    pub(super) fn locked(&self) -> impl Iterator<Item = u32> {
        self.locked.iter().rev().take(LOOKED_AT).copied()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}
