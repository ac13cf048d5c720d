//! What both ends of an ATTEST fleet agree on: documents, keys, verification, and the words on the wire.
//!
//! Pure. Nothing here performs I/O, reads a clock or an environment; whoever calls brings bytes and `now`.
//! The flow is a ladder, each rung made only from the one below:
//!
//! ```text
//! objects ─manifest─▶ rendering ─verify(release, receipts, keys)─▶ Verified<Release>
//!         ─plan─▶ Plan, Directive ═ wire ═▶ verify again, local trust ─▶ Verified<Admission> ─▶ applied ─▶ Report
//! ```
//!
//! Reading order: `ids`, `json`, `keys`, `envelope`, `statement`, `release`, `manifest`, `kinds`,
//! `policy`, `plan`, `record`, `verify`, `effective`, `projection`, `health`, `report`, `session`.

pub mod difference;
pub mod effective;
pub mod envelope;
pub mod health;
pub mod ids;
pub mod json;
pub mod keys;
pub mod kinds;
pub mod manifest;
pub mod plan;
pub mod policy;
pub mod projection;
pub mod receipt;
pub mod record;
pub mod release;
pub mod report;
pub mod session;
pub mod statement;
pub mod verify;

#[cfg(test)]
mod golden;
