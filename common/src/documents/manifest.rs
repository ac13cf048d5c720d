//! Rendering v1: Kubernetes objects as the bytes CI signs, one JSON object a line.
//!
//! [`write()`] is what producers (CI, hub) call; it sorts and normalises. [`read()`] is what verifiers
//! call; it accepts any order but refuses everything a producer would have dropped. YAML is read
//! elsewhere, once, before this.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::basics::canonical::{self, InexactNumber};
use crate::basics::ids::Name;
use crate::basics::json::{self, JsonError, OBJECT_DEPTH_MAX};
use crate::basics::reason::Reason;
use crate::documents::annotations::{
    self, CONFIRM_REMOVAL_ANNOTATION, ORPHAN_ANNOTATION, OWN_PREFIX, REPLACE_ANNOTATION,
};

/// Most objects in a rendering.
pub const OBJECTS_MAX: usize = 5_000;
/// Largest rendering in bytes.
pub const RENDERING_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Largest object in bytes.
pub const OBJECT_BYTES_MAX: usize = 1024 * 1024;

/// Metadata that the API server owns; an object that brings it does not say what it seems to say.
const SERVER_METADATA: [&str; 8] = [
    "uid",
    "resourceVersion",
    "generation",
    "managedFields",
    "ownerReferences",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];
/// Metadata that is dropped where it is null or empty, as the API server does, besides [`SERVER_METADATA`].
const EMPTY_METADATA: [&str; 4] = ["creationTimestamp", "generateName", "namespace", "finalizers"];
/// Longest name of an object in bytes.
const NAME_BYTES_MAX: usize = 253;
/// Group whose names may contain everything that does not change a path.
const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
/// Prefix of labels and annotations that Argo CD reads. A spoke of version 0.1 refuses them.
const ARGO_CD_PREFIX: &str = "argocd.argoproj.io/";
/// Annotation that claims a state that the object does not have.
const RESERVED_KEYS: [&str; 1] = ["kubectl.kubernetes.io/last-applied-configuration"];

/// Identity of an object, regardless of its API version.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ObjectKey {
    /// API group; the core group is the empty string.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    pub kind: String,
    /// Absent for cluster-scoped objects, and in a rendering for those the destination places.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dot = if self.group.is_empty() { "" } else { "." };
        write!(f, "{}{dot}{}/", self.kind, self.group)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One Kubernetes object of a rendering.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    key: ObjectKey,
    version: String,
    value: Value,
}

impl Object {
    /// Reads type and name of an object and checks that it carries nothing the server owns.
    pub fn new(value: Value) -> Result<Self, ManifestError> {
        let (key, version) = identity(&value)?;
        let object = Self { key, version, value };
        object.check()?;
        Ok(object)
    }

    /// Group, kind, namespace (as written) and name.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }

