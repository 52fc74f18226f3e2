//! Values of operations, as they stand in a history.

use std::{fmt, sync::Arc};

use serde::{Serialize, Serializer, ser::SerializeMap};

/// What an operation was given or has returned: the part of EDN that histories use, of which JSON is
/// a part.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Value {
    /// Nothing.
    #[default]
    Nil,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number or a character, as it was written: nothing is computed with it.
    Literal(Arc<str>),
    /// A text.
    Text(Arc<str>),
    /// A name; the colon before it is not a part of it.
    Keyword(Arc<str>),
    /// Values in order.
    List(Arc<[Value]>),
    /// Values without order, sorted, each once.
    Set(Arc<[Value]>),
    /// Values by keys, sorted by keys.
    Map(Arc<[(Value, Value)]>),
}

impl Value {
    /// Makes a list.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self::List(items.into_iter().collect())
    }

    /// Makes a set.
    pub fn set(items: impl IntoIterator<Item = Self>) -> Self {
        let mut items: Vec<_> = items.into_iter().collect();
        items.sort_unstable();
        items.dedup();
        Self::Set(items.into())
    }

    /// Makes a map. Of several values for one key the last one stays.
    pub fn map(entries: impl IntoIterator<Item = (Self, Self)>) -> Self {
        let mut entries: Vec<_> = entries.into_iter().collect();
        entries.reverse();
        entries.sort_by(|one, other| one.0.cmp(&other.0));
        entries.dedup_by(|one, other| one.0 == other.0);
        Self::Map(entries.into())
    }

    /// Whether it is nothing.
    pub fn is_nil(&self) -> bool {
        *self == Self::Nil
    }

    /// The number, if it is a whole one.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// The text of a text or a name.
    pub fn as_name(&self) -> Option<&str> {
        match self {
            Self::Text(text) | Self::Keyword(text) => Some(text),
            _ => None,
        }
    }

    /// The items of a list or a set.
    pub fn items(&self) -> Option<&[Self]> {
        match self {
            Self::List(items) | Self::Set(items) => Some(items),
            _ => None,
        }
    }

    /// The two items of a list of two.
    pub fn as_pair(&self) -> Option<(&Self, &Self)> {
        match self {
            Self::List(items) => match &**items {
                [first, second] => Some((first, second)),
                _ => None,
            },
            _ => None,
        }
    }

    /// About how many bytes it takes beside itself.
    pub(crate) fn heap_bytes(&self) -> usize {
        const COUNTS: usize = 16;
        match self {
            Self::Nil | Self::Bool(_) | Self::Int(_) => 0,
            Self::Literal(text) | Self::Text(text) | Self::Keyword(text) => text.len() + COUNTS,
            Self::List(items) | Self::Set(items) => {
                COUNTS
                    + items.iter().map(|item| size_of::<Self>() + item.heap_bytes()).sum::<usize>()
            }
            Self::Map(entries) => {
                let bytes = |(key, value): &(Self, Self)| {
                    2 * size_of::<Self>() + key.heap_bytes() + value.heap_bytes()
                };
                COUNTS + entries.iter().map(bytes).sum::<usize>()
            }
        }
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Int(number)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Option<i64>> for Value {
    fn from(number: Option<i64>) -> Self {
        number.map_or(Self::Nil, Self::Int)
    }
}

/// As EDN, which is also how people read it.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => f.write_str("nil"),
            Self::Bool(truth) => write!(f, "{truth}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Literal(text) => f.write_str(text),
            Self::Text(text) => write!(f, "{:?}", &**text),
            Self::Keyword(name) => write!(f, ":{name}"),
            Self::List(items) => write_items(f, "[", items, "]"),
            Self::Set(items) => write_items(f, "#{", items, "}"),
            Self::Map(entries) => {
                f.write_str("{")?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    let comma = if at == 0 { "" } else { ", " };
                    write!(f, "{comma}{key} {value}")?;
                }
                f.write_str("}")
            }
        }
    }
}

fn write_items(
    f: &mut fmt::Formatter<'_>,
    open: &str,
    items: &[Value],
    close: &str,
) -> fmt::Result {
    f.write_str(open)?;
    for (at, item) in items.iter().enumerate() {
        let space = if at == 0 { "" } else { " " };
        write!(f, "{space}{item}")?;
    }
    f.write_str(close)
}

/// As JSON: names are texts there, and sets are lists.
impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil => serializer.serialize_unit(),
            Self::Bool(truth) => serializer.serialize_bool(*truth),
            Self::Int(number) => serializer.serialize_i64(*number),
            Self::Literal(text) | Self::Text(text) | Self::Keyword(text) => {
                serializer.serialize_str(text)
            }
            Self::List(items) | Self::Set(items) => serializer.collect_seq(items.iter()),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries.iter() {
                    match key.as_name() {
                        Some(name) => map.serialize_entry(name, value)?,
                        None => map.serialize_entry(&key.to_string(), value)?,
                    }
                }
                map.end()
            }
        }
    }
}
