//! The EDN of Jepsen's histories, read form by form, with the lines on which they begin.
//!
//! There are crates that read EDN, but a history may be hostile: forms nest no deeper here than a
//! limit, and every error has its line.

use std::sync::Arc;

use crate::Value;

/// How deep forms may nest.
const DEPTH_MAX: usize = 100;

/// Reads forms from a text.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    rest: &'a str,
    line: usize,
    depth: usize,
}

/// What is wrong with a text, and on which line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EdnError {
    pub(super) line: usize,
    pub(super) what: String,
}

impl<'a> Reader<'a> {
    /// `line` is the number of the text's first line.
    pub(super) fn new(text: &'a str, line: usize) -> Self {
        Self { rest: text, line, depth: 0 }
    }

    /// The line on which the reader is.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The next character that is not space or comment, which stays where it is.
    pub(super) fn peek(&mut self) -> Result<Option<char>, EdnError> {
        loop {
            let Some(next) = self.rest.chars().next() else { return Ok(None) };
            if next == ';' {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.rest = &self.rest[end..];
            } else if let Some(rest) = self.rest.strip_prefix("#_") {
                self.rest = rest;
                self.nested(Self::form)?;
            } else if next == ',' || next.is_whitespace() || next == '\u{feff}' {
                self.line += usize::from(next == '\n');
                self.rest = &self.rest[next.len_utf8()..];
            } else {
                return Ok(Some(next));
            }
        }
    }

    /// Takes a character that [`Self::peek`] has shown.
    pub(super) fn skip(&mut self, character: char) {
        let rest = self.rest.strip_prefix(character);
        self.rest = rest.expect("the caller has seen it there");
    }

    /// The first character that is no space behind an opening bracket, which is next.
    pub(super) fn peek_behind_bracket(&self) -> Result<Option<char>, EdnError> {
        let behind = &self.rest[1..];
        Reader { rest: behind, line: self.line, depth: self.depth }.peek()
    }

    /// Reads a form.
    pub(super) fn form(&mut self) -> Result<Value, EdnError> {
        match self.peek()? {
            None => Err(self.error("the text ends where a form should be")),
            Some('"') => self.text(),
            Some('[') => Ok(Value::list(self.items('[', ']')?)),
            Some('(') => Ok(Value::list(self.items('(', ')')?)),
            Some('{') => self.map(),
            Some('#') => self.dispatch(),
            Some(':') => {
                self.skip(':');
                Ok(Value::Keyword(self.token()?.into()))
            }
            Some('\\') => self.character(),
            Some('^') => {
                // What is said about a form, not a part of it.
                self.skip('^');
                self.nested(Self::form)?;
                self.nested(Self::form)
            }
            Some(close @ (']' | ')' | '}')) => {
                Err(self.error(&format!("nothing opened this {close}")))
            }
            Some(_) => Ok(atom(self.token()?)),
        }
    }

