//! How an application looks: its row in a list, its line in a watch, its page.

use attest_common::objects::health::Health;
use attest_documents::{Application, Condition, Destination};
use serde_json::Value;

use crate::human::{NONE, age, duration, or_none, short};
use crate::printer::{Format, Table};

/// Characters of a message that a row shows; `-o wide` shows all of it.
const ROW_MESSAGE_CHARACTERS_MAX: usize = 80;

/// A row an application.
pub(super) fn table(applications: &[Application], format: Format) -> Table {
    let mut header = vec!["name", "phase", "synced", "ready", "revision", "age"];
    if format == Format::Wide {
        header.extend(["namespace", "destinations"]);
    }
    header.push("message");
    let mut table = Table::new(&header);
    for application in applications {
        let destinations = &application.destinations;
        let synced = destinations.iter().filter(|d| d.phase == "Synced").count();
        let ready = application.conditions.iter().find(|condition| condition.kind == "Ready");
        let mut row = vec![
            application.name.clone(),
            application.phase.clone(),
            format!("{synced}/{}", destinations.len()),
            ready.map_or("Unknown", |ready| ready.status.as_str()).to_owned(),
            application.revision.as_deref().map_or_else(|| NONE.to_owned(), short),
            age(application.created_at),
        ];
        if format == Format::Wide {
            let places: Vec<String> =
                destinations.iter().map(|d| format!("{}/{}", d.cluster, d.namespace)).collect();
            row.extend([application.namespace.clone(), places.join(",")]);
        }
        let why = ready.filter(|ready| ready.status != "True").map(|ready| {
            let Condition { reason, message, .. } = ready;
            let whole =
                if message.is_empty() { reason.clone() } else { format!("{reason}: {message}") };
            if format == Format::Wide { whole } else { cut(&whole) }
        });
        row.push(or_none(why));
        table.row(row);
    }
    table
}

/// What of a message fits into a row.
fn cut(message: &str) -> String {
    match message.char_indices().nth(ROW_MESSAGE_CHARACTERS_MAX) {
        Some((at, _)) => format!("{}…", message.split_at(at).0),
        None => message.to_owned(),
    }
}

/// What a watch prints: a line a destination.
pub(super) fn destinations(application: &Application) -> Table {
    let mut table =
        Table::new(&["destination", "phase", "reason", "version", "sequence", "health"]);
    for destination in &application.destinations {
        table.row([
            format!("{}/{}", destination.cluster, destination.namespace),
            destination.phase.clone(),
            destination.reason.clone(),
            or_none(destination.running.as_ref().map(|running| &running.version)),
            or_none(destination.sequence),
            or_none(destination.health.as_ref()),
        ]);
    }
    table
}

/// The page that `app get` prints.
pub(super) fn described(application: &Application, all_objects: bool) -> String {
    let mut page = Page::default();
    let source = |field: &str| {
        let pointer = format!("/spec/source/{field}");
        application.manifest.pointer(&pointer).and_then(Value::as_str)
    };
    let repository = source("repoURL").or_else(|| source("repoUrl"));
    page.field(0, "Name", &application.name);
    page.field(0, "Namespace", &application.namespace);
    page.field(0, "Phase", &application.phase);
    page.field(0, "Repository", &or_none(repository));
    let target = source("targetRevision").unwrap_or("HEAD");
    let revision = application.revision.as_deref().unwrap_or(NONE);
    page.field(0, "Revision", &format!("{revision} ({target})"));
    page.conditions(&application.conditions);
    page.line(0, "Destinations:");
    for destination in &application.destinations {
        page.destination(destination, all_objects);
    }
    if application.destinations.is_empty() {
        page.line(1, NONE);
    }
    page.0
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
        self.line(depth, &format!("{:<14}{value}", format!("{name}:")));
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

    fn destination(&mut self, destination: &Destination, all_objects: bool) {
        let Destination { cluster, namespace, phase, reason, message, .. } = destination;
        let because = if reason == phase { String::new() } else { format!(" ({reason})") };
        self.line(1, &format!("{cluster}/{namespace}: {phase}{because}"));
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
            None => self.field(2, "Running", "nothing of this application"),
        }
        self.field(2, "Health", &or_none(destination.health.as_ref()));
        let news = match destination.report_age_ms {
            Some(ms) => format!("last report {} ago", duration(ms)),
            None => "no report".to_owned(),
        };
        let link = if destination.connected { "connected" } else { "not connected" };
        self.field(2, "News", &format!("{link}, {news}"));
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
        for object in &destination.objects {
            if all_objects || object.health != Health::Current {
                let message = if object.message.is_empty() {
                    String::new()
                } else {
                    format!(": {}", object.message)
                };
                self.line(2, &format!("{} {}{message}", object.key, object.health.as_str()));
            }
        }
    }
}

/// Which destination is not well, and why.
pub(super) fn trouble(destination: &Destination) -> String {
    let Destination { cluster, namespace, phase, reason, message, .. } = destination;
    let because = if reason == phase { String::new() } else { format!(" ({reason})") };
    format!("{cluster}/{namespace} is {phase}{because}: {message}")
}

#[cfg(test)]
mod tests;
