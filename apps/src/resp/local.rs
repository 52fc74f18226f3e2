//! The commands that the gateway answers by itself: about the connection and about the gateway.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::{
    Shared,
    command::{self, COMMANDS},
    glob,
    reply::{Answer, Dialect},
};

/// The release of Redis after which the answers are modelled; clients ask for it to decide what
/// they may use.
const REDIS_VERSION: &str = "7.0.0";

/// What the gateway knows of a connection.
#[derive(Debug)]
pub(super) struct Client {
    /// Counts the connections.
    pub(super) id: u64,
    pub(super) dialect: Dialect,
    /// The connection ends when everything before is answered.
    pub(super) closing: bool,
    name: Bytes,
}

impl Client {
    pub(super) fn new(id: u64) -> Self {
        Self { id, dialect: Dialect::Resp2, closing: false, name: Bytes::new() }
    }

    fn set_name(&mut self, name: &Bytes) -> Result<(), Answer> {
        const NAME_BYTES_MAX: usize = 256;
        if name.len() > NAME_BYTES_MAX || !name.iter().all(u8::is_ascii_graphic) {
            let text = format!(
                "Client names have at most {NAME_BYTES_MAX} printable characters and no spaces"
            );
            return Err(Answer::error(text));
        }
        // A copy, because a slice would keep the whole request in memory.
        self.name = Bytes::copy_from_slice(name);
        Ok(())
    }
}

/// Answers one command, whose arguments have its name first; their number was checked.
pub(super) type Run = fn(&mut Client, &Shared, &[Bytes]) -> Answer;

pub(super) fn ping(_: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    match arguments {
        [_] => Answer::Status("PONG"),
        [_, message] => Answer::Bulk(message.clone()),
        _ => command::wrong_number("ping"),
    }
}

pub(super) fn echo(_: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    Answer::Bulk(arguments[1].clone())
}

pub(super) fn select(_: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    if arguments[1] == "0" {
        Answer::OK
    } else {
        Answer::error("DB index is out of range: there is only 0")
    }
}

pub(super) fn quit(client: &mut Client, _: &Shared, _: &[Bytes]) -> Answer {
    client.closing = true;
    Answer::OK
}

pub(super) fn reset(client: &mut Client, _: &Shared, _: &[Bytes]) -> Answer {
    *client = Client::new(client.id);
    Answer::Status("RESET")
}

pub(super) fn hello(client: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    let (dialect, options) = match arguments {
        [_] => (client.dialect, &[][..]),
        [_, version, options @ ..] => match version.as_ref() {
            b"2" => (Dialect::Resp2, options),
            b"3" => (Dialect::Resp3, options),
            _ => return Answer::error_with("NOPROTO", "unsupported protocol version"),
        },
        [] => unreachable!("a request has a name"),
    };
    match options {
        [] => {}
        [option, name] if option.eq_ignore_ascii_case(b"SETNAME") => {
            if let Err(answer) = client.set_name(name) {
                return answer;
            }
        }
        [option, ..] if option.eq_ignore_ascii_case(b"AUTH") => {
            return Answer::error("AUTH is not supported: connect without a password");
        }
        _ => return Answer::error("syntax error in HELLO"),
    }
    client.dialect = dialect;
    let version = match dialect {
        Dialect::Resp2 => 2,
        Dialect::Resp3 => 3,
    };
    Answer::Map(vec![
        ("server", Answer::bulk("redis")),
        ("version", Answer::bulk(REDIS_VERSION)),
        ("proto", Answer::Integer(version)),
        ("id", id(client)),
        ("mode", Answer::bulk("standalone")),
        ("role", Answer::bulk("master")),
        ("modules", Answer::Array(vec![])),
    ])
}

fn id(client: &Client) -> Answer {
    Answer::Integer(i64::try_from(client.id).expect("fewer than 2^63 connections"))
}

pub(super) fn client(client: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    let rest = &arguments[2..];
    match (arguments[1].to_ascii_uppercase().as_slice(), rest) {
        (b"ID", []) => id(client),
        (b"GETNAME", []) if client.name.is_empty() => Answer::Nil,
        (b"GETNAME", []) => Answer::Bulk(client.name.clone()),
        (b"SETNAME", [name]) => client.set_name(name).err().unwrap_or(Answer::OK),
        // Which library a client is written with is of no use here.
        (b"SETINFO", [_, _]) => Answer::OK,
        _ => unknown_subcommand("CLIENT", "ID, GETNAME, SETNAME and SETINFO"),
    }
}