    /// API version without the group, for example `v1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// `group/version`, or `version` for the core group.
    pub fn api_version(&self) -> String {
        if self.key.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.key.group, self.version)
        }
    }

    /// The whole object.
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// The object put into `namespace`.
    pub fn placed(mut self, namespace: &str) -> Self {
        if let Some(Value::Object(metadata)) = self.value.get_mut("metadata") {
            metadata.insert("namespace".to_owned(), Value::String(namespace.to_owned()));
        }
        self.key.namespace = Some(namespace.to_owned());
        self
    }

    /// The object without a namespace.
    pub fn unplaced(mut self) -> Self {
        if let Some(Value::Object(metadata)) = self.value.get_mut("metadata") {
            metadata.remove("namespace");
        }
        self.key.namespace = None;
        self
    }

    /// The object with its body changed by `change`; type and name stay.
    pub fn changed(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.value);
        self
    }

    /// Place in the order of applying that the author gives, lower first; 0 if none.
    pub fn wave(&self) -> i16 {
        annotations::wave(&self.value)
    }

    /// Returns whether the object is to be released, and not deleted, when it is no longer rendered.
    pub fn is_orphaned(&self) -> bool {
        annotations::flag(&self.value, ORPHAN_ANNOTATION) == Some(true)
    }

    /// Returns whether the author allows to delete the object and make it again where it cannot be changed. `None` leaves
    /// it to the rule of the kind.
    pub fn may_be_replaced(&self) -> Option<bool> {
        annotations::flag(&self.value, REPLACE_ANNOTATION)
    }

    fn check(&self) -> Result<(), ManifestError> {
        let refuse = |field: &str| ManifestError::ObjectMetadata {
            object: self.key.clone(),
            field: field.to_owned(),
        };
        // `status` of a CustomResourceDefinition or any other object belongs to its controller.
        if self.value.get("status").is_some() {
            return Err(refuse("status"));
        }
        let Some(metadata) = self.value.get("metadata").and_then(Value::as_object) else {
            return Ok(());
        };
        if let Some(field) = SERVER_METADATA.iter().find(|f| metadata.contains_key(**f)) {
            return Err(refuse(&format!("metadata.{field}")));
        }
        if metadata.contains_key("creationTimestamp") {
            return Err(refuse("metadata.creationTimestamp"));
        }
        if metadata.get("finalizers").is_some_and(|finalizers| !is_list_of_names(finalizers)) {
            return Err(ManifestError::ObjectShape {
                field: "metadata.finalizers",
                near: describe(&self.value),
            });
        }
        for section in ["annotations", "labels"] {
            let keys = metadata.get(section).and_then(Value::as_object).into_iter().flatten();
            for (name, value) in keys {
                let is_for_authors = section == "annotations" && annotations::is_for_authors(name);
                if is_for_authors && let Some(expected) = annotations::expected_instead(name, value)
                {
                    let (object, name) = (self.key.clone(), name.clone());
                    return Err(ManifestError::AnnotationValue { object, name, expected });
                }
                if !is_for_authors && is_reserved(name) {
                    return Err(self.refuse_reserved(name));
                }
            }
        }
        Ok(())
    }

    fn refuse_reserved(&self, name: &str) -> ManifestError {
        let object = self.key.clone();
        if name == CONFIRM_REMOVAL_ANNOTATION {
            return ManifestError::ConfirmRemoval(object);
        }
        ManifestError::ObjectReserved { object, name: name.chars().take(120).collect() }
    }
}

fn is_reserved(name: &str) -> bool {
    RESERVED_KEYS.contains(&name) || name.starts_with(OWN_PREFIX)
}

fn identity(value: &Value) -> Result<(ObjectKey, String), ManifestError> {
    let shape = |field: &'static str| ManifestError::ObjectShape { field, near: describe(value) };
    fn text(v: Option<&Value>) -> Option<&str> {
        v.and_then(Value::as_str).filter(|t| !t.is_empty())
    }
    let api_version = text(value.get("apiVersion")).ok_or_else(|| shape("apiVersion"))?;
    let kind = text(value.get("kind")).ok_or_else(|| shape("kind"))?;
    let metadata = value.get("metadata").ok_or_else(|| shape("metadata"))?;
    let name = text(metadata.get("name")).ok_or_else(|| shape("metadata.name"))?;
    if metadata.get("generateName").is_some() {
        return Err(shape("metadata.generateName"));
    }
    let namespace = match metadata.get("namespace") {
        None => None,
        Some(v) => Some(text(Some(v)).ok_or_else(|| shape("metadata.namespace"))?.to_owned()),
    };
    let (group, version) = split_api_version(api_version).ok_or_else(|| shape("apiVersion"))?;
    // Kubernetes requires a kind to be a label once its letters are lower-case.
    if !is_label(&kind.to_ascii_lowercase()) {
        return Err(shape("kind"));
    }
    if !is_name(group, name) || namespace.as_deref().is_some_and(|n| Name::new(n).is_err()) {
        return Err(shape("metadata.name"));
    }
    let key = ObjectKey {
        group: group.to_owned(),
        kind: kind.to_owned(),
        namespace,
        name: name.to_owned(),
    };
    Ok((key, version.to_owned()))
}

/// Splits `group/version`, or `version` for the core group. Returns none unless the group is a DNS subdomain and the
/// version a DNS label (RFC 1123, RFC 1035), as Kubernetes requires: another spelling of a group would be another kind to
/// every rule.
pub fn split_api_version(api_version: &str) -> Option<(&str, &str)> {
    match api_version.split_once('/') {
        Some((group, version)) if is_subdomain(group) && is_label(version) => {
            Some((group, version))
        }
        None if is_label(api_version) => Some(("", api_version)),
        Some(_) | None => None,
    }
}

