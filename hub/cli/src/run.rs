//! `attest run`: runs the steps, renders, signs, and verifies what is staged in the Git index.
//!
//! Exit codes: 0 success; 1 a step or the signing failed; with `--verify` also 2, a check failed, and 3, there is
//! no key to verify with.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use attest_common::basics::ids::{Digest, Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_supply::ci::result::StepOutcome;
use attest_supply::ci::{
    Checkout, CiError, Draft, Origin, ReleaseRendering, ReleaseStore, StepReport, TrustSources,
    VerificationRequest, check_environment, next_counter, refuse_ambiguity, refuse_keys_inside,
    render_all, run_step, signing_key, verify_renders,
};
use attest_supply::recipe::{Counter, Recipe, RecipeRender};
use attest_supply::render::{
    FOREIGN_NAMED_MAX, Kustomize, Manifests, RenderError, foreign_annotations,
};
use attest_supply::source::RECIPE_FILE;
use serde::Serialize;

use crate::printer::{OutputArgs, Printer, TextTable};
use crate::renderer::renderer;
use crate::verify;

/// Maximum number of files listed in a warning.
const NAMED_MAX: usize = 5;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 success, 1 a step or signing failed; with --verify, also 2 a check failed, 3 there \
                  is no key to verify with."
)]
pub(crate) struct RunArgs {
    /// Sign receipts and a release statement, and stage them in the Git index
    #[arg(long)]
    sign: bool,
    /// Verify the staged files with keys from outside the repository, after erasing the private key
    #[arg(long, requires = "sign")]
    verify: bool,
    /// Sign for this environment only
    #[arg(long)]
    environment: Option<Name>,
    /// Trust policy of a cluster to verify with; the keys in your context by default
    #[arg(long, value_name = "FILE", requires = "verify")]
    trust_policy: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// The release that was, or would be, signed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ReleaseSummary {
    application: String,
    version: String,
    counter: u64,
    commit: String,
    signed: bool,
    verified: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    attestations: Vec<String>,
    renders: Vec<SummaryRender>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SummaryRender {
    name: String,
    environments: Vec<String>,
    digest: Option<Digest>,
    objects: u64,
    images: BTreeMap<String, Digest>,
}

pub(crate) fn run(args: RunArgs, printer: &Printer) -> anyhow::Result<()> {
    let RunArgs { sign, verify, environment, trust_policy, output } = args;
    let repository = Checkout::open(&std::env::current_dir()?)?;
    let recipe = repository.expanded_recipe(|name| std::env::var(name).ok())?;
    if let Some(environment) = &environment {
        check_environment(&recipe, environment)?;
    }
    // Missing keys are reported before a build that may take long.
    let key = if sign { Some(private_key(&repository)?) } else { None };
    let trust =
        if verify { Some(verify::load_trust(&trust_policy, repository.root())?) } else { None };
    let kustomize = renderer(printer);
    let renders = selected_renders(&recipe, environment.as_ref());
    check_before_steps(&repository, &recipe, &renders, &kustomize)?;
    let steps = run_steps(&repository, &recipe, |_| true, printer)?;
    let built = BuiltRepository { repository: &repository, recipe: &recipe, environment, printer };
    let rendered = built.render(&renders, &kustomize, &steps, key.is_some())?;
    let origin = built.origin()?;
    let draft = Draft::new(&recipe, &rendered, &steps, &origin)?;
    let mut summary = ReleaseSummary::from_draft(&draft, key.as_ref());
    if let Some(key) = key {
        let renderings: Vec<(String, Vec<u8>)> =
            rendered.into_iter().map(|one| (one.recipe.name, one.manifests.rendering)).collect();
        built.sign(&draft, &renderings, &key)?;
        drop(key);
        summary.signed = true;
        if let Some(trust) = trust {
            built.verify(&trust, draft.release.counter)?;
            summary.verified = true;
        }
    }
    summary.print(output, printer)
}

/// Reads the signing key. Rejects a repository that contains a private key.
pub(crate) fn private_key(repository: &Checkout) -> anyhow::Result<PrivateKey> {
    refuse_keys_inside(repository.root())?;
    Ok(signing_key(repository.root(), |name| std::env::var_os(name))?)
}

fn selected_renders(recipe: &Recipe, environment: Option<&Name>) -> Vec<RecipeRender> {
    let renders = recipe.renders.iter();
    let selected = renders.filter(|render| {
        environment.is_none_or(|only| render.environments.iter().any(|e| e == only.as_str()))
    });
    selected.cloned().collect()
}

/// Reports errors that no step can correct before the steps run.
fn check_before_steps(
    repository: &Checkout,
    recipe: &Recipe,
    renders: &[RecipeRender],
    kustomize: &Kustomize,
) -> anyhow::Result<()> {
    refuse_ambiguity(recipe)?;
    let (files, _) = repository.read_files()?;
    Origin::source(recipe, files.git_commit(), files.git_tree())?;
    let mut rendered = match render_all(&files, recipe, renders, kustomize) {
        Err(CiError::Render(error @ RenderError::ProgramMissing { .. })) => {
            return Err(error.into());
        }
        Err(_) => return Ok(()),
        Ok(rendered) => rendered,
    };
    // Placeholders: the check is only that every image will have a digest.
    let placeholders: BTreeMap<String, Digest> =
        recipe.steps.iter().map(|step| (step.name.clone(), Digest::of(b""))).collect();
    for one in &mut rendered {
        if let Err(error @ CiError::ImageUnpinned { .. }) =
            one.pin_images(&recipe.images, &placeholders)
        {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Runs the steps selected by `is_selected` in order, with a line before and after each.
pub(crate) fn run_steps(
    repository: &Checkout,
    recipe: &Recipe,
    is_selected: impl Fn(&str) -> bool,
    printer: &Printer,
) -> anyhow::Result<Vec<StepReport>> {
    let mut reports = Vec::new();
    for step in recipe.steps.iter().filter(|step| is_selected(&step.name)) {
        printer.note(&format!("step {}: {}", step.name, step.run));
        let report = run_step(repository.root(), step)?;
        let seconds = report.took.as_secs_f64();
        let result = match &report.outcome {
            Some(StepOutcome::Image(digest)) => format!(", image {digest}"),
            Some(StepOutcome::Tests(names)) => format!(", {} tests passed", names.len()),
            Some(StepOutcome::Scan(predicate)) => {
                let findings = predicate.pointer("/scanner/result").and_then(|r| r.as_array());
                format!(", {} findings", findings.map_or(0, Vec::len))
            }
            Some(StepOutcome::Passed) | None => String::new(),
        };
        printer.note(&format!("step {}: passed in {seconds:.1} s{result}", step.name));
        reports.push(report);
    }
    Ok(reports)
}

/// A repository after its steps have run.
pub(crate) struct BuiltRepository<'a> {
    pub(crate) repository: &'a Checkout,
    pub(crate) recipe: &'a Recipe,
    pub(crate) environment: Option<Name>,
    pub(crate) printer: &'a Printer,
}

impl BuiltRepository<'_> {
    fn render(
        &self,
        renders: &[RecipeRender],
        kustomize: &Kustomize,
        steps: &[StepReport],
        is_signed: bool,
    ) -> anyhow::Result<Vec<ReleaseRendering>> {
        let (files, ignored) = self.repository.read_files()?;
        if is_signed {
            self.repository.check_committed_bytes(&files)?;
        }
        for path in ignored {
            self.printer.warning(&format!("{path} is ignored by Git and not rendered"));
        }
        let mut rendered = render_all(&files, self.recipe, renders, kustomize)?;
        let digests: BTreeMap<String, Digest> = steps
            .iter()
            .filter_map(|step| match step.outcome {
                Some(StepOutcome::Image(digest)) => Some((step.name.clone(), digest)),
                Some(StepOutcome::Tests(_) | StepOutcome::Passed | StepOutcome::Scan(_)) | None => {
                    None
                }
            })
            .collect();
        for one in &mut rendered {
            for warning in &one.manifests.warnings {
                self.printer.warning(&warning.to_string());
            }
            self.warn_of_foreign_annotations(&one.manifests);
            one.pin_images(&self.recipe.images, &digests)?;
        }
        Ok(rendered)
    }

    /// Names the annotations whose authors expect another effect than the one that they have here.
    fn warn_of_foreign_annotations(&self, manifests: &Manifests) {
        let found = foreign_annotations(&manifests.objects);
        for foreign in found.iter().take(FOREIGN_NAMED_MAX) {
            self.printer.warning(&foreign.to_string());
        }
        if let Some(more) = found.len().checked_sub(FOREIGN_NAMED_MAX).filter(|more| *more > 0) {
            self.printer.warning(&format!("{more} more annotations of other tools have no effect"));
        }
    }

    /// The origin of a release: commit, time and counter.
    pub(crate) fn origin(&self) -> anyhow::Result<Origin> {
        let (files, _) = self.repository.read_files()?;
        let source = Origin::source(self.recipe, files.git_commit(), files.git_tree())?;
        let changed = self.repository.changed_since_commit()?;
        if !changed.is_empty() {
            let named: Vec<&str> = changed.iter().take(NAMED_MAX).map(String::as_str).collect();
            let more = if changed.len() > NAMED_MAX { ", …" } else { "" };
            self.printer.warning(&format!(
                "the receipts refer to commit {}, but the work tree differs from it in {}{more}",
                source.git_commit,
                named.join(", ")
            ));
        }
        let now = Timestamp::now();
        let store = self.store();
        let known = store.counters(&self.repository.read_index()?)?;
        let wanted = self.recipe.release.counter().unwrap_or(Counter::UnixSeconds);
        Ok(Origin {
            source,
            counter: next_counter(wanted, &known, now)?,
            now,
            recipe_digest: Digest::of(self.repository.recipe_bytes()),
            environment: self.environment.clone(),
        })
    }

    /// Writes the signed files and stages them in the Git index.
    pub(crate) fn sign(
        &self,
        draft: &Draft,
        renderings: &[(String, Vec<u8>)],
        key: &PrivateKey,
    ) -> anyhow::Result<()> {
        let store = self.store();
        let counter = draft.release.counter;
        let renders: BTreeSet<String> =
            self.recipe.renders.iter().map(|render| render.name.clone()).collect();
        let written = store.write(counter, &draft.seal(key), renderings, &renders)?;
        if let Err(error) = self.repository.work_tree().stage(&store.staged_directories()) {
            written.roll_back();
            return Err(anyhow::Error::new(error)
                .context("failed to stage the signed files, which were removed"));
        }
        written.commit()?;
        self.printer.note(&format!(
            "signed release {counter} with {} and staged {}",
            key.public().id().display_form(),
            store.staged_directories().join(" and ")
        ));
        Ok(())
    }

    /// Verifies the files staged in the index. The caller has erased the private key.
    pub(crate) fn verify(&self, trust: &TrustSources, counter: u64) -> anyhow::Result<()> {
        let index = self.repository.read_index()?;
        if index.get(RECIPE_FILE).is_none() {
            self.printer.warning("attest.yaml is not in the Git index; run `git add attest.yaml`");
        }
        let question = VerificationRequest {
            tree: &index,
            recipe: self.recipe,
            store: &self.store(),
            trust,
            now: Timestamp::now(),
            render: None,
            environment: None,
            cluster: None,
            namespace: None,
            counter: Some(counter),
            partial: false,
        };
        let answer = verify_renders(&question).map_err(|error| {
            crate::exit::Exit::error(
                verify::NOT_CHECKED,
                format!("{:#}", anyhow::Error::new(error)),
            )
        })?;
        if answer.verified() {
            self.printer.note(&format!(
                "verified: {} checks of the staged release {counter} passed",
                answer.rows.len()
            ));
            return Ok(());
        }
        for row in answer.rows.iter().filter(|row| !row.passed) {
            let environment = row.environment.as_deref().unwrap_or("-");
            self.printer
                .note(&format!("{} for {environment}: {}: {}", row.render, row.check, row.detail));
        }
        Err(verify::failed_checks_error(&answer))
    }

    pub(crate) fn store(&self) -> ReleaseStore {
        ReleaseStore::new(self.repository.root(), &self.recipe.application)
    }
}

impl ReleaseSummary {
    /// The summary of a draft.
    pub(crate) fn from_draft(draft: &Draft, key: Option<&PrivateKey>) -> Self {
        let digests = draft.digests();
        let release = &draft.release;
        let renders = release.renders.iter().map(|render| SummaryRender {
            name: render.name.clone(),
            environments: render.target.environments.clone(),
            digest: digests.get(&render.name).copied(),
            objects: render.objects,
            images: render.images.iter().map(|i| (i.reference.clone(), i.digest)).collect(),
        });
        Self {
            application: release.application.to_string(),
            version: release.version.clone(),
            counter: release.counter,
            commit: release.source.git_commit.clone(),
            signed: false,
            verified: false,
            key: key.map(|key| key.public().id().to_string()),
            attestations: release.evidence.iter().map(|e| e.attestation.clone()).collect(),
            renders: renders.collect(),
        }
    }

    /// Marks the release as signed, and as verified.
    pub(crate) fn signed(mut self, verified: bool) -> Self {
        (self.signed, self.verified) = (true, verified);
        self
    }

    pub(crate) fn print(&self, output: OutputArgs, printer: &Printer) -> anyhow::Result<()> {
        if !self.signed {
            printer.note("nothing is signed; with --sign, this would be signed:");
        }
        printer.result(output.format, self, || {
            let mut table = TextTable::new(&[
                "render",
                "environments",
                "release",
                "objects",
                "images",
                "digest",
            ]);
            for render in &self.renders {
                let images: Vec<&str> = render.images.keys().map(String::as_str).collect();
                let digest =
                    render.digest.map_or_else(|| "-".to_owned(), |digest| digest.to_string());
                table.row([
                    render.name.clone(),
                    render.environments.join(","),
                    self.counter.to_string(),
                    render.objects.to_string(),
                    images.join(","),
                    digest,
                ]);
            }
            table
        })
    }
}
