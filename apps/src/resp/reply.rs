//! What a command is answered, and its bytes in either dialect of the protocol.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use redis_protocol::{resp2, resp3};

/// Which dialect a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// What every connection begins with.
    Resp2,
    /// After `HELLO 3`.
    Resp3,
}

/// An answer, before it has a dialect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// A word of our own.
    Status(&'static str),
    /// A code word in capitals and a text.
    Error(String),
    /// A number.
    Integer(i64),
    /// Bytes.
    Bulk(Bytes),
    /// Nothing.
    Nil,
    /// Answers in order.
    Array(Vec<Answer>),
    /// Names and what they stand for; in RESP2 an array of both in turn.
    Map(Vec<(&'static str, Answer)>),
}

impl Answer {
    pub(super) const OK: Self = Self::Status("OK");

    /// An error with the code `ERR`.
    pub(super) fn error(text: impl AsRef<str>) -> Self {
        Self::error_with("ERR", text)
    }

    /// An error with a code of its own. Control characters, which would end the line early, become
    /// spaces.
    pub(super) fn error_with(code: &str, text: impl AsRef<str>) -> Self {
        let text = text.as_ref().replace(char::is_control, " ");
        Self::Error(format!("{code} {text}"))
    }

    pub(super) fn bulk(text: impl Into<Bytes>) -> Self {
        Self::Bulk(text.into())
    }

    /// Appends the answer's bytes.
    pub(super) fn encode(self, dialect: Dialect, output: &mut BytesMut) {
        let end = match dialect {
            Dialect::Resp2 => resp2::encode::extend_encode(output, &self.into_resp2(), false),
            Dialect::Resp3 => {
                resp3::encode::complete::extend_encode(output, &self.into_resp3(), false)
            }
        };
        // The crate makes room before it writes, by a logarithm in floating point that is one too
        // many for integers just below a large power of ten. Its result is where it really ended.
        output.truncate(end.expect("the buffer grows"));
    }

    fn into_resp2(self) -> resp2::types::BytesFrame {
        use resp2::types::BytesFrame as Frame;
        match self {
            Self::Status(text) => Frame::SimpleString(Bytes::from_static(text.as_bytes())),
            Self::Error(text) => Frame::Error(text.into()),
            Self::Integer(value) => Frame::Integer(value),
            Self::Bulk(bytes) => Frame::BulkString(bytes),
            Self::Nil => Frame::Null,
            Self::Array(answers) => {
                Frame::Array(answers.into_iter().map(Self::into_resp2).collect())
            }
            Self::Map(pairs) => {
                let pair = |(name, value): (&'static str, Self)| {
                    [Frame::BulkString(name.into()), value.into_resp2()]
                };
                Frame::Array(pairs.into_iter().flat_map(pair).collect())
            }
        }
    }

    /// Written out, because the crate's own conversion takes an array that begins with the bytes
    /// `message` for a published message, and values are anything.
    fn into_resp3(self) -> resp3::types::BytesFrame {
        use resp3::types::BytesFrame as Frame;
        let attributes = None;
        match self {
            Self::Status(text) => {
                Frame::SimpleString { data: Bytes::from_static(text.as_bytes()), attributes }
            }
            Self::Error(text) => Frame::SimpleError { data: text.into(), attributes },
            Self::Integer(data) => Frame::Number { data, attributes },
            Self::Bulk(data) => Frame::BlobString { data, attributes },
            Self::Nil => Frame::Null,
            Self::Array(answers) => Frame::Array {
                data: answers.into_iter().map(Self::into_resp3).collect(),
                attributes,
            },
            Self::Map(pairs) => {
                let pair = |(name, value): (&'static str, Self)| {
                    (Self::bulk(name).into_resp3(), value.into_resp3())
                };
                Frame::Map {
                    data: pairs.into_iter().map(pair).collect::<HashMap<_, _>>(),
                    attributes,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(answer: Answer, dialect: Dialect) -> String {
        let mut output = BytesMut::from("before ");
        answer.encode(dialect, &mut output);
        String::from_utf8(output[7..].to_vec()).expect("text was put in")
    }

    #[test]
    fn each_dialect_has_its_bytes() {
        let answer = || {
            Answer::Array(vec![
                Answer::OK,
                Answer::error("bad\r\nword"),
                Answer::Integer(-5),
                Answer::bulk("hi"),
                Answer::Nil,
                Answer::Map(vec![("a", Answer::Integer(1))]),
            ])
        };
        assert_eq!(
            encoded(answer(), Dialect::Resp2),
            "*6\r\n+OK\r\n-ERR bad  word\r\n:-5\r\n$2\r\nhi\r\n$-1\r\n*2\r\n$1\r\na\r\n:1\r\n"
        );
        assert_eq!(
            encoded(answer(), Dialect::Resp3),
            "*6\r\n+OK\r\n-ERR bad  word\r\n:-5\r\n$2\r\nhi\r\n_\r\n%1\r\n$1\r\na\r\n:1\r\n"
        );
    }

    #[test]
    fn every_integer_ends_where_it_ends() {
        for power in 0..19 {
            let power = 10i64.pow(power);
            for value in [power - 1, power, power + 1, -power, 1 - power, i64::MAX, i64::MIN] {
                let expected = format!("*2\r\n:{value}\r\n:{value}\r\n");
                for dialect in [Dialect::Resp2, Dialect::Resp3] {
                    let twice = Answer::Array(vec![Answer::Integer(value); 2]);
                    assert_eq!(encoded(twice, dialect), expected);
                }
            }
        }
    }

    #[test]
    fn values_that_look_like_a_published_message_are_values() {
        let words = ["message", "channel", "text"];
        let answer = Answer::Array(words.map(Answer::bulk).to_vec());
        assert!(encoded(answer, Dialect::Resp3).starts_with("*3\r\n$7\r\nmessage\r\n"));
    }
}
