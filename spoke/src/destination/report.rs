//! The report of one destination, from its state. Pure.

use std::collections::BTreeMap;

use attest_common::basics::ids::{Digest, Timestamp};
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::basics::text::message;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::autoscaling::REPLICAS_FIELD;
use attest_common::objects::health::{self, Health};
use attest_common::session::report::{
    Abort, OBJECTS_LISTED_MAX, ObjectState, Phase, Refusal, Report, RolloutStatus, Running, Timings,
};
use attest_common::verify::Admission;

use super::objects::{Failure, Tracked, is_settled, open_wave};
use crate::cluster::drift::Need;
use crate::ledger::records::Key;

/// Facts from which a report is made.
#[derive(Clone, Debug)]
pub struct ReportContext<'a> {
    pub key: &'a Key,
    pub epoch: Option<u64>,
    pub sequence: Option<u64>,
    pub running: Option<ApplyingStatus<'a>>,
    pub removal: Option<RemovalStatus<'a>>,
    /// Reason and message, if nothing may be changed.
    pub frozen: Option<(Reason, &'a str)>,
    pub refusal: Option<&'a Refusal>,
    pub rollout: Option<RolloutStatus>,
    /// Failure that concerns the destination as a whole.
    pub problem: Option<&'a Failure>,
    pub heals_total: u64,
    pub now: Timestamp,
}

/// State of an admission that is carried out.
#[derive(Clone, Copy, Debug)]
pub struct ApplyingStatus<'a> {
    pub admission: &'a Admission,
    pub plan: Digest,
    pub since: Timestamp,
    pub objects: &'a BTreeMap<ObjectKey, Tracked>,
    /// Objects of the inventory that the rendering no longer holds.
    pub leftovers: usize,
    /// Their deletion would exceed the policy's share.
    pub guarded: bool,
    /// Reason that some of them still exist.
    pub obstacle: Option<Obstacle<'a>>,
    pub timings: Timings,
}

/// State of a removal.
#[derive(Clone, Copy, Debug)]
pub struct RemovalStatus<'a> {
    pub left: usize,
    pub done: bool,
    pub obstacle: Option<Obstacle<'a>>,
}

/// Reason that a deleted object still exists.
#[derive(Clone, Copy, Debug)]
pub enum Obstacle<'a> {
    /// The request fails.
    Failing(&'a ObjectKey, &'a Failure),
    /// It was accepted, and the object waits for this.
    Leaving(&'a ObjectKey, &'a str),
}

/// Returns the report.
pub fn report(situation: &ReportContext<'_>) -> Report {
    let (phase, reason, text) = phase(situation);
    let mut report = Report {
        v: 1,
        application: situation.key.0.clone(),
        namespace: situation.key.1.clone(),
        epoch: situation.epoch,
        sequence: situation.sequence,
        phase,
        reason,
        message: message(&text),
        running: None,
        refusal: situation.refusal.cloned(),
        rollout: situation.rollout.clone(),
        health: Health::Current,
        objects: Vec::new(),
        objects_total: 0,
        drifted: Vec::new(),
        heals_total: situation.heals_total,
        timings: Timings::default(),
        checks: Vec::new(),
        warnings: Vec::new(),
        observed_at: situation.now,
    };
    if let Some(now) = &situation.running {
        let admitted = &now.admission.admitted;
        report.running = Some(Running {
            plan: now.plan,
            release: admitted.id,
            content: admitted.content,
            version: admitted.release.version.clone(),
            counter: admitted.release.counter,
            signed_commit: admitted.release.source.git_commit.clone(),
            signers: admitted.signers.values().cloned().collect(),
            since: now.since,
        });
        report.health = overall(now.objects);
        report.objects = listed(now.objects);
        report.objects_total = now.objects.len() as u64;
        report.drifted = drifted(now.objects).cloned().collect();
        report.timings = now.timings;
        report.checks = admitted.checks.clone();
        report.warnings = admitted.warnings.clone();
        let contested = now.objects.iter().filter(|(_, t)| t.budget.is_contested());
        for (key, _) in contested.take(OBJECTS_LISTED_MAX) {
            report.warnings.push(format!("{key} is changed repeatedly by another writer"));
        }
        report.warnings.extend(co_owned(now.objects).map(|(key, tracked)| {
            format!(
                "{key} is co-owned by kubectl, which keeps {}: set `Adopt=true` in the application and \
                 `adopt: true` in the cluster's trust policy to remove what is not in Git",
                named(co_owned_fields(tracked))
            )
        }).take(OBJECTS_LISTED_MAX));
        if now.leftovers > 0 && !now.guarded {
            report.warnings.push(format!("{} objects are no longer rendered", now.leftovers));
        }
        if let Some(Obstacle::Leaving(key, until)) = now.obstacle {
            report.warnings.push(format!("{key} was deleted and waits for {until}"));
        }
    }
    report
}

