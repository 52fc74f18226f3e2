//! `hovercraft kv`: the key-value service by hand.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write},
    os::unix::ffi::OsStringExt,
    time::Duration,
};

use bytes::Bytes;
use clap::Subcommand;
use hovercraft::{CallOutcome, ConnectError};

use super::{ClusterArguments, Exit, fail, runtime};
use crate::{
    backend::Backend,
    kv::{Condition, Kv, KvError, PAGE_KEYS_MAX, Refusal, prefix_end},
};

/// Use the key-value service: get, set, delete, compare and set, increment, scan.
///
/// Keys and values are bytes. What is printed is UTF-8 as it is; other bytes, and characters that
/// would control the terminal, are printed as \xNN, \n, \u{1b} and so on (but see `get --raw`).
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,

    /// How long to wait for the cluster, in seconds
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 5)]
    timeout: u16,

    #[command(flatten)]
    cluster: ClusterArguments,
}

/// What to do with the key-value service.
#[derive(Debug, Clone, Subcommand)]
enum Command {
    /// Print the value of a key, or (nil)
    Get {
        /// The key
        key: OsString,
        /// Print the value's bytes and nothing else; nothing at all for a missing key
        #[arg(long)]
        raw: bool,
    },
    /// Set a key
    Set {
        /// The key
        key: OsString,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: OsString,
        /// Only if the key does not exist; otherwise exit with 1
        #[arg(long)]
        nx: bool,
        /// Only if the key exists; otherwise exit with 1
        #[arg(long, conflicts_with = "nx")]
        xx: bool,
    },
    /// Delete keys, and print how many there were
    Del {
        /// The keys
        #[arg(required = true)]
        keys: Vec<OsString>,
    },
    /// Compare and set: set a key if it has the expected value; otherwise exit with 1
    Cas {
        /// The key
        key: OsString,
        /// The value that it must have now
        #[arg(allow_hyphen_values = true)]
        expected: OsString,
        /// Its new value
        #[arg(allow_hyphen_values = true)]
        value: OsString,
    },
    /// Add to a decimal integer (a missing key is 0), and print the sum
    Incr {
        /// The key
        key: OsString,
        /// What to add
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        by: i64,
    },
    /// Print keys and values in the order of the keys, a line each, with a tab between
    Scan {
        /// Only keys that begin with this
        #[arg(long, default_value = "")]
        prefix: OsString,
        /// Begin with this key, or the next one if it does not exist
        #[arg(long, value_name = "KEY", default_value = "")]
        from: OsString,
        /// Print at most this many
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Print the values of keys as they are at one moment, a line each, (nil) for a missing one
    Mget {
        /// The keys
        #[arg(required = true)]
        keys: Vec<OsString>,
    },
    /// Print how many of the keys exist
    Exists {
        /// The keys
        #[arg(required = true)]
        keys: Vec<OsString>,
    },
}

/// Why a command was not carried out in full.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    /// There is no such cluster, or it has no leader.
    #[error("not executed: {0}")]
    Connect(#[from] ConnectError),
    /// The service or the cluster did not do it.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The result cannot be printed.
    #[error("cannot print the result: {0}")]
    Print(#[from] io::Error),
}

impl CommandError {
    /// How the process ends.
    fn exit(&self) -> Exit {
        match self {
            Self::Kv(KvError::Refused(
                Refusal::KeyTooLong | Refusal::ValueTooLong | Refusal::TooManyItems,
            ))
            | Self::Connect(ConnectError::Setting { .. }) => Exit::Usage,
            Self::Kv(error) => match error.outcome() {
                CallOutcome::NotExecuted => Exit::Bad,
                CallOutcome::Executed | CallOutcome::Unknown => Exit::Unknown,
            },
            Self::Connect(_) | Self::Print(_) => Exit::Bad,
        }
    }
}

pub(super) fn run(arguments: Arguments) -> Exit {
    let cluster = match arguments.cluster.resolve() {
        Ok(cluster) => cluster,
        Err(error) => return fail(Exit::Usage, error),
    };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Bad, error),
    };
    let timeout = Duration::from_secs(arguments.timeout.into());
    let done = runtime.block_on(async {
        let kv = Kv::new(cluster.client().timeout(timeout).connect().await?);
        carry_out(arguments.command, &kv, &mut io::stdout().lock(), &mut io::stderr()).await
    });
    done.unwrap_or_else(|error| fail(error.exit(), error))
}

