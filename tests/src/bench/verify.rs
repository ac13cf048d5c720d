//! Cost of verifying one application: release, three receipts, thirty objects (figure B7).

use std::collections::BTreeSet;

use anyhow::{anyhow, ensure};
use attest_common::basics::ids::{Name, Timestamp};
use attest_common::basics::keys::PrivateKey;
use attest_common::basics::terms::Mode;
use attest_common::basics::text::error_chain;
use attest_common::documents::plan::RequestedPolicy;
use attest_common::objects::kinds::Kinds;
use attest_common::trust::policy::Policy;
use attest_common::verify::{self, Ages, DestinationContext, Material};

use super::figures::{Figures, heading};
use super::signed::{self, Signed};
use crate::fleet::processor_us;
use crate::workload::{ENVIRONMENT, OBJECTS, policy_spec};

const ROUNDS: usize = 20;
const BATCH: u32 = 500;

/// Prints the figure.
///
/// # Errors
/// When the workload cannot be signed or does not verify.
pub fn run(print: &mut dyn FnMut(String)) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let signed = signed::sign(directory.path())?;
    let policy = policy(&signed)?;
    let mut honest = Figures::default();
    let mut forged = Figures::default();
    let mut forged_release = signed.release.clone();
    if let Some(byte) = forged_release.iter_mut().rev().nth(20) {
        *byte = if *byte == b'A' { b'B' } else { b'A' };
    }
    for _ in 0..ROUNDS {
        let (took_us, result) = batch(|| verify_once(&signed.release, &signed, &policy))?;
        honest.add(took_us);
        let objects = result.map_err(|reason| anyhow!(reason))?;
        ensure!(objects == OBJECTS, "{objects} objects");
        let (took_us, result) = batch(|| verify_once(&forged_release, &signed, &policy))?;
        forged.add(took_us);
        ensure!(result.is_err(), "a forged release was accepted");
    }
    print(heading());
    print(honest.line("verify one application (W), CPU time", "us", "<= 300 us of one core"));
    print(forged.line("refuse a forged release, CPU time", "us", "<= 50 us of one core"));
    Ok(())
}

/// CPU time of one verification in microseconds, as the mean of a batch. The kernel counts in ticks of
/// 10 ms; other processes do not count.
#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn batch<T>(mut verify: impl FnMut() -> T) -> anyhow::Result<(f64, T)> {
    let before = processor_us(std::process::id())?;
    let mut last = verify();
    for _ in 1..BATCH {
        last = verify();
    }
    Ok(((processor_us(std::process::id())? - before) as f64 / f64::from(BATCH), last))
}

fn verify_once(release: &[u8], signed: &Signed, policy: &Policy) -> Result<usize, String> {
    let receipts: Vec<&[u8]> = signed.receipts.iter().map(Vec::as_slice).collect();
    let material = Material { release, receipts: &receipts, content: &signed.content };
    let workload = Name::new("workload").map_err(|error| error.to_string())?;
    let asked = RequestedPolicy {
        mode: Mode::Strict,
        required_attestations: BTreeSet::new(),
        trusted_keys: None,
    };
    let place = DestinationContext {
        policy,
        application: &workload,
        namespace: &workload,
        kinds: &Kinds::built_in(),
        now: Timestamp::now(),
        ages: Ages::Enforce,
    };
    let admitted =
        verify::release(&material, ENVIRONMENT, &asked, &place).map_err(|e| error_chain(&e))?;
    Ok(admitted.objects.len())
}

fn policy(signed: &Signed) -> anyhow::Result<Policy> {
    Ok(policy_spec(
        &signed.public_key.to_pem(),
        &PrivateKey::from_seed(&[1; 32])?.public().to_pem(),
        "sha256:00",
    )?
    .load()?)
}
