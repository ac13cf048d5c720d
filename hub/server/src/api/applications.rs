//! Applications: apply, show, sync, history, difference, delete.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::ids::{ClusterId, DestinationKey, Name};
use attest_common::basics::keys::PublicKey;
use attest_common::documents::manifest;
use attest_common::objects::difference::{Difference, differences};
use attest_common::session::report::{Phase, Running};
use attest_runtime::clock::now;
use axum::Json;
use axum::extract::{Path, State};
use http::{StatusCode, Uri};
use serde_json::Value;

use super::{Body, Refusal};
use crate::applications::lower::{self, Known};
use crate::applications::status::{self, Detail};
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, ApplicationRecord, ClusterState, KeyRecord, LedgerEntry, ReportRecord,
};
use crate::process::hub::Hub;
use crate::reconcile::planner::{Rendered, Waiting};
use crate::reconcile::queue::{destination_key, places};
use attest_documents::{
    Application, Diff, Failure, HistoryEntry, List, REMOVAL_ALLOWED, REMOVAL_UNCONFIRMED,
};

/// Longest wait of `sync` for a repository.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(45);
const LOOK_POLL: Duration = Duration::from_millis(10);
/// Most destinations named in one message.
const PLACES_NAMED_MAX: usize = 10;

type Answer<T> = Result<Json<T>, Refusal>;

pub(super) async fn apply(
    State(hub): State<Arc<Hub>>,
    uri: Uri,
    Body(manifest): Body<Value>,
) -> Answer<Application> {
    let may_remove = uri.query() == Some(REMOVAL_ALLOWED);
    let shown = hub.blocking(move |hub| apply_manifest(hub, manifest, may_remove)).await?;
    Ok(Json(shown))
}

fn apply_manifest(hub: &Hub, manifest: Value, may_remove: bool) -> Result<Application, Refusal> {
    let application = lower::lower(&manifest, &known(hub)?)
        .map_err(|error| Refusal::of(StatusCode::UNPROCESSABLE_ENTITY, Failure::from(error)))?;
    let former = hub.records.stored::<ApplicationRecord>(application.name.as_str())?;
    let name = application.name.to_string();
    if let Some(former) = &former {
        let other = &former.value.application.namespace;
        if *other != application.namespace {
            let message = format!(
                "an application `{name}` lies in namespace {other}; names are unique in a hub"
            );
            let failure = Failure {
                reason: "NameTaken".to_owned(),
                message,
                field: Some("metadata.name".to_owned()),
            };
            return Err(Refusal::of(StatusCode::CONFLICT, failure));
        }
    }
    let leaving = leaving(hub, &application.name, &places(hub, &application));
    may_be_removed(hub, &leaving)?;
    if !may_remove && let Some(losses) = losses(hub, &leaving) {
        let message = format!("this removes {name} from {losses}");
        return Err(Refusal::new(StatusCode::CONFLICT, REMOVAL_UNCONFIRMED, message));
    }
    let record = ApplicationRecord {
        generation: former.as_ref().map_or(1, |former| {
            let same = former.value.application == application;
            former.value.generation + u64::from(!same)
        }),
        created_at: former.as_ref().map_or_else(now, |former| former.value.created_at),
        application,
        manifest,
        deleting: false,
    };
    let (outcome, change) = match &former {
        Some(former) if former.value == record => ("Unchanged", None),
        Some(former) => ("Configured", Some(records::replace(former, &record))),
        None => ("Created", Some(records::put_new(&record))),
    };
    if let Some(change) = change {
        hub.records.commit("application", &[change])?;
    }
    hub.pipeline.look(&name, false);
    let shown = status::application(hub, &record, Detail::Objects);
    Ok(Application { outcome: Some(outcome.to_owned()), ..shown })
}

/// A destination that an application is to leave, and what its spoke last said of it.
type Leaving = (DestinationKey, Arc<LedgerEntry>, Option<Arc<ReportRecord>>);

/// Where it may run and is to run no longer.
fn leaving(hub: &Hub, application: &Name, kept: &BTreeSet<(ClusterId, Name)>) -> Vec<Leaving> {
    let mut heads = hub.fleet.heads_for(application);
    heads.retain(|(place, head)| {
        // An order that stands is not given anew.
        head.planned.is_some()
            && !kept.contains(&(place.cluster.clone(), place.namespace.clone()))
            && hub.directory.is_living(&place.cluster)
    });
    let all = heads.into_iter().map(|(place, head)| {
        let report = hub.fleet.report(&place);
        (place, head, report)
    });
    // What never ran there has nothing to remove.
    let runs_nothing = |report: &ReportRecord| {
        report.report.phase == Phase::Refused && report.report.running.is_none()
    };
    all.filter(|(_, _, report)| !report.as_deref().is_some_and(runs_nothing)).collect()
}

