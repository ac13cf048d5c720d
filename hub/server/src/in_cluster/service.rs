//! Follows the Service for spokes: its address in the cluster, and that of its load balancer.

use std::pin::pin;
use std::sync::Arc;

use attest_common::basics::reason::Reason;
use attest_common::basics::text::error_chain;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::watch_object;

use crate::core::Core;
use crate::core::addresses::SpokeAddresses;
use crate::kubernetes::HubKubernetes;

/// Service for spokes, in the hub's namespace.
pub(crate) const SPOKES_SERVICE: &str = "attest-gitops-spokes";
/// Cluster IP of a Service without one.
const HEADLESS: &str = "None";

/// Keeps the hub's addresses equal to those of its Service, until the hub stops.
pub(crate) async fn follow_service(core: Arc<Core>, kubernetes: HubKubernetes) {
    let services: Api<Service> = Api::namespaced(kubernetes.client.clone(), &kubernetes.namespace);
    let mut versions = pin!(watch_object(services, SPOKES_SERVICE).default_backoff());
    loop {
        let version = tokio::select! {
            () = core.stop.cancelled() => return,
            version = versions.next() => version,
        };
        match version {
            Some(Ok(service)) => {
                core.addresses.update(|addresses| set_addresses(addresses, service.as_ref()));
            }
            // The stream backs off and reconnects.
            Some(Err(error)) => tracing::debug!(
                reason = Reason::ApiServerUnreachable.as_str(),
                "Failed to watch Service {SPOKES_SERVICE}: {}",
                error_chain(&error)
            ),
            None => return,
        }
    }
}

/// Sets the addresses of a Service; without one there are none.
fn set_addresses(addresses: &mut SpokeAddresses, service: Option<&Service>) {
    let port =
        service.and_then(|service| Some(service.spec.as_ref()?.ports.as_ref()?.first()?.port));
    addresses.cluster_ip = port.and_then(|port| Some(host_and_port(cluster_ip(service?)?, port)));
    addresses.load_balancer =
        port.and_then(|port| Some(host_and_port(load_balancer_host(service?)?, port)));
}

fn cluster_ip(service: &Service) -> Option<&str> {
    let address = service.spec.as_ref()?.cluster_ip.as_deref();
    address.filter(|address| !address.is_empty() && *address != HEADLESS)
}

fn load_balancer_host(service: &Service) -> Option<&str> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    ingress.hostname.as_deref().or(ingress.ip.as_deref())
}

fn host_and_port(host: &str, port: i32) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_service_has_an_address_in_the_cluster_and_one_of_its_load_balancer() {
        let ready = json!([{"ip": "203.0.113.7"}]);
        let named = json!([{"hostname": "lb.example", "ip": "203.0.113.7"}]);
        for (cluster_ip, ingress, internal, external) in [
            (json!("10.96.0.7"), json!([]), Some("10.96.0.7:4433"), None),
            (json!("10.96.0.7"), ready.clone(), Some("10.96.0.7:4433"), Some("203.0.113.7:4433")),
            (json!("fd00::7"), named, Some("[fd00::7]:4433"), Some("lb.example:4433")),
            (json!("None"), json!([]), None, None),
            (Value::Null, ready, None, Some("203.0.113.7:4433")),
        ] {
            let service: Service = serde_json::from_value(json!({
                "spec": {"clusterIP": cluster_ip, "ports": [{"port": 4433, "protocol": "UDP"}]},
                "status": {"loadBalancer": {"ingress": ingress}},
            }))
            .unwrap();
            let mut addresses = SpokeAddresses::default();

            set_addresses(&mut addresses, Some(&service));

            assert_eq!(addresses.cluster_ip.as_deref(), internal, "{service:?}");
            assert_eq!(addresses.load_balancer.as_deref(), external, "{service:?}");
            set_addresses(&mut addresses, None);
            assert_eq!(addresses, SpokeAddresses::default());
        }
    }
}
