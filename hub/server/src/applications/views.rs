//! State of each application for readers: the outcome of its newest reconcile pass, the transition times of its
//! conditions, and its phase for the metrics. In memory only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};

use attest_common::basics::ids::{Name, Timestamp};
use attest_common::basics::locked::Locked;
use attest_common::session::report::ApplicationPhase;

use super::changes::Changes;
use super::status::Condition;
use super::view::{View, Waiting};
use crate::core::metrics::Metrics;

/// State of each application for readers.
#[derive(Debug, Default)]
pub(crate) struct Views {
    pub(crate) changes: Changes,
    state: Locked<State>,
    transitions: Transitions,
    phases: Phases,
    /// State of each open rollout, for the metrics.
    rollouts: Locked<BTreeMap<String, &'static str>>,
}

#[derive(Debug, Default)]
struct State {
    by_application: BTreeMap<String, Arc<View>>,
    /// Applications that wait for a cluster or run there.
    by_cluster: BTreeMap<Name, BTreeSet<String>>,
}

impl State {
    fn remove(&mut self, application: &str) {
        let Some(view) = self.by_application.remove(application) else { return };
        for cluster in view.clusters() {
            if let Some(concerned) = self.by_cluster.get_mut(cluster) {
                concerned.remove(application);
                if concerned.is_empty() {
                    self.by_cluster.remove(cluster);
                }
            }
        }
    }
}

impl Views {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Returns the outcome of the newest pass over an application.
    pub(crate) fn get(&self, application: &str) -> Option<Arc<View>> {
        self.state().by_application.get(application).cloned()
    }

    /// Stores the outcome of a pass.
    pub(crate) fn set(&self, application: &str, view: View) {
        let mut state = self.state();
        state.remove(application);
        for cluster in view.clusters() {
            let concerned = state.by_cluster.entry(cluster.clone()).or_default();
            concerned.insert(application.to_owned());
        }
        state.by_application.insert(application.to_owned(), Arc::new(view));
    }

    /// Stores that the newest pass over an application has no outcome; what is known of it is older.
    pub(crate) fn fail(&self, application: &str, problem: Waiting) {
        let mut state = self.state();
        let view = state.by_application.entry(application.to_owned()).or_default();
        Arc::make_mut(view).problem = Some(problem);
        self.changes.note(application);
    }

    /// Returns the applications that wait for `cluster` or run there.
    pub(crate) fn concerned_by(&self, cluster: &Name) -> BTreeSet<String> {
        self.state().by_cluster.get(cluster).cloned().unwrap_or_default()
    }

    /// Sets the transition time of each condition of an application.
    pub(crate) fn stamp(&self, application: &str, conditions: &mut [Condition], now: Timestamp) {
        let statuses = conditions.iter().map(|condition| (condition.kind, condition.status));
        let times = self.transitions.note(application, statuses, now);
        conditions.iter_mut().zip(times).for_each(|(condition, at)| {
            condition.last_transition_time = at;
        });
    }

    /// Records the status of each condition of an application.
    pub(crate) fn note_conditions(
        &self,
        application: &str,
        statuses: impl IntoIterator<Item = (&'static str, &'static str)>,
        now: Timestamp,
    ) {
        self.transitions.note(application, statuses, now);
    }

    /// Updates the metrics by the phase of an application, and announces that its status may have changed.
    pub(crate) fn note_phase(&self, metrics: &Metrics, application: &str, phase: ApplicationPhase) {
        self.phases.note(metrics, application, Some(phase));
        self.changes.note(application);
    }

    /// Updates the metrics by the state of an application's open rollout; `None` when there is none.
    pub(crate) fn note_rollout(
        &self,
        metrics: &Metrics,
        application: &str,
        state: Option<&'static str>,
    ) {
        let mut rollouts = self.rollouts.lock();
        let previous = match state {
            Some(state) => rollouts.insert(application.to_owned(), state),
            None => rollouts.remove(application),
        };
        if let Some(previous) = previous {
            metrics.rollouts_open.with_label_values(&[previous]).dec();
        }
        if let Some(state) = state {
            metrics.rollouts_open.with_label_values(&[state]).inc();
        }
    }

    /// Forgets a deleted application.
    pub(crate) fn forget(&self, metrics: &Metrics, application: &str) {
        self.note_rollout(metrics, application, None);
        self.state().remove(application);
        self.transitions.forget(application);
        self.phases.note(metrics, application, None);
        self.changes.note(application);
    }
}

/// The phase of each application, for the metrics that count them.
#[derive(Debug, Default)]
struct Phases {
    counted: Locked<CountedPhases>,
}

#[derive(Debug, Default)]
struct CountedPhases {
    by_application: BTreeMap<String, ApplicationPhase>,
    synced: usize,
}

impl Phases {
    /// Records the phase of an application; `None` when it is deleted.
    fn note(&self, metrics: &Metrics, application: &str, phase: Option<ApplicationPhase>) {
        let mut counted = self.counted.lock();
        let previous = match phase {
            Some(phase) => counted.by_application.insert(application.to_owned(), phase),
            None => counted.by_application.remove(application),
        };
        let synced = Some(ApplicationPhase::Synced);
        counted.synced += usize::from(phase == synced);
        counted.synced -= usize::from(previous == synced);
        metrics.applications.set(gauge(counted.by_application.len()));
        metrics.applications_synced.set(gauge(counted.synced));
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Status and transition time of each type of condition.
type Since = BTreeMap<&'static str, (&'static str, Timestamp)>;

/// Transition times of the conditions of each application.
#[derive(Debug, Default)]
struct Transitions {
    by_application: Locked<BTreeMap<String, Since>>,
}

impl Transitions {
    /// Records statuses by type of condition. Returns the transition time of each.
    fn note(
        &self,
        application: &str,
        statuses: impl IntoIterator<Item = (&'static str, &'static str)>,
        now: Timestamp,
    ) -> Vec<Timestamp> {
        let mut by_application = self.by_application.lock();
        let since = by_application.entry(application.to_owned()).or_default();
        let noted = statuses.into_iter().map(|(kind, status)| {
            let entry = since.entry(kind).or_insert((status, now));
            if entry.0 != status {
                *entry = (status, now);
            }
            entry.1
        });
        noted.collect()
    }

    fn forget(&self, application: &str) {
        self.by_application.lock().remove(application);
    }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::reason::Reason;

    use super::super::view::Waiting;
    use super::*;

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes() {
        let transitions = Transitions::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        let stamped = |status, second| transitions.note("a", [("Ready", status)], at(second))[0];

        assert_eq!(stamped("False", 1), at(1));
        assert_eq!(stamped("False", 2), at(1));
        assert_eq!(stamped("True", 3), at(3));
    }

    #[test]
    fn a_cluster_concerns_those_that_wait_for_it_until_their_next_pass() {
        let views = Views::default();
        let name = |text: &str| Name::new(text).unwrap();
        let waiting = || View {
            waiting: [(
                (name("staging"), name("web")),
                Waiting::unknown(Reason::ClusterPending, "waits"),
            )]
            .into(),
            ..View::default()
        };

        views.set("web", waiting());
        views.set("api", waiting());
        assert_eq!(views.concerned_by(&name("staging")), ["api", "web"].map(str::to_owned).into());
        views.set("web", View::default());
        assert_eq!(views.concerned_by(&name("staging")), ["api"].map(str::to_owned).into());
        views.forget(&Metrics::new().unwrap(), "api");
        assert!(views.concerned_by(&name("staging")).is_empty());
        assert!(views.state().by_cluster.is_empty());
    }
}
