//! The test clusters themselves: real API servers, scripted pods, and audit logs with users.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use anyhow::Context;
use attest_tests::cluster::audit::{AuditEvent, AuditLog, Mark};
use attest_tests::cluster::fakelet::{Fakelet, FakeletOptions, Readiness, Runner};
use attest_tests::cluster::{self, Cluster};
use attest_tests::wait::until;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use rustix::process::Signal;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn two_clusters_start_and_each_makes_a_deployment_available() -> anyhow::Result<()> {
    let (Some(one), Some(other)) =
        tokio::try_join!(cluster::shared("one"), cluster::shared("other"))?
    else {
        return Ok(());
    };
    for site in [&one, &other] {
        let client = site.cluster.client().await?;
        let namespace = namespace(&client, "two-clusters").await?;

        apply(&client, &namespace, deployment("web", 2, "web:1", &json!({}))).await?;
        available(&client, &namespace, "web", 2).await?;
    }
    assert_ne!(one.cluster.server(), other.cluster.server());
    let seen = one.cluster.client().await?.apiserver_version().await?;
    assert!(seen.git_version.starts_with("v1."), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn the_audit_log_names_the_user_and_the_impersonated_user() -> anyhow::Result<()> {
    let Some(site) = cluster::shared("one").await? else { return Ok(()) };
    let admin = site.cluster.client().await?;
    let namespace = namespace(&admin, "audited").await?;
    let ada = site.cluster.client_for("ada", Some("system:masters")).await?;
    let mark = site.cluster.audit().mark();

    let maps: Api<ConfigMap> = Api::namespaced(ada, &namespace);
    let apply = PatchParams::apply("ada");
    maps.patch("mine", &apply, &Patch::Apply(config_map("mine"))).await?;
    maps.patch("tried", &apply.clone().dry_run(), &Patch::Apply(config_map("tried"))).await?;
    let mut request = http::Request::post(format!("/api/v1/namespaces/{namespace}/configmaps"))
        .header("content-type", "application/json")
        .body(config_map("theirs").to_string().into_bytes())?;
    request.headers_mut().insert("impersonate-user", "bob".parse()?);
    let refused = admin.request::<Value>(request).await.unwrap_err();

    assert!(refused.to_string().contains("bob"), "{refused}");
    let audit = site.cluster.audit();
    let (mine, tried, theirs) = tokio::try_join!(
        event(&audit, mark, "mine"),
        event(&audit, mark, "tried"),
        event(&audit, mark, "")
    )?;
    assert_eq!((mine.user.username.as_str(), mine.acting_user()), ("ada", "ada"));
    assert!(mine.is_mutating() && mine.is_success() && !mine.is_dry_run());
    assert!(tried.is_dry_run() && tried.is_success());
    assert_eq!((theirs.user.username.as_str(), theirs.acting_user()), ("admin", "bob"));
    assert_eq!(theirs.response_status.map(|status| status.code), Some(403));
    Ok(())
}

/// Waits for the event of a ConfigMap of this name.
async fn event(audit: &AuditLog, mark: Mark, name: &str) -> anyhow::Result<AuditEvent> {
    until("the event", SOON, || async {
        let mut events = audit.since(mark)?.into_iter();
        Ok(events.find(|event| {
            let object = event.object();
            object.resource == "configmaps" && object.name == name
        }))
    })
    .await
}

#[tokio::test]
async fn pods_follow_their_script() -> anyhow::Result<()> {
    let Some(site) = cluster::shared("other").await? else { return Ok(()) };
    let client = site.cluster.client().await?;
    let namespace = namespace(&client, "scripted").await?;
    site.fakelet.script("slow:", Readiness::After(Duration::from_secs(1)));
    site.fakelet.script("stuck:", Readiness::Never);
    let started = Instant::now();

    apply(&client, &namespace, deployment("slow", 1, "slow:1", &json!({}))).await?;
    apply(&client, &namespace, deployment("stuck", 1, "stuck:1", &json!({}))).await?;
    let flap = json!({"attest.test/ready": "flap=300ms"});
    apply(&client, &namespace, deployment("flapping", 1, "web:1", &flap)).await?;

    available(&client, &namespace, "slow", 1).await?;
    assert!(started.elapsed() >= Duration::from_secs(1));
    for ready in [true, false, true] {
        until("the pod to change its state", SOON, || async {
            let pods = pods(&client, &namespace, "flapping").await?;
            Ok(pods.iter().any(|pod| is_ready(pod) == ready).then_some(()))
        })
        .await?;
    }
    let stuck = pods(&client, &namespace, "stuck").await?;
    assert_eq!(stuck.len(), 1);
    assert!(!is_ready(&stuck[0]), "{:?}", stuck[0].status);

    // A rolling update to an image that never becomes ready keeps the old pod.
    apply(&client, &namespace, deployment("slow", 1, "stuck:2", &json!({}))).await?;
    until("the new pod", SOON, || async {
        Ok((pods(&client, &namespace, "slow").await?.len() == 2).then_some(()))
    })
    .await?;
    available(&client, &namespace, "slow", 1).await?;

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    for name in ["slow", "stuck", "flapping"] {
        deployments.delete(name, &DeleteParams::default()).await?;
    }
    until("the pods to be deleted", SOON, || async {
        let all: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        Ok(all.list(&ListParams::default()).await?.items.is_empty().then_some(()))
    })
    .await
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

fn with_uid(uid: Option<&str>, value: &str) -> Patch<Value> {
    let metadata = json!({"name": "a", "uid": uid});
    Patch::Apply(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"k": value}}),
    )
}

