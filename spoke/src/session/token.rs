//! The join token in the cluster: deleted once it is used.

use attest_common::basics::text::error_chain;
use attest_common::record::custody::JOIN_SECRET;
use attest_runtime::failpoint;

use crate::cluster::client::ApiServer;
use crate::trust::secrets;

/// Deletes the used join token. Also called after a start: the previous process may have died before.
pub async fn forget(api: &ApiServer) {
    failpoint::reach("before-join-delete");
    let deleted = api.delete_own(&secrets::path(JOIN_SECRET)).await;
    failpoint::reach("after-join-delete");
    if let Err(error) = deleted {
        tracing::warn!(
            reason = error.reason().as_str(),
            error = %error_chain(&error),
            "Failed to delete the join token"
        );
    }
}
