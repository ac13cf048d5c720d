//! The rights of an installed spoke on a real API server: every allowed request succeeds with the
//! spoke's own token, and every other is refused.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper of a test fails the test"
)]

use std::collections::BTreeMap;
use std::time::Duration;

use attest_common::trust::policy::Spec;
use attest_install::apply::{apply_manifests, dry_run, prune, write_cluster_id};
use attest_install::{FIELD_MANAGER, Installation, SPOKE_NAME, SPOKE_NAMESPACE, SpokePlacement};
use attest_tests::cluster::{self, Cluster};
use attest_tests::wait::until;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, Config};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const ACCOUNT: &str = "a-web-shop";

#[tokio::test]
async fn the_spoke_may_do_what_it_needs_and_nothing_else() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start("install").await? else { return Ok(()) };
    let admin = cluster.client().await?;
    let manifests = in_cluster(&policy(&json!([entry(&json!({}))])));
    dry_run(&admin, &manifests).await?;
    apply_manifests(&admin, &manifests).await?;
    let token = token(&admin).await?;
    let spoke = Caller { client: client(&cluster, &token, None).await? };
    let account = format!("system:serviceaccount:attest-applications:{ACCOUNT}");
    let as_account = Caller { client: client(&cluster, &token, Some(&account)).await? };
    admission_works(&spoke).await?;

    // Allowed: the requests of a directive.
    spoke.may("POST", "/api/v1/namespaces", &namespace("shop")).await?;
    let accounts = "/api/v1/namespaces/attest-applications/serviceaccounts";
    let body = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}});
    spoke.may("POST", accounts, &body).await?;
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings";
    let to_account = json!([subject("attest-applications", ACCOUNT)]);
    let to_spoke = json!([subject(SPOKE_NAMESPACE, SPOKE_NAME)]);
    let workloads = binding("attest-web", "attest-workloads", &to_account);
    spoke.may("POST", bindings, &workloads).await?;
    let read = binding("attest-read", "attest-workloads-read", &to_spoke);
    spoke.may("POST", bindings, &read).await?;
    let deployments = "/apis/apps/v1/namespaces/shop/deployments";
    let apply_web = format!("{deployments}/web?fieldManager=attest-spoke&force=true");
    until("the new bindings", SOON, || async {
        Ok((as_account.request("PATCH", &apply_web, &deployment()).await? < 300).then_some(()))
    })
    .await?;
    spoke.may("GET", deployments, &Value::Null).await?;
    let own_token =
        format!("/api/v1/namespaces/{SPOKE_NAMESPACE}/serviceaccounts/{SPOKE_NAME}/token");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
        "spec": {"audiences": [], "expirationSeconds": 3600}
    });
    spoke.may("POST", &own_token, &request).await?;
    spoke.may("GET", "/api/v1/namespaces/kube-system", &Value::Null).await?;
    spoke.may("GET", "/api/v1/namespaces/attest-spoke/secrets", &Value::Null).await?;
    let policies = "/apis/attest.continuu.ms/v1/attesttrustpolicies";
    spoke.may("GET", policies, &Value::Null).await?;
    as_account.may("DELETE", &format!("{deployments}/web?dryRun=All"), &Value::Null).await?;

    // Refused: everything else.
    spoke.may_not("PATCH", &apply_web, &deployment()).await?;
    spoke.may_not("GET", "/apis/apps/v1/namespaces/kube-system/deployments", &Value::Null).await?;
    spoke.may_not("GET", "/api/v1/namespaces/shop/secrets", &Value::Null).await?;
    spoke.may_not("GET", "/api/v1/secrets", &Value::Null).await?;
    let to_itself = binding("more", "attest-workloads", &to_spoke);
    spoke.may_not("POST", bindings, &to_itself).await?;
    let to_stranger =
        binding("more", "attest-workloads-read", &json!([subject("default", "default")]));
    spoke.may_not("POST", bindings, &to_stranger).await?;
    let both = json!([subject("attest-applications", ACCOUNT), subject("default", "default")]);
    spoke.may_not("POST", bindings, &binding("more", "attest-workloads", &both)).await?;
    for closed in ["kube-system", "attest-spoke", "attest-applications"] {
        let there = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{closed}/rolebindings");
        spoke.may_not("POST", &there, &binding("more", "attest-workloads", &to_account)).await?;
    }
    spoke.may_not("POST", bindings, &binding("more", "cluster-admin", &to_account)).await?;
    spoke.may_not("POST", bindings, &binding("more", "edit", &to_account)).await?;
    let other_token = format!("{accounts}/{ACCOUNT}/token");
    spoke.may_not("POST", &other_token, &request).await?;
    for stranger in ["system:serviceaccount:kube-system:default", "ada", "system:admin"] {
        let caller = Caller { client: client(&cluster, &token, Some(stranger)).await? };
        caller.may_not("GET", deployments, &Value::Null).await?;
    }
    spoke.may_not("POST", "/api/v1/namespaces/default/serviceaccounts", &body).await?;
    spoke.may_not("POST", "/api/v1/namespaces", &namespace("kube-public-2")).await?;
    spoke.may_not("POST", "/api/v1/namespaces", &namespace("attest-applications-x")).await?;
    the_spoke_cannot_weaken_the_pod_security_of_a_namespace(&admin, &spoke).await?;
    let labelled = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "kube-system", "labels": {"a": "b"}}
    });
    let patch = "/api/v1/namespaces/kube-system?fieldManager=attest-spoke";
    spoke.may_not("PATCH", patch, &labelled).await?;
    let status = json!({
        "apiVersion": "attest.continuu.ms/v1", "kind": "AttestTrustPolicy",
        "metadata": {"name": "local"}, "status": {"clusterId": "c-0123456789abcdef"}
    });
    let patch = format!("{policies}/local/status?fieldManager=attest-spoke");
    spoke.may_not("PATCH", &patch, &status).await?;
    spoke.may_not("DELETE", &format!("{policies}/local"), &Value::Null).await?;
    as_account.may_not("GET", "/api/v1/namespaces/shop/secrets", &Value::Null).await?;
    as_account
        .may_not("GET", "/apis/apps/v1/namespaces/default/deployments/x", &Value::Null)
        .await?;
    as_account.may_not("POST", bindings, &workloads).await?;
    only_own_bindings_can_be_deleted(&admin, &spoke).await?;
    Ok(())
}

