//! Routes of applications: apply, show, sync, history, diff, delete. The rules are in `applications::rules`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest;
use attest_common::objects::difference::{Difference, differences};
use attest_common::session::report::{ApplicationPhase, Running};
use attest_documents::{
    Application, ApplicationSummary, DetailQuery, Diff, Failure, HistoryEntry, List, ListMetadata,
    PAGE_ITEMS_MAX, PageQuery, REMOVAL_ALLOWED, Released, Rollout,
};
use attest_runtime::clock::now;
use axum::Json;
use axum::extract::{Path, State};
use http::{StatusCode, Uri};
use serde_json::Value;

use super::{Api, Body, Parameters, Refusal, rollouts, shown, status_of, unknown_query};
use crate::applications::facts::{self, Detail, deployed_commit};
use crate::applications::rules::{self, ApplicationError, ApplyRequest, Removal};
use crate::applications::status;
use crate::applications::view::{Rendered, Waiting};
use crate::core::Core;
use crate::core::blocking::blocking;
use crate::core::store::StoreError;
use crate::core::store::records::{self, ApplicationRecord};
use crate::resources::operator::OperatorError;

/// Longest wait of `sync` for a pass.
const PASS_WAIT_MAX: Duration = Duration::from_secs(45);
/// Interval between checks for the completion of a pass.
const PASS_POLL: Duration = Duration::from_millis(10);
/// Most history entries of one destination.
const HISTORY_MAX: usize = 50;

type Answer<T> = Result<Json<T>, Refusal>;

impl From<ApplicationError> for Refusal {
    fn from(error: ApplicationError) -> Self {
        let status = match &error {
            ApplicationError::Lower(_) => StatusCode::UNPROCESSABLE_ENTITY,
            ApplicationError::Unknown(_) => StatusCode::NOT_FOUND,
            ApplicationError::NameTaken { .. }
            | ApplicationError::RemovalUnconfirmed { .. }
            | ApplicationError::RemoveNotAllowed { .. } => StatusCode::CONFLICT,
            ApplicationError::Store(error) => status_of(error),
        };
        let message = if let ApplicationError::Lower(error) = &error {
            // The response has the field in a property of its own.
            error.message.clone()
        } else {
            error_chain(&error)
        };
        let failure = Failure {
            reason: error.reason().into(),
            message,
            field: error.field().map(str::to_owned),
        };
        Self::of(status, failure)
    }
}

impl From<OperatorError> for Refusal {
    fn from(error: OperatorError) -> Self {
        let reason = error.reason();
        match error {
            OperatorError::Application(error) => error.into(),
            OperatorError::Request(kube::Error::Api(status)) => {
                let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::BAD_GATEWAY);
                Self::new(code, reason, status.message)
            }
            OperatorError::Request(error) => {
                Self::new(StatusCode::BAD_GATEWAY, reason, error_chain(&error))
            }
        }
    }
}

/// Returns the document of an application. Blocks.
fn show(api: &Api, record: &ApplicationRecord) -> Application {
    let name = record.application.name.as_str();
    let facts = facts::gather(&api.core, record, api.views.get(name), Detail::Whole);
    let mut status = status::status(&facts);
    api.views.stamp(name, &mut status.conditions, now());
    let shown = shown::application(record, &facts, status);
    // A rollout that cannot be read is left out.
    Application { rollout: newest_rollout(&api.core, record).unwrap_or_default(), ..shown }
}

/// Returns the newest rollout of an application, without its stages. Blocks.
fn newest_rollout(core: &Core, record: &ApplicationRecord) -> Result<Option<Rollout>, StoreError> {
    let stored = records::newest_rollout(&core.records, &record.application.name)?;
    let Some(state) = stored.map(|stored| stored.value) else { return Ok(None) };
    rollouts::shown_summary(core, &state).map(Some)
}

