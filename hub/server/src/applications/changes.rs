//! Names of applications whose status may have changed, for a publisher elsewhere. A wake-up carries no data.

use std::collections::BTreeSet;

use attest_common::basics::locked::Locked;
use tokio::sync::Notify;

/// Changes since they were last taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed {
    pub(crate) applications: BTreeSet<String>,
    /// Clusters, keys or repositories.
    pub(crate) references: bool,
}

/// Changes that one publisher reads. Nothing is kept without it.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    state: Locked<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    is_read: bool,
    changed: Changed,
    references: u64,
}

impl Changes {
    /// Keeps changes from now on.
    pub(crate) fn open(&self) {
        self.state.lock().is_read = true;
    }

    /// The status of an application may have changed.
    pub(crate) fn note(&self, application: &str) {
        let mut state = self.state.lock();
        if state.is_read && !state.changed.applications.contains(application) {
            state.changed.applications.insert(application.to_owned());
            self.changed.notify_one();
        }
    }

    /// Clusters, keys or repositories to which manifests refer may have changed.
    pub(crate) fn note_references(&self) {
        let mut state = self.state.lock();
        state.references += 1;
        if state.is_read {
            state.changed.references = true;
            self.changed.notify_one();
        }
    }

    /// Returns the number of changes of references so far.
    pub(crate) fn references(&self) -> u64 {
        self.state.lock().references
    }

    /// Waits for a change and takes what has changed.
    pub(crate) async fn next(&self) -> Changed {
        loop {
            let changed = std::mem::take(&mut self.state.lock().changed);
            if changed != Changed::default() {
                return changed;
            }
            self.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_change_is_taken_once_and_kept_for_a_reader_only() {
        let changes = Changes::default();
        changes.note("early");
        changes.open();
        changes.note("web");
        changes.note("web");
        changes.note_references();

        let taken = changes.next().await;

        assert_eq!(taken, Changed { applications: ["web".to_owned()].into(), references: true });
        assert_eq!(changes.references(), 1);
        changes.note("api");
        assert_eq!(changes.next().await.applications, ["api".to_owned()].into());
    }
}
