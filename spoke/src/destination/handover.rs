//! Handover of an object between two destinations of one namespace: one claims it, its owner offers it with its UID.
//!
//! Kept in memory. The durable part is in the records: the claimant records the object with its UID before the owner
//! removes it from its inventory, and the owner deletes no object that is claimed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::basics::locked::Locked;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::DestinationRecords;

use crate::ledger::records::Key;

/// Objects that their owners hand over.
pub type Offers = BTreeMap<ObjectKey, Offer>;

/// An object that its owner no longer renders and does not delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub owner: Key,
    pub uid: String,
}

/// State of an object that another destination claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claimed {
    /// The claimant waits.
    Waiting,
    /// The claimant has recorded the object, and its plan is not reverted any more.
    Taken,
}

/// The claims on objects of one destination.
pub type Claims = BTreeMap<ObjectKey, Claimed>;

/// A claim on an object.
#[derive(Clone, Debug)]
struct Claim {
    owner: Key,
    claimant: Key,
}

/// Claims and offers of all destinations.
#[derive(Clone, Debug, Default)]
pub struct Handovers(Arc<Locked<State>>);

#[derive(Debug, Default)]
struct State {
    claims: BTreeMap<ObjectKey, Claim>,
    offers: Offers,
}

impl Handovers {
    /// Replaces the claims of a destination: objects with their owners.
    pub fn claim(&self, claimant: &Key, objects: &[(ObjectKey, Key)]) {
        let mut state = self.0.lock();
        state.claims.retain(|_, claim| claim.claimant != *claimant);
        for (object, owner) in objects {
            let claim = Claim { owner: owner.clone(), claimant: claimant.clone() };
            state.claims.insert(object.clone(), claim);
        }
        let State { claims, offers } = &mut *state;
        offers.retain(|object, _| claims.contains_key(object));
    }

    /// Drops the claims of a destination, except on objects that it has taken.
    pub fn keep_claims(&self, claimant: &Key, taken: &BTreeMap<ObjectKey, String>) {
        let mut state = self.0.lock();
        state
            .claims
            .retain(|object, claim| claim.claimant != *claimant || taken.contains_key(object));
    }

    /// Drops the offers of a destination.
    pub fn withdraw_offers(&self, owner: &Key) {
        self.0.lock().offers.retain(|_, offer| offer.owner != *owner);
    }

    /// Offers an object. Returns the claimant, if there still is one.
    pub fn offer(&self, owner: &Key, object: ObjectKey, uid: String) -> Option<Key> {
        let mut state = self.0.lock();
        let claim = state.claims.get(&object).filter(|claim| claim.owner == *owner)?;
        let claimant = claim.claimant.clone();
        state.offers.insert(object, Offer { owner: owner.clone(), uid });
        Some(claimant)
    }

    /// Returns the objects on offer.
    pub fn offers(&self) -> Offers {
        self.0.lock().offers.clone()
    }

    /// Returns the destinations whose objects are claimed.
    pub fn owners(&self) -> BTreeSet<Key> {
        self.0.lock().claims.values().map(|claim| claim.owner.clone()).collect()
    }

    /// Returns the claimants of objects that their owners no longer list.
    pub fn released(&self, records: &DestinationRecords) -> BTreeSet<Key> {
        let state = self.0.lock();
        let is_listed = |object: &ObjectKey, owner: &Key| {
            let record = records.get(owner);
            record.is_some_and(|record| record.inventory.iter().any(|owned| owned.key == *object))
        };
        let released =
            state.claims.iter().filter(|(object, claim)| !is_listed(object, &claim.owner));
        released.map(|(_, claim)| claim.claimant.clone()).collect()
    }

    /// Returns the claims on the objects of one destination.
    pub fn claims_on(&self, owner: &Key, records: &DestinationRecords) -> Claims {
        let state = self.0.lock();
        let mine = state.claims.iter().filter(|(_, claim)| claim.owner == *owner);
        mine.map(|(object, claim)| (object.clone(), claimed(object, claim, records))).collect()
    }
}

fn claimed(object: &ObjectKey, claim: &Claim, records: &DestinationRecords) -> Claimed {
    let uid_in = |key: &Key| {
        let record = records.get(key)?;
        let owned = record.inventory.iter().find(|owned| owned.key == *object)?;
        owned.uid.as_ref()
    };
    let is_final =
        records.get(&claim.claimant).is_some_and(|record| record.rollback_point.is_none());
    let uid = uid_in(&claim.claimant);
    if is_final && uid.is_some() && uid == uid_in(&claim.owner) {
        Claimed::Taken
    } else {
        Claimed::Waiting
    }
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::Name;
    use attest_common::record::rollback::RollbackPoint;
    use attest_common::record::{Owned, Record};

    use super::*;
    use crate::ledger::records::tests::{object_key, record};

    fn key(application: &str) -> Key {
        (Name::new(application).unwrap(), Name::new("shop").unwrap())
    }

    fn with(application: &str, uid: Option<&str>) -> Record {
        let owned = Owned {
            key: object_key("ConfigMap", "moves"),
            version: "v1".to_owned(),
            uid: uid.map(str::to_owned),
            met: false,
        };
        Record { application: key(application).0, inventory: vec![owned], ..record() }
    }

    #[test]
    fn an_object_is_taken_once_both_records_name_the_same_uid_and_the_claimant_stays() {
        let (old, new, object) = (key("old"), key("new"), object_key("ConfigMap", "moves"));
        let handovers = Handovers::default();
        assert_eq!(handovers.offer(&old, object.clone(), "uid".to_owned()), None);

        handovers.claim(&new, &[(object.clone(), old.clone())]);
        let may_revert = Record {
            rollback_point: Some(Box::<RollbackPoint>::default()),
            ..with("new", Some("uid"))
        };
        let state = |claimant: Option<Record>| {
            let mut records = DestinationRecords::from([(old.clone(), with("old", Some("uid")))]);
            records.extend(claimant.map(|record| (new.clone(), record)));
            handovers.claims_on(&old, &records).get(&object).copied()
        };

        assert_eq!(state(None), Some(Claimed::Waiting));
        assert_eq!(state(Some(may_revert)), Some(Claimed::Waiting));
        assert_eq!(state(Some(with("new", Some("another")))), Some(Claimed::Waiting));
        assert_eq!(state(Some(with("new", Some("uid")))), Some(Claimed::Taken));
        assert_eq!(handovers.offer(&old, object.clone(), "uid".to_owned()), Some(new.clone()));
        assert_eq!(handovers.offers()[&object].uid, "uid");

        handovers.keep_claims(&new, &BTreeMap::new());
        assert_eq!(state(None), None);
    }

    #[test]
    fn an_owner_that_renders_an_object_again_offers_it_no_longer() {
        let (old, new, object) = (key("old"), key("new"), object_key("ConfigMap", "moves"));
        let handovers = Handovers::default();
        handovers.claim(&new, &[(object.clone(), old.clone())]);
        handovers.offer(&old, object.clone(), "uid".to_owned());

        handovers.withdraw_offers(&old);

        assert!(handovers.offers().is_empty());
        assert_eq!(handovers.owners(), [old].into());
    }
}