pub(super) async fn apply(
    State(api): State<Arc<Api>>,
    uri: Uri,
    Body(manifest): Body<Value>,
) -> Answer<Application> {
    let removal = match uri.query() {
        None | Some("remove=false") => Removal::Unconfirmed,
        Some(REMOVAL_ALLOWED) => Removal::Confirmed,
        Some(query) => return Err(unknown_query(query)),
    };
    let (record, outcome) = match &api.custodian {
        Some(custodian) => custodian.apply_manifest(manifest, removal).await?,
        None => {
            let request = ApplyRequest { manifest, removal, uid: None };
            let applying =
                blocking(&api, |api| rules::apply(&api.core, &api.repositories.urls, request));
            applying.await?
        }
    };
    let showing = blocking(&api, move |api| {
        api.waker.request(record.application.name.as_str(), false);
        shown::shortened(show(api, &record))
    });
    let outcome = Some(outcome.as_str().to_owned());
    Ok(Json(Application { outcome, ..showing.await }))
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Parameters(page): Parameters<PageQuery>,
) -> Answer<List<ApplicationSummary>> {
    let items_max = page.limit.unwrap_or(PAGE_ITEMS_MAX).clamp(1, PAGE_ITEMS_MAX);
    let listing = blocking(&api, move |api| {
        let after = page.after.unwrap_or_default();
        let mut records: Vec<ApplicationRecord> = api.core.records.page(&after, items_max + 1)?;
        let is_last = records.len() <= items_max;
        records.truncate(items_max);
        let last = records.last().map(|record| record.application.name.to_string());
        let summaries = records.iter().map(|record| summarise(api, record));
        let list = List::new("AttestApplication", summaries.collect());
        Ok::<_, Refusal>(List {
            metadata: ListMetadata { next: last.filter(|_| !is_last) },
            ..list
        })
    });
    Ok(Json(listing.await?))
}

/// Returns one line of the list of applications. Blocks.
fn summarise(api: &Api, record: &ApplicationRecord) -> ApplicationSummary {
    let name = record.application.name.as_str();
    let facts = facts::gather(&api.core, record, api.views.get(name), Detail::Overview);
    shown::summary(record, &facts, status::status(&facts))
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    Parameters(DetailQuery { all }): Parameters<DetailQuery>,
) -> Answer<Application> {
    show_named(api, name, all).await
}

async fn show_named(api: Arc<Api>, name: String, all: bool) -> Answer<Application> {
    let reading = blocking(&api, move |api| {
        let record = rules::find(&api.core, &name)?;
        let shown = show(api, &record);
        Ok::<_, Refusal>(if all { shown } else { shown::shortened(shown) })
    });
    Ok(Json(reading.await?))
}

pub(super) async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Answer<Application> {
    let record = match &api.custodian {
        Some(custodian) => custodian.delete_application(&name).await?,
        None => {
            let removed = name.clone();
            blocking(&api.core, move |core| rules::remove(core, &removed)).await?
        }
    };
    let showing = blocking(&api, move |api| {
        let shown = shown::shortened(show(api, &record));
        api.waker.request(&name, true);
        shown
    });
    Ok(Json(showing.await))
}

/// Lets every resource go, before the hub is uninstalled.
pub(super) async fn release(State(api): State<Arc<Api>>) -> Answer<Released> {
    let Some(custodian) = &api.custodian else {
        let message = "the hub manages no resources; it runs without --in-cluster and --kubeconfig";
        return Err(Refusal::new(StatusCode::CONFLICT, Reason::NotInCluster, message));
    };
    let resources = custodian.release_all().await?;
    Ok(Json(Released { resources }))
}

