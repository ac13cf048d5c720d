//! Conversion of `spec.progressiveDelivery` and of label selectors. Every error names the field at fault.

use std::collections::BTreeSet;

use attest_common::basics::ids::Name;
use attest_common::basics::labels::{self, LabelCondition, LabelError, Selector};
use attest_common::basics::reason::Reason;
use serde_json::Value;

use super::crd;
use super::durations;
use super::known::{Known, LowerError, feature, parse_name};
use crate::core::store::records::{Destination, ProgressiveDelivery, Share, Stage};
use crate::rollouts::stages::{self, StageError, StagedPlace, WEIGHT_FULL};

/// Path of the stages in a manifest.
const AT: &str = "spec.progressiveDelivery";
/// `progressDeadline` of a stage without one, in milliseconds.
const PROGRESS_DEADLINE_DEFAULT_MS: u64 = 60 * 60 * 1000;
/// `maxConcurrency` of a stage without one.
const CONCURRENCY_DEFAULT: Share = Share::Percent(25);

/// Reads the stages and checks that they fit the destinations. `None` when they are absent or not enabled.
///
/// # Errors
/// The first field that is wrong, or that is not available yet.
pub(super) fn lower(
    written: Option<&crd::ProgressiveDelivery>,
    destinations: &[Destination],
    known: &Known,
) -> Result<Option<ProgressiveDelivery>, LowerError> {
    let Some(written) = written else { return Ok(None) };
    let stages = written.stages.iter().enumerate();
    let stages: Vec<Stage> = stages
        .map(|(index, one)| stage(&format!("{AT}.stages[{index}]"), one))
        .collect::<Result<_, _>>()?;
    if !written.enabled {
        return Ok(None);
    }
    if stages.is_empty() {
        let message = "is empty; list stages, or remove spec.progressiveDelivery";
        return Err(LowerError::new(Reason::FieldInvalid, format!("{AT}.stages"), message));
    }
    let places: Vec<StagedPlace> =
        destinations.iter().map(|destination| staged_place(destination, known)).collect();
    stages::resolve(&stages, &places).map_err(|error| staged(&error))?;
    check_available(written)?;
    Ok(Some(ProgressiveDelivery { stages }))
}

fn staged(error: &StageError) -> LowerError {
    LowerError::new(error.reason(), format!("{AT}.{}", error.field()), error.to_string())
}

fn staged_place(destination: &Destination, known: &Known) -> StagedPlace {
    let cluster = known.clusters.get(&destination.cluster).cloned().unwrap_or_default();
    StagedPlace {
        cluster: destination.cluster.clone(),
        namespace: destination.namespace.clone(),
        stage: destination.stage.clone(),
        labels: cluster.labels,
        environment: cluster.environment,
    }
}

/// Rejects what stages cannot do yet: ignoring a requested safeguard would be unsafe.
fn check_available(written: &crd::ProgressiveDelivery) -> Result<(), LowerError> {
    for (index, stage) in written.stages.iter().enumerate() {
        let at = format!("{AT}.stages[{index}]");
        let is_partial = stage.weight.as_ref().is_some_and(|weight| weight.as_u64() != Some(100));
        if is_partial {
            let message =
                "a weight below 100 is not available in this version; remove the stage, or set 100";
            let field = format!("{at}.weight");
            return Err(LowerError::new(Reason::FeatureNotAvailable, field, message));
        }
        if stage.success_criteria.is_some() {
            let field = format!("{at}.successCriteria");
            return Err(feature(&field, "successCriteria"));
        }
    }
    Ok(())
}

