//! Limits unauthenticated connections, in total and per address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, MutexGuard};

use attest_common::basics::locked::Locked;

/// Bits of an IPv6 address that its owner can choose freely.
const IPV6_OWN_BITS: u32 = 64;

/// Bounds concurrent connections, in total and per address.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    permits_max: usize,
    permits_per_address_max: usize,
    taken: Locked<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// Permit for one connection, released when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Arc<ConnectionLimiter>,
    address: Option<IpAddr>,
}

impl ConnectionLimiter {
    /// Creates a limiter with at most `permits_max` permits in total and `permits_per_address_max` per address.
    pub(crate) fn new(permits_max: usize, permits_per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { permits_max, permits_per_address_max, taken: Locked::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }

    /// Returns whether more than half of the permits are taken. Addresses must then be validated, so that datagrams with
    /// forged senders take at most about half of the permits.
    pub(crate) fn requires_address_validation(&self) -> bool {
        self.taken().all.saturating_mul(2) > self.permits_max
    }

    /// Returns a permit if one is free. Only a `validated` address is counted, so that forged senders cannot exhaust the
    /// permits of an address.
    pub(crate) fn acquire(self: &Arc<Self>, validated: Option<IpAddr>) -> Option<Permit> {
        let address = validated.map(network);
        let mut taken = self.taken();
        if taken.all >= self.permits_max {
            return None;
        }
        if let Some(address) = address {
            let of_address = taken.by_address.entry(address).or_insert(0);
            if *of_address >= self.permits_per_address_max {
                return None;
            }
            *of_address += 1;
        }
        taken.all += 1;
        drop(taken);
        Some(Permit { limiter: self.clone(), address })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.limiter.taken();
        taken.all = taken.all.saturating_sub(1);
        let Some(address) = self.address else { return };
        let left = taken.by_address.get_mut(&address).map(|count| {
            *count = count.saturating_sub(1);
            *count
        });
        if left == Some(0) {
            taken.by_address.remove(&address);
        }
    }
}

/// Returns the network that counts as one address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(long) => {
            IpAddr::V6(Ipv6Addr::from_bits(long.to_bits() >> IPV6_OWN_BITS << IPV6_OWN_BITS))
        }
        short @ IpAddr::V4(_) => short,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_gets_a_share_of_the_permits_and_forged_senders_take_none_of_it() {
        let limiter = ConnectionLimiter::new(8, 2);
        let at = |text: &str| Some(text.parse::<IpAddr>().unwrap());

        let forged: Vec<_> = (0..4).map(|_| limiter.acquire(None).unwrap()).collect();
        assert!(!limiter.requires_address_validation());
        let first = limiter.acquire(at("2001:db8::1")).unwrap();
        assert!(limiter.requires_address_validation());
        let second = limiter.acquire(at("2001:db8::ffff")).unwrap();
        assert!(limiter.acquire(at("2001:db8::2")).is_none(), "the same network");
        let third = limiter.acquire(at("192.0.2.1")).unwrap();
        let fourth = limiter.acquire(at("::ffff:192.0.2.1")).unwrap();
        assert!(limiter.acquire(at("192.0.2.2")).is_none(), "all permits are taken");
        drop((forged, second, third, fourth));

        assert!(!limiter.requires_address_validation());
        assert!(limiter.acquire(at("2001:db8::2")).is_some());
        drop(first);
        assert!(limiter.taken().by_address.is_empty() && limiter.taken().all == 0);
    }
}
