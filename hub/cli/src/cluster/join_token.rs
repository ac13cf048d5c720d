//! Join tokens, as the commands that register a cluster use them.

use std::path::Path;

use anyhow::Context as _;
use attest_common::basics::ids::Timestamp;
use attest_documents::{Token, TokenRequest};
use reqwest::Method;

use super::token_path;
use crate::client::Client;
use crate::printer::Printer;
use crate::target::write_private;

/// A join token with its secret, which the hub shows once.
pub(super) struct JoinToken {
    id: String,
    pub(super) secret: String,
    pub(super) expires_at: Timestamp,
}

impl JoinToken {
    pub(super) async fn issue(client: &Client, request: &TokenRequest) -> anyhow::Result<Self> {
        let Token { id, token, expires_at, .. } =
            client.post("/v1/tokens", request).await.context("the hub gives no join token")?;
        Ok(Self { id, secret: token.context("the hub's answer has no token")?, expires_at })
    }

    /// Revokes the token of a registration that failed. The error of the registration matters more than one here.
    pub(super) async fn revoke(&self, client: &Client) {
        let _ = client.act(Method::DELETE, &token_path(&self.id), None::<&()>).await;
    }

    /// Writes the secret to a file that only its owner can read.
    pub(super) fn write(&self, file: &Path, printer: &Printer) -> anyhow::Result<()> {
        write_private(file, self.secret.as_bytes())?;
        printer.line(&format!("token/{} written to {}", self.id, file.display()));
        Ok(())
    }
}
