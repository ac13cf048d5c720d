//! What a spoke durably knows about one destination, and the pure rules on it: order, binding, floor.
//!
//! Kept in the spoke's own cluster, written before acting. This file decides; `spoke` stores.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::keys::KeyId;
use crate::documents::manifest::ObjectKey;
use crate::documents::plan::Directive;
use crate::documents::receipt::CLOCK_SKEW_MAX_MS;

/// Most objects one destination's inventory may hold.
pub const INVENTORY_MAX: usize = 5_000;

/// Longest name of a ServiceAccount that is also usable as a label, in bytes.
const ACCOUNT_NAME_BYTES_MAX: usize = 63;
/// Hexadecimal digits of the hash that ends a name cut to length.
const ACCOUNT_NAME_HASH_DIGITS: usize = 16;

/// Name of the ServiceAccount that writes an application's objects in a namespace:
/// `a-<application>-<namespace>`, or `h-…` cut and ended by a hash when that is too long or could be
/// read as another pair.
pub fn account_name(application: &Name, namespace: &Name) -> String {
    let plain = format!("a-{application}-{namespace}");
    // `a-b` + `c` and `a` + `b-c` would share an account; only dash-free pairs keep the plain form.
    let ambiguous = application.as_str().contains('-') || namespace.as_str().contains('-');
    if plain.len() <= ACCOUNT_NAME_BYTES_MAX && !ambiguous {
        return plain;
    }
    let hash = Digest::of(format!("{application}/{namespace}").as_bytes()).hex();
    let hash: String = hash.chars().take(ACCOUNT_NAME_HASH_DIGITS).collect();
    let kept = ACCOUNT_NAME_BYTES_MAX - ACCOUNT_NAME_HASH_DIGITS - 1;
    // A prefix of its own: no plain name can look like a hashed one.
    let head: String = format!("h-{application}-{namespace}").chars().take(kept).collect();
    format!("{}-{hash}", head.trim_end_matches('-'))
}

/// Which destinations a cluster has: by (application, namespace).
pub type DestinationRecords = BTreeMap<(Name, Name), Record>;

/// State of one destination.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Record {
    pub v: u32,
    pub application: Name,
    pub namespace: Name,
    /// The hub key whose order the next two fields count.
    pub hub_key: KeyId,
    pub epoch: u64,
    pub sequence: u64,
    /// SHA-256 of the newest admitted directive's signed payload.
    pub directive: Digest,
    /// `source.repo` of the first admitted release; never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    /// Highest admitted release counter and the statement that had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    /// What the newest directive asks to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// What ran and was healthy before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<Held>,
    /// Objects this destination wrote or is about to write.
    #[serde(default)]
    pub inventory: Vec<Owned>,
    /// True after `Remove`: binding and floor stay, nothing runs.
    #[serde(default)]
    pub removed: bool,
    /// The cluster's own clock when the newest directive was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recorded_at: Option<Timestamp>,
    /// When `held` was first asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Where to go back to, as long as nothing of `held` is written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Box<Former>>,
}

/// What a record held before an admission of which nothing is written yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Former {
    /// Envelope of the directive that put `held` there; empty when there was none.
    pub directive: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Floor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_good: Option<Held>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    pub removed: bool,
    /// How many objects the inventory began with; what follows came with the admission.
    pub objects: usize,
}

impl Record {
    /// Where an admission that follows `before` can go back to: to what was last written, however
    /// many admissions followed without a write. `None` when `held` runs already.
    pub fn way_back(before: Option<(&Self, &[u8])>, held: &Held) -> Option<Box<Former>> {
        let text = |directive: &[u8]| String::from_utf8_lossy(directive).into_owned();
        match before {
            Some((Self { former: Some(former), .. }, _)) => Some(former.clone()),
            Some((record, _)) if record.held.as_ref() == Some(held) => None,
            Some((record, directive)) => Some(Box::new(Former {
                directive: text(directive),
                binding: record.binding.clone(),
                floor: record.floor.clone(),
                held: record.held.clone(),
                last_good: record.last_good.clone(),
                since: record.since,
                removed: record.removed,
                objects: record.inventory.len(),
            })),
            None => Some(Box::default()),
        }
    }

