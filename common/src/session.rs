//! The session between a spoke and its hub: protocol versions, stream layout and limits. No sockets.
//!
//! The spoke dials QUIC with ALPN `attest/1` and opens one bidirectional control stream.
//! On it the spoke sends `Hello` and later `Need` and `Report`; the hub answers `Welcome` and sends
//! `Sync` and `Acknowledge`. The hub opens one unidirectional stream for each push: `Blob` frames
//! for what the spoke is likely to lack, then exactly one `Directive` frame. Signed documents
//! travel as opaque bytes. Joining uses ALPN `attest-join/1` and one bidirectional stream.
//! Protocol names and the exporter of TLS are in `certs`.

pub mod frame;
pub mod join;
pub mod message;
pub mod reconnect;
pub mod report;

/// Newest supported protocol version.
pub const PROTOCOL_VERSION: u32 = 1;
/// Oldest supported protocol version.
pub const PROTOCOL_VERSION_MIN: u32 = 1;
/// Bidirectional streams that the hub grants a spoke: control, and a spare while it is replaced.
pub const BIDIRECTIONAL_STREAMS_MAX: u32 = 2;
/// Unidirectional streams that a spoke grants the hub: concurrent pushes.
pub const UNIDIRECTIONAL_STREAMS_MAX: u32 = 8;
/// Longest duration of the exchange of first messages, in milliseconds.
pub const GREETING_TIMEOUT_MS: u64 = 10_000;
/// Interval of QUIC keep-alives, in milliseconds.
pub const KEEP_ALIVE_MS: u64 = 10_000;
/// Idle time after which a connection is closed, in milliseconds.
pub const IDLE_TIMEOUT_MS: u64 = 30_000;
/// Interval at which the hub sends a `Sync`, in milliseconds.
pub const SYNC_INTERVAL_MS: u64 = 60_000;
/// First delay before a reconnect, in milliseconds.
pub const RECONNECT_MIN_MS: u64 = 200;
/// Longest delay before a reconnect, in milliseconds, with full jitter.
pub const RECONNECT_MAX_MS: u64 = 30_000;
/// Renderings may hold `metadata.finalizers`, annotations of authors and of Argo CD, and every name that Kubernetes allows.
pub const FEATURE_MANIFESTS_2: &str = "manifests-2";
/// Directives may hold `Directive::repair`.
pub const FEATURE_REPAIR: &str = "repair";
/// Directives may hold the operations and fields of [`Directive::needs_rollout`](crate::documents::plan::Directive::needs_rollout).
pub const FEATURE_ROLLOUT: &str = "rollout";
/// Features of this build, which a spoke announces in its `Hello`. What needs one is sent only to a spoke that has it.
pub const FEATURES: [&str; 3] = [FEATURE_MANIFESTS_2, FEATURE_REPAIR, FEATURE_ROLLOUT];
/// Bytes of the id of a spoke's process.
pub const PROCESS_ID_BYTES: usize = 16;
/// Application code of a close: the spoke is not, or no longer, admitted.
pub const CLOSE_NOT_ADMITTED: u32 = 2;

/// Returns the newest version that both ends support, if there is one.
pub fn negotiate(peer_min: u32, peer_max: u32) -> Option<u32> {
    let version = peer_max.min(PROTOCOL_VERSION);
    (version >= peer_min.max(PROTOCOL_VERSION_MIN)).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version_is_spoken() {
        assert_eq!(negotiate(1, 1), Some(1));
        assert_eq!(negotiate(1, 3), Some(1));
        assert_eq!(negotiate(2, 3), None);
        assert_eq!(negotiate(0, 0), None);
    }
}
