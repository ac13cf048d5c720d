//! One pass over one resource: observe, decide, perform, publish. The rules are in `decision` and `applications`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::locked::Locked;
use attest_common::basics::reason::{Reason, ReportedReason};
use attest_common::basics::text::error_chain;
use attest_runtime::clock::now;
use attest_supply::source::UrlPolicy;
use kube::Client;
use serde_json::Value;

use super::decision::{Custody, Decision, decide, name_holder};
use super::document::{Acceptance, Shown, differs, status_document};
use super::events::{Announcement, EventKind, announcements, event};
use super::observed::ObservedResource;
use super::requests::Requests;
use crate::applications::facts::{self, ApplicationFacts, Detail};
use crate::applications::rules::{self, ApplicationError, ApplyRequest, Outcome, Removal};
use crate::applications::status::{self, ApplicationStatus};
use crate::applications::views::Views;
use crate::core::blocking::blocking;
use crate::core::store::StoreError;
use crate::core::store::records::ApplicationRecord;
use crate::core::{CONTROLLER, Core};
use crate::kubernetes::{is_conflict, request_reason};
use crate::reconcile::repositories::Repositories;
use crate::reconcile::waker::Waker;

/// Shortest time between two writes of the status of one resource.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Time after the start of the hub in which clusters that have not connected again are not reported as disconnected.
const RECONNECT_GRACE: Duration = Duration::from_secs(60);
/// Time after which the status of a resource with a disconnected cluster is computed again.
const STALE_CHECK: Duration = Duration::from_secs(61);

/// The custom resources of one hub.
#[derive(Debug)]
pub(crate) struct Custodian {
    core: Arc<Core>,
    views: Arc<Views>,
    waker: Arc<Waker>,
    repositories: Arc<Repositories>,
    pub(super) requests: Requests,
    /// Key id of the hub.
    hub: String,
    started: Instant,
    is_released: AtomicBool,
    /// By UID.
    memories: Locked<BTreeMap<String, Memory>>,
}

/// State of a resource between passes. Lost with the process; every part of it can be determined again.
#[derive(Clone, Debug, Default)]
struct Memory {
    evaluated: Option<Evaluated>,
    removal_refused: Option<(ReportedReason, String)>,
    /// The last status that was written, and the version of the resource that it was computed for.
    written: Option<(String, Value)>,
    written_at: Option<Instant>,
    is_foreign: bool,
    failures: u32,
}

/// Outcome of one version of a resource.
#[derive(Clone, Debug)]
struct Evaluated {
    /// Digest of the manifest.
    digest: Digest,
    /// Number of changes of clusters and keys until then.
    references: u64,
    acceptance: Acceptance,
}

/// When a resource needs another pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    OnChange,
    After(Duration),
}

/// A status to write.
#[derive(Debug)]
enum Publication {
    /// The resource shows it, or the application was not reconciled yet.
    Nothing,
    /// Computed again at that time at the latest.
    Later(Duration),
    Write {
        status: Value,
        announcements: Vec<Announcement>,
    },
}

impl Custodian {
    pub(crate) fn new(
        core: Arc<Core>,
        views: Arc<Views>,
        waker: Arc<Waker>,
        repositories: Arc<Repositories>,
        client: Client,
    ) -> Self {
        let hub = core.signer.public().id().to_string();
        Self {
            core,
            views,
            waker,
            repositories,
            requests: Requests::new(client),
            hub,
            started: Instant::now(),
            is_released: AtomicBool::new(false),
            memories: Locked::default(),
        }
    }

    /// Returns the key id of the hub.
    pub(super) fn hub(&self) -> &str {
        &self.hub
    }

    pub(super) fn urls(&self) -> &UrlPolicy {
        &self.repositories.urls
    }

