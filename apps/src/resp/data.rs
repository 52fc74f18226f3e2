//! The commands on data: from Redis's words to one operation of the kv service, and back.

use std::sync::Mutex;

use bytes::Bytes;

use super::{
    cursor::Cursors,
    glob::{self, PATTERN_BYTES_MAX},
    reply::Answer,
};
use crate::kv::{self, Condition, Operation, PAGE_KEYS_MAX, Page, Refusal, Reply};

/// A command on data: what the service is asked, and how its reply is told.
#[derive(Debug)]
pub(super) struct Data {
    pub(super) operation: Operation,
    pub(super) shape: Shape,
}

/// How the service's reply becomes an answer.
#[derive(Debug)]
pub(super) enum Shape {
    /// A value or nil, values, a number.
    Plain,
    /// `OK` if it was done, else nil.
    OkOrNil,
    /// 1 if it was done, else 0.
    OneOrZero,
    /// The type of a key that exists.
    Type,
    /// All keys that match, if one page holds them all.
    Keys(Bytes),
    /// The next cursor and the keys of a page that match.
    Scan(Option<Bytes>),
}

/// Reads a command by its arguments, the name first; their number was checked.
pub(super) type Read = fn(&[Bytes]) -> Data;

/// The same, where the arguments may be wrong.
pub(super) type Check = fn(&[Bytes], &Mutex<Cursors>) -> Result<Data, Answer>;

pub(super) fn get(arguments: &[Bytes]) -> Data {
    let key = arguments[1].clone();
    plain(Operation::Get { key })
}

pub(super) fn mget(arguments: &[Bytes]) -> Data {
    let keys = arguments[1..].to_vec();
    plain(Operation::GetMany { keys })
}

pub(super) fn exists(arguments: &[Bytes]) -> Data {
    let keys = arguments[1..].to_vec();
    plain(Operation::Exists { keys })
}

pub(super) fn strlen(arguments: &[Bytes]) -> Data {
    let key = arguments[1].clone();
    plain(Operation::Length { key })
}

pub(super) fn dbsize(_: &[Bytes]) -> Data {
    plain(Operation::Count)
}

pub(super) fn del(arguments: &[Bytes]) -> Data {
    let keys = arguments[1..].to_vec();
    plain(Operation::Delete { keys })
}

pub(super) fn incr(arguments: &[Bytes]) -> Data {
    increment(&arguments[1], 1)
}

pub(super) fn decr(arguments: &[Bytes]) -> Data {
    increment(&arguments[1], -1)
}

pub(super) fn incrby(arguments: &[Bytes], _: &Mutex<Cursors>) -> Result<Data, Answer> {
    Ok(increment(&arguments[1], integer(&arguments[2])?))
}

pub(super) fn decrby(arguments: &[Bytes], _: &Mutex<Cursors>) -> Result<Data, Answer> {
    let by = integer(&arguments[2])?.checked_neg();
    let by = by.ok_or_else(|| refused(Refusal::Overflow))?;
    Ok(increment(&arguments[1], by))
}

fn increment(key: &Bytes, by: i64) -> Data {
    let key = key.clone();
    plain(Operation::Increment { key, by })
}

fn plain(operation: Operation) -> Data {
    let shape = Shape::Plain;
    Data { operation, shape }
}

pub(super) fn type_of(arguments: &[Bytes]) -> Data {
    Data { operation: Operation::Exists { keys: vec![arguments[1].clone()] }, shape: Shape::Type }
}

pub(super) fn set(arguments: &[Bytes], _: &Mutex<Cursors>) -> Result<Data, Answer> {
    let mut condition = Condition::Always;
    for option in &arguments[3..] {
        let wanted = match option.to_ascii_uppercase().as_slice() {
            b"NX" => Condition::IfAbsent,
            b"XX" => Condition::IfPresent,
            b"EX" | b"PX" | b"EXAT" | b"PXAT" | b"KEEPTTL" | b"GET" | b"IFEQ" => {
                let option = String::from_utf8_lossy(option);
                let text = format!("SET takes NX and XX here; option '{option}' is not supported");
                return Err(Answer::error(text));
            }
            _ => return Err(syntax_error()),
        };
        if condition != Condition::Always {
            return Err(syntax_error());
        }
        condition = wanted;
    }
    Ok(Data {
        operation: Operation::Set {
            key: arguments[1].clone(),
            value: arguments[2].clone(),
            condition,
        },
        shape: Shape::OkOrNil,
    })
}

pub(super) fn setnx(arguments: &[Bytes]) -> Data {
    Data {
        operation: Operation::Set {
            key: arguments[1].clone(),
            value: arguments[2].clone(),
            condition: Condition::IfAbsent,
        },
        shape: Shape::OneOrZero,
    }
}

pub(super) fn mset(arguments: &[Bytes], _: &Mutex<Cursors>) -> Result<Data, Answer> {
    let (pairs, []) = arguments[1..].as_chunks() else {
        let text = "wrong number of arguments for 'mset' command";
        return Err(Answer::error(text));
    };
    let pair = |[key, value]: &[Bytes; 2]| (key.clone(), value.clone());
    Ok(Data {
        operation: Operation::SetMany { pairs: pairs.iter().map(pair).collect() },
        shape: Shape::OkOrNil,
    })
}

pub(super) fn keys(arguments: &[Bytes], _: &Mutex<Cursors>) -> Result<Data, Answer> {
    let pattern = pattern(&arguments[1])?;
    Ok(Data {
        operation: page(Bytes::new(), Some(&pattern), PAGE_KEYS_MAX),
        shape: Shape::Keys(pattern),
    })
}

