//! Release of `spec.replicas` to an autoscaler: a second field manager keeps the live value, so that it is not reset.

use attest_common::objects::autoscaling;
use attest_common::objects::projection::FIELD_MANAGER;
use serde_json::Value;

use super::client::{ApiServer, Apply, As};
use super::error::ApiError;

/// Field manager that keeps the replicas after the spoke has released them, until the autoscaler sets them.
const REPLICAS_MANAGER: &str = "attest-spoke-replicas";
/// Most attempts while the autoscaler changes the value concurrently.
const ATTEMPTS_MAX: u32 = 5;

/// Lets another field manager own the live number of replicas if the spoke owns it. An apply without the field would
/// otherwise reset it.
///
/// # Errors
/// [`ApiError`].
pub(super) async fn release(
    api: &ApiServer,
    path: &str,
    user: As<'_>,
    object: &Value,
) -> Result<(), ApiError> {
    let mut attempt = 1;
    loop {
        let Some(live) = api.get_optional(path).await? else { return Ok(()) };
        let Some(count) = autoscaling::replicas(&live).filter(|_| is_ours_alone(&live)) else {
            return Ok(());
        };
        let kept = autoscaling::replicas_only(object, count);
        match api.apply_by(REPLICAS_MANAGER, path, user, (&kept, Apply::Unforced)).await {
            Err(error) if error.is_conflict() && attempt < ATTEMPTS_MAX => attempt += 1,
            other => return other.map(drop),
        }
    }
}

/// Returns whether the spoke's applies own the replicas of a live object, and no other manager does.
fn is_ours_alone(live: &Value) -> bool {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    let mut owners = entries
        .into_iter()
        .flatten()
        .filter(|entry| entry.pointer("/fieldsV1/f:spec/f:replicas").is_some());
    let first = owners.next().and_then(|entry| entry.get("manager")?.as_str());
    first == Some(FIELD_MANAGER) && owners.next().is_none()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn replicas_are_released_only_while_the_spoke_alone_owns_them() {
        let owner =
            |manager: &str| json!({"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}});
        let other = json!({"manager": "kubectl", "fieldsV1": {"f:spec": {"f:paused": {}}}});
        for (entries, expected) in [
            (vec![owner(FIELD_MANAGER), other.clone()], true),
            (vec![owner(FIELD_MANAGER), owner(REPLICAS_MANAGER)], false),
            (vec![owner("kube-controller-manager"), other.clone()], false),
            (vec![other], false),
        ] {
            let live = json!({"metadata": {"managedFields": entries}});
            assert_eq!(is_ours_alone(&live), expected, "{live}");
        }
    }
}
