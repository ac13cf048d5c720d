//! Decisions of operators about registered clusters: accept, revoke, evict, remove. Blocks.

use attest_common::basics::labels::{self, Labels};
use attest_common::basics::reason::Reason;
use attest_common::session::join::fingerprint;

use super::super::close::CLOSE_NOT_ADMITTED;
use super::certificate::now_s;
use super::{JoinError, Registration};
use crate::core::Core;
use crate::core::store::StoreError;
use crate::core::store::records::{
    self, Change, ClusterRecord, ClusterState, PolicyRecord, Stored, TokenRecord,
};

/// Decision of an operator about a registered cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Admits the cluster if its identity key has this fingerprint.
    Accept { fingerprint: String },
    /// Rejects this identity permanently.
    Revoke { because: String },
    /// Invalidates the certificate; the cluster may join again with a new token.
    Evict,
    /// Removes the cluster from the fleet and frees its name.
    Remove,
}

impl Decision {
    /// The name of the transaction in the store.
    fn word(&self) -> &'static str {
        match self {
            Self::Accept { .. } => "accept",
            Self::Revoke { .. } => "revoke",
            Self::Evict => "evict",
            Self::Remove => "remove",
        }
    }

    /// The log message of the decision.
    fn event(&self) -> &'static str {
        match self {
            Self::Accept { .. } => "Cluster accepted",
            Self::Revoke { .. } => "Cluster revoked",
            Self::Evict => "Cluster evicted",
            Self::Remove => "Cluster removed",
        }
    }

    /// Returns whether the decision ends the connections of the cluster.
    fn ends_connections(&self) -> bool {
        !matches!(self, Self::Accept { .. })
    }
}

impl Registration {
    /// Changes the labels of a cluster.
    ///
    /// # Errors
    /// When the cluster is not found, has too many labels, or the write fails. Blocks.
    pub(crate) fn label(
        &self,
        named: &ClusterRecord,
        set: &Labels,
        remove: &[String],
    ) -> Result<ClusterRecord, JoinError> {
        let core = &*self.core;
        let guard = core.directory.write();
        let stored = core.records.stored::<ClusterRecord>(named.id.as_str())?;
        let stored = stored.ok_or_else(|| JoinError::NoCluster(named.name.clone()))?;
        let mut changed = stored.value.clone();
        changed.labels.retain(|key, _| !remove.contains(key));
        changed.labels.extend(set.clone());
        labels::check(&changed.labels)?;
        if changed == stored.value {
            return Ok(changed);
        }
        core.records.commit("labels", &[records::replace(&stored, &changed)])?;
        guard.note(&changed);
        drop(guard);
        self.waker.wake_all();
        tracing::info!(
            cluster = changed.id.as_str(),
            name = changed.name.as_str(),
            "Cluster labelled"
        );
        Ok(changed)
    }

    /// Applies a decision. A connection that it ends is closed before this returns.
    ///
    /// # Errors
    /// When the cluster is not found, the fingerprint differs, or the write fails. Blocks.
    pub(crate) fn decide(
        &self,
        named: &ClusterRecord,
        decision: &Decision,
    ) -> Result<ClusterRecord, JoinError> {
        let core = &*self.core;
        let name = &named.name;
        let guard = core.directory.write();
        let stored = core.records.stored::<ClusterRecord>(named.id.as_str())?;
        let stored = stored.ok_or_else(|| JoinError::NoCluster(name.clone()))?;
        let (changed, mut changes) = change(core, &stored, decision)?;
        let living = core.directory.named(name).is_some_and(|living| living.id == named.id);
        let is_removal = *decision == Decision::Remove;
        if decision.ends_connections() {
            changes.extend(dead_tokens(core, &changed, living)?);
        }
        if is_removal && living && core.records.default_cluster()?.as_ref() == Some(name) {
            changes.push(next_default(core, &changed));
        }
        core.records.commit(decision.word(), &changes)?;
        if is_removal && !changed.removed {
            guard.forget(&changed);
        } else {
            guard.note(&changed);
        }
        drop(guard);
        if decision.ends_connections() {
            core.fleet.close(&changed.id, CLOSE_NOT_ADMITTED, Reason::ClusterRevoked);
        }
        if is_removal {
            core.fleet.forget(&changed.id);
        }
        core.directory.measure(&core.metrics);
        self.waker.wake_all();
        tracing::info!(cluster = changed.id.as_str(), name = name.as_str(), "{}", decision.event());
        Ok(changed)
    }
}

