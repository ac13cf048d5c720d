//! Objects that cannot be changed and are deleted and made again. Pure.
//!
//! A finished Job is replaced when its template changes, unless its author forbids it. Other objects are replaced only if
//! their author asks for it by `attest.continuu.ms/replace`, and objects whose content cannot be restored never.

use attest_common::basics::ids::Digest;
use attest_common::documents::manifest::Object;
use attest_common::objects::health::{self, Health};
use attest_common::objects::kinds::is_irreplaceable;
use serde_json::Value;

use super::client::path_segment;

/// Longest name under which a replacement is tried, in characters.
const TRIAL_NAME_CHARACTERS_MAX: usize = 52;
/// Digits that end such a name.
const TRIAL_NAME_DIGITS: usize = 8;

/// Returns whether an object may be replaced at some time.
pub(super) fn is_of_a_kind(object: &Object) -> bool {
    !is_irreplaceable(object.key()) && object.may_be_replaced().unwrap_or_else(|| is_job(object))
}

fn is_job(object: &Object) -> bool {
    let key = object.key();
    (key.group.as_str(), key.kind.as_str()) == ("batch", "Job")
}

/// Returns whether an object may be replaced now, as it is.
pub(super) fn is_replaceable(object: &Object, live: &Value) -> bool {
    let key = object.key();
    let health = health::verdict(&key.group, &key.kind, live).health;
    let has_ended = matches!(health, Health::Current | Health::Failed);
    is_of_a_kind(object)
        && (object.may_be_replaced() == Some(true) || (is_job(object) && has_ended))
}

/// Returns path and body of an object under a name that no other has, to try it beside the existing one.
pub(super) fn under_another_name(path: &str, object: &Object, mut body: Value) -> (String, Value) {
    let name = &object.key().name;
    let digest = Digest::of(body.to_string().as_bytes()).hex();
    let digits: String = digest.chars().take(TRIAL_NAME_DIGITS).collect();
    let head: String = name.chars().take(TRIAL_NAME_CHARACTERS_MAX).collect();
    let trial = format!("{}-{digits}", head.trim_end_matches(['-', '.']));
    if let Some(metadata) = body.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.insert("name".to_owned(), trial.as_str().into());
    }
    let collection = path.rsplit_once('/').map_or(path, |(collection, _)| collection);
    (format!("{collection}/{}", path_segment(&trial)), body)
}

#[cfg(test)]
mod tests {
    use attest_common::documents::annotations::REPLACE_ANNOTATION;
    use serde_json::json;

    use super::*;

    fn object(api_version: &str, kind: &str, replace: Option<bool>) -> Object {
        let annotations = replace.map(|replace| json!({REPLACE_ANNOTATION: replace.to_string()}));
        let metadata = json!({"name": "a", "namespace": "shop", "annotations": annotations});
        Object::new(json!({"apiVersion": api_version, "kind": kind, "metadata": metadata})).unwrap()
    }

    #[test]
    fn a_finished_job_is_replaced_and_any_other_object_only_where_its_author_asks() {
        let finished = json!({"status": {"conditions": [{"type": "Complete", "status": "True"}]}});
        let failed = json!({"status": {"conditions": [{"type": "Failed", "status": "True"}]}});
        let runs = json!({"status": {"active": 1}});
        let (asks, forbids) = (Some(true), Some(false));
        for (api_version, kind, replace, live, expected) in [
            ("batch/v1", "Job", None, &finished, true),
            ("batch/v1", "Job", None, &failed, true),
            ("batch/v1", "Job", None, &runs, false),
            ("batch/v1", "Job", asks, &runs, true),
            ("batch/v1", "Job", forbids, &finished, false),
            ("apps/v1", "StatefulSet", None, &finished, false),
            ("apps/v1", "StatefulSet", asks, &runs, true),
            ("apps/v1", "StatefulSet", forbids, &runs, false),
            ("v1", "PersistentVolumeClaim", asks, &runs, false),
            ("v1", "Namespace", asks, &runs, false),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition", asks, &runs, false),
        ] {
            let replaceable = is_replaceable(&object(api_version, kind, replace), live);
            assert_eq!(replaceable, expected, "{kind} {replace:?} {live}");
        }
    }

    #[test]
    fn a_replacement_is_tried_beside_the_existing_object() {
        let job = object("batch/v1", "Job", None);

        let path = "/apis/batch/v1/namespaces/shop/jobs/a";
        let (path, value) = under_another_name(path, &job, job.value().clone());

        let name = value["metadata"]["name"].as_str().unwrap();
        assert!(name.starts_with("a-") && name.len() == 10, "{name}");
        assert_eq!(path, format!("/apis/batch/v1/namespaces/shop/jobs/{name}"));
    }
}
