//! One watch for each kind and namespace in use, and routes of its events to workers. Keeps digests, never bodies.
//!
//! Events about objects that no worker follows are dropped here. `drift` interprets events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use attest_common::basics::backoff::Backoff;
use attest_common::basics::ids::Digest;
use attest_common::basics::locked::Locked;
use attest_common::basics::text::error_chain;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::absent::EmptyFields;
use attest_common::objects::autoscaling;
use attest_common::objects::health::{self, Verdict};
use attest_common::objects::pods::{self, NewestPods, PodState, ReplicaSetState, newest_pods};
use attest_common::objects::{projection, rewritten, takeover};
use futures::StreamExt;
use kube::Api;
use kube::api::ApiResource;
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::answer;
use super::client::ApiServer;
use super::drift::Live;
use crate::metrics::Metrics;

/// Consecutive failures of a watch after which a warning is logged: a new binding or definition needs a moment.
pub const FAILURES_QUIET_MAX: u32 = 3;
/// Time for which the API server keeps a watch open, in seconds. A watch that is silent for a few seconds
/// longer is dead and is opened again.
pub const WATCH_OPEN_S: u32 = 60;
/// Delay before a watch that the API server rejects is tried again.
pub const REFUSED_RETRY: Backoff =
    Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
/// Objects per page of the list that a watch begins with.
pub const LIST_PAGE_OBJECTS: u32 = 100;

/// Kind, version and namespace of a watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    /// Absent for cluster-scoped kinds.
    pub namespace: Option<String>,
}

/// An object to follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Followed {
    pub scope: Scope,
    /// Fields of the desired object that claim no entries.
    pub empty: Arc<EmptyFields>,
}

/// Observed state of one object.
#[derive(Clone, Debug)]
pub struct Observation {
    pub live: Live,
    /// Fields that kubectl owns and we do not.
    pub kept_by_kubectl: Vec<String>,
    pub verdict: Verdict,
    /// Number of fields outside the status that only other managers own.
    pub added: u64,
    /// Arrival of the event, to measure the duration of a heal.
    pub at: Instant,
}

/// Reason that a scope cannot be watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchRefusal {
    /// 403.
    Forbidden,
    /// 404: the API server does not serve the kind.
    NotServed,
    /// The response of the API server is not JSON: changes may be missed.
    Unreadable,
}

/// Observations that a worker has not processed yet.
#[derive(Debug, Default)]
pub struct News {
    /// The newest observation of each object. Bounded by the inventory.
    pub objects: BTreeMap<ObjectKey, Observation>,
    /// Status of each scope: `None` once a list of it is complete.
    pub scopes: BTreeMap<Scope, Option<WatchRefusal>>,
    /// The objects that autoscalers of a namespace scale, by namespace.
    pub autoscaled: BTreeMap<String, BTreeSet<ObjectKey>>,
    /// The newest pods of the Deployments of a namespace, by namespace.
    pub pods: BTreeMap<String, Arc<DeploymentPods>>,
}

/// The newest pods of each Deployment of a namespace, by its name.
pub type DeploymentPods = BTreeMap<String, NewestPods>;

/// Queue of the observations of one destination.
#[derive(Debug, Default)]
pub struct Inbox {
    news: Locked<News>,
    arrived: Notify,
}

impl Inbox {
    /// Takes everything new since the last call.
    pub fn take(&self) -> News {
        std::mem::take(&mut *self.news.lock())
    }

    /// Waits until something is new.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn put(&self, key: ObjectKey, observation: Observation) {
        self.change(|news| news.objects.insert(key, observation));
    }

    fn put_scope(&self, scope: &Scope, refused: Option<WatchRefusal>) {
        self.change(|news| news.scopes.insert(scope.clone(), refused));
    }

    fn put_pods(&self, namespace: &str, pods: &Arc<DeploymentPods>) {
        self.change(|news| news.pods.insert(namespace.to_owned(), Arc::clone(pods)));
    }

    fn change<T>(&self, change: impl FnOnce(&mut News) -> T) {
        change(&mut self.news.lock());
        self.arrived.notify_one();
    }
}

