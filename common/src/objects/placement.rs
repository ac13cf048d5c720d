//! The objects as they will be applied: signed bytes, the destination's namespace, the release's image digests.
//!
//! One pure function of signed input. It is both what is applied and what drift is measured against;
//! nothing else may change an object between the signature and the API server.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use data_encoding::BASE64;
use serde_json::Value;

use crate::basics::ids::{Digest, Name};
use crate::basics::reason::Reason;
use crate::basics::terms::Mode;
use crate::documents::manifest::{self, ImagePlace, Object, ObjectKey};
use crate::documents::release::{ImageDigest, Render};
use crate::objects::kinds::{self, Kinds};
use crate::trust::policy::{EffectivePolicy, GroupResource};

/// Name of the mutation that writes a digest behind an image's tag.
pub const IMAGE_PIN: &str = "image-pin";

/// Whose labels and annotations on a namespace decide what it may do and where its pods run: Kubernetes
/// itself and the platforms built on it, with all that lies below these names.
pub const RESERVED_DOMAINS: [&str; 4] = ["kubernetes.io", "k8s.io", "openshift.io", "cattle.io"];
/// Those of them that only describe.
pub const DESCRIBING_DOMAINS: [&str; 2] = ["app.kubernetes.io", "kubectl.kubernetes.io"];
/// The label by which the API server itself says a namespace's name.
pub const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Objects ready to be applied, and what people should know about them.
#[derive(Clone, Debug, PartialEq)]
pub struct Placed {
    pub objects: Vec<Object>,
    pub warnings: Vec<String>,
}

/// Relation of the objects to what runs at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intake {
    /// They are to be admitted: every rule applies.
    New,
    /// They were admitted before. Rules that are younger than that warn: what runs keeps being healed.
    Held,
}

/// Places and pins `objects`, checking each against what the destination may hold.
///
/// `kinds` is what the caller knows of the cluster; CRDs among `objects` add to it.
pub fn place_objects(
    objects: Vec<Object>,
    namespace: &Name,
    render: &Render,
    effective_policy: &EffectivePolicy,
    (mode, intake): (Mode, Intake),
    kinds: &Kinds,
) -> Result<Placed, PlacementError> {
    let kinds = with_definitions(&objects, kinds);
    let digests = digests_by_reference(&render.images)?;
    let may_pin = render.mutations.iter().any(|name| name == IMAGE_PIN);
    let pinning = Pinning { digests: &digests, may_pin, mode, intake };
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    let mut ready = Vec::new();
    for object in objects {
        let object = place_object(object, namespace, effective_policy, &kinds, &mut warnings)?;
        if !seen.insert(object.key().clone()) {
            return Err(PlacementError::Duplicate(object.key().clone()));
        }
        check_secrets(&object, effective_policy)?;
        let object = pin(as_stored(object), &pinning, &mut warnings)?;
        ready.push(object);
    }
    Ok(Placed { objects: ready, warnings })
}

/// `kinds` and those that CRDs among `objects` define.
pub fn with_definitions<'a>(objects: &[Object], kinds: &'a Kinds) -> Cow<'a, Kinds> {
    let mut known = Cow::Borrowed(kinds);
    for object in objects {
        if let Some((group, kind, knowledge)) = Kinds::defined_by(object) {
            known.to_mut().insert(&group, &kind, knowledge);
        }
    }
    known
}

