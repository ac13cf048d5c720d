//! `attest hub …`: hubs of this operator.

mod config;
mod login;
mod operator;

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use attest_hub::home::{self, Advertise, Created};
use attest_runtime::variables::reject_old_name;
use clap::Subcommand;
use serde::Serialize;

use crate::context::{Context, HubContext, path as context_path};
use crate::human::NONE;
use crate::printer::{OutputArgs, Printer, TextTable};

/// Default port of the API for operators.
const API_PORT: u16 = 8443;
/// The variable that `attest hub` read in earlier releases.
const HOME_VARIABLE_OLD: &str = "ATTEST_HOME";
/// Default directory of a hub.
const HOME_DEFAULT: &str = ".attest-hub";

/// Create and list hubs
#[derive(Debug, clap::Args)]
pub(crate) struct HubCommandArgs {
    #[command(subcommand)]
    command: HubCommand,
}

#[derive(Debug, Subcommand)]
enum HubCommand {
    /// Create a hub: its certificate authority, its signing key and the operator's credentials
    Init(HubInitArgs),
    /// Get credentials for a hub in a cluster, with the permissions of a kubeconfig
    Login(login::LoginArgs),
    /// Show the settings of a hub in force, and where each comes from
    Config(config::ConfigArgs),
    /// Manage the operators of a hub
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    /// List the hubs in the context
    #[command(visible_alias = "ls")]
    List(OutputArgs),
}

#[derive(Debug, clap::Args)]
struct HubInitArgs {
    /// Directory to create for the hub
    #[arg(long, env = home::HOME_VARIABLE, value_name = "DIR", default_value = HOME_DEFAULT)]
    home: PathBuf,
    /// Address at which spokes reach the hub, over UDP
    #[arg(long, value_name = "HOST:PORT")]
    advertise: String,
    /// Address of the API for operators; the host of --advertise and port 8443 by default
    #[arg(long, value_name = "HOST:PORT")]
    api_advertise: Option<String>,
    /// Name of the hub in the context
    #[arg(long, default_value = "main")]
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct HubDocument<'a> {
    name: &'a str,
    api_url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    spoke_address: Option<&'a str>,
    ca_pin: &'a str,
    hub_key_id: &'a str,
    current: bool,
}

pub(crate) fn run(args: HubCommandArgs, printer: &Printer) -> anyhow::Result<()> {
    if !matches!(args.command, HubCommand::List(_)) {
        reject_old_name(HOME_VARIABLE_OLD, home::HOME_VARIABLE)?;
    }
    match args.command {
        HubCommand::Init(args) => init(args, printer),
        HubCommand::Login(args) => login::login(&args, printer),
        HubCommand::Config(args) => config::show(&args, printer),
        HubCommand::Operator(command) => operator::run(command, printer),
        HubCommand::List(output) => list_hubs(output, printer),
    }
}

fn init(args: HubInitArgs, printer: &Printer) -> anyhow::Result<()> {
    let HubInitArgs { home: directory, advertise, api_advertise, name } = args;
    let (host, _) = split_address(&advertise).context("invalid --advertise")?;
    let api = api_advertise.unwrap_or_else(|| format!("{host}:{API_PORT}"));
    let (api_host, api_port) = split_address(&api).context("invalid --api-advertise")?;
    let mut context = Context::load()?;
    if context.hubs.iter().any(|hub| hub.name == name) {
        bail!("the context already contains a hub `{name}`; pass another --name");
    }
    let advertise = Advertise { spoke_address: advertise, api_url: format!("https://{api}") };
    let created = home::create(&directory, &advertise)?;

    context.hubs.push(hub_context(&name, created));
    context.current_hub = Some(name.clone());
    context.save().with_context(|| {
        let home = directory.display();
        format!(
            "the hub was created in {home}, but its context was not saved; fix the cause, then run \
             `attest hub operator issue admin --home {home} --context-name {name} --save`"
        )
    })?;

    printer.line(&format!("hub/{name} created in {}", directory.display()));
    if let Some(hub) = context.hubs.last() {
        printer.note(&format!("  certificate authority  {}", hub.ca_pin));
        printer.note(&format!("  signing key            {}", hub.hub_key_id));
        printer.note(&format!("  context                {}", context_path()?.display()));
    }
    printer.note("next:");
    // By default the API is reachable from this machine only.
    let listen =
        if is_loopback(api_host) { String::new() } else { format!(" --listen-api :{api_port}") };
    printer.note(&format!("  attest-hub --home {}{listen}", directory.display()));
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// The context's entry of a hub.
fn hub_context(name: &str, created: Created) -> HubContext {
    HubContext {
        name: name.to_owned(),
        api_url: Some(created.api_url),
        forward: None,
        spoke_address: Some(created.spoke_address),
        ca_pin: created.ca_pin,
        hub_key_id: created.hub_key_id,
        hub_key: created.hub_key_pem,
        operator_chain: created.operator_chain_pem,
        operator_key: created.operator_key_pem.to_string(),
    }
}

pub(crate) fn list_hubs(output: OutputArgs, printer: &Printer) -> anyhow::Result<()> {
    let context = Context::load()?;
    let current = context.hub(None).ok().map(|hub| hub.name.clone());
    let hubs: Vec<HubDocument<'_>> = context
        .hubs
        .iter()
        .map(|hub| HubDocument {
            name: &hub.name,
            api_url: hub.shown_address(),
            spoke_address: hub.spoke_address.as_deref(),
            ca_pin: &hub.ca_pin,
            hub_key_id: &hub.hub_key_id,
            current: current.as_ref() == Some(&hub.name),
        })
        .collect();
    let list = attest_documents::List::new("Hub", hubs);
    printer.result(output.format, &list, || {
        let mut table = TextTable::new(&["name", "current", "api", "spokes"]);
        for hub in &list.items {
            table.row([
                hub.name,
                if hub.current { "*" } else { "" },
                &hub.api_url,
                hub.spoke_address.unwrap_or(NONE),
            ]);
        }
        table
    })
}

/// Splits `HOST:PORT`. An IPv6 host is in brackets.
fn split_address(address: &str) -> anyhow::Result<(&str, u16)> {
    let parts = address.rsplit_once(':').filter(|(host, _)| {
        !host.is_empty() && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
    });
    let (host, port) = parts
        .with_context(|| format!("`{address}` is not HOST:PORT, for example hub.example:4433"))?;
    let port = port.parse().with_context(|| format!("`{address}` has no valid port"))?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert_eq!(split_address("hub.example:4433").unwrap(), ("hub.example", 4433));
        assert_eq!(split_address("[::1]:4433").unwrap(), ("[::1]", 4433));
        for bad in ["hub.example", ":4433", "::1:4433", "hub.example:", "hub.example:99999", ""] {
            assert!(split_address(bad).is_err(), "{bad}");
        }
    }
}