    /// The record once `held` was refused before anything of it was written, and the envelope of the
    /// directive that is in force again. Its order has been used up; everything else is as before.
    /// With `keep_inventory`, what came with it stays listed: a process that ended may have written it.
    pub fn turned_back(mut self, keep_inventory: bool) -> Option<(Self, Vec<u8>)> {
        let Former { directive, binding, floor, held, last_good, since, removed, objects } =
            *self.former.take()?;
        if !keep_inventory {
            self.inventory.truncate(objects);
        }
        let record = Self { binding, floor, held, last_good, since, removed, ..self };
        Some((record, directive.into_bytes()))
    }

    /// True when nothing runs there, and no object is or may be this destination's.
    pub fn is_idle(&self) -> bool {
        self.held.is_none() && self.inventory.is_empty()
    }

    /// Every plan that may have to run.
    pub fn plans(&self) -> impl Iterator<Item = &Held> {
        let former = self.former.iter().flat_map(|f| f.held.iter().chain(&f.last_good));
        self.held.iter().chain(&self.last_good).chain(former)
    }
}

/// The lowest release that may still be admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Floor {
    pub counter: u64,
    pub release: Digest,
}

/// A plan and the blobs it needs, all addressed by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Held {
    /// SHA-256 of the plan envelope file.
    pub plan: Digest,
    /// SHA-256 of the plan's signed payload.
    pub plan_digest: Digest,
    pub release: Digest,
    pub receipts: Vec<Digest>,
    pub content: Digest,
}

impl Held {
    /// Every blob, the plan first.
    pub fn blobs(&self) -> impl Iterator<Item = &Digest> {
        [&self.plan, &self.release, &self.content].into_iter().chain(&self.receipts)
    }
}

/// An object of the inventory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Owned {
    #[serde(flatten)]
    pub key: ObjectKey,
    pub version: String,
    /// Absent between "about to write" and "written".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// It existed before and already held our values: released, never deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub met: bool,
}

/// The position of a directive relative to the newest one admitted for its destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectiveOrder {
    /// Newer than every directive seen.
    Newer,
    /// The same directive again.
    Repeated,
}

/// Compares a directive with the newest one admitted for its destination.
pub fn compare_order(
    directive: &Directive,
    digest: Digest,
    hub_key: KeyId,
    record: Option<&Record>,
) -> Result<DirectiveOrder, RecordError> {
    let Some(record) = record.filter(|r| r.hub_key == hub_key) else {
        return Ok(DirectiveOrder::Newer);
    };
    let seen = (record.epoch, record.sequence);
    let got = (directive.epoch, directive.sequence);
    match got.cmp(&seen) {
        // A higher epoch never permits a lower sequence: sequences continue across epochs.
        std::cmp::Ordering::Greater if directive.sequence > record.sequence => {
            Ok(DirectiveOrder::Newer)
        }
        std::cmp::Ordering::Equal if digest == record.directive => Ok(DirectiveOrder::Repeated),
        std::cmp::Ordering::Equal => Err(RecordError::SequenceEquivocation(record.sequence)),
        std::cmp::Ordering::Greater | std::cmp::Ordering::Less => {
            Err(RecordError::SequenceReplayed { got: directive.sequence, seen: record.sequence })
        }
    }
}

/// Checks that the clock is not behind the newest recorded time: such a clock would accept expired documents.
pub fn check_clock(records: &DestinationRecords, now: Timestamp) -> Result<(), RecordError> {
    let Some(recorded_at) = records.values().filter_map(|record| record.recorded_at).max() else {
        return Ok(());
    };
    let behind = now.as_millisecond() + CLOCK_SKEW_MAX_MS < recorded_at.as_millisecond();
    if behind { Err(RecordError::ClockRollback { now, recorded_at }) } else { Ok(()) }
}

