//! Evaluates NetworkPolicies against a table of flows, as the documentation of Kubernetes defines them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use attest_tests::helm::Helm;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{named, rendered, repository};

const TABLE: &str = include_str!("flows.txt");
const DOCUMENTED: &str = include_str!("product-10.1.yaml");

/// The other end of a connection.
enum Peer {
    /// A pod in a namespace with these labels.
    Namespace(BTreeMap<String, String>),
    /// An address outside the cluster.
    Address,
}

impl Peer {
    fn parse(text: &str) -> Self {
        let labels = |name: &str| {
            BTreeMap::from([("kubernetes.io/metadata.name".to_owned(), name.to_owned())])
        };
        match text.split_once(':').unwrap() {
            ("namespace", name) => match name.strip_prefix("labelled=") {
                Some(label) => {
                    let (key, value) = label.split_once('=').unwrap();
                    let mut all = labels("labelled");
                    all.insert(key.to_owned(), value.to_owned());
                    Self::Namespace(all)
                }
                None => Self::Namespace(labels(name)),
            },
            ("address", _) => Self::Address,
            (other, _) => panic!("unknown peer {other}"),
        }
    }

    fn matches(&self, peer: &NetworkPolicyPeer) -> bool {
        assert!(peer.ip_block.is_none() && peer.pod_selector.is_none(), "not evaluated here");
        let selector = peer.namespace_selector.as_ref().unwrap();
        assert!(selector.match_expressions.is_none(), "not evaluated here");
        match self {
            Self::Namespace(labels) => {
                let wanted = selector.match_labels.iter().flatten();
                wanted.into_iter().all(|(key, value)| labels.get(key) == Some(value))
            }
            Self::Address => false,
        }
    }
}

/// Returns whether a policy that applies to the hub's pod lets a connection pass.
fn allows(policy: &NetworkPolicy, direction: &str, peer: &Peer, port: &str) -> bool {
    let spec = policy.spec.as_ref().unwrap();
    type Rule<'a> = (Option<&'a Vec<NetworkPolicyPeer>>, Option<&'a Vec<NetworkPolicyPort>>);
    let rules: Vec<Rule<'_>> = if direction == "ingress" {
        let rules = spec.ingress.iter().flatten();
        rules.map(|rule| (rule.from.as_ref(), rule.ports.as_ref())).collect()
    } else {
        let rules = spec.egress.iter().flatten();
        rules.map(|rule| (rule.to.as_ref(), rule.ports.as_ref())).collect()
    };
    rules.iter().any(|(peers, ports)| {
        let from =
            peers.is_none_or(|peers| peers.is_empty() || peers.iter().any(|p| peer.matches(p)));
        let to =
            ports.is_none_or(|ports| ports.is_empty() || ports.iter().any(|p| is_port(p, port)));
        from && to
    })
}

fn is_port(allowed: &NetworkPolicyPort, wanted: &str) -> bool {
    let protocol = allowed.protocol.as_deref().unwrap_or("TCP");
    let number = match &allowed.port {
        Some(IntOrString::Int(number)) => number.to_string(),
        Some(IntOrString::String(name)) => panic!("port {name} is not a number"),
        None => return wanted.starts_with(protocol),
    };
    format!("{protocol}/{number}") == wanted
}

#[test]
fn the_network_policy_lets_every_needed_flow_pass_and_the_documented_one_does_not() {
    let Some(helm) = Helm::find("helm").unwrap() else { return };
    let objects = rendered(&helm, &[]);
    let policy = named(&objects, "NetworkPolicy", "attest-controller-netpol").clone();
    let policy: NetworkPolicy = serde_json::from_value(policy).unwrap();
    let documented: NetworkPolicy = serde_saphyr::from_str(DOCUMENTED).unwrap();
    for policy in [&policy, &documented] {
        let types = policy.spec.as_ref().unwrap().policy_types.clone().unwrap();
        assert_eq!(types, ["Ingress", "Egress"]);
    }
    let mut flows = 0;
    for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
        let [direction, peer, port, ours, theirs] = line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            panic!("not a flow: {line}");
        };
        let peer = Peer::parse(peer);

        assert_eq!(allows(&policy, direction, &peer, port), ours == "yes", "{line}");
        assert_eq!(allows(&documented, direction, &peer, port), theirs == "yes", "{line}");
        flows += 1;
    }
    assert!(flows > 15, "{flows}");

    // Webhooks add their port.
    let objects = rendered(&helm, &["--set", "webhooks.enabled=true"]);
    let policy = named(&objects, "NetworkPolicy", "attest-controller-netpol").clone();
    let policy: NetworkPolicy = serde_json::from_value(policy).unwrap();
    assert!(allows(&policy, "ingress", &Peer::Address, "TCP/8082"));
}

#[test]
fn the_ports_of_the_hub_are_those_of_its_services_and_policies() {
    let Some(helm) = Helm::find("helm").unwrap() else { return };
    let objects = rendered(&helm, &["--set", "webhooks.enabled=true"]);
    let deployment = named(&objects, "Deployment", "attest-gitops-controller");
    let ports = deployment.pointer("/spec/template/spec/containers/0/ports").unwrap();
    let names: Vec<&str> =
        ports.as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap()).collect();
    for object in objects.iter().filter(|object| object["kind"] == "Service") {
        for port in object["spec"]["ports"].as_array().unwrap() {
            assert!(names.contains(&port["targetPort"].as_str().unwrap()), "{object:#}");
        }
    }
    let page = fs::read_to_string(Path::new(&repository()).join("docs/install-in-kubernetes.md"));
    let page = page.unwrap();
    for name in [
        "attest-gitops-api",
        "attest-gitops-spokes",
        "attest-gitops-metrics",
        "attest-gitops-webhooks",
    ] {
        assert!(page.contains(name), "{name}");
    }
}