/// For the cleanup after a refused plan the spoke may delete its own bindings, and nothing of other owners.
async fn only_own_bindings_can_be_deleted(admin: &Client, spoke: &Caller) -> anyhow::Result<()> {
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/shop/rolebindings";
    let operator = Caller { client: admin.clone() };
    let theirs = binding("theirs", "attest-workloads", &json!([subject("shop", "default")]));
    operator.may("POST", bindings, &theirs).await?;

    spoke.may_not("DELETE", &format!("{bindings}/theirs"), &Value::Null).await?;
    let closed = format!(
        "/apis/rbac.authorization.k8s.io/v1/namespaces/{SPOKE_NAMESPACE}/rolebindings/{SPOKE_NAME}"
    );
    spoke.may_not("DELETE", &closed, &Value::Null).await?;
    spoke.may_not("DELETE", bindings, &Value::Null).await?;
    spoke.may_not("DELETE", "/api/v1/namespaces/shop", &Value::Null).await?;
    let stranger = format!("/api/v1/namespaces/{SPOKE_NAMESPACE}/serviceaccounts/default");
    spoke.may_not("DELETE", &stranger, &Value::Null).await?;

    spoke.may("DELETE", &format!("{bindings}/attest-web"), &Value::Null).await?;
    spoke.may("DELETE", &format!("{bindings}/attest-read"), &Value::Null).await?;
    let account = format!("/api/v1/namespaces/attest-applications/serviceaccounts/{ACCOUNT}");
    spoke.may("DELETE", &account, &Value::Null).await
}