/// Checks a release against the binding and the counter floor of a destination.
///
/// A namespace without a floor starts at the highest of the same repository and application here.
pub fn admit_release(
    records: &DestinationRecords,
    destination: (&Name, &Name),
    repo: &str,
    counter: u64,
    release: Digest,
) -> Result<(), RecordError> {
    let (application, namespace) = destination;
    let mine = records.get(&(application.clone(), namespace.clone()));
    if let Some(bound) = mine.and_then(|r| r.binding.as_deref())
        && bound != repo
    {
        return Err(RecordError::SourceChanged { bound: bound.to_owned() });
    }
    let own = mine.and_then(|r| r.floor.as_ref());
    let elsewhere = || {
        records
            .values()
            .filter(|r| r.application == *application && r.binding.as_deref() == Some(repo))
            .filter_map(|r| r.floor.as_ref())
            .max_by_key(|floor| floor.counter)
    };
    let Some(floor) = own.or_else(elsewhere) else { return Ok(()) };
    let regressed =
        counter < floor.counter || (counter == floor.counter && release != floor.release);
    if regressed {
        return Err(RecordError::CounterRegressed { got: counter, floor: floor.counter });
    }
    Ok(())
}

/// Most destinations of an application whose first plan was turned back and that do not count as its
/// namespaces: what an operator may get wrong. Each left a namespace there.
pub const TURNED_BACK_MAX: usize = 8;

/// How many other namespaces this (repository, application) uses in the cluster.
pub fn other_namespaces(
    records: &DestinationRecords,
    destination: (&Name, &Name),
    repo: &str,
) -> usize {
    let (application, namespace) = destination;
    let others = || {
        records
            .values()
            .filter(|r| !r.removed && r.application == *application && r.namespace != *namespace)
    };
    let bound = others().filter(|r| r.binding.as_deref() == Some(repo)).count();
    let turned_back = others().filter(|r| r.binding.is_none() && r.held.is_none()).count();
    bound + turned_back.saturating_sub(TURNED_BACK_MAX)
}

/// A directive or release that contradicts the records of this cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    #[error(
        "the clock reads {now}, before the last recorded change at {recorded_at}; correct the clock, \
         or run `attest spoke accept-state` if it was wrong at that time"
    )]
    ClockRollback { now: Timestamp, recorded_at: Timestamp },
    #[error(
        "the directive's sequence {got} is not newer than {seen}, which this cluster has already seen"
    )]
    SequenceReplayed { got: u64, seen: u64 },
    #[error(
        "two different directives carry sequence {0}; the hub's signing key may have been copied"
    )]
    SequenceEquivocation(u64),
    #[error(
        "this destination is bound to repository {bound}; run `attest spoke reset` on the cluster to remove the binding"
    )]
    SourceChanged { bound: String },
    #[error(
        "release counter {got} is below the minimum {floor}, or equal to it for another release; \
         `attest release --from {got}` signs the same content with a new counter"
    )]
    CounterRegressed { got: u64, floor: u64 },
}

impl RecordError {
    /// A stable word for conditions, metrics, logs and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ClockRollback { .. } => "ClockRollback",
            Self::SequenceReplayed { .. } => "SequenceReplayed",
            Self::SequenceEquivocation(_) => "SequenceEquivocation",
            Self::SourceChanged { .. } => "SourceChanged",
            Self::CounterRegressed { .. } => "CounterRegressed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::basics::keys::PrivateKey;

    #[test]
    fn two_destinations_never_share_an_account() {
        let name = |text: &str| Name::new(text).unwrap();
        let long = "a".repeat(63);

        assert_eq!(account_name(&name("web"), &name("shop")), "a-web-shop");
        assert_ne!(account_name(&name("a-b"), &name("c")), account_name(&name("a"), &name("b-c")));
        assert!(account_name(&name(&long), &name(&long)).len() <= 63);
        assert!(Name::new(account_name(&name(&long), &name("x"))).is_ok());
    }

