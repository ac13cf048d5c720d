//! Annotations and labels by which authors instruct other tools, and what to write here instead. Pure.
//!
//! None of them refuses a rendering. Each is named when a release is signed.

use std::fmt;

use attest_common::documents::annotations::REPLACE_ANNOTATION;
use attest_common::documents::manifest::{Object, ObjectKey};
use attest_common::objects::kinds::is_irreplaceable;
use serde_json::Value;

/// Most annotations of other tools that are named for one rendering.
pub const FOREIGN_NAMED_MAX: usize = 100;
/// Longest value that is shown, in characters.
const VALUE_CHARACTERS_MAX: usize = 60;

/// One row: the name, the value that it is about (empty for all), and the effect elsewhere and here.
type Row = (&'static str, &'static str, &'static str);

/// The first row that fits decides. A name that ends in `*` is a prefix. A value is compared with each item of a
/// list that is separated by commas, without regard to case.
const ROWS: &[Row] = &[
    // Argo CD.
    (
        "argocd.argoproj.io/sync-wave",
        "",
        "Argo CD would apply the object in this wave; use `attest.continuu.ms/wave`",
    ),
    ("argocd.argoproj.io/hook", "Skip", "Argo CD would not apply the object; here it is applied"),
    (
        "argocd.argoproj.io/hook",
        "",
        "Argo CD would run the object as a hook; here it is applied with the others and kept: order it by \
         `attest.continuu.ms/wave`",
    ),
    (
        "argocd.argoproj.io/hook-delete-policy",
        "",
        "Argo CD would delete the hook by this policy; here the object is kept while it is in Git, and a finished Job \
         whose template changes is made again",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Prune=false",
        "Argo CD would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Prune=confirm",
        "Argo CD would ask before deleting the object; to keep it, use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Delete=false",
        "Argo CD would keep the object when the application is deleted; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Delete=confirm",
        "Argo CD would ask before deleting the object; to keep it, use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Replace=true",
        "Argo CD would replace the object instead of applying it; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Force=true",
        "Argo CD would delete the object and make it again; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "ServerSideApply=true",
        "every object is applied server-side here; remove it",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "Validate=false",
        "Argo CD would not validate the object; here the API server always does",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "SkipDryRunOnMissingResource=true",
        "Argo CD would skip the dry run while the kind is missing; here objects wait for a definition of the same \
         rendering",
    ),
    (
        "argocd.argoproj.io/sync-options",
        "PruneLast=true",
        "objects that leave Git are always deleted last here; remove it",
    ),
    ("argocd.argoproj.io/sync-options", "", "only Argo CD has this option"),
    (
        "argocd.argoproj.io/compare-options",
        "",
        "Argo CD would compare the object differently; here the fields that are in Git are compared",
    ),
    (
        "argocd.argoproj.io/ignore-healthcheck",
        "",
        "Argo CD would not count the health of the object; here it counts",
    ),
    ("argocd.argoproj.io/*", "", "only Argo CD reads it"),
    // Flux.
    (
        "kustomize.toolkit.fluxcd.io/prune",
        "disabled",
        "Flux would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "kustomize.toolkit.fluxcd.io/force",
        "enabled",
        "Flux would delete the object and make it again where it cannot be changed; use \
         `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "kustomize.toolkit.fluxcd.io/reconcile",
        "disabled",
        "Flux would neither apply nor delete the object; here it is applied",
    ),
    (
        "kustomize.toolkit.fluxcd.io/ssa",
        "Ignore",
        "Flux would not apply the object; here it is applied",
    ),
    (
        "kustomize.toolkit.fluxcd.io/ssa",
        "IfNotPresent",
        "Flux would apply the object only while it does not exist; here it is kept as it is in Git",
    ),
    (
        "kustomize.toolkit.fluxcd.io/ssa",
        "Merge",
        "Flux would keep fields that others added; this is what happens here to fields that are not in Git",
    ),
    (
        "kustomize.toolkit.fluxcd.io/substitute",
        "disabled",
        "variables are not substituted here; remove it",
    ),
    ("kustomize.toolkit.fluxcd.io/*", "", "only Flux reads it"),
    (
        "helm.toolkit.fluxcd.io/driftDetection",
        "disabled",
        "Flux would not correct drift of the object; here drift is corrected when `selfHeal` is on",
    ),
    ("helm.toolkit.fluxcd.io/*", "", "only Flux reads it"),
    // Helm.
    (
        "helm.sh/hook",
        "test",
        "Helm would run the object by `helm test` only; here it is applied with the others and kept",
    ),
    (
        "helm.sh/hook",
        "crd-install",
        "Helm would apply the object before the others; here definitions always are",
    ),
    (
        "helm.sh/hook",
        "",
        "Helm would run the object as a hook; here it is applied with the others and kept: order it by \
         `attest.continuu.ms/wave`",
    ),
    ("helm.sh/hook-weight", "", "Helm would order hooks by it; use `attest.continuu.ms/wave`"),
    (
        "helm.sh/hook-delete-policy",
        "",
        "Helm would delete the hook by this policy; here the object is kept while it is in Git, and a finished Job \
         whose template changes is made again",
    ),
    ("helm.sh/hook*", "", "only Helm reads it"),
    (
        "helm.sh/resource-policy",
        "keep",
        "Helm would not delete the object; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    // Kustomize, kpt and cli-utils.
    (
        "config.kubernetes.io/depends-on",
        "",
        "kpt would apply the object after those that it names; use `attest.continuu.ms/wave`",
    ),
    (
        "config.kubernetes.io/local-config",
        "true",
        "kustomize and kpt would not apply the object; here it is applied",
    ),
    (
        "client.lifecycle.config.k8s.io/deletion",
        "detach",
        "kpt would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "cli-utils.sigs.k8s.io/on-remove",
        "keep",
        "kpt would not delete the object when it leaves Git; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    // Rancher Fleet.
    ("fleet.cattle.io/*", "", "only Rancher Fleet reads it"),
    // kapp.
    (
        "kapp.k14s.io/change-group*",
        "",
        "kapp would order objects by groups; use `attest.continuu.ms/wave`",
    ),
    (
        "kapp.k14s.io/change-rule*",
        "",
        "kapp would order objects by rules; use `attest.continuu.ms/wave`",
    ),
    (
        "kapp.k14s.io/delete-strategy",
        "orphan",
        "kapp would not delete the object; use `attest.continuu.ms/orphan: \"true\"`",
    ),
    (
        "kapp.k14s.io/update-strategy",
        "fallback-on-replace",
        "kapp would replace the object where it cannot be changed; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "kapp.k14s.io/update-strategy",
        "always-replace",
        "kapp would replace the object at each change; use `attest.continuu.ms/replace: \"true\"`",
    ),
    (
        "kapp.k14s.io/update-strategy",
        "skip",
        "kapp would leave the existing object as it is; here it is kept as it is in Git",
    ),
    ("kapp.k14s.io/*", "", "only kapp reads it"),
];

/// An annotation or label that has another effect elsewhere than here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignAnnotation {
    pub object: ObjectKey,
    pub name: String,
    /// The value, or the item of it that the effect is about.
    pub value: String,
    /// The effect in the other tool, and the replacement.
    pub effect: &'static str,
}

impl fmt::Display for ForeignAnnotation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { object, name, value, effect } = self;
        write!(formatter, "{object}: `{name}: {value}` has no effect: {effect}")
    }
}

