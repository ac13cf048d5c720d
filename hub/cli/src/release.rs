//! `attest release --from COUNTER`: signs an earlier release again under a new counter, without building.
//!
//! The scan runs again, because scan receipts expire; build and test receipts, renderings and image digests are
//! kept. The work tree must render what the earlier release signed, or the new one could not be deployed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::keys::PublicKey;
use attest_common::documents::release::content_digest;
use attest_common::verify::open_release;
use attest_supply::ci::{Checkout, CiError, Draft, ReleaseStore, StoredRelease, first_difference};
use attest_supply::render::render;

use crate::printer::{OutputArgs, Printer};
use crate::renderer::renderer;
use crate::run::{BuiltRepository, ReleaseSummary, private_key, run_steps};
use crate::verify;

/// The step whose receipt expires.
const SCAN: &str = "security-scan";

#[derive(Debug, clap::Args)]
pub(crate) struct ReleaseArgs {
    /// Counter of the release to sign again: a directory in .attest/receipts/APPLICATION
    #[arg(long, value_name = "COUNTER")]
    from: u64,
    /// Verify the staged files, as `attest run --verify` does
    #[arg(long)]
    verify: bool,
    /// Trust policy of a cluster to verify with; the keys in your context by default
    #[arg(long, value_name = "FILE", requires = "verify")]
    trust_policy: Vec<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: ReleaseArgs, printer: &Printer) -> anyhow::Result<()> {
    let ReleaseArgs { from, verify, trust_policy, output } = args;
    let repository = Checkout::open(&std::env::current_dir()?)?;
    // The version and images of the earlier release are kept, so a variable that only they use may be unset.
    // Counter and notAfter reject the placeholder.
    let recipe = &repository
        .expanded_recipe(|name| Some(std::env::var(name).unwrap_or_else(|_| "unset".to_owned())))?;
    let key = private_key(&repository)?;
    let trust =
        if verify { Some(verify::load_trust(&trust_policy, repository.root())?) } else { None };
    let store = ReleaseStore::new(repository.root(), &recipe.application);
    let earlier = trusted_release(&repository, &store, from, key.public(), &trust_policy)?;
    let renderings = unchanged_renderings(&repository, &earlier, printer)?;
    if !recipe.steps.iter().any(|step| step.name == SCAN) {
        anyhow::bail!(
            "attest.yaml contains no step `{SCAN}`; signing a release again requires a new scan"
        );
    }
    let steps = run_steps(&repository, recipe, |name| name == SCAN, printer)?;
    let Some(scan) = steps.first() else { anyhow::bail!("step `{SCAN}` did not run") };
    let environment: Option<Name> = None;
    let built = BuiltRepository { repository: &repository, recipe, environment, printer };
    let mut origin = built.origin()?;
    // The images were built from that commit, not from the one checked out.
    origin.source = earlier.release.source.clone();
    let draft = Draft::rescan(&earlier, recipe, scan, &origin)?;
    let summary = ReleaseSummary::from_draft(&draft, Some(&key));
    built.sign(&draft, &renderings, &key)?;
    drop(key);
    if let Some(trust) = &trust {
        built.verify(trust, draft.release.counter)?;
    }
    summary.signed(verify).print(output, printer)
}

/// The release with this counter, if it is signed by this key or by one that the operator trusts, such as an
/// earlier key of CI.
fn trusted_release(
    repository: &Checkout,
    store: &ReleaseStore,
    counter: u64,
    key: &PublicKey,
    trust_policy: &[PathBuf],
) -> anyhow::Result<StoredRelease> {
    let releases = store.releases(&repository.read_index()?);
    let known: BTreeSet<u64> = releases.iter().map(|stored| stored.release.counter).collect();
    let found = releases.into_iter().filter(|stored| stored.release.counter == counter);
    let mut refused = None;
    let mut keys = BTreeMap::from([(key.id(), key.clone())]);
    if let Ok(trust) = verify::load_trust(trust_policy, repository.root()) {
        keys.extend(trust.releaser_keys());
    }
    for stored in found {
        match open_release(&stored.envelope, &keys) {
            Ok(_) => return Ok(stored),
            Err(source) => refused = Some(source),
        }
    }
    Err(match refused {
        Some(source) => CiError::ReleaseUntrusted { counter, source }.into(),
        None => {
            let counters: Vec<String> = known.iter().map(u64::to_string).collect();
            let application = repository.recipe().application.clone();
            let known = if counters.is_empty() { "none".to_owned() } else { counters.join(", ") };
            CiError::ReleaseUnknown { application, counter, known }.into()
        }
    })
}

/// The renderings of the work tree.
///
/// # Errors
/// When they differ from those that `earlier` signed.
fn unchanged_renderings(
    repository: &Checkout,
    earlier: &StoredRelease,
    printer: &Printer,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let counter = earlier.release.counter;
    let kustomize = renderer(printer);
    let (files, _) = repository.read_files()?;
    repository.check_committed_bytes(&files)?;
    let store = ReleaseStore::new(repository.root(), &repository.recipe().application);
    let index = repository.read_index()?;
    let mut renderings = Vec::new();
    for one in &earlier.release.renders {
        let described = repository.recipe().render(&one.name).ok_or_else(|| {
            let problem = format!("attest.yaml no longer contains the render `{}`", one.name);
            CiError::ReleaseUnusable { counter, problem }
        })?;
        let fresh = render(&files, &described.path, &[], &kustomize)?;
        let signed = content_digest(&earlier.statement, one);
        if signed != Some(Digest::of(&fresh.rendering)) {
            let committed = index
                .get(&store.rendering_path(&one.name))
                .filter(|bytes| signed == Some(Digest::of(bytes)));
            let difference = committed.map_or_else(
                || "the signed rendering is not in the repository".to_owned(),
                |bytes| first_difference(bytes, &fresh.objects),
            );
            let render = one.name.clone();
            return Err(CiError::RenderingDiffers { counter, render, difference }.into());
        }
        renderings.push((one.name.clone(), fresh.rendering));
    }
    Ok(renderings)
}
