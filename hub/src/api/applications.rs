//! Applications: apply, show, sync, history, difference, delete.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::difference::differences;
use attest_common::ids::{ClusterId, Name};
use attest_common::keys::PublicKey;
use attest_common::manifest;
use attest_common::report::Phase;
use axum::Json;
use axum::extract::{Path, State};
use http::StatusCode;
use serde_json::Value;

use super::documents::{Application, Diff, Failure, HistoryEntry, List};
use super::{Body, Refusal};
use crate::hub::{Hub, now};
use crate::lower::{self, Known};
use crate::pipeline::places;
use crate::status::{self, Detail};
use crate::store::records::{self, ApplicationRecord, ClusterState, KeyRecord};

/// Longest wait of `sync` for a repository.
const LOOK_WAIT_MAX: Duration = Duration::from_secs(45);
const LOOK_POLL: Duration = Duration::from_millis(10);

type Answer<T> = Result<Json<T>, Refusal>;

pub(super) async fn apply(
    State(hub): State<Arc<Hub>>,
    Body(manifest): Body<Value>,
) -> Answer<Application> {
    let shown = hub.blocking(move |hub| apply_manifest(hub, manifest)).await?;
    Ok(Json(shown))
}

fn apply_manifest(hub: &Hub, manifest: Value) -> Result<Application, Refusal> {
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
    may_be_removed(hub, &application.name, &places(hub, &application))?;
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

/// Refuses what a cluster's own policy would refuse for ever: to order removal where the hub may not.
fn may_be_removed(
    hub: &Hub,
    application: &Name,
    kept: &BTreeSet<(ClusterId, Name)>,
) -> Result<(), Refusal> {
    for (place, head) in hub.fleet.heads_for(application) {
        let is_kept = kept.contains(&(place.cluster.clone(), place.namespace.clone()));
        if is_kept || !hub.directory.is_living(&place.cluster) {
            continue;
        }
        let report = hub.fleet.report(&place);
        // An order that stands is not given anew; what never ran there has nothing to remove.
        let runs_nothing = report
            .as_ref()
            .is_some_and(|r| r.report.phase == Phase::Refused && r.report.running.is_none());
        let Some(planned) = head.planned.as_ref().filter(|_| !runs_nothing) else { continue };
        let Some(hint) = hub.fleet.hint(&place.cluster) else { continue };
        let local = hint.policy.local(application, &planned.repo, &place.namespace);
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
            may_be_removed(hub, &stored.value.application.name, &BTreeSet::new())?;
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

/// What runs (as ordered) against what the newest commit renders to.
fn diffs(hub: &Hub, name: &str) -> Result<Vec<Diff>, Refusal> {
    let record = record(hub, name)?;
    let view = hub.pipeline.view(name);
    let mut all = Vec::new();
    for destination in &record.application.destinations {
        let place = (destination.cluster.clone(), destination.namespace.clone());
        let cluster = hub.directory.named(&destination.cluster);
        let head = cluster.and_then(|cluster| {
            hub.fleet.head(&crate::pipeline::destination_key(
                &record.application.name,
                &cluster.id,
                &destination.namespace,
            ))
        });
        let planned = head.as_ref().and_then(|head| head.planned.as_ref());
        let running = match planned {
            Some(planned) => hub.fleet.blob(&hub.records, &planned.content)?,
            None => None,
        };
        let running = match running {
            Some(blob) => manifest::read(&blob.bytes()?).unwrap_or_default(),
            None => Vec::new(),
        };
        let rendered = view.as_ref().and_then(|view| view.rendered.get(&place));
        let waiting = view.as_ref().and_then(|view| view.waiting.get(&place));
        let problem = waiting.or_else(|| view.as_ref().and_then(|view| view.problem.as_ref()));
        all.push(Diff {
            cluster: destination.cluster.to_string(),
            namespace: destination.namespace.to_string(),
            from: planned.map(|planned| planned.commit.clone()),
            to: view.as_ref().and_then(|view| view.revision.clone()),
            differences: rendered
                .map(|rendered| differences(&running, &rendered.objects))
                .unwrap_or_default(),
            reason: problem.map(|problem| problem.reason.clone()),
            message: problem.map(|problem| problem.message.clone()),
        });
    }
    Ok(all)
}