pub(super) fn config(_: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    // What redis-benchmark and others ask for: there is no file of Redis's kind here.
    const PARAMETERS: [(&str, &str); 3] = [("appendonly", "no"), ("databases", "1"), ("save", "")];
    let patterns = &arguments[2..];
    if !arguments[1].eq_ignore_ascii_case(b"GET") || patterns.is_empty() {
        return unknown_subcommand("CONFIG", "GET; a replica is configured by its file");
    }
    let asked = |name: &str| {
        let mut patterns = patterns.iter().map(|pattern| pattern.to_ascii_lowercase());
        patterns.any(|pattern| glob::matches(&pattern, name.as_bytes()))
    };
    let found = PARAMETERS.into_iter().filter(|(name, _)| asked(name));
    Answer::Map(found.map(|(name, value)| (name, Answer::bulk(value))).collect())
}

pub(super) fn command(_: &mut Client, _: &Shared, arguments: &[Bytes]) -> Answer {
    let all = || Answer::Array(COMMANDS.iter().map(command::Spec::description).collect());
    let Some(subcommand) = arguments.get(1) else {
        return all();
    };
    let rest = &arguments[2..];
    match (subcommand.to_ascii_uppercase().as_slice(), rest) {
        (b"COUNT", []) => count(COMMANDS.len()),
        (b"DOCS", _) => Answer::Map(vec![]),
        (b"LIST", []) => {
            let names = COMMANDS.iter().map(|spec| Answer::bulk(spec.name));
            Answer::Array(names.collect())
        }
        (b"INFO", []) => all(),
        (b"INFO", names) => {
            let describe =
                |name: &Bytes| command::find(name).map_or(Answer::Nil, command::Spec::description);
            Answer::Array(names.iter().map(describe).collect())
        }
        _ => unknown_subcommand("COMMAND", "COUNT, DOCS, INFO and LIST"),
    }
}

fn count(things: usize) -> Answer {
    Answer::Integer(i64::try_from(things).expect("a count in memory is below 2^63"))
}

fn unknown_subcommand(command: &str, known: &str) -> Answer {
    Answer::error(format!("unknown subcommand or wrong number of arguments; {command} has {known}"))
}

pub(super) fn info(_: &mut Client, shared: &Shared, arguments: &[Bytes]) -> Answer {
    let sections = [
        (
            "server",
            format!(
                "redis_version:{REDIS_VERSION}\r\nredis_mode:standalone\r\n\
                 hovercraft_version:{}\r\nprocess_id:{}\r\ntcp_port:{}\r\nuptime_in_seconds:{}\r\n",
                env!("CARGO_PKG_VERSION"),
                std::process::id(),
                shared.address.port(),
                shared.started.elapsed().as_secs(),
            ),
        ),
        (
            "clients",
            format!(
                "connected_clients:{}\r\nmaxclients:{}\r\n",
                shared.connections_max - shared.connections.available_permits(),
                shared.connections_max,
            ),
        ),
        (
            "stats",
            format!(
                "total_connections_received:{}\r\ntotal_commands_processed:{}\r\n",
                shared.accepted_count.load(Ordering::Relaxed),
                shared.command_count.load(Ordering::Relaxed),
            ),
        ),
        ("replication", "role:master\r\nconnected_slaves:0\r\n".into()),
    ];
    let asked = |name: &str| {
        let everything = |word: &Bytes| {
            ["all", "default", "everything", name]
                .iter()
                .any(|known| word.eq_ignore_ascii_case(known.as_bytes()))
        };
        arguments.len() == 1 || arguments[1..].iter().any(everything)
    };
    let section = |(name, lines): &(&str, String)| {
        let (first, rest) = name.split_at(1);
        format!("# {}{rest}\r\n{lines}", first.to_ascii_uppercase())
    };
    let asked = sections.iter().filter(|(name, _)| asked(name));
    Answer::bulk(asked.map(section).collect::<Vec<_>>().join("\r\n"))
}
