//! Reasons: one stable word for each condition that an operator may see, the same in conditions, metrics, logs, the
//! API and the command line.
//!
//! [`Reason`] is the closed registry, generated from the table in `registry`; `docs/reasons.md` is generated from the
//! same table. [`ReportedReason`] is a reason in a document of a peer, which may have a later registry.

mod registry;

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use self::registry::{Reason, SUBJECTS};
use crate::basics::text;

/// Longest word that is kept of a reason outside the registry, in characters.
pub const REASON_CHARACTERS_MAX: usize = 120;

/// Words of earlier releases, and the reasons that replace them. Read as the new word for one release.
pub const RENAMED: [(&str, Reason); 31] = [
    ("Accept", Reason::AcceptFailed),
    ("AdmissionsTooFast", Reason::AdmissionRateLimited),
    ("AnswerUnreadable", Reason::ResponseUnreadable),
    ("Ended", Reason::StartInterrupted),
    ("EpochForgotten", Reason::EpochRaised),
    ("GreetingTimeout", Reason::PeerTimeout),
    ("Handshake", Reason::HandshakeFailed),
    ("Handshakes", Reason::HandshakeLimit),
    ("HeldTooOften", Reason::ClaimRateLimited),
    ("HeldUnbelievable", Reason::ClaimImplausible),
    ("HubDisconnected", Reason::ConnectionLost),
    ("HubSilent", Reason::PeerTimeout),
    ("IdentityKnown", Reason::AlreadyRegistered),
    ("IdentityOvertaken", Reason::IdentityConflict),
    ("IntroducedTooOften", Reason::MetadataRateLimited),
    ("JoinsBusy", Reason::JoinLimit),
    ("Leaving", Reason::Terminating),
    ("LookUnfinished", Reason::ReconcileTimeout),
    ("Metrics", Reason::MetricsInvalid),
    ("NotAdmitted", Reason::ClusterRejected),
    ("NotReading", Reason::WriteTimeout),
    ("PartEnded", Reason::TaskEnded),
    ("PartPanicked", Reason::TaskPanicked),
    ("PinFormat", Reason::MalformedPin),
    ("PortInUse", Reason::AddressInUse),
    ("RecordOvertaken", Reason::RecordConflict),
    ("RendererEnded", Reason::RendererKilled),
    ("RendererOutput", Reason::RenderLimit),
    ("RendererTimedOut", Reason::RenderTimedOut),
    ("Replaced", Reason::SessionReplaced),
    ("ReportOfUnordered", Reason::UnorderedReport),
];

/// Reasons about one subject.
#[derive(Clone, Copy, Debug)]
pub struct Subject {
    pub title: &'static str,
    /// The programs and places that show these reasons.
    pub seen: &'static str,
    pub reasons: &'static [Reason],
}

impl Reason {
    /// Returns the reason with this word, also by the word of an earlier release. Returns none outside the registry.
    pub fn parse(word: &str) -> Option<Self> {
        Self::of_word(word)
            .or_else(|| RENAMED.iter().find(|(old, _)| *old == word).map(|(_, reason)| *reason))
    }
}

impl Reason {
    /// Returns true when a signature is not by a trusted key.
    pub const fn is_signature_failure(self) -> bool {
        matches!(self, Self::SignatureInvalid | Self::UntrustedKey)
    }
}

impl Reason {
    /// Returns true when the trust policy of a cluster does not allow what a release or plan asks.
    pub const fn is_policy_refusal(self) -> bool {
        matches!(
            self,
            Self::ApplicationNotAllowed
                | Self::SourceNotAllowed
                | Self::NamespaceNotAllowed
                | Self::KindNotAllowed
                | Self::PolicyFloor
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// A reason as a peer or a stored document states it. Written as the plain word.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReportedReason {
    Known(Reason),
    /// A word outside the registry, of a later release: printable, at most [`REASON_CHARACTERS_MAX`] characters.
    Other(String),
}

impl ReportedReason {
    /// Reads any text. A text outside the registry is cut to length and loses its control characters.
    pub fn parse(text: &str) -> Self {
        Reason::parse(text).map_or_else(
            || Self::Other(text::message(text).chars().take(REASON_CHARACTERS_MAX).collect()),
            Self::Known,
        )
    }

    /// Returns the word.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Known(reason) => reason.as_str(),
            Self::Other(word) => word,
        }
    }

    /// Returns the reason when it is in the registry.
    pub fn known(&self) -> Option<Reason> {
        match self {
            Self::Known(reason) => Some(*reason),
            Self::Other(_) => None,
        }
    }
}

impl From<Reason> for ReportedReason {
    fn from(reason: Reason) -> Self {
        Self::Known(reason)
    }
}

impl PartialEq<Reason> for ReportedReason {
    fn eq(&self, reason: &Reason) -> bool {
        self.known() == Some(*reason)
    }
}

impl fmt::Display for ReportedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for ReportedReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl std::str::FromStr for ReportedReason {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self::parse(text))
    }
}

impl Serialize for ReportedReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for ReportedReason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self::parse(&text))
    }
}

/// Returns the page that lists every reason, in Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# Reasons\n\n\
         A reason is one word, the same in the API, the conditions, the log, the metrics and the command line.\n\
         The message beside it gives the details. This page is generated from the registry in `common/src/basics/reason/registry.rs`\n\
         (`ATTEST_UPDATE_DOCS=1 cargo test -p attest-tests --test reasons`).\n",
    );
    for subject in SUBJECTS {
        page.push_str(&format!("\n## {}\n\nSeen in: {}.\n\n", subject.title, subject.seen));
        page.push_str("| reason | meaning | what to do |\n|---|---|---|\n");
        for reason in subject.reasons {
            page.push_str(&format!(
                "| `{reason}` | {} | {} |\n",
                reason.meaning(),
                reason.remedy()
            ));
        }
    }
    page.push_str(
        "\n## Renamed\n\nWords from the previous release are still accepted and read as the new ones.\n\n\
         | before | now |\n|---|---|\n",
    );
    for (old, reason) in RENAMED {
        page.push_str(&format!("| `{old}` | `{reason}` |\n"));
    }
    page
}

#[cfg(test)]
mod tests;
