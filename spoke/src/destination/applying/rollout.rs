//! The rollout of an admission that is being carried out: what is observed of it, and the changes of the record. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::objects::health::Health;
use attest_common::objects::pods::TroubleClock;
use attest_common::record::Held;
use attest_common::record::custody::StoredSoak;
use attest_common::record::rollout::{Abort, AfterFailure, RolloutState, RolloutView};
use attest_common::session::report::RolloutStatus;
use attest_common::verify::Admission;

use super::Applying;
use crate::cluster::drift::Need;
use crate::cluster::watch::DeploymentPods;
use crate::destination::command::{Commands, Notice, Request, Return};
use crate::ledger::records::Entry;
use crate::rollout::{Observed, RolloutOptions, RolloutProgress, Transition, counts_for_target};

/// Interval at which a soak is stored. A restart loses at most as much of it.
const SOAK_STORED_EVERY: Duration = Duration::from_secs(60);

/// The rollout that an admission belongs to.
#[derive(Debug)]
pub(in crate::destination) struct FollowedRollout {
    /// As recorded; absent before the first directive that needs a rollout.
    view: Option<RolloutView>,
    options: RolloutOptions,
    progress: RolloutProgress,
    /// Pods at the time of the stored soak, until they are compared with those that are observed.
    pods_before_restart: Option<Digest>,
    /// When the soak was stored last.
    stored_at: Option<Instant>,
    /// The change of the record that is due.
    due: Option<Transition>,
    /// The newest pods of Deployments, by namespace.
    pods: BTreeMap<String, Arc<DeploymentPods>>,
    trouble: TroubleClock,
}

impl FollowedRollout {
    /// Returns the initial state. The soak of the same plan goes on.
    pub(super) fn begin(
        (admission, held): (&Admission, &Held),
        entry: Option<&Entry>,
        before: Option<&Applying>,
        stored: Option<StoredSoak>,
    ) -> Self {
        let same = before.filter(|before| before.held.plan_digest == held.plan_digest);
        let stored = stored.filter(|stored| same.is_none() && stored.plan == held.plan_digest);
        let restored = stored
            .map(|stored| RolloutProgress::restored(Duration::from_millis(stored.healthy_for_ms)));
        Self {
            view: entry.and_then(|entry| entry.record.rollout_view()),
            options: RolloutOptions::from(&admission.ordered.directive),
            progress: same
                .map(|before| before.rollout.progress.clone())
                .or(restored)
                .unwrap_or_default(),
            pods_before_restart: match same {
                Some(before) => before.rollout.pods_before_restart,
                None => stored.map(|stored| stored.pods),
            },
            stored_at: same.and_then(|before| before.rollout.stored_at),
            due: None,
            pods: before.map(|before| before.rollout.pods.clone()).unwrap_or_default(),
            trouble: same.map(|before| before.rollout.trouble.clone()).unwrap_or_default(),
        }
    }

    /// Processes the newest pods of namespaces.
    pub(super) fn see_pods(&mut self, pods: BTreeMap<String, Arc<DeploymentPods>>) {
        self.pods.extend(pods);
    }

    /// Returns the state of the plan `held`: none without a rollout.
    fn state(&self, held: &Held) -> Option<RolloutState> {
        let view = self.view.as_ref()?;
        // The record holds another plan by now: nothing is decided about this one.
        let is_recorded = view.plan == held.plan_digest;
        Some(if is_recorded { view.state } else { RolloutState::Candidate })
    }

    /// Takes the change of the record that is due.
    pub(super) fn due(&self) -> Option<&Transition> {
        self.due.as_ref()
    }
}

impl Applying {
    /// Returns whether the plan becomes good as soon as it is settled.
    pub(super) fn becomes_good(&self) -> bool {
        self.rollout.state(&self.held).is_none_or(|state| state == RolloutState::Local)
    }

    /// Returns whether objects that the plan lacks may be deleted.
    pub(super) fn may_prune(&self) -> bool {
        self.rollout.state(&self.held).is_none_or(RolloutState::may_prune)
    }

    /// Returns whether the hub has yet to finalize the plan.
    pub(super) fn is_candidate(&self) -> bool {
        self.rollout.state(&self.held).is_some_and(RolloutState::is_open)
    }

    /// Observes the rollout. Returns the plan to give up, if the newest good one is to be applied again.
    pub(in crate::destination) fn follow_rollout(
        &mut self,
        recorded: Option<RolloutView>,
        now: Instant,
        commands: &mut Commands,
    ) -> Option<Return> {
        self.rollout.view = recorded;
        let was_due = self.rollout.due.take();
        if self.rollout.view.as_ref()?.plan != self.held.plan_digest {
            return None;
        }
        self.observe_pods(now);
        let observed = self.compared_with_restart(self.observed_rollout(now));
        let FollowedRollout { view, options, progress, .. } = &mut self.rollout;
        let due = progress.observe(view.as_ref()?, *options, &observed, now)?;
        if let Transition::Fail(abort, after) = &due {
            let Abort { reason, message, .. } = abort.clone();
            if was_due.as_ref() != Some(&due) {
                commands.notice(Notice::PlanFailed { reason, message, after: *after });
            }
            if *after == AfterFailure::Return {
                return Some(Return { held: self.held.clone(), abort: abort.clone() });
            }
        }
        self.rollout.due = Some(due);
        if !self.durability.is_writing() {
            self.durability.learnt();
        }
        None
    }

