//! The declared image change of a release, with the meaning of kustomize's `images`.
//!
//! Entries are applied one after the other, so a later one sees what an earlier one wrote. Where images
//! are in an object is `attest_common`'s knowledge.

use attest_common::documents::manifest::{Object, for_each_image};
use serde_json::Value;

use crate::ImageChange;

/// `object` with every change applied; `matched` gets true for each entry that found its image.
pub(super) fn apply(object: Object, changes: &[ImageChange], matched: &mut [bool]) -> Object {
    let key = object.key().clone();
    object.changed(|value| {
        for_each_image(&key, value, |_, reference| {
            let Value::String(image) = reference else { return };
            for (change, matched) in changes.iter().zip(matched.iter_mut()) {
                if let Some(changed) = changed(image, change) {
                    *image = changed;
                    *matched = true;
                }
            }
        });
    })
}

/// The new reference, or nothing when the entry is about another image.
fn changed(image: &str, change: &ImageChange) -> Option<String> {
    let rest = image.strip_prefix(change.name.as_str())?;
    let (tag, digest) = split(rest)?;
    let name = change.new_name.as_deref().unwrap_or(&change.name);
    let (tag, digest) = match (change.new_tag.as_deref(), change.digest.as_deref()) {
        (None, None) => (tag, digest),
        (new_tag, new_digest) => (new_tag, new_digest),
    };
    let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
    Some(format!("{name}{tag}{digest}"))
}

/// Splits the text after an image's name: nothing, `:tag`, `@sha256:…` or both. Other text belongs to another name.
fn split(rest: &str) -> Option<(Option<&str>, Option<&str>)> {
    let (tag, digest) = match rest.split_once('@') {
        Some((tag, digest)) => (tag, Some(digest)),
        None => (rest, None),
    };
    let plain = |text: &str| {
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.{}-".contains(&byte))
    };
    let tag = match tag {
        "" => None,
        tag => Some(tag.strip_prefix(':').filter(|tag| plain(tag))?),
    };
    if digest.is_some_and(|digest| !digest.strip_prefix("sha256:").is_some_and(plain)) {
        return None;
    }
    Some((tag, digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_change_as_kustomize_changes_them() {
        let change =
            |name: &str, new_name: Option<&str>, tag: Option<&str>, digest: Option<&str>| {
                ImageChange {
                    name: name.to_owned(),
                    new_name: new_name.map(str::to_owned),
                    new_tag: tag.map(str::to_owned),
                    digest: digest.map(str::to_owned),
                    from: None,
                }
            };
        let tag = change("myapp", None, Some("v2"), None);
        let both = change("myapp", None, Some("v2"), Some("sha256:ab"));
        let table = [
            ("myapp", &tag, Some("myapp:v2")),
            ("myapp:v1", &tag, Some("myapp:v2")),
            ("myapp:v1@sha256:cd", &tag, Some("myapp:v2")),
            ("myapp-extra:v1", &tag, None),
            ("other/myapp:v1", &tag, None),
            ("myapp/other:v1", &tag, None),
            ("myapp:5000/other", &tag, None),
            ("myapp:v1", &both, Some("myapp:v2@sha256:ab")),
            ("myapp:v1", &change("myapp", None, None, Some("sha256:ab")), Some("myapp@sha256:ab")),
            ("myapp:v1", &change("myapp", Some("r:5/x"), None, None), Some("r:5/x:v1")),
            ("r:5000/a:v1", &change("r:5000/a", None, Some("v2"), None), Some("r:5000/a:v2")),
        ];

        for (image, change, expected) in table {
            assert_eq!(changed(image, change).as_deref(), expected, "{image}");
        }
    }
}
