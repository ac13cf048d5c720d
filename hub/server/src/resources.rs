//! AttestApplications as custom resources of the hub's cluster: each version is accepted or rejected, and its status is
//! written. The rules of applying and removing are those of `applications::rules`.
//!
//! A resource that is absent removes nothing. Only an observed deletion does.

pub(crate) mod controller;
pub(crate) mod custodian;
mod decision;
mod document;
mod events;
mod observed;
pub(crate) mod operator;
mod requests;
