//! Handover of an object between two destinations of one namespace: one claims it, its owner offers it with its UID.
//!
//! Kept in memory. The durable part is in the records: the claimant records the object with its UID before the owner
//! removes it from its inventory, and the owner deletes no object that is claimed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::basics::locked::Locked;
use attest_common::documents::manifest::ObjectKey;
use attest_common::record::{DestinationRecords, Owned};

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
    /// The claimant has recorded the object, and its plan can no longer be reverted.
    Taken,
}

/// The claims on objects of one destination.
pub type Claims = BTreeMap<ObjectKey, Claimed>;

/// Claims and offers of all destinations.
#[derive(Clone, Debug, Default)]
pub struct Handovers(Arc<Locked<State>>);

#[derive(Debug, Default)]
struct State {
    /// The claimant of an object of an owner.
    claims: BTreeMap<(ObjectKey, Key), Key>,
    offers: Offers,
}

impl Handovers {
    /// Restores the claims of objects that two records list with one UID: a process has ended between the record of
    /// the claimant and that of the owner. Only a destination that does not render the object acts on a claim.
    pub fn restore(&self, records: &DestinationRecords) {
        let mut state = self.0.lock();
        let mut holders: BTreeMap<(&ObjectKey, &str), &Key> = BTreeMap::new();
        for (key, record) in records {
            for owned in &record.inventory {
                let Some(uid) = &owned.uid else { continue };
                let Some(other) = holders.insert((&owned.key, uid), key) else { continue };
                state.claims.insert((owned.key.clone(), key.clone()), other.clone());
                state.claims.insert((owned.key.clone(), other.clone()), key.clone());
            }
        }
    }

    /// Replaces the claims of a destination that waits: objects with their owners.
    pub fn claim(
        &self,
        claimant: &Key,
        objects: &[(ObjectKey, Key)],
        records: &DestinationRecords,
    ) {
        self.keep_taken(claimant, records);
        let mut state = self.0.lock();
        for (object, owner) in objects {
            state.claims.insert((object.clone(), owner.clone()), claimant.clone());
        }
    }

    /// Drops the claims of a destination, except on objects that it has taken and that their owners list too.
    pub fn keep_taken(&self, claimant: &Key, records: &DestinationRecords) {
        let mut state = self.0.lock();
        state.claims.retain(|(object, owner), other| {
            let uid = uid_in(records, claimant, object);
            other != claimant || (uid.is_some() && uid == uid_in(records, owner, object))
        });
        let State { claims, offers } = &mut *state;
        offers.retain(|object, offer| claims.contains_key(&(object.clone(), offer.owner.clone())));
    }

    /// Drops the offers of a destination.
    pub fn withdraw_offers(&self, owner: &Key) {
        self.0.lock().offers.retain(|_, offer| offer.owner != *owner);
    }

    /// Offers an object. Returns the claimant, if there still is one.
    pub fn offer(&self, owner: &Key, object: ObjectKey, uid: String) -> Option<Key> {
        let mut state = self.0.lock();
        let claimant = state.claims.get(&(object.clone(), owner.clone()))?.clone();
        state.offers.insert(object, Offer { owner: owner.clone(), uid });
        Some(claimant)
    }

    /// Returns the objects on offer.
    pub fn offers(&self) -> Offers {
        self.0.lock().offers.clone()
    }

    /// Returns the destinations whose objects are claimed.
    pub fn owners(&self) -> BTreeSet<Key> {
        self.0.lock().claims.keys().map(|(_, owner)| owner.clone()).collect()
    }

    /// Returns the claimants of objects that their owners no longer list.
    pub fn released(&self, records: &DestinationRecords) -> BTreeSet<Key> {
        let state = self.0.lock();
        let released = state
            .claims
            .iter()
            .filter(|((object, owner), _)| owned_in(records, owner, object).is_none());
        released.map(|(_, claimant)| claimant.clone()).collect()
    }

    /// Returns the claims on the objects of one destination.
    pub fn claims_on(&self, owner: &Key, records: &DestinationRecords) -> Claims {
        let state = self.0.lock();
        let mine = state.claims.iter().filter(|((_, claimed), _)| claimed == owner);
        mine.map(|((object, _), claimant)| {
            (object.clone(), claimed(object, owner, claimant, records))
        })
        .collect()
    }
}

fn claimed(
    object: &ObjectKey,
    owner: &Key,
    claimant: &Key,
    records: &DestinationRecords,
) -> Claimed {
    let is_final = records.get(claimant).is_some_and(|record| record.rollback_point.is_none());
    let uid = uid_in(records, claimant, object);
    if is_final && uid.is_some() && uid == uid_in(records, owner, object) {
        Claimed::Taken
    } else {
        Claimed::Waiting
    }
}

fn uid_in<'a>(
    records: &'a DestinationRecords,
    key: &Key,
    object: &ObjectKey,
) -> Option<&'a String> {
    owned_in(records, key, object)?.uid.as_ref()
}

fn owned_in<'a>(
    records: &'a DestinationRecords,
    key: &Key,
    object: &ObjectKey,
) -> Option<&'a Owned> {
    records.get(key)?.inventory.iter().find(|owned| owned.key == *object)
}

#[cfg(test)]
mod tests {
    use attest_common::basics::ids::Name;
    use attest_common::record::Record;
    use attest_common::record::rollback::RollbackPoint;

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
            preexisting: false,
            orphan: false,
            wave: 0,
        };
        Record { application: key(application).0, inventory: vec![owned], ..record() }
    }

    #[test]
    fn an_object_is_taken_once_both_records_name_the_same_uid_and_the_claimant_stays() {
        let (old, new, object) = (key("old"), key("new"), object_key("ConfigMap", "moves"));
        let handovers = Handovers::default();
        assert_eq!(handovers.offer(&old, object.clone(), "uid".to_owned()), None);

        let before = DestinationRecords::from([(old.clone(), with("old", Some("uid")))]);
        handovers.claim(&new, &[(object.clone(), old.clone())], &before);
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

        let both = [("old", old.clone()), ("new", new.clone())];
        let both = both.map(|(name, key)| (key, with(name, Some("uid"))));
        handovers.keep_taken(&new, &DestinationRecords::from(both.clone()));
        assert_eq!(state(Some(with("new", Some("uid")))), Some(Claimed::Taken));
        let restored = Handovers::default();
        restored.restore(&DestinationRecords::from(both.clone()));
        let claims = restored.claims_on(&old, &DestinationRecords::from(both));
        assert_eq!(claims.get(&object), Some(&Claimed::Taken), "after a restart");

        handovers.keep_taken(&new, &before);
        assert_eq!(state(None), None);
    }

    #[test]
    fn an_owner_that_renders_an_object_again_offers_it_no_longer() {
        let (old, new, object) = (key("old"), key("new"), object_key("ConfigMap", "moves"));
        let handovers = Handovers::default();
        let before = DestinationRecords::from([(old.clone(), with("old", Some("uid")))]);
        handovers.claim(&new, &[(object.clone(), old.clone())], &before);
        handovers.offer(&old, object, "uid".to_owned());

        handovers.withdraw_offers(&old);

        assert!(handovers.offers().is_empty());
        assert_eq!(handovers.owners(), [old].into());
    }
}
