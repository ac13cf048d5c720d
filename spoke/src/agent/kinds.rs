//! What the API server serves, learnt when something needs a kind that is not known yet.

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use attest_common::kinds::{Kind, Kinds};
use attest_common::manifest::{Object, ObjectKey};
use serde_json::Value;

use super::{Agent, complain};
use crate::cluster::{ApiError, ApiServer};
use crate::outbox::Key;

impl Agent {
    /// Asks the API server for the kinds that are needed to delete what an inventory holds beyond
    /// `rendered`.
    pub(super) async fn know_inventory(&self, key: &Key, rendered: &[Object]) {
        let kinds = self.kinds();
        let stays: BTreeSet<&ObjectKey> = rendered.iter().map(Object::key).collect();
        let unknown = self.shared.ledger.with_records(|records| {
            let owned = records.get(key).into_iter().flat_map(|record| &record.inventory);
            let goes = owned.into_iter().filter(|owned| !stays.contains(&owned.key));
            goes.into_iter().any(|o| kinds.get(&o.key.group, &o.key.kind).is_none())
        });
        if unknown {
            self.discover().await;
        }
    }

    pub(super) async fn discover(&self) {
        if let Err(error) = discover(&self.shared.api, &self.shared.kinds).await {
            complain("Cannot ask the API server for its kinds", &error);
        }
    }

    pub(super) fn kinds(&self) -> Kinds {
        self.shared.kinds.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Asks the API server what it serves, and adds that to what is known.
pub(crate) async fn discover(api: &ApiServer, kinds: &RwLock<Kinds>) -> Result<(), ApiError> {
    for root in ["/api", "/apis"] {
        let document = api.discovery(root).await?;
        learn(&mut kinds.write().unwrap_or_else(PoisonError::into_inner), &document);
    }
    Ok(())
}

/// Adds the kinds of an aggregated discovery document (`APIGroupDiscoveryList`).
fn learn(kinds: &mut Kinds, document: &Value) {
    let list = |value: &Value, field: &str| {
        value.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
    };
    for group in list(document, "items") {
        let name = group.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
        for resource in list(&group, "versions").iter().flat_map(|v| list(v, "resources")) {
            let text = |pointer: &str| resource.pointer(pointer).and_then(Value::as_str);
            let (Some(plural), Some(kind)) = (text("/resource"), text("/responseKind/kind")) else {
                continue;
            };
            if kinds.get(name, kind).is_none() {
                let namespaced = text("/scope") == Some("Namespaced");
                kinds.insert(name, kind, Kind { plural: plural.to_owned(), namespaced });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn kinds_are_learnt_from_discovery_without_replacing_what_is_known() {
        let mut kinds = Kinds::built_in();
        let document = json!({"items": [
            {"metadata": {"name": "example.com"}, "versions": [{"version": "v1", "resources": [
                {"resource": "widgets", "scope": "Namespaced", "responseKind": {"kind": "Widget"}}]}]},
            {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [
                {"resource": "evil", "scope": "Cluster", "responseKind": {"kind": "Deployment"}}]}]},
        ]});

        learn(&mut kinds, &document);

        assert!(kinds.get("example.com", "Widget").is_some_and(|kind| kind.namespaced));
        assert_eq!(kinds.get("apps", "Deployment").unwrap().plural, "deployments");
    }
}
