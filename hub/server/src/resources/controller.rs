//! Watches AttestApplications and makes a pass over each that may need one: after a change of the resource, of the
//! status of its application, or of clusters and keys. At most one pass over a resource runs at a time.

use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_runtime::clock::random;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _, TryStreamExt as _, stream};
use kube::api::DynamicObject;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt as _, applier, reflector};
use kube::{Resource as _, ResourceExt as _};

use super::custodian::{Custodian, Next, ResourceError};
use super::observed::{ObservedResource, application_resource};
use crate::applications::changes::Changed;
use crate::core::CONTROLLER;

/// Most resources with a pass in progress. A pass mostly waits for the API server.
const PASSES_MAX: u16 = 8;
/// Delays between passes over a resource that fail.
const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(60))
    .with_jitter(Jitter::Early { percent_max: 50 });

/// The resources that the watch has delivered.
type Resources = Store<DynamicObject>;

/// Inputs of a pass.
struct Context {
    custodian: Arc<Custodian>,
    resources: Resources,
}

/// Manages the resources until the hub stops.
pub(crate) async fn run(custodian: Arc<Custodian>) {
    let writer = Writer::new(application_resource());
    let resources = writer.as_reader();
    custodian.views().changes.open();
    let stop = custodian.core().stop.token();
    let watched = watched(custodian.clone(), writer);
    let triggered = triggered(custodian.clone(), resources.clone()).map(Ok);
    let queue = stream::select(watched, triggered).take_until(stop.cancelled_owned());
    let context = Arc::new(Context { custodian, resources: resources.clone() });
    let config = controller::Config::default().concurrency(PASSES_MAX);
    applier(pass, retry, context, resources, queue, config).for_each(log_outcome).await;
}

/// Returns the resources that change.
fn watched(
    custodian: Arc<Custodian>,
    writer: Writer<DynamicObject>,
) -> impl Stream<Item = Result<ObjectRef<DynamicObject>, watcher::Error>> {
    let events = watcher::watcher(custodian.requests.all(), watcher::Config::default())
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear());
    reflector(writer, events).try_filter_map(move |event| {
        let changed = changed(&custodian, event);
        async move { Ok(changed) }
    })
}

fn changed(custodian: &Custodian, event: Event<DynamicObject>) -> Option<ObjectRef<DynamicObject>> {
    match event {
        Event::Apply(object) | Event::InitApply(object) => {
            Some(ObjectRef::from_obj_with(&object, application_resource()))
        }
        Event::Delete(object) => {
            custodian.forget(&object.metadata.uid.clone().unwrap_or_default());
            // Another resource may take its name now.
            custodian.views().changes.note(&object.name_any());
            None
        }
        Event::Init | Event::InitDone => None,
    }
}

/// Returns the resources whose application, or whose references, have changed.
fn triggered(
    custodian: Arc<Custodian>,
    resources: Resources,
) -> impl Stream<Item = ObjectRef<DynamicObject>> {
    let changes = stream::unfold((custodian, resources), async |(custodian, resources)| {
        let changed = custodian.views().changes.next().await;
        let concerned = concerned(&custodian, &resources, &changed);
        Some((stream::iter(concerned), (custodian, resources)))
    });
    changes.flatten()
}

fn concerned(
    custodian: &Custodian,
    resources: &Resources,
    changed: &Changed,
) -> Vec<ObjectRef<DynamicObject>> {
    let all = resources.state_filter(|object| {
        let metadata = object.meta();
        let has_changed =
            metadata.name.as_ref().is_some_and(|name| changed.applications.contains(name));
        let uid = metadata.uid.as_deref().unwrap_or_default();
        has_changed || changed.references && custodian.is_rejected(uid)
    });
    all.iter()
        .map(|object| ObjectRef::from_obj_with(object.as_ref(), application_resource()))
        .collect()
}

fn pass(
    object: Arc<DynamicObject>,
    context: Arc<Context>,
) -> BoxFuture<'static, Result<Action, ResourceError>> {
    make_pass(object, context).boxed()
}

async fn make_pass(
    object: Arc<DynamicObject>,
    context: Arc<Context>,
) -> Result<Action, ResourceError> {
    let observed = ObservedResource::read(&object);
    let others = context.resources.state_filter(|other| {
        other.metadata.name == object.metadata.name && other.metadata.uid != object.metadata.uid
    });
    let others = others.iter().map(|other| ObservedResource::read(other)).collect();
    Ok(match context.custodian.manage(observed, others).await? {
        Next::OnChange => Action::await_change(),
        Next::After(delay) => Action::requeue(delay),
    })
}

/// Returns when a failed pass is made again.
#[allow(clippy::needless_pass_by_value, reason = "the signature that `applier` requires")]
fn retry(object: Arc<DynamicObject>, error: &ResourceError, context: Arc<Context>) -> Action {
    let failures =
        context.custodian.note_failure(object.metadata.uid.as_deref().unwrap_or_default());
    if !error.is_conflict() {
        tracing::warn!(
            target: CONTROLLER,
            application = object.name_any(),
            namespace = object.namespace().unwrap_or_default(),
            reason = error.reason().as_str(),
            "Failed to manage an AttestApplication: {}", error_chain(error)
        );
    }
    Action::requeue(RETRY.delay(failures, random()))
}

async fn log_outcome<T>(outcome: Result<T, controller::Error<ResourceError, watcher::Error>>) {
    // Other failures are logged already, or concern a resource that was deleted before its pass.
    if let Err(controller::Error::QueueError(error)) = outcome {
        tracing::warn!(
            target: CONTROLLER,
            reason = Reason::ResourcesUnavailable.as_str(),
            "Failed to watch AttestApplications: {}", error_chain(&error)
        );
    }
}
