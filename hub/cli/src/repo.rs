//! `attest gitops repo …`: the Git repositories that the hub reads, and their credentials.

use std::path::{Path, PathBuf};

use attest_documents::{List, Repository, RepositoryRemoval, RepositoryRequest};
use clap::Subcommand;
use reqwest::Method;

use crate::client::block_on;
use crate::hub_args::HubArgs;
use crate::input::read_small;
use crate::printer::{OutputArgs, Printer, TextTable};

#[derive(Debug, clap::Args)]
pub(crate) struct RepoArgs {
    #[command(subcommand)]
    command: RepoCommand,
}

#[derive(Debug, Subcommand)]
enum RepoCommand {
    /// Give the hub read access to a repository
    Add(Box<RepoAddArgs>),
    /// Remove a repository's credentials; applications continue without credentials
    Rm {
        /// URL that was passed to `repo add`
        url: String,
    },
    /// List repositories, without their credentials
    #[command(visible_alias = "ls")]
    List(OutputArgs),
}

#[derive(Debug, clap::Args)]
struct RepoAddArgs {
    /// URL, as used in `repoURL` of applications
    url: String,
    /// User name for https
    #[arg(long, requires = "password_file", conflicts_with = "ssh_key")]
    username: Option<String>,
    /// File with the password or token for https
    #[arg(long, requires = "username", value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Private key for ssh, without a passphrase
    #[arg(long, requires = "known_hosts", value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// Known host keys for ssh; other hosts are rejected
    #[arg(long, requires = "ssh_key", value_name = "FILE")]
    known_hosts: Option<PathBuf>,
    /// CA certificates for https, used instead of the system's
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Accept a credential that can push; an attacker who controls the hub could use it to push
    #[arg(long)]
    allow_push_credential: bool,
    /// Allow addresses on the hub's own machine, such as localhost
    #[arg(long)]
    allow_loopback: bool,
}

pub(crate) fn run(args: RepoArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        RepoCommand::Add(args) => add(*args, hub, printer),
        RepoCommand::Rm { url } => {
            let request = RepositoryRemoval { url: url.clone() };
            block_on(hub.client()?.send_only(Method::DELETE, "/v1/repositories", Some(&request)))?;
            printer.line(&format!("repository/{url} removed"));
            Ok(())
        }
        RepoCommand::List(output) => list_repositories(output, hub, printer),
    }
}

fn add(args: RepoAddArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let RepoAddArgs {
        url,
        username,
        password_file,
        ssh_key,
        known_hosts,
        ca_file,
        allow_push_credential,
        allow_loopback,
    } = args;
    let password = read_optional(password_file.as_deref())?
        .map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    let request = RepositoryRequest {
        url,
        username,
        password,
        ssh_key: read_optional(ssh_key.as_deref())?,
        known_hosts: read_optional(known_hosts.as_deref())?,
        ca: read_optional(ca_file.as_deref())?,
        allow_push_credential,
        allow_loopback,
    };
    let client = hub.client()?;
    let repository: Repository = block_on(client.put("/v1/repositories", &request))?;
    printer.line(&format!("repository/{} added", repository.url));
    for condition in repository.conditions.iter().filter(|condition| condition.status != "True") {
        printer.warning(&format!("{}: {}", condition.reason, condition.message));
    }
    Ok(())
}

fn read_optional(file: Option<&Path>) -> anyhow::Result<Option<String>> {
    file.map(read_small).transpose()
}

fn list_repositories(output: OutputArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let repositories: List<Repository> = block_on(client.get("/v1/repositories"))?;
    printer.result(output.format, &repositories, || {
        let mut table = TextTable::new(&["url", "credential", "conditions"]);
        for repository in &repositories.items {
            let conditions: Vec<String> = repository
                .conditions
                .iter()
                .map(|condition| match condition.status.as_str() {
                    "True" => condition.kind.clone(),
                    _ => format!("{}={} ({})", condition.kind, condition.status, condition.reason),
                })
                .collect();
            table.row([&repository.url, &repository.credential, &conditions.join(", ")]);
        }
        table
    })
}
