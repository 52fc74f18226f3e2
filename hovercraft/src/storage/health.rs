//! Fail-stop: after the first error a store refuses every further call (P38).

use std::{path::Path, sync::OnceLock};

use super::StoreError;

/// Remembers the first error of a store; the log and the snapshots of a store share one.
///
/// *Because* after a failed sync the kernel may have dropped the dirty pages: a second sync would
/// succeed over data that is gone.
#[derive(Debug, Default)]
pub(super) struct Health {
    first_error: OnceLock<String>,
}

impl Health {
    /// Makes a call, unless one failed before; remembers its error. A snapshot that is not what
    /// its meta says is refused before anything changes, and so is what the disk has no room for:
    /// the store goes on after these.
    pub(super) fn guard<T>(
        &self,
        place: &Path,
        call: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some(earlier) = self.first_error.get() {
            return Err(StoreError::Stopped {
                place: place.display().to_string(),
                earlier: earlier.clone(),
            });
        }
        let result = call();
        if let Err(error) = &result
            && !matches!(error, StoreError::SnapshotMismatch { .. } | StoreError::Full { .. })
        {
            // Another thread may have been first; its error is as good.
            let _ = self.first_error.set(error.to_string());
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_an_error_every_call_is_refused_and_names_it() {
        let health = Health::default();
        let place = Path::new("somewhere");
        assert_eq!(health.guard(place, || Ok(1)).unwrap(), 1);
        let locked = || Err::<(), _>(StoreError::Locked { place: "here".into() });
        assert!(matches!(health.guard(place, locked), Err(StoreError::Locked { .. })));
        let mut called = false;
        let refused = health.guard(place, || {
            called = true;
            Ok(())
        });
        assert!(!called);
        let text = refused.unwrap_err().to_string();
        assert!(text.contains("here is in use"), "{text}");
    }

    #[test]
    fn a_snapshot_that_is_not_what_its_meta_says_stops_nothing() {
        let health = Health::default();
        let place = Path::new("somewhere");
        let mismatch = || {
            Err::<(), _>(StoreError::SnapshotMismatch {
                index: 1,
                size_bytes: 2,
                checksum: 3,
                written_bytes: 4,
                written_checksum: 5,
            })
        };
        health.guard(place, mismatch).unwrap_err();
        health.guard(place, || Ok(())).unwrap();
    }
}