#[tokio::test]
async fn a_second_installation_changes_nothing() -> anyhow::Result<()> {
    let Some(site) = cluster::shared("one").await? else { return Ok(()) };
    let admin = site.cluster.client().await?;
    let policy = policy(&json!([entry(&json!({"entry": "again"}))]));
    let manifests =
        Installation { policy: &policy, placement: SpokePlacement::External }.manifests();
    apply_manifests(&admin, &manifests).await?;
    let before = versions(&admin, &manifests).await?;

    apply_manifests(&admin, &manifests).await?;

    assert_eq!(versions(&admin, &manifests).await?, before);
    assert!(before.values().all(|version| !version.is_empty()));
    Ok(())
}

#[tokio::test]
async fn kinds_are_writable_as_long_as_the_policy_names_them() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start("kinds").await? else { return Ok(()) };
    let admin = cluster.client().await?;
    let more = entry(&json!({
        "kinds": {
            "extra": [{"resource": "secrets"}],
            "clusterScoped": [{"group": "scheduling.k8s.io", "resource": "priorityclasses"}]
        }
    }));
    let with_kinds = in_cluster(&policy(&json!([more])));
    apply_manifests(&admin, &with_kinds).await?;
    assert!(prune(&admin, &with_kinds).await?.is_empty());
    let token = token(&admin).await?;
    let account = format!("system:serviceaccount:attest-applications:{ACCOUNT}");
    let as_account = Caller { client: client(&cluster, &token, Some(&account)).await? };
    let secret = |namespace: &str| {
        let path = format!(
            "/api/v1/namespaces/{namespace}/secrets/created?fieldManager=attest-spoke&dryRun=All"
        );
        let body = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "created"}});
        (path, body)
    };
    let (path, body) = secret("default");
    until("the bindings", SOON, || async {
        Ok((as_account.request("PATCH", &path, &body).await? < 300).then_some(()))
    })
    .await?;
    let (closed, body) = secret("kube-system");
    until("the guard", SOON, || async {
        Ok((as_account.request("PATCH", &closed, &body).await? == 422
            || as_account.request("PATCH", &closed, &body).await? == 403)
            .then_some(()))
    })
    .await?;
    as_account
        .may_not("GET", "/api/v1/namespaces/kube-system/secrets/created", &Value::Null)
        .await?;
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
        "metadata": {"name": "web"}, "value": 1
    });
    let classes = "/apis/scheduling.k8s.io/v1/priorityclasses/web?fieldManager=attest-spoke";
    as_account.may("PATCH", classes, &class).await?;
    let spoke = Caller { client: client(&cluster, &token, None).await? };
    spoke.may("GET", "/apis/scheduling.k8s.io/v1/priorityclasses", &Value::Null).await?;

    let without = in_cluster(&policy(&json!([entry(&json!({}))])));
    apply_manifests(&admin, &without).await?;
    let removed: Vec<String> =
        prune(&admin, &without).await?.iter().map(ToString::to_string).collect();

    assert_eq!(removed.len(), 8, "{removed:?}");
    until("the rights to be removed", SOON, || async {
        Ok((as_account.request("PATCH", &path, &secret("default").1).await? == 403).then_some(()))
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn a_policy_with_an_unknown_field_is_refused_by_the_api_server() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start("definition").await? else { return Ok(()) };
    let admin = cluster.client().await?;
    let manifests = in_cluster(&policy(&json!([entry(&json!({}))])));
    apply_manifests(&admin, &manifests).await?;
    write_cluster_id(&admin, "c-0123456789abcdef").await?;
    let operator = Caller { client: admin.clone() };
    let stored = manifests.iter().find(|m| m["kind"] == "AttestTrustPolicy").unwrap();

    operator.may("PATCH", &policy_path("local"), stored).await?;
    for (pointer, value) in [
        ("/spec/environment", json!("Not A Label")),
        ("/spec/applications/0/minimumMode", json!("Audit")),
        ("/spec/keys", json!("none")),
    ] {
        let mut bad = stored.clone();
        *bad.pointer_mut(pointer).unwrap() = value;
        assert!(operator.request("PATCH", &policy_path("local"), &bad).await? >= 400, "{pointer}");
    }
    let mut misspelt = stored.clone();
    misspelt["spec"]["enviroment"] = json!("staging");
    assert!(operator.request("PATCH", &policy_path("local"), &misspelt).await? >= 400);
    let mut second = stored.clone();
    second["metadata"]["name"] = json!("other");
    assert!(operator.request("PATCH", &policy_path("other"), &second).await? >= 400);
    assert!(write_cluster_id(&admin, "staging").await.is_err());
    Ok(())
}

fn policy_path(name: &str) -> String {
    format!(
        "/apis/attest.continuu.ms/v1/attesttrustpolicies/{name}?fieldManager=x&force=true&dryRun=All"
    )
}

/// A client with one user's token.
struct Caller {
    client: Client,
}

impl Caller {
    /// Sends a request and returns the HTTP status of the answer.
    async fn request(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<u16> {
        let content = match method {
            "PATCH" => "application/apply-patch+yaml",
            _ => "application/json",
        };
        let bytes = if body.is_null() { Vec::new() } else { serde_json::to_vec(body)? };
        let request = http::Request::builder().method(method).uri(path);
        let request = request.header("content-type", content).body(bytes)?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(200),
            Err(kube::Error::Api(status)) => Ok(status.code),
            Err(error) => Err(error.into()),
        }
    }

    async fn may(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        let status = self.request(method, path, body).await?;
        anyhow::ensure!(status < 300, "{method} {path} returned {status}: {body}");
        Ok(())
    }

    async fn may_not(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<()> {
        let status = self.request(method, path, body).await?;
        // A ValidatingAdmissionPolicy answers 422, RBAC 403.
        anyhow::ensure!(matches!(status, 403 | 422), "{method} {path} returned {status}: {body}");
        Ok(())
    }
}

/// An operator's labels of a namespace bind a compromised spoke too.
async fn the_spoke_cannot_weaken_the_pod_security_of_a_namespace(
    admin: &Client,
    spoke: &Caller,
) -> anyhow::Result<()> {
    let all: Api<Namespace> = Api::all(admin.clone());
    let bounded = serde_json::from_value(with_pod_security("bounded", "restricted"))?;
    all.create(&PostParams::default(), &bounded).await?;

    spoke.may_not("POST", "/api/v1/namespaces", &with_pod_security("loose", "privileged")).await?;
    let applied = "/api/v1/namespaces/bounded?fieldManager=attest-spoke&force=true";
    spoke.may_not("PATCH", applied, &with_pod_security("bounded", "privileged")).await?;
    let mut other = namespace("bounded");
    other["metadata"]["labels"] = json!({"team": "shop"});
    spoke.may("PATCH", applied, &other).await?;
    spoke.may("PATCH", applied, &with_pod_security("bounded", "restricted")).await?;
    // The label belongs to the administrator and now also to the spoke: the spoke may give up its
    // ownership, but not remove the label.
    spoke.may("PATCH", applied, &namespace("bounded")).await?;
    let kept = all.get("bounded").await?.metadata.labels.unwrap_or_default();
    assert_eq!(kept["pod-security.kubernetes.io/enforce"], "restricted");

    for (name, reserved) in [
        ("scheduler.alpha.kubernetes.io/node-selector", true),
        ("kubernetes.io/enforce-mountable-secrets", true),
        ("openshift.io/sa.scc.uid-range", true),
        ("field.cattle.io/projectId", true),
        ("x.k8s.io/a", true),
        ("app.kubernetes.io/part-of", false),
        ("notkubernetes.io/a", false),
        ("team", false),
    ] {
        for place in ["labels", "annotations"] {
            let mut patch = namespace("bounded");
            patch["metadata"][place] = json!({name: "x"});
            if reserved {
                spoke.may_not("PATCH", applied, &patch).await?;
            } else {
                spoke.may("PATCH", applied, &patch).await?;
            }
        }
    }
    Ok(())
}

fn with_pod_security(name: &str, enforced: &str) -> Value {
    let mut namespace = namespace(name);
    namespace["metadata"]["labels"] = json!({"pod-security.kubernetes.io/enforce": enforced});
    namespace
}

/// A policy takes effect a moment after it is stored.
async fn admission_works(spoke: &Caller) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces?dryRun=All";
    until("admission", SOON, || async {
        let status = spoke.request("POST", path, &namespace("kube-trial")).await?;
        Ok(matches!(status, 403 | 422).then_some(()))
    })
    .await?;
    let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings?dryRun=All";
    let stranger = json!([subject("default", "default")]);
    until("admission of bindings", SOON, || async {
        let body = binding("trial", "attest-workloads-read", &stranger);
        let status = spoke.request("POST", path, &body).await?;
        Ok(matches!(status, 403 | 422).then_some(()))
    })
    .await
}

async fn token(admin: &Client) -> anyhow::Result<String> {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), SPOKE_NAMESPACE);
    let request: TokenRequest = serde_json::from_value(json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
        "spec": {"audiences": [], "expirationSeconds": 3600}
    }))?;
    let answer =
        accounts.create_token_request(SPOKE_NAME, &PostParams::default(), &request).await?;
    Ok(answer.status.unwrap().token.unwrap())
}

