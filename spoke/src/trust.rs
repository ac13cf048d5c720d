//! What this spoke trusts and who it is: the policy of its cluster, its identity, and the Secrets that keep both.

pub mod identity;
pub mod policy;
pub(crate) mod secrets;
