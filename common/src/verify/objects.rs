//! The objects of a destination: the only input of the writer to the API server.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Admission, Verified};
use crate::documents::manifest::{Object, ObjectKey};

/// Objects to write at a destination, as they are applied there. What is not in the set may be pruned.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectSet {
    objects: Arc<[Object]>,
    /// Index of each object in `objects`.
    indexes: BTreeMap<ObjectKey, usize>,
}

impl ObjectSet {
    fn new(objects: Arc<[Object]>) -> Self {
        let keyed = objects.iter().enumerate().map(|(index, object)| (object.key().clone(), index));
        Self { indexes: keyed.collect(), objects }
    }

    /// Returns the object of this key, if the set holds one.
    pub fn get(&self, key: &ObjectKey) -> Option<&Object> {
        self.objects.get(*self.indexes.get(key)?)
    }

    /// Returns whether the set holds an object of this key.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.indexes.contains_key(key)
    }

    /// Returns every object, in the order of the rendering.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }
}

/// Returns the objects that `candidate` puts at its destination.
///
/// Every object of the set comes from an admission. Today these are the objects of `candidate`. A
/// strategy that runs two releases side by side combines them with those of `_last_known_good`.
pub fn object_set(
    _last_known_good: Option<&Verified<Admission>>,
    candidate: &Verified<Admission>,
) -> Verified<ObjectSet> {
    Verified(ObjectSet::new(Arc::clone(&candidate.admitted.objects)))
}
