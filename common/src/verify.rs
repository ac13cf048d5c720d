//! The gate: the only code that can make a [`Verified`] value.
//!
//! CI (`--verify`), hub and spoke call the same functions; none relies on the result of another. A function
//! that needs checked input takes `Verified<T>`, so a forgotten check does not compile. Nothing is
//! applied here and no state is kept: the caller supplies records, policy and the time.
//!
//! [`fn@directive`] and [`fn@plan`] check what the hub signs, [`fn@release`] what CI signs, [`fn@admission`]
//! combines the three, [`fn@kept`] verifies again what a record names, [`fn@object_set`] derives what is
//! written from it, and [`fn@sync`] checks a heartbeat.

use std::collections::BTreeSet;
use std::ops::Deref;

use serde::{Deserialize, Serialize};

use crate::basics::ids::{Name, Timestamp};
use crate::basics::keys::KeyId;
use crate::documents::receipt::CLOCK_SKEW_MAX_MS;
use crate::objects::kinds::Kinds;
use crate::trust::policy::Policy;

mod admission;
mod directive;
mod error;
mod evidence;
mod objects;
mod plan;
mod release;
mod sync;

pub use self::admission::{Admission, Removal, admission, kept, removal};
pub use self::directive::{Ordered, SpokeContext, directive};
pub use self::error::VerifyError;
pub use self::objects::{ObjectSet, object_set};
pub use self::plan::plan;
pub use self::release::{
    Admitted, COUNTER_AHEAD_MAX_S, OpenedRelease, UNIX_SECONDS_COUNTER_MIN, check_allowed,
    fitting_render, open_release, release,
};
pub use self::sync::sync;

/// A value that this module has verified. Only this module can construct it.
///
/// ```
/// use attest_common::verify::Verified;
/// let _reads: fn(Verified<u8>) -> u8 = Verified::into_inner;
/// ```
///
/// ```compile_fail
/// use attest_common::verify::Verified;
/// let _makes: fn(u8) -> Verified<u8> = Verified;
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// Returns the value without the proof.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// One passed check, for the decision record and for `attest verify`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// A stable word that names the check.
    pub check: String,
    pub detail: String,
}

impl Check {
    fn new(check: &str, detail: impl Into<String>) -> Self {
        Self { check: check.to_owned(), detail: detail.into() }
    }
}

/// Treatment of expiry times and ages. They are enforced when a release is first admitted at a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ages {
    Enforce,
    /// The release already runs here: it is kept, not admitted.
    Skip,
}

/// The destination for which a release is verified.
#[derive(Clone, Copy, Debug)]
pub struct DestinationContext<'a> {
    pub policy: &'a Policy,
    pub application: &'a Name,
    pub namespace: &'a Name,
    /// Kinds that the cluster serves, as far as the caller knows.
    pub kinds: &'a Kinds,
    pub now: Timestamp,
    pub ages: Ages,
}

/// Unverified bytes, as delivered.
#[derive(Clone, Copy, Debug)]
pub struct Material<'a> {
    pub release: &'a [u8],
    pub receipts: &'a [&'a [u8]],
    pub content: &'a [u8],
}

fn check_lifetime(
    what: &'static str,
    (issued_at, expires_at): (Timestamp, Timestamp),
    lifetime_max_ms: i64,
    now: Timestamp,
) -> Result<(), VerifyError> {
    let (issued_ms, expires_ms) = (issued_at.as_millisecond(), expires_at.as_millisecond());
    let now_ms = now.as_millisecond();
    if expires_ms - issued_ms > lifetime_max_ms {
        return Err(VerifyError::Lifetime { what });
    }
    if issued_ms > now_ms + CLOCK_SKEW_MAX_MS {
        return Err(VerifyError::FromFuture { what, issued_at });
    }
    if now_ms > expires_ms + CLOCK_SKEW_MAX_MS {
        return Err(VerifyError::Expired { what, expires_at });
    }
    Ok(())
}

fn key_list(ids: &BTreeSet<KeyId>) -> String {
    let shown: Vec<String> = ids.iter().map(KeyId::display_form).collect();
    if shown.is_empty() { "no key".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests;
