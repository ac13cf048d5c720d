//! `attest verify`: verifies the signed files of a repository check by check, as clusters do.
//!
//! Exit codes: 0 verified, 2 a check failed, 3 verification was not possible (configuration or usage).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use attest_common::basics::ids::{Name, Timestamp};
use attest_supply::ci::{
    CheckRow, Checkout, ReleaseStore, TrustSources, VerificationReport, VerificationRequest,
    check_environment, compare_work_tree, context_file, verify_renders,
};
use serde::Serialize;

use crate::exit::Exit;
use crate::printer::{OutputArgs, Printer, TextTable};
use crate::renderer::renderer;

/// Exit code when a check failed.
pub(crate) const REFUSED: u8 = 2;
/// Exit code when verification was not possible.
pub(crate) const NOT_CHECKED: u8 = 3;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 verified, 2 a check failed, 3 verification was not possible."
)]
pub(crate) struct VerifyArgs {
    /// Directory in the repository
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Trust policy of a cluster (AttestTrustPolicy or its spec); the keys in your context by default
    #[arg(long, value_name = "FILE")]
    trust_policy: Vec<PathBuf>,
    /// Verify this render only
    #[arg(long)]
    render: Option<String>,
    /// Verify for this environment only
    #[arg(long)]
    environment: Option<Name>,
    /// Verify as a cluster with this name
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<Name>,
    /// Verify as if deployed to this namespace
    #[arg(short, long)]
    namespace: Option<Name>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Serialize)]
struct VerificationDocument<'a> {
    verified: bool,
    checks: &'a [CheckRow],
    notes: &'a [String],
}

pub(crate) fn run(args: VerifyArgs, printer: &Printer) -> anyhow::Result<()> {
    verify(args, printer).map_err(|error| match error.downcast_ref::<Exit>() {
        Some(_) => error,
        None => Exit::error(NOT_CHECKED, format!("{error:#}")),
    })
}

fn verify(args: VerifyArgs, printer: &Printer) -> anyhow::Result<()> {
    let VerifyArgs { path, trust_policy, render, environment, cluster_name, namespace, output } =
        args;
    let repository = Checkout::open(&path)?;
    let recipe = repository.recipe();
    if let Some(environment) = &environment {
        check_environment(recipe, environment)?;
    }
    if let Some(render) = render.as_deref().filter(|name| recipe.render(name).is_none()) {
        let known: Vec<&str> = recipe.renders.iter().map(|one| one.name.as_str()).collect();
        anyhow::bail!(
            "attest.yaml contains no render `{render}`; available renders: {}",
            known.join(", ")
        );
    }
    let trust = load_trust(&trust_policy, repository.root())?;
    let index = repository.read_index()?;
    let store = ReleaseStore::new(repository.root(), &recipe.application);
    let mut answer = verify_renders(&VerificationRequest {
        tree: &index,
        recipe,
        store: &store,
        trust: &trust,
        now: Timestamp::now(),
        render: render.as_deref(),
        environment: environment.as_ref(),
        cluster: cluster_name.as_ref(),
        namespace: namespace.as_ref(),
        counter: None,
        partial: !trust_policy.is_empty(),
    })?;
    let judged = !answer.rows.is_empty();
    let kustomize = renderer(printer);
    answer.rows.extend(compare_work_tree(&repository, &index, render.as_deref(), &kustomize)?);
    print_answer(&answer, output, printer)?;
    if !judged {
        return Err(Exit::error(
            NOT_CHECKED,
            "no render has an environment that could be verified",
        ));
    }
    if answer.verified() { Ok(()) } else { Err(failed_checks_error(&answer)) }
}

/// Reads the policy files or the keys of the context. The exit code is 3 when they cannot be read.
pub(crate) fn load_trust(policies: &[PathBuf], root: &Path) -> anyhow::Result<TrustSources> {
    let context = context_file(|name| std::env::var_os(name));
    let trust = TrustSources::load(policies, context.as_deref(), root)
        .map_err(|error| Exit::error(NOT_CHECKED, format!("{:#}", anyhow::Error::new(error))))?;
    if trust.is_empty() {
        return Err(Exit::error(
            NOT_CHECKED,
            "no public key to verify with; pass --trust-policy FILE (the policy of a cluster), or add the CI key \
             to your context with `attest trust key add ALIAS FILE --environment ENVIRONMENT`; keys in the \
             repository are ignored",
        ));
    }
    Ok(trust)
}

/// The error of a command some of whose checks failed.
pub(crate) fn failed_checks_error(answer: &VerificationReport) -> anyhow::Error {
    let refused: Vec<&CheckRow> = answer.rows.iter().filter(|row| !row.passed).collect();
    let first = refused.first().map_or_else(String::new, |row| format!(": {}", row.check));
    Exit::error(
        REFUSED,
        format!("not verified: {} of {} checks failed{first}", refused.len(), answer.rows.len()),
    )
}

/// Prints the checks, and the notes to stderr.
fn print_answer(
    answer: &VerificationReport,
    output: OutputArgs,
    printer: &Printer,
) -> anyhow::Result<()> {
    for note in &answer.notes {
        printer.note(note);
    }
    let document = VerificationDocument {
        verified: answer.verified(),
        checks: &answer.rows,
        notes: &answer.notes,
    };
    printer
        .result(output.format, &document, || check_table(answer))
        .context("failed to print the checks")
}

/// One row per check.
fn check_table(answer: &VerificationReport) -> TextTable {
    let mut table = TextTable::new(&[
        "render",
        "environment",
        "cluster",
        "namespace",
        "check",
        "result",
        "detail",
    ]);
    for row in &answer.rows {
        table.row([
            row.render.clone(),
            or_dash(row.environment.as_deref()),
            or_dash(row.cluster.as_deref()),
            or_dash(row.namespace.as_deref()),
            row.check.clone(),
            if row.passed { "passed" } else { "failed" }.to_owned(),
            row.detail.clone(),
        ]);
    }
    table
}

fn or_dash(text: Option<&str>) -> String {
    text.unwrap_or("-").to_owned()
}
