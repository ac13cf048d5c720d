//! The connection to the hub: joining, the session, pushes that arrive, reports that leave. Changes nothing in the cluster.

pub mod certificate;
pub mod freshness;
pub mod join;
pub mod link;
pub mod outbox;
pub mod push;
pub mod quic;
mod renewal;
#[cfg(test)]
pub(crate) mod stubborn_hub;
pub mod token;
