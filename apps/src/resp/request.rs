//! Reads requests from the bytes of a connection: arrays of bulk strings, or a line of words.
//!
//! This is the one part of the protocol that strangers feed, and by far its smallest, so it is not
//! read by the protocol crate: that one's decoder recurses into nested arrays as deep as they are,
//! and begins anew whenever more bytes have come. Here every byte is looked at once, nothing nests,
//! and what is claimed beyond a limit is refused before any of it is awaited.

use std::{mem, ops::Range};

use bytes::{Bytes, BytesMut};

/// The most arguments of a request, its name included.
const ARGUMENTS_MAX: usize = 65_536;

/// The longest line of words, in bytes.
const LINE_BYTES_MAX: usize = 64 << 10;

/// The longest `*n` or `$n` line with its end: a type byte, the 20 digits of 64 bits, CR LF.
const HEADER_BYTES_MAX: usize = 23;

/// Why the bytes are not a request. What follows cannot be read either, so the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The count of arguments is not a number, or too large.
    #[error("Protocol error: invalid multibulk length")]
    Count,
    /// The length of an argument is not a number, or too large.
    #[error("Protocol error: invalid bulk length")]
    Length,
    /// An argument does not begin with `$`.
    #[error("Protocol error: expected '$'")]
    NotBulk,
    /// An argument is not followed by CR LF.
    #[error("Protocol error: expected CR LF behind an argument")]
    Unterminated,
    /// A line of words is too long.
    #[error("Protocol error: too big inline request")]
    Line,
    /// The request is larger than a request may be.
    #[error("Protocol error: the request is larger than the limit of this cluster")]
    Size,
}

/// The bytes of a connection that are not yet requests.
#[derive(Debug)]
pub struct RequestReader {
    buffer: BytesMut,
    /// How many bytes of the first request were read.
    at: usize,
    /// Its arguments so far, if its count was read.
    partial: Option<Partial>,
    request_bytes_max: usize,
}

#[derive(Debug)]
struct Partial {
    count: usize,
    arguments: Vec<Range<usize>>,
}

impl RequestReader {
    /// A reader of requests of at most `request_bytes_max` bytes.
    pub fn new(request_bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), at: 0, partial: None, request_bytes_max }
    }

    /// Where to append what arrives.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// How many bytes wait, all of the same request if [`Self::next_request`] returned none.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The name and the arguments of the next request, at least the name; none if it has not come
    /// in full. After an error the reader is of no use.
    pub fn next_request(&mut self) -> Result<Option<Vec<Bytes>>, RequestError> {
        loop {
            if self.partial.is_none() {
                match self.buffer.first() {
                    None => return Ok(None),
                    Some(b'*') => {
                        let Some(count) = self.number(RequestError::Count)? else {
                            return Ok(None);
                        };
                        if count <= 0 {
                            self.take(self.at);
                            continue;
                        }
                        self.partial = Some(Partial::new(count)?);
                    }
                    Some(_) => match self.line()? {
                        Some(words) if words.is_empty() => continue,
                        words => return Ok(words),
                    },
                }
            }
            return self.arguments();
        }
    }

    /// Reads arguments until the request is complete; none if more must come.
    fn arguments(&mut self) -> Result<Option<Vec<Bytes>>, RequestError> {
        let mut partial = self.partial.take().expect("the count was read");
        while partial.arguments.len() < partial.count {
            if let Some(argument) = self.argument()? {
                partial.arguments.push(argument);
            } else {
                self.partial = Some(partial);
                return Ok(None);
            }
        }
        let request = self.take(self.at);
        let ranges = partial.arguments.into_iter();
        Ok(Some(ranges.map(|range| request.slice(range)).collect()))
    }

    /// Reads one argument, and returns where in the buffer it is.
    fn argument(&mut self) -> Result<Option<Range<usize>>, RequestError> {
        let header = self.at;
        match self.buffer.get(header) {
            None => return Ok(None),
            Some(b'$') => {}
            Some(_) => return Err(RequestError::NotBulk),
        }
        let Some(length) = self.number(RequestError::Length)? else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(|_| RequestError::Length)?;
        let start = mem::replace(&mut self.at, header);
        if length > self.request_bytes_max || start + length + 2 > self.request_bytes_max {
            return Err(RequestError::Size);
        }
        let end = start + length;
        let Some(terminator) = self.buffer.get(end..end + 2) else {
            return Ok(None);
        };
        if terminator != b"\r\n" {
            return Err(RequestError::Unterminated);
        }
        self.at = end + 2;
        Ok(Some(start..end))
    }

    /// Reads a type byte, a number and CR LF, and leaves `at` behind them; none, and `at` as it
    /// was, if they have not come in full.
    fn number(&mut self, error: RequestError) -> Result<Option<i64>, RequestError> {
        let rest = &self.buffer[self.at..];
        let rest = &rest[..rest.len().min(HEADER_BYTES_MAX)];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            let more_may_come = rest.len() < HEADER_BYTES_MAX;
            return if more_may_come { Ok(None) } else { Err(error) };
        };
        let [_, digits @ .., b'\r'] = &rest[..end] else {
            return Err(error);
        };
        let digits = str::from_utf8(digits).map_err(|_| error)?;
        let number = digits.parse().map_err(|_| error)?;
        self.at += end + 1;
        Ok(Some(number))
    }

    /// Reads a line of words, as people type them; none if its end has not come.
    fn line(&mut self) -> Result<Option<Vec<Bytes>>, RequestError> {
        let Some(found) = self.buffer[self.at..].iter().position(|b| *b == b'\n') else {
            self.at = self.buffer.len();
            let more_may_come = self.at < LINE_BYTES_MAX;
            return if more_may_come { Ok(None) } else { Err(RequestError::Line) };
        };
        let line = self.take(self.at + found + 1);
        let words = line.split(u8::is_ascii_whitespace);
        let words = words.filter(|word| !word.is_empty());
        Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
    }

    /// Removes the first `length` bytes, which are a whole request.
    fn take(&mut self, length: usize) -> Bytes {
        self.at = 0;
        self.buffer.split_to(length).freeze()
    }
}

