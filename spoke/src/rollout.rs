//! The rollout of a destination while its plan is carried out. Pure: no clock, no I/O.
//!
//! The rules on the record are in `attest_common::record::rollout`. This module decides from observations which of them
//! is due, and counts the soak on the clock of the caller.

use std::time::{Duration, Instant};

use attest_common::basics::reason::Reason;
use attest_common::basics::text::message;
use attest_common::documents::manifest::ObjectKey;
use attest_common::documents::plan::Directive;
use attest_common::record::Record;
use attest_common::record::rollout::{Abort, AfterFailure, RolloutState, RolloutView};
use attest_common::session::report::RolloutStatus;

/// Options of the newest directive that concern the rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RolloutOptions {
    /// Time at target after which the soak is reached.
    pub soak: Duration,
    /// The soak stands still.
    pub paused: bool,
    /// A plan that fails stays in place.
    pub keep_failed: bool,
}

impl From<&Directive> for RolloutOptions {
    fn from(directive: &Directive) -> Self {
        Self {
            soak: Duration::from_millis(directive.soak_ms.unwrap_or_default()),
            paused: directive.paused,
            keep_failed: directive.keep_failed,
        }
    }
}

/// Observation of the held plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Objects are not observed yet, or no longer.
    Unknown,
    /// Objects are not applied, not healthy, or not as signed.
    Working,
    /// Everything is applied and healthy, and workloads, their Services and routes are as signed.
    AtTarget,
    Failed {
        reason: Reason,
        message: String,
    },
}

/// A change of the record. It is durable before it takes effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// The held plan is at target for the first time.
    ReachTarget,
    /// The held plan becomes good.
    Finalize,
    /// The held plan failed.
    Fail(Abort, AfterFailure),
}

impl Transition {
    /// Returns whether the soak of the held plan is over with it.
    pub fn ends_soak(&self) -> bool {
        match self {
            Self::ReachTarget => false,
            Self::Finalize | Self::Fail(..) => true,
        }
    }

    /// Changes a record. Does nothing if the state of its rollout no longer allows the change. Keeps at most
    /// `good_plans_before_max` good plans before the newest.
    pub fn apply(&self, record: &mut Record, good_plans_before_max: u32) {
        match self {
            Self::ReachTarget => record.reach_target(),
            Self::Finalize => record.finalize(good_plans_before_max),
            Self::Fail(abort, after) => record.fail(abort.clone(), *after),
        }
    }
}

/// Observations of a rollout over time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RolloutProgress {
    is_at_target: bool,
    soak: SoakClock,
}

impl RolloutProgress {
    /// Returns the progress of a plan that soaked for some time before a restart.
    pub fn restored(healthy_for: Duration) -> Self {
        Self { is_at_target: false, soak: SoakClock { counted: healthy_for, since: None } }
    }

    /// Processes an observation. Returns the change of the record that is due.
    pub fn observe(
        &mut self,
        view: &RolloutView,
        options: RolloutOptions,
        observed: &Observed,
        now: Instant,
    ) -> Option<Transition> {
        match observed {
            // What was counted stays: the next observation decides.
            Observed::Unknown => self.soak.stop(now),
            Observed::Working | Observed::Failed { .. } => self.soak.reset(),
            Observed::AtTarget if options.paused => self.soak.stop(now),
            Observed::AtTarget => self.soak.start(now),
        }
        self.is_at_target = *observed == Observed::AtTarget;
        match (view.state, observed) {
            (RolloutState::Candidate, Observed::AtTarget) => Some(Transition::ReachTarget),
            (RolloutState::Finalizing, Observed::AtTarget) => Some(Transition::Finalize),
            (_, Observed::Failed { reason, message: text }) if view.state.is_open() => {
                let abort = Abort {
                    plan: view.plan,
                    attempt: view.attempt,
                    reason: (*reason).into(),
                    message: message(text),
                };
                Some(Transition::Fail(abort, view.after_failure(options.keep_failed)))
            }
            _ => None,
        }
    }

    /// Returns the status for a report. The target counts as reached once the record holds it.
    pub fn status(
        &self,
        view: &RolloutView,
        options: RolloutOptions,
        now: Instant,
    ) -> RolloutStatus {
        let healthy_for = self.healthy_for(now);
        let at_target = self.is_at_target && view.state != RolloutState::Candidate;
        RolloutStatus {
            generation: view.generation,
            attempt: view.attempt,
            plan: view.plan,
            at_target,
            healthy_for_ms: u64::try_from(healthy_for.as_millis()).unwrap_or(u64::MAX),
            soak_reached: at_target && healthy_for >= options.soak,
            aborted: view.abort.clone(),
            good: view.good.clone(),
        }
    }

    /// Returns the time at target without interruption.
    pub fn healthy_for(&self, now: Instant) -> Duration {
        self.soak.counted(now)
    }

    /// Returns whether time at target is being counted.
    pub fn is_counting(&self) -> bool {
        self.soak.since.is_some()
    }

    /// Returns when the soak is reached if nothing changes.
    pub fn due(&self, options: RolloutOptions, now: Instant) -> Option<Instant> {
        self.soak.since?;
        let left = options.soak.checked_sub(self.healthy_for(now)).filter(|left| !left.is_zero());
        left.map(|left| now + left)
    }
}

/// Time at target without interruption.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct SoakClock {
    /// Time before `since`.
    counted: Duration,
    /// Absent while it stands still.
    since: Option<Instant>,
}

impl SoakClock {
    fn start(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    fn stop(&mut self, now: Instant) {
        *self = Self { counted: self.counted(now), since: None };
    }

    fn reset(&mut self) {
        *self = Self::default();
    }

    fn counted(&self, now: Instant) -> Duration {
        let running = self.since.map(|since| now.saturating_duration_since(since));
        self.counted + running.unwrap_or_default()
    }
}

/// Returns whether drift of an object keeps its destination from being at target: a workload, a Service or a route.
pub fn counts_for_target(key: &ObjectKey) -> bool {
    match key.group.as_str() {
        "apps" => true,
        "" => key.kind == "Service",
        "batch" => matches!(key.kind.as_str(), "Job" | "CronJob"),
        "networking.k8s.io" => key.kind == "Ingress",
        "gateway.networking.k8s.io" => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
