//! The cluster's own trust policy, `AttestTrustPolicy/local`, as it stands now. Watched, never written.
//!
//! A policy that is missing, unreadable or for another cluster means: admit nothing, change nothing.
//! What is running stays as it is.

use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::ids::ClusterId;
use attest_common::basics::text::error_chain;
use attest_common::trust::policy::{Policy, PolicyError, Spec};
use futures::StreamExt;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::watch;

use crate::cluster::client::ApiServer;

/// Name of the one policy that counts.
const NAME: &str = "local";
/// How long to wait before asking an API server again that did not answer at start.
const RETRY: Duration = Duration::from_secs(1);

/// After how many seconds the watch is begun anew. The client waits a little longer for its end, so
/// that a connection that died is noticed within a minute.
const WATCH_LASTS_S: u32 = 45;

/// What is known about the policy.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    loaded: Option<Arc<Loaded>>,
    /// Why nothing is loaded, or why what is loaded may not be used.
    problem: Option<Arc<TrustError>>,
}

/// A policy that was read.
#[derive(Debug)]
pub struct Loaded {
    pub policy: Policy,
    /// The policy as JSON, for the hub to know early what will be refused.
    pub spec_json: Vec<u8>,
    /// `status.clusterId`: which spoke the operator installed this for.
    cluster_id: Option<String>,
}

impl Trust {
    /// The policy, bound to this spoke or not: enough to know which hub to dial.
    pub fn loaded(&self) -> Result<&Arc<Loaded>, TrustError> {
        match (&self.loaded, &self.problem) {
            (Some(loaded), None) => Ok(loaded),
            (_, Some(problem)) => Err((**problem).clone()),
            (None, None) => Err(TrustError::Missing),
        }
    }

    /// The policy, when the operator bound it to this spoke.
    pub fn bound(&self, cluster: &ClusterId) -> Result<&Policy, TrustError> {
        let loaded = self.loaded()?;
        match &loaded.cluster_id {
            Some(id) if id == cluster.as_str() => Ok(&loaded.policy),
            other => Err(TrustError::OtherSpoke { found: other.clone().unwrap_or_default() }),
        }
    }

    /// Whether it says what `other` says: then nothing that rests on it is to be looked at again.
    fn is_same(&self, other: &Self) -> bool {
        let said = |trust: &Self| {
            let loaded = trust.loaded.as_ref();
            let loaded = loaded.map(|l| (l.spec_json.clone(), l.cluster_id.clone()));
            (loaded, trust.problem.as_ref().map(|p| error_chain(&**p)))
        };
        said(self) == said(other)
    }

    pub(crate) fn of(object: &Value, kube_system_uid: &str) -> Self {
        match read(object, kube_system_uid) {
            Ok(loaded) => Self { loaded: Some(Arc::new(loaded)), problem: None },
            Err(problem) => Self { loaded: None, problem: Some(Arc::new(problem)) },
        }
    }
}

fn read(object: &Value, kube_system_uid: &str) -> Result<Loaded, TrustError> {
    let spec = object.get("spec").ok_or(TrustError::Missing)?;
    let read: Spec = serde_json::from_value(spec.clone())
        .map_err(|error| TrustError::Unreadable(error.to_string()))?;
    let policy = read.load().map_err(TrustError::Policy)?;
    if policy.kube_system_uid != kube_system_uid {
        return Err(TrustError::OtherCluster { found: policy.kube_system_uid });
    }
    let cluster_id = object.pointer("/status/clusterId").and_then(Value::as_str);
    Ok(Loaded {
        policy,
        spec_json: spec.to_string().into_bytes(),
        cluster_id: cluster_id.map(str::to_owned),
    })
}

