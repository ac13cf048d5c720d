//! `attest verify`: what clusters would say about the signed files of this repository, check by check.
//!
//! Exit codes: 0 verified, 2 a finished check says no, 3 it could not be checked (configuration or usage).

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use attest_common::basics::ids::{Name, Timestamp};
use attest_supply::ci::{
    Answer, Question, Repository, Row, Store, Trust, compare, context_file, judge,
    known_environment,
};
use attest_supply::render::Kustomize;
use serde::Serialize;

use crate::exit::Exit;
use crate::printer::{Output, Printer, Table};

/// Exit code when a finished check says no.
pub(crate) const REFUSED: u8 = 2;
/// Exit code when nothing could be checked.
pub(crate) const NOT_CHECKED: u8 = 3;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 verified, 2 a finished check says no, 3 it could not be checked."
)]
pub(crate) struct Args {
    /// A directory in the repository
    #[arg(default_value = ".")]
    path: PathBuf,
    /// Trust policy of a cluster (AttestTrustPolicy or its spec); the keys of your context when absent
    #[arg(long, value_name = "FILE")]
    trust_policy: Vec<PathBuf>,
    /// Only this render
    #[arg(long)]
    render: Option<String>,
    /// Only this environment
    #[arg(long)]
    environment: Option<Name>,
    /// As a cluster of this name
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<Name>,
    /// As deployed to this namespace
    #[arg(short, long)]
    namespace: Option<Name>,
    #[command(flatten)]
    output: Output,
}

#[derive(Serialize)]
struct Document<'a> {
    verified: bool,
    checks: &'a [Row],
    notes: &'a [String],
}

pub(crate) fn verify(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let code = |error: anyhow::Error| match error.downcast_ref::<Exit>() {
        Some(_) => error,
        None => Exit::error(NOT_CHECKED, format!("{error:#}")),
    };
    check(args, printer).map_err(code)
}

fn check(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let Args { path, trust_policy, render, environment, cluster_name, namespace, output } = args;
    let repository = Repository::open(&path)?;
    let recipe = repository.recipe();
    if let Some(environment) = &environment {
        known_environment(recipe, environment)?;
    }
    if let Some(render) = render.as_deref().filter(|name| recipe.render(name).is_none()) {
        let known: Vec<&str> = recipe.renders.iter().map(|one| one.name.as_str()).collect();
        anyhow::bail!("attest.yaml has no render `{render}`; it has {}", known.join(", "));
    }
    let trust = trust(&trust_policy, repository.root())?;
    let index = repository.index()?;
    let store = Store::new(repository.root(), &recipe.application);
    let mut answer = judge(&Question {
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
    let kustomize = Kustomize::find(std::env::var_os("PATH").as_deref());
    answer.rows.extend(compare(&repository, &index, render.as_deref(), &kustomize)?);
    print(&answer, output, printer)?;
    if !judged {
        return Err(Exit::error(
            NOT_CHECKED,
            "no render is for an environment that could be judged",
        ));
    }
    if answer.verified() { Ok(()) } else { Err(refusal(&answer)) }
}

/// Policy files and the keys of the context; exit code 3 when they cannot be read.
pub(crate) fn trust(policies: &[PathBuf], root: &Path) -> anyhow::Result<Trust> {
    let context = context_file(|name| std::env::var_os(name));
    let trust = Trust::load(policies, context.as_deref(), root)
        .map_err(|error| Exit::error(NOT_CHECKED, format!("{:#}", anyhow::Error::new(error))))?;
    if trust.is_empty() {
        return Err(Exit::error(
            NOT_CHECKED,
            "no public key to verify with: give `--trust-policy FILE` (the policy of a cluster), or add the CI \
             key to your context with `attest trust key add ALIAS FILE --environment ENVIRONMENT`; keys that \
             lie in the repository do not count",
        ));
    }
    Ok(trust)
}

/// The error that ends a command whose checks did not all pass.
pub(crate) fn refusal(answer: &Answer) -> anyhow::Error {
    let refused: Vec<&Row> = answer.rows.iter().filter(|row| !row.passed).collect();
    let first = refused.first().map_or_else(String::new, |row| format!(": {}", row.check));
    Exit::error(
        REFUSED,
        format!("not verified, {} of {} checks say no{first}", refused.len(), answer.rows.len()),
    )
}

/// The checks as a table, notes beside it.
pub(crate) fn print(answer: &Answer, output: Output, printer: &Printer) -> anyhow::Result<()> {
    for note in &answer.notes {
        printer.note(note);
    }
    let document =
        Document { verified: answer.verified(), checks: &answer.rows, notes: &answer.notes };
    printer.result(output.format, &document, || table(answer)).context("cannot print the checks")
}

/// One row a check.
pub(crate) fn table(answer: &Answer) -> Table {
    let mut table =
        Table::new(&["render", "environment", "cluster", "namespace", "check", "result", "detail"]);
    let shown = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    for row in &answer.rows {
        table.row([
            row.render.clone(),
            shown(&row.environment),
            shown(&row.cluster),
            shown(&row.namespace),
            row.check.clone(),
            if row.passed { "ok" } else { "no" }.to_owned(),
            row.detail.clone(),
        ]);
    }
    table
}