/// The spoke relies on this when it transfers its own fields back.
#[tokio::test]
async fn an_apply_with_a_uid_is_refused_for_any_other_object_and_for_a_missing_one()
-> anyhow::Result<()> {
    let Some(site) = cluster::shared("one").await? else { return Ok(()) };
    let client = site.cluster.client().await?;
    let namespace = namespace(&client, "by-uid").await?;
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    let force = PatchParams::apply("test").force();
    let foreign_uid = Some("00000000-0000-4000-8000-000000000000");

    let none = maps.patch("a", &force, &with_uid(foreign_uid, "1")).await.unwrap_err();
    assert!(matches!(&none, kube::Error::Api(status) if status.code == 409), "{none}");
    assert!(maps.get_opt("a").await?.is_none(), "it is not created");
    let made = maps.patch("a", &force, &with_uid(None, "1")).await?;
    let other = maps.patch("a", &force, &with_uid(foreign_uid, "2")).await.unwrap_err();
    assert!(matches!(&other, kube::Error::Api(status) if status.code == 422), "{other}");
    assert!(other.to_string().contains("metadata.uid"), "{other}");
    let same = maps.patch("a", &force, &with_uid(made.metadata.uid.as_deref(), "3")).await?;
    assert_eq!(same.data.context("no data")?["k"], "3");
    Ok(())
}

/// Program that prints what a container would see, then waits.
const PROBE: &str = r#"#!/bin/sh
echo "arguments: $*"
echo "variables: $POD_NAMESPACE $FROM_SECRET $FROM_MAP $GREETING"
echo "secret file: $(cat "$1")"
echo "namespace file: $(cat "$ATTEST_SERVICE_ACCOUNT_DIR/namespace")"
curl -sS --cacert "$ATTEST_SERVICE_ACCOUNT_DIR/ca.crt" \
  -H "Authorization: Bearer $(cat "$ATTEST_SERVICE_ACCOUNT_DIR/token")" \
  -H 'Content-Type: application/json' \
  -d '{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}' \
  "https://$KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT/apis/authentication.k8s.io/v1/selfsubjectreviews" | tr -d ' \n'
echo; echo done
exec sleep 600
"#;

