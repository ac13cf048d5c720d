//! Runs fuzz targets for a time. Not a figure: it fails at the first input for which a target panics.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use crate::fuzz::{TARGETS, Target};

/// Runs the target of this name, or every one, for `seconds` each; prints a line for each.
///
/// # Errors
/// When a target panics; the message contains the input. When there is no target of this name.
pub fn run(
    name: Option<&str>,
    (seconds, seed): (u64, u64),
    print: &mut dyn FnMut(String),
) -> anyhow::Result<()> {
    let chosen: Vec<Target> =
        TARGETS.into_iter().filter(|target| name.is_none_or(|name| name == target.name)).collect();
    let names = TARGETS.map(|target| target.name).join(", ");
    ensure!(!chosen.is_empty(), "no such target; the targets are {names}");
    for target in chosen {
        let until = Instant::now() + Duration::from_secs(seconds);
        // The targets for Git block, which a thread of an asynchronous runtime does not permit.
        let running =
            std::thread::spawn(move || target.campaign(seed, |_| Instant::now() >= until));
        let campaign = running.join().map_err(|_| anyhow::anyhow!("{} panicked", target.name))?;
        if let Some(failure) = campaign.failure {
            bail!("{}: {}\ninput: {:?}", target.name, failure.message, failure.input);
        }
        print(format!(
            "{}: {} inputs in {seconds} s, none fails; the slowest took {:?}",
            target.name, campaign.inputs, campaign.slowest
        ));
    }
    Ok(())
}