    /// Leaves resources alone until the hub starts again.
    pub(super) fn set_released(&self) {
        self.is_released.store(true, Ordering::SeqCst);
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn views(&self) -> &Views {
        &self.views
    }

    /// Returns true for a resource whose newest version was rejected, or whose removal was refused.
    pub(super) fn is_rejected(&self, uid: &str) -> bool {
        self.memories.lock().get(uid).is_some_and(|memory| {
            let evaluated = memory.evaluated.as_ref();
            memory.removal_refused.is_some()
                || evaluated.is_some_and(|evaluated| evaluated.acceptance != Acceptance::Accepted)
        })
    }

    /// Forgets a resource that is gone.
    pub(super) fn forget(&self, uid: &str) {
        self.memories.lock().remove(uid);
    }

    /// Counts a failed pass. Returns the number of failures before it.
    pub(super) fn note_failure(&self, uid: &str) -> u32 {
        let mut memories = self.memories.lock();
        let memory = memories.entry(uid.to_owned()).or_default();
        let failures = memory.failures;
        memory.failures = failures.saturating_add(1);
        failures
    }

    fn memory(&self, uid: &str) -> Memory {
        self.memories.lock().get(uid).cloned().unwrap_or_default()
    }

    fn remember(&self, uid: &str, change: impl FnOnce(&mut Memory)) {
        change(self.memories.lock().entry(uid.to_owned()).or_default());
    }

    fn custody(&self) -> Custody {
        if self.is_released.load(Ordering::SeqCst) { Custody::Released } else { Custody::Held }
    }

    /// Makes one pass over a resource. `others` are the other resources of its name.
    pub(super) async fn manage(
        self: &Arc<Self>,
        observed: ObservedResource,
        others: Vec<ObservedResource>,
    ) -> Result<Next, ResourceError> {
        let (name, uid) = (observed.name.clone(), observed.uid.clone());
        let record =
            blocking(&self.core, move |core| core.records.get::<ApplicationRecord>(&name)).await?;
        let holder = name_holder(&observed, &others, record.as_ref());
        let next = match decide(&observed, (&self.hub, self.custody()), &holder) {
            Decision::AddFinalizer => match self.requests.set_finalizer(&observed, true).await? {
                Some(held) => self.apply(held, record.as_ref()).await?,
                None => Next::OnChange,
            },
            Decision::Apply => self.apply(observed, record.as_ref()).await?,
            Decision::NameTaken { namespace } => {
                let taken = ApplicationError::NameTaken { name: name_of(&observed)?, namespace };
                self.evaluated(&observed, rejected(&taken));
                self.publish(observed).await?
            }
            Decision::OtherHub { key_id } => self.announce_other_hub(&observed, &key_id).await?,
            Decision::Remove => self.remove(observed).await?,
            Decision::WaitForRemoval => self.publish(observed).await?,
            Decision::Orphan => {
                self.release(&observed).await?;
                self.requests.set_finalizer(&observed, false).await?;
                Next::OnChange
            }
            Decision::ReleaseFinalizer => {
                self.requests.set_finalizer(&observed, false).await?;
                Next::OnChange
            }
            Decision::Nothing => Next::OnChange,
        };
        self.remember(&uid, |memory| memory.failures = 0);
        Ok(next)
    }

    /// Applies the version of a resource, unless that was done already and nothing it refers to has changed since.
    async fn apply(
        self: &Arc<Self>,
        observed: ObservedResource,
        record: Option<&ApplicationRecord>,
    ) -> Result<Next, ResourceError> {
        let digest = Digest::of(observed.manifest.to_string().as_bytes());
        let references = self.views.changes.references();
        let memory = self.memory(&observed.uid);
        let is_evaluated = memory.evaluated.is_some_and(|evaluated| {
            evaluated.digest == digest
                && (evaluated.acceptance == Acceptance::Accepted
                    || evaluated.references == references)
        });
        if !is_evaluated && record.is_some_and(|record| is_in_force(&observed, record)) {
            // Applied before the hub started. Clusters that a selector matches have been added to it since.
            self.evaluated(&observed, Acceptance::Accepted);
        } else if !is_evaluated {
            self.accept(&observed).await?;
        }
        self.publish(observed).await
    }

    /// Applies the version of a resource by the rules of every interface.
    pub(super) async fn apply_resource(
        self: &Arc<Self>,
        observed: ObservedResource,
    ) -> Result<(ApplicationRecord, Outcome), ApplicationError> {
        let request = ApplyRequest {
            manifest: observed.manifest,
            removal: Removal::ConfirmedFor(observed.confirmed),
            uid: Some(observed.uid),
        };
        blocking(self, |custodian| {
            rules::apply(&custodian.core, &custodian.repositories.urls, request)
        })
        .await
    }

    /// Applies the version of a resource, and notes whether it is accepted.
    async fn accept(self: &Arc<Self>, observed: &ObservedResource) -> Result<(), ResourceError> {
        let acceptance = match self.apply_resource(observed.clone()).await {
            Ok((record, outcome)) => {
                if outcome != Outcome::Unchanged {
                    self.waker.request(record.application.name.as_str(), false);
                }
                Acceptance::Accepted
            }
            Err(ApplicationError::Store(error)) => return Err(error.into()),
            Err(error) => rejected(&error),
        };
        self.evaluated(observed, acceptance);
        Ok(())
    }

    fn evaluated(&self, observed: &ObservedResource, acceptance: Acceptance) {
        let previous = self.memory(&observed.uid).evaluated;
        let is_news = previous.is_none_or(|previous| previous.acceptance != acceptance);
        if let Acceptance::Rejected { reason, message } = &acceptance
            && is_news
        {
            tracing::warn!(
                target: CONTROLLER,
                application = observed.name,
                namespace = observed.namespace,
                reason = reason.as_str(),
                "Not accepted: {message}"
            );
        }
        let evaluated = Evaluated {
            digest: Digest::of(observed.manifest.to_string().as_bytes()),
            references: self.views.changes.references(),
            acceptance,
        };
        self.remember(&observed.uid, |memory| memory.evaluated = Some(evaluated));
    }

    /// Orders the removal of an application from every destination, where the trust policies allow it.
    async fn remove(self: &Arc<Self>, observed: ObservedResource) -> Result<Next, ResourceError> {
        let name = observed.name.clone();
        let removed = blocking(&self.core, move |core| rules::remove(core, &name)).await;
        let refused = match removed {
            Ok(_) => {
                self.waker.request(&observed.name, true);
                None
            }
            Err(ApplicationError::Store(error)) => return Err(error.into()),
            Err(error) => Some((Reason::RemovalRefused.into(), error_chain(&error))),
        };
        self.remember(&observed.uid, |memory| memory.removal_refused = refused);
        self.publish(observed).await
    }

    /// Forgets an application and leaves everything running.
    async fn release(&self, observed: &ObservedResource) -> Result<(), ResourceError> {
        let name = observed.name.clone();
        blocking(&self.core, move |core| rules::release(core, &name)).await?;
        self.waker.request(&observed.name, false);
        Ok(())
    }

    /// Reports, once, that another hub manages a resource. Its status belongs to that hub.
    async fn announce_other_hub(
        &self,
        observed: &ObservedResource,
        key_id: &str,
    ) -> Result<Next, ResourceError> {
        if self.memory(&observed.uid).is_foreign {
            return Ok(Next::OnChange);
        }
        let message = format!(
            "hub {key_id} manages the resource, and hub {} leaves it alone; to hand it over, run `kubectl patch \
             attestapplication {} -n {} --subresource=status --type=merge -p '{{\"status\":{{\"hub\":null}}}}'`",
            self.hub, observed.name, observed.namespace
        );
        tracing::warn!(
            target: CONTROLLER,
            application = observed.name,
            namespace = observed.namespace,
            reason = Reason::OtherHub.as_str(),
            "Not managed: {message}"
        );
        let reason = Reason::OtherHub.as_str().to_owned();
        self.announce(observed, &[Announcement { kind: EventKind::Warning, reason, message }])
            .await;
        self.remember(&observed.uid, |memory| memory.is_foreign = true);
        Ok(Next::OnChange)
    }

    /// Writes the status of a resource if it differs from the one that is there in something other than times.
    async fn publish(self: &Arc<Self>, observed: ObservedResource) -> Result<Next, ResourceError> {
        let resource = observed.clone();
        match blocking(self, move |custodian| custodian.publication(&resource)).await? {
            Publication::Nothing => Ok(Next::OnChange),
            Publication::Later(delay) => Ok(Next::After(delay)),
            Publication::Write { status, announcements } => {
                self.requests.write_status(&observed, &status).await?;
                let written = (observed.resource_version.clone(), status);
                self.remember(&observed.uid, |memory| {
                    memory.written = Some(written);
                    memory.written_at = Some(Instant::now());
                });
                self.announce(&observed, &announcements).await;
                Ok(Next::After(STATUS_INTERVAL))
            }
        }
    }

    /// Creates events. One that cannot be created is lost: the status has the same content.
    async fn announce(&self, observed: &ObservedResource, announcements: &[Announcement]) {
        for announcement in announcements {
            let object = event(observed, announcement, now());
            if let Err(error) = self.requests.create_event(&observed.namespace, object).await {
                tracing::debug!("Failed to create an event about {}: {error}", observed.name);
            }
        }
    }

    /// Returns the status to write for a resource. Blocks.
    fn publication(&self, observed: &ObservedResource) -> Result<Publication, StoreError> {
        let memory = self.memory(&observed.uid);
        let record = self.core.records.get::<ApplicationRecord>(&observed.name)?;
        let record = record.filter(|record| record.uid.as_deref() == Some(&observed.uid));
        let view = self.views.get(&observed.name);
        let acceptance =
            memory.evaluated.map_or(Acceptance::Accepted, |evaluated| evaluated.acceptance);
        if record.is_some() && view.is_none() && acceptance == Acceptance::Accepted {
            // The first pass of the hub's process over the application follows.
            return Ok(Publication::Nothing);
        }
        let gathered = record.map(|record| {
            let facts = facts::gather(&self.core, &record, view, Detail::Overview);
            let status = status::status(&facts);
            (facts, status)
        });
        let application = gathered.as_ref().map(|(facts, status)| (facts, status));
        // The watch may not have delivered the newest write yet.
        let written = memory.written.filter(|(version, _)| *version == observed.resource_version);
        let current = written.map_or_else(|| observed.status.clone(), |(_, status)| status);
        let shown = Shown {
            generation: observed.generation,
            hub: &self.hub,
            acceptance: &acceptance,
            application,
            removal_refused: memory.removal_refused.as_ref(),
        };
        let status = status_document(&shown, &current, now());
        if !differs(&current, &status) {
            return Ok(application.map_or(Publication::Nothing, unchanged));
        }
        let since = memory.written_at.map(|at| at.elapsed());
        if let Some(wait) = since.and_then(|since| STATUS_INTERVAL.checked_sub(since)) {
            return Ok(Publication::Later(wait));
        }
        let is_known =
            current.get("observedGeneration").and_then(Value::as_i64) == Some(observed.generation);
        let grace = RECONNECT_GRACE.checked_sub(self.started.elapsed());
        if let Some(grace) = grace.filter(|_| is_known && application.is_some_and(is_reconnecting))
        {
            return Ok(Publication::Later(grace));
        }
        let announcements = announcements(&current, &status);
        Ok(Publication::Write { status, announcements })
    }
}

/// Returns true for the version that the hub uses.
fn is_in_force(observed: &ObservedResource, record: &ApplicationRecord) -> bool {
    record.uid.as_deref() == Some(&observed.uid)
        && record.manifest == observed.manifest
        && !record.deleting
}

/// Returns when the status of an application that has not changed is computed again.
fn unchanged((_, status): (&ApplicationFacts, &ApplicationStatus)) -> Publication {
    let may_become_stale = status.destinations.iter().any(|one| !one.connected && !one.stale);
    if may_become_stale { Publication::Later(STALE_CHECK) } else { Publication::Nothing }
}

/// Returns true while a registered cluster of the application is not connected.
fn is_reconnecting((facts, _): (&ApplicationFacts, &ApplicationStatus)) -> bool {
    facts.destinations.iter().any(|destination| destination.key.is_some() && !destination.connected)
}

fn rejected(error: &ApplicationError) -> Acceptance {
    Acceptance::Rejected { reason: error.reason().into(), message: error_chain(error) }
}

fn name_of(observed: &ObservedResource) -> Result<Name, ResourceError> {
    observed.name.parse().map_err(|_| ResourceError::Name(observed.name.clone()))
}

/// Failure of a pass over a resource.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResourceError {
    #[error("a request to the API server failed")]
    Request(#[from] kube::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("`{0}` is not the name of an application")]
    Name(String),
}

impl ResourceError {
    /// Returns the reason to show.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Request(error) => request_reason(error),
            Self::Store(error) => error.reason(),
            Self::Name(_) => Reason::FieldInvalid,
        }
    }

    /// Returns true when the resource has changed since it was observed: the watch delivers its newest version.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(self, Self::Request(error) if is_conflict(error))
    }
}
