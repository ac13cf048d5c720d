//! The flag that names a hub, and the client that follows from it.

use crate::client::Client;

/// Which hub.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HubArgs {
    /// Hub of the context to talk to; the current one when absent
    #[arg(long, env = "ATTEST_HUB", global = true, value_name = "NAME")]
    pub(crate) hub: Option<String>,
}

impl HubArgs {
    /// A client for that hub.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::from_context(self.hub.as_deref())
    }
}
