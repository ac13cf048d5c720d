//! Explanation of a trust policy in sentences.

use attest_common::basics::ids::Name;
use attest_common::basics::terms::{Mode, Role};
use attest_common::trust::policy::{
    Entry, GroupResource, KeySpec, PRUNE_GUARD_OBJECTS_MIN, Spec, accounts_namespace,
};

/// Returns the policy in sentences, one per line. A line that begins with `!` requires attention.
pub fn explain(spec: &Spec) -> Vec<String> {
    let mut lines = Vec::new();
    let cluster = spec.cluster_name.as_ref().map_or("the cluster", Name::as_str);
    lines.push(format!("For {cluster} in environment {}.", spec.environment));
    lines.push(match &spec.kube_system_uid {
        Some(uid) => format!("Only if namespace kube-system has UID {uid}."),
        None => "`attest trust install` adds the identity of the cluster.".to_owned(),
    });
    lines.push(format!(
        "Plans come from a hub whose certificate authority is {}.",
        spec.hub.ca_pins.join(" or ")
    ));
    lines.extend(spec.keys.iter().map(|key| explain_key(key, &spec.environment)));
    if spec.keys.iter().all(|key| !key.environments.contains(&spec.environment)) {
        lines.push("! No CI key is for this environment; every release is refused.".to_owned());
    }
    for entry in &spec.applications {
        explain_entry(entry, &mut lines);
    }
    if spec.applications.is_empty() {
        lines.push("! No application is allowed.".to_owned());
    }
    lines.push("Namespaces kube-* and attest-* are never allowed.".to_owned());
    lines
}

fn explain_key(key: &KeySpec, environment: &Name) -> String {
    if !key.environments.contains(environment) {
        return format!("! Key {} is not for {environment} and has no effect.", key.name);
    }
    let roles: Vec<&str> = key.roles.iter().map(|role| role_name(*role)).collect();
    format!("Key {} may sign as {}.", key.name, roles.join(", "))
}

fn explain_entry(entry: &Entry, lines: &mut Vec<String>) {
    lines.push(format!(
        "{} from {} may run in {}, with accounts in {}.",
        capitalised(&described_patterns(&entry.names, "application")),
        described_patterns(&entry.repos, "repository"),
        described_patterns(&entry.namespaces, "namespace"),
        accounts_namespace(entry),
    ));
    let attestations = match entry.required_attestations.as_slice() {
        [] => "no attestation".to_owned(),
        required => required.join(", "),
    };
    lines.push(format!("  Verification is at least {}, with {attestations}.", entry.minimum_mode));
    if let Some(hours) = entry.max_scan_age_hours {
        lines
            .push(format!("  A scan may be at most {hours} hours old when a release is admitted."));
    }
    if entry.minimum_mode < Mode::Strict {
        lines.push(format!("! {} allows some failed checks.", entry.minimum_mode));
    }
    if !entry.kinds.extra.is_empty() {
        let kinds = described_kinds(&entry.kinds.extra);
        lines.push(format!("! In addition to workloads, it may write {kinds}."));
    }
    if !entry.kinds.cluster_scoped.is_empty() {
        let kinds = described_kinds(&entry.kinds.cluster_scoped);
        lines.push(format!("! It may write {kinds} for the whole cluster."));
    }
    lines.push(match entry.rollback.last_good {
        0 => "  The hub may return it to the newest plan that was good, and to none before it."
            .to_owned(),
        1 => "  The hub may return it to the newest plan that was good, and to the one before it."
            .to_owned(),
        count => format!(
            "  The hub may return it to the newest plan that was good, and to {count} before it."
        ),
    });
    lines.push(match entry.remove.allow {
        true => "  The hub may remove it; volumes, namespaces and definitions remain.".to_owned(),
        false => "  The hub may not remove it.".to_owned(),
    });
    lines.push(match entry.remove.max_prune_percent {
        0 => "  An update deletes none of its objects.".to_owned(),
        percent => format!(
            "  An update deletes at most {percent} % of its objects, if it has {PRUNE_GUARD_OBJECTS_MIN} or more."
        ),
    });
    if entry.adopt {
        lines.push("! It may take over objects of other owners if a plan requests it.".to_owned());
    }
}

fn described_patterns(patterns: &[String], noun: &str) -> String {
    match patterns {
        [only] if only == "*" => format!("any {noun}"),
        _ => format!("{noun} {}", patterns.join(" or ")),
    }
}

fn described_kinds(kinds: &[GroupResource]) -> String {
    let names: Vec<String> = kinds
        .iter()
        .map(|kind| match kind.group.as_str() {
            "" => kind.resource.clone(),
            group => format!("{}.{group}", kind.resource),
        })
        .collect();
    names.join(", ")
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Builder => "builder",
        Role::Tester => "tester",
        Role::Scanner => "scanner",
        Role::Releaser => "releaser",
    }
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next();
    first.into_iter().flat_map(char::to_uppercase).chain(characters).collect()
}
