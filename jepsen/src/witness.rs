//! The check of an order that is known: that in which a replicated log committed the operations.
//!
//! It takes one pass, and shares nothing with the search but the models: so each can be held against
//! the other.

use std::collections::HashMap;

use crate::{CheckError, History, Model, Outcome, Value, model::Step};

/// Why an order does not explain a history. Operations are told by their places in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WitnessError {
    /// The model does not understand an operation.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// The order names what is not in the history, or the same twice.
    #[error("operation {0} is not in the history, or twice in the order")]
    NotOnce(usize),
    /// The order has an operation that was reported as not done.
    #[error("operation {0} failed, and is in the order")]
    Failed(usize),
    /// The order lacks an operation that was acknowledged.
    #[error("operation {0} was acknowledged, and is not in the order")]
    Missing(usize),
    /// An operation cannot have had its result after those before it in the order.
    #[error("operation {place} is not possible in the state {state}")]
    Refused {
        /// The operation.
        place: usize,
        /// What its key held then.
        state: String,
    },
    /// An operation was complete before another one began, and comes after it in the order.
    #[error("operation {earlier} was complete before operation {later} began, and comes after it")]
    RealTime {
        /// What was first.
        earlier: usize,
        /// What comes first in the order.
        later: usize,
    },
}

/// Checks that an order of operations explains a history: it has every acknowledged operation once,
/// none that failed, and of the unknown ones those that were done.
pub fn check_witness<M: Model>(
    model: &M,
    history: &History,
    order: &[usize],
) -> Result<(), WitnessError> {
    let operations = &history.operations;
    let mut is_in = vec![false; operations.len()];
    for place in order {
        match is_in.get_mut(*place) {
            Some(is_in) if !*is_in => *is_in = true,
            _ => return Err(WitnessError::NotOnce(*place)),
        }
        if operations[*place].outcome == Outcome::Fail && action(model, history, *place)?.is_none()
        {
            return Err(WitnessError::Failed(*place));
        }
    }
    check_real_time(history, order)?;
    let mut states: HashMap<&Value, M::State> = HashMap::new();
    for place in order {
        let operation = &operations[*place];
        let action = action(model, history, *place)?;
        let Some(action) = action else { continue };
        let state = states.entry(&operation.key).or_insert_with(|| model.initial());
        match model.step(state, &action) {
            Step::Unchanged => {}
            Step::Becomes(after) => *state = after,
            Step::Refused => {
                return Err(WitnessError::Refused { place: *place, state: model.describe(state) });
            }
        }
    }
    for (place, operation) in operations.iter().enumerate() {
        let is_acknowledged = operation.outcome != Outcome::Info;
        if is_acknowledged && !is_in[place] && action(model, history, place)?.is_some() {
            return Err(WitnessError::Missing(place));
        }
    }
    Ok(())
}

/// What an operation in the order does; none if it tells nothing.
fn action<M: Model>(
    model: &M,
    history: &History,
    place: usize,
) -> Result<Option<M::Action>, WitnessError> {
    let operation = &history.operations[place];
    let action = model.action(operation);
    action.map_err(|source| CheckError { line: operation.line, source }.into())
}

/// From the end of the order to its beginning: nothing comes before what was complete when it began.
fn check_real_time(history: &History, order: &[usize]) -> Result<(), WitnessError> {
    // Of those that come later in the order, the one that was complete first.
    let mut first: Option<(u64, usize)> = None;
    for place in order.iter().rev() {
        let operation = &history.operations[*place];
        if let Some((completed_ns, earlier)) = first
            && completed_ns < operation.invoked_ns
        {
            return Err(WitnessError::RealTime { earlier, later: *place });
        }
        let is_known = operation.outcome != Outcome::Info;
        if let Some(completed_ns) = operation.completed_ns.filter(|_| is_known) {
            first = Some(first.map_or((completed_ns, *place), |it| it.min((completed_ns, *place))));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        check::{Limits, check},
        model::{Register, Semantics},
    };

    const MODEL: Register = Register { semantics: Semantics::Knossos, has_cas: true };

    fn checked(text: &str, order: &[usize]) -> Result<(), WitnessError> {
        check_witness(&MODEL, &History::read(text.as_bytes()).expect("a history"), order)
    }

    const TEXT: &str = "[0 :invoke :write 1] [1 :invoke :write 2] [0 :ok :write 1] [1 :ok :write 2]
        [2 :invoke :write 3] [0 :invoke :read nil] [0 :ok :read 1]
        [3 :invoke :write 9] [3 :fail :write 9]";

    #[test]
    fn the_order_of_the_log_explains_the_history() {
        assert_eq!(checked(TEXT, &[1, 0, 3]), Ok(()));
        assert_eq!(checked(TEXT, &[1, 0, 3, 2]), Ok(()));
    }

    #[test]
    fn every_way_to_be_wrong_is_told() {
        let state = |state: &str| state.to_owned();
        assert_eq!(checked(TEXT, &[1, 0]), Err(WitnessError::Missing(3)));
        assert_eq!(checked(TEXT, &[1, 0, 3, 3]), Err(WitnessError::NotOnce(3)));
        assert_eq!(checked(TEXT, &[1, 0, 3, 7]), Err(WitnessError::NotOnce(7)));
        assert_eq!(checked(TEXT, &[1, 0, 3, 4]), Err(WitnessError::Failed(4)));
        let refused = WitnessError::Refused { place: 3, state: state("2") };
        assert_eq!(checked(TEXT, &[0, 1, 3]), Err(refused));
        let real_time = WitnessError::RealTime { earlier: 0, later: 3 };
        assert_eq!(checked(TEXT, &[1, 3, 0]), Err(real_time));
    }

    #[test]
    fn what_the_search_finds_is_a_witness() {
        let history = History::read(TEXT.as_bytes()).expect("a history");
        let report = check(&MODEL, &history, &Limits::steps(1000)).expect("it is understood");
        let crate::check::Finding::Linearizable(order) = &report.keys[0].finding else {
            panic!("{report:?}");
        };
        assert_eq!(check_witness(&MODEL, &history, order), Ok(()));
    }
}