    /// Reads something inside of something.
    fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, EdnError>,
    ) -> Result<T, EdnError> {
        if self.depth == DEPTH_MAX {
            return Err(self.error(&format!("forms nest deeper than {DEPTH_MAX}")));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn items(&mut self, open: char, close: char) -> Result<Vec<Value>, EdnError> {
        let line = self.line;
        self.skip(open);
        let mut items = Vec::new();
        loop {
            match self.peek()? {
                Some(next) if next == close => {
                    self.skip(close);
                    return Ok(items);
                }
                Some(_) => items.push(self.nested(Self::form)?),
                None => {
                    let what = format!("the {open} of line {line} is not closed");
                    return Err(EdnError { line, what });
                }
            }
        }
    }

    fn map(&mut self) -> Result<Value, EdnError> {
        let line = self.line;
        let items = self.items('{', '}')?;
        if items.len() % 2 != 0 {
            let what = "a map has a key without a value".to_owned();
            return Err(EdnError { line, what });
        }
        let mut items = items.into_iter();
        Ok(Value::map(std::iter::from_fn(|| Some((items.next()?, items.next()?)))))
    }

    /// Reads what begins with #: a set, or a form with a tag, which is passed over: the records of
    /// Jepsen are maps to us.
    fn dispatch(&mut self) -> Result<Value, EdnError> {
        self.skip('#');
        match self.rest.chars().next() {
            Some('{') => Ok(Value::set(self.items('{', '}')?)),
            Some('"') => self.text(),
            Some('#') => {
                // The numbers that are none, as in ##Inf.
                self.skip('#');
                Ok(Value::Literal(self.token()?.into()))
            }
            _ => {
                self.token()?;
                self.nested(Self::form)
            }
        }
    }

    fn text(&mut self) -> Result<Value, EdnError> {
        let line = self.line;
        self.skip('"');
        let mut text = String::new();
        loop {
            let Some(end) = self.rest.find(['"', '\\']) else {
                let what = format!("the text of line {line} is not closed");
                return Err(EdnError { line, what });
            };
            let (part, rest) = self.rest.split_at(end);
            self.line += part.bytes().filter(|byte| *byte == b'\n').count();
            text.push_str(part);
            if let Some(rest) = rest.strip_prefix('"') {
                self.rest = rest;
                return Ok(Value::Text(text.into()));
            }
            self.rest = &rest[1..];
            text.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, EdnError> {
        let mut characters = self.rest.chars();
        let escaped = characters.next().ok_or_else(|| self.error("a text is not closed"))?;
        self.rest = characters.as_str();
        Ok(match escaped {
            't' => '\t',
            'n' => '\n',
            'r' => '\r',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'u' => {
                let digits = self.rest.get(..4).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let Some(code) = digits else {
                    return Err(self.error("\\u is not followed by four hexadecimal digits"));
                };
                self.rest = &self.rest[4..];
                // Half of a pair has no meaning alone.
                char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
            other => {
                self.line += usize::from(other == '\n');
                other
            }
        })
    }

    /// Reads a character, as in \a or \newline.
    fn character(&mut self) -> Result<Value, EdnError> {
        self.skip('\\');
        let Some(first) = self.rest.chars().next() else {
            return Err(self.error("no character follows the \\"));
        };
        self.line += usize::from(first == '\n');
        let end = self.rest[first.len_utf8()..].find(is_delimiter);
        let end = end.map_or(self.rest.len(), |end| end + first.len_utf8());
        let (name, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok(Value::Literal(format!("\\{name}").into()))
    }

    fn token(&mut self) -> Result<&'a str, EdnError> {
        let end = self.rest.find(is_delimiter).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest;
        if token.is_empty() { Err(self.error("a name is missing")) } else { Ok(token) }
    }

    fn error(&self, what: &str) -> EdnError {
        EdnError { line: self.line, what: what.to_owned() }
    }
}

fn is_delimiter(character: char) -> bool {
    character.is_whitespace() || "[](){}\",;\\".contains(character)
}

/// What a token means that begins as no other form does.
fn atom(token: &str) -> Value {
    match token {
        "nil" => return Value::Nil,
        "true" => return Value::Bool(true),
        "false" => return Value::Bool(false),
        _ => {}
    }
    // Clojure writes its large numbers with an N.
    let digits = token.strip_suffix('N').unwrap_or(token);
    match digits.parse() {
        Ok(number) => Value::Int(number),
        Err(_) => Value::Literal(Arc::from(token)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Value, EdnError> {
        Reader::new(text, 1).form()
    }

    #[test]
    fn forms_of_every_kind_are_read() {
        let same = [
            ("nil", "nil"),
            ("[1, 2,,3]", "[1 2 3]"),
            ("(-1 +2 7N)", "[-1 2 7]"),
            ("#{3 1 2 1}", "#{1 2 3}"),
            ("{:b 2, :a [nil true]}", "{:a [nil true], :b 2}"),
            ("{:a 1 :a 2}", "{:a 2}"),
            ("#jepsen.history.Op{:index 0}", "{:index 0}"),
            ("#object[a.B 0x1f \"x\"]", "[a.B 0x1f \"x\"]"),
            ("; a comment\n ^{:m 1} [#_skipped 1 #_[a b]]", "[1]"),
            ("\"a\\n\\\"b\\\\ \\u0041\"", "\"a\\n\\\"b\\\\ A\""),
            ("[1.5 \\a ##Inf 1/2 99999999999999999999]", "[1.5 \\a Inf 1/2 99999999999999999999]"),
            (":a/b", ":a/b"),
        ];
        for (text, expected) in same {
            assert_eq!(
                read(text).map(|value| value.to_string()).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for text in
            ["\n\n[1 [2]", "\n\n{:a}", "\n\n)", "\n\n\"x", "\n\n:", "\n\n#", "\n\n\"\\u12\""]
        {
            assert_eq!(read(text).map_err(|error| error.line), Err(3), "{text:?}");
        }
        assert!(read("").is_err());
    }

    #[test]
    fn deep_nesting_is_refused() {
        for open in ["[", "#{", "#_", "^", "#a "] {
            let error = read(&open.repeat(1_000_000)).unwrap_err();
            assert!(error.what.contains("deeper"), "{open}: {error:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\](){}#_^\\\\\":;a1N\\n ]{0,40}|\\PC*") {
            let mut reader = Reader::new(&text, 1);
            while let Ok(Some(_)) = reader.peek() {
                if reader.form().is_err() {
                    break;
                }
            }
        }
    }
}