/// All watches of the spoke.
#[derive(Clone, Debug)]
pub struct Watches(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    api: ApiServer,
    metrics: Metrics,
    state: Locked<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The inbox of each object, and the watch that feeds it: another version of its kind projects it
    /// differently.
    routes: BTreeMap<ObjectKey, (Followed, Arc<Inbox>)>,
    watches: BTreeMap<Scope, AbortHandle>,
    /// The autoscalers of each followed namespace.
    autoscalers: BTreeMap<Scope, Autoscalers>,
    /// The pods of each followed namespace.
    pods: BTreeMap<String, NamespacePods>,
}

/// Pods and ReplicaSets of a namespace by name, and who follows them. Kept while a rollout is open.
#[derive(Debug, Default)]
struct NamespacePods {
    inboxes: Vec<Arc<Inbox>>,
    /// Absent until they are listed.
    replica_sets: Option<BTreeMap<String, ReplicaSetState>>,
    /// Absent until they are listed.
    pods: Option<BTreeMap<String, PodState>>,
    sent: Option<Arc<DeploymentPods>>,
}

impl NamespacePods {
    /// Sends the newest pods to every inbox, if they have changed.
    fn send_changes(&mut self, namespace: &str) {
        let (Some(sets), Some(pods)) = (&self.replica_sets, &self.pods) else { return };
        let newest = newest_pods(sets.values(), pods.values());
        if self.sent.as_deref() == Some(&newest) {
            return;
        }
        let newest = Arc::new(newest);
        for inbox in &self.inboxes {
            inbox.put_pods(namespace, &newest);
        }
        self.sent = Some(newest);
    }
}

/// Pods or ReplicaSets of a list.
#[derive(Debug, Default)]
struct ListedPods {
    replica_sets: BTreeMap<String, ReplicaSetState>,
    pods: BTreeMap<String, PodState>,
}

/// The autoscalers of a namespace, and who follows them.
#[derive(Debug, Default)]
struct Autoscalers {
    inboxes: Vec<Arc<Inbox>>,
    /// Target of each autoscaler; absent until they are listed.
    targets: Option<BTreeMap<ObjectKey, ObjectKey>>,
}

impl Autoscalers {
    /// Sends what is scaled to an inbox, once it is known.
    fn send(&self, scope: &Scope, inbox: &Inbox) {
        let (Some(targets), Some(namespace)) = (&self.targets, &scope.namespace) else { return };
        let targets: BTreeSet<ObjectKey> = targets.values().cloned().collect();
        inbox.change(|news| news.autoscaled.insert(namespace.clone(), targets));
    }
}

impl ListedPods {
    fn add(&mut self, scope: &Scope, object: &answer::LiveObject) {
        if scope.pods_of().is_none() {
            return;
        }
        let name = object.metadata.name.clone().unwrap_or_default();
        if scope.group.is_empty() {
            self.pods.extend(pods::pod_state(&object.value).map(|pod| (name, pod)));
        } else {
            let set = pods::replica_set_state(&object.value);
            self.replica_sets.extend(set.map(|set| (name, set)));
        }
    }
}

impl Watches {
    /// Returns an empty set of watches.
    pub fn new(api: ApiServer, metrics: Metrics) -> Self {
        Self(Arc::new(Inner { api, metrics, state: Locked::default() }))
    }

