//! `attest release --from COUNTER`: an earlier release signed again under a new counter, without building.
//!
//! The scan runs again, because a scan ages; build and test receipts, renderings and image digests stay. The work
//! tree must render what the earlier release signed, or the new one could never be deployed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use attest_common::basics::ids::{Digest, Name};
use attest_common::basics::keys::PublicKey;
use attest_common::documents::release::content_digest;
use attest_common::verify::open_release;
use attest_supply::ci::{CiError, Draft, Repository, Store, StoredRelease, first_difference};
use attest_supply::render::{Kustomize, render};

use crate::printer::{Output, Printer};
use crate::run::{Prepared, Summary, private_key, run_steps};
use crate::verify;

/// The step whose receipt ages.
const SCAN: &str = "security-scan";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Counter of the release to sign again (a directory under .attest/receipts/APPLICATION)
    #[arg(long, value_name = "COUNTER")]
    from: u64,
    /// Forget the private key, read the staged bytes back and verify them, as `attest run --verify`
    #[arg(long)]
    verify: bool,
    /// Trust policy of a cluster to verify with; the keys of your context when absent
    #[arg(long, value_name = "FILE", requires = "verify")]
    trust_policy: Vec<PathBuf>,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn release(args: Args, printer: &Printer) -> anyhow::Result<()> {
    let Args { from, verify, trust_policy, output } = args;
    let repository = Repository::open(&std::env::current_dir()?)?;
    // What was released keeps its version and images; a variable that only they use may be unset. Counter and
    // notAfter do not take this word.
    let recipe = &repository
        .expanded(|name| Some(std::env::var(name).unwrap_or_else(|_| "unset".to_owned())))?;
    let key = private_key(&repository)?;
    let trust = if verify { Some(verify::trust(&trust_policy, repository.root())?) } else { None };
    let store = Store::new(repository.root(), &recipe.application);
    let former = former(&repository, &store, from, key.public(), &trust_policy)?;
    let renderings = same_renderings(&repository, &former)?;
    if !recipe.steps.iter().any(|step| step.name == SCAN) {
        anyhow::bail!(
            "attest.yaml has no step `{SCAN}`: a release cannot be signed again without a new scan"
        );
    }
    let steps = run_steps(&repository, recipe, |name| name == SCAN, printer)?;
    let Some(scan) = steps.first() else { anyhow::bail!("step `{SCAN}` did not run") };
    let environment: Option<Name> = None;
    let prepared = Prepared { repository: &repository, recipe, environment, printer };
    let mut origin = prepared.origin()?;
    // The images were built from that commit, whatever is checked out now.
    origin.source = former.release.source.clone();
    let draft = Draft::again(&former, recipe, scan, &origin)?;
    let summary = Summary::of(&draft, Some(&key));
    prepared.sign(&draft, &renderings, &key)?;
    drop(key);
    if let Some(trust) = &trust {
        prepared.verify(trust, draft.release.counter)?;
    }
    summary.done(verify).print(output, printer)
}

/// The release with this counter, signed by this key, or by one that the operator trusts (CI's key before
/// it was changed): what somebody else put there is not signed again.
fn former(
    repository: &Repository,
    store: &Store,
    counter: u64,
    key: &PublicKey,
    trust_policy: &[PathBuf],
) -> anyhow::Result<StoredRelease> {
    let releases = store.releases(&repository.index()?);
    let known: BTreeSet<u64> = releases.iter().map(|stored| stored.release.counter).collect();
    let found = releases.into_iter().filter(|stored| stored.release.counter == counter);
    let mut refused = None;
    let mut keys = BTreeMap::from([(key.id(), key.clone())]);
    if let Ok(trust) = verify::trust(trust_policy, repository.root()) {
        keys.extend(trust.releasers());
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
            let known: Vec<String> = known.iter().map(u64::to_string).collect();
            let application = repository.recipe().application.clone();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            CiError::ReleaseUnknown { application, counter, known }.into()
        }
    })
}

/// The renderings of the work tree, when they are what `former` signed.
fn same_renderings(
    repository: &Repository,
    former: &StoredRelease,
) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let counter = former.release.counter;
    let unusable = |problem: String| CiError::ReleaseUnusable { counter, problem };
    let kustomize = Kustomize::find(std::env::var_os("PATH").as_deref());
    let (files, _) = repository.files()?;
    let store = Store::new(repository.root(), &repository.recipe().application);
    let index = repository.index()?;
    let mut renderings = Vec::new();
    for one in &former.release.renders {
        let described = repository.recipe().render(&one.name).ok_or_else(|| {
            unusable(format!("attest.yaml has no render `{}` any more", one.name))
        })?;
        let fresh = render(&files, &described.path, &[], &kustomize)?;
        let signed = content_digest(&former.statement, one);
        if signed != Some(Digest::of(&fresh.rendering)) {
            let kept = index.get(&store.rendering(&one.name));
            let kept = kept.filter(|bytes| signed == Some(Digest::of(bytes)));
            let difference = kept.map_or_else(
                || "its bytes are another rendering".to_owned(),
                |bytes| first_difference(bytes, &fresh.objects),
            );
            let render = one.name.clone();
            return Err(CiError::RenderingDiffers { counter, render, difference }.into());
        }
        renderings.push((one.name.clone(), fresh.rendering));
    }
    Ok(renderings)
}
