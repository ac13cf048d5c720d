//! Certificates of spokes: issued when a cluster joins, renewed while it is connected, and admitted when presented.

use attest_certs::authority::SPOKE_LIFETIME;
use attest_certs::{Issued, PeerIdentity};
use attest_common::basics::ids::{ClusterId, Timestamp};
use attest_common::basics::reason::Reason;
use attest_runtime::clock::now;

use super::super::close::CLOSE_NOT_ADMITTED;
use super::super::error::LinkError;
use super::{JoinError, Registration};
use crate::core::certificates::Presentation;
use crate::core::directory::WriteGuard;
use crate::core::store::records::{self, ClusterRecord, ClusterState, Stored};

/// Evidence of a copy: a certificate that a newer one has replaced.
const REPLACED: &str = "a spoke presented a certificate that a newer one has replaced";
/// Evidence of a copy: two concurrent holders of one certificate.
const ALTERNATING: &str = "two processes alternate on one certificate";

impl Registration {
    /// Issues the next certificate of a cluster and writes it into `record`.
    pub(super) fn certify(
        &self,
        record: &mut ClusterRecord,
        csr: &[u8],
    ) -> Result<Issued, JoinError> {
        let generation = record.certificates.issue(now_s());
        let issued = self
            .authority
            .issue_spoke(csr, record.id.as_str(), generation, SPOKE_LIFETIME)
            .map_err(JoinError::Authority)?;
        record.certificate_expires_at = expiry(&issued);
        Ok(issued)
    }

    /// Issues a certificate for a new key of a connected cluster. Returns its chain, leaf first, as DER.
    ///
    /// # Errors
    /// When the cluster is no longer accepted or the request is invalid. Blocks.
    pub(crate) fn renew(&self, cluster: &ClusterId, csr: &[u8]) -> Result<Vec<Vec<u8>>, JoinError> {
        let guard = self.core.directory.write();
        let stored = self.core.records.stored::<ClusterRecord>(cluster.as_str())?;
        let accepted = stored.filter(|stored| stored.value.state == ClusterState::Accepted);
        let stored = accepted.ok_or_else(|| JoinError::ClusterRevoked(cluster.clone()))?;
        let mut record = stored.value.clone();
        let issued = self.certify(&mut record, csr)?;
        self.core.records.commit("certificate", &[records::replace(&stored, &record)])?;
        guard.note(&record);
        Ok(issued.chain.iter().map(|certificate| certificate.to_vec()).collect())
    }

    /// Admits the spoke with a certificate of this fleet. The first use of a certificate invalidates earlier ones and is
    /// durable before this returns. If the certificate proves that the identity was copied, neither holder is admitted
    /// until the cluster rejoins. Blocks.
    ///
    /// # Errors
    /// When the cluster is not accepted or the certificate is no longer valid.
    pub(crate) fn admit(&self, peer: &PeerIdentity) -> Result<(), LinkError> {
        let id = cluster_id(peer)?;
        let guard = self.core.directory.write();
        let stored = self.core.records.stored::<ClusterRecord>(id.as_str())?;
        let Some(stored) = stored else { return Err(LinkError::ClusterUnknown(id)) };
        let record = &stored.value;
        check_accepted(record)?;
        match record.certificates.present(peer.generation, &peer.serial.to_string()) {
            Presentation::Current => Ok(()),
            Presentation::NotCurrent => Err(LinkError::CertificateNotCurrent(id)),
            Presentation::FirstUse(certificates) => {
                let used = ClusterRecord { certificates, ..record.clone() };
                self.core.records.commit("certificate", &[records::replace(&stored, &used)])?;
                guard.note(&used);
                Ok(())
            }
            Presentation::Copied => Err(self.exclude(&stored, guard, (peer, REPLACED))),
        }
    }

    /// Admits a process of the spoke that has greeted the hub with a certificate that [`Registration::admit`] admits.
    /// If processes alternate on it, the identity was copied, with the same consequences. Blocks.
    ///
    /// # Errors
    /// When the cluster is not accepted or its identity was copied.
    pub(crate) fn admit_process(
        &self,
        peer: &PeerIdentity,
        process: &[u8],
    ) -> Result<(), LinkError> {
        let id = cluster_id(peer)?;
        if !self.core.fleet.is_copied(&id, &peer.serial.to_string(), process) {
            return Ok(());
        }
        let guard = self.core.directory.write();
        let stored = self.core.records.stored::<ClusterRecord>(id.as_str())?;
        let Some(stored) = stored else { return Err(LinkError::ClusterUnknown(id)) };
        check_accepted(&stored.value)?;
        Err(self.exclude(&stored, guard, (peer, ALTERNATING)))
    }

    /// Excludes every holder of a cluster's identity until the cluster rejoins. Returns the error for the session.
    fn exclude(
        &self,
        stored: &Stored<ClusterRecord>,
        guard: WriteGuard<'_>,
        (peer, evidence): (&PeerIdentity, &'static str),
    ) -> LinkError {
        let record = &stored.value;
        let copied = ClusterRecord { state: ClusterState::IdentityCopied, ..record.clone() };
        if let Err(error) = self.core.records.commit("copy", &[records::replace(stored, &copied)]) {
            return error.into();
        }
        guard.note(&copied);
        drop(guard);
        self.report_copy(&copied, peer, evidence);
        LinkError::IdentityCopied(copied.id)
    }

    /// Ends the session of a cluster whose identity was copied, and makes the copy visible.
    fn report_copy(&self, record: &ClusterRecord, peer: &PeerIdentity, evidence: &'static str) {
        let core = &self.core;
        core.fleet.close(&record.id, CLOSE_NOT_ADMITTED, Reason::IdentityCopied);
        core.metrics.identity_copies.inc();
        core.directory.measure(&core.metrics);
        self.waker.wake_cluster(&record.name);
        tracing::error!(
            cluster = record.id.as_str(),
            name = record.name.as_str(),
            reason = Reason::IdentityCopied.as_str(),
            generation = peer.generation,
            serial = peer.serial.to_string(),
            evidence,
            "A spoke was not admitted, because the cluster's identity was copied or restored from a backup; find out \
             who has it, then run `attest gitops cluster rejoin`"
        );
    }
}

/// Checks that the cluster may have a session.
///
/// # Errors
/// The state that excludes it.
pub(crate) fn check_accepted(record: &ClusterRecord) -> Result<(), LinkError> {
    let id = record.id.clone();
    match record.state {
        ClusterState::Accepted => Ok(()),
        ClusterState::Pending => Err(LinkError::ClusterPending(id)),
        ClusterState::IdentityCopied => Err(LinkError::IdentityCopied(id)),
        ClusterState::Revoked => Err(LinkError::ClusterRevoked(id)),
    }
}

/// The current time in seconds, for generations.
pub(super) fn now_s() -> u64 {
    u64::try_from(now().as_second()).unwrap_or(0)
}

fn expiry(issued: &Issued) -> Option<Timestamp> {
    Timestamp::try_from(issued.not_after).ok()
}

/// Reads the cluster's id from a spoke's certificate.
pub(crate) fn cluster_id(peer: &PeerIdentity) -> Result<ClusterId, LinkError> {
    peer.id.name().parse().map_err(|_| LinkError::HelloInvalid("cluster id"))
}