fn place_object(
    object: Object,
    namespace: &Name,
    effective_policy: &EffectivePolicy,
    kinds: &Kinds,
    warnings: &mut Vec<String>,
) -> Result<Object, PlacementError> {
    let key = object.key().clone();
    // Applications of applications do not change who is trusted: each is verified by the cluster that it reaches.
    let is_application = matches!(key.kind.as_str(), "AttestApplication" | "AttestDeployment");
    if key.group == "attest.continuu.ms" && !is_application {
        return Err(PlacementError::KindNeverAllowed(key));
    }
    // The destination's own Namespace object may carry labels and annotations for it.
    let own_namespace =
        key.group.is_empty() && key.kind == "Namespace" && key.name == namespace.as_str();
    if own_namespace {
        check_reserved(&object)?;
        return Ok(without_namespace(object, warnings));
    }
    let Some(kind) = kinds.get(&key.group, &key.kind) else {
        return Err(PlacementError::KindUnknown(key));
    };
    let resource = GroupResource { group: key.group.clone(), resource: kind.plural.clone() };
    if !kind.namespaced {
        if !effective_policy.cluster_scoped.contains(&resource) {
            return Err(PlacementError::KindNotAllowed {
                object: key,
                list: "clusterScoped",
                resource,
            });
        }
        return Ok(without_namespace(object, warnings));
    }
    let allowed =
        kinds::is_workload(&key.group, &key.kind) || effective_policy.extra.contains(&resource);
    if !allowed {
        return Err(PlacementError::KindNotAllowed { object: key, list: "extra", resource });
    }
    match key.namespace.as_deref() {
        Some(written) if written != namespace.as_str() => {
            Err(PlacementError::NamespaceNotAllowed { object: key, namespace: namespace.clone() })
        }
        Some(_) => Ok(object),
        None => Ok(object.placed(namespace.as_str())),
    }
}

/// Drops the namespace of a cluster-scoped object, as the API server does.
fn without_namespace(object: Object, warnings: &mut Vec<String>) -> Object {
    let Some(written) = object.key().namespace.clone() else { return object };
    let object = object.unplaced();
    let key = object.key();
    warnings.push(format!("{key} is cluster-scoped: its namespace `{written}` is dropped"));
    object
}

fn is_reserved(label: &str) -> bool {
    let Some((domain, _)) = label.split_once('/') else { return false };
    let is_below = |reserved: &&str| {
        domain.strip_suffix(*reserved).is_some_and(|sub| sub.is_empty() || sub.ends_with('.'))
    };
    let describes = DESCRIBING_DOMAINS.contains(&domain) || label == NAME_LABEL;
    !describes && RESERVED_DOMAINS.iter().any(is_below)
}

/// Refuses labels and annotations that control a namespace's pods: only the operator of the cluster sets them.
fn check_reserved(namespace: &Object) -> Result<(), PlacementError> {
    for place in ["labels", "annotations"] {
        let all = namespace.value().pointer(&format!("/metadata/{place}"));
        let mut names = all.and_then(Value::as_object).into_iter().flat_map(|all| all.keys());
        if let Some(label) = names.find(|name| is_reserved(name)) {
            let object = namespace.key().clone();
            return Err(PlacementError::LabelNotAllowed { object, label: label.clone() });
        }
    }
    Ok(())
}

/// Tokens of service accounts are made by the API server; a rendering that brings one steals an identity.
fn check_secrets(
    object: &Object,
    effective_policy: &EffectivePolicy,
) -> Result<(), PlacementError> {
    let key = object.key();
    let secrets = GroupResource { group: String::new(), resource: "secrets".to_owned() };
    let is_secret = key.group.is_empty() && key.kind == "Secret";
    if is_secret && !effective_policy.extra.contains(&secrets) {
        return Err(PlacementError::KindNotAllowed {
            object: key.clone(),
            list: "extra",
            resource: secrets,
        });
    }
    let token = is_secret
        && object.value().get("type").and_then(Value::as_str)
            == Some("kubernetes.io/service-account-token");
    let account_with_secrets = key.group.is_empty()
        && key.kind == "ServiceAccount"
        && object.value().get("secrets").is_some_and(|secrets| !is_nothing(secrets));
    if token || account_with_secrets {
        return Err(PlacementError::KindNeverAllowed(key.clone()));
    }
    Ok(())
}