/// Returns phase and reason of the report.
pub fn phase_and_reason(situation: &ReportContext<'_>) -> (Phase, ReportedReason) {
    let (phase, reason, _) = phase(situation);
    (phase, reason)
}

fn phase(situation: &ReportContext<'_>) -> (Phase, ReportedReason, String) {
    if let Some((reason, text)) = situation.frozen {
        return (Phase::Degraded, reason.into(), text.to_owned());
    }
    if let Some(Refusal { reason, message, .. }) = situation.refusal {
        return (Phase::Refused, reason.clone(), message.clone());
    }
    if let Some(Failure { reason, message, .. }) = situation.problem {
        return (Phase::Degraded, (*reason).into(), message.clone());
    }
    match (&situation.removal, &situation.running) {
        (Some(removal), _) if removal.done => plain(Phase::Removed, "removed".to_owned()),
        (Some(RemovalStatus { left, obstacle, .. }), _) => match obstacle {
            Some(Obstacle::Failing(key, failure)) => cannot_delete(key, failure),
            Some(Obstacle::Leaving(key, until)) => {
                let text = format!("removing {left} objects; {key} waits for {until}");
                plain(Phase::Progressing, text)
            }
            None => plain(Phase::Progressing, format!("removing {left} objects")),
        },
        (None, Some(running)) => match aborted(situation) {
            Some(abort) => aborted_phase(abort, running),
            None => running_phase(running),
        },
        (None, None) => plain(Phase::Progressing, "no plan is applied yet".to_owned()),
    }
}

fn cannot_delete(key: &ObjectKey, failure: &Failure) -> (Phase, ReportedReason, String) {
    let text = format!("cannot delete {key}: {}", failure.message);
    (Phase::Degraded, failure.reason.into(), text)
}

/// Returns a phase whose reason is the same word.
fn plain(phase: Phase, text: String) -> (Phase, ReportedReason, String) {
    (phase, phase.reason().into(), text)
}

/// Returns the failure that the newest directive ended with.
fn aborted<'a>(situation: &'a ReportContext<'_>) -> Option<&'a Abort> {
    situation.rollout.as_ref()?.aborted.as_ref()
}

/// Returns the phase of a destination whose newest plan failed, while it stays or a good plan runs instead.
fn aborted_phase(abort: &Abort, running: &ApplyingStatus<'_>) -> (Phase, ReportedReason, String) {
    let version = &running.admission.admitted.release.version;
    let (phase, _, text) = running_phase(running);
    let instead = if abort.plan == running.plan {
        "it stays in place".to_owned()
    } else if phase == Phase::Synced {
        format!("{version} runs instead")
    } else {
        format!("returning to {version}: {text}")
    };
    let text = format!("the plan failed: {}; {instead}", abort.message);
    (Phase::Degraded, abort.reason.clone(), text)
}

fn running_phase(now: &ApplyingStatus<'_>) -> (Phase, ReportedReason, String) {
    let failed = now.objects.iter().find_map(|(key, tracked)| {
        let failure = tracked.failure.as_ref().filter(|failure| !failure.quiet)?;
        Some((Phase::Degraded, failure.reason.into(), format!("{key}: {}", failure.message)))
    });
    if let Some(failed) = failed {
        return failed;
    }
    let pending = now.objects.values().filter(|t| t.need() == Need::Apply).count();
    if pending > 0 {
        let total = now.objects.len();
        if let Some((key, t)) = holds_later_waves(now.objects) {
            let text = format!("{pending} of {total} objects to apply after {key} {}", t.message);
            if t.health == Health::Failed {
                return (Phase::Degraded, Reason::Unhealthy.into(), text);
            }
            return plain(Phase::Progressing, text);
        }
        return plain(Phase::Progressing, format!("{pending} of {total} objects to apply"));
    }
    if let Some(first) = drifted(now.objects).next() {
        let count = drifted(now.objects).count();
        let text = format!("{count} objects differ from the signed state, first {first}");
        return plain(Phase::OutOfSync, text);
    }
    if now.guarded {
        let text = format!(
            "{} objects are no longer rendered; deleting them exceeds remove.maxPrunePercent",
            now.leftovers
        );
        return (Phase::OutOfSync, Reason::PruneGuard.into(), text);
    }
    if let Some(Obstacle::Failing(key, failure)) = now.obstacle {
        return cannot_delete(key, failure);
    }
    let worst = now.objects.iter().filter(|(_, t)| t.gates).max_by_key(|(_, t)| t.health);
    match worst.filter(|(_, t)| !is_settled(t.health)) {
        None => plain(Phase::Synced, settled_text(now.objects)),
        Some((key, t)) if t.health == Health::Failed => {
            (Phase::Degraded, Reason::Unhealthy.into(), format!("{key} {}", t.message))
        }
        Some((key, t)) => plain(Phase::Progressing, format!("{key} {}", t.message)),
    }
}

