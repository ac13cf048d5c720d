//! Annotations of this project that authors write on the objects of a rendering.

use serde_json::Value;

/// Prefix of labels and annotations that only this project defines.
pub const OWN_PREFIX: &str = "attest.continuu.ms/";
/// An object that cannot be changed is deleted and made again, if the value is `true`; also a finished Job is not, if it
/// is `false`.
pub const REPLACE_ANNOTATION: &str = "attest.continuu.ms/replace";
/// An object that leaves Git, or whose application is removed, is released and not deleted, if the value is `true`.
pub const ORPHAN_ANNOTATION: &str = "attest.continuu.ms/orphan";
/// Place of an object in the order of applying: an integer of at most [`WAVE_MAX`] and at least `-WAVE_MAX`.
pub const WAVE_ANNOTATION: &str = "attest.continuu.ms/wave";
/// Destinations whose removal is confirmed: only of an AttestApplication in the hub's cluster.
pub const CONFIRM_REMOVAL_ANNOTATION: &str = "attest.continuu.ms/confirm-removal";
/// Largest wave, and with a minus sign the smallest.
pub const WAVE_MAX: i16 = 1_000;

/// Returns whether a rendering may hold this annotation.
pub(super) fn is_for_authors(name: &str) -> bool {
    [REPLACE_ANNOTATION, ORPHAN_ANNOTATION, WAVE_ANNOTATION].contains(&name)
}

/// Returns the values that an annotation may have, if `value` is none of them.
pub(super) fn expected_instead(name: &str, value: &Value) -> Option<String> {
    let text = value.as_str();
    match name {
        REPLACE_ANNOTATION | ORPHAN_ANNOTATION => {
            let is_valid = matches!(text, Some("true" | "false"));
            (!is_valid).then(|| "\"true\" or \"false\"".to_owned())
        }
        WAVE_ANNOTATION => {
            let is_valid = text.and_then(parse_wave).is_some();
            (!is_valid).then(|| format!("a quoted integer from -{WAVE_MAX} to {WAVE_MAX}"))
        }
        _ => None,
    }
}

/// Returns the wave of an object; 0 if its author gives none.
pub(super) fn wave(object: &Value) -> i16 {
    text(object, WAVE_ANNOTATION).and_then(parse_wave).unwrap_or_default()
}

/// Returns the value of an annotation of an object that is `true` or `false`.
pub(super) fn flag(object: &Value, name: &str) -> Option<bool> {
    text(object, name)?.parse().ok()
}

fn text<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(name)?.as_str()
}

fn parse_wave(text: &str) -> Option<i16> {
    text.parse().ok().filter(|wave| (-WAVE_MAX..=WAVE_MAX).contains(wave))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_value_without_a_meaning_is_not_accepted() {
        for (name, value, accepted) in [
            (WAVE_ANNOTATION, json!("0"), true),
            (WAVE_ANNOTATION, json!("-5"), true),
            (WAVE_ANNOTATION, json!("1000"), true),
            (WAVE_ANNOTATION, json!("1001"), false),
            (WAVE_ANNOTATION, json!("-1001"), false),
            (WAVE_ANNOTATION, json!("99999999999"), false),
            (WAVE_ANNOTATION, json!("1.5"), false),
            (WAVE_ANNOTATION, json!(" 1"), false),
            (WAVE_ANNOTATION, json!(""), false),
            (WAVE_ANNOTATION, json!(1), false),
            (ORPHAN_ANNOTATION, json!("true"), true),
            (ORPHAN_ANNOTATION, json!("false"), true),
            (ORPHAN_ANNOTATION, json!("yes"), false),
            (ORPHAN_ANNOTATION, json!("True"), false),
            (ORPHAN_ANNOTATION, json!(true), false),
            (REPLACE_ANNOTATION, json!("true"), true),
            (REPLACE_ANNOTATION, json!(""), false),
        ] {
            let refused = expected_instead(name, &value);
            assert_eq!(refused.is_none(), accepted, "{name}: {value} {refused:?}");
        }
    }

    #[test]
    fn a_wave_is_read_from_the_annotations_of_the_object_itself() {
        let with = |annotations: Value| json!({"metadata": {"annotations": annotations}});

        assert_eq!(wave(&with(json!({WAVE_ANNOTATION: "-3"}))), -3);
        assert_eq!(wave(&with(json!({}))), 0);
        assert_eq!(wave(&json!({"metadata": {"labels": {WAVE_ANNOTATION: "3"}}})), 0);
        for (value, expected) in [("true", Some(true)), ("false", Some(false)), ("yes", None)] {
            let object = with(json!({ORPHAN_ANNOTATION: value}));
            assert_eq!(flag(&object, ORPHAN_ANNOTATION), expected);
        }
        assert_eq!(flag(&with(json!({})), ORPHAN_ANNOTATION), None);
    }
}
