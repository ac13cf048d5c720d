//! Protobuf messages of the session: one enum for each direction, and two messages for joining.
//!
//! Field numbers are permanent: the number of a removed field is not reused. Unknown fields and variants of a newer peer
//! are skipped, so that both ends tolerate version skew.

use prost::{Message, Oneof};

/// A frame from hub to spoke.
#[derive(Clone, PartialEq, Message)]
pub struct ToSpoke {
    #[prost(oneof = "ToSpokeBody", tags = "1, 2, 3, 4, 5, 6")]
    pub body: Option<ToSpokeBody>,
}

/// Messages of a hub.
#[derive(Clone, PartialEq, Oneof)]
pub enum ToSpokeBody {
    /// Answer to `Hello`, which establishes the session.
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    /// A piece of a content-addressed blob. Only on push streams.
    #[prost(message, tag = "2")]
    Blob(Blob),
    /// A signed directive and the digest of its plan envelope. Last frame of a push stream.
    #[prost(message, tag = "3")]
    Directive(Push),
    /// Signed heartbeat.
    #[prost(bytes = "vec", tag = "4")]
    Sync(Vec<u8>),
    /// The report with this number is durable at the hub.
    #[prost(uint64, tag = "5")]
    Acknowledge(u64),
    /// Answer to `Renew`: the certificate for the next connection.
    #[prost(message, tag = "6")]
    Renewed(Renewed),
}

/// A frame from spoke to hub.
#[derive(Clone, PartialEq, Message)]
pub struct ToHub {
    #[prost(oneof = "ToHubBody", tags = "1, 2, 3, 4")]
    pub body: Option<ToHubBody>,
}

/// Messages of a spoke.
#[derive(Clone, PartialEq, Oneof)]
pub enum ToHubBody {
    /// First message on the control stream.
    #[prost(message, tag = "1")]
    Hello(Hello),
    /// Blobs missing for a destination's directive. The hub pushes the directive again with them.
    #[prost(message, tag = "2")]
    Need(Need),
    /// State of a destination.
    #[prost(message, tag = "3")]
    Report(NumberedReport),
    /// A certificate signing request (DER) for the next certificate. Only its public key is used; the identity is that of
    /// the connection.
    #[prost(bytes = "vec", tag = "4")]
    Renew(Vec<u8>),
}

/// Identity of a spoke, and the directives that it holds.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    #[prost(uint32, tag = "1")]
    pub protocol_min: u32,
    #[prost(uint32, tag = "2")]
    pub protocol_max: u32,
    /// Must match the certificate.
    #[prost(string, tag = "3")]
    pub cluster_id: String,
    #[prost(string, tag = "4")]
    pub agent_version: String,
    /// 16 random bytes that every `Sync` of the connection must contain.
    #[prost(bytes = "vec", tag = "5")]
    pub nonce: Vec<u8>,
    /// The cluster's trust policy as JSON (`policy::Spec`). Public and not authoritative: the hub uses it to predict
    /// refusals of the spoke.
    #[prost(bytes = "vec", tag = "6")]
    pub policy: Vec<u8>,
    #[prost(message, repeated, tag = "7")]
    pub destinations: Vec<Seen>,
    #[prost(string, tag = "8")]
    pub kubernetes_version: String,
    /// Features of this spoke beyond the first form of the signed documents; see `session::FEATURES`.
    #[prost(string, repeated, tag = "9")]
    pub features: Vec<String>,
    /// [`PROCESS_ID_BYTES`](super::PROCESS_ID_BYTES) random bytes that the process chose at its start; empty for an older
    /// spoke. Two processes that alternate on one certificate show that the identity was copied.
    #[prost(bytes = "vec", tag = "10")]
    pub process_id: Vec<u8>,
}

/// The directive that a spoke durably holds for a destination.
#[derive(Clone, PartialEq, Message)]
pub struct Seen {
    #[prost(string, tag = "1")]
    pub application: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(uint64, tag = "3")]
    pub epoch: u64,
    #[prost(uint64, tag = "4")]
    pub sequence: u64,
    /// SHA-256 of the held directive's payload.
    #[prost(bytes = "vec", tag = "5")]
    pub directive: Vec<u8>,
    /// Rollout number of the held directive; 0 before the first one that needs the feature `rollout`.
    #[prost(uint64, tag = "6")]
    pub generation: u64,
    /// Attempt of the held directive.
    #[prost(uint32, tag = "7")]
    pub attempt: u32,
}

/// The hub accepts the session.
#[derive(Clone, PartialEq, Message)]
pub struct Welcome {
    #[prost(uint32, tag = "1")]
    pub protocol: u32,
    #[prost(string, tag = "2")]
    pub hub_version: String,
    /// Window over which reconnects are spread after this connection ends.
    #[prost(uint64, tag = "3")]
    pub reconnect_window_ms: u64,
}

