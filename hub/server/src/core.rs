//! State shared by all parts of the hub: the store and its copies in memory, the signing key, and metrics.
//!
//! It does not depend on HTTP, on the sessions of spokes, or on reconciliation.

pub mod addresses;
pub mod blocking;
pub mod certificates;
pub mod configuration;
pub mod directory;
pub mod epoch;
pub mod fleet;
mod holders;
pub mod limiter;
pub mod metrics;
pub mod own_cluster;
pub mod position;
pub mod signer;
pub mod stop;
pub mod store;

use std::sync::Arc;

use addresses::SpokeAddressesCell;
use configuration::ConfigurationCell;
use directory::Directory;
use epoch::Epoch;
use fleet::Fleet;
use metrics::Metrics;
use own_cluster::OwnClusterCell;
use signer::Signer;
use stop::Stop;
use store::StoreError;
use store::records::Records;

/// Target of the log lines about applications.
pub(crate) const CONTROLLER: &str = "attest_gitops::controller";

/// State shared by all parts of the hub.
#[derive(Debug)]
pub struct Core {
    pub epoch: Epoch,
    pub signer: Signer,
    pub records: Records,
    pub fleet: Fleet,
    pub directory: Directory,
    pub metrics: Metrics,
    pub own_cluster: OwnClusterCell,
    pub addresses: SpokeAddressesCell,
    pub configuration: ConfigurationCell,
    pub stop: Arc<Stop>,
}

impl Core {
    /// Begins a new epoch and loads the store. Blocks.
    ///
    /// # Errors
    /// When the store cannot be read or written.
    pub fn start(
        records: Records,
        signer: Signer,
        metrics: Metrics,
    ) -> Result<Arc<Self>, StoreError> {
        let epoch = Epoch::begin(&records)?;
        records.drop_unused_blobs()?;
        Ok(Arc::new(Self {
            epoch,
            signer,
            fleet: Fleet::load(&records)?,
            directory: Directory::load(&records)?,
            metrics,
            own_cluster: OwnClusterCell::default(),
            addresses: SpokeAddressesCell::default(),
            configuration: ConfigurationCell::default(),
            records,
            stop: Arc::default(),
        }))
    }
}