/// Returns the object that keeps later waves from being applied, if everything before them is applied.
fn holds_later_waves(objects: &BTreeMap<ObjectKey, Tracked>) -> Option<(&ObjectKey, &Tracked)> {
    let wave = open_wave(objects)?;
    if objects.values().any(|t| t.wave <= wave && t.need() == Need::Apply) {
        return None;
    }
    let open = objects.iter().filter(|(_, t)| t.wave == wave && t.gates && !is_settled(t.health));
    open.max_by_key(|(_, t)| t.health)
}

/// Returns the objects that were met and not adopted, and of which kubectl keeps fields that the release has not.
fn co_owned(
    objects: &BTreeMap<ObjectKey, Tracked>,
) -> impl Iterator<Item = (&ObjectKey, &Tracked)> {
    objects.iter().filter(|(_, t)| t.preexisting && co_owned_fields(t).next().is_some())
}

/// Returns the fields of an object that kubectl keeps, without those that the release leaves to an autoscaler.
fn co_owned_fields(tracked: &Tracked) -> impl Iterator<Item = &str> {
    let fields = tracked.kept_by_kubectl.iter().map(String::as_str);
    fields.filter(|field| !(tracked.autoscaled && *field == REPLICAS_FIELD))
}

fn named<'a>(fields: impl Iterator<Item = &'a str>) -> String {
    fields.collect::<Vec<_>>().join(", ")
}

/// Returns the objects that are not as signed, because admission has rewritten fields of them.
fn rewritten_objects(
    objects: &BTreeMap<ObjectKey, Tracked>,
) -> impl Iterator<Item = (&ObjectKey, &Tracked)> {
    objects.iter().filter(|(_, tracked)| !rewritten(tracked).is_empty())
}

fn settled_text(objects: &BTreeMap<ObjectKey, Tracked>) -> String {
    let total = objects.len();
    let others: Vec<String> =
        rewritten_text(objects).into_iter().chain(co_owned_text(objects)).collect();
    let signed = total - rewritten_objects(objects).count();
    match others.as_slice() {
        [] => format!("{total} objects as signed"),
        _ if signed == total => format!("{total} objects applied, {}", others.join("; ")),
        _ => format!("{signed} of {total} objects as signed; {}", others.join("; ")),
    }
}

fn rewritten_text(objects: &BTreeMap<ObjectKey, Tracked>) -> Option<String> {
    let (first, tracked) = rewritten_objects(objects).next()?;
    let count = rewritten_objects(objects).count();
    let fields = rewritten(tracked).join(", ");
    Some(format!("admission in the cluster rewrote fields of {count}, first {first} {fields}"))
}

fn co_owned_text(objects: &BTreeMap<ObjectKey, Tracked>) -> Option<String> {
    let (first, tracked) = co_owned(objects).next()?;
    let count = co_owned(objects).count();
    let fields = named(co_owned_fields(tracked));
    Some(format!("{count} co-owned by kubectl, first {first}: {fields}"))
}

/// Returns the fields of an object that admission has rewritten.
fn rewritten(tracked: &Tracked) -> &[String] {
    tracked.confirmed.as_ref().map_or(&[], |confirmed| &confirmed.rewritten)
}

/// Returns the aggregated health of the gating objects.
pub fn overall(objects: &BTreeMap<ObjectKey, Tracked>) -> Health {
    health::aggregate(objects.values().filter(|t| t.gates).map(|t| t.health))
}

/// Returns the aggregated health of the gating objects that have not drifted.
pub fn health_as_applied(objects: &BTreeMap<ObjectKey, Tracked>) -> Health {
    let as_applied = objects.values().filter(|t| t.gates && t.need() != Need::Heal);
    health::aggregate(as_applied.map(|t| t.health))
}

