//! Counts of an application's destinations, from which the status of its conditions follows. A report changes the
//! counts of one destination, and costs the same for any number of them. Pure.

use std::collections::BTreeMap;

use attest_common::basics::ids::{ClusterId, Name};
use attest_common::basics::reason::ReportedReason;
use attest_common::objects::health::Health;
use attest_common::session::report::ApplicationPhase;

/// Status of one destination.
#[derive(Clone, Debug)]
pub(crate) struct DestinationStatus {
    pub cluster: String,
    pub namespace: String,
    pub phase: ApplicationPhase,
    pub reason: ReportedReason,
    pub message: String,
    /// Absent before the first report.
    pub health: Option<Health>,
    pub runs: bool,
    pub connected: bool,
    /// The cluster is registered, not connected, and its last report is stale.
    pub stale: bool,
}

/// Numbers of destinations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(super) total: usize,
    by_phase: BTreeMap<ApplicationPhase, usize>,
    /// Those that run a release.
    pub(super) running: usize,
    /// Those with a health other than Current.
    pub(super) unhealthy: usize,
    /// Those that have not reported a health.
    pub(super) unreported: usize,
    pub(super) disconnected: usize,
    pub(super) stale: usize,
}

impl Counts {
    pub(crate) fn of<'a>(destinations: impl IntoIterator<Item = &'a DestinationStatus>) -> Self {
        let mut counts = Self::default();
        destinations.into_iter().for_each(|status| counts.add(Contribution::of(status)));
        counts
    }

    pub(super) fn in_phase(&self, phase: ApplicationPhase) -> usize {
        self.by_phase.get(&phase).copied().unwrap_or_default()
    }

    /// Returns the number of destinations in each phase that any is in.
    pub(crate) fn by_phase(&self) -> impl Iterator<Item = (ApplicationPhase, u64)> {
        self.by_phase.iter().map(|(phase, count)| (*phase, *count as u64))
    }

    /// Returns the phase of the worst destination.
    pub(crate) fn phase(&self) -> ApplicationPhase {
        ApplicationPhase::worst(self.by_phase.keys().copied())
    }

    fn add(&mut self, contribution: Contribution) {
        *self.by_phase.entry(contribution.phase).or_default() += 1;
        self.each(contribution, |count| *count += 1);
    }

    fn remove(&mut self, contribution: Contribution) {
        if let Some(count) = self.by_phase.get_mut(&contribution.phase) {
            *count -= 1;
            if *count == 0 {
                self.by_phase.remove(&contribution.phase);
            }
        }
        self.each(contribution, |count| *count -= 1);
    }

    /// Changes every number in which a destination counts.
    fn each(&mut self, contribution: Contribution, change: impl Fn(&mut usize)) {
        let Contribution { health, runs, connected, stale, phase: _ } = contribution;
        change(&mut self.total);
        for (number, counts) in [
            (&mut self.running, runs),
            (&mut self.unhealthy, health.is_some_and(|health| health != Health::Current)),
            (&mut self.unreported, health.is_none()),
            (&mut self.disconnected, !connected),
            (&mut self.stale, stale),
        ] {
            if counts {
                change(number);
            }
        }
    }
}

/// The contribution of one destination.
#[derive(Clone, Copy, Debug)]
struct Contribution {
    phase: ApplicationPhase,
    health: Option<Health>,
    runs: bool,
    connected: bool,
    stale: bool,
}

impl Contribution {
    fn of(status: &DestinationStatus) -> Self {
        let DestinationStatus { phase, health, runs, connected, stale, .. } = *status;
        Self { phase, health, runs, connected, stale }
    }
}

/// A destination of an application.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The application names it: cluster and namespace.
    Named(Name, Name),
    /// The application is being removed from it.
    Leaving(ClusterId, Name),
}

/// The destinations of an application and their counts.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    contributions: BTreeMap<Place, Contribution>,
    counts: Counts,
}

impl Tally {
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    pub(crate) fn contains(&self, place: &Place) -> bool {
        self.contributions.contains_key(place)
    }

    /// Replaces what a destination contributes; `None` when it is gone.
    pub(crate) fn set(&mut self, place: Place, status: Option<&DestinationStatus>) {
        let contribution = status.map(Contribution::of);
        let previous = match contribution {
            Some(contribution) => self.contributions.insert(place, contribution),
            None => self.contributions.remove(&place),
        };
        if let Some(previous) = previous {
            self.counts.remove(previous);
        }
        if let Some(contribution) = contribution {
            self.counts.add(contribution);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns one of every combination of what is counted, by number.
    fn status(number: usize) -> DestinationStatus {
        let phase = ApplicationPhase::ALL[number % ApplicationPhase::ALL.len()];
        let healths = [None, Some(Health::Current), Some(Health::Failed)];
        DestinationStatus {
            cluster: "c".into(),
            namespace: "n".into(),
            phase,
            reason: ReportedReason::parse(phase.as_str()),
            message: String::new(),
            health: healths[number / 7 % 3],
            runs: number.is_multiple_of(2),
            connected: number.is_multiple_of(5),
            stale: number.is_multiple_of(11),
        }
    }

    #[test]
    fn a_tally_that_changes_by_one_destination_counts_what_a_whole_count_does() {
        let place = |number: usize| {
            Place::Named(Name::new(format!("c{}", number % 13)).unwrap(), Name::new("n").unwrap())
        };
        let mut tally = Tally::default();
        let mut all = BTreeMap::new();
        for number in 0..1_000 {
            // Every third change removes a destination.
            let changed = (number % 3 != 0).then(|| status(number * 7_919));
            tally.set(place(number * 31), changed.as_ref());
            match changed {
                Some(changed) => all.insert(place(number * 31), changed),
                None => all.remove(&place(number * 31)),
            };

            assert_eq!(*tally.counts(), Counts::of(all.values()), "after {number} changes");
            let worst = ApplicationPhase::worst(all.values().map(|status| status.phase));
            assert_eq!(tally.counts().phase(), worst);
        }
    }
}
