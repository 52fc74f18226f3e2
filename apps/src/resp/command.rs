//! Which commands there are, and what takes each.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{
    Shared,
    data::{self, Check, Data, Read},
    local::{self, Client, Run},
    reply::Answer,
};

/// What is to be done for one command.
#[derive(Debug)]
pub(super) enum Step {
    /// The answer is known.
    Answer(Answer),
    /// The service is to be asked.
    Data(Data),
}

/// One command.
#[derive(Debug)]
pub(super) struct Spec {
    /// In lower case.
    pub(super) name: &'static str,
    /// The number of arguments with the name; if negative, the least number.
    arity: i64,
    flags: &'static [&'static str],
    /// Where the first and the last key are, and how far apart keys are; 0 if there is none.
    keys: (i64, i64, i64),
    handler: Handler,
}

#[derive(Debug)]
enum Handler {
    /// Asks the service.
    Data(Read),
    /// Asks the service, if the arguments are right.
    Checked(Check),
    /// Answers at once.
    Local(Run),
}

const READ: &[&str] = &["readonly"];
const WRITE: &[&str] = &["write"];
const LOCAL: &[&str] = &["fast"];

const NONE: (i64, i64, i64) = (0, 0, 0);
const ONE: (i64, i64, i64) = (1, 1, 1);
const ALL: (i64, i64, i64) = (1, -1, 1);
const EVERY_OTHER: (i64, i64, i64) = (1, -1, 2);

/// All of them, by name.
pub(super) static COMMANDS: [Spec; 27] = [
    local("client", -2, local::client),
    local("command", -1, local::command),
    local("config", -2, local::config),
    data("dbsize", 1, READ, NONE, data::dbsize),
    data("decr", 2, WRITE, ONE, data::decr),
    checked("decrby", 3, WRITE, ONE, data::decrby),
    data("del", -2, WRITE, ALL, data::del),
    local("echo", 2, local::echo),
    data("exists", -2, READ, ALL, data::exists),
    data("get", 2, READ, ONE, data::get),
    local("hello", -1, local::hello),
    data("incr", 2, WRITE, ONE, data::incr),
    checked("incrby", 3, WRITE, ONE, data::incrby),
    local("info", -1, local::info),
    checked("keys", 2, READ, NONE, data::keys),
    data("mget", -2, READ, ALL, data::mget),
    checked("mset", -3, WRITE, EVERY_OTHER, data::mset),
    local("ping", -1, local::ping),
    local("quit", -1, local::quit),
    local("reset", 1, local::reset),
    checked("scan", -2, READ, NONE, data::scan),
    local("select", 2, local::select),
    checked("set", -3, WRITE, ONE, data::set),
    data("setnx", 3, WRITE, ONE, data::setnx),
    data("strlen", 2, READ, ONE, data::strlen),
    data("type", 2, READ, ONE, data::type_of),
    data("unlink", -2, WRITE, ALL, data::del),
];

const fn data(
    name: &'static str,
    arity: i64,
    flags: &'static [&'static str],
    keys: (i64, i64, i64),
    read: Read,
) -> Spec {
    Spec { name, arity, flags, keys, handler: Handler::Data(read) }
}

const fn checked(
    name: &'static str,
    arity: i64,
    flags: &'static [&'static str],
    keys: (i64, i64, i64),
    check: Check,
) -> Spec {
    Spec { name, arity, flags, keys, handler: Handler::Checked(check) }
}

const fn local(name: &'static str, arity: i64, run: Run) -> Spec {
    Spec { name, arity, flags: LOCAL, keys: NONE, handler: Handler::Local(run) }
}

impl Spec {
    /// As the command COMMAND tells it.
    pub(super) fn description(&self) -> Answer {
        let (first_key, last_key, step) = self.keys;
        let flags = self.flags.iter().map(|flag| Answer::Status(flag));
        Answer::Array(vec![
            Answer::bulk(self.name),
            Answer::Integer(self.arity),
            Answer::Array(flags.collect()),
            Answer::Integer(first_key),
            Answer::Integer(last_key),
            Answer::Integer(step),
        ])
    }

    fn takes(&self, count: usize) -> bool {
        let count = i64::try_from(count).expect("the reader bounds the arguments");
        count == self.arity || (self.arity < 0 && count >= -self.arity)
    }
}

/// The command with this name, in any case.
pub(super) fn find(name: &[u8]) -> Option<&'static Spec> {
    const LONGEST: usize = 8;
    let mut lower = [0; LONGEST];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let found = COMMANDS.binary_search_by(|spec| spec.name.as_bytes().cmp(lower));
    found.ok().map(|position| &COMMANDS[position])
}

/// Decides what a request asks for, and answers what needs no service.
pub(super) fn step(client: &mut Client, shared: &Shared, request: &[Bytes]) -> Step {
    shared.command_count.fetch_add(1, Ordering::Relaxed);
    let Some(spec) = find(&request[0]) else {
        return Step::Answer(unknown(&request[0]));
    };
    if !spec.takes(request.len()) {
        return Step::Answer(wrong_number(spec.name));
    }
    match spec.handler {
        Handler::Data(read) => Step::Data(read(request)),
        Handler::Checked(check) => match check(request, &shared.cursors) {
            Ok(data) => Step::Data(data),
            Err(answer) => Step::Answer(answer),
        },
        Handler::Local(run) => Step::Answer(run(client, shared, request)),
    }
}

pub(super) fn wrong_number(name: &str) -> Answer {
    Answer::error(format!("wrong number of arguments for '{name}' command"))
}

fn unknown(name: &[u8]) -> Answer {
    const SHOWN: usize = 64;
    let shown = String::from_utf8_lossy(&name[..name.len().min(SHOWN)]);
    Answer::error(format!("unknown command '{shown}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_found_by_its_name_in_any_case() {
        for spec in &COMMANDS {
            assert_eq!(find(spec.name.as_bytes()).unwrap().name, spec.name);
            assert_eq!(find(spec.name.to_uppercase().as_bytes()).unwrap().name, spec.name);
        }
        assert!(find(b"").is_none());
        assert!(find(b"flushall").is_none());
        assert!(find(&[b'x'; 1000]).is_none());
    }

    #[test]
    fn the_number_of_arguments_is_checked() {
        let get = find(b"get").unwrap();
        assert!(get.takes(2) && !get.takes(1) && !get.takes(3));
        let del = find(b"del").unwrap();
        assert!(del.takes(2) && del.takes(100) && !del.takes(1));
    }
}