/// Returns the annotations and labels of objects that have another effect elsewhere than here.
pub fn foreign_annotations(objects: &[Object]) -> Vec<ForeignAnnotation> {
    objects.iter().flat_map(of_object).collect()
}

fn of_object(object: &Object) -> Vec<ForeignAnnotation> {
    let mut found = Vec::new();
    for section in ["/metadata/annotations", "/metadata/labels"] {
        let entries = object.value().pointer(section).and_then(Value::as_object);
        for (name, value) in entries.into_iter().flatten() {
            let value = value.as_str().unwrap_or_default();
            found.extend(effects(name, value).into_iter().map(|(item, effect)| {
                ForeignAnnotation {
                    object: object.key().clone(),
                    name: name.clone(),
                    value: item.chars().take(VALUE_CHARACTERS_MAX).collect(),
                    effect,
                }
            }));
        }
    }
    found.extend(replace_without_effect(object));
    found
}

/// Returns the effects of an annotation, each with the part of its value that it is about.
fn effects<'a>(name: &str, value: &'a str) -> Vec<(&'a str, &'static str)> {
    let rows: Vec<&Row> = ROWS.iter().filter(|(pattern, ..)| fits(pattern, name)).collect();
    let items: Vec<&str> = value.split(',').map(str::trim).collect();
    let mut found: Vec<(&str, &'static str)> = Vec::new();
    for item in items {
        let exact = rows.iter().find(|(_, expected, _)| expected.eq_ignore_ascii_case(item));
        let row = exact.or_else(|| rows.iter().find(|(_, expected, _)| expected.is_empty()));
        let Some((_, expected, effect)) = row else { continue };
        let shown = if expected.is_empty() && !name.ends_with("-options") { value } else { item };
        if !found.contains(&(shown, *effect)) {
            found.push((shown, *effect));
        }
    }
    found
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

/// Objects whose content cannot be restored are never replaced, also if their author asks for it.
fn replace_without_effect(object: &Object) -> Option<ForeignAnnotation> {
    let key = object.key();
    (is_irreplaceable(key) && object.may_be_replaced()).then(|| ForeignAnnotation {
        object: key.clone(),
        name: REPLACE_ANNOTATION.to_owned(),
        value: "true".to_owned(),
        effect: "an object of this kind is never replaced, because its content cannot be restored",
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shown(kind: &str, name: &str, value: &str) -> Vec<String> {
        let metadata = json!({"name": "a", "annotations": {name: value}});
        let value = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
        let found = foreign_annotations(&[Object::new(value).unwrap()]);
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_annotation_names_its_effect_elsewhere_and_what_to_write_here() {
        for (name, value, parts) in [
            ("argocd.argoproj.io/sync-wave", "3", vec!["`attest.continuu.ms/wave`"]),
            ("argocd.argoproj.io/hook", "PreSync", vec!["run the object as a hook"]),
            ("argocd.argoproj.io/hook", "Skip", vec!["would not apply"]),
            (
                "argocd.argoproj.io/sync-options",
                "Prune=false, Replace=true,Other=1",
                vec![
                    "`attest.continuu.ms/orphan",
                    "`attest.continuu.ms/replace",
                    "`argocd.argoproj.io/sync-options: Other=1`",
                ],
            ),
            ("argocd.argoproj.io/tracking-id", "a", vec!["only Argo CD reads it"]),
            ("kustomize.toolkit.fluxcd.io/prune", "Disabled", vec!["attest.continuu.ms/orphan"]),
            ("kustomize.toolkit.fluxcd.io/prune", "other", vec!["only Flux reads it"]),
            ("kustomize.toolkit.fluxcd.io/ssa", "IfNotPresent", vec!["does not exist"]),
            ("helm.toolkit.fluxcd.io/driftDetection", "disabled", vec!["drift"]),
            ("helm.sh/hook", "test", vec!["`helm test`"]),
            (
                "helm.sh/hook",
                "pre-install,pre-upgrade",
                vec!["`helm.sh/hook: pre-install,pre-upgrade`"],
            ),
            ("helm.sh/hook-weight", "-5", vec!["attest.continuu.ms/wave"]),
            ("helm.sh/hook-delete-policy", "hook-succeeded", vec!["kept while it is in Git"]),
            ("helm.sh/hook-output-log-policy", "hook-failed", vec!["only Helm reads it"]),
            ("helm.sh/resource-policy", "keep", vec!["attest.continuu.ms/orphan"]),
            (
                "config.kubernetes.io/depends-on",
                "apps/namespaces/a/Deployment/b",
                vec!["attest.continuu.ms/wave"],
            ),
            ("fleet.cattle.io/bundle-id", "a", vec!["Rancher Fleet"]),
            (
                "kapp.k14s.io/change-rule.db",
                "upsert after upserting db",
                vec!["attest.continuu.ms/wave"],
            ),
            ("kapp.k14s.io/nonce", "", vec!["only kapp reads it"]),
            ("helm.sh/chart", "web-1.2.3", vec![]),
            ("example.com/hook", "test", vec![]),
            ("attest.continuu.ms/wave", "1", vec![]),
        ] {
            let lines = shown("ConfigMap", name, value);
            assert_eq!(lines.len(), parts.len(), "{name}: {value}: {lines:?}");
            for (line, part) in lines.iter().zip(parts) {
                assert!(line.starts_with("ConfigMap/a: `"), "{line}");
                assert!(line.contains(name) && line.contains(part), "{line}");
            }
        }
    }

    #[test]
    fn labels_count_and_replace_is_named_where_it_has_no_effect() {
        let object = |kind: &str, metadata: Value| {
            Object::new(json!({"apiVersion": "v1", "kind": kind, "metadata": metadata})).unwrap()
        };
        let label = json!({"name": "a", "labels": {"argocd.argoproj.io/instance": "web"}});
        let replace = json!({"name": "a", "annotations": {REPLACE_ANNOTATION: "true"}});

        assert_eq!(foreign_annotations(&[object("ConfigMap", label)]).len(), 1);
        assert_eq!(foreign_annotations(&[object("ConfigMap", replace.clone())]), []);
        assert_eq!(foreign_annotations(&[object("PersistentVolumeClaim", replace)]).len(), 1);
    }

    #[test]
    fn a_row_after_a_more_general_one_would_never_decide() {
        for (index, (pattern, expected, _)) in ROWS.iter().enumerate() {
            let mut before = ROWS[..index].iter();
            let hidden = before.any(|(earlier, other, _)| {
                let covers = fits(earlier, pattern.trim_end_matches('*'));
                covers && (other == expected && (earlier == pattern || earlier.ends_with('*')))
            });
            assert!(!hidden, "{pattern} {expected}");
        }
    }
}