/// A spoke's next certificate.
#[derive(Clone, PartialEq, Message)]
pub struct Renewed {
    /// Leaf first, then the CA. Empty when the hub does not renew the certificate.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub chain_der: Vec<Vec<u8>>,
}

/// A piece of a blob. The pieces of a blob are sent in order on one stream.
#[derive(Clone, PartialEq, Message)]
pub struct Blob {
    /// SHA-256 of the whole uncompressed blob.
    #[prost(bytes = "vec", tag = "1")]
    pub sha256: Vec<u8>,
    /// Size of the whole uncompressed blob in bytes.
    #[prost(uint64, tag = "2")]
    pub size: u64,
    /// Offset of this piece in the compressed bytes.
    #[prost(uint64, tag = "3")]
    pub offset: u64,
    /// Size of the whole blob compressed with zstd, in bytes.
    #[prost(uint64, tag = "4")]
    pub compressed_size: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub data: Vec<u8>,
}

/// A pushed directive.
#[derive(Clone, PartialEq, Message)]
pub struct Push {
    /// Directive envelope.
    #[prost(bytes = "vec", tag = "1")]
    pub directive: Vec<u8>,
    /// SHA-256 of the plan envelope among the blobs; empty for `Remove`.
    #[prost(bytes = "vec", tag = "2")]
    pub plan: Vec<u8>,
}

/// Blobs that a spoke lacks.
#[derive(Clone, PartialEq, Message)]
pub struct Need {
    #[prost(string, tag = "1")]
    pub application: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub sha256: Vec<Vec<u8>>,
}

/// A report and the number by which it is acknowledged. Numbers rise within a connection.
#[derive(Clone, PartialEq, Message)]
pub struct NumberedReport {
    #[prost(uint64, tag = "1")]
    pub number: u64,
    /// `report::Report` as JSON.
    #[prost(bytes = "vec", tag = "2")]
    pub report: Vec<u8>,
}

/// Request of a spoke to join.
#[derive(Clone, PartialEq, Message)]
pub struct JoinRequest {
    /// Public part of the token.
    #[prost(string, tag = "1")]
    pub token_id: String,
    /// Certificate signing request; only its public key is used.
    #[prost(bytes = "vec", tag = "2")]
    pub csr_der: Vec<u8>,
    /// Ed25519 identity key, 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub identity_key: Vec<u8>,
    #[prost(string, tag = "4")]
    pub kube_system_uid: String,
    #[prost(string, tag = "5")]
    pub agent_version: String,
    /// HMAC-SHA256 that proves the token's secret on this connection; see `join_proof_message`.
    #[prost(bytes = "vec", tag = "6")]
    pub proof: Vec<u8>,
    /// Ed25519 signature of the identity key over the same message.
    #[prost(bytes = "vec", tag = "7")]
    pub identity_proof: Vec<u8>,
}

/// The hub's answer to a join.
#[derive(Clone, PartialEq, Message)]
pub struct JoinAnswer {
    #[prost(oneof = "JoinOutcome", tags = "1, 2, 3")]
    pub outcome: Option<JoinOutcome>,
}

/// Outcome of a join request.
#[derive(Clone, PartialEq, Oneof)]
pub enum JoinOutcome {
    #[prost(message, tag = "1")]
    Joined(Joined),
    /// An operator has not accepted the cluster yet; retry after this many milliseconds.
    #[prost(uint64, tag = "2")]
    PendingRetryMs(u64),
    #[prost(message, tag = "3")]
    Refused(JoinRefused),
}

/// The spoke's certificate.
#[derive(Clone, PartialEq, Message)]
pub struct Joined {
    #[prost(string, tag = "1")]
    pub cluster_id: String,
    /// Leaf first, then the CA.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub chain_der: Vec<Vec<u8>>,
    #[prost(string, tag = "3")]
    pub cluster_name: String,
    /// Id of the key that signs plans; must be pinned by the cluster's trust policy.
    #[prost(string, tag = "4")]
    pub hub_key_id: String,
}

/// Refusal of a join request.
#[derive(Clone, PartialEq, Message)]
pub struct JoinRefused {
    /// A stable word.
    #[prost(string, tag = "1")]
    pub reason: String,
    #[prost(string, tag = "2")]
    pub message: String,
}

/// Returns the message over which the proofs of a join request are made. It binds them to the connection and the keys.
pub fn join_proof_message(
    exporter: &[u8; 32],
    csr_sha256: &[u8; 32],
    identity_key: &[u8],
) -> Vec<u8> {
    [b"attest-join-v1".as_slice(), exporter, csr_sha256, identity_key].concat()
}
