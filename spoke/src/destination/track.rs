//! The objects of an admission, with the known state of each. Pure; `objects` decides the next step.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use attest_common::documents::manifest::ObjectKey;
use attest_common::objects::autoscaling;
use attest_common::objects::health::{self, Health};
use attest_common::objects::kinds::{self, Kinds};
use attest_common::record::Owned;
use attest_common::verify::ObjectSet;

use super::objects::{Scale, Tracked};
use crate::cluster::account::Account;
use crate::cluster::apply;
use crate::cluster::client::object_path;
use crate::cluster::drift::{HealBudget, Live};
use crate::cluster::watch::{Followed, Scope};
use crate::ledger::records::ConfirmedPairs;

/// Returns the objects of an admission, with their state from the inventory and from the previous admission.
pub(super) fn track(
    rendered: &ObjectSet,
    kinds: &Kinds,
    account: &Account,
    (inventory, pairs): (&[Owned], &ConfirmedPairs),
    former: Option<&BTreeMap<ObjectKey, Tracked>>,
) -> BTreeMap<ObjectKey, Tracked> {
    let owned: BTreeMap<&ObjectKey, &Owned> = inventory.iter().map(|o| (&o.key, o)).collect();
    let definitions: BTreeMap<(String, String), ObjectKey> = rendered
        .objects()
        .iter()
        .filter_map(|object| {
            let (group, kind, _) = Kinds::defined_by(object)?;
            Some(((group, kind), object.key().clone()))
        })
        .collect();
    let autoscaled = autoscaling::scale_targets(rendered.objects());
    let mut objects = BTreeMap::new();
    for object in rendered.objects() {
        let key = object.key().clone();
        // Admission has checked that every kind is known.
        let Some(kind) = kinds.get(&key.group, &key.kind) else { continue };
        // The destination's own Namespace is created by the spoke, which may read it but not watch it.
        let own_namespace = key.group.is_empty()
            && key.kind == "Namespace"
            && key.name == account.destination.as_str();
        let scope = Scope {
            group: key.group.clone(),
            version: object.version().to_owned(),
            kind: key.kind.clone(),
            plural: kind.plural.clone(),
            namespace: key.namespace.clone(),
        };
        let before = former.and_then(|former| former.get(&key));
        let is_rendered_target =
            autoscaled.contains(&key) && autoscaling::replicas(object.value()).is_some();
        let confirmed =
            before.and_then(|t| t.confirmed.clone()).or_else(|| pairs.get(&key).cloned());
        // Until the autoscalers of the namespace are listed, an object stays as it was written last.
        let was_autoscaled = confirmed.as_ref().is_some_and(|pair| {
            autoscaling::replicas(object.value()).is_some()
                && pair.desired == apply::desired(&apply::as_written(object, true))
        });
        let is_autoscaled = is_rendered_target || was_autoscaled;
        let mine = owned.get(&key);
        let definition = definitions.get(&(key.group.clone(), key.kind.clone())).cloned();
        let path =
            object_path(&object.api_version(), &kind.plural, key.namespace.as_deref(), &key.name);
        let tracked = Tracked {
            wave: object.wave(),
            rank: kinds::apply_rank(&key.group, &key.kind),
            gates: before.map_or_else(|| health::gates(&key.group, &key.kind), |t| t.gates),
            desired: apply::desired(&apply::as_written(object, is_autoscaled)),
            empty: Arc::new(apply::empty_fields(object)),
            autoscaled: is_autoscaled,
            scale: match autoscaling::replicas(object.value()) {
                Some(_) if is_rendered_target => Scale::Rendered,
                Some(_) if own_namespace => Scale::Fixed,
                Some(_) => Scale::Unknown,
                None => Scale::Fixed,
            },
            path,
            scope,
            watched: !own_namespace,
            definition,
            owned_uid: before
                .and_then(|t| t.owned_uid.clone())
                .or_else(|| mine.and_then(|owned| owned.uid.clone())),
            // `with_known` has added facts that are not recorded yet.
            expires: key.group == "batch"
                && key.kind == "Job"
                && object.value().pointer("/spec/ttlSecondsAfterFinished").is_some(),
            preexisting: mine.is_some_and(|owned| owned.preexisting),
            unfinished: mine.is_some(),
            confirmed,
            live: before.map_or(Live::Unknown, |t| t.live.clone()),
            health: before.map_or(Health::NotFound, |t| t.health),
            message: before.map(|t| t.message.clone()).unwrap_or_default(),
            kept_by_kubectl: before.map(|t| t.kept_by_kubectl.clone()).unwrap_or_default(),
            added: before.map_or(0, |t| t.added),
            turning: before.and_then(|t| t.turning.clone()),
            permit: None,
            failure: None,
            busy: false,
            repair: before.is_some_and(|t| t.repair),
            budget: before.map_or_else(HealBudget::default, |t| t.budget),
            drifted_at: None,
        };
        objects.insert(key, tracked);
    }
    bring_definitions_forward(&mut objects);
    objects
}

/// A definition is applied no later than the first object of its kind.
fn bring_definitions_forward(objects: &mut BTreeMap<ObjectKey, Tracked>) {
    let needed: Vec<(ObjectKey, i16)> = objects
        .values()
        .filter_map(|tracked| Some((tracked.definition.clone()?, tracked.wave)))
        .collect();
    for (definition, wave) in needed {
        if let Some(tracked) = objects.get_mut(&definition) {
            tracked.wave = tracked.wave.min(wave);
        }
    }
}

/// Returns the inventory, with facts that a worker may not have recorded.
pub(super) fn with_known(
    mut inventory: Vec<Owned>,
    former: Option<&BTreeMap<ObjectKey, Tracked>>,
) -> Vec<Owned> {
    for owned in &mut inventory {
        let known = former.and_then(|former| former.get(&owned.key));
        if let Some(tracked) = known {
            owned.preexisting = tracked.preexisting;
            owned.uid = tracked.owned_uid.clone().or_else(|| owned.uid.take());
        }
    }
    inventory
}

/// Returns the scopes of the autoscalers that may scale objects.
pub(super) fn autoscaler_scopes(objects: &BTreeMap<ObjectKey, Tracked>) -> BTreeSet<Scope> {
    let scaled = objects.iter().filter(|(_, tracked)| tracked.scale != Scale::Fixed);
    let namespaces = scaled.filter_map(|(key, _)| key.namespace.as_deref());
    namespaces.map(Scope::of_autoscalers).collect()
}

/// Returns the objects that can be watched.
pub(super) fn followed(objects: &BTreeMap<ObjectKey, Tracked>) -> BTreeMap<ObjectKey, Followed> {
    let watched = objects.iter().filter(|(_, tracked)| tracked.watched);
    watched.map(|(key, tracked)| (key.clone(), tracked.followed())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::objects::tests::tracked;
    use crate::ledger::records::tests::object_key;

    #[test]
    fn a_definition_comes_no_later_than_the_first_object_of_its_kind() {
        let definition = object_key("CustomResourceDefinition", "widgets.example.com");
        let widget = |wave| Tracked { wave, definition: Some(definition.clone()), ..tracked(8) };
        let mut objects = BTreeMap::from([
            (definition.clone(), Tracked { wave: 5, ..tracked(1) }),
            (object_key("Widget", "first"), widget(-2)),
            (object_key("Widget", "last"), widget(9)),
        ]);

        bring_definitions_forward(&mut objects);

        let waves: Vec<i16> = objects.values().map(|tracked| tracked.wave).collect();
        assert_eq!(waves, [-2, -2, 9]);
    }
}
