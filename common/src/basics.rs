//! Building blocks of documents: identifiers, labels, strict JSON, Ed25519 keys, DSSE envelopes. Also backoff, rate limits and locks.

pub mod backoff;
pub mod canonical;
pub mod envelope;
pub mod ids;
pub mod json;
pub mod keys;
pub mod labels;
pub mod locked;
pub mod rate;
pub mod reason;
pub mod terms;
pub mod text;