fn stage(at: &str, written: &crd::Stage) -> Result<Stage, LowerError> {
    let name = parse_name(&format!("{at}.name"), &written.name)?.to_string();
    let clusters = written.clusters.iter().flatten().enumerate();
    let clusters: BTreeSet<Name> = clusters
        .map(|(index, cluster)| parse_name(&format!("{at}.clusters[{index}]"), cluster))
        .collect::<Result<_, _>>()?;
    let selected = written.cluster_selector.as_ref();
    let selector =
        selected.map(|written| selector(&format!("{at}.clusterSelector"), written)).transpose()?;
    if written.unreachable.as_ref().is_some_and(|written| written != "Wait") {
        let message =
            "must be Wait; `attest gitops rollout skip` passes over a cluster that stays away";
        return Err(invalid(format!("{at}.unreachable"), message));
    }
    Ok(Stage {
        weight: weight(at, written.weight.as_ref())?,
        soak_ms: match &written.duration {
            None => 0,
            Some(value) => duration(&format!("{at}.duration"), value)?,
        },
        concurrency: share_at(
            &format!("{at}.maxConcurrency"),
            written.max_concurrency.as_ref(),
            CONCURRENCY_DEFAULT,
        )?,
        failures: share_at(
            &format!("{at}.maxFailures"),
            written.max_failures.as_ref(),
            Share::Count(0),
        )?,
        approval: written.approval.as_ref().is_some_and(|approval| approval.required),
        progress_deadline_ms: match &written.progress_deadline {
            None => Some(PROGRESS_DEADLINE_DEFAULT_MS),
            Some(Value::String(text)) if text == "None" => None,
            Some(value) => Some(duration(&format!("{at}.progressDeadline"), value)?),
        },
        name,
        clusters,
        selector,
    })
}

fn invalid(field: String, message: impl Into<String>) -> LowerError {
    LowerError::new(Reason::FieldInvalid, field, message)
}

/// Returns the weight; 100 when absent.
fn weight(at: &str, written: Option<&Value>) -> Result<u8, LowerError> {
    let Some(written) = written else { return Ok(WEIGHT_FULL) };
    let number = written.as_u64().and_then(|number| u8::try_from(number).ok());
    number.filter(|weight| (1..=WEIGHT_FULL).contains(weight)).ok_or_else(|| {
        let message = format!("is {written}; must be a whole number from 1 to 100");
        LowerError::new(Reason::StageWeightRange, format!("{at}.weight"), message)
    })
}

fn duration(field: &str, written: &Value) -> Result<u64, LowerError> {
    durations::parse(written)
        .map_err(|error| LowerError::new(Reason::DurationInvalid, field, error.to_string()))
}

fn share_at(field: &str, written: Option<&Value>, absent: Share) -> Result<Share, LowerError> {
    let Some(written) = written else { return Ok(absent) };
    share(written).ok_or_else(|| {
        let message = "must be a whole number, or a percentage such as \"25%\"";
        invalid(field.to_owned(), message)
    })
}

/// Reads a number, or a percentage from 0% to 100%.
fn share(written: &Value) -> Option<Share> {
    let text = match written {
        Value::Number(number) => return number.as_u64().map(Share::Count),
        Value::String(text) => text,
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
    };
    match text.strip_suffix('%') {
        Some(percent) => {
            let percent: u8 = percent.parse().ok().filter(|percent| *percent <= 100)?;
            (format!("{percent}%") == *text).then_some(Share::Percent(percent))
        }
        None => text.parse().ok().map(Share::Count),
    }
}

/// Reads a label selector.
///
/// # Errors
/// The first key, operator or value that is wrong.
pub(super) fn selector(at: &str, written: &crd::ClusterSelector) -> Result<Selector, LowerError> {
    labels::check(&written.match_labels)
        .map_err(|error| refused(format!("{at}.matchLabels"), &error))?;
    let equal = written.match_labels.iter();
    let mut conditions: Vec<LabelCondition> =
        equal.map(|(key, value)| LabelCondition::In(key.clone(), [value.clone()].into())).collect();
    for (index, expression) in written.match_expressions.iter().enumerate() {
        conditions.push(condition(&format!("{at}.matchExpressions[{index}]"), expression)?);
    }
    if conditions.is_empty() {
        let message = "is empty; set matchLabels or matchExpressions";
        return Err(invalid(at.to_owned(), message));
    }
    if conditions.len() > labels::CONDITIONS_MAX {
        return Err(refused(at.to_owned(), &LabelError::TooMany(labels::CONDITIONS_MAX)));
    }
    Ok(Selector { conditions })
}