fn drifted(objects: &BTreeMap<ObjectKey, Tracked>) -> impl Iterator<Item = &ObjectKey> {
    objects.iter().filter(|(_, t)| t.need() == Need::Heal && !t.busy).map(|(key, _)| key)
}

/// Lists objects by descending severity, so that a truncated list shows the worst ones.
fn listed(objects: &BTreeMap<ObjectKey, Tracked>) -> Vec<ObjectState> {
    let mut states: Vec<ObjectState> = objects
        .iter()
        .map(|(key, tracked)| {
            let failure = tracked.failure.as_ref().filter(|failure| !failure.quiet);
            let text = failure.map_or(&tracked.message, |failure| &failure.message);
            let health = if failure.is_some() { Health::Failed } else { tracked.health };
            ObjectState {
                key: key.clone(),
                health,
                message: message(text),
                rewritten: rewritten(tracked).to_vec(),
                added: tracked.added,
            }
        })
        .collect();
    states.sort_by(|a, b| b.health.cmp(&a.health).then_with(|| a.key.cmp(&b.key)));
    states.truncate(OBJECTS_LISTED_MAX);
    states
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use attest_common::basics::ids::Name;
    use attest_common::record::custody::Confirmed;

    use super::*;
    use crate::destination::objects::tests::tracked;
    use crate::ledger::records::tests::object_key;

    #[test]
    fn a_settled_application_names_what_is_not_as_signed_and_what_kubectl_keeps() {
        let as_signed = || Tracked { preexisting: true, ..tracked(1) };
        let mut rewritten = as_signed();
        rewritten.confirmed = Some(Confirmed {
            desired: rewritten.desired,
            uid: "uid".to_owned(),
            projected: rewritten.desired,
            rewritten: vec!["spec.a".to_owned()],
        });
        let fields = ["spec.b", REPLICAS_FIELD].map(str::to_owned);
        let co_owned = Tracked { kept_by_kubectl: fields.to_vec(), ..as_signed() };
        let scaled = Tracked { autoscaled: true, ..co_owned.clone() };
        let (one, two) = (object_key("ConfigMap", "a"), object_key("ConfigMap", "b"));
        let text = |first: &Tracked, second: &Tracked| {
            settled_text(&[(one.clone(), first.clone()), (two.clone(), second.clone())].into())
        };
        let rewrote = format!("admission in the cluster rewrote fields of 1, first {one} spec.a");

        assert_eq!(text(&as_signed(), &as_signed()), "2 objects as signed");
        assert_eq!(text(&rewritten, &as_signed()), format!("1 of 2 objects as signed; {rewrote}"));
        assert_eq!(
            text(&as_signed(), &co_owned),
            format!("2 objects applied, 1 co-owned by kubectl, first {two}: spec.b, spec.replicas")
        );
        assert_eq!(
            text(&rewritten, &scaled),
            format!(
                "1 of 2 objects as signed; {rewrote}; 1 co-owned by kubectl, first {two}: spec.b"
            )
        );
    }

    #[test]
    fn a_removal_that_does_not_end_says_which_object_it_waits_for_and_why() {
        let key = (Name::new("web").unwrap(), Name::new("shop").unwrap());
        let widget = object_key("Widget", "w");
        let failure =
            Failure::after(None, Reason::Forbidden, "delete /x: 403 no".to_owned(), Instant::now());
        let tell = |obstacle| {
            let report = report(&ReportContext {
                key: &key,
                epoch: None,
                sequence: None,
                running: None,
                removal: Some(RemovalStatus { left: 2, done: false, obstacle: Some(obstacle) }),
                frozen: None,
                refusal: None,
                rollout: None,
                problem: None,
                heals_total: 0,
                now: jiff::Timestamp::UNIX_EPOCH,
            });
            (report.phase, report.reason, report.message)
        };

        let (phase, reason, text) = tell(Obstacle::Failing(&widget, &failure));
        assert_eq!((phase, reason.as_str()), (Phase::Degraded, "Forbidden"));
        assert_eq!(text, format!("cannot delete {widget}: delete /x: 403 no"));

        let (phase, _, text) = tell(Obstacle::Leaving(&widget, "finalizers example.com/drain"));
        assert_eq!(phase, Phase::Progressing);
        let waits = format!("{widget} waits for finalizers example.com/drain");
        assert_eq!(text, format!("removing 2 objects; {waits}"));
    }
}
