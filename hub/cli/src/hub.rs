//! `attest hub …`: making a hub and knowing where it is.

mod operator;

use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use attest_hub::home::{self, Advertise, Created};
use attest_runtime::variables::refuse_former;
use clap::Subcommand;
use serde::Serialize;

use crate::context::{self, Config, Hub};
use crate::printer::{Output, Printer, Table};

const API_PORT: u16 = 8443;
/// The variable that `attest hub` read before.
const HOME_VARIABLE_FORMER: &str = "ATTEST_HOME";
const HOME_DEFAULT: &str = ".attest-hub";

/// Make and list hubs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a hub: its certificate authority, its signing key and this operator's credentials
    Init(InitArgs),
    /// Who may operate a hub
    #[command(subcommand)]
    Operator(operator::Command),
    /// List the hubs of the context
    #[command(visible_alias = "ls")]
    List(Output),
}

#[derive(Debug, clap::Args)]
struct InitArgs {
    /// Directory for everything the hub keeps; it must not exist yet
    #[arg(long, env = home::HOME_VARIABLE, value_name = "DIR", default_value = HOME_DEFAULT)]
    home: PathBuf,
    /// Address that spokes dial, over UDP
    #[arg(long, value_name = "HOST:PORT")]
    advertise: String,
    /// Address of the API for operators; the host of --advertise and port 8443 when absent
    #[arg(long, value_name = "HOST:PORT")]
    api_advertise: Option<String>,
    /// What the context calls this hub
    #[arg(long, default_value = "main")]
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown<'a> {
    name: &'a str,
    api_url: &'a str,
    spoke_address: &'a str,
    ca_pin: &'a str,
    hub_key_id: &'a str,
    current: bool,
}

pub(crate) fn run(args: Args, printer: &Printer) -> anyhow::Result<()> {
    if !matches!(args.command, Command::List(_)) {
        refuse_former(HOME_VARIABLE_FORMER, home::HOME_VARIABLE)?;
    }
    match args.command {
        Command::Init(args) => init(args, printer),
        Command::Operator(command) => operator::run(command, printer),
        Command::List(output) => list(output, printer),
    }
}

fn init(args: InitArgs, printer: &Printer) -> anyhow::Result<()> {
    let InitArgs { home: directory, advertise, api_advertise, name } = args;
    let (host, _) = split(&advertise).context("--advertise")?;
    let api = api_advertise.unwrap_or_else(|| format!("{host}:{API_PORT}"));
    split(&api).context("--api-advertise")?;
    let mut config = Config::load()?;
    if config.hubs.iter().any(|hub| hub.name == name) {
        bail!("the context has a hub `{name}` already; choose another --name");
    }
    let advertise = Advertise { spoke_address: advertise, api_url: format!("https://{api}") };
    let created = home::create(&directory, &advertise)?;

    config.hubs.push(entry(&name, created));
    config.current_hub = Some(name.clone());
    config.save().with_context(|| {
        let home = directory.display();
        format!(
            "the hub in {home} is made, but its context is not; once that is mended: \
             `attest hub operator issue admin --home {home} --context-name {name} --save`"
        )
    })?;

    printer.line(&format!("hub/{name} created in {}", directory.display()));
    if let Some(hub) = config.hubs.last() {
        printer.note(&format!("  certificate authority  {}", hub.ca_pin));
        printer.note(&format!("  signing key            {}", hub.hub_key_id));
        printer.note(&format!("  context                {}", context::path()?.display()));
    }
    printer.note("next:");
    // Without a flag the API listens for this machine only.
    let (host, port) = split(&api)?;
    let is_local = host == "localhost"
        || host.trim_matches(['[', ']']).parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let listen = if is_local { String::new() } else { format!(" --listen-api :{port}") };
    printer.note(&format!("  attest-hub --home {}{listen}", directory.display()));
    Ok(())
}

/// A context's entry for a hub.
fn entry(name: &str, created: Created) -> Hub {
    Hub {
        name: name.to_owned(),
        api_url: created.api_url,
        spoke_address: created.spoke_address,
        ca_pin: created.ca_pin,
        hub_key_id: created.hub_key_id,
        hub_key: created.hub_key_pem,
        operator_chain: created.operator_chain_pem,
        operator_key: created.operator_key_pem.to_string(),
    }
}

pub(crate) fn list(output: Output, printer: &Printer) -> anyhow::Result<()> {
    let config = Config::load()?;
    let current = config.hub(None).ok().map(|hub| hub.name.clone());
    let shown: Vec<Shown<'_>> = config
        .hubs
        .iter()
        .map(|hub| Shown {
            name: &hub.name,
            api_url: &hub.api_url,
            spoke_address: &hub.spoke_address,
            ca_pin: &hub.ca_pin,
            hub_key_id: &hub.hub_key_id,
            current: current.as_ref() == Some(&hub.name),
        })
        .collect();
    let list = attest_documents::List::new("Hub", shown);
    printer.result(output.format, &list, || {
        let mut table = Table::new(&["name", "current", "api", "spokes"]);
        for hub in &list.items {
            table.row([
                hub.name,
                if hub.current { "*" } else { "" },
                hub.api_url,
                hub.spoke_address,
            ]);
        }
        table
    })
}

/// Host and port of `HOST:PORT`; an IPv6 host is in brackets.
fn split(address: &str) -> anyhow::Result<(&str, u16)> {
    let parts = address.rsplit_once(':').filter(|(host, _)| {
        !host.is_empty() && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')))
    });
    let (host, port) =
        parts.with_context(|| format!("`{address}` is not HOST:PORT, like hub.example:4433"))?;
    let port = port.parse().with_context(|| format!("`{address}` has no usable port"))?;
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_host_and_a_port() {
        assert_eq!(split("hub.example:4433").unwrap(), ("hub.example", 4433));
        assert_eq!(split("[::1]:4433").unwrap(), ("[::1]", 4433));
        for bad in ["hub.example", ":4433", "::1:4433", "hub.example:", "hub.example:99999", ""] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }
}
