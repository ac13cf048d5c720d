//! What an operator decides about a registered cluster: accept, revoke, evict, remove. Blocks.

use attest_common::session::join::fingerprint;

use super::JoinError;
use crate::core::store::StoreError;
use crate::core::store::records::{self, Change, ClusterRecord, ClusterState, TokenRecord};
use crate::process::hub::Hub;
use crate::spokes::CLOSE_NOT_ADMITTED;

/// What an operator does to a registered cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Let it in, provided its identity key has this fingerprint.
    Accept { fingerprint: String },
    /// Never let this identity in again.
    Revoke { because: String },
    /// Its certificate is void; it may join again with a new token.
    Evict,
    /// It is not of this fleet any more; its name is free.
    Remove,
}

/// Carries out a verdict. A connection that it ends is closed before this returns.
///
/// # Errors
/// When there is no such cluster, the fingerprint differs, or the store does not take it. Blocks.
pub(crate) fn judge(
    hub: &Hub,
    named: &ClusterRecord,
    verdict: Verdict,
) -> Result<ClusterRecord, JoinError> {
    let name = &named.name;
    let writing = hub.directory.writing();
    let stored = hub.records.stored::<ClusterRecord>(named.id.as_str())?;
    let stored = stored.ok_or_else(|| JoinError::NoCluster(name.clone()))?;
    let record = stored.value.clone();
    let closes = !matches!(verdict, Verdict::Accept { .. });
    let (what, changed, mut changes) = match verdict {
        Verdict::Accept { fingerprint: given } => {
            let actual = fingerprint_of(&record);
            if record.state == ClusterState::Revoked {
                return Err(JoinError::ClusterRevoked(record.id));
            }
            if is_evicted(hub, &record)? {
                return Err(JoinError::Evicted(record.name));
            }
            if actual != given {
                return Err(JoinError::Fingerprint { name: name.clone(), given, actual });
            }
            let changed = ClusterRecord { state: ClusterState::Accepted, ..record };
            ("accept", changed.clone(), vec![records::replace(&stored, &changed)])
        }
        Verdict::Revoke { because } => {
            let changed = revoked(&record, &because);
            ("revoke", changed.clone(), vec![records::replace(&stored, &changed)])
        }
        Verdict::Evict => {
            let changed = ClusterRecord {
                state: ClusterState::Pending,
                serial: None,
                former_serial: None,
                certificate_expires_at: None,
                ..record
            };
            ("evict", changed.clone(), vec![records::replace(&stored, &changed)])
        }
        // What was revoked stays out, also when nobody wants to see it any more.
        Verdict::Remove if record.state == ClusterState::Revoked => {
            let changed = ClusterRecord { removed: true, ..record };
            let mut changes = removal(hub, &changed)?;
            changes.push(records::replace(&stored, &changed));
            ("remove", changed, changes)
        }
        Verdict::Remove => {
            let mut changes = removal(hub, &record)?;
            changes.push(records::delete(&record));
            ("remove", record, changes)
        }
    };
    let living = hub.directory.named(name).is_some_and(|living| living.id == named.id);
    if closes {
        changes.extend(dead_tokens(hub, &changed, living)?);
    }
    if what == "remove" && living && hub.records.default_cluster()?.as_ref() == Some(name) {
        let mut others: Vec<_> = hub
            .directory
            .all()
            .into_iter()
            .filter(|other| other.id != changed.id && other.state != ClusterState::Revoked)
            .collect();
        others.sort_by_key(|other| other.registered_at);
        let next = others.first().map(|other| &other.name);
        changes.push(records::default_cluster_change(next));
    }
    hub.records.commit(what, &changes)?;
    if what == "remove" && !changed.removed {
        writing.forget(&changed);
    } else {
        writing.note(&changed);
    }
    drop(writing);
    if closes {
        hub.fleet.close(&changed.id, CLOSE_NOT_ADMITTED, "ClusterRevoked");
    }
    if what == "remove" {
        hub.fleet.forget(&changed.id);
    }
    hub.directory.measure(&hub.metrics);
    hub.pipeline.wake_all();
    tracing::info!(
        cluster = changed.id.as_str(),
        name = name.as_str(),
        what,
        "A cluster was judged"
    );
    Ok(changed)
}

/// True when the cluster waits in vain: its token gives out no certificate any more.
pub(crate) fn is_evicted(hub: &Hub, record: &ClusterRecord) -> Result<bool, StoreError> {
    if record.state != ClusterState::Pending {
        return Ok(false);
    }
    let token = hub.records.get::<TokenRecord>(&record.token_id)?;
    Ok(token.is_none_or(|token| token.revoked))
}

/// Revokes every token by which the cluster could come back without another word of the operator: what
/// it has used gives out no certificate again, and what was made for it, or for its name while the name
/// is its own, lets nobody in.
fn dead_tokens(hub: &Hub, record: &ClusterRecord, living: bool) -> Result<Vec<Change>, StoreError> {
    let lets_in = |token: &TokenRecord| match (&token.used, &token.identity) {
        (Some(used), _) => used.cluster == record.id && record.state == ClusterState::Pending,
        (None, Some(identity)) => *identity == record.id,
        (None, None) => living && token.cluster == record.name,
    };
    let all: Vec<TokenRecord> = hub.records.all()?;
    let dead = all.into_iter().filter(|token| !token.revoked && lets_in(token));
    Ok(dead.map(|token| records::put(&TokenRecord { revoked: true, ..token })).collect())
}

/// What goes with a cluster: its policy hint and its reports; its ledgers stay, so that sequences only rise.
fn removal(hub: &Hub, record: &ClusterRecord) -> Result<Vec<Change>, JoinError> {
    let mut changes = Vec::new();
    if let Some(policy) = hub.records.get::<records::PolicyRecord>(record.id.as_str())? {
        changes.push(records::delete(&policy));
    }
    for (destination, _) in hub.fleet.heads_of(&record.id) {
        if let Some(report) = hub.fleet.report(&destination) {
            changes.push(records::delete(report.as_ref()));
        }
    }
    Ok(changes)
}

pub(super) fn revoked(record: &ClusterRecord, because: &str) -> ClusterRecord {
    ClusterRecord {
        state: ClusterState::Revoked,
        serial: None,
        former_serial: None,
        certificate_expires_at: None,
        revoked_because: Some(because.chars().take(200).collect()),
        ..record.clone()
    }
}

/// `SHA256:` fingerprint of a cluster's identity key.
pub(crate) fn fingerprint_of(record: &ClusterRecord) -> String {
    let raw = data_encoding::HEXLOWER.decode(record.identity_key.as_bytes()).unwrap_or_default();
    <[u8; 32]>::try_from(raw).map_or_else(|_| String::new(), |key| fingerprint(&key))
}
