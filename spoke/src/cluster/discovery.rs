//! Discovery of the kinds that the API server serves, when a kind is needed that is not known yet.

use attest_common::basics::locked::RwLocked;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::{Kind, Kinds};
use serde_json::Value;

use super::client::ApiServer;
use super::error::ApiError;

/// Reads the discovery documents of the API server, and adds their kinds to the known ones.
pub(crate) async fn discover(api: &ApiServer, kinds: &RwLocked<Kinds>) -> Result<(), ApiError> {
    for root in ["/api", "/apis"] {
        let document = api.discovery(root).await?;
        learn(&mut kinds.write(), &document);
    }
    Ok(())
}

/// Returns the version in which the API server serves a kind, with its plural; `None` if it does not serve it.
pub(crate) async fn served(
    api: &ApiServer,
    key: &ObjectKey,
) -> Result<Option<(String, String)>, ApiError> {
    let root = if key.group.is_empty() { "/api" } else { "/apis" };
    Ok(newest(&api.discovery(root).await?, &key.group, &key.kind))
}

/// Returns version and plural of a kind from an aggregated discovery document, whose versions are in the server's
/// order of preference.
fn newest(document: &Value, group: &str, kind: &str) -> Option<(String, String)> {
    let text = |value: &Value, pointer: &str| Some(value.pointer(pointer)?.as_str()?.to_owned());
    let list = |value: &Value, field: &str| value.get(field)?.as_array().cloned();
    let named = |item: &Value| text(item, "/metadata/name").unwrap_or_default() == group;
    let found = list(document, "items")?.into_iter().find(named)?;
    list(&found, "versions")?.iter().find_map(|version| {
        let resources = list(version, "resources")?;
        let ours = |r: &&Value| text(r, "/responseKind/kind").as_deref() == Some(kind);
        let resource = resources.iter().find(ours)?;
        Some((text(version, "/version")?, text(resource, "/resource")?))
    })
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
    fn a_kind_is_found_in_the_version_that_the_server_prefers_of_those_that_have_it() {
        let widget = |plural: &str| json!({"resource": plural, "responseKind": {"kind": "Widget"}});
        let document = json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [widget("others")]}]},
            {"metadata": {"name": "example.com"}, "versions": [
                {"version": "v3", "resources": []},
                {"version": "v2", "resources": [widget("widgets")]},
                {"version": "v1", "resources": [widget("olds")]}]},
        ]});

        let found = |group: &str| newest(&document, group, "Widget");
        assert_eq!(found("example.com"), Some(("v2".to_owned(), "widgets".to_owned())));
        assert_eq!(found(""), Some(("v1".to_owned(), "others".to_owned())));
        assert_eq!(found("absent.com"), None);
        assert_eq!(newest(&document, "example.com", "Gadget"), None);
    }

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
