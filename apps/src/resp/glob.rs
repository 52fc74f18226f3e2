//! Redis's glob patterns: `*`, `?`, `[abc]`, `[^a-z]`, and `\` before a character meant literally.

/// The longest pattern, in bytes. Matching takes at most the product of both lengths, so this
/// bounds what a pattern made to be slow can cost.
pub(super) const PATTERN_BYTES_MAX: usize = 256;

/// Whether the whole of `text` matches `pattern`.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern_at, mut text_at) = (0, 0);
    // Where to go on when a match fails: behind the last star, one byte further in the text. An
    // earlier star need not be tried again: what it would take, the last one can take as well.
    let mut retry: Option<(usize, usize)> = None;
    loop {
        if pattern.get(pattern_at) == Some(&b'*') {
            pattern_at += 1;
            retry = Some((pattern_at, text_at));
            continue;
        }
        match (pattern.get(pattern_at..).unwrap_or(&[]), text.get(text_at)) {
            ([], None) => return true,
            (rest @ [_, ..], Some(byte)) => {
                let (matched, length) = match_one(rest, *byte);
                if matched {
                    pattern_at += length;
                    text_at += 1;
                    continue;
                }
            }
            ([], Some(_)) | ([_, ..], None) => {}
        }
        match retry {
            Some((after_star, from)) if from < text.len() => {
                retry = Some((after_star, from + 1));
                (pattern_at, text_at) = (after_star, from + 1);
            }
            _ => return false,
        }
    }
}

/// What every match begins with: the bytes before the first character with a meaning.
pub(super) fn literal_prefix(pattern: &[u8]) -> &[u8] {
    let special = |byte: &u8| matches!(byte, b'*' | b'?' | b'[' | b'\\');
    let end = pattern.iter().position(special);
    &pattern[..end.unwrap_or(pattern.len())]
}

/// Matches one byte by the element that `pattern` begins with; also returns that element's length.
fn match_one(pattern: &[u8], byte: u8) -> (bool, usize) {
    match pattern {
        [b'?', ..] => (true, 1),
        [b'[', class @ ..] => {
            let (matched, length) = match_class(class, byte);
            (matched, 1 + length)
        }
        [b'\\', literal, ..] => (*literal == byte, 2),
        [literal, ..] => (*literal == byte, 1),
        [] => (false, 0),
    }
}

/// Matches one byte by what follows a `[`; also returns the length up to and with the `]`. As in
/// Redis, a class that is not closed ends with the pattern, and a range may be given backwards.
fn match_class(class: &[u8], byte: u8) -> (bool, usize) {
    let negated = class.first() == Some(&b'^');
    let mut at = usize::from(negated);
    let mut found = false;
    loop {
        match &class[at..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                found |= *literal == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                found |= (*from.min(to)..=*from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                found |= *literal == byte;
                at += 1;
            }
        }
    }
    (found != negated, at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn matches_as_redis_does() {
        for (pattern, text, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*", "anything", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXc", false),
            ("a**c", "ac", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-c]llo", "hbllo", true),
            ("h[c-a]llo", "hbllo", true),
            ("h[a-c]llo", "hdllo", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("[\\]]", "]", true),
            ("a\\", "a\\", true),
            ("[ab", "a", true),
            ("[", "a", false),
            ("user:*:name", "user:17:name", true),
            ("user:*:name", "user:17:names", false),
        ] {
            let found = matches(pattern.as_bytes(), text.as_bytes());
            assert_eq!(found, expected, "{pattern:?} against {text:?}");
        }
    }

    #[test]
    fn a_pattern_made_to_be_slow_is_not() {
        let pattern = [b"*a".repeat(100), b"b".to_vec()].concat();
        assert!(!matches(&pattern, &vec![b'a'; 10_000]));
    }

    /// The definition, for patterns of `a`, `b`, `?` and `*`.
    fn defined(pattern: &[u8], text: &[u8]) -> bool {
        match (pattern, text) {
            ([], []) => true,
            ([b'*', rest @ ..], _) => {
                defined(rest, text) || (!text.is_empty() && defined(pattern, &text[1..]))
            }
            ([b'?', rest @ ..], [_, tail @ ..]) => defined(rest, tail),
            ([p, rest @ ..], [t, tail @ ..]) if p == t => defined(rest, tail),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_the_definition(pattern in "[ab?*]{0,8}", text in "[ab]{0,10}") {
            let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
            prop_assert_eq!(matches(pattern, text), defined(pattern, text));
        }

        #[test]
        fn arbitrary_patterns_end(pattern: Vec<u8>, text: Vec<u8>) {
            if matches(&pattern, &text) {
                prop_assert!(text.starts_with(literal_prefix(&pattern)));
            }
        }
    }
}