    /// Routes exactly these objects to `inbox`, and opens and closes watches accordingly. Watches in
    /// `relist` that are open already are restarted, so that objects that were not followed before are
    /// observed too.
    pub fn follow(
        &self,
        inbox: &Arc<Inbox>,
        objects: &BTreeMap<ObjectKey, Followed>,
        relist: &BTreeSet<Scope>,
    ) {
        let mut state = self.state();
        state.routes.retain(|key, (_, to)| !Arc::ptr_eq(to, inbox) || objects.contains_key(key));
        for (key, followed) in objects {
            state.routes.insert(key.clone(), (followed.clone(), Arc::clone(inbox)));
        }
        for scope in objects.values().map(|followed| &followed.scope).collect::<BTreeSet<_>>() {
            let open = state.watches.get(scope);
            let relist = relist.contains(scope);
            if relist && let Some(task) = open {
                task.abort();
            }
            if relist || open.is_none() {
                let task = tokio::spawn(watch(self.clone(), scope.clone()));
                state.watches.insert(scope.clone(), task.abort_handle());
            }
        }
        close_unused(&mut state);
        let State { watches, .. } = &*state;
        self.0.metrics.watches.set(i64::try_from(watches.len()).unwrap_or(i64::MAX));
    }

    /// Sends what the autoscalers of exactly these scopes scale to `inbox`, now and when it changes.
    pub fn follow_autoscalers(&self, inbox: &Arc<Inbox>, scopes: &BTreeSet<Scope>) {
        let mut state = self.state();
        let State { watches, autoscalers, .. } = &mut *state;
        for (scope, known) in autoscalers.iter_mut() {
            let before = known.inboxes.len();
            known.inboxes.retain(|other| !Arc::ptr_eq(other, inbox));
            if before > known.inboxes.len() && scopes.contains(scope) {
                known.inboxes.push(Arc::clone(inbox));
            }
        }
        for scope in scopes {
            let known = autoscalers.entry(scope.clone()).or_default();
            if known.inboxes.iter().any(|other| Arc::ptr_eq(other, inbox)) {
                continue;
            }
            known.inboxes.push(Arc::clone(inbox));
            known.send(scope, inbox);
            if known.targets.is_none() || !watches.contains_key(scope) {
                // A watch that is open already has not listed them for this purpose.
                if let Some(task) = watches.remove(scope) {
                    task.abort();
                }
                let task = tokio::spawn(watch(self.clone(), scope.clone()));
                watches.insert(scope.clone(), task.abort_handle());
            }
        }
        autoscalers.retain(|_, known| !known.inboxes.is_empty());
        close_unused(&mut state);
        self.0.metrics.watches.set(i64::try_from(state.watches.len()).unwrap_or(i64::MAX));
    }

    /// Sends the newest pods of the Deployments of exactly these namespaces to `inbox`, now and when they change.
    pub fn follow_pods(&self, inbox: &Arc<Inbox>, namespaces: &BTreeSet<String>) {
        let mut state = self.state();
        let State { watches, pods, .. } = &mut *state;
        for (namespace, known) in pods.iter_mut() {
            if !namespaces.contains(namespace) {
                known.inboxes.retain(|other| !Arc::ptr_eq(other, inbox));
            }
        }
        for namespace in namespaces {
            let known = pods.entry(namespace.clone()).or_default();
            if known.inboxes.iter().any(|other| Arc::ptr_eq(other, inbox)) {
                continue;
            }
            known.inboxes.push(Arc::clone(inbox));
            if let Some(sent) = &known.sent {
                inbox.put_pods(namespace, sent);
            }
            let is_listed = [known.replica_sets.is_some(), known.pods.is_some()];
            for (scope, is_listed) in Scope::of_pods(namespace).into_iter().zip(is_listed) {
                if is_listed && watches.contains_key(&scope) {
                    continue;
                }
                // A watch that is open already has not listed them for this purpose.
                if let Some(task) = watches.remove(&scope) {
                    task.abort();
                }
                let task = tokio::spawn(watch(self.clone(), scope.clone()));
                watches.insert(scope, task.abort_handle());
            }
        }
        pods.retain(|_, known| !known.inboxes.is_empty());
        close_unused(&mut state);
        self.0.metrics.watches.set(i64::try_from(state.watches.len()).unwrap_or(i64::MAX));
    }