/// Returns whether a value is null or an empty list.
fn is_nothing(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// A Secret with its `stringData` in `data`, where the API server keeps it: fields that are not kept are
/// nobody's, and an edit of them would not be seen.
fn as_stored(object: Object) -> Object {
    if !object.key().group.is_empty() || object.key().kind != "Secret" {
        return object;
    }
    object.changed(|value| {
        let Some(secret) = value.as_object_mut() else { return };
        let Some(Value::Object(texts)) = secret.remove("stringData") else { return };
        let data = secret.entry("data").or_insert(Value::Null);
        if data.is_null() {
            *data = Value::Object(Default::default());
        }
        let Value::Object(data) = data else { return };
        for (name, text) in texts {
            let encoded = match text.as_str() {
                Some(text) => Value::String(BASE64.encode(text.as_bytes())),
                // The API server says what is wrong with it.
                None => text,
            };
            data.insert(name, encoded);
        }
    })
}

fn digests_by_reference(images: &[ImageDigest]) -> Result<BTreeMap<&str, Digest>, PlacementError> {
    let mut digests = BTreeMap::new();
    for image in images {
        let former = digests.insert(image.reference.as_str(), image.digest);
        if former.is_some_and(|digest| digest != image.digest) {
            return Err(PlacementError::ImageAmbiguous(image.reference.clone()));
        }
    }
    Ok(digests)
}

/// Facts by which images are pinned.
struct Pinning<'a> {
    digests: &'a BTreeMap<&'a str, Digest>,
    may_pin: bool,
    mode: Mode,
    intake: Intake,
}

impl Pinning<'_> {
    /// Returns whether an image without a digest refuses its object.
    fn refuses(&self, place: ImagePlace, image: &str) -> bool {
        match (self.mode, place, self.intake) {
            (Mode::Standard, ..) => image.is_empty(),
            (_, ImagePlace::PodShape, Intake::Held) => false,
            (_, ImagePlace::Pod, _) | (_, ImagePlace::PodShape, Intake::New) => true,
        }
    }
}

fn pin(
    object: Object,
    pinning: &Pinning<'_>,
    warnings: &mut Vec<String>,
) -> Result<Object, PlacementError> {
    let key: ObjectKey = object.key().clone();
    let mut failure = None;
    let object = object.changed(|value| {
        manifest::for_each_image(&key, value, |place, reference| {
            let image = reference.as_str().unwrap_or_default().to_owned();
            match pinned(&image, pinning.digests, pinning.may_pin) {
                Ok(Some(with_digest)) => *reference = Value::String(with_digest),
                Ok(None) => {}
                Err(Unpinned) if pinning.refuses(place, &image) => failure = Some(image),
                Err(Unpinned) => {
                    warnings.push(format!("{key}: the release names no digest for `{image}`"));
                }
            }
        });
    });
    match failure {
        Some(image) => Err(PlacementError::ImageUnpinned { object: key, image }),
        None => Ok(object),
    }
}

struct Unpinned;

/// The reference with its digest, or `None` when it needs no change.
fn pinned(
    image: &str,
    digests: &BTreeMap<&str, Digest>,
    may_pin: bool,
) -> Result<Option<String>, Unpinned> {
    match digests.get(image) {
        Some(digest) if image.contains('@') => {
            // Written with a digest in Git: the release must have seen the same.
            let written = image.rsplit_once('@').map(|(_, d)| d);
            if written == Some(digest.to_string().as_str()) { Ok(None) } else { Err(Unpinned) }
        }
        Some(digest) if may_pin => Ok(Some(format!("{image}@{digest}"))),
        Some(_) | None => Err(Unpinned),
    }
}

