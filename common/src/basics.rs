//! Building blocks of every document: names and digests, strict JSON, Ed25519 keys, DSSE envelopes,
//! and the pure rules of backoff and rate limits.

pub mod backoff;
pub mod envelope;
pub mod ids;
pub mod json;
pub mod keys;
pub mod locked;
pub mod rate;
pub mod reason;
pub mod terms;
pub mod text;
