//! An application as text: its row in a list, the rows of its destinations, its page.

use attest_common::basics::reason::Reason;
use attest_common::basics::text;
use attest_common::objects::health::Health;
use attest_common::session::report::ApplicationPhase;
use attest_common::session::report::ObjectState;
use attest_common::verify::Check;
use attest_documents::{
    Application, ApplicationSummary, Condition, Destination, DestinationCounts,
};
use serde_json::Value;

use crate::human::{NONE, age, duration, or_none, short, short_or_none};
use crate::printer::{Format, TextTable, field};
use crate::rollout::rollout_line;

/// Maximum length of a message in a row, in characters; `-o wide` shows the whole message.
const ROW_MESSAGE_CHARACTERS_MAX: usize = 80;

/// One row per application of a list.
pub(super) fn summary_table(applications: &[ApplicationSummary], format: Format) -> TextTable {
    let mut header = vec!["name", "phase", "synced", "ready", "revision", "age"];
    if format == Format::Wide {
        header.push("namespace");
    }
    header.push("message");
    let mut table = TextTable::new(&header);
    for application in applications {
        let mut row = vec![
            application.name.clone(),
            application.phase.to_string(),
            synced(&application.destination_counts),
            application.ready.clone(),
            short_or_none(application.revision.as_deref()),
            age(application.created_at),
        ];
        if format == Format::Wide {
            row.push(application.namespace.clone());
        }
        let ApplicationSummary { ready, reason, message, .. } = application;
        let mut why = (ready != "True").then(|| match message.as_str() {
            "" => reason.to_string(),
            message => format!("{reason}: {message}"),
        });
        if let Some(why) = why.as_mut().filter(|_| format != Format::Wide) {
            text::truncate(why, ROW_MESSAGE_CHARACTERS_MAX, "…");
        }
        row.push(or_none(why));
        table.row(row);
    }
    table
}

/// One row per application, as printed after a change of it.
pub(super) fn application_table(applications: &[Application], format: Format) -> TextTable {
    let summaries: Vec<ApplicationSummary> = applications.iter().map(summary).collect();
    summary_table(&summaries, format)
}

fn summary(application: &Application) -> ApplicationSummary {
    let ready = application.conditions.iter().find(|condition| condition.kind == "Ready");
    ApplicationSummary {
        name: application.name.clone(),
        namespace: application.namespace.clone(),
        phase: application.phase,
        ready: ready.map_or("Unknown", |ready| ready.status.as_str()).to_owned(),
        reason: ready.map_or_else(|| Reason::Pending.into(), |ready| ready.reason.clone()),
        message: ready.map(|ready| ready.message.clone()).unwrap_or_default(),
        revision: application.revision.clone(),
        destination_counts: application.destination_counts.clone(),
        generation: application.generation,
        created_at: application.created_at,
    }
}

/// The number of synced destinations and of all.
fn synced(counts: &DestinationCounts) -> String {
    let synced = counts.get(&ApplicationPhase::Synced).copied().unwrap_or_default();
    format!("{synced}/{}", counts.values().sum::<u64>())
}

/// One row per destination, as printed by a watch.
pub(super) fn destination_table(application: &Application) -> TextTable {
    let mut table =
        TextTable::new(&["destination", "phase", "reason", "version", "sequence", "health"]);
    for destination in &application.destinations {
        table.row([
            format!("{}/{}", destination.cluster, destination.namespace),
            destination.phase.to_string(),
            destination.reason.to_string(),
            or_none(destination.running.as_ref().map(|running| &running.version)),
            or_none(destination.sequence),
            or_none(destination.health.as_ref()),
        ]);
    }
    table
}

/// Optional parts of a page.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PageDetail {
    /// Healthy objects too.
    pub(super) all_objects: bool,
    /// The checks that the running release passed.
    pub(super) checks: bool,
}

/// The page printed by `app get`.
pub(super) fn application_page(application: &Application, detail: PageDetail) -> String {
    let mut page = Page::default();
    let manifest = &application.manifest;
    let repository =
        source_field(manifest, "repoURL").or_else(|| source_field(manifest, "repoUrl"));
    page.field(0, "Name", &application.name);
    page.field(0, "Namespace", &application.namespace);
    page.field(0, "Phase", application.phase.as_str());
    page.field(0, "Repository", &or_none(repository));
    let target = source_field(manifest, "targetRevision").unwrap_or("HEAD");
    let revision = application.revision.as_deref().unwrap_or(NONE);
    page.field(0, "Revision", &format!("{revision} ({target})"));
    if let Some(rollout) = &application.rollout {
        page.field(0, "Rollout", &rollout_line(rollout));
    }
    page.conditions(&application.conditions);
    page.line(0, "Destinations:");
    for destination in &application.destinations {
        page.destination(destination, detail);
    }
    if application.destinations.is_empty() {
        page.line(1, NONE);
    }
    let total: u64 = application.destination_counts.values().sum();
    let hidden = total.saturating_sub(application.destinations.len() as u64);
    if hidden > 0 {
        page.line(1, &format!("{hidden} more destinations; --all shows them"));
    }
    page.0
}