/// Carries out a command and prints its result to `output`; to `notes` goes what is not a result.
async fn carry_out<B: Backend>(
    command: Command,
    kv: &Kv<B>,
    output: &mut impl Write,
    notes: &mut impl Write,
) -> Result<Exit, CommandError> {
    match command {
        Command::Get { key, raw } => {
            let value = kv.get(bytes(key)).await?;
            if raw {
                output.write_all(&value.unwrap_or_default())?;
            } else {
                writeln!(output, "{}", shown(value.as_ref()))?;
            }
        }
        Command::Set { key, value, nx, xx } => {
            let condition = match (nx, xx) {
                (true, _) => Condition::IfAbsent,
                (_, true) => Condition::IfPresent,
                _ => Condition::Always,
            };
            let done = kv.set(bytes(key), bytes(value), condition).await?;
            return done_or_not(done, output);
        }
        Command::Cas { key, expected, value } => {
            let expected = Some(bytes(expected));
            let done = kv.compare_and_set(bytes(key), expected, bytes(value)).await?;
            return done_or_not(done, output);
        }
        Command::Del { keys } => writeln!(output, "{}", kv.delete(all_bytes(keys)).await?)?,
        Command::Incr { key, by } => writeln!(output, "{}", kv.increment(bytes(key), by).await?)?,
        Command::Exists { keys } => writeln!(output, "{}", kv.exists(all_bytes(keys)).await?)?,
        Command::Mget { keys } => {
            for value in kv.get_many(all_bytes(keys)).await? {
                writeln!(output, "{}", shown(value.as_ref()))?;
            }
        }
        Command::Scan { prefix, from, limit } => {
            let prefix = bytes(prefix);
            let start = bytes(from).max(prefix.clone());
            let more = scan(kv, start, prefix_end(&prefix), limit, output).await?;
            if let Some(next) = more {
                writeln!(notes, "there are more; go on with --from '{}'", text(&next))?;
            }
        }
    }
    Ok(Exit::Good)
}

/// Prints pages until `limit`; returns the first key that was not printed, if there is one.
async fn scan<B: Backend>(
    kv: &Kv<B>,
    mut start: Bytes,
    end: Option<Bytes>,
    limit: u32,
    output: &mut impl Write,
) -> Result<Option<Bytes>, CommandError> {
    let mut left = limit;
    loop {
        let page = kv.scan(start, end.clone(), left.min(PAGE_KEYS_MAX)).await?;
        for (key, value) in &page.entries {
            writeln!(output, "{}\t{}", text(key), text(value))?;
        }
        left = left.saturating_sub(page.entries.len() as u32);
        match page.next {
            Some(next) if left > 0 => start = next,
            next => return Ok(next),
        }
    }
}

fn done_or_not(done: bool, output: &mut impl Write) -> Result<Exit, CommandError> {
    if done {
        writeln!(output, "OK")?;
        return Ok(Exit::Good);
    }
    writeln!(output, "not done: the condition does not hold")?;
    Ok(Exit::Bad)
}

fn bytes(argument: OsString) -> Bytes {
    argument.into_vec().into()
}

fn all_bytes(arguments: Vec<OsString>) -> Vec<Bytes> {
    arguments.into_iter().map(bytes).collect()
}

fn shown(value: Option<&Bytes>) -> String {
    value.map_or_else(|| "(nil)".to_owned(), |value| text(value))
}

