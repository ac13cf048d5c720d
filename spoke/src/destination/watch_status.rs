//! Scopes of a destination that the spoke cannot watch now. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::objects::Failure;
use crate::cluster::watch::{Scope, WatchRefusal};
use attest_common::basics::reason::Reason;

/// Scopes whose watch is rejected or unreadable. Their objects are unknown until a list completes.
#[derive(Clone, Debug, Default)]
pub(super) struct WatchStatus {
    unobservable: BTreeMap<Scope, Failure>,
}

impl WatchStatus {
    /// Processes the status of a watch. With `quiet`, a rejection is normal for a short time. Returns whether
    /// namespace and bindings may be missing.
    pub(super) fn see(
        &mut self,
        scope: Scope,
        refused: Option<WatchRefusal>,
        quiet: bool,
        now: Instant,
    ) -> bool {
        let place = scope.namespace.as_deref().map(|n| format!(" in {n}")).unwrap_or_default();
        let (reason, text) = match refused {
            None => {
                self.unobservable.remove(&scope);
                return false;
            }
            Some(WatchRefusal::Forbidden) => {
                (Reason::WatchForbidden, format!("may not watch {}{place}", scope.plural))
            }
            Some(WatchRefusal::NotServed) => {
                let Scope { version, plural, .. } = &scope;
                (
                    Reason::KindUnknown,
                    format!("the API server does not serve version {version} of {plural}"),
                )
            }
            Some(WatchRefusal::Unreadable) => {
                let text =
                    format!("cannot read the API server's response for {}{place}", scope.plural);
                (Reason::WatchUnreadable, text)
            }
        };
        let failure = if quiet {
            Failure::not_ready(reason, text, now)
        } else {
            Failure::after(self.unobservable.get(&scope), reason, text, now)
        };
        self.unobservable.insert(scope, failure);
        !quiet && refused == Some(WatchRefusal::Forbidden)
    }

    /// Drops scopes that are no longer used.
    pub(super) fn keep(mut self, used: &BTreeSet<&Scope>) -> Self {
        self.unobservable.retain(|scope, _| used.contains(scope));
        self
    }

    pub(super) fn is_unobservable(&self) -> bool {
        !self.unobservable.is_empty()
    }

    /// Returns the scopes to list again once rights were given.
    pub(super) fn unobservable(&self) -> BTreeSet<Scope> {
        self.unobservable.keys().cloned().collect()
    }

    /// Returns the failure to report.
    pub(super) fn problem(&self) -> Option<&Failure> {
        self.unobservable.values().find(|failure| !failure.quiet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_watch_asks_for_rights_and_is_shown_until_the_scope_is_seen_again() {
        let now = Instant::now();
        let scope = Scope {
            group: "apps".to_owned(),
            version: "v1".to_owned(),
            kind: "Deployment".to_owned(),
            plural: "deployments".to_owned(),
            namespace: Some("shop".to_owned()),
        };
        let mut status = WatchStatus::default();

        assert!(!status.see(scope.clone(), Some(WatchRefusal::Forbidden), true, now));
        assert!(
            status.is_unobservable() && status.problem().is_none(),
            "new bindings need a moment"
        );

        assert!(status.see(scope.clone(), Some(WatchRefusal::Forbidden), false, now));
        assert_eq!(status.problem().unwrap().reason, Reason::WatchForbidden);
        assert_eq!(status.unobservable(), [scope.clone()].into());

        assert!(!status.see(scope, None, false, now));
        assert!(!status.is_unobservable() && status.problem().is_none());
    }
}