impl Partial {
    fn new(count: i64) -> Result<Self, RequestError> {
        const TRUSTED: usize = 16;
        match usize::try_from(count) {
            Ok(count) if count <= ARGUMENTS_MAX => {
                Ok(Self { count, arguments: Vec::with_capacity(count.min(TRUSTED)) })
            }
            _ => Err(RequestError::Count),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use redis_protocol::resp2::{encode::extend_encode, types::BytesFrame};

    use super::*;

    const LIMIT: usize = 1 << 20;

    /// Feeds `pieces` one after the other; returns the requests and the error at the end.
    fn feed<'a>(
        pieces: impl IntoIterator<Item = &'a [u8]>,
    ) -> (Vec<Vec<Bytes>>, Option<RequestError>) {
        let mut reader = RequestReader::new(LIMIT);
        let mut requests = Vec::new();
        for piece in pieces {
            reader.buffer().extend_from_slice(piece);
            loop {
                match reader.next_request() {
                    Ok(Some(request)) => requests.push(request),
                    Ok(None) => break,
                    Err(error) => return (requests, Some(error)),
                }
            }
        }
        (requests, None)
    }

    fn words(request: &[&str]) -> Vec<Bytes> {
        let word = |word: &&str| Bytes::copy_from_slice(word.as_bytes());
        request.iter().map(word).collect()
    }

    #[test]
    fn reads_arrays_and_lines_in_one_stream() {
        let input = b"*2\r\n$4\r\nECHO\r\n$2\r\nhi\r\nPING\r\n\r\n  set  a\t1 \n*0\r\n*-1\r\n*1\r\n$0\r\n\r\n";
        let expected =
            [words(&["ECHO", "hi"]), words(&["PING"]), words(&["set", "a", "1"]), words(&[""])];
        assert_eq!(feed([&input[..]]), (expected.to_vec(), None));
    }

    #[test]
    fn what_is_no_request_is_refused_at_once() {
        for (input, expected) in [
            ("*x\r\n", RequestError::Count),
            ("*\r\n", RequestError::Count),
            ("*1\n", RequestError::Count),
            ("*70000\r\n", RequestError::Count),
            ("*99999999999999999999999", RequestError::Count),
            ("*1\r\n+OK\r\n", RequestError::NotBulk),
            ("*1\r\n*1\r\n", RequestError::NotBulk),
            ("*1\r\n$-1\r\n", RequestError::Length),
            ("*1\r\n$x\r\n", RequestError::Length),
            ("*1\r\n$9999999999999999999999", RequestError::Length),
            ("*1\r\n$9223372036854775807\r\n", RequestError::Size),
            ("*1\r\n$2\r\nabcd", RequestError::Unterminated),
        ] {
            let (requests, error) = feed([input.as_bytes()]);
            assert_eq!((requests, error), (vec![], Some(expected)), "{input:?}");
        }
        let endless = vec![b'x'; LINE_BYTES_MAX];
        assert_eq!(feed([&endless[..]]).1, Some(RequestError::Line));
    }

    #[test]
    fn a_request_that_claims_too_much_is_refused_before_it_comes() {
        let size = LIMIT;
        let input = format!("*2\r\n$3\r\nGET\r\n${size}\r\n");
        assert_eq!(feed([input.as_bytes()]).1, Some(RequestError::Size));
    }

    proptest! {
        #[test]
        fn reads_what_the_protocol_crate_writes(
            requests in vec(vec(vec(any::<u8>(), 0..20), 1..6), 0..6),
            cuts in vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let requests: Vec<Vec<Bytes>> = requests
                .into_iter()
                .map(|request| request.into_iter().map(Bytes::from).collect())
                .collect();
            let mut wire = BytesMut::new();
            for request in &requests {
                let arguments = request.iter().cloned().map(BytesFrame::BulkString);
                let frame = BytesFrame::Array(arguments.collect());
                extend_encode(&mut wire, &frame, false).expect("a buffer that grows");
            }
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| &wire[cut[0]..cut[1]]);
            prop_assert_eq!(feed(pieces), (requests, None));
        }

        #[test]
        fn arbitrary_bytes_read_the_same_however_they_are_cut(
            bytes in vec(prop::sample::select(&b"*$-+0123\r\n ab"[..]), 0..60),
        ) {
            let whole = feed([&bytes[..]]);
            let single = feed(bytes.chunks(1));
            prop_assert_eq!(whole, single);
        }

        #[test]
        fn any_bytes_at_all_do_not_panic(bytes: Vec<u8>) {
            feed([&bytes[..]]);
        }
    }
}