    /// Notes a pod or ReplicaSet, or that it is gone.
    fn note_pod(&self, scope: &Scope, object: &answer::LiveObject, is_gone: bool) {
        let Some(namespace) = scope.pods_of() else { return };
        let mut state = self.state();
        let Some(known) = state.pods.get_mut(namespace) else { return };
        let name = object.metadata.name.clone().unwrap_or_default();
        if scope.group.is_empty() {
            let Some(pods) = &mut known.pods else { return };
            match pods::pod_state(&object.value).filter(|_| !is_gone) {
                Some(pod) => pods.insert(name, pod),
                None => pods.remove(&name),
            };
        } else {
            let Some(sets) = &mut known.replica_sets else { return };
            match pods::replica_set_state(&object.value).filter(|_| !is_gone) {
                Some(set) => sets.insert(name, set),
                None => sets.remove(&name),
            };
        }
        known.send_changes(namespace);
    }

    /// Replaces the pods or ReplicaSets of a namespace by a complete list.
    fn list_pods(&self, scope: &Scope, listed: ListedPods) {
        let Some(namespace) = scope.pods_of() else { return };
        let mut state = self.state();
        let Some(known) = state.pods.get_mut(namespace) else { return };
        if scope.group.is_empty() {
            known.pods = Some(listed.pods);
        } else {
            known.replica_sets = Some(listed.replica_sets);
        }
        known.send_changes(namespace);
    }

    /// Notes what an autoscaler scales, or that it is gone.
    fn note_autoscaler(&self, scope: &Scope, key: ObjectKey, target: Option<&ObjectKey>) {
        let mut state = self.state();
        let Some(known) = state.autoscalers.get_mut(scope) else { return };
        let Some(targets) = &mut known.targets else { return };
        let before = match target {
            Some(target) => targets.insert(key, target.clone()),
            None => targets.remove(&key),
        };
        if before.as_ref() != target {
            known.inboxes.iter().for_each(|inbox| known.send(scope, inbox));
        }
    }

    /// Replaces the autoscalers of a namespace by a complete list.
    fn list_autoscalers(&self, scope: &Scope, targets: BTreeMap<ObjectKey, ObjectKey>) {
        let mut state = self.state();
        let Some(known) = state.autoscalers.get_mut(scope) else { return };
        if known.targets.as_ref() != Some(&targets) {
            known.targets = Some(targets);
            known.inboxes.iter().for_each(|inbox| known.send(scope, inbox));
        }
    }

    fn route(&self, scope: &Scope, key: &ObjectKey) -> Option<(Arc<EmptyFields>, Arc<Inbox>)> {
        let state = self.state();
        let (followed, inbox) = state.routes.get(key)?;
        (followed.scope == *scope).then(|| (Arc::clone(&followed.empty), Arc::clone(inbox)))
    }

    /// Returns the objects of this scope, with the inbox of each.
    fn routes(&self, scope: &Scope) -> Vec<(ObjectKey, Arc<Inbox>)> {
        let state = self.state();
        let mine = state.routes.iter().filter(|(_, (followed, _))| followed.scope == *scope);
        mine.map(|(key, (_, inbox))| (key.clone(), Arc::clone(inbox))).collect()
    }

    /// Reports to each inbox of this scope which objects a list did not contain, and that it is complete.
    fn listed(&self, scope: &Scope, listed: &BTreeSet<ObjectKey>) {
        for (key, inbox) in self.routes(scope) {
            if !listed.contains(&key) {
                inbox.put(key, absent(scope, Live::NotListed));
            }
            inbox.put_scope(scope, None);
        }
    }