#[tokio::test]
async fn a_pod_with_a_runner_is_a_real_process_with_its_secrets_and_its_account()
-> anyhow::Result<()> {
    let Some(site) = cluster::shared("one").await? else { return Ok(()) };
    let client = site.cluster.client().await?;
    let namespace = namespace(&client, "runner").await?;
    let directory = tempfile::tempdir()?;
    let program = directory.path().join("probe");
    std::fs::write(&program, PROBE)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    site.fakelet.run(Runner::new("probe", &program).env("GREETING", "hello"));
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "prober"}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "join"}, "stringData": {"token": "s3cret"}}),
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"colour": "blue"}}),
    ] {
        create(&client, &namespace, &object).await?;
    }

    let mut probe = deployment("probe", 1, "registry.example/probe:1@sha256:00", &json!({}));
    probe["spec"]["template"]["spec"] = json!({
        "serviceAccountName": "prober",
        "volumes": [{"name": "join", "secret": {"secretName": "join"}}],
        "containers": [{
            "name": "probe", "image": "registry.example/probe:1",
            "args": ["/etc/attest/token", "--namespace=$(POD_NAMESPACE)"],
            "env": [
                {"name": "POD_NAMESPACE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}}},
                {"name": "FROM_SECRET", "valueFrom": {"secretKeyRef": {"name": "join", "key": "token"}}},
                {"name": "FROM_MAP", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            ],
            "volumeMounts": [{"name": "join", "mountPath": "/etc/attest", "readOnly": true}],
        }],
    });
    apply(&client, &namespace, probe).await?;
    available(&client, &namespace, "probe", 1).await?;

    let output = until("the probe", SOON, || async {
        let output = site.fakelet.output(&format!("{namespace}/probe"));
        Ok(output.contains("done").then_some(output))
    })
    .await?;
    assert!(output.contains(&format!("--namespace={namespace}")), "{output}");
    assert!(output.contains(&format!("variables: {namespace} s3cret blue hello")), "{output}");
    assert!(output.contains("secret file: s3cret"), "{output}");
    assert!(output.contains(&format!("namespace file: {namespace}")), "{output}");
    assert!(
        output.contains(&format!("\"username\":\"system:serviceaccount:{namespace}:prober\"")),
        "{output}"
    );

    let prefix = format!("{namespace}/probe");
    let first = process(&site.fakelet, &prefix).expect("it runs");
    assert_eq!(site.fakelet.signal(&prefix, Signal::KILL), 1);
    let second = until("the restart", SOON, || async {
        Ok(process(&site.fakelet, &prefix).filter(|id| *id != first))
    })
    .await?;
    assert!(std::path::Path::new(&format!("/proc/{second}")).exists());

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), &namespace);
    deployments.delete("probe", &DeleteParams::default()).await?;
    until("the process to end", SOON, || async {
        Ok((!std::path::Path::new(&format!("/proc/{second}")).exists()).then_some(()))
    })
    .await
}

/// Process id of the pod whose `namespace/pod` begins with this text.
fn process(fakelet: &Fakelet, pod_prefix: &str) -> Option<u32> {
    let processes = fakelet.processes().into_iter();
    processes.filter(|(pod, _)| pod.starts_with(pod_prefix)).map(|(_, id)| id).next()
}

#[tokio::test]
async fn a_killed_api_server_restarts_with_its_objects() -> anyhow::Result<()> {
    let Some(cluster) = Cluster::start("faults").await? else { return Ok(()) };
    let fakelet = Fakelet::start(&cluster, FakeletOptions::default())?;
    let client = cluster.client().await?;
    let namespace = namespace(&client, "kept").await?;

    cluster.stop_api();
    assert!(cluster::is_ready(&client).await.is_err());
    cluster.start_api().await?;

    let namespaces: Api<Namespace> = Api::all(client.clone());
    assert!(namespaces.get_opt(&namespace).await?.is_some());
    apply(&client, &namespace, deployment("web", 2, "web:1", &json!({}))).await?;
    available(&client, &namespace, "web", 2).await?;
    let ids = cluster.process_ids();
    drop((fakelet, cluster));
    for id in ids {
        assert!(!std::path::Path::new(&format!("/proc/{id}")).exists(), "process {id} has ended");
    }
    Ok(())
}

async fn namespace(client: &Client, name: &str) -> anyhow::Result<String> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let object = serde_json::from_value(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
    )?;
    namespaces.create(&PostParams::default(), &object).await?;
    Ok(name.to_owned())
}

async fn create(client: &Client, namespace: &str, object: &Value) -> anyhow::Result<()> {
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    let request = http::Request::post(format!("/api/v1/namespaces/{namespace}/{kind}s"))
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())?;
    client.request::<Value>(request).await?;
    Ok(())
}

fn deployment(name: &str, replicas: u32, image: &str, annotations: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{"name": name, "image": image}]}
            }
        }
    })
}

async fn apply(client: &Client, namespace: &str, object: Value) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let name = name.to_owned();
    let parameters = PatchParams::apply("test").force();
    deployments.patch(&name, &parameters, &Patch::Apply(object)).await?;
    Ok(())
}

async fn available(
    client: &Client,
    namespace: &str,
    name: &str,
    replicas: i32,
) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    until(&format!("{name} to be available"), SOON, || async {
        let status = deployments.get(name).await?.status.unwrap_or_default();
        Ok((status.available_replicas == Some(replicas)).then_some(()))
    })
    .await
}

async fn pods(client: &Client, namespace: &str, app: &str) -> anyhow::Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    Ok(pods.list(&ListParams::default().labels(&format!("app={app}"))).await?.items)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
