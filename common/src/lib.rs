//! The rules and documents shared by hub and spokes. Pure: no I/O, no clock, no environment.
//!
//! The caller supplies bytes and `now`. Each type is constructed only from the one before it:
//!
//! ```text
//! objects ─manifest─▶ rendering ─verify::release─▶ Verified<Admitted>
//!         ─plan─▶ Plan, Directive ═ wire ═▶ verify::directive, plan, admission ─▶ Verified<Admission> ─▶ applied ─▶ Report
//! ```
//!
//! Modules in reading order; each uses only those before it:
//! [`basics`], [`documents`], [`trust`], [`objects`], [`record`], [`verify`], [`session`].

pub mod basics;
pub mod documents;
pub mod objects;
pub mod record;
pub mod session;
pub mod trust;
pub mod verify;

#[cfg(test)]
mod golden;