/// Returns whether `text` is a DNS label that begins with a letter (RFC 1035), in lower case.
pub fn is_label(text: &str) -> bool {
    Name::new(text).is_ok() && text.starts_with(|c: char| c.is_ascii_lowercase())
}

/// Returns whether `text` is a DNS subdomain (RFC 1123), in lower case.
pub fn is_subdomain(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && text.split('.').all(|label| Name::new(label).is_ok())
}

/// Returns whether an object of this group may have this name. Names of RBAC are path segments, as of users
/// (`ada@example.com`); of the other kinds, the API server knows the exact rule.
fn is_name(group: &str, name: &str) -> bool {
    let fits = name.len() <= NAME_BYTES_MAX && name != "." && name != "..";
    if group == RBAC_GROUP {
        return fits && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '%'));
    }
    fits && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:_".contains(&b))
}

/// Returns whether a value is a list of texts that are not empty.
fn is_list_of_names(value: &Value) -> bool {
    value.as_array().is_some_and(|items| {
        items.iter().all(|item| item.as_str().is_some_and(|text| !text.is_empty()))
    })
}

fn describe(value: &Value) -> String {
    let part = |v: Option<&Value>| v.and_then(Value::as_str).unwrap_or("?").to_owned();
    let name = value.get("metadata").and_then(|m| m.get("name"));
    format!("{}/{}", part(value.get("kind")), part(name)).chars().take(120).collect()
}

/// Returns the first object that only a spoke with the feature `manifests-2` accepts: one with finalizers of its author,
/// with a label or annotation that was reserved before, or with a name that was not accepted before.
pub fn needs_manifests_2(objects: &[Object]) -> Option<&ObjectKey> {
    let found = objects.iter().find(|object| {
        object.value.pointer("/metadata/finalizers").is_some()
            || !is_name("", &object.key.name)
            || was_reserved(object)
    });
    found.map(Object::key)
}

fn was_reserved(object: &Object) -> bool {
    let sections = ["/metadata/annotations", "/metadata/labels"].into_iter();
    let sections = sections.filter_map(|section| object.value.pointer(section)?.as_object());
    let mut names = sections.flat_map(serde_json::Map::keys);
    names.any(|name| name.starts_with(ARGO_CD_PREFIX) || name.starts_with(OWN_PREFIX))
}

/// Reads a rendering that somebody signed.
pub fn read(bytes: &[u8]) -> Result<Vec<Object>, ManifestError> {
    if bytes.len() > RENDERING_BYTES_MAX {
        return Err(ManifestError::Limit { what: "bytes", max: RENDERING_BYTES_MAX });
    }
    if bytes.last().is_some_and(|b| *b != b'\n') {
        return Err(ManifestError::Format("the last line does not end"));
    }
    if bytes.contains(&b'\r') {
        return Err(ManifestError::Format("a carriage return"));
    }
    let mut objects = Vec::new();
    let mut seen = BTreeSet::new();
    for line in bytes.split_inclusive(|b| *b == b'\n') {
        if objects.len() >= OBJECTS_MAX {
            return Err(ManifestError::Limit { what: "objects", max: OBJECTS_MAX });
        }
        if line.len() > OBJECT_BYTES_MAX {
            return Err(ManifestError::Limit { what: "bytes an object", max: OBJECT_BYTES_MAX });
        }
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.first() != Some(&b'{') {
            return Err(ManifestError::Format("a line that is not a JSON object"));
        }
        let value = json::value(line, OBJECT_DEPTH_MAX)
            .map_err(|source| ManifestError::Json { line: objects.len() + 1, source })?;
        let object = Object::new(value)?;
        if object.key.kind.ends_with("List") && object.value.get("items").is_some() {
            return Err(ManifestError::Format("a List"));
        }
        if !seen.insert(object.key.clone()) {
            return Err(ManifestError::Duplicate(object.key));
        }
        objects.push(object);
    }
    Ok(objects)
}

