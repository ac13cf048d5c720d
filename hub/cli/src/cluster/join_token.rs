//! Join tokens: `attest gitops cluster token …`, and the tokens that `cluster add` and `cluster rejoin` issue.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use attest_common::basics::ids::Timestamp;
use attest_documents::{List, Token, TokenRequest};
use clap::Subcommand;
use reqwest::Method;

use super::spoke_address;
use crate::client::Client;
use crate::hub_args::HubArgs;
use crate::human::until;
use crate::input::segment;
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::target::write_private;

const VALID_MINUTES_DEFAULT: u64 = 15;

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Create a single-use join token; the cluster that joins with it waits for `cluster accept`
    Create {
        /// Name of the cluster
        cluster: String,
        /// Validity of the token, in minutes
        #[arg(long, default_value_t = VALID_MINUTES_DEFAULT, value_parser = clap::value_parser!(u64).range(1..=1440))]
        ttl_minutes: u64,
        /// Write the token to this file, readable by its owner only, instead of printing it
        #[arg(long, value_name = "FILE")]
        token_output: Option<PathBuf>,
        /// Replace a registered cluster with this name
        #[arg(long)]
        replace: bool,
    },
    /// List join tokens, without their secrets
    #[command(visible_alias = "ls")]
    List(OutputArgs),
    /// Revoke an unused token
    Revoke { id: String },
}

pub(super) async fn run(
    command: TokenCommand,
    hub: &HubArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    let client = hub.client()?;
    match command {
        TokenCommand::Create { cluster, ttl_minutes, token_output, replace } => {
            let request = TokenRequest {
                cluster: cluster.clone(),
                ttl_seconds: ttl_minutes * 60,
                auto_accept: false,
                replace,
                identity: None,
            };
            let token = JoinToken::issue(&client, &request).await?;
            match token_output {
                Some(file) => token.write(&file, printer)?,
                None => printer.line(&token.secret),
            }
            let address = spoke_address(&client, "").await?;
            printer.note(&format!("single-use, valid for {}; next:", until(token.expires_at)));
            printer.note(&format!(
                "  attest-spoke --hub {address} --join-token-file FILE   (in the cluster)"
            ));
            printer
                .note(&format!("  attest gitops cluster accept {cluster} --fingerprint SHA256:…"));
        }
        TokenCommand::List(output) => {
            let tokens: List<Token> = client.get("/v1/tokens").await?;
            printer.result(output.format, &tokens, || token_table(&tokens.items))?;
        }
        TokenCommand::Revoke { id } => {
            client.send_only(Method::DELETE, &token_path(&id), None::<&()>).await?;
            printer.line(&format!("token/{id} revoked"));
        }
    }
    Ok(())
}

fn token_table(tokens: &[Token]) -> TextTable {
    let mut table = TextTable::new(&["id", "cluster", "state", "auto accept", "expires"]);
    for token in tokens {
        let auto_accept = if token.auto_accept { "yes" } else { "no" };
        let expires = until(token.expires_at);
        table.row([&token.id, &token.cluster, &token.state, auto_accept, &expires]);
    }
    table
}

fn token_path(id: &str) -> String {
    format!("/v1/tokens/{}", segment(id))
}

/// A join token with its secret, which the hub returns only once.
pub(super) struct JoinToken {
    id: String,
    pub(super) secret: String,
    pub(super) expires_at: Timestamp,
}

impl JoinToken {
    pub(super) async fn issue(client: &Client, request: &TokenRequest) -> anyhow::Result<Self> {
        let answer = client.post("/v1/tokens", request).await;
        let Token { id, token, expires_at, .. } = answer
            .with_context(|| format!("failed to issue a join token for {}", request.cluster))?;
        let secret = token.context("the hub's response contains no token")?;
        Ok(Self { id, secret, expires_at })
    }

    /// Revokes the token of a registration that failed. The error of the registration is reported, not one of this.
    pub(super) async fn revoke(&self, client: &Client) {
        let _ = client.send_only(Method::DELETE, &token_path(&self.id), None::<&()>).await;
    }

    /// Writes the secret to a file that only its owner can read.
    pub(super) fn write(&self, file: &Path, printer: &Printer) -> anyhow::Result<()> {
        write_private(file, self.secret.as_bytes())?;
        printer.line(&format!("token/{} written to {}", self.id, file.display()));
        Ok(())
    }
}