/// UTF-8 as it is, and as `\xNN` what is not UTF-8 or would control the terminal.
fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if character.is_control() {
                text.extend(character.escape_default());
            } else {
                text.push(character);
            }
        }
        for byte in chunk.invalid() {
            write!(text, "\\x{byte:02x}").expect("writing to a string does not fail");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use hovercraft::CallError;

    use super::*;
    use crate::{backend::InProcess, kv::KvService};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    fn parse(line: &[&str]) -> Command {
        Line::try_parse_from(["kv"].iter().chain(line)).expect("a good line").command
    }

    /// Runs a line; returns how it ended and what it printed, notes last.
    async fn line<B: Backend>(kv: &Kv<B>, line: &[&str]) -> (Exit, String) {
        let (mut output, mut notes) = (Vec::new(), Vec::new());
        let exit = match carry_out(parse(line), kv, &mut output, &mut notes).await {
            Ok(exit) => exit,
            Err(error) => {
                notes.extend(error.to_string().into_bytes());
                error.exit()
            }
        };
        output.extend(notes);
        (exit, String::from_utf8(output).expect("text"))
    }

    #[tokio::test]
    async fn every_command_prints_its_result_and_ends_as_it_should() {
        let kv = Kv::new(InProcess::new(KvService::default()));
        let not_done = "not done: the condition does not hold\n";
        for (words, exit, expected) in [
            (&["get", "a"][..], Exit::Good, "(nil)\n"),
            (&["get", "a", "--raw"], Exit::Good, ""),
            (&["set", "a", "1", "--xx"], Exit::Bad, not_done),
            (&["set", "a", "-1"], Exit::Good, "OK\n"),
            (&["set", "a", "1", "--nx"], Exit::Bad, not_done),
            (&["get", "a"], Exit::Good, "-1\n"),
            (&["get", "a", "--raw"], Exit::Good, "-1"),
            (&["cas", "a", "1", "2"], Exit::Bad, not_done),
            (&["cas", "a", "-1", "2"], Exit::Good, "OK\n"),
            (&["incr", "a"], Exit::Good, "3\n"),
            (&["incr", "a", "-5"], Exit::Good, "-2\n"),
            (&["set", "b", "two words"], Exit::Good, "OK\n"),
            (&["mget", "a", "none", "b"], Exit::Good, "-2\n(nil)\ntwo words\n"),
            (&["exists", "a", "none", "b"], Exit::Good, "2\n"),
            (&["incr", "b"], Exit::Bad, "the value is not an integer of 64 bits"),
            (&["scan"], Exit::Good, "a\t-2\nb\ttwo words\n"),
            (&["scan", "--from", "aa"], Exit::Good, "b\ttwo words\n"),
            (&["scan", "--prefix", "a"], Exit::Good, "a\t-2\n"),
            (
                &["scan", "--limit", "1"],
                Exit::Good,
                "a\t-2\nthere are more; go on with --from 'b'\n",
            ),
            (&["del", "a", "b", "c"], Exit::Good, "2\n"),
        ] {
            assert_eq!(line(&kv, words).await, (exit, expected.to_owned()), "{words:?}");
        }
    }

    #[tokio::test]
    async fn a_scan_goes_over_pages() {
        let kv = Kv::new(InProcess::new(KvService::default()));
        let value = "x".repeat(5 << 20);
        for key in ["a", "b", "c"] {
            kv.set(key, value.clone(), Condition::Always).await.expect("a good set");
        }
        let (exit, output) = line(&kv, &["scan"]).await;
        assert_eq!((exit, output.lines().count()), (Exit::Good, 3));
    }

    /// A cluster that fails every request.
    #[derive(Clone)]
    struct Failing(CallError);

    impl Backend for Failing {
        async fn call(&self, _: Bytes) -> Result<Bytes, CallError> {
            Err(self.0.clone())
        }

        async fn query(&self, _: Bytes) -> Result<Bytes, CallError> {
            Err(self.0.clone())
        }
    }

    #[tokio::test]
    async fn the_exit_code_says_what_became_of_the_request() {
        let time = Duration::from_secs(5);
        for (error, expected) in [
            (CallError::NotSent(time), Exit::Bad),
            (CallError::ReplyTooLarge, Exit::Unknown),
            (CallError::TimedOut(time), Exit::Unknown),
        ] {
            let text = error.to_string();
            let ended = line(&Kv::new(Failing(error)), &["incr", "a"]).await;
            assert_eq!(ended, (expected, text));
        }
    }

    #[test]
    fn bytes_are_shown_as_text_where_they_are() {
        assert_eq!(text("größe C:\\dir".as_bytes()), "größe C:\\dir");
        assert_eq!(text(b"a\xFFb\n\x1B[2J"), "a\\xffb\\n\\u{1b}[2J");
    }
}