fn refused(field: String, error: &LabelError) -> LowerError {
    LowerError::new(error.reason(), field, error.to_string())
}

fn condition(at: &str, written: &crd::MatchExpression) -> Result<LabelCondition, LowerError> {
    let crd::MatchExpression { key, operator, values } = written;
    labels::check_key(key).map_err(|error| refused(format!("{at}.key"), &error))?;
    values
        .iter()
        .try_for_each(|value| labels::check_value(value))
        .map_err(|error| refused(format!("{at}.values"), &error))?;
    let (key, set) = (key.clone(), values.iter().cloned().collect());
    match (operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(LabelCondition::In(key, set)),
        ("NotIn", false) => Ok(LabelCondition::NotIn(key, set)),
        ("Exists", true) => Ok(LabelCondition::Exists(key)),
        ("DoesNotExist", true) => Ok(LabelCondition::DoesNotExist(key)),
        ("In" | "NotIn", true) => Err(invalid(format!("{at}.values"), "is empty; list values")),
        ("Exists" | "DoesNotExist", false) => {
            Err(invalid(format!("{at}.values"), format!("must be absent with {operator}")))
        }
        (other, _) => {
            let message = format!("is `{other}`; must be In, NotIn, Exists or DoesNotExist");
            Err(invalid(format!("{at}.operator"), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::known::KnownCluster;
    use super::super::lower::lower;
    use super::*;

    fn known() -> Known {
        let cluster = |environment: &str, labels: &[(&str, &str)]| KnownCluster {
            labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            environment: Some(environment.into()),
        };
        let name = |text: &str| Name::new(text).unwrap();
        Known {
            clusters: [
                (name("staging"), cluster("staging", &[])),
                (name("prod-eu"), cluster("production", &[("env", "prod")])),
                (name("prod-us"), cluster("production", &[("env", "prod")])),
            ]
            .into(),
            ..Known::default()
        }
    }

    fn manifest(delivery: &Value) -> Value {
        json!({
            "apiVersion": "attest.continuu.ms/v1", "kind": "AttestApplication", "metadata": {"name": "web"},
            "spec": {
                "source": {"repoUrl": "https://git.example/web", "path": "k8s"},
                "destinations": [
                    {"cluster": "staging", "namespace": "app"},
                    {"clusterSelector": {"matchLabels": {"env": "prod"}}, "namespace": "app"},
                ],
                "progressiveDelivery": delivery,
            }
        })
    }

    /// The example of the product's documentation; its canary stage can be left out.
    fn printed(stages: &[usize]) -> Value {
        let all = [
            json!({"name": "staging", "weight": 100, "duration": "10m"}),
            json!({"name": "canary", "weight": 10, "duration": "30m",
                "successCriteria": {"errorRate": "< 1%", "responseTime": "< 200ms"}}),
            json!({"name": "production", "weight": 100, "duration": "0"}),
        ];
        let stages: Vec<&Value> = stages.iter().map(|index| &all[*index]).collect();
        json!({"enabled": true, "stages": stages})
    }

    #[test]
    fn the_printed_example_works_without_its_canary() {
        let application = lower(&manifest(&printed(&[0, 2])), &known()).unwrap();

        let stages = application.delivery.unwrap().stages;
        assert_eq!(application.destinations.len(), 3);
        assert_eq!(stages.iter().map(|stage| stage.soak_ms).collect::<Vec<_>>(), [600_000, 0]);
        assert_eq!(stages[0].progress_deadline_ms, Some(PROGRESS_DEADLINE_DEFAULT_MS));

        let refused = lower(&manifest(&printed(&[0, 1, 2])), &known()).unwrap_err();
        assert_eq!(refused.field, "spec.progressiveDelivery.stages[1].weight");
        assert_eq!(refused.reason, Reason::FeatureNotAvailable);
    }

    #[test]
    fn the_example_of_the_page_about_rollouts_is_read() {
        let page = include_str!("../../../../docs/rollouts.md");
        let text = page.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
        let written: Value = serde_saphyr::from_str(text).unwrap();

        let delivery = lower(&written, &known()).unwrap().delivery.unwrap();

        assert_eq!(delivery.stages.len(), 2);
        assert!(delivery.stages[1].approval && delivery.stages[0].soak_ms == 600_000);
    }

    #[test]
    fn stages_that_are_not_enabled_are_checked_and_have_no_effect() {
        let mut delivery = printed(&[0, 2]);
        delivery["enabled"] = json!(false);
        assert_eq!(lower(&manifest(&delivery), &known()).unwrap().delivery, None);
        delivery["stages"][0]["duration"] = json!("10");
        assert_eq!(
            lower(&manifest(&delivery), &known()).unwrap_err().reason,
            Reason::DurationInvalid
        );
    }

    #[test]
    fn what_is_wrong_with_a_stage_is_named_by_its_field() {
        for (field, value, reason) in [
            ("name", json!("Staging"), Reason::NameInvalid),
            ("name", json!("production"), Reason::StageDuplicate),
            ("name", json!("stagging"), Reason::StageEmpty),
            ("weight", json!(0), Reason::StageWeightRange),
            ("weight", json!(101), Reason::StageWeightRange),
            ("weight", json!("100"), Reason::StageWeightRange),
            ("duration", json!("5"), Reason::DurationInvalid),
            ("clusters", json!(["moon"]), Reason::StageClusterUnknown),
            ("clusterSelector", json!({}), Reason::FieldInvalid),
            ("maxConcurrency", json!("101%"), Reason::FieldInvalid),
            ("maxFailures", json!(-1), Reason::FieldInvalid),
            ("progressDeadline", json!("never"), Reason::DurationInvalid),
            ("unreachable", json!({"skipAfter": "2h"}), Reason::FieldInvalid),
            ("unreachable", json!("Skip"), Reason::FieldInvalid),
            ("successCriteria", json!({"errorRate": "< 1%"}), Reason::FeatureNotAvailable),
            ("limit", json!("10%"), Reason::FieldUnknown),
        ] {
            let mut delivery = printed(&[0, 2]);
            delivery["stages"][0][field] = value.clone();
            let error = lower(&manifest(&delivery), &known()).unwrap_err();
            assert_eq!(error.reason, reason, "{field}: {value}: {error}");
            let index = usize::from(reason == Reason::StageDuplicate);
            let expected = format!("spec.progressiveDelivery.stages[{index}].{field}");
            assert_eq!(error.field, expected, "{value}");
        }
        let empty =
            lower(&manifest(&json!({"enabled": true, "stages": []})), &known()).unwrap_err();
        assert_eq!(empty.field, "spec.progressiveDelivery.stages");
        let partial = json!({"enabled": true, "stages": [{"name": "staging"}]});
        let partial = lower(&manifest(&partial), &known()).unwrap_err();
        assert_eq!(partial.reason, Reason::DestinationNeverFull);
        assert!(partial.message.contains("prod-eu/app, prod-us/app"), "{partial}");
    }

    #[test]
    fn a_selector_is_read_as_in_kubernetes() {
        let mut written = manifest(&printed(&[0, 2]));
        let expressions = json!({"matchExpressions": [
            {"key": "env", "operator": "In", "values": ["prod", "live"]}, {"key": "retired", "operator": "DoesNotExist"},
        ]});
        written["spec"]["destinations"][1]["clusterSelector"] = expressions;
        assert_eq!(lower(&written, &known()).unwrap().destinations.len(), 3);
        for (expression, field) in [
            (json!({"key": "env", "operator": "Equals"}), "operator"),
            (json!({"key": "-", "operator": "Exists"}), "key"),
            (json!({"key": "env", "operator": "In"}), "values"),
            (json!({"key": "env", "operator": "Exists", "values": ["a"]}), "values"),
        ] {
            let selector = json!({"matchExpressions": [expression]});
            written["spec"]["destinations"][1]["clusterSelector"] = selector;
            let error = lower(&written, &known()).unwrap_err();
            let at = "spec.destinations[1].clusterSelector.matchExpressions[0]";
            assert_eq!(error.field, format!("{at}.{field}"));
        }
    }
}
