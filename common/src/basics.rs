//! Building blocks of every document: names and digests, strict JSON, Ed25519 keys, DSSE envelopes.

pub mod envelope;
pub mod ids;
pub mod json;
pub mod keys;
pub mod terms;
pub mod text;
