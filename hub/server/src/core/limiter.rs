//! Limits unauthenticated connections, in total and per address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, MutexGuard};

use attest_common::basics::locked::Locked;

/// Bits of an IPv6 address that its owner chooses as it likes.
const IPV6_OWN_BITS: u32 = 64;

/// A bounded number of places, of which one address gets only some.
#[derive(Debug)]
pub(crate) struct ConnectionLimiter {
    places_max: usize,
    places_per_address_max: usize,
    taken: Locked<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_address: BTreeMap<IpAddr, usize>,
}

/// A place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Arc<ConnectionLimiter>,
    address: Option<IpAddr>,
}

impl ConnectionLimiter {
    pub(crate) fn new(places_max: usize, places_per_address_max: usize) -> Arc<Self> {
        Arc::new(Self { places_max, places_per_address_max, taken: Locked::default() })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock()
    }

    /// True when fewer than half of the places are free: from now on an address must be proven, so that
    /// datagrams with forged senders take half of the places at most.
    pub(crate) fn requires_address_validation(&self) -> bool {
        self.taken().all.saturating_mul(2) > self.places_max
    }

    /// A place, unless there is none. An address is counted only when it is `proven`: nobody takes places
    /// in the name of another.
    pub(crate) fn acquire(self: &Arc<Self>, proven: Option<IpAddr>) -> Option<Permit> {
        let address = proven.map(network);
        let mut taken = self.taken();
        if taken.all >= self.places_max {
            return None;
        }
        if let Some(address) = address {
            let of_address = taken.by_address.entry(address).or_insert(0);
            if *of_address >= self.places_per_address_max {
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

/// What counts as one address.
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
    fn one_address_gets_some_of_the_places_and_nobody_takes_them_in_its_name() {
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
        assert!(limiter.acquire(at("192.0.2.2")).is_none(), "all places are taken");
        drop((forged, second, third, fourth));

        assert!(!limiter.requires_address_validation());
        assert!(limiter.acquire(at("2001:db8::2")).is_some());
        drop(first);
        assert!(limiter.taken().by_address.is_empty() && limiter.taken().all == 0);
    }
}