/// Answers after a pass has polled the repository and issued new directives, so that a waiting client does not read the
/// previous state.
pub(super) async fn sync(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Answer<Application> {
    let asked = name.clone();
    let requesting = blocking(&api, move |api| {
        rules::find(&api.core, &asked)?;
        Ok::<_, Refusal>(api.waker.request(&asked, true))
    });
    let number = requesting.await?;
    let until = Instant::now() + PASS_WAIT_MAX;
    while !api.waker.is_complete(&name, number) {
        if Instant::now() >= until {
            let message = format!(
                "the reconcile of `{name}` is not complete after {} s and continues; \
                 see its outcome with `attest gitops app get {name}`",
                PASS_WAIT_MAX.as_secs()
            );
            return Err(Refusal::new(
                StatusCode::GATEWAY_TIMEOUT,
                Reason::ReconcileTimeout,
                message,
            ));
        }
        tokio::time::sleep(PASS_POLL).await;
    }
    show_named(api, name, false).await
}

pub(super) async fn history(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Answer<List<HistoryEntry>> {
    let reading = blocking(&api.core, move |core| {
        let record = rules::find(core, &name)?;
        Ok::<_, Refusal>(history_of(core, &record)?)
    });
    Ok(Json(List::new("HistoryEntry", reading.await?)))
}

/// Returns the directives of an application, newest first. Blocks.
fn history_of(core: &Core, record: &ApplicationRecord) -> Result<Vec<HistoryEntry>, StoreError> {
    let mut lines = Vec::new();
    for (destination, _) in core.fleet.heads_for(&record.application.name) {
        let cluster = core.directory.name_of(&destination.cluster);
        for entry in core.records.ledger(&destination, HISTORY_MAX)? {
            let result = core.records.result(&destination, entry.sequence)?;
            lines.push(shown::history_entry(&cluster, &destination, &entry, result));
        }
    }
    lines.sort_by_key(|line| std::cmp::Reverse((line.issued_at, line.sequence)));
    Ok(lines)
}

pub(super) async fn diff(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
) -> Answer<List<Diff>> {
    let comparing = blocking(&api, move |api| diffs(api, &name));
    Ok(Json(List::new("Diff", comparing.await?)))
}

/// Compares what runs, as last reported by the spokes, with the rendering of the newest commit.
fn diffs(api: &Api, name: &str) -> Result<Vec<Diff>, Refusal> {
    let core = &api.core;
    let record = rules::find(core, name)?;
    let facts = facts::gather(core, &record, api.views.get(name), Detail::Overview);
    let status = status::status(&facts);
    let view = facts.view.as_deref();
    let mut all = Vec::new();
    // Both are in the same order; destinations that are being removed follow.
    let named = record.application.destinations.iter().zip(&facts.destinations);
    for ((destination, facts), status) in named.zip(&status.destinations) {
        let place = (destination.cluster.clone(), destination.namespace.clone());
        let running = facts.report.as_ref().and_then(|report| report.report.running.as_ref());
        let from = facts.key.as_ref().zip(running);
        let rendered = view.and_then(|view| view.rendered.get(&place));
        let compared = match rendered {
            Some(rendered) => compare(core, running, rendered)?,
            None => Err(Waiting::unknown(Reason::Pending, "not reconciled since the hub started")),
        };
        let known = facts.waiting.as_ref().or(facts.problem.as_ref());
        let obstacle = known.or_else(|| compared.as_ref().err()).cloned();
        let differences = compared.unwrap_or_default();
        // Deployed, but not running yet.
        let is_late = status.phase != ApplicationPhase::Synced && !differences.is_empty();
        let late = is_late.then(|| (status.reason.clone(), status.message.clone()));
        let problem = obstacle.map(|waiting| (waiting.reason.into(), waiting.message)).or(late);
        let (reason, message) = problem.unzip();
        all.push(Diff {
            cluster: destination.cluster.to_string(),
            namespace: destination.namespace.to_string(),
            from: from.and_then(|(key, running)| deployed_commit(core, key, &running.plan)),
            to: view.and_then(|view| view.revision.clone()),
            differences,
            reason,
            message,
        });
    }
    Ok(all)
}

/// Returns the differences, or the reason that the running content cannot be compared.
fn compare(
    core: &Core,
    running: Option<&Running>,
    rendered: &Rendered,
) -> Result<Result<Vec<Difference>, Waiting>, StoreError> {
    let Some(Running { content, .. }) = running else {
        return Ok(Ok(differences(&[], &rendered.objects())));
    };
    if *content == rendered.digest {
        return Ok(Ok(Vec::new()));
    }
    let Some(blob) = core.fleet.blob(&core.records, content)? else {
        let message = format!("the hub does not have the running content ({content})");
        return Ok(Err(Waiting::unknown(Reason::ContentUnknown, message)));
    };
    let objects = manifest::read(&blob.bytes()?).unwrap_or_default();
    Ok(Ok(differences(&objects, &rendered.objects())))
}