pub(super) fn scan(arguments: &[Bytes], cursors: &Mutex<Cursors>) -> Result<Data, Answer> {
    const DEFAULT_COUNT: u32 = 10;
    let (mut matching, mut count) = (None, DEFAULT_COUNT);
    let (options, []) = arguments[2..].as_chunks() else {
        return Err(syntax_error());
    };
    for [name, value] in options {
        match name.to_ascii_uppercase().as_slice() {
            b"MATCH" => matching = Some(pattern(value)?),
            b"COUNT" => match integer(value)? {
                ..1 => return Err(syntax_error()),
                value => count = u32::try_from(value).unwrap_or(u32::MAX),
            },
            _ => return Err(syntax_error()),
        }
    }
    let number = str::from_utf8(&arguments[1]).ok();
    let number: u64 =
        number.and_then(|text| text.parse().ok()).ok_or_else(|| Answer::error("invalid cursor"))?;
    let start = if number == 0 {
        Bytes::new()
    } else {
        let cursors = cursors.lock().expect("nothing panics with the cursors");
        let unknown = "unknown cursor: every replica keeps the cursors that it gave last; start \
                       again with 0";
        let key = cursors.find(number);
        key.ok_or_else(|| Answer::error(unknown))?.clone()
    };
    Ok(Data { operation: page(start, matching.as_ref(), count), shape: Shape::Scan(matching) })
}

/// Asks for keys from `start`, but only where keys that match can be.
fn page(start: Bytes, pattern: Option<&Bytes>, limit: u32) -> Operation {
    let prefix = pattern.map_or(&[][..], |pattern| glob::literal_prefix(pattern));
    Operation::Scan {
        start: if start < prefix { Bytes::copy_from_slice(prefix) } else { start },
        end: kv::prefix_end(prefix),
        limit,
        keys_only: true,
    }
}

fn pattern(argument: &Bytes) -> Result<Bytes, Answer> {
    if argument.len() > PATTERN_BYTES_MAX {
        let text = format!("a pattern has at most {PATTERN_BYTES_MAX} bytes here");
        return Err(Answer::error(text));
    }
    Ok(argument.clone())
}

fn integer(argument: &Bytes) -> Result<i64, Answer> {
    let number = str::from_utf8(argument).ok();
    number.and_then(|text| text.parse().ok()).ok_or_else(|| refused(Refusal::NotAnInteger))
}

fn syntax_error() -> Answer {
    Answer::error("syntax error")
}

/// Tells a refusal in Redis's words where it has some.
fn refused(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::NotAnInteger => Answer::error("value is not an integer or out of range"),
        Refusal::Overflow => Answer::error("increment or decrement would overflow"),
        other => Answer::error(other.to_string()),
    }
}

impl Shape {
    /// The answer to the command that the service replied to.
    pub(super) fn answer(self, reply: Reply, cursors: &Mutex<Cursors>) -> Answer {
        match (self, reply) {
            (_, Reply::Refused(refusal)) => refused(refusal),
            (Self::Plain, Reply::Nil) | (Self::OkOrNil, Reply::Done(false)) => Answer::Nil,
            (Self::Plain, Reply::Value(value)) => Answer::Bulk(value),
            (Self::Plain, Reply::Integer(value)) => Answer::Integer(value),
            (Self::Plain, Reply::Values(values)) => {
                let value = |value: Option<Bytes>| value.map_or(Answer::Nil, Answer::Bulk);
                Answer::Array(values.into_iter().map(value).collect())
            }
            (Self::OkOrNil, Reply::Done(true)) => Answer::OK,
            (Self::OneOrZero, Reply::Done(done)) => Answer::Integer(i64::from(done)),
            (Self::Type, Reply::Integer(0)) => Answer::Status("none"),
            (Self::Type, Reply::Integer(_)) => Answer::Status("string"),
            (Self::Keys(_), Reply::Page(page)) if page.next.is_some() => {
                let text = format!(
                    "KEYS looks at no more than {PAGE_KEYS_MAX} keys, and more begin like the \
                     pattern; use SCAN"
                );
                Answer::error(text)
            }
            (Self::Keys(pattern), Reply::Page(page)) => matching(*page, Some(&pattern)),
            (Self::Scan(pattern), Reply::Page(page)) => {
                let number = page.next.as_ref().map_or(0, |next| {
                    let mut cursors = cursors.lock().expect("nothing panics with the cursors");
                    cursors.give(next)
                });
                let keys = matching(*page, pattern.as_ref());
                Answer::Array(vec![Answer::bulk(number.to_string()), keys])
            }
            _ => Answer::error_with("UNKNOWN", "the service's reply is not to this command"),
        }
    }
}

fn matching(page: Page, pattern: Option<&Bytes>) -> Answer {
    let keys = page.entries.into_iter().map(|(key, _)| key);
    let keys = keys.filter(|key| pattern.is_none_or(|pattern| glob::matches(pattern, key)));
    Answer::Array(keys.map(Answer::Bulk).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_narrows_what_is_looked_at() {
        let pattern = Bytes::from("user:1*");
        let Operation::Scan { start, end, .. } = page(Bytes::new(), Some(&pattern), 10) else {
            panic!("not a scan");
        };
        assert_eq!((start, end), ("user:1".into(), Some("user:2".into())));
        let Operation::Scan { start, .. } = page("user:17".into(), Some(&pattern), 10) else {
            panic!("not a scan");
        };
        assert_eq!(start, "user:17");
    }
}