/// Why an object may not be applied at this destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlacementError {
    #[error("{object} is not in namespace `{namespace}`, the only one of this destination")]
    NamespaceNotAllowed { object: ObjectKey, namespace: Name },
    #[error(
        "{object} needs a line in the cluster's trust policy: \
         applications[].kinds.{list}: [{{group: \"{}\", resource: {}}}], then `attest trust install`",
        .resource.group, .resource.resource
    )]
    KindNotAllowed { object: ObjectKey, list: &'static str, resource: GroupResource },
    #[error("{0} may never be deployed: it would change who is trusted")]
    KindNeverAllowed(ObjectKey),
    #[error("{object} may not set label `{label}`: only the cluster's operator may")]
    LabelNotAllowed { object: ObjectKey, label: String },
    #[error("{0} is of a kind that neither the cluster nor this rendering defines")]
    KindUnknown(ObjectKey),
    #[error("{0} appears twice once placed in the destination's namespace")]
    Duplicate(ObjectKey),
    #[error(
        "{object} uses image `{image}`, for which the release names no digest; \
         give attest.yaml's images[] entry a `from:` step, or write the digest in Git"
    )]
    ImageUnpinned { object: ObjectKey, image: String },
    #[error("the release names two digests for image `{0}`")]
    ImageAmbiguous(String),
}

