//! `attest hub operator …`: the operators of a hub. Works on the hub's directory, whether or not the hub is running.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use attest_certs::OperatorRole;
use attest_common::basics::ids::Timestamp;
use attest_documents::List;
use attest_hub::home::{self, Created};
use clap::Subcommand;

use super::{HOME_DEFAULT, hub_context};
use crate::context::{Context, HubContext, path as context_path};
use crate::human::{age, confirm_loss, until};
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::target::write_private;

#[derive(Debug, Subcommand)]
pub(super) enum OperatorCommand {
    /// Issue or renew the certificate of an operator
    Issue(IssueArgs),
    /// List issued certificates
    #[command(visible_alias = "ls")]
    List {
        #[command(flatten)]
        home: HomeArgs,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Revoke a certificate, effective immediately, including on open connections
    Revoke {
        /// Serial number, as shown by `list`
        serial: String,
        #[command(flatten)]
        home: HomeArgs,
        /// Skip the confirmation prompt
        #[arg(short, long)]
        yes: bool,
    },
}

/// Name of the hub in a context, if none is given.
const CONTEXT_NAME_DEFAULT: &str = "main";

#[derive(Debug, clap::Args)]
pub(super) struct IssueArgs {
    /// Name of the operator, as shown by `list`
    name: String,
    /// operator, or viewer for one who reads and changes nothing
    #[arg(long, value_name = "ROLE", default_value_t)]
    role: OperatorRole,
    #[command(flatten)]
    home: HomeArgs,
    /// Name of the hub in the context; `main` by default, and with --save the name that your context has for this hub
    #[arg(long, value_name = "NAME")]
    context_name: Option<String>,
    /// Write the operator's context to this file, readable by its owner only, instead of printing it
    #[arg(short, long, value_name = "FILE", conflicts_with = "save")]
    output: Option<PathBuf>,
    /// Save the certificate in your own context, replacing the one for this hub
    #[arg(long)]
    save: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct HomeArgs {
    /// Directory of the hub
    #[arg(long, env = home::HOME_VARIABLE, value_name = "DIR", default_value = HOME_DEFAULT)]
    home: PathBuf,
}

pub(super) fn run(command: OperatorCommand, printer: &Printer) -> anyhow::Result<()> {
    match command {
        OperatorCommand::Issue(args) => issue(args, printer),
        OperatorCommand::List { home, output } => list_operators(&home.home, output, printer),
        OperatorCommand::Revoke { serial, home, yes } => revoke(&home.home, &serial, yes, printer),
    }
}

fn issue(args: IssueArgs, printer: &Printer) -> anyhow::Result<()> {
    let IssueArgs { name, role, home, context_name, output, save } = args;
    if output.as_ref().is_some_and(|file| file.exists()) {
        bail!("{} already exists; pass another --output", output.unwrap_or_default().display());
    }
    // Checked before a certificate is issued that could not be saved.
    let context = Context::load()?;
    let own = if save { Some(&context) } else { None };
    let context_name = context_name_of(context_name, own, &home::authority_pin(&home.home)?)?;
    let created = home::issue_operator(&home.home, role, &name)?;
    let issued = format!("{role}/{name} issued, valid for {}", until(created.operator_expires_at));
    match output {
        Some(file) => {
            write_private(&file, context_for(&context_name, created)?.as_bytes())?;
            printer.line(&issued);
            printer.note(&format!("next, for {name}: ATTEST_CONFIG={}", file.display()));
        }
        None if save => {
            renewed(context, hub_context(&context_name, created)).save()?;
            printer.line(&issued);
            printer.note(&format!("saved in {}", context_path()?.display()));
        }
        None => {
            printer.text(&context_for(&context_name, created)?);
            printer.note(&issued);
        }
    }
    Ok(())
}

fn context_for(name: &str, created: Created) -> anyhow::Result<String> {
    let context = Context {
        current_hub: Some(name.to_owned()),
        hubs: vec![hub_context(name, created)],
        keys: Vec::new(),
    };
    serde_saphyr::to_string(&context).context("failed to serialize the context")
}

/// Returns the name of the hub in a new context, or in the operator's own. Rejects a name that the context uses for
/// another hub, and another name for a hub that the context knows.
pub(super) fn context_name_of(
    requested: Option<String>,
    own: Option<&Context>,
    ca_pin: &str,
) -> anyhow::Result<String> {
    let name = requested.clone().unwrap_or_else(|| CONTEXT_NAME_DEFAULT.to_owned());
    let Some(context) = own else { return Ok(name) };
    if let Some(known) = context.hubs.iter().find(|hub| hub.ca_pin == ca_pin) {
        return match requested {
            Some(name) if name != known.name => {
                bail!("the context names this hub `{}`; remove --context-name", known.name)
            }
            Some(_) | None => Ok(known.name.clone()),
        };
    }
    if context.hubs.iter().any(|hub| hub.name == name) {
        bail!("the context contains a different hub named `{name}`; pass another --context-name");
    }
    Ok(name)
}

/// The context with this certificate for the hub of the same certificate authority, or with an additional hub.
pub(super) fn renewed(mut context: Context, hub: HubContext) -> Context {
    match context.hubs.iter_mut().find(|known| known.ca_pin == hub.ca_pin) {
        Some(known) => {
            let name = known.name.clone();
            *known = HubContext { name, ..hub };
        }
        None => {
            context.current_hub.get_or_insert_with(|| hub.name.clone());
            context.hubs.push(hub);
        }
    }
    context
}

fn list_operators(home: &Path, output: OutputArgs, printer: &Printer) -> anyhow::Result<()> {
    let list = List::new("Operator", home::operators(home)?.all()?);
    printer.result(output.format, &list, || {
        let mut table = TextTable::new(&["serial", "name", "role", "state", "age", "expires"]);
        for operator in &list.items {
            let state = match operator.revoked_at {
                Some(_) => "Revoked",
                None if Timestamp::now() >= operator.expires_at => "Expired",
                None => "Valid",
            };
            let role = operator.role.to_string();
            let (age, expires) = (age(operator.issued_at), until(operator.expires_at));
            table.row([&operator.serial, &operator.name, &role, state, &age, &expires]);
        }
        table
    })
}

fn revoke(home: &Path, serial: &str, yes: bool, printer: &Printer) -> anyhow::Result<()> {
    let operators = home::operators(home)?;
    let known = operators.get(serial)?;
    let name = known.as_ref().map_or(home::UNKNOWN_NAME, |operator| operator.name.as_str());
    let question = format!("Revoke the certificate {serial} of operator {name}?");
    confirm_loss(&question, yes, printer)?;
    let revoked = operators.revoke(serial, Timestamp::now())?;
    printer.line(&format!("operator/{} revoked", revoked.name));
    if known.is_none() {
        printer.warning(
            "the hub has no record of a certificate with this serial; it was revoked anyway",
        );
    }
    // An unreadable record does not prevent the revocation of another certificate.
    let all = operators.all().unwrap_or_default();
    if !all.is_empty() && all.iter().all(|other| other.revoked_at.is_some()) {
        printer.note(
            "the hub has no operator with a valid certificate; next: attest hub operator issue NAME --save",
        );
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
        let context =
            Context { current_hub: None, hubs: vec![hub_context("west", first)], keys: vec![] };
        let old = context.hubs[0].operator_chain.clone();

        let next = home::issue_operator(&path, OperatorRole::Operator, "admin").unwrap();
        let context = renewed(context, hub_context("main", next));

        assert_eq!(context.hubs.len(), 1);
        assert_eq!(context.hubs[0].name, "west");
        assert_ne!(context.hubs[0].operator_chain, old);
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
        let context =
            Context { current_hub: None, hubs: vec![hub_context("main", created)], keys: vec![] };

        for (requested, own, ca_pin, expected) in [
            (None, false, "sha256:00", Some("main")),
            (Some("east"), false, pin.as_str(), Some("east")),
            (None, true, pin.as_str(), Some("main")),
            (Some("main"), true, pin.as_str(), Some("main")),
            (Some("east"), true, pin.as_str(), None),
            (None, true, "sha256:00", None),
            (Some("east"), true, "sha256:00", Some("east")),
        ] {
            let own = own.then_some(&context);
            let name = context_name_of(requested.map(str::to_owned), own, ca_pin).ok();
            assert_eq!(name.as_deref(), expected, "{requested:?} {ca_pin}");
        }
    }
}
