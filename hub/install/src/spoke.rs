//! The Deployment of the spoke, and the Secret with its join token.

use serde_json::{Value, json};

use attest_common::record::custody::{JOIN_SECRET, JOIN_TOKEN_KEY};

use super::{SPOKE_NAME, SPOKE_NAMESPACE, object};

const JOIN_DIRECTORY: &str = "/etc/attest/join";
const HEALTH_PORT: u16 = 8081;
const METRICS_PORT: u16 = 8080;
/// Unprivileged user ID of the spoke's container.
const USER_ID: u32 = 65534;

pub(super) fn join_secret(token: &str) -> Value {
    let mut data = serde_json::Map::new();
    data.insert(JOIN_TOKEN_KEY.to_owned(), token.into());
    let body = json!({"type": "Opaque", "stringData": data});
    object(("v1", "Secret"), Some(SPOKE_NAMESPACE), JOIN_SECRET, body)
}

pub(super) fn deployment(image: &str, hub: &str) -> Value {
    let selector = json!({"app.kubernetes.io/name": SPOKE_NAME});
    let mut labels = super::labels();
    if let Value::Object(labels) = &mut labels {
        labels.insert("app.kubernetes.io/name".to_owned(), SPOKE_NAME.into());
    }
    let body = json!({"spec": {
        "replicas": 1,
        // Two spokes with one identity would overwrite each other's records.
        "strategy": {"type": "Recreate"},
        "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": labels}, "spec": pod_spec(image, hub)}
    }});
    object(("apps/v1", "Deployment"), Some(SPOKE_NAMESPACE), SPOKE_NAME, body)
}

fn pod_spec(image: &str, hub: &str) -> Value {
    json!({
        "serviceAccountName": SPOKE_NAME,
        "automountServiceAccountToken": true,
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER_ID, "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"}
        },
        "containers": [container(image, hub)],
        "volumes": [
            {"name": "join", "secret": {"secretName": JOIN_SECRET, "optional": true}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}}
        ]
    })
}

fn container(image: &str, hub: &str) -> Value {
    let token_file = format!("{JOIN_DIRECTORY}/{JOIN_TOKEN_KEY}");
    json!({
        "name": "spoke",
        "image": image,
        "args": ["--hub", hub, "--join-token-file", token_file],
        // Probes and metrics requests come from outside the pod.
        "env": [
            {"name": "ATTEST_LISTEN_HEALTH", "value": format!("0.0.0.0:{HEALTH_PORT}")},
            {"name": "ATTEST_LISTEN_METRICS", "value": format!("0.0.0.0:{METRICS_PORT}")}
        ],
        "ports": [
            {"name": "health", "containerPort": HEALTH_PORT},
            {"name": "metrics", "containerPort": METRICS_PORT}
        ],
        "livenessProbe": {"httpGet": {"path": "/health", "port": "health"}, "periodSeconds": 10},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "health"}, "periodSeconds": 5},
        "resources": {
            "requests": {"cpu": "10m", "memory": "32Mi"},
            "limits": {"memory": "256Mi"}
        },
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}
        },
        "volumeMounts": [
            {"name": "join", "mountPath": JOIN_DIRECTORY, "readOnly": true},
            {"name": "tmp", "mountPath": "/tmp"}
        ]
    })
}
