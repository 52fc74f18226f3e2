//! Texts that grow at the end, so that a search can hold very many of them.

use std::{
    hash::{Hash, Hasher},
    iter,
    sync::Arc,
};

/// A prime below 2^61, and a base for numbers that stand for texts.
const MODULUS: u128 = (1 << 61) - 1;
const BASE: u128 = 0x0bad_5eed_1234_5677;

/// How many bytes lie between the beginnings of a text whose numbers are kept.
const KEPT_EVERY: usize = 64;

/// A text as the pieces that were appended to each other. Texts share what they begin with, and are
/// told apart by a number first: in nearly all cases that is enough.
#[derive(Debug, Clone, Default)]
pub struct Text {
    length: usize,
    number: u64,
    last: Option<Arc<Piece>>,
}

#[derive(Debug)]
struct Piece {
    before: Option<Arc<Piece>>,
    text: Arc<str>,
}

impl Text {
    /// The text with another one behind it.
    #[must_use]
    pub fn append(&self, text: &Arc<str>) -> Self {
        if text.is_empty() {
            return self.clone();
        }
        let last = Piece { before: self.last.clone(), text: Arc::clone(text) };
        Self {
            length: self.length + text.len(),
            number: number(self.number, text.as_bytes()),
            last: Some(Arc::new(last)),
        }
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether another text begins with this one.
    pub fn is_prefix_of(&self, text: &PrefixedText) -> bool {
        text.number(self.length) == Some(self.number)
            && text.text.as_bytes()[..self.length].iter().rev().eq(self.bytes_backwards())
    }

    fn bytes_backwards(&self) -> impl Iterator<Item = &u8> {
        let pieces = iter::successors(self.last.as_ref(), |piece| piece.before.as_ref());
        pieces.flat_map(|piece| piece.text.as_bytes().iter().rev())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        let is_same = match (&self.last, &other.last) {
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            (None, None) => true,
            _ => false,
        };
        is_same
            || self.length == other.length
                && self.number == other.number
                && self.bytes_backwards().eq(other.bytes_backwards())
    }
}

impl Eq for Text {}

impl Hash for Text {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.number.hash(hasher);
    }
}

impl std::fmt::Display for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pieces = iter::successors(self.last.as_ref(), |piece| piece.before.as_ref());
        let pieces: Vec<_> = pieces.collect();
        pieces.iter().rev().try_for_each(|piece| f.write_str(&piece.text))
    }
}

impl Drop for Piece {
    /// Not by recursion: there may be more pieces than a stack has room for.
    fn drop(&mut self) {
        let mut before = self.before.take();
        while let Some(piece) = before {
            before = Arc::into_inner(piece).and_then(|mut piece| piece.before.take());
        }
    }
}

/// A text that knows the numbers of its beginnings: it keeps one for every so many bytes.
#[derive(Debug, Clone)]
pub struct PrefixedText {
    text: Arc<str>,
    numbers: Arc<[u64]>,
}

impl PrefixedText {
    /// Computes the numbers.
    pub fn new(text: Arc<str>) -> Self {
        let mut last = 0;
        let numbers = text.as_bytes().chunks(KEPT_EVERY).map(|chunk| {
            let after = number(last, chunk);
            std::mem::replace(&mut last, after)
        });
        let numbers = numbers.collect();
        Self { text, numbers }
    }

    /// The number of its first `length` bytes, if it has so many.
    fn number(&self, length: usize) -> Option<u64> {
        let beginning = self.text.as_bytes().get(..length)?;
        let kept = length.saturating_sub(1) / KEPT_EVERY;
        let before = self.numbers.get(kept).copied().unwrap_or(0);
        Some(number(before, &beginning[kept * KEPT_EVERY..]))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for PrefixedText {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for PrefixedText {}

impl Hash for PrefixedText {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.text.hash(hasher);
    }
}

/// The number of what has the number `before`, with a text behind it.
fn number(before: u64, text: &[u8]) -> u64 {
    // Zero is a byte too, so that each counts one more than it is.
    let next = |before, byte: &u8| (u128::from(before) * BASE + u128::from(*byte) + 1) % MODULUS;
    text.iter().fold(before, |before, byte| next(before, byte) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pieces: &[&str]) -> Text {
        pieces.iter().fold(Text::default(), |text, piece| text.append(&Arc::from(*piece)))
    }

    #[test]
    fn texts_are_equal_however_they_were_made() {
        assert_eq!(text(&["ab", "c"]), text(&["a", "", "bc"]));
        assert_ne!(text(&["ab"]), text(&["ba"]));
        assert_ne!(text(&["\0"]), text(&[]));
        assert_eq!(text(&["ab", "c"]).to_string(), "abc");
        assert!(text(&[]).is_empty() && text(&["é"]).len() == 2);
    }

    #[test]
    fn beginnings_are_known() {
        let whole = PrefixedText::new("héllo".into());
        for (pieces, expected) in [
            (&["h", "é"][..], true),
            (&[], true),
            (&["héllo"], true),
            (&["e"], false),
            (&["héllo", "!"], false),
        ] {
            assert_eq!(text(pieces).is_prefix_of(&whole), expected, "{pieces:?}");
        }
    }

    #[test]
    fn beginnings_of_every_length_are_known() {
        let long: String = ('a'..='z').cycle().take(300).collect();
        let whole = PrefixedText::new(long.as_str().into());
        for length in 0..=300 {
            assert!(text(&[&long[..length]]).is_prefix_of(&whole), "{length}");
            assert!(!text(&[&long[1..length.max(1)], "!"]).is_prefix_of(&whole), "{length}");
        }
    }

    #[test]
    fn a_text_of_very_many_pieces_is_dropped() {
        let piece = Arc::from("x");
        let text = (0..1_000_000).fold(Text::default(), |text, _| text.append(&piece));
        let copy = text.clone();
        drop(text);
        assert_eq!(copy.len(), 1_000_000);
    }
}