/// The places that are left, and how much of the application is there, for who has to agree.
fn losses(hub: &Hub, leaving: &[Leaving]) -> Option<String> {
    let named = leaving.iter().take(PLACES_NAMED_MAX).map(|(place, _, report)| {
        let cluster = hub.directory.name_of(&place.cluster);
        let objects = match report.as_ref().map(|report| report.report.objects_total) {
            Some(1) => "1 object".to_owned(),
            Some(count) => format!("{count} objects"),
            None => "nothing reported yet".to_owned(),
        };
        format!("{cluster}/{} ({objects})", place.namespace)
    });
    let named: Vec<String> = named.collect();
    let more = leaving.len().saturating_sub(named.len());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!named.is_empty()).then(|| named.join(", ") + &more)
}

/// Refuses what a cluster's own policy would refuse for ever: to order removal where the hub may not.
fn may_be_removed(hub: &Hub, leaving: &[Leaving]) -> Result<(), Refusal> {
    for (place, head, _) in leaving {
        let application = &place.application;
        let Some(planned) = &head.planned else { continue };
        let Some(hint) = hub.fleet.hint(&place.cluster) else { continue };
        let local = hint.policy.effective(application, &planned.repo, &place.namespace);
        if local.is_ok_and(|local| local.remove_allowed) {
            continue;
        }
        let cluster = hub.directory.name_of(&place.cluster);
        let message = format!(
            "the trust policy of cluster {cluster} does not let the hub remove {application} from namespace {}; \
             set `remove: {{allow: true}}` for it in that policy and run `attest trust install POLICY --kubeconfig F`, \
             with that cluster's own credentials",
            place.namespace
        );
        return Err(Refusal::new(StatusCode::CONFLICT, "RemoveNotAllowed", message));
    }
    Ok(())
}

fn known(hub: &Hub) -> Result<Known, Refusal> {
    let clusters = hub.directory.all().into_iter();
    let clusters: BTreeSet<_> = clusters
        .filter(|cluster| cluster.state != ClusterState::Revoked)
        .map(|cluster| cluster.name.clone())
        .collect();
    let keys: Vec<KeyRecord> = hub.records.all()?;
    let keys: BTreeMap<_, _> = keys
        .into_iter()
        .filter_map(|key| Some((key.alias, PublicKey::from_pem(&key.public_key).ok()?.id())))
        .collect();
    Ok(Known {
        clusters,
        default_cluster: hub.records.default_cluster()?,
        keys,
        urls: hub.urls.clone(),
    })
}

fn record(hub: &Hub, name: &str) -> Result<ApplicationRecord, Refusal> {
    hub.records.get::<ApplicationRecord>(name)?.ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Refusal {
    let message =
        format!("no application is named `{name}`; `attest gitops app list` shows those there are");
    Refusal::not_found("ApplicationUnknown", message)
}

pub(super) async fn list(State(hub): State<Arc<Hub>>) -> Answer<List<Application>> {
    let shown = hub
        .blocking(|hub| {
            let all: Vec<ApplicationRecord> = hub.records.all()?;
            let shown = |record| status::application(hub, record, Detail::Overview);
            Ok::<_, Refusal>(all.iter().map(shown).collect())
        })
        .await?;
    Ok(Json(List::new("AttestApplication", shown)))
}

pub(super) async fn one(
    State(hub): State<Arc<Hub>>,
    Path(name): Path<String>,
) -> Answer<Application> {
    let shown = hub
        .blocking(move |hub| {
            Ok::<_, Refusal>(status::application(hub, &record(hub, &name)?, Detail::Objects))
        })
        .await?;
    Ok(Json(shown))
}

pub(super) async fn remove(
    State(hub): State<Arc<Hub>>,
    Path(name): Path<String>,
) -> Answer<Application> {
    let shown = hub
        .blocking(move |hub| {
            let stored = hub.records.stored::<ApplicationRecord>(&name)?;
            let stored = stored.ok_or_else(|| unknown(&name))?;
            let leaving = leaving(hub, &stored.value.application.name, &BTreeSet::new());
            may_be_removed(hub, &leaving)?;
            let deleting = ApplicationRecord { deleting: true, ..stored.value.clone() };
            if deleting != stored.value {
                let change = records::replace(&stored, &deleting);
                hub.records.commit("application", &[change])?;
            }
            let shown = status::application(hub, &deleting, Detail::Objects);
            hub.pipeline.look(&name, true);
            Ok::<_, Refusal>(shown)
        })
        .await?;
    Ok(Json(shown))
}

/// Answers when the repository has been asked and what is new has been ordered, so that who waits
/// for the outcome does not take the state before for it.
pub(super) async fn sync(
    State(hub): State<Arc<Hub>>,
    Path(name): Path<String>,
) -> Answer<Application> {
    let asked = name.clone();
    let number = hub
        .blocking(move |hub| {
            record(hub, &asked)?;
            Ok::<_, Refusal>(hub.pipeline.look(&asked, true))
        })
        .await?;
    let until = Instant::now() + LOOK_WAIT_MAX;
    while !hub.pipeline.has_looked(&name, number) {
        if Instant::now() >= until {
            let message = format!(
                "the look at `{name}` is not finished after {} s and goes on; \
                 `attest gitops app get {name}` shows what comes of it",
                LOOK_WAIT_MAX.as_secs()
            );
            return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, "LookUnfinished", message));
        }
        tokio::time::sleep(LOOK_POLL).await;
    }
    one(State(hub), Path(name)).await
}

