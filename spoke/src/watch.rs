//! One watch for each kind and namespace in use, and where its events go. Keeps digests, never bodies.
//!
//! Events about objects of nobody are dropped here. What an event means is decided in `drift`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use attest_common::health::{self, Verdict};
use attest_common::ids::Digest;
use attest_common::manifest::ObjectKey;
use attest_common::projection;
use attest_common::report::error_chain;
use futures::StreamExt;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::cluster::ApiServer;
use crate::drift::Live;
use crate::metrics::Metrics;

/// Failures in a row after which a watch is worth a warning: a new binding or definition needs a moment.
pub const FAILURES_QUIET_MAX: u32 = 3;
/// Objects asked for at a time when a watch begins.
pub const LIST_PAGE_OBJECTS: u32 = 100;

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Scope {
    pub group: String,
    pub version: String,
    pub kind: String,
    pub plural: String,
    /// Absent for cluster-scoped kinds.
    pub namespace: Option<String>,
}

/// What is now known about one object.
#[derive(Clone, Debug)]
pub struct Observation {
    pub live: Live,
    pub verdict: Verdict,
    /// When the event arrived, to measure how long a heal took.
    pub at: Instant,
}

/// The newest observation of each object of one destination. Bounded by its inventory.
#[derive(Debug, Default)]
pub struct Inbox {
    news: Mutex<BTreeMap<ObjectKey, Observation>>,
    arrived: Notify,
}

impl Inbox {
    /// Everything new since the last call.
    pub fn take(&self) -> BTreeMap<ObjectKey, Observation> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Until something is new.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    fn put(&self, key: ObjectKey, observation: Observation) {
        self.news.lock().unwrap_or_else(PoisonError::into_inner).insert(key, observation);
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
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Whom to tell about an object.
    routes: BTreeMap<ObjectKey, Arc<Inbox>>,
    watches: BTreeMap<Scope, AbortHandle>,
}

impl Watches {
    /// No watches yet.
    pub fn new(api: ApiServer, metrics: Metrics) -> Self {
        Self(Arc::new(Inner { api, metrics, state: Mutex::default() }))
    }

    /// Makes `inbox` hear of exactly these objects, and opens and closes watches accordingly.
    /// With `relist`, watches that are open already begin anew, so that objects nobody asked about
    /// before are heard of too.
    pub fn follow(&self, inbox: &Arc<Inbox>, objects: &BTreeMap<ObjectKey, Scope>, relist: bool) {
        let mut state = self.state();
        state.routes.retain(|key, to| !Arc::ptr_eq(to, inbox) || objects.contains_key(key));
        for key in objects.keys() {
            state.routes.insert(key.clone(), Arc::clone(inbox));
        }
        for scope in objects.values().collect::<BTreeSet<_>>() {
            let open = state.watches.get(scope);
            if relist && let Some(task) = open {
                task.abort();
            }
            if relist || open.is_none() {
                let task = tokio::spawn(watch(self.clone(), scope.clone()));
                state.watches.insert(scope.clone(), task.abort_handle());
            }
        }
        let State { routes, watches } = &mut *state;
        watches.retain(|scope, task| {
            let used = routes.keys().any(|key| scope.covers(key));
            if !used {
                task.abort();
            }
            used
        });
        self.0.metrics.watches.set(i64::try_from(watches.len()).unwrap_or(i64::MAX));
    }

    fn route(&self, key: &ObjectKey) -> Option<Arc<Inbox>> {
        self.state().routes.get(key).cloned()
    }

    /// Tells the owners of objects in this scope that a list did not hold them.
    fn not_listed(&self, scope: &Scope, listed: &BTreeSet<ObjectKey>) {
        let missing: Vec<(ObjectKey, Arc<Inbox>)> = {
            let state = self.state();
            let mine = state.routes.iter().filter(|(key, _)| scope.covers(key));
            let missing = mine.filter(|(key, _)| !listed.contains(key));
            missing.map(|(key, inbox)| (key.clone(), Arc::clone(inbox))).collect()
        };
        for (key, inbox) in missing {
            let gone = absent(scope, Live::NotListed);
            inbox.put(key, gone);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Scope {
    fn covers(&self, key: &ObjectKey) -> bool {
        key.group == self.group && key.kind == self.kind && key.namespace == self.namespace
    }

    fn key(&self, object: &DynamicObject) -> ObjectKey {
        ObjectKey {
            group: self.group.clone(),
            kind: self.kind.clone(),
            namespace: object.metadata.namespace.clone(),
            name: object.metadata.name.clone().unwrap_or_default(),
        }
    }
}

fn absent(scope: &Scope, live: Live) -> Observation {
    Observation { live, verdict: Verdict::absent(&scope.group, &scope.kind), at: Instant::now() }
}

/// The projection of an object in which we own no field: one that says nothing but its name.
fn nothing_ours() -> Digest {
    Digest::of(b"")
}

/// What a live object shows, whether it comes from a watch or from the answer to an apply.
pub fn observe(group: &str, kind: &str, live: &Value) -> Observation {
    let text = |pointer: &str| live.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    Observation {
        live: Live::Present {
            uid: text("/metadata/uid").to_owned(),
            projected: projection::digest(live).unwrap_or_else(nothing_ours),
            version: text("/metadata/resourceVersion").parse().unwrap_or(0),
        },
        verdict: health::verdict(group, kind, live),
        at: Instant::now(),
    }
}

async fn watch(watches: Watches, scope: Scope) {
    let dot = if scope.group.is_empty() { "" } else { "/" };
    let resource = ApiResource {
        api_version: format!("{}{dot}{}", scope.group, scope.version),
        group: scope.group.clone(),
        version: scope.version.clone(),
        kind: scope.kind.clone(),
        plural: scope.plural.clone(),
    };
    let client = watches.0.api.client();
    let api: Api<DynamicObject> = match &scope.namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    };
    let config = watcher::Config::default().page_size(LIST_PAGE_OBJECTS);
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut listed = BTreeSet::new();
    let mut failures = 0;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                if let Some(key) = tell(&watches, &scope, &object) {
                    listed.insert(key);
                }
            }
            Ok(watcher::Event::InitDone) => {
                watches.not_listed(&scope, &listed);
                listed.clear();
            }
            Ok(watcher::Event::Apply(object)) => {
                tell(&watches, &scope, &object);
            }
            Ok(watcher::Event::Delete(object)) => {
                let key = scope.key(&object);
                if let Some(inbox) = watches.route(&key) {
                    let uid = object.metadata.uid.unwrap_or_default();
                    inbox.put(key, absent(&scope, Live::Gone { uid }));
                }
            }
            Err(error) => {
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
        }
        failures = 0;
    }
}

/// Passes an object's digest to its owner. Returns its key when it has one.
fn tell(watches: &Watches, scope: &Scope, object: &DynamicObject) -> Option<ObjectKey> {
    let key = scope.key(object);
    let inbox = watches.route(&key)?;
    let live = serde_json::to_value(object).ok()?;
    inbox.put(key.clone(), observe(&scope.group, &scope.kind, &live));
    Some(key)
}
