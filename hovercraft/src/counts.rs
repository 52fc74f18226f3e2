//! Counters on the wire: a list of names and values, so that a later version may count more without
//! another form of the answer. A reader leaves out names that it does not know, and takes those that
//! are missing as 0.

use rkyv::{
    Archive, Archived, Place, Resolver, Serialize,
    rancor::Fallible,
    ser::{Allocator, Writer},
    vec::ArchivedVec,
    with::{ArchiveWith, DeserializeWith, SerializeWith},
};

/// Counters with names.
pub trait Counts: Default {
    /// Returns each counter's name and value.
    fn counts(&self) -> Vec<(&'static str, u64)>;

    /// Sets the counter of a name, if there is one.
    fn set_count(&mut self, name: &str, value: u64);
}

/// Implements [`Counts`] for a struct that it declares, whose fields are all counters.
macro_rules! counters {
    (
        $(#[$of_all:meta])*
        $seen:vis struct $name:ident { $($(#[$of_one:meta])* $field_seen:vis $field:ident: u64,)* }
    ) => {
        $(#[$of_all])*
        $seen struct $name { $($(#[$of_one])* $field_seen $field: u64,)* }

        impl $crate::counts::Counts for $name {
            fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($field), self.$field)),*]
            }

            fn set_count(&mut self, name: &str, value: u64) {
                $(if name == stringify!($field) {
                    self.$field = value;
                })*
            }
        }
    };
}
pub(crate) use counters;

/// The form of [`Counts`] on the wire.
#[derive(Debug)]
pub struct Named;

/// A name and a value.
type Pair = (String, u64);

impl<C: Counts> ArchiveWith<C> for Named {
    type Archived = Archived<Vec<Pair>>;
    type Resolver = Resolver<Vec<Pair>>;

    fn resolve_with(field: &C, resolver: Self::Resolver, out: Place<Self::Archived>) {
        ArchivedVec::resolve_from_len(field.counts().len(), resolver, out);
    }
}

impl<C: Counts, S: Fallible + Allocator + Writer + ?Sized> SerializeWith<C, S> for Named
where
    Pair: Serialize<S>,
{
    fn serialize_with(field: &C, serializer: &mut S) -> Result<Self::Resolver, S::Error> {
        let counts = field.counts().into_iter();
        let pairs: Vec<Pair> = counts.map(|(name, value)| (name.to_owned(), value)).collect();
        ArchivedVec::<<Pair as Archive>::Archived>::serialize_from_slice(&pairs, serializer)
    }
}

impl<C: Counts, D: Fallible + ?Sized> DeserializeWith<Archived<Vec<Pair>>, C, D> for Named {
    fn deserialize_with(field: &Archived<Vec<Pair>>, _: &mut D) -> Result<C, D::Error> {
        let mut counts = C::default();
        for pair in field.iter() {
            counts.set_count(pair.0.as_str(), pair.1.to_native());
        }
        Ok(counts)
    }
}

#[cfg(test)]
mod tests {
    use rkyv::{Deserialize, rancor};

    use super::*;

    counters! {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        struct Today { kept: u64, lost: u64, }
    }

    counters! {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        struct Tomorrow { found: u64, lost: u64, kept: u64, }
    }

    #[derive(Archive, Serialize, Deserialize)]
    struct Answer<C: Counts> {
        #[rkyv(with = Named)]
        counts: C,
        behind: u16,
    }

    #[test]
    fn what_a_later_version_counts_is_read_by_an_earlier_one_and_the_other_way_round() {
        let (kept, lost) = (3, u64::MAX);
        let counts = Tomorrow { found: 9, lost, kept };
        let bytes = rkyv::to_bytes::<rancor::Error>(&Answer { counts, behind: 7 }).unwrap();
        let read = rkyv::from_bytes::<Answer<Today>, rancor::Error>(&bytes).unwrap();
        assert_eq!((read.counts, read.behind), (Today { kept, lost }, 7));
        let bytes = rkyv::to_bytes::<rancor::Error>(&Answer { counts: read.counts, behind: 7 });
        let read = rkyv::from_bytes::<Answer<Tomorrow>, rancor::Error>(&bytes.unwrap()).unwrap();
        assert_eq!(read.counts, Tomorrow { found: 0, ..counts });
    }
}