impl PlacementError {
    /// Returns the reason to show.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NamespaceNotAllowed { .. } => Reason::NamespaceNotAllowed,
            Self::KindNotAllowed { .. } | Self::KindNeverAllowed(_) => Reason::KindNotAllowed,
            Self::LabelNotAllowed { .. } => Reason::LabelNotAllowed,
            Self::KindUnknown(_) => Reason::KindUnknown,
            Self::Duplicate(_) => Reason::ObjectDuplicate,
            Self::ImageUnpinned { .. } => Reason::ImageUnpinned,
            Self::ImageAmbiguous(_) => Reason::ImageAmbiguous,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn string_data_of_a_secret_is_applied_where_the_api_server_keeps_it() {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "words"},
            "data": {"old": "b2xk", "word": "b2xk"}, "stringData": {"word": "swordfish"},
        });
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "words"},
            "stringData": {"word": "swordfish"},
        });

        let mut without_data = secret.clone();
        without_data["data"] = Value::Null;

        let stored = as_stored(Object::new(secret).unwrap());
        let alone = as_stored(Object::new(without_data).unwrap());
        let other = as_stored(Object::new(config.clone()).unwrap());

        assert_eq!(stored.value()["data"], json!({"old": "b2xk", "word": "c3dvcmRmaXNo"}));
        assert_eq!(stored.value().get("stringData"), None);
        assert_eq!(alone.value()["data"], json!({"word": "c3dvcmRmaXNo"}));
        assert_eq!(*other.value(), config);
    }

    #[test]
    fn an_image_without_a_digest_refuses_what_is_new_and_never_what_was_admitted_before() {
        let object = |api_version: &str, kind: &str| {
            let pod = json!({"containers": [{"name": "web", "image": "web:latest"}]});
            Object::new(
                json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "web"},
                "spec": {"template": {"spec": pod}}}),
            )
            .unwrap()
        };
        let digests = BTreeMap::new();
        for (kind, mode, intake, expected) in [
            ("Deployment", Mode::Strict, Intake::New, "ImageUnpinned"),
            ("Deployment", Mode::Strict, Intake::Held, "ImageUnpinned"),
            ("Deployment", Mode::Standard, Intake::New, "1 warnings"),
            ("Any", Mode::Strict, Intake::New, "ImageUnpinned"),
            ("Any", Mode::Strict, Intake::Held, "1 warnings"),
            ("Any", Mode::Standard, Intake::New, "1 warnings"),
        ] {
            let group = if kind == "Any" { "any.example.com/v1" } else { "apps/v1" };
            let pinning = Pinning { digests: &digests, may_pin: true, mode, intake };
            let mut warnings = Vec::new();

            let pinned = pin(object(group, kind), &pinning, &mut warnings);

            let found = match pinned {
                Ok(_) => format!("{} warnings", warnings.len()),
                Err(error) => error.reason().to_string(),
            };
            assert_eq!(found, expected, "{kind} {mode:?} {intake:?}");
        }
        let digest = Digest::of(b"image");
        let digests = BTreeMap::from([("web:latest", digest)]);
        let pinning =
            Pinning { digests: &digests, may_pin: true, mode: Mode::Strict, intake: Intake::New };
        let pinned = pin(object("any.example.com/v1", "Any"), &pinning, &mut Vec::new()).unwrap();
        let image = pinned.value().pointer("/spec/template/spec/containers/0/image");
        assert_eq!(image, Some(&json!(format!("web:latest@{digest}"))));
    }

    fn resource(group: &str, resource: &str) -> GroupResource {
        GroupResource { group: group.to_owned(), resource: resource.to_owned() }
    }

    /// A policy that allows workloads only.
    fn policy() -> EffectivePolicy {
        EffectivePolicy {
            minimum_mode: Mode::Strict,
            required: BTreeSet::new(),
            keys: Vec::new(),
            cluster_scoped: BTreeSet::new(),
            extra: BTreeSet::new(),
            last_good: 1,
            remove_allowed: true,
            prune_percent_max: 100,
            adopt: false,
            namespaces_max: 1,
            scan_age_hours_max: 168,
            accounts_namespace: "attest-applications".to_owned(),
        }
    }

    #[test]
    fn applications_deploy_applications_where_the_policy_lists_them_and_never_a_trust_policy() {
        let group = "attest.continuu.ms";
        let listed = ["attestapplications", "attestdeployments", "attesttrustpolicies"];
        let listing = EffectivePolicy {
            cluster_scoped: [resource(group, "attesttrustpolicies")].into(),
            extra: listed.map(|plural| resource(group, plural)).into(),
            ..policy()
        };
        for (kind, policy, expected) in [
            ("AttestApplication", &listing, "placed"),
            ("AttestDeployment", &listing, "placed"),
            ("AttestApplication", &policy(), "needs a line"),
            ("AttestTrustPolicy", &listing, "may never be deployed"),
        ] {
            let object = json!({
                "apiVersion": "attest.continuu.ms/v1", "kind": kind, "metadata": {"name": "web"},
            });
            let (object, namespace) = (Object::new(object).unwrap(), Name::new("shop").unwrap());
            let mut warnings = Vec::new();

            let placed =
                place_object(object, &namespace, policy, &Kinds::built_in(), &mut warnings);

            let found = placed.map_or_else(|error| error.to_string(), |_| "placed".to_owned());
            assert!(found.contains(expected), "{kind}: {found}");
        }
    }

    #[test]
    fn a_namespace_on_a_cluster_scoped_object_is_dropped_with_a_warning() {
        let object =
            Object::new(json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
            "metadata": {"name": "urgent", "namespace": "shop"}, "value": 1}))
            .unwrap();
        let resource = resource("scheduling.k8s.io", "priorityclasses");
        let policy = EffectivePolicy { cluster_scoped: [resource].into(), ..policy() };
        let mut warnings = Vec::new();

        let namespace = Name::new("shop").unwrap();
        let placed = place_object(object, &namespace, &policy, &Kinds::built_in(), &mut warnings);

        let placed = placed.unwrap();
        assert_eq!(placed.key().namespace, None);
        assert_eq!(placed.value()["metadata"], json!({"name": "urgent"}));
        let expected = "PriorityClass.scheduling.k8s.io/urgent is cluster-scoped: its namespace `shop` is dropped";
        assert_eq!(warnings, [expected]);
    }

    #[test]
    fn what_only_describes_a_namespace_is_not_reserved() {
        for (label, reserved) in [
            ("pod-security.kubernetes.io/enforce", true),
            ("scheduler.alpha.kubernetes.io/node-selector", true),
            ("openshift.io/sa.scc.uid-range", true),
            ("field.cattle.io/projectId", true),
            ("x.k8s.io/a", true),
            ("kubernetes.io/enforce-mountable-secrets", true),
            ("kubernetes.io/metadata.name", false),
            ("app.kubernetes.io/part-of", false),
            ("notkubernetes.io/a", false),
            ("team", false),
            ("example.com/owner", false),
        ] {
            assert_eq!(is_reserved(label), reserved, "{label}");
        }
    }
}
