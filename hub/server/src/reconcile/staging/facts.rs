//! Gathers what a tick of a rollout depends on. Contains no rules.

use std::cmp::Ordering;

use attest_common::basics::ids::Digest;
use attest_common::basics::reason::Reason;
use attest_common::documents::plan::Operation;
use attest_common::session::FEATURE_ROLLOUT;
use attest_common::session::report::{Phase, Report};

use super::super::plan::{NewPlan, PlannedDirective};
use crate::core::Core;
use crate::core::position::{GENERATIONS_AHEAD_MAX, is_overtaken};
use crate::core::store::records::{LedgerEntry, MemberReason, RolloutMember, RolloutSnapshot};
use crate::rollouts::tick::{HeadFacts, MemberFacts, ReportFacts, ReportedRollout};

/// Gathers the facts about every member.
pub(crate) fn gather(core: &Core, snapshot: &RolloutSnapshot) -> Vec<MemberFacts> {
    snapshot.members.iter().map(|member| of_member(core, snapshot, member)).collect()
}

fn of_member(core: &Core, snapshot: &RolloutSnapshot, member: &RolloutMember) -> MemberFacts {
    let key = &member.destination;
    let head = core.fleet.head(key);
    let position = core.fleet.position(key);
    let report = core.fleet.report(key);
    let policy = core.fleet.reported_policy(&key.cluster);
    MemberFacts {
        // A destination that the application leaves is not counted either.
        is_registered: core.directory.is_living(&key.cluster)
            && head.as_ref().is_none_or(|head| head.operation != Operation::Remove),
        is_connected: position.is_some(),
        is_supported: policy.is_some_and(|policy| policy.features.contains(FEATURE_ROLLOUT)),
        is_overtaken: position.is_some_and(|held| {
            let known = snapshot.generation;
            match held.generation.cmp(&known) {
                // Ordered before this rollout: its orders go above what is held.
                Ordering::Less => false,
                Ordering::Equal => head.as_ref().is_none_or(|head| is_overtaken(head, held)),
                Ordering::Greater => held.generation - known <= GENERATIONS_AHEAD_MAX,
            }
        }),
        report: report.as_ref().map(|record| ReportFacts {
            is_fresh: core.fleet.is_fresh(key),
            ..of_report(&record.report, head.as_deref())
        }),
        head: head.as_deref().map(of_head),
    }
}

fn of_head(head: &LedgerEntry) -> HeadFacts {
    HeadFacts {
        sequence: head.sequence,
        generation: head.generation,
        attempt: head.attempt,
        operation: head.operation,
        plan: head.planned.as_ref().map(|planned| planned.plan),
        is_paused: head.paused,
        is_hub_finalized: head.hub_finalized,
    }
}

fn of_report(report: &Report, head: Option<&LedgerEntry>) -> ReportFacts {
    let refusal = report.refusal.as_ref().filter(|_| report.phase == Phase::Refused);
    let refused = refusal.and_then(|refusal| {
        let reason =
            MemberReason { reason: refusal.reason.clone(), message: refusal.message.clone() };
        Some((refusal.sequence?, reason))
    });
    let rollout = report.rollout.as_ref();
    ReportFacts {
        is_fresh: false,
        sequence: report.sequence,
        refused: refused.filter(|(_, refusal)| refusal.reason != Reason::Expired),
        good: match rollout {
            Some(rollout) => rollout.good.first().copied(),
            None => local_good(report, head),
        },
        rollout: rollout.map(|rollout| ReportedRollout {
            generation: rollout.generation,
            attempt: rollout.attempt,
            plan: rollout.plan,
            is_at_target: rollout.at_target,
            is_soaked: rollout.soak_reached,
            aborted: rollout.aborted.as_ref().map(|abort| {
                let failure =
                    MemberReason { reason: abort.reason.clone(), message: abort.message.clone() };
                (abort.plan, abort.attempt, failure)
            }),
        }),
    }
}

/// Returns the good plan of a destination that has taken part in no rollout.
fn local_good(report: &Report, head: Option<&LedgerEntry>) -> Option<Digest> {
    let head = head.filter(|head| !head.hub_finalized && head.operation == Operation::Progress)?;
    let is_settled = report.phase == Phase::Synced && head.runs_in(report);
    head.planned.as_ref().filter(|_| is_settled).map(|planned| planned.plan)
}

/// Returns whether the content of a plan is that of the good plan that runs: it is ordered outside the stages.
pub(in super::super) fn runs_content(
    core: &Core,
    planned: &PlannedDirective,
    plan: &NewPlan,
) -> bool {
    let Some(head) = planned.head.as_deref() else { return false };
    let Some(running) = head.planned.as_ref() else { return false };
    let report = core.fleet.report(&planned.destination);
    let good = report.and_then(|record| of_report(&record.report, Some(head)).good);
    running.content == plan.plan.content.sha256 && good == Some(running.plan)
}
