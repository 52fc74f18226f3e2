//! What clients saw of the registers, judged by what each write says that it replaced: a write
//! that was acknowledged and is not seen by the next one is lost. Knows neither the log nor an
//! order of the operations, so a mistake of the other judges is seen here.

use std::collections::BTreeMap;

use r2p2::Time;

use crate::{
    observed::{Answered, Observed},
    workload::{Operation, Stamp},
};

/// An acknowledged write.
#[derive(Debug)]
struct Written {
    stamp: Stamp,
    ended: Time,
}

/// Says which write was lost, or which read was too old.
pub(crate) fn judge(observed: &[Observed]) -> Result<(), String> {
    let mut written: BTreeMap<u8, Vec<Written>> = BTreeMap::new();
    let mut read: BTreeMap<u8, Vec<(Time, u64)>> = BTreeMap::new();
    for operation in observed {
        let Some((asked, stamp, ended)) = stamp_of(operation) else { continue };
        let key = asked.key();
        if matches!(asked, Operation::Get { .. }) {
            read.entry(key).or_default().push((operation.began, stamp.index));
        } else {
            written.entry(key).or_default().push(Written { stamp, ended });
        }
    }
    for (key, mut written) in written {
        written.sort_by_key(|it| it.stamp.index);
        check_chain(key, &written)?;
        check_reads(key, &mut written, read.get(&key).map_or(&[], Vec::as_slice))?;
    }
    Ok(())
}

fn stamp_of(observed: &Observed) -> Option<(Operation, Stamp, Time)> {
    let Answered::With(reply) = &observed.answered else { return None };
    let asked = Operation::decode(&observed.command.body)?;
    Some((asked, Stamp::decode(reply)?, observed.ended?))
}

/// Each write replaced the one before it, or a later one that was not acknowledged.
fn check_chain(key: u8, written: &[Written]) -> Result<(), String> {
    let own = written.iter().find(|it| it.stamp.replaced >= it.stamp.index);
    if let Some(Written { stamp, .. }) = own {
        return Err(format!(
            "r{key}: the write at {} says that it replaced the one at {}",
            stamp.index, stamp.replaced
        ));
    }
    let lost = written.windows(2).find(|pair| pair[1].stamp.replaced < pair[0].stamp.index);
    let Some([before, after]) = lost else { return Ok(()) };
    Err(format!(
        "r{key}: the write at {} was acknowledged and is lost: the next one, at {}, replaced that \
         at {}",
        before.stamp.index, after.stamp.index, after.stamp.replaced
    ))
}

/// Each read saw every write that was acknowledged before it began.
fn check_reads(key: u8, written: &mut [Written], reads: &[(Time, u64)]) -> Result<(), String> {
    written.sort_by_key(|it| it.ended);
    let mut newest = 0;
    let newest: Vec<_> = written
        .iter()
        .map(|it| {
            newest = newest.max(it.stamp.index);
            newest
        })
        .collect();
    for (began, seen) in reads {
        let count = written.partition_point(|it| it.ended < *began);
        if let Some(known) = count.checked_sub(1).map(|at| newest[at])
            && known > *seen
        {
            return Err(format!(
                "r{key}: a read saw the write at {seen}, and that at {known} was acknowledged \
                 before it began"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;

    fn observed(operation: Operation, at_ms: (u64, u64), stamp: Stamp) -> Observed {
        let time = |ms| Time::ZERO + Duration::from_millis(ms);
        let answered = Answered::With(Bytes::from(stamp.reply(7)));
        let (began, ended, command) = (time(at_ms.0), Some(time(at_ms.1)), operation.command());
        Observed { client: 0, plain: false, command, began, ended, answered }
    }

    fn write(at_ms: (u64, u64), index: u64, replaced: u64) -> Observed {
        observed(Operation::Set { key: 1, value: 7 }, at_ms, Stamp { index, replaced })
    }

    fn read(at_ms: (u64, u64), index: u64) -> Observed {
        observed(Operation::Get { key: 1 }, at_ms, Stamp { index, replaced: 0 })
    }

    #[test]
    fn a_write_that_the_next_one_does_not_see_is_lost() {
        assert_eq!(judge(&[write((0, 1), 3, 0), write((2, 3), 9, 3)]), Ok(()));
        // One between them was executed, and nobody heard of it.
        assert_eq!(judge(&[write((0, 1), 3, 0), write((2, 3), 9, 5)]), Ok(()));
        let lost = judge(&[write((0, 1), 3, 0), write((2, 3), 9, 0)]);
        assert!(lost.is_err_and(|what| what.contains("the write at 3 was acknowledged")));
    }

    #[test]
    fn a_read_sees_what_was_acknowledged_before_it_began() {
        let writes = [write((0, 1), 3, 0), write((2, 4), 9, 3)];
        let judged = |read| judge(&[&writes[..], &[read]].concat());
        assert_eq!(judged(read((3, 5), 3)), Ok(()));
        assert_eq!(judged(read((5, 6), 9)), Ok(()));
        assert!(judged(read((5, 6), 3)).is_err_and(|what| what.contains("a read saw")));
    }
}
