//! The Secrets that a spoke keeps in its own cluster: names, labels, keys and formats, defined once.
//!
//! The spoke reads and writes them; the operator's tool installs one and reads and repairs the others. Old Secrets
//! must stay readable: a key or a field is added, never renamed or given another meaning.
//!
//! | Secret | keys | format |
//! |---|---|---|
//! | [`JOIN_SECRET`] | [`JOIN_TOKEN_KEY`] | the token as text |
//! | [`IDENTITY_SECRET`] | `IDENTITY_…_KEY` | PEM, or text |
//! | [`destination_secret`] | [`RECORD_KEY`] | JSON of a [`Record`](super::Record) |
//! | | [`DIRECTIVE_KEY`] | the envelope of the directive in effect |
//! | | [`CONFIRMED_KEY`] | zstd of a JSON list of ([`ObjectKey`](crate::documents::manifest::ObjectKey), [`Confirmed`]) |
//! | [`progress_secret`] | [`PROGRESS_KEY`] | JSON of a [`StoredSoak`] |
//! | [`content_secret`] | [`PIECE_KEY`] | one piece of the zstd of a [`PackedBlobs`] |
//! | [`REFUSALS_SECRET`] | [`REFUSALS_KEY`] | JSON list of [`StoredRefusal`] |
//! | | [`HUB_STATUS_KEY`] | JSON of a [`HubStatus`] |

use prost::bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::basics::ids::{Digest, Name, Timestamp};
use crate::basics::reason::ReportedReason;

/// Namespace of the spoke: its Secrets and its ServiceAccount.
pub const SPOKE_NAMESPACE: &str = "attest-spoke";
/// ServiceAccount and Deployment of the spoke.
pub const SPOKE_NAME: &str = "attest-spoke";

/// Secret with the join token. The installer writes it; the spoke deletes it after joining.
pub const JOIN_SECRET: &str = "attest-join";
/// Join token as text.
pub const JOIN_TOKEN_KEY: &str = "token";

/// Secret with the identity of the spoke.
pub const IDENTITY_SECRET: &str = "attest-identity";
/// Private identity key, PEM. Created once; its hash is the cluster id.
pub const IDENTITY_PRIVATE_KEY: &str = "identity.key";
/// Cluster id as text.
pub const IDENTITY_CLUSTER_ID_KEY: &str = "cluster-id";
/// Certificate chain, PEM. Absent until the hub has admitted the cluster.
pub const IDENTITY_CHAIN_KEY: &str = "tls.chain";
/// Private key of the certificate, PEM.
pub const IDENTITY_TLS_KEY: &str = "tls.key";
/// Number of certificates issued so far, in decimal.
pub const IDENTITY_GENERATION_KEY: &str = "generation";
/// Largest number of destinations ever recorded, in decimal: with fewer records, some are lost. Absent at zero.
pub const IDENTITY_DESTINATIONS_KEY: &str = "destinations";

/// Label by which records and content are found.
pub const RECORD_LABEL: &str = "attest.continuu.ms/record";
/// Value of [`RECORD_LABEL`] of a destination's Secret.
pub const DESTINATION_LABEL_VALUE: &str = "destination";
/// Value of [`RECORD_LABEL`] of a content Secret.
pub const CONTENT_LABEL_VALUE: &str = "content";
/// Annotation with the application, of a destination's Secret and of the objects created for it.
pub const APPLICATION_ANNOTATION: &str = "attest.continuu.ms/application";
/// Annotation with the namespace of the destination.
pub const NAMESPACE_ANNOTATION: &str = "attest.continuu.ms/namespace";

/// Record of a destination, JSON.
pub const RECORD_KEY: &str = "record.json";
/// Envelope of the directive in effect.
pub const DIRECTIVE_KEY: &str = "directive";
/// Confirmed objects, compressed. Absent when too large; everything is then applied again after a restart.
pub const CONFIRMED_KEY: &str = "confirmed";
/// Hexadecimal digits of a digest in the name of a destination's Secret.
const DESTINATION_DIGITS: usize = 16;

