//! The cluster's own trust policy, `AttestTrustPolicy/local`. Watched, never written.
//!
//! If the policy is missing, unreadable or for another cluster, nothing is admitted and nothing is changed.
//! Applications keep running as they are.

use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::ids::ClusterId;
use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use attest_common::trust::policy::{Policy, PolicyError, Spec};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;
use tokio::sync::watch;

use crate::cluster::client::{ApiServer, path_of};

/// Name of the policy that is used.
const NAME: &str = "local";
/// Delay before an API server that did not answer at start is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Time after which the watch is restarted, in seconds. The client waits slightly longer for its end, so
/// that a dead connection is detected within a minute.
const WATCH_LASTS_S: u32 = 45;

/// Current knowledge of the policy.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    loaded: Option<Arc<Loaded>>,
    /// Reason that no policy is loaded, or that the loaded one may not be used.
    problem: Option<Arc<TrustError>>,
}

/// A policy that was read.
#[derive(Debug)]
pub struct Loaded {
    pub policy: Policy,
    /// The policy as JSON, so that the hub can predict refusals.
    pub spec_json: Vec<u8>,
    /// `status.clusterId`: the spoke for which the operator installed this.
    cluster_id: Option<String>,
}

impl Trust {
    /// Returns the policy, bound to this spoke or not; it names the hub to connect to.
    pub fn loaded(&self) -> Result<&Arc<Loaded>, TrustError> {
        match (&self.loaded, &self.problem) {
            (Some(loaded), None) => Ok(loaded),
            (_, Some(problem)) => Err((**problem).clone()),
            (None, None) => Err(TrustError::Missing),
        }
    }

    /// Returns the policy if the operator has bound it to this spoke.
    pub fn bound(&self, cluster: &ClusterId) -> Result<&Policy, TrustError> {
        let loaded = self.loaded()?;
        match &loaded.cluster_id {
            Some(id) if id == cluster.as_str() => Ok(&loaded.policy),
            other => Err(TrustError::OtherSpoke { found: other.clone().unwrap_or_default() }),
        }
    }

    /// Returns whether it has the same content as `other`, so that nothing needs to be judged again.
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

/// Returns the UID of the namespace `kube-system`, which identifies the cluster. Retries until the API
/// server answers.
pub async fn kube_system_uid(api: &ApiServer) -> String {
    loop {
        match api.read::<Namespace>(&path_of::<Namespace>(None, "kube-system")).await {
            Ok(namespace) => {
                if let Some(uid) = namespace.metadata.uid {
                    return uid;
                }
            }
            Err(error) => tracing::warn!(
                reason = error.reason().as_str(),
                error = %error_chain(&error),
                "Failed to read namespace kube-system; retrying"
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
                // The loaded policy stays in force: without an API server nothing can be applied.
                tracing::warn!(error = %error_chain(&error), "Failed to watch the trust policy");
                continue;
            }
        };
        // Listed again after an outage of the API server, or changed in a field that is not read here.
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
                reason = error.reason().as_str(),
                error = %error_chain(&error),
                "No usable trust policy; nothing is admitted and nothing is changed"
            ),
        }
        told.send_replace(trust);
    }
}

/// Reason that no policy can be used.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    #[error("AttestTrustPolicy/{NAME} does not exist; create it with `attest trust install`")]
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
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        Reason::NoTrustPolicy
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

        assert_eq!(error.reason().as_str(), "NoTrustPolicy");
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