    #[test]
    fn namespaces_whose_first_plan_was_turned_back_count_once_they_are_more_than_mistakes() {
        let in_namespace = |record: Record, index: usize| {
            let namespace = Name::new(format!("shop-{index}")).unwrap();
            ((record.application.clone(), namespace.clone()), Record { namespace, ..record })
        };
        let bound = record(b"plan", 1, &[]);
        let repo = bound.binding.clone().unwrap();
        let empty = Record { binding: None, floor: None, held: None, ..bound.clone() };
        let others = |turned_back: usize| {
            let empties = (1..=turned_back).map(|index| in_namespace(empty.clone(), index));
            let records: DestinationRecords =
                empties.chain([in_namespace(bound.clone(), 0)]).collect();
            other_namespaces(&records, (&bound.application, &Name::new("new").unwrap()), &repo)
        };

        assert_eq!((others(0), others(TURNED_BACK_MAX), others(TURNED_BACK_MAX + 3)), (1, 1, 4));
    }

    fn held(plan: &[u8]) -> Held {
        let digest = Digest::of(plan);
        Held {
            plan: digest,
            plan_digest: digest,
            release: digest,
            receipts: Vec::new(),
            content: digest,
        }
    }

    fn owned(name: &str) -> Owned {
        Owned {
            key: ObjectKey {
                group: String::new(),
                kind: "ConfigMap".to_owned(),
                namespace: Some("shop".to_owned()),
                name: name.to_owned(),
            },
            version: "v1".to_owned(),
            uid: None,
            met: false,
        }
    }

    fn record(plan: &[u8], sequence: u64, inventory: &[&str]) -> Record {
        Record {
            v: 1,
            application: Name::new("web").unwrap(),
            namespace: Name::new("shop").unwrap(),
            hub_key: PrivateKey::from_seed(&[1; 32]).unwrap().public().id(),
            epoch: 1,
            sequence,
            directive: Digest::of(plan),
            binding: Some("https://git.example/web".to_owned()),
            floor: Some(Floor { counter: sequence, release: Digest::of(plan) }),
            held: Some(held(plan)),
            last_good: None,
            inventory: inventory.iter().map(|name| owned(name)).collect(),
            removed: false,
            recorded_at: None,
            since: None,
            former: None,
        }
    }

    #[test]
    fn however_many_plans_were_refused_unwritten_the_way_back_leads_to_what_was_written() {
        let a = record(b"a", 1, &["one"]);
        let b = Record {
            former: Record::way_back(Some((&a, b"order of a")), &held(b"b")),
            ..record(b"b", 2, &["one", "two"])
        };
        let c = Record {
            former: Record::way_back(Some((&b, b"order of b")), &held(b"c")),
            ..record(b"c", 3, &["one", "two", "three"])
        };
        assert!(c.plans().any(|plan| *plan == held(b"a")), "its content has to stay");

        let (back, directive) = c.clone().turned_back(false).unwrap();
        assert_eq!(directive, b"order of a");
        assert_eq!((back.held, back.floor), (a.held, a.floor));
        assert_eq!((back.sequence, back.directive), (3, Digest::of(b"c")), "the order is used up");
        assert_eq!(back.inventory, [owned("one")]);
        assert!(back.former.is_none());

        let (unsure, _) = c.turned_back(true).unwrap();
        assert_eq!(unsure.inventory.len(), 3, "another process may have written them");
    }

    #[test]
    fn once_writing_began_the_way_back_leads_to_that_plan_and_keeps_its_objects() {
        let begun = record(b"b", 2, &["one", "two"]);
        let c = Record {
            former: Record::way_back(Some((&begun, b"order of b")), &held(b"c")),
            ..record(b"c", 3, &["one", "two", "three"])
        };

        let (back, directive) = c.turned_back(false).unwrap();

        assert_eq!(directive, b"order of b");
        assert_eq!((back.held, back.floor), (begun.held, begun.floor));
        assert_eq!(back.inventory, [owned("one"), owned("two")]);
    }

    #[test]
    fn what_runs_already_has_no_way_back_and_a_first_plan_goes_back_to_nothing() {
        let a = record(b"a", 1, &["one"]);
        assert!(Record::way_back(Some((&a, b"")), &held(b"a")).is_none());

        let first = Record { former: Record::way_back(None, &held(b"a")), ..a };
        let (back, _) = first.turned_back(false).unwrap();
        assert_eq!((back.held, back.binding, back.inventory), (None, None, vec![]));
    }
}
