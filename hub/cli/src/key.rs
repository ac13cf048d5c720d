//! `attest key …`: signing keys of CI. Private halves never go to standard output, nor into a repository.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use attest_common::basics::keys::{PEM_BYTES_MAX, PrivateKey, PublicKey};
use attest_supply::ci::{KEY_FILE, KEY_FILE_VARIABLE, configuration_directory};
use attest_supply::recipe::declared_source_root;
use attest_supply::source::WorkTree;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::printer::{Format, Output, Printer, Table};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a key: FILE (private, mode 0600) and FILE.pub
    Gen(GenArgs),
    /// Show id and public half of a key file
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct GenArgs {
    /// Where the private key goes; signing.key of the configuration directory when absent
    #[arg(conflicts_with = "name")]
    file: Option<PathBuf>,
    /// Put the key into the configuration directory as keys/NAME.key
    #[arg(long)]
    name: Option<attest_common::basics::ids::Name>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// A private or public key file (PEM)
    file: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What is shown of a key.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key_file: Option<String>,
    id: String,
    display_form: String,
    public_key: String,
}

pub(crate) fn key(command: Command, printer: &Printer) -> anyhow::Result<()> {
    match command {
        Command::Gen(args) => generate(args, printer),
        Command::Show(args) => show(args, printer),
    }
}

fn generate(args: GenArgs, printer: &Printer) -> anyhow::Result<()> {
    let GenArgs { file, name, output } = args;
    let is_default = file.is_none() && name.is_none();
    let file = match (file, name) {
        (Some(file), _) => file,
        (None, name) => {
            let directory = configuration_directory(|name| std::env::var_os(name))
                .context("there is no HOME: name a file for the key")?;
            match name {
                Some(name) => directory.join("keys").join(format!("{name}.key")),
                None => directory.join(KEY_FILE),
            }
        }
    };
    let public_file = PathBuf::from(format!("{}.pub", file.display()));
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    };
    refuse_repository(directory)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    for place in [&file, &public_file] {
        if place.symlink_metadata().is_ok() {
            bail!("{} exists and is kept: name another file", place.display());
        }
    }
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).context("the system gives no randomness")?;
    let key = PrivateKey::from_seed(&seed)?;
    write_new(&file, key.to_pem()?.as_bytes(), 0o600)?;
    write_new(&public_file, key.public().to_pem().as_bytes(), 0o644)?;
    print(key.public(), Some((&file, &public_file)), output.format, printer)?;
    if !is_default {
        printer.note(&format!("`attest run` signs with it when {KEY_FILE_VARIABLE} names it"));
    }
    printer.note(&format!(
        "next: attest trust key add ALIAS {} --environment ENVIRONMENT",
        public_file.display()
    ));
    Ok(())
}

/// A private key in a clone is one `git add` away from everybody.
fn refuse_repository(directory: &Path) -> anyhow::Result<()> {
    let mut existing = std::path::absolute(directory)?;
    while !existing.exists() && existing.pop() {}
    if let Ok(found) = WorkTree::discover(&existing, declared_source_root) {
        bail!(
            "{} lies in the Git work tree {}: keep private keys outside of repositories",
            directory.display(),
            found.root().display()
        );
    }
    Ok(())
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.with_context(|| format!("cannot write {}", path.display()))
}

fn show(args: ShowArgs, printer: &Printer) -> anyhow::Result<()> {
    let ShowArgs { file, output } = args;
    let cannot = || format!("cannot read {}", file.display());
    let metadata = fs::metadata(&file).with_context(cannot)?;
    if metadata.len() > PEM_BYTES_MAX as u64 {
        bail!("{} is too large for a key", file.display());
    }
    let text = Zeroizing::new(fs::read_to_string(&file).with_context(cannot)?);
    let wrong = || format!("{} is no key file", file.display());
    let public = if text.contains("PRIVATE KEY") {
        PrivateKey::from_pem(&text).with_context(wrong)?.public().clone()
    } else {
        PublicKey::from_pem(&text).with_context(wrong)?
    };
    print(&public, None, output.format, printer)
}

fn print(
    key: &PublicKey,
    files: Option<(&Path, &Path)>,
    format: Format,
    printer: &Printer,
) -> anyhow::Result<()> {
    let shown = Shown {
        private_key_file: files.map(|(private, _)| private.display().to_string()),
        public_key_file: files.map(|(_, public)| public.display().to_string()),
        id: key.id().to_string(),
        display_form: key.id().display_form(),
        public_key: key.to_pem(),
    };
    printer.result(format, &shown, || {
        let mut table = Table::new(&["name", "id"]);
        table.row([shown.display_form.clone(), shown.id.clone()]);
        table
    })?;
    if matches!(format, Format::Table | Format::Wide) {
        printer.text(&shown.public_key);
    }
    Ok(())
}
