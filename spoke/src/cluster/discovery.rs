//! Discovery of the kinds that the API server serves, when a kind is needed that is not known yet.

use attest_common::basics::locked::RwLocked;
use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::kinds::{Kind, Kinds};
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::client::ApiServer;
use super::error::ApiError;

/// Reads the discovery documents of the API server, and adds their kinds to the known ones.
pub(crate) async fn discover(api: &ApiServer, kinds: &RwLocked<Kinds>) -> Result<(), ApiError> {
    for root in ["/api", "/apis"] {
        let document: Discovery = api.discovery(root).await?;
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

/// Aggregated discovery document (`APIGroupDiscoveryList`), as far as it is used. Unlike the type of `kube`, it
/// tolerates an extension server that reports no list of verbs.
#[derive(Debug, Deserialize)]
struct Discovery {
    items: Option<Vec<Group>>,
}

#[derive(Debug, Deserialize)]
struct Group {
    /// The core group has no name.
    #[serde(default)]
    metadata: ObjectMeta,
    /// In the server's order of preference.
    versions: Option<Vec<Version>>,
}

#[derive(Debug, Deserialize)]
struct Version {
    version: Option<String>,
    resources: Option<Vec<ServedResource>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServedResource {
    /// Plural name.
    resource: Option<String>,
    response_kind: Option<ResponseKind>,
    scope: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ResponseKind {
    kind: Option<String>,
}

impl Group {
    fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    fn versions(&self) -> impl Iterator<Item = &Version> {
        self.versions.iter().flatten()
    }
}

impl Version {
    fn resources(&self) -> impl Iterator<Item = &ServedResource> {
        self.resources.iter().flatten()
    }
}

impl ServedResource {
    fn kind(&self) -> Option<&str> {
        self.response_kind.as_ref()?.kind.as_deref()
    }
}

/// Returns the preferred version that has the kind, and the plural of the kind there.
fn newest(document: &Discovery, group: &str, kind: &str) -> Option<(String, String)> {
    let found = document.items.iter().flatten().find(|item| item.name() == group)?;
    found.versions().find_map(|version| {
        let resource = version.resources().find(|resource| resource.kind() == Some(kind))?;
        Some((version.version.clone()?, resource.resource.clone()?))
    })
}

/// Adds the kinds of a document to the known ones.
fn learn(kinds: &mut Kinds, document: &Discovery) {
    for group in document.items.iter().flatten() {
        for resource in group.versions().flat_map(Version::resources) {
            let (Some(plural), Some(kind)) = (&resource.resource, resource.kind()) else {
                continue;
            };
            if kinds.get(group.name(), kind).is_none() {
                let namespaced = resource.scope.as_deref() == Some("Namespaced");
                kinds.insert(group.name(), kind, Kind { plural: plural.clone(), namespaced });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document(value: Value) -> Discovery {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_kind_is_found_in_the_version_that_the_server_prefers_of_those_that_have_it() {
        let widget = |plural: &str| json!({"resource": plural, "responseKind": {"kind": "Widget"}});
        let document = document(json!({"items": [
            {"metadata": {}, "versions": [{"version": "v1", "resources": [widget("others")]}]},
            {"metadata": {"name": "example.com"}, "versions": [
                {"version": "v3", "resources": []},
                {"version": "v2", "resources": [widget("widgets")]},
                {"version": "v1", "resources": [widget("olds")]}]},
        ]}));

        let found = |group: &str| newest(&document, group, "Widget");
        assert_eq!(found("example.com"), Some(("v2".to_owned(), "widgets".to_owned())));
        assert_eq!(found(""), Some(("v1".to_owned(), "others".to_owned())));
        assert_eq!(found("absent.com"), None);
        assert_eq!(newest(&document, "example.com", "Gadget"), None);
    }

    #[test]
    fn kinds_are_learnt_from_discovery_without_replacing_what_is_known() {
        let mut kinds = Kinds::built_in();
        let document = document(json!({"items": [
            {"metadata": {"name": "example.com"}, "versions": [{"version": "v1", "resources": [
                {"resource": "widgets", "scope": "Namespaced", "responseKind": {"kind": "Widget"}}]}]},
            {"metadata": {"name": "apps"}, "versions": [{"version": "v1", "resources": [
                {"resource": "evil", "scope": "Cluster", "responseKind": {"kind": "Deployment"}}]}]},
        ]}));

        learn(&mut kinds, &document);

        assert!(kinds.get("example.com", "Widget").is_some_and(|kind| kind.namespaced));
        assert_eq!(kinds.get("apps", "Deployment").unwrap().plural, "deployments");
    }
}