/// Writes objects as Rendering v1: Lists flattened, server-owned leftovers of tools dropped,
/// sorted by (group, kind, namespace, name), RFC 8785 lines.
pub fn write(values: Vec<Value>) -> Result<Vec<u8>, ManifestError> {
    let mut objects = Vec::new();
    for value in values {
        flatten(value, &mut objects)?;
    }
    objects.sort_by(|a, b| a.key.cmp(&b.key));
    let mut out = Vec::new();
    for object in &objects {
        let line = canonical::to_vec(&object.value)
            .map_err(|source| ManifestError::Number { object: object.key.clone(), source })?;
        out.extend_from_slice(&line);
        out.push(b'\n');
        for (bytes, what, max) in [
            (line.len(), "bytes an object", OBJECT_BYTES_MAX),
            (out.len(), "bytes, which this object exceeds", RENDERING_BYTES_MAX),
        ] {
            if bytes > max {
                return Err(ManifestError::ObjectLimit { object: object.key.clone(), what, max });
            }
        }
    }
    // What is written must be what verifiers accept: one definition of acceptable.
    read(&out)?;
    Ok(out)
}

fn flatten(mut value: Value, out: &mut Vec<Object>) -> Result<(), ManifestError> {
    if value.is_null() {
        return Ok(());
    }
    let is_list = value.get("kind").and_then(Value::as_str).is_some_and(|k| k.ends_with("List"));
    if is_list {
        match value.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => {
                return items.into_iter().try_for_each(|item| flatten(item, out));
            }
            // As kubectl reads it: a List of nothing.
            Some(Value::Null) => return Ok(()),
            Some(_) => return Err(ManifestError::Format("a List whose items are no list")),
            None => {}
        }
    }
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    drop_null_creation_timestamps(&mut value);
    drop_empty_metadata(&mut value);
    out.push(Object::new(value)?);
    Ok(())
}

/// Tools print fields of metadata that have no value as null or as an empty text, list or map.
fn drop_empty_metadata(value: &mut Value) {
    let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    for field in SERVER_METADATA.into_iter().chain(EMPTY_METADATA) {
        if metadata.get(field).is_some_and(is_nothing) {
            metadata.remove(field);
        }
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Go tools print `creationTimestamp: null` in metadata and in pod templates' metadata. Elsewhere the name is an
/// author's, such as that of an entry of a ConfigMap, whose null is an empty text.
fn drop_null_creation_timestamps(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(metadata)) = fields.get_mut("metadata")
                && metadata.get("creationTimestamp").is_some_and(Value::is_null)
            {
                metadata.remove("creationTimestamp");
            }
            fields.values_mut().for_each(drop_null_creation_timestamps);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_null_creation_timestamps),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The pod specifications inside an object of a built-in kind: itself for a Pod, the templates of controllers.
fn pod_spec_pointer(group: &str, kind: &str) -> Option<&'static [&'static str]> {
    match (group, kind) {
        ("", "Pod") => Some(&["spec"]),
        ("apps", "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet")
        | ("batch", "Job")
        | ("", "ReplicationController") => Some(&["spec", "template", "spec"]),
        ("batch", "CronJob") => Some(&["spec", "jobTemplate", "spec", "template", "spec"]),
        _ => None,
    }
}

/// Position of an image reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePlace {
    /// The pod of a built-in kind.
    Pod,
    /// Anywhere else that looks like a pod: containers with a name and an image.
    PodShape,
}

/// Calls `visit` with every image reference of an object: of containers of every kind, wherever pods are written
/// (at any depth of any kind), and of image volumes beside them (KEP-4639). The one rule for CI, hub and spoke.
pub fn for_each_image(
    key: &ObjectKey,
    value: &mut Value,
    mut visit: impl FnMut(ImagePlace, &mut Value),
) {
    images_below(value, pod_spec_pointer(&key.group, &key.kind), &mut visit);
}

