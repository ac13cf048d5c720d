//! Certificates of spokes: issued when a cluster joins, and renewed while it is connected.

use attest_certs::Issued;
use attest_certs::authority::SPOKE_LIFETIME;
use attest_common::basics::ids::{ClusterId, Timestamp};

use super::{JoinError, Registration};
use crate::core::store::records::{self, ClusterRecord, ClusterState};

impl Registration {
    /// Issues the first certificate of a cluster and writes it into `record`.
    pub(super) fn certify(
        &self,
        record: &mut ClusterRecord,
        csr: &[u8],
    ) -> Result<Issued, JoinError> {
        let issued = self
            .authority
            .issue_spoke(csr, record.id.as_str(), SPOKE_LIFETIME)
            .map_err(JoinError::Authority)?;
        record.former_serial = None;
        record.serial = Some(issued.serial.to_string());
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
        let issued = self
            .authority
            .issue_spoke(csr, cluster.as_str(), SPOKE_LIFETIME)
            .map_err(JoinError::Authority)?;
        let previous = &stored.value;
        let record = ClusterRecord {
            serial: Some(issued.serial.to_string()),
            // If the answer to the last renewal was lost, the certificate in use stays valid and the lost one does not.
            former_serial: previous.former_serial.clone().or_else(|| previous.serial.clone()),
            certificate_expires_at: expiry(&issued),
            ..previous.clone()
        };
        self.core.records.commit("certificate", &[records::replace(&stored, &record)])?;
        guard.note(&record);
        Ok(issued.chain.iter().map(|certificate| certificate.to_vec()).collect())
    }
}

fn expiry(issued: &Issued) -> Option<Timestamp> {
    Timestamp::try_from(issued.not_after).ok()
}