/// Returns the record after a decision, and the changes to commit.
fn change(
    core: &Core,
    stored: &Stored<ClusterRecord>,
    decision: &Decision,
) -> Result<(ClusterRecord, Vec<Change>), JoinError> {
    let record = stored.value.clone();
    let changed = match decision {
        Decision::Accept { fingerprint } => accepted(core, record, fingerprint)?,
        Decision::Revoke { because } => revoked(&record, because),
        Decision::Evict => {
            let mut certificates = record.certificates.clone();
            certificates.invalidate(now_s());
            ClusterRecord {
                state: ClusterState::Pending,
                certificates,
                certificate_expires_at: None,
                ..record
            }
        }
        // A revoked identity stays rejected after its removal.
        Decision::Remove if record.state == ClusterState::Revoked => {
            let changed = ClusterRecord { removed: true, ..record };
            let mut changes = removal(core, &changed)?;
            changes.push(records::replace(stored, &changed));
            return Ok((changed, changes));
        }
        Decision::Remove => {
            let mut changes = removal(core, &record)?;
            changes.push(records::delete(&record));
            return Ok((record, changes));
        }
    };
    let changes = vec![records::replace(stored, &changed)];
    Ok((changed, changes))
}

fn accepted(core: &Core, record: ClusterRecord, given: &str) -> Result<ClusterRecord, JoinError> {
    if record.state == ClusterState::Revoked {
        return Err(JoinError::ClusterRevoked(record.id));
    }
    if record.state == ClusterState::IdentityCopied {
        return Err(JoinError::IdentityCopied(record.name));
    }
    if core.records.is_evicted(&record)? {
        return Err(JoinError::Evicted(record.name));
    }
    let actual = fingerprint_of(&record);
    if actual != given {
        let given = given.to_owned();
        return Err(JoinError::Fingerprint { name: record.name, given, actual });
    }
    Ok(ClusterRecord { state: ClusterState::Accepted, ..record })
}

/// Makes the cluster that was registered first the default after `removed`.
fn next_default(core: &Core, removed: &ClusterRecord) -> Change {
    let others = core.directory.all().into_iter();
    let living =
        others.filter(|other| other.id != removed.id && other.state != ClusterState::Revoked);
    let next = living.min_by_key(|other| other.registered_at);
    records::default_cluster_change(next.as_ref().map(|next| &next.name))
}

/// Revokes the tokens with which the cluster could join again without a further decision of an operator: those it has
/// used, those created for its identity, and, while it holds its name, those created for the name.
fn dead_tokens(
    core: &Core,
    record: &ClusterRecord,
    living: bool,
) -> Result<Vec<Change>, StoreError> {
    let all: Vec<TokenRecord> = core.records.all()?;
    let dead = all.into_iter().filter(|token| !token.revoked && admits(token, record, living));
    Ok(dead.map(|token| records::put(&TokenRecord { revoked: true, ..token })).collect())
}

/// Returns whether `token` admits the cluster of `record`, which holds its name when it is `living`.
fn admits(token: &TokenRecord, record: &ClusterRecord, living: bool) -> bool {
    match (&token.used, &token.identity) {
        (Some(used), _) => used.cluster == record.id && record.state == ClusterState::Pending,
        (None, Some(identity)) => *identity == record.id,
        (None, None) => living && token.cluster == record.name,
    }
}

/// Deletes the reported policy and the reports of a cluster. Its ledgers stay, so that sequences only rise.
fn removal(core: &Core, record: &ClusterRecord) -> Result<Vec<Change>, JoinError> {
    let mut changes = Vec::new();
    if let Some(policy) = core.records.get::<PolicyRecord>(record.id.as_str())? {
        changes.push(records::delete(&policy));
    }
    for (destination, _) in core.fleet.heads_of(&record.id) {
        if let Some(report) = core.fleet.report(&destination) {
            changes.push(records::delete(report.as_ref()));
        }
    }
    Ok(changes)
}

pub(super) fn revoked(record: &ClusterRecord, because: &str) -> ClusterRecord {
    ClusterRecord {
        state: ClusterState::Revoked,
        certificate_expires_at: None,
        revoked_because: Some(because.chars().take(200).collect()),
        ..record.clone()
    }
}

/// Returns the `SHA256:` fingerprint of a cluster's identity key.
pub(crate) fn fingerprint_of(record: &ClusterRecord) -> String {
    let raw = data_encoding::HEXLOWER.decode(record.identity_key.as_bytes()).unwrap_or_default();
    <[u8; 32]>::try_from(raw).map_or_else(|_| String::new(), |key| fingerprint(&key))
}