/// Soak of the held plan, JSON.
pub const PROGRESS_KEY: &str = "progress.json";

/// One piece of packed content.
pub const PIECE_KEY: &str = "piece";
/// Annotation with the number of pieces of a pack, in decimal.
pub const PIECES_ANNOTATION: &str = "attest.continuu.ms/pieces";
/// Annotation with the size of a piece in bytes, in decimal.
pub const BYTES_ANNOTATION: &str = "attest.continuu.ms/bytes";
/// Hexadecimal digits of a digest in the name of a content Secret.
const CONTENT_DIGITS: usize = 40;

/// Secret with the last refusals and the status of the hub.
pub const REFUSALS_SECRET: &str = "attest-refusals";
/// List of refusals, JSON.
pub const REFUSALS_KEY: &str = "refusals.json";
/// Status of the hub, JSON.
pub const HUB_STATUS_KEY: &str = "hub.json";

/// Returns the name of the Secret of a destination.
pub fn destination_secret(application: &Name, namespace: &Name) -> String {
    let digest = Digest::of(format!("{application}/{namespace}").as_bytes());
    format!("attest-destination-{}", first_digits(digest, DESTINATION_DIGITS))
}

/// Returns the name of the Secret with the soak of a destination's plan.
pub fn progress_secret(application: &Name, namespace: &Name) -> String {
    let digest = Digest::of(format!("{application}/{namespace}").as_bytes());
    format!("attest-progress-{}", first_digits(digest, DESTINATION_DIGITS))
}

/// Returns the common part of the names of the Secrets of one pack: all but the index of the piece.
pub fn content_stem(pack: Digest) -> String {
    format!("attest-content-{}", first_digits(pack, CONTENT_DIGITS))
}

/// Returns the name of the Secret of one piece of a pack.
pub fn content_secret(pack: Digest, index: usize) -> String {
    format!("{}-{index}", content_stem(pack))
}

fn first_digits(digest: Digest, digits: usize) -> String {
    digest.hex().chars().take(digits).collect()
}

/// An object that was applied as desired, as it looked then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirmed {
    /// Digest of the desired object.
    pub desired: Digest,
    pub uid: String,
    /// Digest of the live object projected on our fields.
    pub projected: Digest,
    /// Fields that admission has rewritten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rewritten: Vec<String>,
}

/// The soak of a plan when it was last stored. A restart loses what was counted since then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredSoak {
    /// SHA-256 of the plan's signed payload.
    pub plan: Digest,
    pub healthy_for_ms: u64,
    /// Digest of the newest ReplicaSets of the plan's Deployments and of the restarts of their pods.
    pub pods: Digest,
}

/// Blobs that are stored together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PackedBlobs {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub blobs: Vec<Bytes>,
}

/// A refused document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    pub reason: ReportedReason,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence: Option<u64>,
    pub at: Timestamp,
}

/// A refusal as it is stored, with the document that it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StoredRefusal {
    /// As stated by the refused document, unverified; empty when it could not be read.
    #[serde(default)]
    pub application: String,
    #[serde(default)]
    pub namespace: String,
    /// True when a hub key of the policy signed the document: evidence against that hub.
    #[serde(default)]
    pub signed: bool,
    /// Time of the first refusal; absent when written by an older spoke.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_at: Option<Timestamp>,
    /// Number of refusals since then.
    #[serde(default = "once")]
    pub count: u64,
    #[serde(flatten)]
    pub refusal: Refusal,
}

impl StoredRefusal {
    /// Creates the record of a first refusal.
    pub fn first(application: String, namespace: String, signed: bool, refusal: Refusal) -> Self {
        Self { application, namespace, signed, first_at: Some(refusal.at), count: 1, refusal }
    }

    /// Returns the time of the first refusal, or of the last one if unknown.
    pub fn first_at(&self) -> Timestamp {
        self.first_at.unwrap_or(self.refusal.at)
    }
}

fn once() -> u64 {
    1
}

/// The freshness of the hub's heartbeat when this was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubStatus {
    pub stale: bool,
    /// Time of the last change of `stale`.
    pub since: Timestamp,
}
