//! The flag that selects a hub, and the client for the selected hub.

use crate::client::Client;

/// The flag `--hub`, to be flattened into arguments.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct HubArgs {
    /// Name of the hub to use, as listed in the context; the current hub by default
    #[arg(long, env = "ATTEST_HUB", global = true, value_name = "NAME")]
    pub(crate) hub: Option<String>,
}

impl HubArgs {
    /// A client for the selected hub.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        Client::from_context(self.hub.as_deref())
    }
}