/// UID of the namespace `kube-system`: the name of this cluster that nobody can give another.
/// Asks until the API server answers.
pub async fn kube_system_uid(api: &ApiServer) -> String {
    loop {
        match api.get("/api/v1/namespaces/kube-system").await {
            Ok(namespace) => {
                if let Some(uid) = namespace.pointer("/metadata/uid").and_then(Value::as_str) {
                    return uid.to_owned();
                }
            }
            Err(error) => tracing::warn!(
                reason = error.reason(),
                error = %error_chain(&error),
                "Cannot read namespace kube-system; trying again"
            ),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Follows the policy for as long as the process lives.
pub async fn follow(api: ApiServer, kube_system_uid: String, told: watch::Sender<Trust>) {
    let resource = ApiResource {
        group: "attest.continuu.ms".to_owned(),
        version: "v1".to_owned(),
        api_version: "attest.continuu.ms/v1".to_owned(),
        kind: "AttestTrustPolicy".to_owned(),
        plural: "attesttrustpolicies".to_owned(),
    };
    let policies: Api<DynamicObject> = Api::all_with(api.client(), &resource);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let only = only.timeout(WATCH_LASTS_S);
    let mut events = watcher(policies, only).default_backoff().boxed();
    let mut found = false;
    while let Some(event) = events.next().await {
        let trust = match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                found = true;
                Trust::of(&serde_json::to_value(&object).unwrap_or_default(), &kube_system_uid)
            }
            Ok(watcher::Event::Delete(_)) => {
                found = false;
                Trust { loaded: None, problem: Some(Arc::new(TrustError::Missing)) }
            }
            Ok(watcher::Event::Init) => {
                found = false;
                continue;
            }
            Ok(watcher::Event::InitDone) if !found => {
                Trust { loaded: None, problem: Some(Arc::new(TrustError::Missing)) }
            }
            Ok(watcher::Event::InitDone) => continue,
            Err(error) => {
                // What was read stays in force: without an API server nothing can be applied anyway.
                tracing::warn!(error = %error_chain(&error), "Cannot watch the trust policy");
                continue;
            }
        };
        // Listed again after an API server was away, or changed in nothing that is read here.
        if told.borrow().is_same(&trust) {
            continue;
        }
        match trust.loaded() {
            Ok(loaded) => tracing::info!(
                cluster = %loaded.policy.cluster_name,
                environment = %loaded.policy.environment,
                bound = loaded.cluster_id.is_some(),
                "Trust policy loaded"
            ),
            Err(error) => tracing::warn!(
                reason = error.reason(),
                error = %error_chain(&error),
                "No usable trust policy; nothing is admitted and nothing is changed"
            ),
        }
        told.send_replace(trust);
    }
}

/// Why there is no policy to act on.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    #[error("AttestTrustPolicy/{NAME} does not exist; `attest trust install` makes it")]
    Missing,
    #[error("AttestTrustPolicy/{NAME} cannot be read: {0}")]
    Unreadable(String),
    #[error("AttestTrustPolicy/{NAME} is not usable")]
    Policy(#[source] PolicyError),
    #[error(
        "AttestTrustPolicy/{NAME} is for the cluster with kube-system UID {found}, not this one"
    )]
    OtherCluster { found: String },
    #[error(
        "AttestTrustPolicy/{NAME} has status.clusterId `{found}`, which is not this spoke; \
         `attest trust install --cluster-id` sets it"
    )]
    OtherSpoke { found: String },
}

impl TrustError {
    /// A stable word for conditions, metrics, logs and the CLI. One for all: fail closed.
    pub fn reason(&self) -> &'static str {
        "NoTrustPolicy"
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use attest_common::basics::keys::PrivateKey;
    use serde_json::json;

    use super::*;
    use crate::cluster::fake::FakeApi;

    pub(crate) fn object() -> Value {
        let hub = PrivateKey::from_seed(&[1; 32]).unwrap().public().to_pem();
        json!({
            "spec": {
                "clusterName": "staging", "kubeSystemUid": "uid-1", "environment": "staging",
                "hub": {"keys": [hub], "caPins": [format!("sha256:{}", "0".repeat(64))]},
                "keys": [], "applications": [],
            },
            "status": {"clusterId": "c-0123456789abcdef"},
        })
    }

    #[test]
    fn a_policy_counts_for_its_own_cluster_and_spoke_only() {
        let id: ClusterId = "c-0123456789abcdef".parse().unwrap();
        let other: ClusterId = "c-fedcba9876543210".parse().unwrap();

        assert!(Trust::of(&object(), "uid-1").bound(&id).is_ok());
        assert!(matches!(
            Trust::of(&object(), "uid-1").bound(&other),
            Err(TrustError::OtherSpoke { .. })
        ));
        assert!(matches!(
            Trust::of(&object(), "uid-2").loaded(),
            Err(TrustError::OtherCluster { .. })
        ));
    }

    #[test]
    fn a_policy_that_says_the_same_again_is_told_to_nobody() {
        let with = |pointer: &str, value: &str| {
            let mut object = object();
            *object.pointer_mut(pointer).unwrap() = value.into();
            Trust::of(&object, "uid-1")
        };
        let mut noted = object();
        noted["metadata"] = json!({"resourceVersion": "8", "annotations": {"team": "shop"}});
        let (noted, known) = (Trust::of(&noted, "uid-1"), Trust::of(&object(), "uid-1"));
        let missing = Trust { loaded: None, problem: Some(Arc::new(TrustError::Missing)) };

        assert!(noted.is_same(&known) && missing.is_same(&missing.clone()));
        assert!(!with("/spec/environment", "other").is_same(&known));
        assert!(!with("/status/clusterId", "c-fedcba9876543210").is_same(&known));
        assert!(!with("/spec/kubeSystemUid", "uid-2").is_same(&known));
        assert!(!missing.is_same(&known));
        assert!(!missing.is_same(&Trust::default()), "that it is missing is news once");
    }

    #[test]
    fn a_policy_with_an_unknown_field_is_no_policy() {
        let mut object = object();
        object["spec"]["roots"] = json!([]);

        let error = Trust::of(&object, "uid-1").loaded().unwrap_err();

        assert_eq!(error.reason(), "NoTrustPolicy");
        assert!(error.to_string().contains("roots"), "{error}");
    }

    #[tokio::test]
    async fn the_policy_is_watched_for_less_than_a_minute_at_a_time() {
        let fake = FakeApi::start().await;
        let (told, _trust) = watch::channel(Trust::default());
        tokio::spawn(follow(fake.open().await, "uid-1".to_owned(), told));

        while !fake.asked().iter().any(|asked| asked.contains("watch=true")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }

        let asked = fake.asked();
        let watched = asked.iter().filter(|asked| asked.contains("watch=true"));
        assert!({ watched }.all(|asked| asked.contains("timeoutSeconds=45")), "{asked:?}");
    }

    #[test]
    fn before_anything_is_read_there_is_no_policy() {
        assert!(matches!(Trust::default().loaded(), Err(TrustError::Missing)));
    }
}