/// `to_pod` leads from here to the pod of a built-in kind, if it is below.
fn images_below(
    value: &mut Value,
    to_pod: Option<&[&str]>,
    visit: &mut impl FnMut(ImagePlace, &mut Value),
) {
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Array(items) => {
            return items.iter_mut().for_each(|item| images_below(item, None, visit));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => return,
    };
    let place = match to_pod {
        Some([]) => Some(ImagePlace::Pod),
        Some(_) | None => has_containers(fields).then_some(ImagePlace::PodShape),
    };
    for (name, inner) in fields {
        match place {
            Some(place) if CONTAINER_LISTS.contains(&name.as_str()) => {
                let containers = inner.as_array_mut().into_iter().flatten();
                containers
                    .filter(|container| place == ImagePlace::Pod || is_container(container))
                    .filter_map(|container| container.get_mut("image"))
                    .for_each(|image| visit(place, image));
            }
            Some(place) if name == "volumes" => {
                let volumes = inner.as_array_mut().into_iter().flatten();
                volumes
                    .filter_map(|volume| volume.pointer_mut("/image/reference"))
                    .for_each(|image| visit(place, image));
            }
            Some(_) | None => {}
        }
        let rest = to_pod.and_then(<[_]>::split_first).filter(|(first, _)| *first == name);
        images_below(inner, rest.map(|(_, rest)| rest), visit);
    }
}

fn has_containers(fields: &serde_json::Map<String, Value>) -> bool {
    CONTAINER_LISTS.iter().any(|list| {
        fields.get(*list).and_then(Value::as_array).is_some_and(|all| all.iter().any(is_container))
    })
}

fn is_container(value: &Value) -> bool {
    has_text(value, "name") && has_text(value, "image")
}

fn has_text(value: &Value, field: &str) -> bool {
    value.get(field).and_then(Value::as_str).is_some_and(|text| !text.is_empty())
}

/// Every image reference of `objects`, once each.
pub fn images(objects: &[Object]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for object in objects {
        let mut value = object.value.clone();
        for_each_image(&object.key, &mut value, |_, image| {
            found.insert(image.as_str().unwrap_or_default().to_owned());
        });
    }
    found
}

/// Why objects are not an acceptable rendering.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    #[error("the rendering exceeds the limit of {max} {what}")]
    Limit { what: &'static str, max: usize },
    #[error(
        "{object} exceeds the limit of {max} {what}; make it smaller, or deploy it by another application"
    )]
    ObjectLimit { object: ObjectKey, what: &'static str, max: usize },
    #[error("the rendering holds {0}; it must be JSON Lines, one object a line")]
    Format(&'static str),
    #[error("line {line} of the rendering is not acceptable JSON")]
    Json {
        line: usize,
        #[source]
        source: JsonError,
    },
    #[error("{near}: `{field}` is missing or not acceptable")]
    ObjectShape { field: &'static str, near: String },
    #[error("{object} carries `{field}`, which only the API server writes; remove it")]
    ObjectMetadata { object: ObjectKey, field: String },
    #[error("{object} carries `{name}`, which is reserved; remove it")]
    ObjectReserved { object: ObjectKey, name: String },
    #[error("{object}: annotation `{name}` must be {expected}")]
    AnnotationValue { object: ObjectKey, name: String, expected: String },
    #[error(
        "{0} carries `{CONFIRM_REMOVAL_ANNOTATION}`, which has a meaning only on an AttestApplication in the \
         cluster of the hub; remove it"
    )]
    ConfirmRemoval(ObjectKey),
    #[error("{object} has a number that cannot be signed as it is written")]
    Number {
        object: ObjectKey,
        #[source]
        source: InexactNumber,
    },
    #[error("{0} appears twice")]
    Duplicate(ObjectKey),
}

