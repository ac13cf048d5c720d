//! `attest hub operator …`: who may operate a hub. Works on the hub's home, whether the hub runs or not.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use attest_common::basics::ids::Timestamp;
use attest_documents::List;
use attest_hub::home::{self, Created};
use clap::Subcommand;

use super::{HOME_DEFAULT, entry};
use crate::context::{self, Config};
use crate::human::{age, confirm_loss, until};
use crate::printer::{Output, Printer, Table};
use crate::target::write_private;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Issue a certificate for an operator, with the hub's authority; also renews one
    Issue(IssueArgs),
    /// List the certificates that were issued
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        home: HomeArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Refuse a certificate from now on, also on connections that are open
    Revoke {
        /// As `list` shows it
        serial: String,
        #[command(flatten)]
        home: HomeArgs,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// Who it is for, as `list` shows it
    name: String,
    #[command(flatten)]
    home: HomeArgs,
    /// What the context calls this hub
    #[arg(long, default_value = "main", value_name = "NAME")]
    context_name: String,
    /// Write the context for that operator here, for its owner only, and do not print it
    #[arg(short, long, value_name = "FILE", conflicts_with = "save")]
    output: Option<PathBuf>,
    /// Put it into your own context, in place of the certificate you have for this hub
    #[arg(long)]
    save: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct HomeArgs {
    /// The hub's directory
    #[arg(long, env = home::HOME_VARIABLE, value_name = "DIR", default_value = HOME_DEFAULT)]
    home: PathBuf,
}

pub(super) fn run(command: Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Issue(args) => issue(args, printer),
        Command::List { home, output } => list(&home.home, output, printer),
        Command::Revoke { serial, home, yes } => revoke(&home.home, &serial, yes, printer),
    }
}

fn issue(args: IssueArgs, printer: &Printer) -> anyhow::Result<()> {
    let IssueArgs { name, home, context_name, output, save } = args;
    if output.as_ref().is_some_and(|file| file.exists()) {
        bail!("{} exists already; choose another --output", output.unwrap_or_default().display());
    }
    // What cannot be kept is not issued.
    let config = Config::load()?;
    if save {
        check_name(&config, &context_name, &home::authority_pin(&home.home)?)?;
    }
    let created = home::issue_operator(&home.home, &name)?;
    let said = format!("operator/{name} issued, good for {}", until(created.operator_expires_at));
    match output {
        Some(file) => {
            write_private(&file, context_for(&context_name, created)?.as_bytes())?;
            printer.line(&said);
            printer.note(&format!("next, for {name}: ATTEST_CONFIG={}", file.display()));
        }
        None if save => {
            renewed(config, &context_name, created).save()?;
            printer.line(&said);
            printer.note(&format!("it is in {} now", context::path()?.display()));
        }
        None => {
            printer.text(&context_for(&context_name, created)?);
            printer.note(&said);
        }
    }
    Ok(())
}

fn context_for(name: &str, created: Created) -> anyhow::Result<String> {
    let config = Config {
        current_hub: Some(name.to_owned()),
        hubs: vec![entry(name, created)],
        keys: Vec::new(),
    };
    serde_saphyr::to_string(&config).context("the context cannot be written")
}

/// Refuses a name that the context has for the hub of another authority.
fn check_name(config: &Config, name: &str, ca_pin: &str) -> anyhow::Result<()> {
    let is_known = config.hubs.iter().any(|hub| hub.ca_pin == ca_pin);
    if !is_known && config.hubs.iter().any(|hub| hub.name == name) {
        bail!("the context has another hub `{name}`; choose another --context-name");
    }
    Ok(())
}

/// The context with this certificate for the hub of the same authority, or with one hub more.
fn renewed(mut config: Config, name: &str, created: Created) -> Config {
    if let Some(hub) = config.hubs.iter_mut().find(|hub| hub.ca_pin == created.ca_pin) {
        *hub = entry(&hub.name.clone(), created);
        return config;
    }
    config.current_hub.get_or_insert_with(|| name.to_owned());
    config.hubs.push(entry(name, created));
    config
}

fn list(home: &Path, output: Output, printer: &Printer) -> anyhow::Result<()> {
    let list = List::new("Operator", home::operators(home)?.all()?);
    printer.result(output.format, &list, || {
        let mut table = Table::new(&["serial", "name", "state", "age", "expires"]);
        for operator in &list.items {
            let state = match operator.revoked_at {
                Some(_) => "Revoked",
                None if Timestamp::now() >= operator.expires_at => "Expired",
                None => "Good",
            };
            let (age, expires) = (age(operator.issued_at), until(operator.expires_at));
            table.row([&operator.serial, &operator.name, state, &age, &expires]);
        }
        table
    })
}

fn revoke(home: &Path, serial: &str, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    let operators = home::operators(home)?;
    let known = operators.get(serial)?;
    let name = known.as_ref().map_or(home::UNKNOWN_NAME, |operator| operator.name.as_str());
    let question = format!("Shut operator {name} ({serial}) out?");
    confirm_loss(&question, yes, printer)?;
    let revoked = operators.revoke(serial, Timestamp::now())?;
    printer.line(&format!("operator/{} revoked", revoked.name));
    if known.is_none() {
        printer
            .warning("no certificate with this serial was noted here; it is refused all the same");
    }
    // One that cannot be read is no reason not to revoke another.
    let all = operators.all().unwrap_or_default();
    if !all.is_empty() && all.iter().all(|other| other.revoked_at.is_some()) {
        printer
            .note("nobody can operate this hub now; next: attest hub operator issue NAME --save");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_for_a_hub_that_is_known_takes_the_place_of_the_one_there() {
        attest_certs::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("home");
        let advertise = home::Advertise {
            spoke_address: "127.0.0.1:4433".into(),
            api_url: "https://127.0.0.1:8443".into(),
        };
        let first = home::create(&path, &advertise).unwrap();
        let config = Config { current_hub: None, hubs: vec![entry("west", first)], keys: vec![] };
        let old = config.hubs[0].operator_chain.clone();

        let next = home::issue_operator(&path, "admin").unwrap();
        let config = renewed(config, "main", next);

        assert_eq!(config.hubs.len(), 1);
        assert_eq!(config.hubs[0].name, "west");
        assert_ne!(config.hubs[0].operator_chain, old);
        assert_eq!(home::operators(&path).unwrap().all().unwrap().len(), 2);
    }
    #[test]
    fn a_name_that_another_hub_has_is_refused_before_anything_is_issued() {
        attest_certs::install_provider();
        let directory = tempfile::tempdir().unwrap();
        let advertise = home::Advertise {
            spoke_address: "127.0.0.1:4433".into(),
            api_url: "https://127.0.0.1:8443".into(),
        };
        let created = home::create(&directory.path().join("home"), &advertise).unwrap();
        let pin = created.ca_pin.clone();
        let config = Config { current_hub: None, hubs: vec![entry("main", created)], keys: vec![] };

        for (name, ca_pin, is_free) in [
            ("main", pin.as_str(), true),
            ("main", "sha256:00", false),
            ("east", "sha256:00", true),
        ] {
            assert_eq!(check_name(&config, name, ca_pin).is_ok(), is_free, "{name} {ca_pin}");
        }
    }
}