pub(super) async fn history(
    State(hub): State<Arc<Hub>>,
    Path(name): Path<String>,
) -> Answer<List<HistoryEntry>> {
    let lines = hub
        .blocking(move |hub| {
            record(hub, &name)?;
            Ok::<_, Refusal>(status::history(hub, &name)?)
        })
        .await?;
    Ok(Json(List::new("HistoryEntry", lines)))
}

pub(super) async fn diff(
    State(hub): State<Arc<Hub>>,
    Path(name): Path<String>,
) -> Answer<List<Diff>> {
    let found = hub.blocking(move |hub| diffs(hub, &name)).await?;
    Ok(Json(List::new("Diff", found)))
}

/// What runs, as the spokes last said, against what the newest commit renders to.
fn diffs(hub: &Hub, name: &str) -> Result<Vec<Diff>, Refusal> {
    let record = record(hub, name)?;
    let view = hub.pipeline.view(name);
    let shown = status::application(hub, &record, Detail::Overview);
    let mut all = Vec::new();
    // In the same order; those that are being removed come after them.
    for (destination, shown) in record.application.destinations.iter().zip(&shown.destinations) {
        let place = (destination.cluster.clone(), destination.namespace.clone());
        let key = hub.directory.named(&destination.cluster).map(|cluster| {
            destination_key(&record.application.name, &cluster.id, &destination.namespace)
        });
        let report = key.as_ref().and_then(|key| hub.fleet.report(key));
        let running = report.as_ref().and_then(|report| report.report.running.as_ref());
        let from = key.as_ref().zip(running);
        let rendered = view.as_ref().and_then(|view| view.rendered.get(&place));
        let compared = match rendered {
            Some(rendered) => compare(hub, running, rendered)?,
            None => Err(Waiting::new("Pending", "not looked at since the hub started")),
        };
        let waiting = view.as_ref().and_then(|view| view.waiting.get(&place));
        let problem = waiting.or_else(|| view.as_ref().and_then(|view| view.problem.as_ref()));
        let problem = problem.or_else(|| compared.as_ref().err()).cloned();
        let differences = compared.unwrap_or_default();
        // What was ordered and does not run yet.
        let is_late = shown.phase != "Synced" && !differences.is_empty();
        let late = || is_late.then(|| Waiting::new(&shown.reason, shown.message.as_str()));
        let problem = problem.or_else(late);
        all.push(Diff {
            cluster: destination.cluster.to_string(),
            namespace: destination.namespace.to_string(),
            from: from.and_then(|(key, running)| status::commit_of(hub, key, &running.plan)),
            to: view.as_ref().and_then(|view| view.revision.clone()),
            differences,
            reason: problem.as_ref().map(|problem| problem.reason.clone()),
            message: problem.map(|problem| problem.message),
        });
    }
    Ok(all)
}

/// The differences, or why what runs cannot be compared.
fn compare(
    hub: &Hub,
    running: Option<&Running>,
    rendered: &Rendered,
) -> Result<Result<Vec<Difference>, Waiting>, StoreError> {
    let Some(Running { content, .. }) = running else {
        return Ok(Ok(differences(&[], &rendered.objects)));
    };
    if *content == rendered.digest {
        return Ok(Ok(Vec::new()));
    }
    let Some(blob) = hub.fleet.blob(&hub.records, content)? else {
        let message = format!("the hub does not have what runs there ({content})");
        return Ok(Err(Waiting::new("ContentUnknown", message)));
    };
    let objects = manifest::read(&blob.bytes()?).unwrap_or_default();
    Ok(Ok(differences(&objects, &rendered.objects)))
}