async fn client(
    cluster: &Cluster,
    token: &str,
    impersonate: Option<&str>,
) -> anyhow::Result<Client> {
    let authority = data_encoding::BASE64.encode(cluster.authority_pem().as_bytes());
    let kubeconfig = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "spoke",
        "clusters": [{"name": "spoke", "cluster": {
            "server": cluster.server(), "certificate-authority-data": authority
        }}],
        "users": [{"name": "spoke", "user": {"token": token, "as": impersonate}}],
        "contexts": [{"name": "spoke", "context": {"cluster": "spoke", "user": "spoke"}}]
    }))?;
    let options = kube::config::KubeConfigOptions::default();
    Ok(Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &options).await?)?)
}

async fn versions(admin: &Client, manifests: &[Value]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut versions = BTreeMap::new();
    for manifest in manifests {
        let target = attest_install::apply::ObjectRef::from_manifest(manifest)?;
        let found = target.api(admin).get(&target.name).await?;
        let managers = found.metadata.managed_fields.unwrap_or_default();
        assert!(managers.iter().any(|m| m.manager.as_deref() == Some(FIELD_MANAGER)), "{target}");
        // A controller writes the status of objects with a generation, at any time.
        let generation = found.metadata.generation.map(|generation| generation.to_string());
        let version = generation.or(found.metadata.resource_version).unwrap_or_default();
        versions.insert(target.to_string(), version);
    }
    Ok(versions)
}

fn in_cluster(policy: &Spec) -> Vec<Value> {
    let placement = SpokePlacement::InCluster {
        image: "ghcr.io/attest-ci/attest-spoke:0.1.0",
        hub: "127.0.0.1:4433",
        token: Some("at1.token"),
    };
    Installation { policy, placement }.manifests()
}

fn policy(applications: &Value) -> Spec {
    serde_json::from_value(json!({
        "clusterName": "staging", "kubeSystemUid": "00000000-0000-0000-0000-000000000000",
        "environment": "staging",
        "hub": {"keys": ["PEM"], "caPins": [format!("sha256:{}", "0".repeat(64))]},
        "keys": [], "applications": applications
    }))
    .unwrap()
}

fn entry(more: &Value) -> Value {
    let mut entry = json!({
        "names": ["*"], "repos": ["*"], "namespaces": ["*"], "minimumMode": "Strict",
        "requiredAttestations": ["build"]
    });
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

fn subject(namespace: &str, name: &str) -> Value {
    json!({"kind": "ServiceAccount", "namespace": namespace, "name": name})
}

fn binding(name: &str, role: &str, subjects: &Value) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name}, "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    })
}

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]}
            }
        }
    })
}