    /// Reports to each inbox of this scope that it cannot be watched.
    fn refused(&self, scope: &Scope, refused: WatchRefusal) {
        for (_, inbox) in self.routes(scope) {
            inbox.put_scope(scope, Some(refused));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock()
    }
}

/// Closes the watches that nothing follows.
fn close_unused(state: &mut State) {
    let State { routes, watches, autoscalers, pods } = state;
    let of_pods: Vec<Scope> = pods.keys().flat_map(|namespace| Scope::of_pods(namespace)).collect();
    let routed = routes.values().map(|(followed, _)| &followed.scope);
    let used: BTreeSet<&Scope> = routed.chain(autoscalers.keys()).chain(&of_pods).collect();
    watches.retain(|scope, task| {
        let used = used.contains(scope);
        if !used {
            task.abort();
        }
        used
    });
}

impl Scope {
    /// Returns the scope of the autoscalers of a namespace.
    pub fn of_autoscalers(namespace: &str) -> Self {
        Self {
            group: autoscaling::GROUP.to_owned(),
            version: "v2".to_owned(),
            kind: autoscaling::KIND.to_owned(),
            plural: "horizontalpodautoscalers".to_owned(),
            namespace: Some(namespace.to_owned()),
        }
    }

    /// Returns the scopes of the ReplicaSets and of the pods of a namespace.
    pub fn of_pods(namespace: &str) -> [Self; 2] {
        [("apps", "ReplicaSet", "replicasets"), ("", "Pod", "pods")].map(|(group, kind, plural)| {
            Self {
                group: group.to_owned(),
                version: "v1".to_owned(),
                kind: kind.to_owned(),
                plural: plural.to_owned(),
                namespace: Some(namespace.to_owned()),
            }
        })
    }

    /// Returns the namespace, if this is a scope of pods or ReplicaSets.
    fn pods_of(&self) -> Option<&str> {
        let kind = (self.group.as_str(), self.kind.as_str());
        let is_of_pods = matches!(kind, ("apps", "ReplicaSet") | ("", "Pod"));
        self.namespace.as_deref().filter(|_| is_of_pods)
    }

    /// Returns what an object of this scope scales, if it is an autoscaler.
    fn scaled_by(&self, object: &answer::LiveObject) -> Option<ObjectKey> {
        let is_autoscaler =
            (self.group.as_str(), self.kind.as_str()) == (autoscaling::GROUP, autoscaling::KIND);
        let namespace = object.metadata.namespace.as_deref();
        is_autoscaler.then(|| autoscaling::target_of(&object.value, namespace)).flatten()
    }

