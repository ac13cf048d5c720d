//! The trust policy of the cluster, the identity of this spoke, and access to the spoke's own Secrets.

pub mod identity;
pub mod policy;
pub(crate) mod secrets;
