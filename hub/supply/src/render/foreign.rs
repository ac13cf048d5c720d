//! Annotations and labels by which authors instruct other tools, and what to write here instead. Pure.
//!
//! None of them refuses a rendering. Each is named when a release is signed.

mod table;

use std::fmt;

use attest_common::documents::annotations::{OWN_PREFIX, REPLACE_ANNOTATION};
use attest_common::documents::manifest::{Object, ObjectKey};
use attest_common::objects::kinds::is_irreplaceable;
use serde_json::Value;

use self::table::{ROWS, Row};

/// Most annotations of other tools that are named for one rendering.
pub const FOREIGN_NAMED_MAX: usize = 100;
/// Fields of metadata that hold what authors write for tools.
const SECTIONS: [&str; 2] = ["annotations", "labels"];
/// Longest value that is shown, in characters.
const VALUE_CHARACTERS_MAX: usize = 60;

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
    for section in SECTIONS {
        let entries = object.value().pointer(&format!("/metadata/{section}"));
        let entries = entries.and_then(Value::as_object);
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
    let fields = object.value().as_object().into_iter().flatten();
    fields
        .filter(|(field, _)| *field != "metadata")
        .for_each(|(_, inner)| add_misplaced(object.key(), inner, &mut found));
    found
}

/// Adds annotations of this project that stand inside an object, as in the template of its pods.
fn add_misplaced(object: &ObjectKey, value: &Value, found: &mut Vec<ForeignAnnotation>) {
    match value {
        Value::Object(fields) => {
            for (field, inner) in fields {
                let entries = inner.as_object().filter(|_| SECTIONS.contains(&field.as_str()));
                for (name, value) in entries.into_iter().flatten() {
                    if name.starts_with(OWN_PREFIX) {
                        let value = value.as_str().unwrap_or_default();
                        found.push(ForeignAnnotation {
                            object: object.clone(),
                            name: name.clone(),
                            value: value.chars().take(VALUE_CHARACTERS_MAX).collect(),
                            effect: "only `metadata.annotations` of the object itself is read; move it there",
                        });
                    }
                }
                add_misplaced(object, inner, found);
            }
        }
        Value::Array(items) => {
            items.iter().for_each(|item| add_misplaced(object, item, found));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
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
    (is_irreplaceable(key) && object.may_be_replaced() == Some(true)).then(|| ForeignAnnotation {
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
    fn an_annotation_of_this_project_inside_an_object_is_named() {
        let template = |annotations: Value| {
            let spec = json!({"template": {"metadata": {"annotations": annotations}}});
            let value = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": spec});
            let found = foreign_annotations(&[Object::new(value).unwrap()]);
            found.iter().map(ToString::to_string).collect::<Vec<_>>()
        };

        let lines = template(json!({"attest.continuu.ms/wave": "1", "helm.sh/hook": "test"}));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with("Deployment.apps/a: `attest.continuu.ms/wave: 1` has no effect")
        );
        assert!(template(json!({"example.com/a": "1"})).is_empty());
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
