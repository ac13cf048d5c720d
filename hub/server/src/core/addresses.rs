//! The addresses at which spokes reach the hub: what is configured, and what the hub's Services have.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

/// Known addresses, each `HOST:PORT`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpokeAddresses {
    /// From the configuration of the hub.
    pub configured: Option<String>,
    /// Address of the load balancer.
    pub load_balancer: Option<String>,
    /// Address of the Service within the hub's own cluster.
    pub cluster_ip: Option<String>,
}

impl SpokeAddresses {
    /// Returns the address for spokes of other clusters.
    pub fn external(&self) -> Option<&str> {
        self.configured.as_deref().or(self.load_balancer.as_deref())
    }

    /// Returns the address for the spoke of the hub's own cluster.
    pub fn internal(&self) -> Option<&str> {
        self.cluster_ip.as_deref().or_else(|| self.external())
    }
}

/// The current addresses.
#[derive(Debug)]
pub struct SpokeAddressesCell {
    current: watch::Sender<SpokeAddresses>,
    /// Peers come from addresses that they share: of nodes, of a load balancer, or of a port-forward.
    are_peers_shared: AtomicBool,
}

impl Default for SpokeAddressesCell {
    fn default() -> Self {
        Self {
            current: watch::Sender::new(SpokeAddresses::default()),
            are_peers_shared: AtomicBool::new(false),
        }
    }
}

impl SpokeAddressesCell {
    pub(crate) fn get(&self) -> SpokeAddresses {
        self.current.borrow().clone()
    }

    /// Stops limiting connections by the address of the peer, which would lock out a whole fleet behind one address.
    pub(crate) fn share_peers(&self) {
        self.are_peers_shared.store(true, Ordering::Relaxed);
    }

    /// Returns the address by which connections of a peer are limited.
    pub(crate) fn limited_by(&self, peer: IpAddr) -> Option<IpAddr> {
        (!self.are_peers_shared.load(Ordering::Relaxed)).then_some(peer)
    }

    /// Changes the addresses; readers are woken if they differ.
    pub(crate) fn update(&self, change: impl FnOnce(&mut SpokeAddresses)) {
        self.current.send_if_modified(|current| {
            let before = current.clone();
            change(current);
            *current != before
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<SpokeAddresses> {
        self.current.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_fleet_behind_one_address_is_not_limited_by_it() {
        let cell = SpokeAddressesCell::default();
        let peer = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(cell.limited_by(peer), Some(peer));

        cell.share_peers();

        assert_eq!(cell.limited_by(peer), None);
    }

    fn present(text: &str) -> Option<String> {
        (!text.is_empty()).then(|| text.to_owned())
    }

    #[test]
    fn the_configured_address_takes_precedence_except_in_the_hubs_own_cluster() {
        for (configured, load_balancer, cluster_ip, external, internal) in [
            ("", "", "", "", ""),
            ("", "", "10.96.0.9:4433", "", "10.96.0.9:4433"),
            ("", "203.0.113.1:4433", "10.96.0.9:4433", "203.0.113.1:4433", "10.96.0.9:4433"),
            ("hub:4433", "203.0.113.1:4433", "", "hub:4433", "hub:4433"),
            ("hub:4433", "203.0.113.1:4433", "10.96.0.9:4433", "hub:4433", "10.96.0.9:4433"),
        ] {
            let addresses = SpokeAddresses {
                configured: present(configured),
                load_balancer: present(load_balancer),
                cluster_ip: present(cluster_ip),
            };

            assert_eq!(addresses.external().unwrap_or_default(), external, "{addresses:?}");
            assert_eq!(addresses.internal().unwrap_or_default(), internal, "{addresses:?}");
        }
    }
}