fn source_field<'a>(manifest: &'a Value, field: &str) -> Option<&'a str> {
    manifest.pointer(&format!("/spec/source/{field}")).and_then(Value::as_str)
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, text: &str) {
        self.0.push_str(&"  ".repeat(depth));
        self.0.push_str(text);
        self.0.push('\n');
    }

    fn field(&mut self, depth: usize, name: &str, value: &str) {
        self.line(depth, &field(name, value));
    }

    fn conditions(&mut self, conditions: &[Condition]) {
        if conditions.is_empty() {
            return;
        }
        self.line(0, "Conditions:");
        for condition in conditions {
            let Condition { kind, status, reason, message, last_transition_time } = condition;
            let since = age(*last_transition_time);
            self.line(1, &format!("{kind}={status} {reason}, since {since}"));
            if !message.is_empty() {
                self.line(2, message);
            }
        }
    }

    fn destination(&mut self, destination: &Destination, detail: PageDetail) {
        let Destination { cluster, namespace, message, .. } = destination;
        self.line(1, &format!("{cluster}/{namespace}: {}", phase_with_reason(destination)));
        if !message.is_empty() {
            self.line(2, message);
        }
        match &destination.running {
            Some(running) => {
                self.field(
                    2,
                    "Running",
                    &format!("{}, release {}", running.version, running.counter),
                );
                let commit = destination.deployed_commit.as_deref().unwrap_or(NONE);
                self.field(
                    2,
                    "Commit",
                    &format!("{} (signed from {})", short(commit), short(&running.signed_commit)),
                );
                self.field(2, "Signed by", &running.signers.join(", "));
                self.field(
                    2,
                    "Since",
                    &format!("{:.0} ({} ago)", running.since, age(running.since)),
                );
                self.field(2, "Content", &running.content.to_string());
            }
            None => self.field(2, "Running", NONE),
        }
        self.field(2, "Health", &or_none(destination.health.as_ref()));
        let age = destination.report_age_ms.map(|ms| format!("{} ago", duration(ms)));
        let connection = if destination.connected { "connected" } else { "disconnected" };
        self.field(2, "Last report", &format!("{} ({connection})", or_none(age)));
        if let (Some(epoch), Some(sequence)) = (destination.epoch, destination.sequence) {
            self.field(2, "Directive", &format!("{epoch}.{sequence}"));
        }
        if let Some(refusal) = &destination.refusal {
            self.field(2, "Refused", &format!("{}: {}", refusal.reason, refusal.message));
        }
        if !destination.drifted.is_empty() {
            self.field(2, "Drifted", &destination.drifted.join(", "));
        }
        if destination.heals_total > 0 {
            self.field(2, "Healed", &format!("{} times", destination.heals_total));
        }
        for warning in &destination.warnings {
            self.field(2, "Warning", warning);
        }
        let added: Vec<u64> = destination.objects.iter().map(|object| object.added).collect();
        let objects = added.iter().filter(|count| **count > 0).count();
        if objects > 0 {
            let fields: u64 = added.iter().sum();
            self.field(
                2,
                "Added",
                &format!("{fields} fields of other managers in {objects} objects"),
            );
        }
        if destination.objects.is_empty() && destination.objects_total > 0 {
            self.field(2, "Objects", &format!("{}; --all shows them", destination.objects_total));
        }
        for object in &destination.objects {
            let is_shown = detail.all_objects
                || object.health != Health::Current
                || !object.rewritten.is_empty();
            if is_shown {
                self.line(2, &describe_object(object));
            }
        }
        if detail.checks {
            self.checks(&destination.checks);
        }
    }

    fn checks(&mut self, checks: &[Check]) {
        self.line(2, "Checks:");
        for Check { check, detail } in checks {
            self.line(3, &format!("{check}: {detail}"));
        }
        if checks.is_empty() {
            self.line(3, NONE);
        }
    }
}

/// Health and message of an object, and fields of it that are not as signed.
fn describe_object(object: &ObjectState) -> String {
    let mut text = format!("{} {}", object.key, object.health.as_str());
    if !object.message.is_empty() {
        text.push_str(&format!(": {}", object.message));
    }
    if !object.rewritten.is_empty() {
        text.push_str(&format!("; rewritten by admission: {}", object.rewritten.join(", ")));
    }
    if object.added > 0 {
        text.push_str(&format!("; {} fields of other managers", object.added));
    }
    text
}

/// The phase of a destination with its reason and message.
pub(super) fn describe_problem(destination: &Destination) -> String {
    let Destination { cluster, namespace, message, .. } = destination;
    format!("{cluster}/{namespace} is {}: {message}", phase_with_reason(destination))
}

fn phase_with_reason(destination: &Destination) -> String {
    let Destination { phase, reason, .. } = destination;
    if reason.as_str() == phase.as_str() {
        phase.to_string()
    } else {
        format!("{phase} ({reason})")
    }
}

#[cfg(test)]
mod tests;
