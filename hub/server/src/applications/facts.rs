//! Facts about one application, gathered for the rules of `applications::status`. Contains no rules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::ids::{DestinationKey, Digest, Name};

use super::view::{View, Waiting};
use crate::core::Core;
use crate::core::store::records::{
    Application, ApplicationRecord, Destination, LedgerEntry, ReportRecord,
};

/// Most directives of a destination searched for the one whose plan runs.
const DIRECTIVES_SEARCHED_MAX: usize = 8;

/// Level of detail for each destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// The commit of the running plan is also searched in the ledger, on the disk.
    Whole,
    /// Facts in memory.
    Overview,
}

/// Facts about one application.
#[derive(Debug)]
pub(crate) struct ApplicationFacts {
    pub view: Option<Arc<View>>,
    /// The destinations that the application names, in its order; then those that it is being removed from.
    pub destinations: Vec<DestinationFacts>,
    pub deleting: bool,
    /// The highest generation issued.
    pub generation: u64,
}

/// Facts about one destination.
#[derive(Debug)]
pub(crate) struct DestinationFacts {
    /// Name of the cluster.
    pub cluster: String,
    pub namespace: String,
    /// Absent while the cluster is not registered.
    pub key: Option<DestinationKey>,
    pub head: Option<Arc<LedgerEntry>>,
    pub report: Option<Arc<ReportRecord>>,
    /// The newest directive was sent again, and no report has arrived since.
    pub resent: bool,
    pub connected: bool,
    /// Time since the last contact with the cluster; `None` when there was none, or the cluster is not registered.
    pub last_seen: Option<Duration>,
    /// Reason that the newest commit is not deployed there.
    pub waiting: Option<Waiting>,
    /// Failure to read the source of the application.
    pub problem: Option<Waiting>,
    /// The application was reconciled since the hub started.
    pub reconciled: bool,
    /// Commit from which the running plan was made.
    pub deployed_commit: Option<String>,
}

/// Gathers the facts about an application. Blocks.
pub(crate) fn gather(
    core: &Core,
    record: &ApplicationRecord,
    view: Option<Arc<View>>,
    detail: Detail,
) -> ApplicationFacts {
    let application = &record.application;
    let mut destinations = Vec::new();
    let mut named = BTreeSet::new();
    for Destination { cluster, namespace, .. } in &application.destinations {
        let facts = named_by(core, application, view.as_deref(), (cluster, namespace), detail);
        named.extend(facts.key.clone());
        destinations.push(facts);
    }
    let heads = core.fleet.heads_for(&application.name);
    let generation = heads.iter().map(|(_, head)| head.generation).max().unwrap_or(0);
    let left = heads.iter().map(|(key, _)| key).filter(|key| !named.contains(*key));
    destinations.extend(left.filter_map(|key| leaving(core, key, detail)));
    ApplicationFacts { view, destinations, deleting: record.deleting, generation }
}

/// Gathers the facts about a destination that an application names. Blocks.
pub(crate) fn named_by(
    core: &Core,
    application: &Application,
    view: Option<&View>,
    (cluster, namespace): (&Name, &Name),
    detail: Detail,
) -> DestinationFacts {
    let registered = core.directory.named(cluster);
    let key = registered.map(|registered| application.key_at(&registered.id, namespace));
    let place = (cluster.clone(), namespace.clone());
    DestinationFacts {
        waiting: view.and_then(|view| view.waiting.get(&place).cloned()),
        problem: view.and_then(|view| view.problem.clone()),
        reconciled: view.is_some(),
        ..at(core, key, cluster.to_string(), namespace.to_string(), detail)
    }
}

/// Gathers the facts about a destination that an application is being removed from; `None` when it is gone. Blocks.
pub(crate) fn leaving(
    core: &Core,
    key: &DestinationKey,
    detail: Detail,
) -> Option<DestinationFacts> {
    let head = core.fleet.head(key)?;
    if head.is_removed(core.fleet.report(key).as_deref()) {
        return None;
    }
    let cluster = core.directory.get(&key.cluster)?.name.to_string();
    Some(at(core, Some(key.clone()), cluster, key.namespace.to_string(), detail))
}

fn at(
    core: &Core,
    key: Option<DestinationKey>,
    cluster: String,
    namespace: String,
    detail: Detail,
) -> DestinationFacts {
    let head = key.as_ref().and_then(|key| core.fleet.head(key));
    let report = key.as_ref().and_then(|key| core.fleet.report(key));
    let presence = key.as_ref().map(|key| core.fleet.presence(&key.cluster));
    let running = report.as_ref().and_then(|report| report.report.running.as_ref());
    let deployed_commit = key.as_ref().zip(running).and_then(|(key, running)| match detail {
        Detail::Whole => deployed_commit(core, key, &running.plan),
        Detail::Overview => head.as_ref().and_then(|head| head.commit_of(&running.plan)),
    });
    DestinationFacts {
        resent: key.as_ref().is_some_and(|key| core.fleet.is_resent(key)),
        cluster,
        namespace,
        key,
        head,
        report,
        connected: presence.is_some_and(|(connected, _)| connected),
        last_seen: presence.and_then(|(_, last_seen)| last_seen),
        waiting: None,
        problem: None,
        reconciled: true,
        deployed_commit,
    }
}

/// Returns the commit from which a plan was made, if it is among the newest plans of a destination. Blocks.
pub(crate) fn deployed_commit(
    core: &Core,
    destination: &DestinationKey,
    plan: &Digest,
) -> Option<String> {
    let newest = core.fleet.head(destination)?;
    newest.commit_of(plan).or_else(|| {
        let directives = core.records.ledger(destination, DIRECTIVES_SEARCHED_MAX).ok()?;
        directives.iter().find_map(|directive| directive.commit_of(plan))
    })
}
