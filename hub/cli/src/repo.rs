//! `attest gitops repo …`: which Git repositories the hub may read, and with what.

use std::path::PathBuf;

use attest_documents::{List, Repository, RepositoryRemoval, RepositoryRequest};
use clap::Subcommand;
use reqwest::Method;

use crate::client::block_on;
use crate::hub_args::HubArgs;
use crate::input::read_small;
use crate::printer::{Output, Printer, Table};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Give the hub read access to a repository
    Add(Box<AddArgs>),
    /// Forget a repository's credentials; applications that name it go on without any
    Rm {
        /// Address, as it was added
        url: String,
    },
    /// List repositories; credentials are never shown
    #[command(visible_alias = "ls")]
    List(Output),
}

#[derive(Debug, clap::Args)]
struct AddArgs {
    /// Address, as applications write it in `repoURL`
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
    /// Host keys for ssh; a host that is not listed is refused
    #[arg(long, requires = "ssh_key", value_name = "FILE")]
    known_hosts: Option<PathBuf>,
    /// Certificates that alone are trusted for https
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Accept a credential that can also push, which whoever owns the hub could then do
    #[arg(long)]
    allow_push_credential: bool,
}

pub(crate) fn run(args: Args, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    match args.command {
        Command::Add(args) => add(*args, hub, printer),
        Command::Rm { url } => {
            let request = RepositoryRemoval { url: url.clone() };
            block_on(hub.client()?.act(Method::DELETE, "/v1/repositories", Some(&request)))?;
            printer.line(&format!("repository/{url} removed"));
            Ok(())
        }
        Command::List(output) => list(output, hub, printer),
    }
}

fn add(args: AddArgs, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let AddArgs {
        url,
        username,
        password_file,
        ssh_key,
        known_hosts,
        ca_file,
        allow_push_credential,
    } = args;
    let text = |file: Option<PathBuf>| file.map(|file| read_small(&file)).transpose();
    let password = text(password_file)?.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
    let request = RepositoryRequest {
        url,
        username,
        password,
        ssh_key: text(ssh_key)?,
        known_hosts: text(known_hosts)?,
        ca: text(ca_file)?,
        allow_push_credential,
    };
    let client = hub.client()?;
    let repository: Repository = block_on(client.put("/v1/repositories", &request))?;
    printer.line(&format!("repository/{} added", repository.url));
    for condition in repository.conditions.iter().filter(|condition| condition.status != "True") {
        printer.warning(&format!("{}: {}", condition.reason, condition.message));
    }
    Ok(())
}

fn list(output: Output, hub: &HubArgs, printer: &Printer) -> anyhow::Result<()> {
    let client = hub.client()?;
    let repositories: List<Repository> = block_on(client.get("/v1/repositories"))?;
    printer.result(output.format, &repositories, || {
        let mut table = Table::new(&["url", "credential", "conditions"]);
        for repository in &repositories.items {
            let conditions =
                repository.conditions.iter().map(|condition| match condition.status.as_str() {
                    "True" => condition.kind.clone(),
                    _ => format!("{}={} ({})", condition.kind, condition.status, condition.reason),
                });
            let conditions: Vec<String> = conditions.collect();
            table.row([&repository.url, &repository.credential, &conditions.join(", ")]);
        }
        table
    })
}
