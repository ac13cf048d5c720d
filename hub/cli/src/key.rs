//! `attest key …`: signing keys of CI. Private keys are never printed or written into a repository.

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

use crate::printer::{Format, OutputArgs, Printer, TextTable};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum KeyCommand {
    /// Generate a key: FILE (private key, mode 0600) and FILE.pub
    Gen(GenArgs),
    /// Show the id and the public key of a key file
    Show(ShowArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct GenArgs {
    /// File for the private key; signing.key in the configuration directory by default
    #[arg(conflicts_with = "name")]
    file: Option<PathBuf>,
    /// Write the key to keys/NAME.key in the configuration directory
    #[arg(long)]
    name: Option<attest_common::basics::ids::Name>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ShowArgs {
    /// Private or public key file (PEM)
    file: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// A key as printed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct KeyDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    private_key_file: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key_file: Option<String>,
    id: String,
    display_form: String,
    public_key: String,
}

pub(crate) fn run(command: KeyCommand, printer: &Printer) -> anyhow::Result<()> {
    match command {
        KeyCommand::Gen(args) => generate(args, printer),
        KeyCommand::Show(args) => show(args, printer),
    }
}

fn generate(args: GenArgs, printer: &Printer) -> anyhow::Result<()> {
    let GenArgs { file, name, output } = args;
    let is_default = file.is_none() && name.is_none();
    let file = match (file, name) {
        (Some(file), _) => file,
        (None, name) => {
            let directory = configuration_directory(|name| std::env::var_os(name))
                .context("HOME is not set; pass a file for the key")?;
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
        .with_context(|| format!("failed to create directory {}", directory.display()))?;
    for place in [&file, &public_file] {
        if place.symlink_metadata().is_ok() {
            bail!("{} already exists; pass another file", place.display());
        }
    }
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(seed.as_mut()).context("failed to read randomness from the system")?;
    let key = PrivateKey::from_seed(&seed)?;
    create_file(&file, key.to_pem()?.as_bytes(), 0o600)?;
    create_file(&public_file, key.public().to_pem().as_bytes(), 0o644)?;
    print_key(key.public(), Some((&file, &public_file)), output.format, printer)?;
    if !is_default {
        printer.note(&format!(
            "`attest run` signs with this key if {KEY_FILE_VARIABLE} is set to its path"
        ));
    }
    printer.note(&format!(
        "next: attest trust key add ALIAS {} --environment ENVIRONMENT",
        public_file.display()
    ));
    Ok(())
}

/// Rejects a directory in a Git work tree, where `git add` could publish the private key.
fn refuse_repository(directory: &Path) -> anyhow::Result<()> {
    let mut existing = std::path::absolute(directory)?;
    while !existing.exists() && existing.pop() {}
    if let Ok(found) = WorkTree::discover(&existing, declared_source_root) {
        bail!(
            "{} is in the Git work tree {}; keep private keys outside repositories",
            directory.display(),
            found.root().display()
        );
    }
    Ok(())
}

fn create_file(path: &Path, bytes: &[u8], mode: u32) -> anyhow::Result<()> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .with_context(|| format!("failed to write {}", path.display()))
}

fn show(args: ShowArgs, printer: &Printer) -> anyhow::Result<()> {
    let ShowArgs { file, output } = args;
    let public = read_key(&file).with_context(|| format!("failed to read {}", file.display()))?;
    print_key(&public, None, output.format, printer)
}

/// Reads the public key of a private or public key file.
fn read_key(file: &Path) -> anyhow::Result<PublicKey> {
    if fs::metadata(file)?.len() > PEM_BYTES_MAX as u64 {
        bail!("the file is too large for a key");
    }
    let text = Zeroizing::new(fs::read_to_string(file)?);
    if text.contains("PRIVATE KEY") {
        return Ok(PrivateKey::from_pem(&text)?.public().clone());
    }
    Ok(PublicKey::from_pem(&text)?)
}

fn print_key(
    key: &PublicKey,
    files: Option<(&Path, &Path)>,
    format: Format,
    printer: &Printer,
) -> anyhow::Result<()> {
    let document = KeyDocument {
        private_key_file: files.map(|(private, _)| private.display().to_string()),
        public_key_file: files.map(|(_, public)| public.display().to_string()),
        id: key.id().to_string(),
        display_form: key.id().display_form(),
        public_key: key.to_pem(),
    };
    printer.result(format, &document, || {
        let mut table = TextTable::new(&["name", "id"]);
        table.row([document.display_form.clone(), document.id.clone()]);
        table
    })?;
    if format.is_table() {
        printer.text(&document.public_key);
    }
    Ok(())
}