    fn key(&self, object: &answer::LiveObject) -> ObjectKey {
        ObjectKey {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone().unwrap_or_default(),
        }
    }
}

/// Returns the observation of an object that does not exist.
pub fn absent(scope: &Scope, live: Live) -> Observation {
    Observation {
        live,
        kept_by_kubectl: Vec::new(),
        verdict: Verdict::absent(&scope.group, &scope.kind),
        added: 0,
        at: Instant::now(),
    }
}

/// Returns the projection of an object in which we own no field.
fn nothing_ours() -> Digest {
    Digest::of(b"")
}

/// Returns the observation of a live object, from a watch or from the response to an apply.
pub fn observe(key: &ObjectKey, live: &Value, empty: &EmptyFields) -> Observation {
    let projected = projection::digest(live, empty).unwrap_or_else(nothing_ours);
    let whole = empty
        .reduced()
        .map(|_| projection::digest_before_empty_fields(live).unwrap_or_else(nothing_ours));
    let text = |pointer: &str| live.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    Observation {
        live: Live::Present {
            uid: text("/metadata/uid").to_owned(),
            projected,
            whole: whole.filter(|whole| *whole != projected),
            leaving: live.pointer("/metadata/deletionTimestamp").is_some(),
            version: text("/metadata/resourceVersion").parse().unwrap_or(0),
        },
        kept_by_kubectl: takeover::kept_by_kubectl(live),
        verdict: health::verdict(&key.group, &key.kind, live),
        added: rewritten::added(live),
        at: Instant::now(),
    }
}

async fn watch(watches: Watches, scope: Scope) {
    let mut attempt = 0;
    loop {
        let (refused, was_listed) = watch_until_refused(&watches, &scope).await;
        if was_listed {
            attempt = 0;
        }
        watches.refused(&scope, refused);
        tokio::time::sleep(REFUSED_RETRY.delay_max(attempt)).await;
        attempt = attempt.saturating_add(1);
    }
}

/// Watches until the API server rejects it. Also returns whether a list was completed.
async fn watch_until_refused(watches: &Watches, scope: &Scope) -> (WatchRefusal, bool) {
    let dot = if scope.group.is_empty() { "" } else { "/" };
    let resource = ApiResource {
        api_version: format!("{}{dot}{}", scope.group, scope.version),
        group: scope.group.clone(),
        version: scope.version.clone(),
        kind: scope.kind.clone(),
        plural: scope.plural.clone(),
    };
    let client = watches.0.api.client();
    let api: Api<answer::LiveObject> = match &scope.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let config = watcher::Config::default().page_size(LIST_PAGE_OBJECTS).timeout(WATCH_OPEN_S);
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listed = BTreeSet::new();
    let mut scaled = BTreeMap::new();
    let mut listed_pods = ListedPods::default();
    let mut was_listed = false;
    let mut failures = 0;
    loop {
        match events.next().await {
            Some(Ok(watcher::Event::Init)) => {
                listed.clear();
                scaled.clear();
                listed_pods = ListedPods::default();
                continue;
            }
            Some(Ok(watcher::Event::InitApply(object))) => {
                if let Some(key) = tell(watches, scope, &object) {
                    listed.insert(key);
                }
                scaled.extend(scope.scaled_by(&object).map(|target| (scope.key(&object), target)));
                listed_pods.add(scope, &object);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                watches.listed(scope, &listed);
                watches.list_autoscalers(scope, std::mem::take(&mut scaled));
                watches.list_pods(scope, std::mem::take(&mut listed_pods));
                was_listed = true;
                listed.clear();
            }
            Some(Ok(watcher::Event::Apply(object))) => {
                tell(watches, scope, &object);
                let target = scope.scaled_by(&object);
                watches.note_autoscaler(scope, scope.key(&object), target.as_ref());
                watches.note_pod(scope, &object, false);
            }
            Some(Ok(watcher::Event::Delete(object))) => {
                let key = scope.key(&object);
                watches.note_autoscaler(scope, key.clone(), None);
                watches.note_pod(scope, &object, true);
                if let Some((_, inbox)) = watches.route(scope, &key) {
                    let uid = object.metadata.uid.unwrap_or_default();
                    inbox.put(key, absent(scope, Live::Gone { uid }));
                }
            }
            Some(Err(error)) => {
                if let Some(refused) = refusal(&error) {
                    return (refused, was_listed);
                }
                failures += 1;
                if failures > FAILURES_QUIET_MAX {
                    tracing::warn!(
                        kind = scope.kind,
                        namespace = scope.namespace,
                        error = %error_chain(&error),
                        "A watch failed; it is opened again"
                    );
                }
                continue;
            }
            // A watcher has no end.
            None => std::future::pending().await,
        }
        failures = 0;
    }
}

/// Returns the reason if an error ends a watch: it is not permitted, or events may be lost, so that only
/// a new list shows the state.
fn refusal(error: &watcher::Error) -> Option<WatchRefusal> {
    let code = match error {
        watcher::Error::WatchError(status) => status.code,
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => {
            if matches!(error, kube::Error::SerdeError(_) | kube::Error::FromUtf8(_)) {
                return Some(WatchRefusal::Unreadable);
            }
            let kube::Error::Api(status) = error else { return None };
            status.code
        }
        watcher::Error::NoResourceVersion => return Some(WatchRefusal::Unreadable),
    };
    match code {
        403 => Some(WatchRefusal::Forbidden),
        404 => Some(WatchRefusal::NotServed),
        _ => None,
    }
}

/// Passes an object's observation to its inbox. Returns its key if an inbox follows it.
fn tell(watches: &Watches, scope: &Scope, object: &answer::LiveObject) -> Option<ObjectKey> {
    let key = scope.key(object);
    let (empty, inbox) = watches.route(scope, &key)?;
    inbox.put(key.clone(), observe(&key, &object.value, &empty));
    Some(key)
}

#[cfg(test)]
mod tests;
