//! Writes the ConfigMap that `attest hub login` reads.

use std::sync::Arc;
use std::time::Duration;

use attest_common::basics::backoff::{Backoff, Jitter};
use attest_common::basics::text::error_chain;
use attest_documents::login::{CONFIG_MAP, HubFacts};
use attest_runtime::clock::random;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::core::Core;
use crate::kubernetes::{FIELD_MANAGER, HubKubernetes, request_reason};

/// Delays between attempts.
const WRITE_RETRY: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60)).with_jitter(Jitter::Full);

/// Keeps the ConfigMap equal to `facts` and the current address for spokes, until the hub stops. Writes only changes.
pub(crate) async fn publish(core: Arc<Core>, kubernetes: HubKubernetes, facts: HubFacts) {
    let maps: Api<ConfigMap> = Api::namespaced(kubernetes.client.clone(), &kubernetes.namespace);
    let mut addresses = core.addresses.subscribe();
    let mut failures = 0;
    loop {
        let spoke_address = addresses.borrow_and_update().external().map(str::to_owned);
        let facts = HubFacts { spoke_address, ..facts.clone() };
        let pause = match write(&maps, &facts).await {
            Ok(()) => {
                failures = 0;
                None
            }
            Err(error) => {
                tracing::warn!(
                    reason = request_reason(&error).as_str(),
                    "Failed to write ConfigMap {CONFIG_MAP}: {}",
                    error_chain(&error)
                );
                let pause = WRITE_RETRY.delay(failures, random());
                failures += 1;
                Some(pause)
            }
        };
        tokio::select! {
            () = core.stop.cancelled() => return,
            () = sleep_or_wait(pause) => {}
            changed = addresses.changed() => if changed.is_err() { return },
        }
    }
}

/// Sleeps for a pause; without one, never ends.
async fn sleep_or_wait(pause: Option<Duration>) {
    match pause {
        Some(pause) => tokio::time::sleep(pause).await,
        None => std::future::pending().await,
    }
}

/// Writes the facts, unless the ConfigMap has them already.
async fn write(maps: &Api<ConfigMap>, facts: &HubFacts) -> Result<(), kube::Error> {
    let data = facts.to_data();
    let found = maps.get_opt(CONFIG_MAP).await?;
    if found.and_then(|found| found.data).is_some_and(|found| found == data) {
        return Ok(());
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP}, "data": data,
    });
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    maps.patch(CONFIG_MAP, &parameters, &Patch::Apply(map)).await.map(drop)
}