    /// Compares the pods with those before a restart, once they are listed: if any was started again, the soak begins
    /// again. Until then nothing is known.
    fn compared_with_restart(&mut self, observed: Observed) -> Observed {
        let Some(before) = self.rollout.pods_before_restart else { return observed };
        match self.pods_digest() {
            Some(pods) if pods == before => self.rollout.pods_before_restart = None,
            Some(_) => {
                self.rollout.pods_before_restart = None;
                self.rollout.progress = RolloutProgress::default();
            }
            None if observed == Observed::AtTarget => return Observed::Unknown,
            None => {}
        }
        observed
    }

    /// Returns the digest of the newest ReplicaSets of the Deployments and of the restarts of their pods; none until they
    /// are listed.
    fn pods_digest(&self) -> Option<Digest> {
        let each: Option<Vec<String>> = self
            .deployments()
            .map(|(namespace, name)| {
                let newest = self.rollout.pods.get(namespace)?.get(name);
                let fingerprint = newest.and_then(|newest| newest.fingerprint);
                Some(format!(
                    "{namespace}/{name} {}",
                    fingerprint.map_or_else(String::new, |f| f.to_string())
                ))
            })
            .collect();
        each.map(|each| Digest::of(each.join("\n").as_bytes()))
    }

    /// Stores the soak of a candidate that is at target, at most once a [`SOAK_STORED_EVERY`].
    pub(in crate::destination) fn store_soak(&mut self, now: Instant, commands: &mut Commands) {
        let healthy_for = self.rollout.progress.healthy_for(now);
        let is_due = self.soak_stored_due(now).is_some_and(|due| due <= now);
        if !is_due {
            return;
        }
        self.rollout.stored_at = Some(now);
        let Some(pods) = self.pods_digest() else { return };
        commands.request(Request::StoreSoak(StoredSoak {
            plan: self.held.plan_digest,
            healthy_for_ms: u64::try_from(healthy_for.as_millis()).unwrap_or(u64::MAX),
            pods,
        }));
    }

    /// Returns when the soak is to be stored: while it counts, and once more when it is reached.
    fn soak_stored_due(&self, now: Instant) -> Option<Instant> {
        let FollowedRollout { options, progress, stored_at, .. } = &self.rollout;
        let healthy_for = progress.healthy_for(now);
        if !self.is_candidate() || !progress.is_counting() || options.soak < SOAK_STORED_EVERY {
            return None;
        }
        let since_stored = stored_at.map(|at| now.saturating_duration_since(at));
        let is_complete = since_stored.is_some_and(|since| {
            healthy_for.checked_sub(since).is_some_and(|then| then >= options.soak)
        });
        if is_complete {
            return None;
        }
        let left = SOAK_STORED_EVERY.checked_sub(since_stored.unwrap_or(healthy_for));
        Some(now + left.unwrap_or_default())
    }

    /// Returns when the soak is reached, or a pod has failed, if nothing changes.
    pub(in crate::destination) fn rollout_due(&self, now: Instant) -> Option<Instant> {
        self.rollout.view.as_ref()?;
        let soak = self.rollout.progress.due(self.rollout.options, now);
        let stored = self.soak_stored_due(now);
        soak.into_iter().chain(stored).chain(self.rollout.trouble.due(now)).min()
    }

    /// Returns the namespaces whose pods decide about the plan: those of its Deployments, until it is finalized.
    pub(in crate::destination) fn pod_namespaces(&self) -> BTreeSet<String> {
        if !self.is_candidate() {
            return BTreeSet::new();
        }
        self.deployments().map(|(namespace, _)| namespace.to_owned()).collect()
    }

    /// Returns namespace and name of every Deployment of the plan.
    fn deployments(&self) -> impl Iterator<Item = (&str, &str)> {
        let keys =
            self.objects.keys().filter(|key| key.group == "apps" && key.kind == "Deployment");
        keys.filter_map(|key| Some((key.namespace.as_deref()?, key.name.as_str())))
    }

    fn observe_pods(&mut self, now: Instant) {
        if !self.is_candidate() {
            // They are no longer followed.
            self.rollout.pods.clear();
        }
        let pods = &self.rollout.pods;
        let newest =
            self.deployments().filter_map(|(namespace, name)| pods.get(namespace)?.get(name));
        let troubled = newest.flat_map(|newest| newest.troubled.clone()).collect();
        self.rollout.trouble.observe(&troubled, now);
    }

    /// Returns the status of the rollout for a report.
    pub(in crate::destination) fn rollout_status(&self, now: Instant) -> Option<RolloutStatus> {
        let FollowedRollout { view, options, progress, .. } = &self.rollout;
        view.as_ref().map(|view| progress.status(view, *options, now))
    }

    fn observed_rollout(&self, now: Instant) -> Observed {
        if self.watch_status.is_unobservable() {
            return Observed::Unknown;
        }
        if let Some(message) = self.rollout.trouble.failed(now) {
            return Observed::Failed { reason: Reason::PodsFailing, message: message.to_owned() };
        }
        let mut is_at_target = true;
        let mut is_unknown = false;
        for (key, tracked) in &self.objects {
            let need = tracked.need();
            is_unknown |= matches!(need, Need::Look | Need::Wait);
            let is_as_signed = match need {
                Need::Nothing => true,
                Need::Heal => !counts_for_target(key),
                Need::Apply | Need::Look | Need::Wait => false,
            };
            if need == Need::Nothing && tracked.gates && tracked.health == Health::Failed {
                let message = format!("{key} {}", tracked.message);
                return Observed::Failed { reason: Reason::Unhealthy, message };
            }
            is_at_target &= is_as_signed && (!tracked.gates || tracked.health == Health::Current);
        }
        match (is_unknown, is_at_target) {
            (true, _) => Observed::Unknown,
            (false, true) => Observed::AtTarget,
            (false, false) => Observed::Working,
        }
    }
}