impl ManifestError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Limit { .. } | Self::ObjectLimit { .. } => Reason::Limit,
            Self::Format(_) | Self::Json { .. } => Reason::ContentFormat,
            Self::ObjectShape { .. } | Self::Number { .. } | Self::AnnotationValue { .. } => {
                Reason::ObjectShape
            }
            Self::ObjectMetadata { .. } => Reason::ObjectMetadata,
            Self::ObjectReserved { .. } | Self::ConfirmRemoval(_) => Reason::ObjectReserved,
            Self::Duplicate(_) => Reason::ObjectDuplicate,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn reason(text: &str) -> &'static str {
        read(text.as_bytes()).map_or_else(|e| e.reason().as_str(), |_| "accepted")
    }

    #[test]
    fn writing_sorts_flattens_and_drops_what_tools_leave_behind() {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b", "creationTimestamp": null}, "status": {}},
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"z": "1", "a": "2"}},
        ]});

        let bytes = write(vec![list, Value::Null]).unwrap();

        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            "{\"apiVersion\":\"v1\",\"data\":{\"a\":\"2\",\"z\":\"1\"},\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"a\"}}\n\
             {\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"b\"}}\n"
        );
    }

    #[test]
    fn a_null_creation_timestamp_is_dropped_from_metadata_only() {
        let metadata = json!({"name": "a", "creationTimestamp": null});
        let empty = json!({"creationTimestamp": null});
        for (object, expected) in [
            (
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": empty}),
                json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": empty}),
            ),
            (
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
                    "spec": {"template": {"metadata": empty}}}),
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"},
                    "spec": {"template": {"metadata": {}}}}),
            ),
            (
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": metadata,
                    "spec": {"volumeClaimTemplates": [{"metadata": metadata}]}}),
                json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "a"},
                    "spec": {"volumeClaimTemplates": [{"metadata": {"name": "a"}}]}}),
            ),
        ] {
            let bytes = write(vec![object]).unwrap();

            assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), expected);
        }
    }

    #[test]
    fn what_a_producer_would_have_dropped_is_refused_in_signed_bytes() {
        let object = |extra: &str| {
            format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"a"{extra}}}}}"#)
                + "\n"
        };
        assert_eq!(reason(&object("")), "accepted");
        for (text, expected) in [
            (object(r#","uid":"x""#), "ObjectMetadata"),
            (object(r#","finalizers":[]"#), "accepted"),
            (object(r#","finalizers":["example.com/clean-up"]"#), "accepted"),
            (object(r#","finalizers":[1]"#), "ObjectShape"),
            (object(r#","finalizers":null"#), "ObjectShape"),
            (object(r#","namespace":null"#), "ObjectShape"),
            (object(r#","namespace":"""#), "ObjectShape"),
            (object(r#","creationTimestamp":null"#), "ObjectMetadata"),
            (object(r#","annotations":{"attest.continuu.ms/owner":"x"}"#), "ObjectReserved"),
            (
                object(r#","annotations":{"attest.continuu.ms/confirm-removal":"x/y"}"#),
                "ObjectReserved",
            ),
            (object(r#","annotations":{"attest.continuu.ms/wave":"-1"}"#), "accepted"),
            (object(r#","annotations":{"attest.continuu.ms/wave":"first"}"#), "ObjectShape"),
            (object(r#","annotations":{"attest.continuu.ms/orphan":"true"}"#), "accepted"),
            (object(r#","annotations":{"attest.continuu.ms/orphan":"True"}"#), "ObjectShape"),
            (object(r#","annotations":{"attest.continuu.ms/replace":"no"}"#), "ObjectShape"),
            (object(r#","labels":{"attest.continuu.ms/wave":"1"}"#), "ObjectReserved"),
            (object(r#","annotations":{"argocd.argoproj.io/sync-wave":"1"}"#), "accepted"),
            (
                object(
                    r#","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"{}"}"#,
                ),
                "ObjectReserved",
            ),
            (object(r#","namespace":"Bad""#), "ObjectShape"),
            (object("").repeat(2), "ObjectDuplicate"),
            (object("").trim_end().to_owned(), "ContentFormat"),
            (object("").replace('\n', "\r\n"), "ContentFormat"),
            ("apiVersion: v1\n".to_owned(), "ContentFormat"),
            ("\n".to_owned(), "ContentFormat"),
            (object(r#","name":"b""#), "ContentFormat"),
            (object("").replace("\"a\"", "\"a/../b\""), "ObjectShape"),
            (
                object("").replace("ConfigMap", "List").replace("}}", "},\"items\":[]}"),
                "ContentFormat",
            ),
        ] {
            assert_eq!(reason(&text), expected, "{text}");
        }
    }

    #[test]
    fn metadata_without_a_value_is_absent_and_an_empty_namespace_is_none() {
        let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {
            "name": "a", "namespace": null, "finalizers": [], "uid": "", "generateName": null,
            "ownerReferences": [], "managedFields": null, "labels": null, "annotations": {}}, "data": null});
        let mut empty = value.clone();
        empty["metadata"]["namespace"] = json!("");
        let none = json!({"apiVersion": "v1", "kind": "List", "items": null});

        let expected = "{\"apiVersion\":\"v1\",\"data\":null,\"kind\":\"ConfigMap\",\
             \"metadata\":{\"annotations\":{},\"labels\":null,\"name\":\"a\"}}\n";
        for value in [value, empty] {
            let bytes = write(vec![value, none.clone()]).unwrap();
            assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }
    }

    #[test]
    fn an_api_version_is_a_group_and_a_version_in_the_spelling_of_kubernetes() {
        let verdict = |api_version: &str, kind: &str| {
            let metadata = json!({"name": "a"});
            let value = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
            match Object::new(value) {
                Ok(object) => format!("{} {}", object.key().group, object.version()),
                Err(ManifestError::ObjectShape { field, .. }) => format!("refused: {field}"),
                Err(error) => error.to_string(),
            }
        };
        let long = format!("{}.example/v1", "a".repeat(64));
        for (api_version, kind, expected) in [
            ("v1", "ConfigMap", " v1"),
            ("apps/v1", "Deployment", "apps v1"),
            ("networking.k8s.io/v1beta1", "Ingress", "networking.k8s.io v1beta1"),
            ("3scale.example/v1alpha1", "My-Kind2", "3scale.example v1alpha1"),
            ("", "ConfigMap", "refused: apiVersion"),
            ("/v1", "ConfigMap", "refused: apiVersion"),
            ("apps/", "Deployment", "refused: apiVersion"),
            ("apps/v1/extra", "Deployment", "refused: apiVersion"),
            ("apps//v1", "Deployment", "refused: apiVersion"),
            ("Apps/v1", "Deployment", "refused: apiVersion"),
            ("apps/V1", "Deployment", "refused: apiVersion"),
            ("apps/1", "Deployment", "refused: apiVersion"),
            ("apps/v1.2", "Deployment", "refused: apiVersion"),
            ("apps./v1", "Deployment", "refused: apiVersion"),
            (".apps/v1", "Deployment", "refused: apiVersion"),
            ("a..b/v1", "Deployment", "refused: apiVersion"),
            ("-apps/v1", "Deployment", "refused: apiVersion"),
            ("apps /v1", "Deployment", "refused: apiVersion"),
            (" v1", "ConfigMap", "refused: apiVersion"),
            ("v1\n", "ConfigMap", "refused: apiVersion"),
            ("..", "ConfigMap", "refused: apiVersion"),
            ("v1%2f", "ConfigMap", "refused: apiVersion"),
            ("\u{430}pps/v1", "Deployment", "refused: apiVersion"),
            (&long, "Widget", "refused: apiVersion"),
            ("v1", "Config.Map", "refused: kind"),
            ("v1", "1Map", "refused: kind"),
            ("v1", "Config/Map", "refused: kind"),
            ("v1", "..", "refused: kind"),
        ] {
            assert_eq!(verdict(api_version, kind), expected, "{api_version:?} {kind:?}");
        }
    }

    #[test]
    fn names_follow_the_rule_of_their_kind() {
        let verdict = |api_version: &str, kind: &str, name: &str| {
            let metadata = json!({"name": name});
            let value = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
            Object::new(value).map_or_else(|e| e.reason().as_str(), |_| "accepted")
        };
        for (name, of_rbac, of_others) in [
            ("web", "accepted", "accepted"),
            ("system:web", "accepted", "accepted"),
            ("ada@example.com-view", "accepted", "ObjectShape"),
            ("CN=ada, O=team", "accepted", "ObjectShape"),
            ("a/b", "ObjectShape", "ObjectShape"),
            ("a%2fb", "ObjectShape", "ObjectShape"),
            ("a\nb", "ObjectShape", "ObjectShape"),
            ("..", "ObjectShape", "ObjectShape"),
            (".", "ObjectShape", "ObjectShape"),
        ] {
            assert_eq!(
                verdict("rbac.authorization.k8s.io/v1", "RoleBinding", name),
                of_rbac,
                "{name}"
            );
            assert_eq!(verdict("v1", "ConfigMap", name), of_others, "{name}");
        }
    }

    #[test]
    fn an_older_spoke_gets_nothing_that_it_refuses() {
        let needs = |metadata: Value| {
            let value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
            needs_manifests_2(&[Object::new(value).unwrap()]).is_some()
        };
        for (metadata, expected) in [
            (json!({"name": "a"}), false),
            (json!({"name": "a", "annotations": {"helm.sh/hook": "test"}}), false),
            (json!({"name": "a", "finalizers": ["example.com/a"]}), true),
            (json!({"name": "a", "annotations": {"argocd.argoproj.io/hook": "Sync"}}), true),
            (json!({"name": "a", "labels": {"argocd.argoproj.io/instance": "a"}}), true),
            (json!({"name": "a", "annotations": {"attest.continuu.ms/wave": "1"}}), true),
            (json!({"name": "a", "annotations": {"attest.continuu.ms/replace": "true"}}), true),
        ] {
            assert_eq!(needs(metadata.clone()), expected, "{metadata}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_signed_are_refused_by_object_and_field() {
        let with = |number: Value| json!({"apiVersion": "v1", "kind": "Any", "metadata": {"name": "a"}, "spec": {"v": number}});

        let exact = write(vec![with(json!(9_007_199_254_740_993_i64))]).unwrap();
        let error = write(vec![with(json!(u64::MAX))]).unwrap_err();

        assert!(String::from_utf8(exact).unwrap().contains(r#""v":9007199254740993"#));
        let text = crate::basics::text::error_chain(&error);
        assert!(
            text.starts_with("Any/a ") && text.contains("`spec.v`: 18446744073709551615"),
            "{text}"
        );
        assert_eq!(error.reason(), Reason::ObjectShape);
    }

    #[test]
    fn images_are_found_wherever_pods_are_written() {
        let pod = json!({
            "containers": [{"name": "a", "image": "a:1"}, {"name": "b"}, "odd"],
            "initContainers": [{"name": "c", "image": "c:1"}],
            "ephemeralContainers": [{"name": "d", "image": "d:1"}],
            "volumes": [{"name": "v", "image": {"reference": "v:1"}}, {"name": "w", "emptyDir": {}}],
        });
        let nameless = json!({"containers": [{"image": "n:1"}], "image": "no:1"});
        let found = |api_version: &str, kind: &str, rest: Value| {
            let mut value =
                json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "x"}});
            value.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            let object = Object::new(value).unwrap();
            images(&[object]).into_iter().collect::<Vec<_>>().join(" ")
        };
        let everything = "a:1 c:1 d:1 v:1";
        for (api_version, kind, body, expected) in [
            ("v1", "Pod", json!({"spec": pod}), everything),
            ("v1", "Pod", json!({"spec": nameless}), "n:1"),
            ("v1", "PodTemplate", json!({"template": {"spec": pod}}), everything),
            ("apps/v1", "Deployment", json!({"spec": {"template": {"spec": pod}}}), everything),
            (
                "batch/v1",
                "CronJob",
                json!({"spec": {"jobTemplate": {"spec": {"template": {"spec": nameless}}}}}),
                "n:1",
            ),
            ("any.example.com/v1", "Any", json!({"spec": {"template": {"spec": pod}}}), everything),
            ("any.example.com/v1", "Any", json!({"a": [{"b": [[pod]]}]}), everything),
            ("any.example.com/v1", "Any", json!({"spec": nameless}), ""),
            (
                "any.example.com/v1",
                "Any",
                json!({"spec": {"containers": [{"name": "a", "image": {"tag": "1"}}]}}),
                "",
            ),
            (
                "any.example.com/v1",
                "Any",
                json!({"spec": {"containers": {"name": "a", "image": "a:1"}}}),
                "",
            ),
            (
                "any.example.com/v1",
                "Any",
                json!({"volumes": [{"image": {"reference": "v:1"}}]}),
                "",
            ),
        ] {
            assert_eq!(found(api_version, kind, body.clone()), expected, "{kind} {body}");
        }
    }

    #[test]
    fn the_same_object_in_two_versions_of_a_group_is_a_duplicate() {
        let line = |version: &str| {
            format!(
                r#"{{"apiVersion":"autoscaling/{version}","kind":"HorizontalPodAutoscaler","metadata":{{"name":"a"}}}}"#
            ) + "\n"
        };

        assert_eq!(reason(&(line("v1") + &line("v2"))), "ObjectDuplicate");
    }
}
