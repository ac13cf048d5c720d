//! The signed heartbeat of a session: the newest directives of its cluster, so that a spoke detects missing ones.

use attest_common::basics::ids::{ClusterId, DestinationKey};
use attest_common::documents::plan::{HEADS_MAX, Head, SYNC_LIFETIME_MAX_MS, Sync};
use attest_runtime::clock::{after, now};

use crate::core::Core;
use crate::core::signer::Signed;
use crate::core::store::records::LedgerEntry;

/// Returns the signed heartbeat of one cluster.
pub(super) fn heartbeat(core: &Core, cluster: &ClusterId, nonce: &str, counter: u64) -> Signed {
    let heads = core.fleet.heads_of(cluster).into_iter();
    // A destination that is removed needs no head.
    let living = heads
        .filter(|(place, head)| !head.is_removed(core.fleet.report(place).as_deref()))
        .map(|(place, entry)| head(place, &entry));
    let issued_at = now();
    core.signer.sync(&Sync {
        v: 1,
        cluster: cluster.clone(),
        epoch: core.epoch.current(),
        counter,
        nonce: nonce.to_owned(),
        heads: living.take(HEADS_MAX).collect(),
        issued_at,
        expires_at: after(issued_at, SYNC_LIFETIME_MAX_MS),
    })
}

fn head(destination: DestinationKey, entry: &LedgerEntry) -> Head {
    let DestinationKey { application, namespace, .. } = destination;
    Head { application, namespace, sequence: entry.sequence }
}
